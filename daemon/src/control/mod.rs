//! The loops that keep a host and, on the leader, the cluster going: each acts on committed state, woken by a change
//! of it or by a time it asked for. Decisions are pure and live beside their loops.

pub mod announce;
pub(crate) mod authority;
pub mod copies;
#[cfg(test)]
pub(crate) mod fake;
pub mod keeper;
pub mod membership;
pub mod schedule;
pub mod scheduler;
pub mod session;
pub mod silence;
pub mod sweep;
pub mod tokens;

use vt_sync::raft::{Leadership, ReplicaRole};

/// Whether this host leads.
pub fn leads(leadership: &Leadership) -> bool {
    leadership.role == ReplicaRole::Leader
}
