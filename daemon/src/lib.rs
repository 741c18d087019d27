//! vtd: the daemon of a host, the only crate with side effects on it.

pub mod blob;
pub mod control;
pub mod evidence;
pub mod facts;
pub mod nearest;
pub mod qemu;
pub mod settings;
pub mod telemetry;
