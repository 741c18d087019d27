//! openraft's type parameters as this cluster uses them.
//!
//! One leader per term (`leader_id_std`), so that a term names its leader. Only this folder sees openraft's types.

use std::fmt;

use openraft::{BasicNode, alias, impls::leader_id_std};
use serde::{Deserialize, Serialize};

use super::runtime::Runtime;
use crate::{
    answer::{Applied, Rejected},
    command::Request,
};

openraft::declare_raft_types!(
    /// Requests in, outcomes out; hosts are named by their id.
    pub(crate) TypeConfig:
        D = Request,
        R = Response,
        NodeId = u64,
        Node = BasicNode,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

/// What applying an entry gives; `None` for entries without a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Response(pub Option<Result<Applied, Rejected>>);

pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type Membership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, SnapshotData>;
/// An encoded [`crate::stored::StoredState`].
pub(crate) type SnapshotData = std::sync::Arc<Vec<u8>>;

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.command.name(), self.id)
    }
}
