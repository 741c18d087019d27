//! Hosts that do not fit each other: a move is refused before anything is started over there, and the difference named.
//! One of two hosts really differs, for its QEMU is a program that says or does something else.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use vt_daemon::qemu::binaries::Binaries;
use vt_protocol::{error::ErrorCode, verdict::Verdict};

use crate::in_process::{World, real};

const QEMU: &str = "qemu-system-x86_64";

/// A QEMU that lacks something: what it says of itself goes through `sed`.
fn without(pattern: &str) -> String {
    format!(r#"case " $* " in *" -machine none "*) {QEMU} "$@" | sed -e '{pattern}';; *) exec {QEMU} "$@";; esac"#)
}

/// A QEMU that adds words to its command line.
fn with(words: &str) -> String {
    format!(r#"case " $* " in *" -machine none "*) exec {QEMU} "$@";; *) exec {QEMU} "$@" {words};; esac"#)
}

fn program(folder: &Path, script: &str) -> String {
    let path = folder.join("qemu");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_difference_is_found_before_anything_starts() {
    let lacks = (Verdict::Skip, ErrorCode::CannotRunHere);
    let unfit = (Verdict::Fail, ErrorCode::Preflight);
    // The place of the host that differs, its QEMU, more parameters, what is said.
    type Unlike<'a> = (usize, String, &'a [(&'a str, &'a str)], (Verdict, ErrorCode), &'a str);
    let cases: &[Unlike<'_>] = &[
        (1, without(r#"s/"qemu64\(-v1\)\?"/"gone"/g"#), &[], unfit, "CPU model qemu64 is not known to QEMU"),
        (1, without("s/virtio-rng-pci/gone/g"), &[], unfit, "device virtio-rng-pci is not known to QEMU"),
        (
            0,
            with("-device pvpanic"),
            &[],
            unfit,
            "the source runs with `-device pvpanic`, and the destination would not",
        ),
        (1, without("s/pc-q35-/gone-/g"), &[], lacks, "there is no machine type q35 that QEMU"),
        (
            1,
            without(r#"s/"xbzrle"/"gone"/"#),
            &[("capabilities", "xbzrle")],
            lacks,
            "migration capability xbzrle is not known to QEMU of the destination",
        ),
    ];
    for (place, script, more, (verdict, code), says) in cases {
        let mut world = World::new(2, real()).await;
        let qemu = program(world.dir.path(), script);
        world.change(*place, |places| places.qemus = Binaries::only(&qemu)).await;
        // It moves before it has booted: the sooner it is refused.
        let params = [("mem", "128M"), ("min_random_timeout", "0"), ("max_random_timeout", "0")];
        let attempt = world.begin("early_boot", 2, &[&params[..], more].concat(), Duration::from_secs(600));
        let (found, cause) = world.verdict().await;
        let cause = cause.unwrap_or_else(|| panic!("{says}: {found:?}\n{}", world.events(0, attempt)));
        assert_eq!((found, cause.code), (*verdict, *code), "{says}: {cause:#?}");
        assert!(format!("{cause:?}").contains(says), "{says}: {cause:#?}");
        let there = world.hosts[1].places.data.join("attempts").join(attempt.to_string()).join("vm1");
        assert!(!there.exists(), "{says}: a QEMU was started at the destination");
        world.assert_clean().await;
    }
}
