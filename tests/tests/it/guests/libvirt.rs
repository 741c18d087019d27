//! The same scenarios through libvirt: one libvirtd a host, the daemons' decisions as ever.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use vt_tests::{
    lab::{Lab, lab_root},
    wait,
};

use super::moves::{files, json};

fn data(lab: &Lab, host: u32) -> PathBuf {
    Path::new(&lab_root()).join(lab.name()).join(format!("host{host}"))
}

fn said(folder: &Path) -> String {
    files(folder, "events.jsonl").iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Domains that a host's libvirtd knows, running or not.
fn domains(lab: &Lab, host: u32) -> Vec<String> {
    let runs = PathBuf::from(format!("/run/vtmesh/labs/{}/host{host}/libvirt/run/qemu", lab.name()));
    let entries = fs::read_dir(runs).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name.ends_with(".xml")).collect()
}

#[test]
fn a_guest_moves_there_and_back_by_libvirt_and_nothing_is_left() {
    let lab = Lab::up_libvirt(2);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let words = ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt"];
    let ran = lab.vtctl(&[&words[..], &["-r", bundle.to_str().unwrap()]].concat()).expect(0);
    assert!(ran.stdout.contains("PASS"), "{}", ran.stdout);
    let job = json(&bundle.join("job.json"));
    let migrations = job["cases"][0]["migrations"].as_array().unwrap().clone();
    assert_eq!(migrations.len(), 2, "{job}");
    for migration in &migrations {
        assert!(migration["normal_pages"].as_u64().unwrap() > 1000, "QEMU's own words are kept: {migration}");
    }
    assert_eq!(said(&bundle).matches("by libvirt").count(), 2);
    let described = files(&bundle, "domain.xml");
    assert_eq!(described.len(), 3, "a domain was started once and came in twice: {described:?}");
    // libvirt notices the end of a QEMU a moment later.
    wait::until("no domain is left", Duration::from_secs(20), || {
        let left: Vec<String> = (1..=2).flat_map(|host| domains(&lab, host)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(lab.inventory(2), before, "something was left behind");
}

#[test]
fn a_move_that_is_cancelled_leaves_the_guest_where_it_is() {
    let lab = Lab::up_libvirt(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    // Slow, so that the cancel meets a transfer; the next move of the case is as slow and is let through.
    let words = ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt", "-p", "mig_speed=24M"];
    let more = ["-p", "at=active cancel", "-r", bundle.to_str().unwrap()];
    lab.vtctl(&[&words[..], &more].concat()).expect(0);
    assert!(said(&bundle).contains("cancelled at active"), "{}", said(&bundle));
}

#[test]
fn a_helper_that_dies_in_the_middle_takes_no_move_with_it() {
    let lab = Lab::up_libvirt(2);
    let results = tempfile::tempdir().unwrap();
    let words = ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt", "-p", "mig_speed=24M"];
    let run = lab.spawn(&[&words[..], &["-r", results.path().join("job").to_str().unwrap()]].concat());
    wait::until("libvirt moves the guest", Duration::from_secs(120), || {
        // What was said alone is said before libvirt is asked.
        let transcripts = files(&data(&lab, 1), "qmp.jsonl");
        let begun = transcripts.iter().any(|path| fs::read_to_string(path).unwrap().contains(r#""status": "active""#));
        if begun { Ok(()) } else { Err(said(&data(&lab, 1))) }
    });
    let helper = lab.process("host1", |words| words[0].ends_with("vt-libvirt")).expect("there is a helper to kill");
    assert!(Command::new("kill").args(["-9", &helper]).status().unwrap().success());
    let output = run.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("PASS"), "{stdout}\n{stderr}");
}

/// What libvirt has words for beside the transports, and disks that it copies because nothing is shared.
#[test]
fn a_guest_moves_compressed_slowly_encrypted_and_with_its_disk() {
    let lab = Lab::up_as(2, &["--libvirt", "--separate-pools"]);
    let tiny = "/var/lib/vtmesh/images/tiny";
    lab.vtctl(&["image", "import", tiny, "--host", "host1"]).expect(0);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let ways = "ways=multifd-zstd multifd-zlib xbzrle auto-converge speed tcp-offline tls";
    let words = ["run", "migration_matrix", "-m", "host1,host2", "--backend", "libvirt", "-p", "mem=128M", "-p", ways];
    lab.vtctl(&[&words[..], &["-r", bundle.to_str().unwrap()]].concat()).expect(0);
    let checks = json(&bundle.join("job.json"))["cases"][0]["checks"].clone();
    let fates: Vec<(String, String)> = checks
        .as_object()
        .unwrap()
        .values()
        .filter(|check| check["cell"].is_u64())
        .map(|cell| (cell["way"].to_string(), cell["fate"].to_string()))
        .collect();
    assert_eq!(fates.len(), 7, "{fates:?}");
    assert!(fates.iter().all(|(_, fate)| fate == "\"PASS\""), "{fates:?}");
    assert_eq!(lab.inventory(2), before, "something was left behind");
}

#[test]
fn where_no_libvirt_is_set_and_where_it_has_no_word_the_case_says_which() {
    let without = Lab::up(2);
    let words = ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt"];
    let results = tempfile::tempdir().unwrap();
    let goals = ["none", "no-word"].map(|name| results.path().join(name).display().to_string());
    let ran = without.vtctl(&[&words[..], &["-r", &goals[0]]].concat()).expect(0);
    assert!(ran.stdout.contains("SKIP") && ran.stdout.contains("name no libvirt"), "{}", ran.stdout);
    drop(without);
    let lab = Lab::up_libvirt(2);
    let ran = lab.vtctl(&[&words[..], &["-p", "mig_protocol=fd", "-r", &goals[1]]].concat());
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    assert!((ran.stdout + &ran.stderr).contains("transport fd is not offered through libvirt"));
}
