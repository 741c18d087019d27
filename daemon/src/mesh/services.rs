//! What the mesh serves: the traits the daemon implements, and what it tells them about a caller.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::time::Instant;
use vt_protocol::admin::{AccessRole, AdminReply, AdminRequest};
use vt_protocol::audit::Outcome;
use vt_protocol::error::Report;
use vt_protocol::hello::Hello;
use vt_protocol::identity::PublicKey;
use vt_protocol::ids::{ClusterId, HostId, Name};
use vt_protocol::join::{EnrollRequest, JoinAnswer, JoinRequest, Member};
use vt_protocol::peer::{PeerReply, PeerRequest};
use vt_sync::state::Clients;

use crate::audit::Audit;

/// Who is admitted, as committed state says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its hosts by id.
    pub hosts: BTreeMap<HostId, Member>,
    /// Its clients by the digest of their key.
    pub clients: Arc<Clients>,
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

    /// The generation of the cluster that this host is in.
    fn generation(&self) -> u64;
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

/// The first reply of a request, as the audit trail tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Whether it happened.
    pub outcome: Outcome,
    /// The id of what was made, or why it did not happen.
    pub detail: String,
}

impl Answered {
    fn of(reply: &AdminReply) -> Self {
        let (outcome, detail) = match reply {
            AdminReply::Refused(report) => (Outcome::Failed, format!("{}: {}", report.code, report.title)),
            AdminReply::Submitted(job) => (Outcome::Done, job.to_string()),
            AdminReply::Token(token) => (Outcome::Done, token.id.to_string()),
            AdminReply::Joined(joined) => (Outcome::Done, format!("host {} of {}", joined.host_name, joined.name)),
            _ => (Outcome::Done, String::new()),
        };
        Self { outcome, detail }
    }
}

/// The caller went away; there is nobody to reply to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller went away")]
pub struct CallerGone;

/// Where the replies of one admin request go. The end of the handler ends the replies.
#[derive(Debug, Clone)]
pub struct ReplySink {
    sender: mpsc::Sender<AdminReply>,
    answered: Arc<OnceLock<Answered>>,
}

impl ReplySink {
    /// A sink, and the end it is read from. At most `depth` replies wait.
    pub fn pair(depth: usize) -> (Self, mpsc::Receiver<AdminReply>) {
        let (sender, receiver) = mpsc::channel(depth);
        (Self { sender, answered: Arc::default() }, receiver)
    }

    /// Where the first reply is noted, whether or not the caller is still there to hear it.
    pub(super) fn answered(&self) -> Arc<OnceLock<Answered>> {
        Arc::clone(&self.answered)
    }

    /// Sends one reply; waits while the caller is slow.
    ///
    /// # Errors
    /// The caller went away.
    pub async fn send(&self, reply: AdminReply) -> Result<(), CallerGone> {
        // Only the first counts: the others follow from it.
        let _ = self.answered.set(Answered::of(&reply));
        self.sender.send(reply).await.map_err(|_| CallerGone)
    }

    /// Resolves when the caller goes away.
    pub async fn gone(&self) {
        self.sender.closed().await;
    }
}

/// What vtctl asks. An unclaimed daemon implements only this.
#[async_trait]
pub trait AdminService: Send + Sync + 'static {
    /// What this daemon says of itself; no cluster while it is unclaimed.
    fn hello(&self) -> Hello;

    /// Where it is written down who did what.
    fn audit(&self) -> &Arc<Audit>;

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

    /// A client that wants its certificate: one entry consumes its token and admits its key.
    async fn enroll(&self, request: EnrollRequest, by: Instant) -> JoinAnswer;
}
