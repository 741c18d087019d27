//! Test providers as a user meets them: a small tree written for this test, bad ones, trees that come by git, and the real
//! ones of the shared corpus where it is present.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    at,
    fake::{self, Act, Fake},
};

/// A providers folder and the tree of a provider.
const FILES: &[(&str, &str)] = &[
    ("vt/shared/cfg/base.cfg", "vms = vm1\nmem = 1024\n"),
    (
        "vt/shared/cfg/machines.cfg",
        "variants:\n    - @i440fx:\n        machine = pc\n    - q35:\n        machine = q35\n",
    ),
    ("vt/shared/cfg/guest-os/Linux.cfg", "- @Linux:\n    os = linux\n"),
    ("vt/shared/cfg/guest-os/Linux/Custom.cfg", "- Custom:\n"),
    ("vt/shared/cfg/guest-os/Linux/Small.cfg", "- Small:\n    no q35\n    image_name = images/small-1\n"),
    ("vt/shared/cfg/guest-os/Linux/Small/1.cfg", "- 1:\n"),
    (
        "vt/backends/qemu/cfg/tests.cfg",
        "include base.cfg\ninclude subtests.cfg\ninclude guest-os.cfg\ninclude machines.cfg\n",
    ),
    (
        "vt/test-providers.d/own.ini",
        "[provider]\nuri: file://ROOT/tp\n[generic]\nsubdir: generic\n[qemu]\nsubdir: qemu/\n",
    ),
    (
        "tp/generic/tests/cfg/boot.cfg",
        "- boot: install\n    type = boot\n    variants:\n        - once:\n        - twice:\n            type = reboot\n",
    ),
    ("tp/generic/tests/cfg/shutdown.cfg", "- shutdown:\n    type = shutdown\n"),
    ("tp/qemu/tests/cfg/uptime.cfg", "- @uptime:\n    type = uptime\n    mem = 512\n"),
    ("tp/qemu/tests/cfg/unattended_install.cfg", "- unattended_install:\n    type = unattended_install\n"),
    ("tp/qemu/cfg/multi-host-tests.cfg", "include tests.cfg\nonly uptime\n"),
];

fn tree() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in FILES {
        write(dir.path(), path, &text.replace("ROOT", dir.path().to_str().unwrap()));
    }
    dir
}

