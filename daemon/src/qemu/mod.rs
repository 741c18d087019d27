//! QEMU on this host: how one is started, spoken to, found again and ended.
//!
//! | file | noun |
//! |---|---|
//! | [`qmp`] | the monitor |
//! | [`command_line`] | what QEMU is told at its start |
//! | [`launch`], [`process`] | a process that outlives the daemon |
//! | [`pipe`] | the helper command of a migration over `exec` |
//! | `site`, [`record`], [`vm`], [`remains`] | a VM, what is made for it before, what is on disk about it, what exists of it |
//! | [`binaries`] | the QEMUs of this host by name |
//! | [`installed`], [`probe`] | what one can do |
//! | [`flaws`] | what one is known to do wrong |
//! | [`cable`], [`tap`], [`macvtap`], [`vhost`] | its network: what is asked for, what is made, what the kernel does |
//! | [`sampler`] | readings of its migration |
//!
//! What may not happen here: decisions about owners and migrations. Those are made elsewhere, from what this module
//! reports.

pub mod binaries;
pub mod cable;
pub mod command_line;
pub mod flaws;
pub mod installed;
pub mod launch;
pub mod macvtap;
pub mod pipe;
pub mod probe;
pub mod process;
pub mod qmp;
pub mod record;
pub mod remains;
pub mod sampler;
pub(crate) mod site;
pub mod stall;
pub mod tap;
pub mod vhost;
pub mod vm;

use crate::guard;

pub use self::{
    command_line::{Boot, Disk, Resolved},
    sampler::Sampler,
    vm::{Channel, Ending, Found, Vm, VmError, VmPlaces, VmProcess, VmSetup},
};

/// Words of vtd that are for itself and must not start a runtime: `vtd launch …`, `vtd guard …`, `vtd pipe …`. Called first in `main`; `None` when
/// the words are for the daemon.
pub fn early(words: impl IntoIterator<Item = std::ffi::OsString>) -> Option<i32> {
    let mut words = words.into_iter().skip(1);
    match words.next()?.to_str()? {
        launch::WORD => Some(launch::run(words)),
        guard::WORD => Some(guard::program::run(words)),
        pipe::WORD => Some(pipe::run(words)),
        _ => None,
    }
}
