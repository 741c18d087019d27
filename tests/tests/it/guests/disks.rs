//! Hosts that share no storage: images come to them, and disks move with their VMs.

use std::fs;

use serde_json::Value;
use vt_tests::lab::{Lab, lab_root};

/// The folder that the built-in image is made in.
pub(super) const TINY: &str = "/var/lib/vtmesh/images/tiny";

pub(super) fn events(bundle: &std::path::Path, host: &str) -> String {
    let mut text = String::new();
    let mut folders = vec![bundle.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.ends_with(format!("{host}/events.jsonl")) {
                text += &fs::read_to_string(path).unwrap();
            }
        }
    }
    text
}

pub(super) fn files(lab: &Lab, host: u32, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("{}/{}/host{host}/{folder}", lab_root(), lab.name()));
    entries.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_move_that_is_cancelled_leaves_the_disk_where_the_guest_is() {
    let lab = Lab::up_separate(2);
    lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    // Cancelled when all of the disk is there; the next move copies it again, and the records on it must be whole.
    let words = ["run", "multihost_migration", "-m", "host1,host2", "-p", "at=pre-switchover cancel"];
    lab.vtctl(&[&words[..], &["-p", "disk_probe=4M", "-r", bundle.to_str().unwrap()]].concat()).expect(0);
    let results: Value = serde_json::from_str(&fs::read_to_string(bundle.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["cases"][0]["verdict"], "pass", "{results}");
    for host in 1..=2 {
        assert_eq!(files(&lab, host, "disks"), <[String; 0]>::default(), "a disk is left on host{host}");
    }
}

#[test]
fn a_pool_is_tried_from_every_host() {
    let lab = Lab::up_separate(2);
    let pools = lab.json(&["storage", "list"]);
    assert_eq!(pools["pools"][0]["shared"], false, "{pools}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool").display().to_string();
    lab.vtctl(&["storage", "add", "common", "--path", &path, "--shared"]).expect(0);
    let checked = lab.json(&["storage", "check", "common"]);
    for host in checked["hosts"].as_array().unwrap() {
        let told = host["told"].to_string();
        assert!(told.contains("reads what another host wrote") && told.contains("second lock is refused"), "{host}");
    }
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "a check leaves nothing");
    let refused = lab.vtctl(&["storage", "add", "far", "--path", "/x", "--kind", "nfs"]).expect(2);
    assert!(refused.stderr.contains("--server"), "{}", refused.stderr);
    lab.vtctl(&["storage", "remove", "common"]).expect(0);
    lab.vtctl(&["storage", "check", "common"]).expect(23);
}
