//! vtd: the daemon of a host, the only crate with side effects on it.

pub mod api;
pub mod audit;
pub mod blob;
pub mod bulk_source;
pub mod cgroup;
pub mod cluster;
pub mod control;
pub mod data;
pub mod evidence;
pub mod facts;
pub mod guard;
pub mod guest;
pub mod hold;
pub mod host;
pub mod members;
pub mod mesh;
pub mod migrate;
pub mod nearest;
pub mod party;
pub mod plan;
pub mod qemu;
pub mod run;
pub mod scenario;
pub mod settings;
pub mod telemetry;
pub mod unclaimed;
