//! Real faults on real guests: each cell of the table is one fault in one phase of one migration.
//!
//! | file | noun |
//! |---|---|
//! | [`cell`] | a fault, a phase, and what has to come of them, pure |
//! | [`sighting`] | what the watcher saw and what it means, pure |
//! | [`watch`] | the watcher outside: a packet socket on the switch of the lab |
//! | [`landing`] | the proof that a fault fell into its phase, from what the hosts wrote down |
//! | [`ground`] | a lab of three hosts on which faults are made and healed |
//! | [`pool`] | a server that the disks of the guests lie at |
//! | [`notice`] | how soon the others are told that a party is gone |
//! | [`job`] | the guest that moves, as a job |
//! | [`play`] | one cell, from the submitted job to the equal inventory |
//! | [`restart`] | no fault: a daemon that is stopped and started again, or upgraded, while memory is on its way |
//!
//! What may not happen here: a verdict that rests on what this program meant to do. Whether a fault landed is read from
//! the hosts' own records, and how many copies of the guest ran is read from the wire.

pub mod cell;
pub mod ground;
pub mod job;
pub mod landing;
pub mod notice;
pub mod play;
pub mod pool;
pub mod restart;
pub mod sighting;
pub mod watch;