fn write(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// `vtctl` in a folder, with the providers `vt` of it.
fn vtctl(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtctl"));
    command.args(args).current_dir(dir).env("HOME", dir).env("VTMESH_LAB_ROOT", dir.join("labs"));
    command.env("VTCTL_PROVIDERS", dir.join("vt")).env("VTCTL_PROVIDER_TREES", dir.join("trees"));
    command.env("GIT_CONFIG_GLOBAL", dir.join("gitconfig")).env("GIT_CONFIG_NOSYSTEM", "1");
    command.env("GIT_SSH_COMMAND", "sleep 100;");
    command.output().unwrap()
}

#[track_caller]
fn out(dir: &Path, args: &[&str]) -> String {
    let got = vtctl(dir, args);
    assert!(got.status.success(), "{args:?}: {}", String::from_utf8_lossy(&got.stderr));
    String::from_utf8(got.stdout).unwrap()
}

#[test]
fn a_set_is_put_together_and_read_without_a_file_named() {
    let dir = tree();
    let names = out(dir.path(), &["variants", "list", "--guest-os", "Linux.Small", "--machine-type", "i440fx"]);
    let want = [
        "(subtest=own).(subtest=unattended_install)",
        "(subtest=type_specific).(subtest=own).(subtest=uptime)",
        "(subtest=own).(subtest=boot).once",
        "(subtest=own).(subtest=boot).twice",
        "(subtest=own).(subtest=shutdown)",
    ]
    .map(|test| format!("i440fx.Guest.Linux.Small.1.{test}\n"));
    assert_eq!(names, want.concat());
    out(dir.path(), &["provider", "export", "set"]);
    let subtests = fs::read_to_string(dir.path().join("set/subtests.cfg")).unwrap();
    assert!(subtests.contains("    - own.boot: install\n        provider = own\n        type = boot\n"), "{subtests}");
    let specific = "            - own.uptime:\n                virt_test_type = qemu\n                provider = own\n";
    assert!(subtests.contains(specific), "{subtests}");
}

#[test]
fn a_file_of_ones_own_includes_the_set_from_anywhere() {
    let dir = tree();
    write(dir.path(), "mine/my.cfg", "include tests.cfg\nonly boot\nonly q35\n");
    let names = out(dir.path(), &["variants", "list", "-c", "mine/my.cfg"]);
    assert!(names.lines().count() == 2 && names.contains("(subtest=boot).twice"), "{names}");
    // A name that only the set has; its includes are the set's.
    let names = out(dir.path(), &["variants", "list", "-c", "multi-host-tests.cfg", "--guest-os", "Small"]);
    assert!(names.lines().count() == 1 && names.contains("uptime"), "{names}");
    // Places are those of the files on disk, not of the set.
    let text =
        out(dir.path(), &["variants", "explain", "-c", "multi-host-tests.cfg", "--guest-os", "Small", "uptime", "mem"]);
    for place in ["vt/shared/cfg/base.cfg:2)", "tp/qemu/tests/cfg/uptime.cfg:3)"] {
        assert!(text.contains(place), "{place}: {text}");
    }
}

#[test]
fn guests_are_listed_with_their_images() {
    let dir = tree();
    let record = json!({
        "schema": "vtmesh/v1/image", "name": "small-1", "digest": "", "cmdline": "", "ssh_public_key": null, "packages": [],
        "kernel": {"name": "k", "bytes": 0, "blake3": ""}, "initrd": {"name": "i", "bytes": 0, "blake3": ""},
        "disk": {"name": "d", "bytes": 0, "blake3": ""},
    });
    let list = |args: &[&str]| {
        let args: Vec<&str> = ["guest", "list", "--images", "images"].iter().chain(args).copied().collect();
        out(dir.path(), &args)
    };
    assert_eq!(list(&[]), "GUEST          IMAGE\nLinux.Custom   -\nLinux.Small.1  missing small-1.qcow2\n");
    write(dir.path(), "images/small-1/image.json", &record.to_string());
    assert_eq!(list(&["--guest-os", "Small"]), "GUEST          IMAGE\nLinux.Small.1  small-1.qcow2\n");
    // Small does not run on q35.
    assert_eq!(list(&["--machine-type", "q35", "-o", "name"]), "Linux.Custom\n");
    let json: Value = serde_json::from_str(&list(&["--machine-type", "i440fx", "-o", "json"])).unwrap();
    assert_eq!(json["guests"][1], json!({"name": "Linux.Small.1", "image": "small-1.qcow2", "here": true}));
}

#[test]
fn providers_are_listed_with_what_they_are_for() {
    let dir = tree();
    write(
        dir.path(),
        "vt/test-providers.d/far.ini",
        "[provider]\nuri: https://far.invalid/tp.git\n[libvirt]\nsubdir: x\n",
    );
    let text = out(dir.path(), &["provider", "list"]);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1], ["far", "missing", "libvirt", "https://far.invalid/tp.git"], "{text}");
    assert_eq!(lines[2][..4], ["own", "here", "generic", "qemu"], "{text}");
}

#[test]
fn tests_are_listed_beside_the_scenarios_that_run_them() {
    let dir = tree();
    let daemon = Fake::start(dir.path(), "vtd", |request| match request {
        vt_protocol::admin::AdminRequest::ScenarioList => {
            Some(vec![Act::Say(vt_protocol::admin::AdminReply::Scenarios(fake::scenarios()))])
        }
        _ => None,
    });
    let run = |words: &[&str]| {
        let words: Vec<&str> = words.iter().chain(&["--providers", "vt"]).copied().collect();
        at(dir.path(), &daemon.socket(), &words).expect(0)
    };
    let listed = run(&["scenario", "list"]);
    let want = "\
TEST                SCENARIO  TYPE                PROVIDER
unattended_install  none      unattended_install  own
uptime              uptime    uptime              own
boot                none      boot reboot         own
shutdown            none      shutdown            own
";
    assert!(listed.out.ends_with(want), "{}", listed.out);
    assert!(listed.err.contains("4 tests of providers, 1 with a scenario here"), "{}", listed.err);
    let json = run(&["scenario", "list", "-o", "json"]).json();
    assert_eq!(json["tests"][2]["types"], json!(["boot", "reboot"]));
    let shown = run(&["scenario", "show", "own.boot"]).out;
    assert!(
        shown.contains("scenario   none; variants of other types are skipped")
            && shown.contains("tp/generic/tests/cfg/boot.cfg:1"),
        "{shown}"
    );
    // A scenario of that name is what is meant first.
    assert!(run(&["scenario", "show", "uptime"]).out.contains("vtctl run uptime -m host1"));
}

