//! How a case runs: parties as real processes over the real socket, VMs in real QEMUs, with committed state kept by one
//! lock instead of Raft.

#![allow(clippy::unwrap_used, reason = "helpers of tests may, as tests do")]

mod breaks;
mod differs;
mod in_process;
mod moves;
mod parties;
