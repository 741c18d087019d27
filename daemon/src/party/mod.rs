//! Parties: one host's part in an attempt.
//!
//! | file | noun |
//! |---|---|
//! | [`client`], [`link`] | what a scenario works with, and its connection to the daemon |
//! | [`program`] | the process of a party |
//! | [`supervisor`], [`tend`] | which parties are wanted here; the life of one |
//! | [`attempt`], [`calls`], [`server`] | what this host holds for an attempt; its party's calls; the socket |
//! | [`barrier`], [`vms`], [`guests`] | what calls do |
//! | `cables` | what the network cards of a VM are plugged into |
//! | [`local_vm`], `disk`, `qemu`, `image`, `monitor` | a VM of this host; its disk; which QEMU runs it; what it boots from; what its QEMU is told |
//! | `sessions` | shells in guests by ssh |
//! | `firewall` | packets of other hosts dropped on purpose |
//! | [`giveback`] | the end: nothing is left |
//! | [`places`], [`record`], [`failure`] | where things are; what is on disk; who is to blame |
//!
//! What may not happen here: a party that hurts the daemon. It is a process of its own and speaks the party API.

pub mod attempt;
pub mod barrier;
mod cables;
pub mod calls;
pub mod client;
pub(crate) mod disk;
mod drives;
pub mod failure;
mod firewall;
mod floppy;
pub mod giveback;
pub mod guests;
pub(crate) mod image;
pub mod link;
pub mod local_vm;
mod monitor;
pub mod places;
pub mod program;
mod qemu;
pub mod record;
pub mod server;
mod sessions;
pub mod supervisor;
pub mod tend;
pub mod vms;

pub(crate) use self::monitor::is_allowed;
pub use self::{
    client::{Guest, Party, Step, Vm},
    link::our_fault,
    places::Places,
    supervisor::{Plans, Supervisor},
};
