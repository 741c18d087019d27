//! Parties: one host's part in an attempt.
//!
//! | file | noun |
//! |---|---|
//! | [`client`], [`link`] | what a scenario works with, and its connection to the daemon |
//! | [`program`] | the process of a party |
//!
//! What may not happen here: a party that hurts the daemon. It is a process of its own and speaks the party API.

pub mod client;
pub mod link;
pub mod program;

pub use self::{
    client::{Guest, Party, Step, Vm},
    link::our_fault,
};
