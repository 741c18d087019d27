//! What is said between the parts of vtmesh: ids, messages, frames, versions, TLS identity, and the QUIC client and
//! endpoint that both binaries use.
//!
//! Messages are enums with one struct per variant. Everything stored or sent is encoded by one codec behind a version
//! byte, because positional codecs cannot take an appended field. Nothing here acts on a host.

pub mod admin;
pub mod audit;
pub mod beacon;
pub mod bulk;
pub mod call;
pub mod catalogue;
pub mod chance;
pub mod client;
pub mod codec;
pub mod doctor;
pub mod endpoint;
pub mod enroll;
pub mod error;
pub mod facts;
pub mod frame;
pub mod hello;
pub mod identity;
pub mod ids;
pub mod image;
pub mod job;
pub mod join;
pub mod libvirt;
pub mod manifest;
pub mod matrix;
pub mod membership;
pub mod params;
pub mod party;
pub mod peer;
pub mod pinned;
pub mod pool;
pub mod probe;
pub mod rehearsal;
pub mod round;
pub mod scenario;
pub mod service;
pub mod token;
pub mod transport;
pub mod verbs;
pub mod verdict;
pub mod version;
pub mod vm;
