//! What the mesh serves: the traits the daemon implements, and what it tells them about a caller.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::time::Instant;
use vt_protocol::admin::{AccessRole, AdminReply, AdminRequest};
use vt_protocol::error::Report;
use vt_protocol::hello::Hello;
use vt_protocol::identity::PublicKey;
use vt_protocol::ids::{ClusterId, HostId, Name};
use vt_protocol::join::{JoinAnswer, JoinRequest, Member};
use vt_protocol::peer::{PeerReply, PeerRequest};

/// Who is admitted, as committed state says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its hosts by id.
    pub hosts: BTreeMap<HostId, Member>,
}

impl Membership {
    /// The host that holds this key.
    pub fn host_of(&self, key: &PublicKey) -> Option<HostId> {
        self.hosts.values().find(|member| member.key == *key).map(|member| member.host)
    }
}

/// Shows the membership of this moment. It is asked for every request: it must be cheap.
pub trait MembershipView: Send + Sync + 'static {
    /// The membership as committed, or, before the log has reached this host, as its join was answered.
    fn membership(&self) -> Arc<Membership>;
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A process on this machine that may open the socket.
    Local {
        /// Its user.
        uid: u32,
        /// Its process, where the kernel tells.
        pid: Option<i32>,
    },
    /// A client with a certificate.
    Remote {
        /// Whose certificate.
        name: Name,
        /// What it allows.
        role: AccessRole,
        /// From where.
        address: SocketAddr,
    },
}

impl Caller {
    /// What the caller may do.
    pub fn role(&self) -> AccessRole {
        match self {
            // Who may open the socket may do everything: its mode and group are the gate.
            Caller::Local { .. } => AccessRole::Admin,
            Caller::Remote { role, .. } => *role,
        }
    }

    /// Whether it is on this machine: some requests are open to no one else.
    pub fn is_local(&self) -> bool {
        matches!(self, Caller::Local { .. })
    }
}

/// The caller went away; there is nobody to reply to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller went away")]
pub struct CallerGone;

/// Where the replies of one admin request go. The end of the handler ends the replies.
#[derive(Debug, Clone)]
pub struct ReplySink(mpsc::Sender<AdminReply>);

impl ReplySink {
    /// A sink, and the end it is read from. At most `depth` replies wait.
    pub fn pair(depth: usize) -> (Self, mpsc::Receiver<AdminReply>) {
        let (sender, receiver) = mpsc::channel(depth);
        (Self(sender), receiver)
    }

    /// Sends one reply; waits while the caller is slow.
    ///
    /// # Errors
    /// The caller went away.
    pub async fn send(&self, reply: AdminReply) -> Result<(), CallerGone> {
        self.0.send(reply).await.map_err(|_| CallerGone)
    }

    /// Resolves when the caller goes away.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

/// What vtctl asks. An unclaimed daemon implements only this.
#[async_trait]
pub trait AdminService: Send + Sync + 'static {
    /// What this daemon says of itself; no cluster while it is unclaimed.
    fn hello(&self) -> Hello;

    /// Answers one request, with one reply or many. The role has been checked against [`AdminRequest::needs`].
    ///
    /// The handler of a request that only looks is dropped when its caller goes away; any other runs to its end.
    async fn admin(&self, caller: Caller, request: AdminRequest, replies: ReplySink, by: Instant);
}

/// What a daemon of a cluster serves. A handler that outlives its deadline goes on; its caller is told that time is up.
#[async_trait]
pub trait Services: AdminService + MembershipView {
    /// A message of the consensus from an admitted host.
    async fn raft(&self, from: HostId, request: Vec<u8>, by: Instant) -> Result<Vec<u8>, Report>;

    /// A request of an admitted host.
    async fn peer(&self, from: HostId, request: PeerRequest, by: Instant) -> PeerReply;

    /// A host that wants to join: see [`crate::mesh::join::member::admit`].
    async fn join(&self, request: JoinRequest, from: SocketAddr, by: Instant) -> JoinAnswer;
}
