//! The guard of a VM: a small process that pauses the VM, then kills it, when the daemon stops extending it.

/// The guard's socket, in the VM's run folder.
pub const SOCKET: &str = "guard";
