//! vtd: the daemon of a host, the only crate with side effects on it.

pub mod evidence;
pub mod nearest;
pub mod qemu;
pub mod settings;
