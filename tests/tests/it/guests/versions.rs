//! Guests that move between hosts with different QEMUs.

use std::{fs, path::Path};

use serde_json::Value;
use vt_tests::{lab::Lab, older_qemu};

use super::moves::{files, json};

fn said(bundle: &Path) -> String {
    files(bundle, "events.jsonl").iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Backend, QEMUs of both sides and fate of each cell of a matrix.
fn cells(bundle: &Path) -> Vec<[String; 4]> {
    let job = json(&bundle.join("job.json"));
    let checks = job["cases"][0]["checks"].as_object().unwrap().values();
    let mut cells: Vec<&Value> = checks.filter(|check| check["cell"].is_u64()).collect();
    cells.sort_by_key(|cell| cell["cell"].as_u64());
    let words = ["backend", "source_qemu", "destination_qemu", "fate"];
    cells.iter().map(|cell| words.map(|key| cell[key].as_str().unwrap_or_default().to_owned())).collect()
}

/// A share of `make versions`, and what is chosen and refused before it.
///
/// Its probe once found 32 of 1024 pages damaged after a move between the two, emulated: QEMU's doing or ours, that is not
/// known yet. Until it is, a run that has to be green cannot have it: `cargo nextest run --run-ignored only versions`.
#[test]
#[ignore = "emulated guests lose pages now and then between QEMU 7.2 and 10.0, and why is not known"]
fn a_guest_goes_from_an_older_qemu_to_a_newer_one_and_back_over_qmp_and_by_libvirt() {
    let Some(old) = older_qemu() else { return };
    let lab = Lab::up_as(2, &["--libvirt", "--qemu", &format!("old={}", old.display())]);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let run = |name: &str, scenario: &str, words: &[&str]| {
        let bundle = results.path().join(name);
        let all = ["run", scenario, "-m", "host1,host2", "-p", "mem=128M", "-r", bundle.to_str().unwrap()];
        (lab.vtctl(&[&all[..], words].concat()), bundle)
    };
    let facts = lab.json(&["host", "show", "host1"])["facts"]["qemus"].clone();
    let version = |name: &str| {
        let qemu = facts.as_array().unwrap().iter().find(|qemu| qemu["name"] == name);
        let version = qemu.unwrap_or_else(|| panic!("{facts}"))["version"].as_str().unwrap();
        version.split(' ').next().unwrap().to_owned()
    };
    let (older, newer) = (version("old"), version("default"));
    assert!(older.starts_with("7.2.") && !newer.starts_with("7.2."), "{older} {newer}");

    for (backend, [first, second], [from, to], ways) in
        [("qmp", ["old", "default"], [&older, &newer], "tcp"), ("libvirt", ["default", "old"], [&newer, &older], "tcp")]
    {
        let (ways, first) = (format!("ways={ways}"), format!("qemu_binary={first}"));
        let second = format!("qemu_dst_binary={second}");
        let pair = ["-p", &ways, "-p", "both_ways=yes", "-p", &first, "-p", &second, "--backend", backend];
        let (ran, bundle) = run(backend, "migration_matrix", &pair);
        ran.expect(0);
        let there_and_back = [[from, to], [to, from]].map(|[from, to]| [backend, from, to, "PASS"].map(str::to_owned));
        let found = cells(&bundle);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found, there_and_back);
        // Where the newer one begins it takes a machine that the older one knows.
        let older_machine = said(&bundle).contains("machine type pc-q35-7.2: QEMU 7.2.");
        assert_eq!(older_machine, from == &newer, "{}", said(&bundle));
        for moved in json(&bundle.join("job.json"))["cases"][0]["migrations"].as_array().unwrap() {
            assert_ne!(moved["destination_pid"], 0, "{moved}");
        }
    }

    let newest: Vec<&str> = newer.split('.').collect();
    let demanded = format!("machine=pc-q35-{}.{}", newest[0], newest[1]);
    for (name, elsewhere, param, says) in [
        ("demanded", "qemu_dst_binary=old", demanded.as_str(), "is not known to QEMU 7.2."),
        ("stranger", "qemu_dst_binary=/bin/sh", "smp=1", "qemu_dst_binary = /bin/sh is no QEMU of host2"),
    ] {
        let (ran, _) = run(name, "multihost_migration", &["-p", elsewhere, "-p", param]);
        let ran = ran.expect(0);
        assert!(ran.stdout.contains("SKIP") && ran.stdout.contains(says), "{name}: {}", ran.stdout);
    }
    assert_eq!(lab.inventory(2), before, "something was left behind");
}
