//! What a host that wants to join says, what it is answered, and the ways it can fail.
//!
//! A joiner sends a request once it has pinned the CA; the cluster checks the token, probes the joiner's address with a
//! nonce, and admits it by one entry of the log. Everything here can be repeated: the same key with the same token is
//! the same request.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::admin::{AccessRole, HostRole};
use crate::error::{ErrorCode, Report};
use crate::facts::HostFacts;
use crate::identity::PublicKey;
use crate::ids::{ClusterId, HostId, Name, TokenId};
use crate::token::Secret;

/// A request under `vt-join/1`: a joiner to a host of the cluster, or that host's probe back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinCall {
    /// Let me in.
    Admit(Box<JoinRequest>),
    /// Are you the one who wants in? The answer is the nonce.
    Echo([u8; 32]),
    /// Let me use the cluster, as a client.
    Enroll(EnrollRequest),
}

/// The answers to [`JoinCall`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// You are in.
    Admitted(Box<Admitted>),
    /// You are not, and why.
    Refused(JoinRefusal),
    /// The nonce.
    Echo([u8; 32]),
    /// You may use the cluster.
    Enrolled(Box<Enrolled>),
}

/// What a client-to-be says of itself. It holds the token's secret: it is sent only into a pinned channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// The token's public half.
    pub token: TokenId,
    /// The token's secret half.
    pub secret: Secret,
    /// A signing request in DER: proves possession of the client's new key.
    pub signing_request: Vec<u8>,
    /// The name it wishes for, where the token names none.
    pub name: Name,
}

/// What an admitted client needs to use the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: Name,
    /// The client's name.
    pub name: Name,
    /// What it may do.
    pub role: AccessRole,
    /// Its certificate, in DER.
    pub certificate: Vec<u8>,
    /// The CA's certificate, in DER.
    pub ca: Vec<u8>,
    /// When the certificate ends, seconds since 1970.
    pub until_unix_s: u64,
    /// Where daemons listen, voters first.
    pub endpoints: Vec<SocketAddr>,
}

/// What a joiner says of itself. It holds the token's secret: it is sent only into a pinned channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's public half.
    pub token: TokenId,
    /// The token's secret half.
    pub secret: Secret,
    /// A signing request in DER: proves possession of the joiner's new key.
    pub signing_request: Vec<u8>,
    /// Where the joiner says hosts reach it.
    pub advertise: SocketAddr,
    /// The name it wants.
    pub name: Name,
    /// The role it wishes for; everyone joins as learner.
    pub role: Option<HostRole>,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// Its build.
    pub build: String,
    /// What it is.
    pub facts: Option<Box<HostFacts>>,
}

/// What an admitted host needs to live in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: Name,
    /// The new host's id.
    pub host: HostId,
    /// Its certificate, in DER.
    pub certificate: Vec<u8>,
    /// The CA's certificate, in DER.
    pub ca: Vec<u8>,
    /// The hosts of the cluster, the new one included.
    pub members: Vec<Member>,
    /// The generation the cluster is in.
    pub generation: u64,
}

/// A host as membership knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// Its admitted key.
    pub key: PublicKey,
    /// Where it is reached, in order.
    pub addresses: Vec<SocketAddr>,
}

/// Why a host is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// The cluster has no such token, or the secret is not its secret.
    #[error("the cluster does not know this join token")]
    TokenUnknown,
    /// Its time is over.
    #[error("the join token has expired")]
    TokenExpired {
        /// When it ended, unix seconds.
        at: u64,
        /// The clock of the host that answered, unix seconds.
        now: u64,
    },
    /// It has admitted another host.
    #[error("the join token was already used")]
    TokenUsed {
        /// The host it admitted.
        by: Name,
        /// Its address.
        address: Option<SocketAddr>,
    },
    /// An admin ended it.
    #[error("the join token was revoked")]
    TokenRevoked,
    /// The name belongs to another host.
    #[error("a host called {0} is already in the cluster")]
    NameTaken(Name),
    /// The address belongs to another host.
    #[error("{address} is the address of host {of}")]
    AddressTaken {
        /// The address.
        address: SocketAddr,
        /// Whose it is.
        of: Name,
    },
    /// The cluster cannot reach the joiner where it says it is.
    #[error("the cluster cannot reach {address}/udp")]
    DialBackFailed {
        /// The address.
        address: SocketAddr,
        /// The host that tried.
        from: Name,
        /// What it met.
        why: String,
    },
    /// The signing request is unusable.
    #[error("the signing request is not acceptable")]
    BadRequest(String),
    /// The key was removed from the cluster before.
    #[error("this key was removed from the cluster")]
    Removed,
    /// This host holds no CA key; those at these addresses do.
    #[error("this host cannot admit others")]
    NotHere {
        /// Where the voters listen.
        voters: Vec<SocketAddr>,
    },
    /// The cluster cannot decide now; nothing was proposed.
    #[error("the cluster cannot decide now: {0}")]
    Unavailable(String),
    /// The entry was proposed, and whether it is in the log is not known yet: ask again.
    #[error("the cluster has not decided yet: {0}")]
    Undecided(String),
    /// Something the state machine refused.
    #[error("{0}")]
    Other(Box<Report>),
    /// The token was made for the other kind of thing.
    #[error("the token admits {admits}")]
    TokenForOther {
        /// What it admits: `a host` or `a client`.
        admits: String,
    },
}

