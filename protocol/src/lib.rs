//! What is said between the parts of vtmesh: ids, messages, frames, versions, TLS identity, and the QUIC client and
//! endpoint that both binaries use.
//!
//! Messages are enums with one struct per variant. Everything stored or sent is encoded by one codec behind a version
//! byte, because positional codecs cannot take an appended field. Nothing here acts on a host.

pub mod error;
pub mod facts;
pub mod ids;
pub mod params;
pub mod probe;
pub mod verdict;
pub mod vm;
