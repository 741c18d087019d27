//! Disks of guests in pools at real servers.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use serde_json::Value;
use vt_tests::{
    ceph_server::{CEPH_POOL, CephServer},
    gluster_server::GlusterServer,
    lab::Lab,
    nfs_server::NfsServer,
    wait,
};

use super::disks::{TINY, events};

const MOVE: [&str; 5] = ["run", "multihost_migration", "-m", "host1,host2", "--results"];
/// A move that something can happen in the middle of: it takes longer than a server stands still, for its guest would too.
const SLOW: [&str; 6] = ["-p", "disk_probe=1M", "-p", "mig_speed=3M", "-p", "mem_rewrite=256K"];
/// How long a server stands still.
const STILL: Duration = Duration::from_secs(30);

/// A lab whose hosts share nothing but a server, which is known as `filer`.
fn with_server() -> (NfsServer, Lab) {
    let lab = Lab::up_separate(3);
    let server = NfsServer::on(&lab);
    add(&lab, "filer", &server, "/disks", &[]);
    (server, lab)
}

/// The same, with the built-in image on host1.
fn with_image() -> (NfsServer, Lab) {
    let (server, lab) = with_server();
    lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    (server, lab)
}

/// Starts such a move, and comes back when the guest writes.
fn slowly(lab: &Lab, pool: &str, files: impl Fn() -> Vec<PathBuf>, bundle: &Path) -> Child {
    let pool = format!("disk_pool={pool}");
    let child = lab.spawn(&[&MOVE[..], &[bundle.to_str().unwrap(), "-p", &pool], &SLOW].concat());
    await_writes(files);
    child
}

/// A move that such a thing happened to passes.
fn passes(child: Child) {
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("PASS"), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
}

/// While a server stands still.
fn stand_still() {
    let frozen = Instant::now();
    wait::until("the server's time to come back", STILL * 2, || {
        if frozen.elapsed() > STILL { Ok(()) } else { Err(frozen.elapsed()) }
    });
}

fn add(lab: &Lab, name: &str, server: &NfsServer, export: &str, more: &[&str]) {
    let words = ["storage", "add", name, "--kind", "nfs", "--server", server.address(), "--export", export];
    lab.vtctl(&[&words[..], more].concat()).expect(0);
}

fn paths(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Waits until a guest is up and writes to its disk, which is among those files of a server.
fn await_writes(files: impl Fn() -> Vec<PathBuf>) {
    wait::until("a disk that is written", Duration::from_secs(180), || {
        let written: u64 = files().iter().map(|file| file.metadata().map_or(0, |meta| meta.blocks() * 512)).sum();
        if written > 640 << 10 { Ok(()) } else { Err(written) }
    });
}

fn told(host: &Value) -> String {
    format!("{} {}", host["told"], host["trouble"])
}

#[test]
fn a_pool_at_a_server_is_tried_from_every_host() {
    let (server, lab) = with_server();
    let checked = lab.json(&["storage", "check", "filer"]);
    let hosts = checked["hosts"].as_array().unwrap();
    assert_eq!(hosts.len(), 3, "{checked}");
    for host in hosts {
        for words in ["what another host wrote", "an epoch that is over", "too late is refused", "clock agrees", "MiB"]
        {
            assert!(told(host).contains(words), "{words:?} is not in {host}");
        }
    }
    assert_eq!(paths(&server.folder("disks")), <[PathBuf; 0]>::default(), "a check leaves nothing");

    fs::write(server.folder("isos").join("a.iso"), "iso").unwrap();
    add(&lab, "isos", &server, "/isos", &["--read-only", "--nfs-port", "2049", "--mount-port", "20048"]);
    let checked = lab.json(&["storage", "check", "isos"]);
    assert!(told(&checked["hosts"][0]).contains("refuses writes, as it should"), "{checked}");
    lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    let refused = lab.vtctl(&["run", "multihost_migration", "-m", "host1,host2", "-p", "disk_pool=isos"]);
    assert!(refused.stdout.contains("read-only"), "{}{}", refused.stdout, refused.stderr);
    let image = lab.vtctl(&["image", "import", TINY, "--pool", "filer", "--host", "host1"]);
    assert!(image.code != 0 && image.stderr.contains("takes no images"), "{}", image.stderr);

    // Where all users are one, nothing keeps a writer off that is over; where there is nothing, that is said.
    for (name, export, words) in [("squashed", "/squashed", "no_root_squash"), ("nothing", "/nothing", "does not give")]
    {
        add(&lab, name, &server, export, &[]);
        let ran = lab.vtctl(&["storage", "check", name, "-o", "json"]).expect(25);
        assert!(ran.stdout.contains(words), "{}", ran.stdout);
    }
}

#[test]
fn a_guest_whose_disk_is_at_a_server_outlives_that_it_stands_still_for_30_s() {
    let (server, lab) = with_image();
    let before = lab.inventory(3);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    // In the middle of a move that is slow enough for it.
    let child = slowly(&lab, "filer", || paths(&server.folder("disks")), &bundle);
    server.freeze();
    stand_still();
    server.thaw();
    passes(child);
    assert_eq!(paths(&server.folder("disks")), <[PathBuf; 0]>::default(), "no disk is left");
    assert_eq!(lab.inventory(3), before, "something was left behind");
}

#[test]
fn a_server_that_turns_read_only_ends_the_case_with_its_name() {
    let (server, lab) = with_image();
    let before = lab.inventory(3);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let child = slowly(&lab, "filer", || paths(&server.folder("disks")), &bundle);
    server.turn_read_only();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(101), "{stdout}");
    assert!(stdout.contains("its disk in the pool failed") && stdout.contains("read-only"), "{stdout}");
    assert_eq!(lab.inventory(3), before, "something was left behind");
}

