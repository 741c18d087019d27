//! `doctor` on real hosts: a healthy lab is clean, and what is broken on purpose is found, with what mends it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use vt_tests::{
    lab::{Lab, Ran, lab_root},
    program, wait,
};

const SOON: Duration = Duration::from_secs(90);
/// How fast the disk is, and how much memory is free, is the machine's, which does other things meanwhile.
const SKIP: &str = "D-STO-05,D-STO-09,D-PLT-10";

/// What a doctor found that is at least as bad as a warning: `D-NET-01 host1 host2 fail`.
fn bad(document: &Value) -> Vec<String> {
    let findings = document["findings"].as_array().unwrap();
    let bad = findings.iter().filter(|finding| finding["severity"] == "warn" || finding["severity"] == "fail");
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let line = |it: &Value| ["check", "host", "other", "severity"].map(|key| word(&it[key])).join(" ");
    let mut lines: Vec<String> = bad.map(line).collect();
    lines.sort();
    lines
}

fn examine(lab: &Lab) -> (i32, Value) {
    let ran = lab.vtctl(&["doctor", "--all", "--skip", SKIP, "-o", "json"]);
    (ran.code, ran.json())
}

/// Waits until the doctor finds exactly what `wanted` takes.
fn wait_for(lab: &Lab, what: &str, wanted: impl Fn(&[String]) -> bool) -> (i32, Value) {
    wait::until(what, SOON, || {
        let (code, document) = examine(lab);
        let bad = bad(&document);
        if wanted(&bad) { Ok((code, document)) } else { Err((code, bad)) }
    })
}

fn nft(lab: &Lab, host: &str, rules: &str) {
    let namespace = format!("vt-{}-{host}", lab.name());
    let done = Command::new("ip").args(["netns", "exec", &namespace, "nft", rules]).status();
    assert!(done.unwrap().success(), "{rules}");
}

/// A host drops what a rule takes, until it is let in again.
fn drop_at(lab: &Lab, host: &str, rule: &str) {
    nft(lab, host, "add table inet t; add chain inet t c { type filter hook input priority 0; }");
    nft(lab, host, &format!("add rule inet t c {rule} drop"));
}

#[test]
fn a_healthy_lab_is_clean_and_what_is_broken_between_and_on_its_hosts_is_found() {
    let lab = Lab::up_separate(3);
    let (code, document) = wait_for(&lab, "a clean lab", <[String]>::is_empty);
    assert_eq!((code, &document["exit"]["name"]), (0, &Value::from("ok")));
    let all = document["findings"].as_array().unwrap();
    let seen = |check: &str| all.iter().filter(|finding| finding["check"] == check).count();
    assert_eq!([seen("D-QEM-01"), seen("D-NET-03"), seen("D-PAI-01")], [3, 6, 3], "hosts, ways, pairs: {all:#?}");

    // Decisions go over UDP. The rest of the cluster goes on.
    drop_at(&lab, "host2", "ip saddr 10.77.0.11 udp dport 7465");
    let between = |line: &String| line.contains("host1") && line.contains("host2");
    let (code, document) = wait_for(&lab, "UDP from host1 to host2 to be missed", |bad| {
        bad.iter().any(|line| line.starts_with("D-NET-01") && between(line))
            && bad.iter().all(|line| !line.starts_with("D-NET-02"))
    });
    assert_eq!(code, 25, "{document:#}");
    let finding =
        document["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "D-NET-01").unwrap();
    assert!(finding["fix"].to_string().contains("UDP"), "{finding:#}");
    nft(&lab, "host2", "delete table inet t");
    wait_for(&lab, "a clean lab again", <[String]>::is_empty);

    // One in five of what host1 sends there gets lost on its way: all works, and slowly.
    drop_at(&lab, "host2", "numgen random mod 5 0 ip saddr 10.77.0.11 udp dport 7465");
    wait_for(&lab, "losses from host1 to host2", |bad| bad.contains(&"D-NET-08 host1 host2 warn".to_owned()));
    nft(&lab, "host2", "delete table inet t");
    wait_for(&lab, "a clean lab once more", <[String]>::is_empty);

    // Migrations have ports of their own, and large packets may be lost where small ones are not. That all are dropped, the
    // rules themselves tell, too.
    for (rule, words, told) in [
        ("tcp dport 49152-49215", "open TCP 49152-49215", &["D-NET-09 host3 - warn"][..]),
        ("tcp dport 49152-49215 meta length > 1000", "MTU", &[]),
    ] {
        drop_at(&lab, "host3", rule);
        let wanted = [&["D-NET-03 host1 host3 fail", "D-NET-03 host2 host3 fail"], told].concat();
        let (_, document) = wait_for(&lab, rule, |bad| bad == wanted);
        let finding = document["findings"].as_array().unwrap().iter().find(|f| f["severity"] == "fail").unwrap();
        assert!(finding["fix"].to_string().contains(words), "{finding:#}");
        nft(&lab, "host3", "delete table inet t");
    }

    // A directory that anybody can write, which --fix mends after it was asked to.
    let images = Path::new(&lab_root()).join(lab.name()).join("host2/images");
    fs::set_permissions(&images, fs::Permissions::from_mode(0o777)).unwrap();
    let report = tempfile::NamedTempFile::new().unwrap();
    let junit = report.path().to_str().unwrap();
    let ran = lab.vtctl(&["doctor", "--all", "--skip", SKIP, "--junit", junit]).expect(25);
    assert!(ran.stdout.contains("✗ D-STO-02 host2") && ran.stdout.contains("chmod 0775"), "{}", ran.stdout);
    let xml = fs::read_to_string(report.path()).unwrap();
    assert!(xml.contains("failures=\"1\"") && xml.contains("<failure type=\"D-STO-02\""), "{xml}");
    let refused = lab.vtctl(&["doctor", "--all", "--check", "D-STO-02", "--fix"]).expect(2);
    assert!(refused.stderr.contains("chmod 0775") && refused.stderr.contains("--yes"), "{}", refused.stderr);
    assert_eq!(fs::metadata(&images).unwrap().permissions().mode() & 0o777, 0o777, "nobody agreed");
    lab.vtctl(&["doctor", "--all", "--check", "D-STO-02", "--fix", "--yes"]).expect(0);
    assert_eq!(fs::metadata(&images).unwrap().permissions().mode() & 0o777, 0o775);

    // What belongs to nobody, and a host that is gone.
    let lost = Path::new(&lab_root()).join(lab.name()).join("host1/disks/job_none.1.1.vm1.qcow2");
    fs::write(&lost, "").unwrap();
    wait_for(&lab, "a disk of nobody", |bad| bad == ["D-HYG-01 host1 - warn"]);
    fs::remove_file(&lost).unwrap();
    lab.vtctl(&["lab", "kill", "host3"]).expect(0);
    let (code, document) = wait_for(&lab, "a dead host", |bad| bad.iter().any(|line| line.starts_with("D-CLU-02")));
    assert!(code == 25 && bad(&document).contains(&"D-CLU-06 host3 - fail".to_owned()), "{:?}", bad(&document));
}

/// `vtd doctor` with settings whose directories are below `dir`.
fn alone(dir: &Path, before: &[&str], path: Option<&Path>) -> Ran {
    let [data, images, disks] = ["data", "images", "disks"].map(|name| dir.join(name).display().to_string());
    let file = dir.join("vtd.toml");
    fs::write(&file, format!("[paths]\ndata = {data:?}\nimages = {images:?}\ndisks = {disks:?}\n")).unwrap();
    let vtd = program("vtd");
    let mut words: Vec<&str> = before.to_vec();
    let (vtd, file) = (vtd.to_str().unwrap(), file.to_str().unwrap());
    words.extend([vtd, "--config", file, "doctor", "--json", "--skip", SKIP]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    if let Some(path) = path {
        command.env("PATH", path);
    }
    Ran::of(command.output().unwrap())
}

fn three_directories() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, mode) in [("data", 0o700), ("images", 0o755), ("disks", 0o755)] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    dir
}

