//! A process that gives one disk of a pool to one QEMU, as a block device on a Unix socket (NBD).
//!
//! It is a process of its own (same binary, in the VM's control group), so that a VM outlives a restart of its daemon. It
//! writes only under an epoch that it was told to take over, and the server refuses one that is over; see [`super`]. It
//! ends with its QEMU.
//!
//! ```text
//! QEMU ──NBD, socket `disk`──▶ vtd export ──NFSv3, the epoch's user number──▶ server
//!                                 ▲
//! daemon ──lines, socket `dctl`───┘   take over · waits · answers again · trouble
//! ```
//!
//! | file | noun |
//! |---|---|
//! | `nbd` | what QEMU says |
//! | `backing` | the file of the server |
//! | `program` | the process |
//! | `handle` | the daemon's side |

mod backing;
mod handle;
mod nbd;
mod program;

use serde::{Deserialize, Serialize};
use vt_protocol::ids::Epoch;

pub(crate) use self::handle::{listen, start, take};
pub use self::{
    handle::{ExportError, Served},
    program::{ExportWords, run},
};

/// The socket of the block device, in the VM's run folder.
pub(crate) const DISK_SOCKET: &str = "disk";
/// The socket of the daemon, there too.
const CONTROL_SOCKET: &str = "dctl";
/// What the process says, in the evidence folder.
const LOG_FILE: &str = "disk-export.log";
/// The word of vtd that leads to [`run`].
const WORD: &str = "export";
/// Longest line on the daemon's socket, bytes.
const LINE_MAX: usize = 4096;

/// What a daemon asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Ask {
    /// Take the disk over under this epoch.
    Take(Epoch),
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Word {
    /// The disk is taken over under this epoch.
    Taken(Epoch),
    /// It is not, and why.
    NotTaken(String),
    /// The server keeps a request waiting.
    Waits,
    /// It answers again, after this time.
    Answers {
        /// Milliseconds.
        ms: u64,
    },
    /// The guest's request failed: nothing that it does from now on can be relied on.
    Trouble {
        /// Whether the pool is full.
        full: bool,
        /// What went wrong.
        why: String,
    },
}
