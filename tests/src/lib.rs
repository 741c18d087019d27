//! The harness of tests that need more than one crate: labs, waiting, and what a case left behind.
//!
//! Real components only: real `vtd` and `vtctl`, real QEMU, real namespaces. Nothing here sleeps and hopes: every wait
//! has a condition, a deadline and a message.

pub mod beginning;
pub mod ceph_server;
pub mod drift;
pub mod faults;
pub mod gluster_server;
pub mod invariants;
pub mod iscsi_server;
pub mod lab;
pub mod model;
pub mod nfs_server;
pub mod seeds;
pub mod server_host;
pub mod sim;
pub mod twin;
pub mod wait;
pub mod writers;

use std::{path::PathBuf, process::Command};

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

/// A QEMU 7.2 beside the installed one, unpacked where it is not there yet; `None`, and a line that says so, where apt on
/// this machine knows none.
///
/// # Panics
/// It cannot be unpacked.
pub fn older_qemu() -> Option<PathBuf> {
    let profile = program("vtctl").parent().expect("programs are in a folder").to_owned();
    let folder = profile.with_file_name("qemu-7.2");
    let made = Command::new(project_root().join("tests/qemu-7.2.sh")).arg(&folder).output().expect("the script runs");
    let words = String::from_utf8_lossy(&made.stderr);
    match made.status.code() {
        Some(0) => Some(folder.join("qemu")),
        Some(3) => {
            eprintln!("nothing is compared across versions here: {words}");
            None
        }
        _ => panic!("tests/qemu-7.2.sh: {words}"),
    }
}
