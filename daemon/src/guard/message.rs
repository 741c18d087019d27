//! What a daemon and a guard say to each other: JSON lines on a Unix stream in the VM's run folder.

use serde::{Deserialize, Serialize};

use super::clock::BootTime;

/// Longest line either side takes, in bytes.
pub const LINE_MAX: usize = 4096;

/// From the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Chosen by the daemon, returned in the answer.
    pub seq: u64,
    /// What is wanted.
    pub what: What,
}

/// What a daemon wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The session was renewed; the acknowledged renewal was sent at this moment.
    Extend(BootTime),
    /// The epoch was read and is unchanged: a VM paused by the guard may go on.
    Permit,
    /// The VM is being ended or needs no guard any more: end, and leave it as it is.
    Release,
    /// QEMU is to see the connection of its post-copy as broken. For a daemon that QEMU does not answer: its main loop may
    /// wait for a page that is missing, and takes commands out of band only, from who was connected before.
    Break,
    /// QEMU is to listen there for the connection of its post-copy, which is broken.
    Listen(String),
}

/// From the guard: an answer to each order, and one without a number whenever something changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// The order this answers.
    pub seq: Option<u64>,
    /// What the guard is doing.
    pub state: GuardState,
    /// Whether the VM's monitor is connected.
    pub monitor: bool,
    /// From when the deadlines count.
    pub renewed_at: BootTime,
    /// Why the order was not followed.
    pub refused: Option<String>,
}

/// What a guard is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardState {
    /// The VM may run.
    Watching,
    /// The deadline passed; `stop` was sent and has not returned.
    Pausing,
    /// The guard has paused the VM.
    Paused,
    /// The guard has killed the VM.
    Killed,
    /// There is no guard: it ended and is being started again.
    Absent,
}
