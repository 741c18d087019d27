//! Everything that exists of a lab, found by its name alone: the record is not needed, it may be gone or damaged.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use vt_protocol::{error::Report, ids::Name};

use super::{
    network,
    record::{self, Paths, trouble},
};

/// A thing that a lab made.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Namespace(String),
    Directory(PathBuf),
}

/// Labs of which only a part is there, and which part.
pub(super) fn names() -> Vec<(Name, String)> {
    // Without ip there are no labs.
    let namespaces = network::namespaces().unwrap_or_default();
    let mut found = BTreeMap::new();
    for namespace in &namespaces {
        let Some(name) = lab_of(namespace) else { continue };
        match record::read(&Paths::of(&name)) {
            Ok(Some(lab)) if lab.ready => {}
            Ok(Some(_)) => _ = found.insert(name, "it was not made to its end".to_owned()),
            // What runs there may be of a lab whose record is somewhere else.
            Ok(None) if network::processes(namespace).is_empty() => {
                found.insert(name, format!("namespace {namespace}, empty, and no record of it"));
            }
            Ok(None) => {}
            Err(report) => _ = found.insert(name, report.title),
        }
    }
    for name in record::list().unwrap_or_default() {
        if let Ok(Some(lab)) = record::read(&Paths::of(&name))
            && lab.ready
            && !namespaces.contains(&lab.switch)
        {
            found.insert(name, "its namespaces are gone: the machine was started anew".to_owned());
        }
    }
    found.into_iter().collect()
}

/// The lab of a namespace: `vt-LAB-sw`, `vt-LAB-host1`.
fn lab_of(namespace: &str) -> Option<Name> {
    let (lab, part) = namespace.strip_prefix("vt-")?.rsplit_once('-')?;
    let host = |part: &str| part.strip_prefix("host").is_some_and(|number| number.parse::<u32>().is_ok());
    (part == "sw" || host(part)).then(|| lab.parse().ok())?
}

fn things(name: &Name) -> Result<Vec<Thing>, Report> {
    let mut found = Vec::new();
    for namespace in network::namespaces()? {
        if lab_of(&namespace).as_ref() == Some(name) {
            found.push(Thing::Namespace(namespace));
        }
    }
    let paths = Paths::of(name);
    for directory in [paths.data, paths.run] {
        if directory.exists() {
            found.push(Thing::Directory(directory));
        }
    }
    for cgroup in cgroups(name) {
        found.push(Thing::Directory(cgroup));
    }
    Ok(found)
}

/// Control groups that the daemons of a lab made, deepest first: they are directories named by the lab.
fn cgroups(name: &Name) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let top = Path::new(root).join("vtmesh").join(format!("lab-{name}"));
        if top.is_dir() {
            collect(&top, &mut found, 0);
        }
    }
    found
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>, depth: u32) {
    if depth < 8 {
        for entry in fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                collect(&entry.path(), found, depth + 1);
            }
        }
    }
    found.push(directory.to_owned());
}

/// What exists of a lab, a line a thing.
pub(super) fn find(name: &Name) -> Result<Vec<String>, Report> {
    let lines = things(name)?.into_iter().map(|thing| match thing {
        Thing::Namespace(namespace) => {
            format!("namespace {namespace} with {} processes", network::processes(&namespace).len())
        }
        Thing::Directory(path) => format!("directory {}", path.display()),
    });
    Ok(lines.collect())
}

/// Removes all of it. Returns what was removed.
pub(super) fn remove(name: &Name, say: &mut (dyn FnMut(String) + Send)) -> Result<Vec<String>, Report> {
    let mut removed = Vec::new();
    let found = things(name)?;
    // All daemons first, so that none sees another die and begins to act on it.
    for thing in &found {
        if let Thing::Namespace(namespace) = thing {
            let killed = network::kill_all(namespace)?;
            if killed > 0 {
                removed.push(format!("{killed} processes in {namespace}"));
            }
        }
    }
    for thing in found {
        match thing {
            Thing::Namespace(namespace) => {
                network::remove(&namespace)?;
                removed.push(format!("namespace {namespace}"));
            }
            Thing::Directory(path) => {
                let result =
                    if path.starts_with("/sys/fs/cgroup") { fs::remove_dir(&path) } else { fs::remove_dir_all(&path) };
                match result {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(trouble("remove", &path, &error));
                    }
                    _ => removed.push(format!("directory {}", path.display())),
                }
            }
        }
        if let Some(line) = removed.last() {
            say(line.clone());
        }
    }
    Ok(removed)
}
