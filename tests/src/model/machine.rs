//! A host of the model: its clock, its daemon, what is applied there, and how it holds its session.

use vt_daemon::guard::clock::BootTime;
use vt_protocol::ids::Epoch;

use crate::{drift::DriftingClock, twin::Twin};

/// How a daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daemon {
    Up,
    /// Stopped in the middle of what it did; it goes on later.
    Frozen,
    Down,
}

/// How a host holds its session, as `control::session` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// It asks for one; all tries carry one id.
    Opening {
        resume: bool,
        id: u128,
        /// The try under way and when it was begun.
        attempt: u32,
        since: BootTime,
    },
    /// It has one, which counts from then.
    Held { epoch: Epoch, since: BootTime, asked: u32 },
}

/// A host.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) twin: Twin,
    pub(super) clock: DriftingClock,
    pub(super) daemon: Daemon,
    /// How many entries are applied here.
    pub(super) applied: usize,
    pub(super) incarnation: u64,
    pub(super) holder: Holder,
}
