//! What exists on this host because of vtmesh, one line a thing: two inventories are equal when nothing came or went.

use std::{collections::BTreeSet, fs, path::Path};

use super::blocking;
use crate::{
    host::Host,
    party::Places,
    qemu::{remains, tap::Tap},
};

impl Host {
    pub(super) async fn inventory(&self) -> Vec<String> {
        let places = self.places().clone();
        blocking(move || list(&places)).await.into_iter().collect()
    }
}

fn list(places: &Places) -> BTreeSet<String> {
    let mut all = remains::inventory(&places.vms(), places.cgroups.as_ref());
    if let Some(groups) = &places.cgroups {
        all.extend(groups.names().into_iter().map(|name| format!("cgroup {name}")));
    }
    all.extend(Tap::all().into_iter().flatten().map(|tap| format!("tap {tap}")));
    all.extend(files("disk", &places.disks));
    all.extend(files("party", &places.records()));
    all
}

fn files<'a>(what: &'a str, directory: &Path) -> impl Iterator<Item = String> + 'a {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(move |entry| format!("{what} {}", entry.path().display()))
}
