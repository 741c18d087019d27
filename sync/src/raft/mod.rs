//! The adapter to openraft: the only place that knows it.

pub(crate) mod disk;
mod journal;
pub(crate) mod log;
pub(crate) mod machine;
mod network;
pub mod offline;
mod pace;
mod queue;
mod replica;
mod runtime;
mod status;
#[cfg(test)]
mod suite;
mod told;
pub(crate) mod types;
mod watch;
mod wire;

#[cfg(fuzzing)]
pub use self::journal::fuzzing as journal_fuzzing;
pub use self::{
    disk::{Latency, StoreError},
    network::{RaftTransport, Unreachable},
    replica::{OpenError, ProposeError, Replica, ReplicaConfig, Storage},
    status::{Follower, Leadership, ReplicaRole, Status},
    wire::MESSAGE_BYTES,
};
