//! House rules as tests.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use vt_tests::project_root;

/// The arrows of the design; nothing else of ours may be depended on.
const ARROWS: &[(&str, &[&str])] = &[
    ("vt-protocol", &[]),
    ("vt-cfg", &[]),
    ("vt-sync", &["vt-protocol"]),
    ("vt-daemon", &["vt-protocol", "vt-sync"]),
    ("vt-libvirt", &["vt-protocol"]),
    ("vt-ctl", &["vt-cfg", "vt-protocol"]),
];

fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in ["protocol", "sync", "cfg", "daemon", "ctl", "tests"] {
        collect(&project_root().join(folder), &mut files);
    }
    assert!(files.len() > 20, "only {} files found", files.len());
    files
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// The members of the workspace, as cargo tells of them.
fn members() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(project_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(metadata["packages"].take()).unwrap()
}

/// What a member needs outside its tests and its build script.
fn needs(member: &serde_json::Value) -> BTreeSet<&str> {
    let dependencies = member["dependencies"].as_array().unwrap().iter();
    let normal = dependencies.filter(|dependency| dependency["kind"].is_null() && dependency["optional"] == false);
    normal.filter_map(|dependency| dependency["name"].as_str()).collect()
}

#[test]
fn crates_depend_on_each_other_as_the_design_says_and_on_nothing_else_of_ours() {
    let members = members();
    for (name, allowed) in ARROWS {
        let member = members.iter().find(|member| member["name"] == *name).expect("every crate is a member");
        let found: BTreeSet<&str> = needs(member).into_iter().filter(|name| name.starts_with("vt-")).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        assert!(found.is_subset(&allowed), "{name} depends on {found:?}; the design allows {allowed:?}");
    }
}

/// They are a workspace of their own and take their lock as it is: what a crate came to need has to be in it as well.
#[test]
fn the_lock_of_the_fuzz_targets_has_what_our_crates_need() {
    let lock = fs::read_to_string(project_root().join("fuzz/Cargo.lock")).unwrap();
    for member in members() {
        let name = member["name"].as_str().unwrap();
        let Some(locked) = lock.split("[[package]]").find(|part| part.contains(&format!("\nname = \"{name}\"\n")))
        else {
            continue;
        };
        for needed in needs(&member) {
            let found = locked.contains(&format!(" \"{needed}\"")) || locked.contains(&format!(" \"{needed} "));
            assert!(found, "{name} needs {needed}: cargo update --workspace --manifest-path fuzz/Cargo.toml");
        }
    }
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for folder in ["protocol", "sync", "cfg", "daemon", "daemon/libvirt", "ctl", "tests"] {
        let manifest = fs::read_to_string(project_root().join(folder).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{folder}/Cargo.toml");
    }
}

#[test]
fn a_file_is_one_noun_and_so_not_long() {
    let long: Vec<String> = rust_files()
        .iter()
        .filter_map(|path| Some((path, fs::read_to_string(path).ok()?.lines().count())))
        .filter(|(_, lines)| *lines > 800)
        .map(|(path, lines)| format!("{} ({lines})", path.display()))
        .collect();
    assert!(long.is_empty(), "past 800 lines, which second noun moved in? {long:?}");
}

#[test]
fn no_file_or_folder_has_a_name_that_says_nothing() {
    for path in rust_files() {
        let relative = path.strip_prefix(project_root()).unwrap().to_owned();
        for part in relative.components() {
            let name = part.as_os_str().to_string_lossy();
            let stem = name.strip_suffix(".rs").unwrap_or(&name);
            assert!(
                !["utils", "util", "common", "helper", "helpers", "manager", "misc"].contains(&stem),
                "{relative:?}"
            );
        }
    }
}

#[test]
fn the_pure_crates_have_no_clock_no_socket_and_no_file() {
    let banned = ["SystemTime", "Instant::now", "std::net::Tcp", "tokio::net", "std::fs", "rand::"];
    for path in rust_files() {
        let relative = path.strip_prefix(project_root()).unwrap().to_owned();
        if !relative.starts_with("sync/src/state") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for word in banned {
            assert!(!text.contains(word), "{relative:?} uses {word}: the state is a function of the log");
        }
    }
}