/// What is changed in the tree, what is typed, how it ends and what is said.
struct Bad {
    files: &'static [(&'static str, &'static str)],
    args: &'static [&'static str],
    exit: i32,
    says: &'static [&'static str],
}

const LIST: &[&str] = &["variants", "list"];
const INI: &str = "vt/test-providers.d/own.ini";

const BAD: &[Bad] = &[
    Bad { files: &[(INI, "uri: x\n")], args: LIST, exit: 3, says: &["own.ini:1: \"uri: x\" stands in no section"] },
    Bad {
        files: &[(INI, "[qemu]\nsubdir: qemu\n")],
        args: LIST,
        exit: 3,
        says: &["own.ini:1: there is no section [provider]"],
    },
    Bad {
        files: &[(INI, "[provider]\nuri: file:///\n[qmeu]\nsubdir: qemu\n")],
        args: LIST,
        exit: 3,
        says: &["own.ini:3: [qmeu] is no backend", "did you mean qemu?"],
    },
    Bad {
        files: &[(INI, "[provider]\nuri: file:///\n[qemu]\n")],
        args: LIST,
        exit: 3,
        says: &["own.ini:3: [qemu] has no subdir"],
    },
    Bad {
        files: &[(INI, "[provider]\nuri: file:///\n[qemu]\nsubdir: no/where\n")],
        args: LIST,
        exit: 3,
        says: &["own.ini:4: there is no folder no/where in /"],
    },
    Bad {
        files: &[(INI, "[provider]\nuri: file:///no/where\n[qemu]\nsubdir: x\n")],
        args: LIST,
        exit: 25,
        says: &["E0103", "the tests of provider own are not here", "/no/where"],
    },
    Bad {
        files: &[(INI, "[provider]\nuri: ssh://far.invalid/x\n[qemu]\nsubdir: x\n")],
        args: LIST,
        exit: 25,
        says: &["vtctl provider sync own", "trees/own"],
    },
    Bad {
        files: &[],
        args: &["variants", "list", "--backend", "qmeu"],
        exit: 3,
        says: &["\"qmeu\"", "did you mean qemu?"],
    },
    Bad { files: &[], args: &["variants", "list", "--providers", "tp"], exit: 3, says: &["tp is no providers folder"] },
    Bad { files: &[], args: &["guest", "list", "--guest-os", "BSD"], exit: 4, says: &["no guest is left", "BSD"] },
    Bad { files: &[], args: &["provider", "sync", "onw"], exit: 3, says: &["did you mean own?"] },
    Bad { files: &[], args: &["provider", "sync", "own"], exit: 3, says: &["own.ini", "there is nothing to fetch"] },
    Bad { files: &[], args: &["provider", "export", "tp"], exit: 25, says: &["tp cannot be written", "exists"] },
    Bad {
        files: &[("vt/backends/qemu/cfg/tests.cfg", "include base.cfg\ninclude tests.cfg\n")],
        args: LIST,
        exit: 3,
        says: &["vt/backends/qemu/cfg/tests.cfg:2"],
    },
    Bad {
        files: &[("tp/qemu/tests/cfg/uptime.cfg", "- uptime:\n    type = uptime\n    only\n")],
        args: LIST,
        exit: 3,
        says: &["tp/qemu/tests/cfg/uptime.cfg:3"],
    },
];

#[test]
fn every_mistake_is_one_clear_error() {
    for bad in BAD {
        let dir = tree();
        bad.files.iter().for_each(|(path, text)| write(dir.path(), path, text));
        refused(dir.path(), bad.args, bad.exit, bad.says);
    }
}

#[track_caller]
fn refused(dir: &Path, args: &[&str], exit: i32, says: &[&str]) {
    let got = vtctl(dir, args);
    let err = String::from_utf8(got.stderr).unwrap();
    assert_eq!(got.status.code(), Some(exit), "{args:?}: {err}");
    assert_eq!(err.matches("error[E").count(), 1, "{args:?}: {err}");
    for part in says {
        assert!(err.contains(part), "{args:?} does not say {part:?}:\n{err}");
    }
}

