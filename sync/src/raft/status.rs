//! How a replica stands, for people and for decisions about membership.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{Instant as _, LogIdOptionExt, RaftMetrics, ServerState, metrics::RaftServerMetrics};
use serde::{Deserialize, Serialize};
use vt_protocol::ids::HostId;

use super::types::{Membership, TypeConfig};

/// What a replica is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaRole {
    /// It decides.
    Leader,
    /// It votes.
    Follower,
    /// It stands for election.
    Candidate,
    /// It follows without a vote.
    Learner,
    /// It has stopped.
    Stopped,
}

impl From<ServerState> for ReplicaRole {
    fn from(state: ServerState) -> Self {
        match state {
            ServerState::Leader => Self::Leader,
            ServerState::Follower => Self::Follower,
            ServerState::Candidate => Self::Candidate,
            ServerState::Learner => Self::Learner,
            ServerState::Shutdown => Self::Stopped,
        }
    }
}

/// Who leads and who votes: what changes seldom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leadership {
    /// What this replica is.
    pub role: ReplicaRole,
    /// Who leads, as far as it knows.
    pub leader: Option<HostId>,
    /// The term: a leader is named by it alone.
    pub term: u64,
    /// Who votes; while a change is under way, of the old and the new set together.
    pub voters: BTreeSet<HostId>,
    /// Who follows without a vote.
    pub learners: BTreeSet<HostId>,
    /// The voters that a change under way leads to.
    pub changing_to: Option<BTreeSet<HostId>>,
    /// Whether the last change of membership is committed.
    pub settled: bool,
}

/// How a peer follows, seen from the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    /// The last entry it has; `None` before the first answer.
    pub matched: Option<u64>,
    /// Entries it is behind.
    pub lag: u64,
    /// How long ago it answered; `None`: not since this replica leads.
    pub silent: Option<Duration>,
}

/// How a replica stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This host.
    pub host: HostId,
    /// Who leads and who votes.
    pub leadership: Leadership,
    /// Last entry of its log; 0 without one.
    pub last_log: u64,
    /// Last entry it applied; 0 without one.
    pub applied: u64,
    /// Last entry covered by its snapshot; 0 without one.
    pub snapshot: u64,
    /// On the leader: how each other host follows.
    pub followers: BTreeMap<HostId, Follower>,
    /// How long ago the leader was heard; `None` on the leader, or where it never was.
    pub leader_silent: Option<Duration>,
    /// Whether most voters answer: on the leader, since it heard from them; elsewhere, since the leader was heard.
    pub quorum: bool,
    /// Why it has stopped for good.
    pub failure: Option<String>,
}

fn hosts(ids: impl IntoIterator<Item = u64>) -> BTreeSet<HostId> {
    ids.into_iter().map(HostId).collect()
}

impl Leadership {
    fn new(
        state: ServerState,
        leader: Option<u64>,
        term: u64,
        membership: &Membership,
        committed: &Membership,
    ) -> Self {
        let config = membership.membership().get_joint_config();
        Self {
            role: state.into(),
            leader: leader.map(HostId),
            term,
            voters: hosts(membership.voter_ids()),
            learners: hosts(membership.membership().learner_ids()),
            changing_to: (config.len() > 1).then(|| hosts(config.last().into_iter().flatten().copied())),
            settled: membership.log_id() == committed.log_id() && config.len() <= 1,
        }
    }

    pub(crate) fn of_server(metrics: &RaftServerMetrics<TypeConfig>) -> Self {
        Self::new(
            metrics.state,
            metrics.current_leader,
            metrics.vote.leader_id.term,
            &metrics.membership_config,
            &metrics.committed_membership_config,
        )
    }
}

impl Status {
    /// `silent` is how long ago a leader was heard, `lease` how long an answer is good for.
    pub(crate) fn of(metrics: &RaftMetrics<TypeConfig>, silent: Option<Duration>, lease: Duration) -> Self {
        let leadership = Leadership::new(
            metrics.state,
            metrics.current_leader,
            metrics.current_term,
            &metrics.membership_config,
            &metrics.committed_membership_config,
        );
        let last_log = metrics.last_log_index.unwrap_or(0);
        let heard = metrics.heartbeat.as_ref();
        let follower = |(id, matched): (&u64, &Option<_>)| {
            let matched = matched.as_ref().map(|id: &super::types::LogId| id.index);
            let silent = heard.and_then(|heard| heard.get(id)?.as_ref().map(|at| at.elapsed()));
            (HostId(*id), Follower { matched, lag: last_log.saturating_sub(matched.unwrap_or(0)), silent })
        };
        let followers: BTreeMap<_, _> =
            metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id).map(follower).collect();
        let alone = leadership.voters.len() == 1;
        let quorum = match leadership.role {
            ReplicaRole::Leader => alone || metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() <= lease),
            ReplicaRole::Stopped => false,
            _ => leadership.leader.is_some() && silent.is_some_and(|silent| silent <= lease),
        };
        let leader_silent = silent.filter(|_| leadership.role != ReplicaRole::Leader);
        Self {
            host: HostId(metrics.id),
            leadership,
            last_log,
            applied: metrics.last_applied.index().unwrap_or(0),
            snapshot: metrics.snapshot.index().unwrap_or(0),
            followers,
            leader_silent,
            quorum,
            failure: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }
}
