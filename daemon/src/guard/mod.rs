//! The guard of a VM: a small process that pauses the VM, then kills it, when the daemon stops extending it.
//!
//! A host may run a VM only while its session is renewed. The daemon tells the guard of each acknowledged renewal; when
//! none comes, because the host is cut off or the daemon hangs, was killed or is being debugged, the guard acts by
//! itself. It is a process of its own (same binary, own session and control group, memory locked, one thread, no
//! runtime), so that whatever stops the daemon does not stop it.
//!
//! ```text
//!  renewal sent (the holder's clock starts)        pause                kill
//!      ├────────────────── runs ─────────────────────┼──── stop, paused ───┼── SIGKILL: stop did not return,
//!      0                                            6 s                   8 s  or nobody extended (abandon)
//! ```
//!
//! A VM that the guard has paused goes on only through [`GuardHandle::permit`], which the daemon calls after it has read
//! the VM's epoch and found it unchanged. Should anybody else let it run, the guard stops it again.
//!
//! | file | noun |
//! |---|---|
//! | [`policy`] | what to do, a pure function of state, time and event |
//! | [`message`] | what daemon and guard say to each other |
//! | [`clock`] | CLOCK_BOOTTIME, the one clock of a session's holder |
//! | [`program`], `monitor` | the process |
//! | [`handle`] | the daemon's side |
//!
//! What remains: a machine that is frozen as a whole freezes its guards too. When it wakes, they kill before anything
//! else, but the guest's CPUs may run for that moment.

pub mod clock;
pub mod handle;
pub mod message;
mod monitor;
pub mod policy;
pub mod program;

pub use self::{
    handle::{GuardError, GuardHandle, GuardSetup},
    message::GuardState,
    policy::Times,
};

/// The guard's socket, in the VM's run folder.
pub const SOCKET: &str = "guard";
/// What the guard has done, for one that takes its place.
pub const STATE_FILE: &str = "guard.json";
/// Held by the guard as long as it lives.
pub const LOCK_FILE: &str = "guard.lock";
/// What the guard says, in the evidence folder.
pub const LOG_FILE: &str = "guard.log";
/// The word of vtd that leads to [`program::run`].
pub const WORD: &str = "guard";
