//! What the cluster agrees on: a pure state machine, its openraft adapter, stored formats.

pub mod answer;
pub mod bounds;
pub mod command;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod membership;
pub mod mutation;
pub mod raft;
pub mod saved;
pub mod state;
mod stored;

pub use self::{
    answer::{Answer, Applied, Effect, Rejected},
    command::{Command, Request},
    raft::{
        Latency, Leadership, ProposeError, RaftTransport, Replica, ReplicaConfig, ReplicaRole, Status, Storage,
        Unreachable,
    },
    state::State,
};
