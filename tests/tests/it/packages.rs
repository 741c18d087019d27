//! The packages, Debian's and RPM: what is in them, and that it is what the programs and the documents speak of.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use vt_tests::{program, project_root};

/// What a command says; it succeeds.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// All packages, each unpacked into `folder/NAME`.
fn unpacked(folder: &Path) -> [PathBuf; 3] {
    let programs = program("vtd").parent().unwrap().to_owned();
    let made = said(
        Command::new(project_root().join("packaging/deb/build")).args([&programs, folder]).args(["9.8.7", "none"]),
    );
    let files: Vec<&str> = made.lines().collect();
    assert_eq!(files.len(), 3, "{made}");
    ["vtctl", "vtd", "vt-libvirt"].map(|name| {
        let file = files.iter().find(|file| file.contains(&format!("/{name}_9.8.7_"))).unwrap();
        let field = |field| said(Command::new("dpkg-deb").args(["--field", file, field]));
        assert_eq!(field("Version"), "9.8.7");
        // A host without libvirt has the daemon all the same.
        assert_eq!(field("Depends").contains("libvirt0 (>= "), name == "vt-libvirt", "{}", field("Depends"));
        let root = folder.join(name);
        said(Command::new("dpkg-deb").arg("--extract").arg(file).arg(&root));
        root
    })
}

#[test]
fn packages_hold_programs_that_run_and_what_they_need_on_a_host() {
    let folder = tempfile::tempdir().unwrap();
    let [vtctl, vtd, libvirt] = unpacked(folder.path());
    let usage = Command::new(libvirt.join("usr/bin/vt-libvirt")).output().unwrap();
    assert!(usage.status.code() == Some(2) && String::from_utf8_lossy(&usage.stderr).contains("vt-libvirt URI"));
    assert!(said(Command::new(vtctl.join("usr/bin/vtctl")).arg("--version")).starts_with("vtctl "));
    for file in [
        "usr/lib/vtmesh/vt-probe",
        "usr/share/bash-completion/completions/vtctl",
        "usr/share/man/man1/vtctl.1.gz",
        "usr/share/man/man1/vtctl-cluster-token-create.1.gz",
    ] {
        assert!(vtctl.join(file).is_file(), "vtctl has no {file}");
    }

    let default = vtd.join("usr/share/doc/vtd/vtd.toml");
    said(Command::new(vtd.join("usr/bin/vtd")).args(["settings", "--check"]).arg(default));
    let unit = fs::read_to_string(vtd.join("usr/lib/systemd/system/vtd.service")).unwrap();
    let started = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/")).unwrap();
    assert!(vtd.join(started).is_file(), "the unit starts /{started}, which is not in the package");
    let group = unit.lines().find_map(|line| line.strip_prefix("Group=")).unwrap();
    let groups = fs::read_to_string(vtd.join("usr/lib/sysusers.d/vtmesh.conf")).unwrap();
    assert!(groups.contains(&format!("g {group} ")), "nobody makes the group {group}");
    // What would end VMs with the daemon, or take their devices away.
    assert!(unit.contains("\nKillMode=process\n"), "{unit}");
    for closed in ["DevicePolicy=", "DeviceAllow=", "PrivateDevices=", "ProtectClock=", "ProtectControlGroups="] {
        assert!(!unit.lines().any(|line| line.starts_with(closed)), "{closed}");
    }

    for file in ["usr/lib/firewalld/services/vtmesh.xml", "usr/share/vtmesh/nftables.conf"] {
        let text = fs::read_to_string(vtd.join(file)).unwrap();
        for ports in ["7465", "49152-49215"] {
            assert!(text.contains(ports), "{file} does not open {ports}");
        }
    }
}

#[test]
fn rpm_packages_hold_the_same_files_and_leave_a_daemon_with_bad_settings_alone() {
    let folder = tempfile::tempdir().unwrap();
    let programs = program("vtd").parent().unwrap().to_owned();
    let build = project_root().join("packaging/rpm/build");
    let made = said(Command::new(build).args([&programs, folder.path()]).args(["9.8.7", "w1.gzdio"]));
    let files: Vec<&str> = made.lines().collect();
    let [vtctl, vtd, libvirt] = files[..] else { panic!("{made}") };
    let list = |file: &str| said(Command::new("rpm").args(["-qpl", file]));
    for file in ["/usr/bin/vtctl", "/usr/lib/vtmesh/vt-probe", "/usr/share/zsh/site-functions/_vtctl"] {
        assert!(list(vtctl).lines().any(|line| line == file), "vtctl has no {file}");
    }
    for file in ["/usr/bin/vtd", "/usr/lib/systemd/system/vtd.service", "/usr/lib/firewalld/services/vtmesh.xml"] {
        assert!(list(vtd).lines().any(|line| line == file), "vtd has no {file}");
    }
    let needs = said(Command::new("rpm").args(["-qp", "--requires", vtd]));
    assert!(needs.contains("vtctl >= 9.8.7") && needs.contains("libc.so.6(GLIBC_"), "{needs}");
    let of_libvirt = said(Command::new("rpm").args(["-qp", "--requires", libvirt]));
    assert!(of_libvirt.contains("libvirt.so.0") && !needs.contains("libvirt.so.0"), "{of_libvirt}");
    let scripts = said(Command::new("rpm").args(["-qp", "--scripts", vtd]));
    let (checked, restarted) = (scripts.find("if vtd settings --check"), scripts.find("try-restart vtd.service"));
    assert!(checked.is_some_and(|checked| restarted.is_some_and(|restarted| checked < restarted)), "{scripts}");
    let unpack = format!("rpm2cpio {vtd} | (cd {} && cpio -idm --quiet)", folder.path().display());
    said(Command::new("sh").args(["-c", &unpack]));
    assert!(said(Command::new(folder.path().join("usr/bin/vtd")).arg("--version")).starts_with("vtd "));
}

#[test]
fn a_drop_in_with_a_mistake_is_found_by_the_check_that_an_upgrade_makes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vtd.toml");
    fs::create_dir(folder.path().join("vtd.toml.d")).unwrap();
    fs::write(&file, "[host]\nkind = \"vm\"\n").unwrap();
    let check =
        || Command::new(program("vtd")).arg("--config").arg(&file).args(["settings", "--check"]).output().unwrap();
    assert!(check().status.success());
    fs::write(folder.path().join("vtd.toml.d/10-a.toml"), "[host]\nknid = \"vm\"\n").unwrap();
    let refused = check();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains("10-a.toml:2:1") && said.contains("did you mean kind?"), "{said}");
}
