//! Moving a VM between two hosts: who decides what, in which order, and what is left when something breaks.
//!
//! | file | noun |
//! |---|---|
//! | [`source`], [`destination`] | what each side does next, pure |
//! | [`send`], [`receive`] | everything before the transfer, at the source and at the destination |
//! | `sender`, `receiver` | the transfer, the votes, and what follows |
//! | [`rules`] | which ways of moving exclude each other, pure |
//! | `outlet`, `inlet`, [`carry`] | the source's way out, the destination's way in, and what daemons carry between them |
//! | [`lanes`] | how many leave this host at once |
//! | `credentials` | TLS between two QEMUs |
//! | `moments` | what is to be done at which moment of a transfer, pure |
//! | `postcopy` | what follows the decision of a post-copy |
//! | `domain_move` | what is different where libvirt moves the VM |
//! | `disks` | the disk of a VM that moves where its pool is not shared |
//! | `figures` | what is kept of it |
//! | [`preflight`], [`features`] | whether the two sides fit |
//!
//! What may not happen here: two activated owners; a guest that is let run by anything but the decision in the log.

pub mod carry;
mod credentials;
pub mod destination;
mod disks;
mod domain_move;
pub mod features;
mod figures;
pub(crate) mod inlet;
pub mod lanes;
mod moments;
mod outlet;
mod postcopy;
pub mod preflight;
pub mod receive;
mod receiver;
pub mod rules;
pub mod send;
mod sender;
pub mod source;
mod unheard;

pub(crate) use self::preflight::Difference;
