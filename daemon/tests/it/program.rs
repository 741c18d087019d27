//! The program by itself: its words, its settings, its locks.

use std::{fs, path::PathBuf, process::Command};

use vt_protocol::error::{ErrorCode, Exit};

use crate::{
    cluster::tokens,
    daemons::{Daemons, VTD},
};

fn vtd(words: &[&str]) -> (i32, String, String) {
    let out = Command::new(VTD).args(words).env_remove("RUST_LOG").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn settings_are_printed_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vtd.toml");
    let path = file.to_str().unwrap();
    let (code, default, _) = vtd(&["settings", "--default"]);
    assert_eq!(code, 0);
    fs::write(&file, &default).unwrap();
    assert_eq!(vtd(&["settings", "--check", path]), (0, String::new(), String::new()));

    for (text, parts) in [
        ("[host]\nlisen = \"0.0.0.0:1\"\n", ["vtd.toml:2:1", "did you mean listen?"]),
        ("[session]\nkill = 500\n", ["vtd.toml:2:8", "not longer than pause"]),
        ("[host\n", ["vtd.toml:1:", "error[E0101]"]),
    ] {
        fs::write(&file, text).unwrap();
        for words in [&["settings", "--check", path][..], &["--config", path], &["--config", path, "run"]] {
            let (code, _, said) = vtd(words);
            assert_eq!(code, i32::from(Exit::Config.code()), "{text}: {said}");
            for part in parts {
                assert!(said.contains(part), "{part} in {said}");
            }
        }
    }
    let (code, _, said) = vtd(&["--config", "/nowhere/vtd.toml"]);
    assert_eq!(code, i32::from(Exit::Config.code()));
    assert!(said.contains("/nowhere/vtd.toml cannot be read"), "{said}");
}

#[tokio::test]
async fn a_second_daemon_on_one_data_directory_is_refused() {
    let mut daemons = Daemons::new(1);
    daemons.all[0].start().await;
    let settings = daemons.all[0].settings();
    let (code, _, said) = vtd(&["--config", settings.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("another vtd uses this data directory"), "{said}");
    assert!(daemons.all[0].ask(&vt_protocol::admin::AdminRequest::Hello).await.is_ok(), "the first one lives on");
}

/// A small file system of its own, taken away again.
struct Small(PathBuf);

impl Small {
    fn mount(place: PathBuf, options: &str) -> Self {
        fs::create_dir(&place).unwrap();
        let small = Self(place);
        small.run("mount", &["-t", "tmpfs", "-o", options, "vtmesh-test"]);
        small
    }

    fn remount(&self, options: &str) {
        self.run("mount", &["-o", &format!("remount,{options}")]);
    }

    fn run(&self, program: &str, words: &[&str]) {
        assert!(Command::new(program).args(words).arg(&self.0).status().unwrap().success(), "{program} {words:?}");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Whatever became of the test, it does not stay mounted.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_read_only_disk_is_said_clearly_and_the_host_comes_back() {
    let mut daemons = Daemons::new(1);
    let daemon = &mut daemons.all[0];
    let disk = Small::mount(daemon.dir.join("data"), "size=64m");
    daemon.start().await;
    daemon.init().await.unwrap();
    let token = daemon.token().await;
    daemon.kill();
    disk.remount("ro");
    let (code, _, said) = vtd(&["--config", daemon.settings().to_str().unwrap()]);
    assert_eq!(code, i32::from(Exit::Internal.code()), "{said}");
    for part in ["E0405", "Read-only file system", "findmnt"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    disk.remount("rw");
    daemon.start().await;
    daemon.wait("itself again", |status| status.quorum).await;
    assert!(tokens(daemon).await.contains(&token.id), "what was acknowledged is there");
    daemon.kill();
}

#[tokio::test]
async fn a_full_disk_is_said_clearly_and_the_cluster_is_made_when_there_is_room() {
    let mut daemons = Daemons::new(1);
    let daemon = &mut daemons.all[0];
    let disk = Small::mount(daemon.dir.join("data"), "size=1m");
    daemon.start().await;
    let report = daemon.init().await.unwrap_err();
    assert_eq!(report.code, ErrorCode::StorageFailed, "{report:?}");
    assert!(format!("{:?}", report.evidence).contains("No space left"), "{report:?}");
    assert!(report.help.iter().any(|line| line.contains("df -h")), "{report:?}");
    disk.remount("size=64m");
    daemon.init().await.unwrap();
    daemon.wait("a cluster", |status| status.quorum).await;
    daemon.kill();
}

#[tokio::test]
async fn a_daemon_whose_log_is_lost_does_not_come_back_as_it_was() {
    let mut daemons = Daemons::new(1);
    let daemon = &mut daemons.all[0];
    daemon.start().await;
    daemon.init().await.unwrap();
    daemon.kill();
    fs::remove_dir_all(daemon.dir.join("data/raft")).unwrap();
    let settings = daemon.settings();
    let (code, _, said) = vtd(&["--config", settings.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("E0902") && said.contains("join afresh"), "{said}");
}
