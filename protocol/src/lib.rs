//! What is said on the wire: ids, messages, frames, versions, identity, the QUIC endpoint and client.
