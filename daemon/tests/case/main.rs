//! How a case runs: parties as real processes over the real socket, VMs in real QEMUs, with committed state kept by one
//! lock instead of Raft.

mod breaks;
mod in_process;
mod moves;
mod parties;
