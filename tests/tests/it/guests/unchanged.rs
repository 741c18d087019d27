//! The same scenario, unchanged, wherever the disk of its guest lies: with hosts that share nothing, at an NFS server, in a
//! volume of Gluster, is a LUN of an iSCSI server, or in a Ceph. CI sees a few moves of each, `make proofs` many.

use std::path::PathBuf;

use serde_json::json;
use vt_tests::{
    ceph_server::CephServer,
    faults::pool::{POOL, Pool},
    lab::Lab,
};

use super::{
    disks::{TINY, events, files},
    moves::{self, json},
};

/// What a guest did on its way to and fro between host2 and host3.
struct Moved {
    /// How many moves that were.
    moves: usize,
    /// What either host has noted of it.
    host2: String,
    host3: String,
}

/// Has a guest go to and fro, with its disk in that pool, or in the hosts' own folders; it is checked after every move, and
/// nothing is left of it. There are `share` moves, where `make proofs` does not say how many.
fn goes_to_and_fro(lab: &Lab, pool: Option<&str>, share: usize) -> Moved {
    let moves: usize = std::env::var("VTMESH_MOVES").ok().map_or(share, |moves| moves.parse().unwrap());
    let before = lab.inventory(3);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    // Each round leads there and back.
    let mut params = vec!["disk_probe=4M".to_owned(), format!("migrate_count={}", moves / 2)];
    params.extend(pool.map(|pool| format!("disk_pool={pool}")));
    let params = params.iter().flat_map(|param| ["-p", param]);
    let mut words = vec!["run", "multihost_migration", "-m", "host2,host3", "-r", bundle.to_str().unwrap()];
    words.extend(params);
    let ran = lab.vtctl(&words).expect(0);
    assert!(ran.stdout.contains("PASS"), "{}", ran.stdout);

    let checks = moves::files(&bundle, ".json").into_iter().filter(|file| file.parent().unwrap().ends_with("checks"));
    let found: Vec<_> = checks.map(|file| json(&file)["found"].clone()).collect();
    assert_eq!(found.len(), moves, "a check after every move: {found:?}");
    let sum = |key: &str| found.iter().map(|found| found[key].as_u64().unwrap()).sum::<u64>();
    let (records, writes) = (sum("records"), sum("records_acknowledged"));
    assert!(records > 0 && writes > 0, "{found:?}");
    for host in 1..=3 {
        assert_eq!(files(lab, host, "disks"), <[String; 0]>::default(), "a disk is left on host{host}");
    }
    assert_eq!(lab.inventory(3), before, "something was left behind");
    println!("{moves} moves: {records} records of the disk read back whole, {writes} written between");
    Moved { moves, host2: events(&bundle, "host2"), host3: events(&bundle, "host3") }
}

/// The same in a pool at a server of that kind, which both hosts see.
fn goes_to_and_fro_at_a_server(kind: &str) -> Moved {
    let lab = Lab::up_separate(3);
    let pool = Pool::on(&lab, kind).unwrap();
    lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    let moved = goes_to_and_fro(&lab, Some(POOL), 2);
    assert_eq!(pool.files(), <[PathBuf; 0]>::default(), "no disk is left");
    let said = format!("{}{}", moved.host2, moved.host3);
    assert!(!said.contains("the disk is copied"), "{said}");
    moved
}

#[test]
fn where_nothing_is_shared_the_image_comes_and_the_disk_moves_with_the_guest() {
    let lab = Lab::up_separate(3);
    lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    let shown = lab.json(&["image", "show", "tiny"]);
    assert_eq!(shown["placements"], json!([{"host": "host1", "state": "present", "shared": false}]));

    let Moved { moves, host2, host3 } = goes_to_and_fro(&lab, None, 4);
    for (host, said) in [("host2", &host2), ("host3", &host3)] {
        assert!(said.contains(&format!("everyone waits for {host}: image tiny comes from host1")), "{said}");
        assert_eq!(said.matches("so the disk is copied with the VM").count(), moves / 2, "{said}");
        assert_eq!(said.matches("the disk is there").count(), moves / 2, "{said}");
    }
    let shown = lab.json(&["image", "show", "tiny"]);
    let hosts: Vec<&str> =
        shown["placements"].as_array().unwrap().iter().map(|copy| copy["host"].as_str().unwrap()).collect();
    assert_eq!(hosts, ["host1", "host2", "host3"], "{shown}");
    assert_eq!(shown["jobs"].as_array().map(Vec::len), Some(1), "{shown}");

    // The copies of three hosts, one of them of another version: nobody moves a disk onto it.
    let verified = lab.json(&["image", "verify", "tiny"]);
    assert!(verified["hosts"].as_array().unwrap().iter().all(|host| host["ok"] == true), "{verified}");
}

#[test]
fn where_the_disk_is_at_an_nfs_server_each_host_takes_it_over() {
    let Moved { moves, host2, host3 } = goes_to_and_fro_at_a_server("nfs");
    for said in [host2, host3] {
        assert_eq!(said.matches("the disk is taken over under epoch").count(), moves / 2, "{said}");
    }
}

#[test]
fn where_the_disk_is_in_a_volume_of_gluster_each_host_opens_it() {
    goes_to_and_fro_at_a_server("gluster");
}

#[test]
fn where_the_disk_is_a_lun_each_host_opens_it() {
    goes_to_and_fro_at_a_server("iscsi");
}

#[test]
fn where_the_disk_is_in_a_ceph_each_host_breaks_the_lock_of_the_one_before_it() {
    if !CephServer::is_installed() {
        return;
    }
    let Moved { moves, host2, host3 } = goes_to_and_fro_at_a_server("rbd");
    for said in [host2, host3] {
        assert_eq!(said.matches("the disk is taken over under epoch").count(), moves / 2, "{said}");
    }
}
