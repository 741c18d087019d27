//! Bad input and bad luck: each gives one clear error, the right verdict, and leaves nothing.

use std::time::Duration;

use vt_tests::{
    lab::{Lab, Ran, lab_root},
    wait,
};

/// A run that ends with one error: what is typed, the exit code, the error code, words that must be in what is said.
struct Trouble {
    what: &'static str,
    run: &'static [&'static str],
    exit: i32,
    code: &'static str,
    says: &'static [&'static str],
}

fn check(trouble: &Trouble, ran: &Ran) {
    let said = format!("{}\n{}", ran.stdout, ran.stderr);
    assert_eq!(ran.code, trouble.exit, "{}: {said}", trouble.what);
    assert!(said.contains(trouble.code), "{}: no {} in {said}", trouble.what, trouble.code);
    for word in trouble.says {
        assert!(said.contains(word), "{}: no {word:?} in {said}", trouble.what);
    }
    assert!(
        said.contains("help") || said.contains("vtctl explain"),
        "{}: nothing to type next in {said}",
        trouble.what
    );
}

const BEFORE_ANYTHING: &[Trouble] = &[
    Trouble {
        what: "unknown host",
        run: &["multihost_migration", "-m", "host1,hots2"],
        exit: 23,
        code: "E0302",
        says: &["hots2", "host2"],
    },
    Trouble {
        what: "unknown scenario",
        run: &["multihost_migratoin", "-m", "host1,host2"],
        exit: 23,
        code: "E0305",
        says: &["multihost_migration"],
    },
    Trouble {
        what: "bad value",
        run: &["uptime", "-m", "host1", "-p", "mem=lots"],
        exit: 2,
        code: "E0002",
        says: &["mem", "lots"],
    },
    Trouble {
        what: "out of range",
        run: &["uptime", "-m", "host1", "-p", "smp=0"],
        exit: 2,
        code: "E0002",
        says: &["smp"],
    },
    Trouble {
        what: "unknown parameter",
        run: &["uptime", "-m", "host1", "-p", "memm=1G"],
        exit: 2,
        code: "E0002",
        says: &["memm"],
    },
    Trouble {
        what: "too few hosts",
        run: &["multihost_migration", "-m", "host1"],
        exit: 25,
        code: "E0304",
        says: &["host1"],
    },
    Trouble { what: "no host", run: &["uptime"], exit: 25, code: "E0304", says: &[] },
    Trouble {
        what: "twice the same host",
        run: &["multihost_migration", "-m", "host1,host1"],
        exit: 2,
        code: "E0001",
        says: &["host1"],
    },
];

const WITH_A_VERDICT: &[Trouble] = &[
    Trouble {
        what: "image missing",
        run: &["uptime", "-m", "host1", "-p", "image=nosuch"],
        exit: 101,
        code: "E0401",
        says: &["nosuch"],
    },
    Trouble {
        what: "machine type that QEMU does not have",
        run: &["uptime", "-m", "host1", "-p", "machine=nosuch"],
        exit: 0,
        code: "E0706",
        says: &["nosuch", "of host1"],
    },
    Trouble {
        what: "macvtap without an uplink",
        run: &["uptime", "-m", "host1", "-p", "nettype=macvtap"],
        exit: 0,
        code: "E0706",
        says: &["host1 has no uplink", "[network]"],
    },
    Trouble {
        what: "guest never boots",
        run: &["uptime", "-m", "host1", "-p", "login_timeout=1"],
        exit: 100,
        code: "E0503",
        says: &["1"],
    },
];

#[test]
fn what_cannot_work_is_refused_before_anything_starts() {
    let lab = Lab::up(2);
    let before = lab.inventory(2);
    for trouble in BEFORE_ANYTHING {
        let mut words = vec!["run"];
        words.extend(trouble.run);
        check(trouble, &lab.vtctl(&words));
    }
    assert_eq!(lab.inventory(2), before);
    assert_eq!(lab.json(&["job", "list"])["jobs"].as_array().unwrap().len(), 0, "a refused job was stored");
}

#[test]
fn what_goes_wrong_in_a_case_has_the_right_verdict_and_leaves_nothing() {
    let lab = Lab::up(2);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    for trouble in WITH_A_VERDICT {
        let bundle = results.path().join(trouble.what.replace(' ', "-"));
        let mut words = vec!["run"];
        words.extend(trouble.run);
        words.extend(["-r", bundle.to_str().unwrap()]);
        check(trouble, &lab.vtctl(&words));
        assert_eq!(lab.inventory(2), before, "{}: something was left behind", trouble.what);
    }
}

