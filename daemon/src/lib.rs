//! vtd: the daemon of a host, the only crate with side effects on it.

pub mod api;
pub mod blob;
pub mod cluster;
pub mod control;
pub mod evidence;
pub mod facts;
pub mod mesh;
pub mod nearest;
pub mod cgroup;
pub mod guard;
pub mod guest;
pub mod qemu;
pub mod settings;
pub mod telemetry;
pub mod party;
pub mod scenario;