#[test]
fn what_is_too_large_or_leads_out_of_the_tree_is_refused() {
    let dir = tree();
    write(dir.path(), "tp/generic/tests/cfg/huge.cfg", &"#".repeat((4 << 20) + 1));
    refused(dir.path(), LIST, 3, &["huge.cfg: more than 4194304 bytes"]);
    fs::remove_file(dir.path().join("tp/generic/tests/cfg/huge.cfg")).unwrap();
    symlink("/etc/passwd", dir.path().join("tp/generic/tests/cfg/out.cfg")).unwrap();
    refused(dir.path(), LIST, 3, &["out.cfg: this link leads out of"]);
    write(dir.path(), INI, &"#".repeat(1 << 17));
    refused(dir.path(), LIST, 3, &["own.ini: more than 65536 bytes"]);
}

fn git(dir: &Path, args: &[&str]) {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=master"]).args(args);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").current_dir(dir);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A provider whose repository is on this machine, behind an address that git is told to rewrite.
fn tree_by_git() -> TempDir {
    let dir = tree();
    let root = dir.path().to_str().unwrap();
    write(dir.path(), "tp/.gitattributes", "*.cfg filter=evil\n");
    write(
        dir.path(),
        INI,
        "[provider]\nuri: https://far.invalid/tp.git\n[generic]\nsubdir: generic\n[qemu]\nsubdir: qemu\n",
    );
    // Whatever git could be made to run leaves a mark.
    let marks = format!("[filter \"evil\"]\n\tsmudge = touch {root}/ran; cat\n\trequired = true\n");
    let config = format!(
        "[url \"{root}/tp\"]\n\tinsteadOf = https://far.invalid/tp.git\n{marks}[init]\n\ttemplateDir = {root}/template\n"
    );
    write(dir.path(), "gitconfig", &config);
    write(dir.path(), "template/hooks/post-checkout", &format!("#!/bin/sh\ntouch {root}/ran\n"));
    let hook = dir.path().join("template/hooks/post-checkout");
    fs::set_permissions(hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let tp = dir.path().join("tp");
    git(&tp, &["init", "-q"]);
    git(&tp, &["add", "."]);
    git(&tp, &["commit", "-q", "-m", "one"]);
    dir
}

#[test]
fn a_tree_comes_by_git_and_nothing_of_it_is_run() {
    let dir = tree_by_git();
    let path = dir.path();
    let text = out(path, &["provider", "sync"]);
    assert!(text.starts_with("own is at "), "{text}");
    let names = || out(path, &["variants", "list", "--only", "boot"]);
    assert_eq!(names().lines().count(), 6, "two variants for two guests, one of them on both machines");
    // A second sync brings what is new.
    write(path, "tp/generic/tests/cfg/boot.cfg", "- boot:\n    type = boot\n");
    git(&path.join("tp"), &["commit", "-q", "-a", "-m", "two"]);
    let json: Value = serde_json::from_str(&out(path, &["provider", "sync", "own", "-o", "json"])).unwrap();
    assert_eq!(json["providers"][0]["name"], "own");
    assert_eq!(names().lines().count(), 3);
    assert!(!path.join("ran").exists(), "a hook or filter of the tree was run");
    let left: Vec<_> = fs::read_dir(path.join("trees")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the tree and the lock: {left:?}");
}

#[test]
fn files_of_tests_are_one_set_of_variants_and_mistakes_stand_where_they_are() {
    let dir = tree();
    let path = dir.path();
    write(path, "around.cfg", "mem = 256\nvariants:\n    - @Linux:\n    - Windows:\n");
    let files = ["-c", "around.cfg", "-c", "tp/qemu/tests/cfg/uptime.cfg", "-c", "tp/generic/tests/cfg/boot.cfg"];
    let list = |more: &[&str]| out(path, &[&["variants", "list"], &files[..], more].concat());
    assert_eq!(list(&["--only", "Linux"]), "uptime.Linux\nboot.once.Linux\nboot.twice.Linux\n");
    let told = out(path, &[&["variants", "explain", "uptime.Linux", "mem"], &files[..]].concat());
    assert!(told.contains("tp/qemu/tests/cfg/uptime.cfg:3") && told.contains("around.cfg:1"), "{told}");
    // Alone, too.
    assert_eq!(out(path, &["variants", "list", "-c", "tp/generic/tests/cfg/shutdown.cfg"]), "shutdown\n");
    write(path, "bad.cfg", "# a comment\n\n- bad:\n    only ((\n");
    refused(path, &["variants", "list", "-c", "bad.cfg"], 3, &["bad.cfg:4"]);
}

#[test]
fn a_sync_that_fails_or_hangs_ends_and_leaves_the_tree_that_was_there() {
    let dir = tree_by_git();
    let path = dir.path();
    out(path, &["provider", "sync"]);
    let ini = |rest: &str| {
        write(path, INI, &format!("[provider]\n{rest}\n[generic]\nsubdir: generic\n[qemu]\nsubdir: qemu\n"));
    };
    ini("uri: https://far.invalid/tp.git\nbranch: nosuch");
    refused(path, &["provider", "sync"], 25, &["could not be fetched", "git said", "nosuch"]);
    // The program for ssh only sleeps.
    ini("uri: ssh://far.invalid/tp.git");
    refused(path, &["provider", "sync", "--timeout", "1s"], 25, &["did not end in time and was killed"]);
    assert!(!out(path, &["variants", "list"]).is_empty());
}

/// The shared corpus, or nothing where it is not.
fn corpus() -> Option<PathBuf> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    if corpus.join("providers/tp-qemu").is_dir() {
        return Some(fs::canonicalize(corpus).unwrap());
    }
    eprintln!("skipped: the shared corpus is not at {}", corpus.display());
    None
}

/// The real shared configuration, and the real provider for qemu where it lies.
fn real(corpus: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let vt = corpus.join("providers/avocado-vt");
    for part in ["shared", "backends"] {
        fs::create_dir_all(dir.path().join("vt")).unwrap();
        copy(&vt.join(part), &dir.path().join("vt").join(part));
    }
    let ini = fs::read_to_string(vt.join("test-providers.d/io-github-autotest-qemu.ini")).unwrap();
    let here = format!("uri: file://{}", corpus.join("providers/tp-qemu").display());
    let ini = ini.replace("uri: https://github.com/autotest/tp-qemu.git", &here);
    write(dir.path(), "vt/test-providers.d/io-github-autotest-qemu.ini", &ini);
    // The machine that the corpus was made for.
    fs::copy(corpus.join("cartesian/_vtcfg/host.cfg"), dir.path().join("vt/backends/qemu/cfg/host.cfg")).unwrap();
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let goal = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &goal);
        } else {
            fs::copy(entry.path(), goal).unwrap();
        }
    }
}