#[test]
fn a_server_that_is_full_ends_the_case_with_its_name_and_takes_guests_again_when_there_is_room() {
    let lab = Lab::up_separate(3);
    let server = NfsServer::on_with_room(&lab, 64);
    add(&lab, "filer", &server, "/disks", &[]);
    lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    let before = lab.inventory(3);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let files = || paths(&server.folder("disks"));
    // The records go round in more room than they have had until then: each one wants new room at the server.
    let words = [&MOVE[..], &[bundle.to_str().unwrap(), "-p", "disk_pool=filer"], &SLOW, &["-p", "disk_probe=32M"]];
    let child = lab.spawn(&words.concat());
    await_writes(files);
    server.fill();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(101), "{said}");
    assert!(said.contains("its disk in the pool failed") && said.contains("no room is left"), "{said}");
    assert!(said.contains(".qcow2 in nfs://"), "the disk is named: {said}");
    assert!(events(&bundle, "host1").contains("its disk failed and it is ended"), "it is in the evidence");
    assert_eq!(files(), [server.folder("disks").join("filler")], "its disk is removed, and nothing else");
    assert_eq!(lab.inventory(3), before, "something was left behind");

    server.make_room();
    let again = results.path().join("again");
    let words = ["run", "uptime", "-m", "host1", "-p", "disk_pool=filer", "-r", again.to_str().unwrap()];
    let ran = lab.vtctl(&words).expect(0);
    assert!(ran.stdout.contains("PASS"), "{}", ran.stdout);
    assert_eq!(files(), <[PathBuf; 0]>::default(), "no disk is left");
}

#[test]
fn a_volume_of_gluster_is_tried_from_every_host_and_a_guest_in_it_outlives_that_its_server_stands_still() {
    let lab = Lab::up_separate(3);
    let server = GlusterServer::on(&lab);
    for (name, volume) in [("bricks", "disks"), ("nothing", "other")] {
        let words = ["storage", "add", name, "--kind", "gluster", "--server", server.address(), "--volume", volume];
        lab.vtctl(&words).expect(0);
    }
    let checked = lab.json(&["storage", "check", "bricks"]);
    let hosts = checked["hosts"].as_array().unwrap();
    assert_eq!(hosts.len(), 3, "{checked}");
    for host in hosts {
        for words in ["what another host wrote", "QEMU's own driver", "reads at once", "is not kept off", "MiB"] {
            assert!(told(host).contains(words), "{words:?} is not in {host}");
        }
    }
    assert_eq!(server.files(), <[PathBuf; 0]>::default(), "a check leaves nothing");
    let ran = lab.vtctl(&["storage", "check", "nothing", "-o", "json"]).expect(25);
    assert!(ran.stdout.contains("volume other of"), "{}", ran.stdout);
    server.freeze();
    let ran = lab.vtctl(&["storage", "check", "bricks", "-o", "json"]).expect(25);
    assert!(ran.stdout.contains("does not answer within"), "{}", ran.stdout);
    server.thaw();

    lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    let before = lab.inventory(3);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let child = slowly(&lab, "bricks", || server.files(), &bundle);
    // Its guest stands still with it, so the move may not end before that.
    server.freeze();
    stand_still();
    server.thaw();
    passes(child);
    assert_eq!(server.files(), <[PathBuf; 0]>::default(), "no disk is left");
    assert_eq!(lab.inventory(3), before, "something was left behind");
}

#[test]
fn a_ceph_is_tried_from_every_host_and_refuses_whose_lock_was_broken() {
    if !CephServer::is_installed() {
        return;
    }
    let lab = Lab::up_separate(3);
    let server = CephServer::on(&lab);
    for (name, pool) in [("ceph", CEPH_POOL), ("nothing", "other")] {
        let words = ["storage", "add", name, "--kind", "rbd", "--server", server.address(), "--rbd-pool", pool];
        lab.vtctl(&words).expect(0);
    }
    let checked = lab.json(&["storage", "check", "ceph"]);
    let hosts = checked["hosts"].as_array().unwrap();
    assert_eq!(hosts.len(), 3, "{checked}");
    for host in hosts {
        for words in ["what another host wrote", "QEMU's own driver", "whose lock was broken is refused"] {
            assert!(told(host).contains(words), "{words:?} is not in {host}");
        }
    }
    assert_eq!(server.images(), <[PathBuf; 0]>::default(), "a check leaves nothing");
    let ran = lab.vtctl(&["storage", "check", "nothing", "-o", "json"]).expect(25);
    assert!(ran.stdout.contains("pool other of the Ceph"), "{}", ran.stdout);
}
