//! LUNs of a real iSCSI server: a guest's first disk, and a disk that is given to a guest as it is.

use std::{fs, os::unix::fs::FileExt, time::Duration};

use vt_tests::{
    iscsi_server::{IQN, IscsiServer},
    lab::Lab,
    wait,
};

use super::disks::{TINY, events};

/// Lengths of the LUNs: two that a disk fits in, and one that is too short.
const LUNS_MIB: [u64; 3] = [768, 256, 64];

fn add(lab: &Lab, server: &IscsiServer, name: &str, lun: &str) -> i32 {
    let words = ["storage", "add", name, "--kind", "iscsi", "--server", server.address(), "--iqn", IQN, "--lun", lun];
    lab.vtctl(&words).code
}

#[test]
fn a_lun_is_one_guests_disk_at_a_time_and_moves_with_nothing_copied() {
    let lab = Lab::up_separate(3);
    let server = IscsiServer::on(&lab, &LUNS_MIB);
    for (name, lun) in [("first", "1"), ("raw", "2"), ("short", "3"), ("absent", "9")] {
        assert_eq!(add(&lab, &server, name, lun), 0, "{name}");
    }
    assert_eq!(add(&lab, &server, "again", "1"), 24, "under two names it would be given away twice");
    let checked = lab.json(&["storage", "check", "first"]);
    let hosts = checked["hosts"].as_array().unwrap();
    assert_eq!(hosts.len(), 3, "{checked}");
    for host in hosts {
        for words in ["a LUN of 768 MiB", "one VM at a time", "is not kept off"] {
            assert!(host["told"].to_string().contains(words), "{words:?} is not in {host}");
        }
    }
    let ran = lab.vtctl(&["storage", "check", "absent", "-o", "json"]).expect(25);
    assert!(ran.stdout.contains("cannot use the LUN"), "{}", ran.stdout);
    lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    lab.vtctl(&["image", "sync", "tiny", "-m", "host2,host3"]).expect(0);
    let before = lab.inventory(3);

    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("first");
    let words = ["run", "multihost_migration", "-m", "host1,host2", "-r", bundle.to_str().unwrap()];
    let ran = lab.vtctl(&[&words[..], &["-p", "disk_pool=first", "-p", "disk_probe=1M"]].concat()).expect(0);
    assert!(ran.stdout.contains("PASS"), "{}", ran.stdout);
    let said = ["host1", "host2"].map(|host| events(&bundle, host)).concat();
    assert!(!said.contains("the disk is copied"), "{said}");
    let mut magic = [0; 4];
    fs::File::open(server.file(1)).unwrap().read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(magic, *b"QFI\xfb", "the overlay lay there");
    let refused = lab.vtctl(&["run", "uptime", "-m", "host3", "-p", "disk_pool=short"]).expect(101);
    assert!(refused.stdout.contains("the LUN has 64 MiB"), "{}{}", refused.stdout, refused.stderr);

    // As it is: the guest reads the same on both hosts, and it is what was there.
    let there: Vec<u8> = (0..4u32 << 20).flat_map(u32::to_le_bytes).collect();
    fs::File::options().write(true).open(server.file(2)).unwrap().write_all_at(&there, 0).unwrap();
    let device = ["-p", "images=image1 stg", "-p", "image_raw_device_stg=yes", "-p", "image_name_stg=raw"];
    let bundle = results.path().join("raw");
    let words = ["run", "multihost_migration", "-m", "host1,host2", "-r", bundle.to_str().unwrap()];
    let child = lab.spawn(&[&words[..], &device].concat());
    wait::until("a VM that has the LUN", Duration::from_secs(60), || {
        let writers = lab.json(&["image", "writers"])["writers"].clone();
        if writers.as_array().is_some_and(|all| !all.is_empty()) { Ok(()) } else { Err(writers) }
    });
    let second = lab.vtctl(&[&["run", "uptime", "-m", "host3"][..], &device].concat()).expect(101);
    assert!(second.stdout.contains("has the disk of pool raw"), "{}{}", second.stdout, second.stderr);
    lab.vtctl(&["storage", "remove", "raw"]).expect(24);
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("PASS"), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let mut after = vec![0; there.len()];
    fs::File::open(server.file(2)).unwrap().read_exact_at(&mut after, 0).unwrap();
    assert!(after == there, "what was on the LUN is changed");
    lab.vtctl(&["storage", "remove", "raw"]).expect(0);
    assert_eq!(lab.inventory(3), before, "something was left behind");
}
