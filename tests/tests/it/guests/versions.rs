//! Guests that move between hosts with different QEMUs.

use std::{fs, path::Path};

use serde_json::Value;
use vt_tests::{lab::Lab, older_qemu};

use super::moves::{files, json};

fn said(bundle: &Path) -> String {
    files(bundle, "events.jsonl").iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The QEMUs of each move: source and destination.
fn between(job: &Value) -> Vec<[&str; 2]> {
    let moves = job["cases"][0]["migrations"].as_array().unwrap();
    moves.iter().map(|moved| ["source_qemu", "destination_qemu"].map(|key| moved[key].as_str().unwrap())).collect()
}

#[test]
fn a_guest_goes_from_an_older_qemu_to_a_newer_one_and_back_and_forward_again() {
    let Some(old) = older_qemu() else { return };
    let lab = Lab::up_as(2, &["--libvirt", "--qemu", &format!("old={}", old.display())]);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &[&str]| {
        let bundle = results.path().join(name);
        let all = ["run", "multihost_migration", "-m", "host1,host2", "-r", bundle.to_str().unwrap()];
        (lab.vtctl(&[&all[..], words].concat()), bundle)
    };
    let pair = ["-p", "qemu_binary=old", "-p", "qemu_dst_binary=default", "-p", "migrate_count=2"];
    for backend in ["qmp", "libvirt"] {
        let (ran, bundle) = run(backend, &[&pair[..], &["--backend", backend]].concat());
        ran.expect(0);
        let job = json(&bundle.join("job.json"));
        let [[first, second], back, again, _] = between(&job)[..] else { panic!("{job}") };
        assert!(first.starts_with("7.2.") && !second.starts_with("7.2."), "{first} {second}");
        assert_eq!((back, again), ([second, first], [first, second]), "every host has its QEMU throughout");
        for moved in job["cases"][0]["migrations"].as_array().unwrap() {
            assert_ne!(moved["destination_pid"], 0, "{moved}");
        }
        assert!(said(&bundle).contains("QEMU old ("), "{}", said(&bundle));
    }

    // From the newer one: a machine that both know is taken, and one that is demanded has to be known.
    let pair = ["-p", "qemu_binary=default", "-p", "qemu_dst_binary=old"];
    let (ran, bundle) = run("newer-first", &pair);
    ran.expect(0);
    assert!(said(&bundle).contains("machine type pc-q35-7.2: QEMU 7.2."), "{}", said(&bundle));
    let newest = lab.json(&["host", "show", "host1"])["facts"]["qemu"]["version"].as_str().unwrap().to_owned();
    let newest: Vec<&str> = newest.split('.').collect();
    let demanded = format!("machine=pc-q35-{}.{}", newest[0], newest[1]);
    for (name, param, says) in [
        ("demanded", demanded.as_str(), "is not known to QEMU 7.2."),
        ("stranger", "qemu_dst_binary=/bin/sh", "qemu_dst_binary = /bin/sh is no QEMU of host2"),
    ] {
        let (ran, _) = run(name, &[&pair[..], &["-p", param]].concat());
        let ran = ran.expect(0);
        assert!(ran.stdout.contains("SKIP") && ran.stdout.contains(says), "{name}: {}", ran.stdout);
    }
    assert_eq!(lab.inventory(2), before, "something was left behind");
}
