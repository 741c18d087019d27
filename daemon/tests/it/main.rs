//! The daemon as a process: real `vtd` programs that speak real QUIC on loopback.
#![allow(missing_docs, reason = "tests say what they show by their names")]
#![allow(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod ages;
mod authority;
mod cluster;
mod daemons;
mod downloads;
mod images;
mod jobs;
mod membership;
mod program;
mod recovery;
mod session;
