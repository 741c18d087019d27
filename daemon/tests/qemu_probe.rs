//! What the installed QEMU can do, by asking it and by running a guest.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, time::Duration};

use vt_daemon::qemu::{
    VmError,
    binaries::Binary,
    installed,
    probe::{self, Outcome, Probe},
};
use vt_protocol::vm::Accelerator;

const QEMU: &str = "qemu-system-x86_64";

fn named(path: &str) -> Binary<'_> {
    Binary { name: "default", path }
}

#[tokio::test]
async fn the_boot_sector_runs_under_emulation_and_a_hang_is_noticed() {
    let qemu = installed::find(QEMU).unwrap();
    assert_eq!(probe::run(&qemu, Accelerator::Tcg, Duration::from_secs(60)).await, Outcome::Ran);
    // The same, given no time: what a guest that hangs looks like.
    assert_eq!(probe::run(&qemu, Accelerator::Tcg, Duration::from_millis(1)).await, Outcome::Hung);
    let not_run = probe::run(Path::new("/no/such/qemu"), Accelerator::Tcg, Duration::from_secs(9)).await;
    assert!(matches!(not_run, Outcome::NotRun(_)), "{not_run:?}");
    let ended = probe::run(Path::new("/bin/false"), Accelerator::Tcg, Duration::from_secs(9)).await;
    assert!(matches!(ended, Outcome::Ended(_)), "{ended:?}");
}

/// Whatever this machine can do, the probe agrees with what a guest under KVM really does, and says why.
#[tokio::test]
async fn the_probe_tells_what_works_and_its_result_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let facts = installed::examine(named(QEMU), Some(dir.path())).await.unwrap();
    if !Path::new("/dev/kvm").exists() {
        assert_eq!(facts.accelerator, Accelerator::Tcg);
    }
    assert!(!facts.accelerator_reason.is_empty());
    if facts.accelerator == Accelerator::Tcg {
        assert!(facts.accelerator_reason.contains("emulation"), "{}", facts.accelerator_reason);
    }
    println!("{}: {:?}, {}", facts.version, facts.accelerator, facts.accelerator_reason);

    // Kept: the second look believes the file, also when it says something else.
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    let other = Probe { accelerator: Accelerator::Kvm, reason: "as kept".into() };
    std::fs::write(file, serde_json::to_vec(&other).unwrap()).unwrap();
    assert_eq!(installed::examine(named(QEMU), Some(dir.path())).await.unwrap().accelerator_reason, "as kept");
    // A torn file is no result.
    std::fs::write(file, b"{").unwrap();
    assert_ne!(installed::examine(named(QEMU), Some(dir.path())).await.unwrap().accelerator_reason, "as kept");
}

#[tokio::test]
async fn machine_types_are_resolved_to_versioned_ones() {
    let machines = installed::machines(&installed::find(QEMU).unwrap()).await.unwrap();
    let q35 = installed::versioned(&machines, "q35").unwrap();
    assert!(q35.starts_with("pc-q35-"), "{q35}");
    assert!(matches!(installed::examine(named("qemu-of-nowhere"), None).await, Err(VmError::Missing(_))));
    assert!(matches!(installed::version(Path::new("/bin/false")).await, Err(VmError::Missing(_))));
}