#[test]
fn the_real_set_for_qemu_is_the_one_of_the_reference_to_the_byte() {
    let Some(corpus) = corpus() else { return };
    let dir = real(&corpus);
    out(dir.path(), &["provider", "export", "set"]);
    let reference = corpus.join("cartesian/_vtcfg");
    let mut files = 0;
    for entry in fs::read_dir(&reference).unwrap() {
        let name = entry.unwrap().file_name();
        if Path::new(&name).extension().is_some_and(|ending| ending == "cfg") {
            let (ours, theirs) =
                (fs::read(dir.path().join("set").join(&name)).unwrap(), fs::read(reference.join(&name)).unwrap());
            assert!(ours == theirs, "{name:?} differs");
            files += 1;
        }
    }
    assert_eq!(files, 11);
    // And with the filters of a case of the corpus, the names are those of the case.
    let wanted = fs::read_to_string(corpus.join("cartesian/large-jeos/expected.sha256")).unwrap();
    let wanted: Vec<&str> = wanted.lines().map(|line| line.split_once("  ").unwrap().1).collect();
    let only = ["smp2", "qcow2", "virtio_net", "virtio_blk"].map(|filter| ["--only", filter]).concat();
    let args = ["variants", "list", "--guest-os", "JeOS.27.x86_64", "--machine-type", "i440fx"];
    let names = out(dir.path(), &[&args[..], &only].concat());
    assert_eq!(names.lines().collect::<Vec<_>>(), wanted);
}

#[test]
fn the_real_guests_are_as_many_as_the_reference_lists() {
    let Some(corpus) = corpus() else { return };
    let dir = real(&corpus);
    let count = |args: &[&str]| out(dir.path(), &[&["guest", "list", "-o", "name"], args].concat()).lines().count();
    // Avocado-VT 113.0 on the same files: 190 guests, 122 of them on i440fx.
    assert_eq!(count(&[]), 190);
    assert_eq!(count(&["--machine-type", "i440fx"]), 122);
    let text = out(dir.path(), &["guest", "list", "--guest-os", "JeOS", "--images", "none"]);
    assert!(text.contains("Linux.JeOS.27.x86_64") && text.contains("missing jeos-27-x86_64.qcow2"), "{text}");
}
