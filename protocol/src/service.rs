//! The services of a daemon, each with the ALPN name that selects it and the caps that bound it.
//!
//! ALPN names service and generation, so that an endpoint routes a connection before it reads a byte of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::frame;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Service {
    /// Consensus between hosts: append, vote, pre-vote, snapshot, transfer.
    Raft,
    /// Commands of vtctl.
    Admin,
    /// Host to host: forwarded commands, party traffic, migrations.
    Peer,
    /// Admission of a host; the only service without a client certificate.
    Join,
    /// Bytes in bulk, over TCP.
    Blob,
}

impl Service {
    /// The services that run over QUIC.
    pub const OVER_QUIC: [Service; 4] = [Service::Raft, Service::Admin, Service::Peer, Service::Join];

    /// The name and generation that ALPN negotiates.
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Service::Raft => b"vt-raft/1",
            Service::Admin => b"vt-admin/1",
            Service::Peer => b"vt-peer/1",
            Service::Join => b"vt-join/1",
            Service::Blob => b"vt-blob/1",
        }
    }

    /// The service that an ALPN name selects.
    pub fn from_alpn(name: &[u8]) -> Option<Service> {
        [Service::Raft, Service::Admin, Service::Peer, Service::Join, Service::Blob]
            .into_iter()
            .find(|service| service.alpn() == name)
    }

    /// Largest body of a request or reply, in bytes.
    pub const fn cap(self) -> usize {
        match self {
            Service::Raft | Service::Admin | Service::Peer => frame::MESSAGE_CAP,
            Service::Join => 256 << 10,
            Service::Blob => frame::SMALL_CAP,
        }
    }

    /// Longest time a request may ask for. Streams that are watched are not bound by it, only their first reply is.
    pub const fn longest(self) -> Duration {
        match self {
            Service::Raft => Duration::from_secs(120),
            Service::Join => Duration::from_secs(60),
            Service::Admin | Service::Peer | Service::Blob => Duration::from_secs(24 * 3600),
        }
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Service::Raft => "raft",
            Service::Admin => "admin",
            Service::Peer => "peer",
            Service::Join => "join",
            Service::Blob => "blob",
        })
    }
}
