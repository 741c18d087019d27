//! Moving a VM between two hosts: who decides what, in which order, and what is left when something breaks.
//!
//! | file | noun |
//! |---|---|
//! | [`source`], [`destination`] | what each side does next, pure |
//! | [`send`], [`receive`] | doing it, at the source and at the destination |
//! | [`preflight`], [`features`] | whether the two sides fit |
//!
//! What may not happen here: two activated owners; a guest that is let run by anything but the decision in the log.

pub mod destination;
pub mod features;
pub mod preflight;
pub mod receive;
pub mod send;
pub mod source;