impl JoinRefusal {
    /// Whether it holds for every request with this token and key, those on their way included. Otherwise a request
    /// that was sent before may still be done.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            JoinRefusal::TokenUnknown
                | JoinRefusal::TokenUsed { .. }
                | JoinRefusal::TokenRevoked
                | JoinRefusal::NameTaken(_)
                | JoinRefusal::Removed
                | JoinRefusal::TokenForOther { .. }
        )
    }

    /// As a user meets it.
    pub fn report(&self) -> Report {
        let new_token = "vtctl cluster token create   (on any host of the cluster)";
        let title = self.to_string();
        match self {
            JoinRefusal::TokenUnknown => Report::new(ErrorCode::TokenUnknown, title).help(new_token),
            JoinRefusal::TokenExpired { at, now } => Report::new(ErrorCode::TokenExpired, title)
                .with("expired", format!("{} s ago by the cluster's clock", now.saturating_sub(*at)))
                .help(new_token),
            JoinRefusal::TokenUsed { by, address } => {
                let by = match address {
                    Some(address) => format!("{by} ({address})"),
                    None => by.to_string(),
                };
                Report::new(ErrorCode::TokenUsed, title).with("by", by).help(new_token)
            }
            JoinRefusal::TokenRevoked => Report::new(ErrorCode::TokenRevoked, title).help(new_token),
            JoinRefusal::NameTaken(name) => Report::new(ErrorCode::NameTaken, title)
                .with("name", name.to_string())
                .help("vtctl cluster join TOKEN --name OTHER"),
            JoinRefusal::AddressTaken { address, of } => Report::new(ErrorCode::NameTaken, title)
                .with("address", address.to_string())
                .with("host", of.to_string())
                .help("vtctl cluster join TOKEN --advertise ADDRESS"),
            JoinRefusal::DialBackFailed { address, from, why } => Report::new(ErrorCode::DialBackFailed, title)
                .with("address", address.to_string())
                .with("from", from.to_string())
                .with("reason", why.clone())
                .help("open the port for UDP and TCP, or name another address: --advertise ADDRESS"),
            JoinRefusal::BadRequest(why) => Report::new(ErrorCode::Denied, title).with("reason", why.clone()),
            JoinRefusal::Removed => Report::new(ErrorCode::HostRemoved, title).help(new_token),
            JoinRefusal::NotHere { .. } => Report::new(ErrorCode::NoQuorum, title).retryable(),
            JoinRefusal::Unavailable(why) | JoinRefusal::Undecided(why) => {
                Report::new(ErrorCode::NoQuorum, "the cluster cannot decide now")
                    .with("reason", why.clone())
                    .retryable()
            }
            JoinRefusal::Other(report) => (**report).clone(),
            JoinRefusal::TokenForOther { .. } => Report::new(ErrorCode::TokenForOther, title)
                .help("for a host:    vtctl cluster token create; on it: vtctl cluster join TOKEN")
                .help("for a client:  vtctl cluster token create --role client-runner; there: vtctl config use-context --join TOKEN"),
        }
    }
}

/// The id a host of this key gets: it follows from the key, so a repeated join asks for the same one.
pub fn host_id_of(key: &PublicKey) -> HostId {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::derive_key("vtmesh 2026 host id of a key", &key.0)[..8]);
    HostId(u64::from_le_bytes(first).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_join_asks_for_the_same_host() {
        let (key, other) = (PublicKey(vec![1, 2]), PublicKey(vec![1, 3]));
        assert_eq!(host_id_of(&key), host_id_of(&key));
        assert_ne!(host_id_of(&key), host_id_of(&other));
        assert_ne!(host_id_of(&key), HostId(0));
    }

    #[test]
    fn every_refusal_has_a_code_of_its_own_kind() {
        let address = "10.0.0.7:7465".parse().unwrap();
        let name: Name = "host1".parse().unwrap();
        let refusals = [
            (JoinRefusal::TokenUnknown, ErrorCode::TokenUnknown),
            (JoinRefusal::TokenExpired { at: 5, now: 9 }, ErrorCode::TokenExpired),
            (JoinRefusal::TokenUsed { by: name.clone(), address: None }, ErrorCode::TokenUsed),
            (JoinRefusal::TokenRevoked, ErrorCode::TokenRevoked),
            (JoinRefusal::NameTaken(name.clone()), ErrorCode::NameTaken),
            (JoinRefusal::DialBackFailed { address, from: name, why: "x".into() }, ErrorCode::DialBackFailed),
        ];
        for (refusal, code) in refusals {
            assert_eq!(refusal.report().code, code);
        }
    }
}
