//! Guests that move between hosts with different QEMUs.

use std::path::Path;

use serde_json::Value;
use vt_tests::{lab::Lab, older_qemu};

use super::moves::{json, said};

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
/// From the older one the guest goes paused: QEMU 7.2 misses writes of an emulated guest that moves (`qemu::flaws`), and a
/// guest that is damaged now and then is no test. `make versions` lets it run, and tells such a damage for what it is.
#[test]
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

    let mut passed = 0;
    for (backend, [first, second], [from, to], ways, both_ways) in [
        ("qmp", ["old", "default"], [&older, &newer], &["tcp-offline", "tls-offline", "fd-offline"][..], "yes"),
        ("libvirt", ["default", "old"], [&newer, &older], &["tcp-offline", "tls-offline"], "yes"),
        ("qmp", ["default", "old"], [&newer, &older], &["tcp"], "no"),
        ("qmp", ["default", "old"], [&newer, &older], &["postcopy"], "no"),
    ] {
        let params = [
            format!("ways={}", ways.join(" ")),
            format!("both_ways={both_ways}"),
            format!("qemu_binary={first}"),
            format!("qemu_dst_binary={second}"),
        ];
        let words = params.iter().flat_map(|param| ["-p", param]).chain(["--backend", backend]);
        let (ran, bundle) =
            run(&format!("{backend}-{first}-{}", ways.join("-")), "migration_matrix", &words.collect::<Vec<_>>());
        ran.expect(0);
        let there_and_back = [[from, to], [to, from]].map(|[from, to]| [backend, from, to, "PASS"].map(str::to_owned));
        let moves = if both_ways == "yes" { 2 } else { 1 };
        let each_way = vec![&there_and_back[..moves]; ways.len()].concat();
        assert_eq!(cells(&bundle), each_way, "{backend}, {ways:?}");
        passed += each_way.len();
        // Where the newer one begins it takes a machine that the older one knows.
        let older_machine = said(&bundle).contains("machine type pc-q35-7.2: QEMU 7.2.");
        assert_eq!(older_machine, from == &newer, "{}", said(&bundle));
        for moved in json(&bundle.join("job.json"))["cases"][0]["migrations"].as_array().unwrap() {
            assert_ne!(moved["destination_pid"], 0, "{moved}");
        }
    }

    assert_eq!(passed, 12);

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
