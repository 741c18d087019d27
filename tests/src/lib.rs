//! The harness of tests that need more than one crate: labs, waiting, and what a case left behind.
//!
//! Real components only: real `vtd` and `vtctl`, real QEMU, real namespaces. Nothing here sleeps and hopes: every wait
//! has a condition, a deadline and a message.

pub mod beginning;
pub mod drift;
pub mod faults;
pub mod invariants;
pub mod lab;
pub mod model;
pub mod nfs_server;
pub mod seeds;
pub mod sim;
pub mod twin;
pub mod wait;
pub mod writers;

use std::path::PathBuf;

/// The root of the project.
pub fn project_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is a folder of the project").to_owned()
}

/// A program of the project, built by `cargo build --workspace --bins` in the profile of the running test.
///
/// # Panics
/// It is not there: the message says which command makes it.
pub fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    let directory = exe.ancestors().find(|dir| dir.ends_with("debug") || dir.ends_with("release"));
    let path = directory.expect("tests run from a target directory").join(name);
    assert!(path.is_file(), "{} is not built: cargo build --workspace --bins", path.display());
    path
}
