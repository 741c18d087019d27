//! The seam between what runs a case and what keeps the cluster: read committed state, propose, ask another host.
//!
//! Everything that acts for a case takes a [`Cluster`]; the daemon implements it over Raft and QUIC, tests over one
//! state behind a lock. What may not happen here: a decision about a case.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::watch, time::Instant};
use vt_protocol::{
    bulk::Outgoing,
    error::{ErrorCode, Report},
    ids::{HostId, MigrationId, RequestId},
    peer::{Certified, PeerReply, PeerRequest},
};
use vt_sync::{Applied, Command, Rejected, State};

/// What a host can do with the cluster it belongs to.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// This host.
    fn me(&self) -> HostId;

    /// The committed state as far as this host has applied it.
    fn state(&self) -> Arc<State>;

    /// The same, told at every change.
    fn watch(&self) -> watch::Receiver<Arc<State>>;

    /// Which other host this one heard last as leader, and how long ago; where it leads itself, who led before it. `None`
    /// where that is not known.
    fn heard_leader(&self) -> Option<(HostId, Duration)> {
        None
    }

    /// Proposes on the leader, wherever it is; retries until the deadline with the same id.
    ///
    /// # Errors
    /// Refused by the state, or not known to be applied when the deadline passed.
    async fn propose(&self, id: RequestId, command: Command, deadline: Duration) -> Result<Applied, ProposeError>;

    /// Asks another host, or this one.
    ///
    /// # Errors
    /// The host refused, did not answer in time, or cannot be reached.
    async fn ask(&self, host: HostId, request: PeerRequest, deadline: Duration) -> Result<PeerReply, AskError>;

    /// A connection to the QEMU that a migration goes to, carried by the daemons.
    ///
    /// # Errors
    /// As [`Cluster::ask`].
    async fn migration_stream(
        &self,
        host: HostId,
        migration: &MigrationId,
        deadline: Duration,
    ) -> Result<Outgoing, AskError> {
        let _ = (host, migration, deadline);
        Err(no_bulk())
    }

    /// Gives the host that a migration goes to the file that the VM was saved into; returns its length in bytes.
    ///
    /// # Errors
    /// As [`Cluster::ask`].
    async fn give_state(
        &self,
        host: HostId,
        migration: &MigrationId,
        file: &Path,
        by: Instant,
    ) -> Result<u64, AskError> {
        let _ = (host, migration, file, by);
        Err(no_bulk())
    }

    /// A certificate of the cluster's authority for one side of a migration of this host's.
    ///
    /// # Errors
    /// As [`Cluster::ask`].
    async fn certify(
        &self,
        migration: &MigrationId,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Certified, AskError> {
        let _ = (migration, request, deadline);
        Err(AskError::Unreachable("this cluster has no authority".to_owned()))
    }
}

fn no_bulk() -> AskError {
    AskError::Unreachable("this cluster has no bulk channel".to_owned())
}

/// Why a proposal is not known to be applied. After anything but `Rejected` it may still be applied later.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// The state refused it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// No leader was found: most voters do not answer.
    #[error("the cluster cannot decide: most voters do not answer")]
    NoQuorum,
    /// The deadline passed.
    #[error("the cluster did not decide within {0:?}")]
    TimedOut(Duration),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

impl From<ProposeError> for Report {
    fn from(error: ProposeError) -> Self {
        let code = match error {
            ProposeError::Rejected(rejected) => return rejected.into(),
            ProposeError::NoQuorum => ErrorCode::NoQuorum,
            ProposeError::TimedOut(_) => ErrorCode::DeadlinePassed,
            ProposeError::Stopping => ErrorCode::Unreachable,
        };
        Self::new(code, error.to_string()).retryable()
    }
}

/// Why another host did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// It answered: no.
    #[error("{0}")]
    Refused(Box<Report>),
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// It cannot be reached.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
}

impl From<AskError> for Report {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Refused(report) => *report,
            AskError::TimedOut(_) | AskError::Unreachable(_) => {
                Self::new(ErrorCode::HostDown, format!("a host did not answer: {error}")).retryable()
            }
        }
    }
}
