//! What applying a command gives: an answer with wake-up hints, or a refusal with a code.

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, Digest, Epoch, HostId, JobId, Name, TokenId, VmId},
};

use crate::state::{BarrierKey, BarrierState};

/// A command that took effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Log index at which it took effect; for a repetition, that of the first time.
    pub index: u64,
    /// What the caller wants to know.
    pub answer: Answer,
    /// What changed; empty for a repetition.
    pub effects: Vec<Effect>,
}

impl Applied {
    /// The epoch that the command gave, for those that give one.
    pub fn epoch(&self) -> Option<Epoch> {
        match self.answer {
            Answer::Epoch(epoch) => Some(epoch),
            _ => None,
        }
    }
}

/// What a command tells its caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// It is done and gave this fencing number.
    Epoch(Epoch),
    /// How the barrier stands after it.
    Barrier(BarrierState),
    /// The sessions that were not renewed: their epoch is another one, or they expired.
    Renewed {
        /// Their hosts.
        refused: Vec<HostId>,
    },
    /// The vote counts; whether it decided the migration.
    Voted {
        /// The owner's new epoch where this vote was the second one.
        moved: Option<Epoch>,
    },
}

/// A hint that something changed. An actor acts on the state it reads, never on the hint alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Effect {
    /// The cluster's own record.
    Cluster,
    /// A host or its session.
    Host(HostId),
    /// A token.
    Token(TokenId),
    /// A setting.
    Setting(String),
    /// A job or its cases.
    Job(JobId),
    /// An attempt: started, party ended, cancelled, closed.
    Attempt(AttemptId),
    /// A barrier.
    Barrier(AttemptId, BarrierKey),
    /// A VM's owner or its migration.
    Vm(VmId),
    /// A client, by the digest of its key.
    Client(Digest),
    /// An image or its copies.
    Image(Name),
    /// A pool.
    Pool(Name),
}

/// A command that changed nothing, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text} ({code})")]
pub struct Rejected {
    /// From the closed list.
    pub code: ErrorCode,
    /// What is in the way: lower case, no full stop.
    pub text: String,
}

impl Rejected {
    /// A refusal.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl From<Rejected> for Report {
    fn from(rejected: Rejected) -> Self {
        Report::new(rejected.code, rejected.text)
    }
}
