//! The daemon as a process: real `vtd` programs that speak real QUIC on loopback.
#![allow(missing_docs, reason = "tests say what they show by their names")]

mod cluster;
mod daemons;
mod program;