#[test]
fn a_host_without_a_daemon_is_examined_by_vtd_itself() {
    let dir = three_directories();
    let ran = alone(dir.path(), &[], None).expect(0);
    assert!(bad(&ran.json()).is_empty(), "{}", ran.stdout);
    let left: Vec<_> = fs::read_dir(dir.path().join("disks")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    // A PATH in which everything is but qemu-img.
    let path = dir.path().join("bin");
    fs::create_dir(&path).unwrap();
    for name in ["ip", "prlimit", "flock", "true", "qemu-system-x86_64"] {
        let found =
            std::env::split_paths(&std::env::var_os("PATH").unwrap()).map(|dir| dir.join(name)).find(|it| it.exists());
        symlink(found.unwrap(), path.join(name)).unwrap();
    }
    let ran = alone(dir.path(), &[], Some(&path)).expect(25);
    assert_eq!(bad(&ran.json()), ["D-PLT-03 - - fail"]);
    assert!(ran.stdout.contains("qemu-img (disks of VMs)") && ran.stdout.contains("apt-get install qemu-utils"));

    // A disk that is nearly full, and one that is not there.
    let small = format!("mount -t tmpfs -o size=4m none {} && exec \"$@\"", dir.path().join("images").display());
    let ran = alone(dir.path(), &["unshare", "-m", "sh", "-c", &small, "sh"], None).expect(25);
    assert_eq!(bad(&ran.json()), ["D-STO-04 - - fail"], "{}", ran.stdout);
    fs::remove_dir(dir.path().join("disks")).unwrap();
    let ran = alone(dir.path(), &[], None).expect(0);
    assert_eq!(bad(&ran.json()), ["D-STO-01 - - warn"]);
}

#[test]
fn a_namespace_that_a_lab_left_is_found_and_removed() {
    let name = format!("d{:x}", std::process::id() % 0xfffff);
    let namespace = format!("vt-{name}-host1");
    let ip = |words: &[&str]| assert!(Command::new("ip").args(words).status().unwrap().success(), "{words:?}");
    ip(&["netns", "add", &namespace]);
    let doctor = |more: &[&str]| {
        let mut command = Command::new(program("vtctl"));
        command.args(["doctor", "--endpoint", "/nowhere/vtd.sock", "--check", "D-HYG-02"]).args(more);
        Ran::of(command.stdin(Stdio::null()).output().unwrap())
    };
    let found = doctor(&[]).expect(0);
    assert!(found.stdout.contains(&format!("namespace {namespace}, empty, and no record of it")), "{}", found.stdout);
    assert!(found.stdout.contains(&format!("vtctl lab down --lab {name}")), "{}", found.stdout);
    doctor(&["--fix", "--yes"]).expect(0);
    assert!(!Path::new("/run/netns").join(&namespace).exists());
    assert!(!doctor(&[]).expect(0).stdout.contains(&namespace));
    // Nobody answers there, and that is a finding of its own.
    let ran = Command::new(program("vtctl"))
        .args(["doctor", "--endpoint", "/nowhere/vtd.sock", "--check", "D-CLU-07"])
        .output();
    assert_eq!(Ran::of(ran.unwrap()).code, 25);
}
