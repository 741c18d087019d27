//! Disks, CDs and floppy disks that a case makes for itself: they are in the guest, go with it, are looked into, and leave nothing.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use vt_tests::{
    lab::{Lab, lab_root},
    wait,
};

use super::disks::{TINY, events, files};

const MIB: u64 = 1 << 20;
/// Where qcow2, as `qemu-img create` writes it, counts how often a cluster is used.
const REFCOUNTS: u64 = 0x2_0000;
/// The last cluster of a disk with 2 MiB in it: five of the format's own come before.
const LAST_CLUSTER: u64 = 36;

fn of_host(lab: &Lab, host: u32, folder: &str) -> PathBuf {
    PathBuf::from(format!("{}/{}/host{host}/{folder}", lab_root(), lab.name()))
}

/// Takes images that cases are made of, puts a folder for a CD into the pool, and gives the parameters of such a case.
fn prepare(lab: &Lab, pool: &Path) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let (golden, cd) = (dir.path().join("golden.qcow2"), dir.path().join("tools.iso"));
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&golden).arg("8M").status().unwrap();
    assert!(made.success());
    fs::write(&cd, (0..4 * MIB).map(|at| (at % 251) as u8).collect::<Vec<u8>>()).unwrap();
    for file in [&golden, &cd] {
        lab.vtctl(&["image", "import", file.to_str().unwrap(), "--host", "host1"]).expect(0);
    }
    fs::create_dir_all(pool.join("media/kit")).unwrap();
    fs::write(pool.join("media/kit/readme"), "put on a CD").unwrap();
    let sum = Command::new("md5sum").arg(&cd).output().unwrap().stdout;
    let sum = format!("md5sum_cd1={}", String::from_utf8_lossy(&sum[..32]));
    let disks =
        ["images=image1 stg copy", "create_image_stg=yes", "image_size_stg=32M", "image_name_copy=images/golden"];
    let cds = ["cdroms=cd1 cd2", "cdrom_cd1=isos/tools.iso", "cdrom_cd2=media/kit", "check_image=yes", &sum];
    let floppies = ["floppies=fl kit", "floppy_name_kit=media/kit"];
    disks.iter().chain(&cds).chain(&floppies).flat_map(|param| ["-p".to_owned(), (*param).to_owned()]).collect()
}

fn run<'a>(params: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    let words = ["run", "multihost_migration", "-m", "host1,host2"];
    words.into_iter().chain(params.iter().map(String::as_str)).chain(more.iter().copied()).collect()
}

#[test]
fn a_case_has_disks_and_cds_of_its_own_that_go_with_the_guest_where_nothing_is_shared() {
    let lab = Lab::up_separate(2);
    lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    let params = prepare(&lab, &of_host(&lab, 1, "images"));
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let ran = lab.vtctl(&run(&params, &["-r", bundle.to_str().unwrap()])).expect(0);
    assert!(ran.stdout.contains("PASS"), "{}", ran.stdout);
    // Two disks, the CD of a folder and two floppy disks are the VM's own; the CD of an image is on every host.
    for host in ["host1", "host2"] {
        let said = events(&bundle, host);
        assert_eq!(said.matches("so the disk is copied with the VM").count(), 1, "{said}");
    }
    assert!(events(&bundle, "host2").contains("image tools comes from host1"));
    let shown = lab.json(&["image", "show", "golden"]);
    assert_eq!(shown["jobs"].as_array().map(Vec::len), Some(1), "{shown}");
    assert_eq!(shown["placements"].as_array().map(Vec::len), Some(2), "{shown}");
    for host in 1..=2 {
        assert_eq!(files(&lab, host, "disks"), <[String; 0]>::default(), "a disk is left on host{host}");
    }
    assert_eq!(lab.inventory(2), before, "something was left behind");

    // Not only where guests are moved: every scenario has what its VM is said to have.
    let words = ["run", "uptime", "-m", "host1"].into_iter().chain(params.iter().map(String::as_str));
    let ran = lab.vtctl(&words.collect::<Vec<_>>()).expect(0);
    assert!(ran.stdout.contains("PASS"), "{}", ran.stdout);

    // What the case cannot have is named, and nothing is left of it.
    for (param, code, says) in [
        ("md5sum_cd1=00000000000000000000000000000000", 101, "image tools is another one"),
        ("cdrom_cd1=isos/absent.iso", 101, "image absent is not on host1"),
        ("cdrom_cd2=media/../tiny", 101, "media/../tiny is no folder below it"),
        ("cdrom_cd1=golden", 101, "image golden is a qcow2 disk and no CD"),
        ("floppy_name_fl=images/tools.iso", 101, "image tools is no floppy disk"),
        ("image_format_stg=vmdk", 2, "image_format"),
    ] {
        let refused = lab.vtctl(&run(&params, &["-p", param])).expect(code);
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains(says), "{param}: {said}");
    }
    let damaged = File::options().write(true).open(of_host(&lab, 1, "images/golden/disk.qcow2")).unwrap();
    damaged.write_all_at(&[0; 4096], REFCOUNTS).unwrap();
    let refused = lab.vtctl(&run(&params, &[])).expect(101);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("image golden is damaged: it is corrupt inside"), "{said}");
    for host in 1..=2 {
        assert_eq!(files(&lab, host, "disks"), <[String; 0]>::default(), "a disk is left on host{host}");
    }
}

#[test]
fn a_disk_that_is_damaged_while_the_guest_runs_is_named_by_the_verdict() {
    let pool = tempfile::tempdir().unwrap();
    symlink(TINY, pool.path().join("tiny")).unwrap();
    let lab = Lab::up_as(2, &["--images", pool.path().to_str().unwrap()]);
    let params = prepare(&lab, pool.path());
    let before = lab.inventory(2);
    let ran = lab.vtctl(&run(&params, &[])).expect(0);
    assert!(ran.stdout.contains("PASS"), "where the pool is shared: {}", ran.stdout);
    assert_eq!(lab.inventory(2), before, "something was left behind");

    let disks = of_host(&lab, 1, "..").join("disks");
    let running = lab.spawn(&run(&params, &["-p", "migrate_count=3", "-p", "backup_image_on_check_error=yes"]));
    // Once QEMU has counted every cluster it does not look there again.
    let stg = wait::until("the second disk written and counted", Duration::from_secs(180), || {
        let entries = fs::read_dir(&disks).into_iter().flatten().flatten();
        let stg = entries.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with("+stg.qcow2"));
        let mut last = [0; 2];
        let read = stg.as_ref().map(|path| File::open(path)?.read_exact_at(&mut last, REFCOUNTS + 2 * LAST_CLUSTER));
        if matches!(read, Some(Ok(()))) && last == [0, 1] { stg.ok_or(last) } else { Err(last) }
    });
    File::options().write(true).open(&stg).unwrap().write_all_at(&[0; 4096], REFCOUNTS).unwrap();
    let ended = running.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.status.code(), Some(100), "{said}");
    assert!(said.contains("QEMU left a disk of vm1 damaged (stg): it is corrupt inside"), "{said}");
    let kept = disks.canonicalize().unwrap().join("damaged").join(stg.file_name().unwrap());
    assert!(said.contains(kept.to_str().unwrap()) && kept.exists(), "{said}");
    fs::remove_dir_all(kept.parent().unwrap()).unwrap();
    assert_eq!(lab.inventory(2), before, "something was left behind");
}