/// Gives host1's daemon another QEMU, as an admin would: settings and a restart.
fn set_qemu(lab: &Lab, binary: &str) {
    let settings = format!("{}/{}/host1/vtd.toml", lab_root(), lab.name());
    let text = std::fs::read_to_string(&settings).unwrap();
    let text = text.split("\n[qemu]").next().unwrap().to_owned();
    std::fs::write(&settings, format!("{text}\n[qemu]\nbinary = \"{binary}\"\n")).unwrap();
    lab.vtctl(&["lab", "kill", "host1"]).expect(0);
    lab.vtctl(&["lab", "start", "host1"]).expect(0);
    lab.wait_for_live(1);
}

#[test]
fn a_qemu_that_is_missing_or_dies_at_start_is_quoted_and_nothing_is_left() {
    let lab = Lab::up(1);
    let before = lab.inventory(1);
    let directory = tempfile::tempdir().unwrap();
    let run = |bundle: &str| {
        lab.vtctl(&["run", "uptime", "-m", "host1", "-r", directory.path().join(bundle).to_str().unwrap()])
    };

    set_qemu(&lab, "/nonexistent/qemu-system-x86_64");
    let missing = Trouble {
        what: "QEMU missing",
        run: &[],
        exit: 101,
        code: "E0501",
        says: &["/nonexistent/qemu-system-x86_64"],
    };
    check(&missing, &run("missing"));
    assert_eq!(lab.inventory(1), before);

    // It answers every question about itself, and dies as soon as it is to run a VM.
    let script = directory.path().join("qemu");
    let text = "#!/bin/sh\nfor word in \"$@\"; do\n  case $word in *vtmesh-*) echo 'the fuse is blown' >&2; exit 3;; esac\n\
                done\nexec qemu-system-x86_64 \"$@\"\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    set_qemu(&lab, script.to_str().unwrap());
    let dies = Trouble { what: "QEMU dies", run: &[], exit: 101, code: "E0502", says: &["the fuse is blown"] };
    check(&dies, &run("dies"));
    assert_eq!(lab.inventory(1), before);
}

#[test]
fn a_full_disk_is_an_error_of_ours_and_leaves_nothing() {
    let lab = Lab::up(1);
    let before = lab.inventory(1);
    let disks = format!("{}/{}/disks", lab_root(), lab.name());
    // A file system with room for nothing: an overlay's header is larger.
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4k,nr_inodes=3", "vtmesh-test", &disks])
        .status()
        .unwrap();
    assert!(mounted.success());
    let filled = std::fs::write(format!("{disks}/fill"), vec![0; 4096]);
    let results = tempfile::tempdir().unwrap();
    let ran = lab.vtctl(&["run", "uptime", "-m", "host1", "-r", results.path().join("r").to_str().unwrap()]);
    let unmounted = std::process::Command::new("umount").arg(&disks).status().unwrap();
    assert!(unmounted.success() && filled.is_ok());
    let trouble = Trouble { what: "disk full", run: &[], exit: 101, code: "E0403", says: &[] };
    check(&trouble, &ran);
    assert_eq!(lab.inventory(1), before);
}

#[test]
fn a_host_that_is_down_is_named_and_the_job_does_not_hang() {
    let lab = Lab::up(3);
    lab.vtctl(&["lab", "kill", "host3"]).expect(0);
    wait::until("host3 to be missed", Duration::from_secs(60), || {
        let status = lab.json(&["cluster", "status"]);
        let host = status["hosts"].as_array().unwrap().iter().find(|host| host["name"] == "host3").cloned().unwrap();
        if host["state"] == "live" { Err(host.to_string()) } else { Ok(()) }
    });
    let trouble = Trouble { what: "host down", run: &[], exit: 25, code: "E0303", says: &["host3"] };
    check(&trouble, &lab.vtctl(&["run", "multihost_migration", "-m", "host1,host3"]));
}

#[test]
fn a_destination_that_is_cut_off_in_the_middle_fails_the_case_and_leaves_nothing() {
    let lab = Lab::up(3);
    let before = lab.inventory(3);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let arguments =
        ["run", "multihost_migration", "-m", "host1,host2", "-p", "mig_speed=1M", "-r", bundle.to_str().unwrap()];
    let child = lab.spawn(&arguments);
    wait::until("the migration to begin", Duration::from_secs(90), || {
        let jobs = lab.json(&["job", "list"]);
        let Some(job) = jobs["jobs"][0]["id"].as_str() else { return Err(jobs.to_string()) };
        let ran = lab.vtctl(&["job", "logs", job]);
        if ran.stdout.contains("migrate host1") { Ok(()) } else { Err(ran.stdout) }
    });
    lab.vtctl(&["lab", "partition", "host2"]).expect(0);
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(101), "ERROR, for the host was lost, not the product: {said}");
    assert!(said.contains("host2"), "{said}");
    lab.vtctl(&["lab", "heal"]).expect(0);
    lab.wait_for_live(3);
    wait::until("nothing to be left", Duration::from_secs(60), || {
        let now = lab.inventory(3);
        if now == before { Ok(()) } else { Err(now) }
    });
}
