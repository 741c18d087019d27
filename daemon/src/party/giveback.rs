//! Giving back what a party made: VMs, disks, control group; and the proof that nothing is left.

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc, time::Duration};

use rustix::process::{Signal, pidfd_send_signal};
use vt_protocol::ids::{AttemptId, Name};
use vt_sync::state::Phase;

use super::{attempt::LocalAttempt, places::Places};
use crate::qemu::{
    VmProcess,
    process::{Process, ProcessId, boot_id, open_pidfd, processes_with, stat},
    record::VmRecord,
    remains,
};

/// How long the kernel may take to let a group go.
const PATIENCE: Duration = Duration::from_secs(10);

/// The control group of a party. Hosts of a lab share the hierarchy, so the name tells hosts apart.
pub fn cgroup_name(places: &Places, attempt: AttemptId) -> String {
    let host = blake3::hash(places.run.as_os_str().as_encoded_bytes()).to_hex();
    format!("party-{}-{attempt}", &host[..8])
}

/// SIGTERM to exactly that process.
pub(super) fn terminate(id: &ProcessId) {
    let Ok(pidfd) = open_pidfd(id.pid) else { return };
    // Read after the pidfd was opened: if it is the same process now, the pidfd is of that process.
    if stat(id.pid).is_some_and(|stat| stat.start_ticks == id.start_ticks)
        && let Err(error) = pidfd_send_signal(&pidfd, Signal::TERM)
    {
        tracing::debug!(pid = id.pid, %error, "SIGTERM was not sent");
    }
}

/// Kills processes of this very party that are on no record.
pub(super) async fn end_strays(attempt: &LocalAttempt) {
    let socket = attempt.places.socket().display().to_string();
    let id = attempt.id.to_string();
    for (pid, words) in processes_with(&socket) {
        let is_party = words.windows(2).any(|pair| pair[0] == "--attempt" && pair[1] == id);
        if let (true, Some(stat)) = (is_party, stat(pid)) {
            let stray = ProcessId { pid, start_ticks: stat.start_ticks, boot_id: boot_id() };
            if let Ok(Some(process)) = Process::attach(&stray) {
                attempt.evidence.events.warn(format!("a party that was on no record is ended (process {pid})"));
                let _ = process.kill_and_wait(PATIENCE).await;
            }
        }
    }
    remove_cgroup(attempt).await;
}

/// Kills what is left in the party's control group and removes it.
pub(super) async fn remove_cgroup(attempt: &LocalAttempt) {
    let Some(groups) = &attempt.places.cgroups else { return };
    let group = groups.get(&cgroup_name(&attempt.places, attempt.id));
    let removed = tokio::task::spawn_blocking(move || group.remove(PATIENCE)).await;
    if let Ok(Err(error)) = removed {
        attempt.evidence.events.warn(format!("the party's control group is left behind: {error}"));
    }
}

/// Finds the QEMUs of an attempt again after a restart of the daemon: running VMs, and migrations that come in.
pub(super) async fn take_up(attempt: &Arc<LocalAttempt>) {
    for dir in run_dirs(&attempt.places, attempt.id) {
        let lost = |error| attempt.evidence.events.warn(format!("{} was not found again: {error}", dir.display()));
        let found = match VmProcess::find(&dir) {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(error) => {
                lost(error);
                continue;
            }
        };
        let state = attempt.cluster.state();
        let record = state.vms.get(found.id());
        let migration = record.and_then(|record| record.migration.clone());
        let mine = record.is_some_and(|record| record.owner == attempt.me());
        attempt.evidence.events.say(format!("found {} again (QEMU process {})", found.id(), found.process().pid()));
        let incoming = migration.as_ref().filter(|migration| found.record().incoming && migration.to == attempt.me());
        if let Some(moved) = incoming.filter(|migration| matches!(migration.phase, Phase::Moved { .. })) {
            attempt.resume_moved(moved, found);
            continue;
        }
        let vm = match found.connect().await {
            Ok(Some(vm)) => vm,
            Ok(None) => continue,
            Err(error) => {
                lost(error);
                continue;
            }
        };
        match migration {
            Some(migration) if vm.record().incoming && migration.to == attempt.me() => {
                let disk = attempt.disk_found(vm.id());
                let vm = super::local_vm::LocalVm::new(vm, disk, record.map(|record| record.epoch).unwrap_or_default());
                attempt.watch_disk(&vm);
                attempt.guard_again(vm.clone());
                attempt.resume_incoming(&migration, vm).await;
            }
            // A source that has not let go yet is asked for again by its party.
            Some(migration) if migration.from == attempt.me() => attempt.guard_again(attempt.adopt(vm)),
            _ if mine => attempt.guard_again(attempt.adopt(vm)),
            _ => {
                attempt.evidence.events.warn(format!("{} is not owned by this host: it is ended", vm.id()));
                vm.kill().await;
            }
        }
    }
    let state = attempt.cluster.state();
    let coming = state.vms.values().filter_map(|vm| vm.migration.as_ref()).filter(|migration| {
        let prepared = matches!(migration.phase, Phase::Prepared { .. });
        migration.id.vm.attempt == attempt.id && migration.to == attempt.me() && prepared && !migration.dest_loaded
    });
    for lost in coming.filter(|migration| attempt.incoming(&migration.id).is_none()) {
        attempt.give_up_incoming(lost.id.clone());
    }
}

/// Ends every VM of the attempt on this host and removes what belongs to it. Says what is left.
pub(super) async fn give_back(attempt: &Arc<LocalAttempt>) -> Vec<String> {
    let mut left = attempt.end_sessions().await;
    let incoming = attempt.all_incoming().into_iter().filter_map(|incoming| incoming.take_vm());
    for vm in attempt.vms().into_iter().chain(incoming) {
        let ending = vm.qemu.clone().kill().await;
        attempt.take_vm(&vm.id.name);
        left.extend(ending.left);
    }
    let (places, id) = (attempt.places.clone(), attempt.id);
    // What nobody remembers, for example a start that was given up half way.
    let cleared = tokio::task::spawn_blocking(move || {
        run_dirs(&places, id).iter().flat_map(|dir| remains::clear(dir)).collect::<Vec<_>>()
    });
    left.extend(cleared.await.unwrap_or_default());
    for disk in disks(attempt) {
        if let Err(error) = tokio::fs::remove_file(&disk).await
            && error.kind() != io::ErrorKind::NotFound
        {
            left.push(format!("disk {}: {error}", disk.display()));
        }
    }
    left.extend(attempt.give_back_pool().await);
    left.extend(attempt.open_firewall().await);
    remove_cgroup(attempt).await;
    let after = inventory(&attempt.places, attempt.id);
    attempt.evidence.json("inventory-after.json", &after);
    let before: BTreeSet<String> = attempt.record().before.into_iter().collect();
    left.extend(after.into_iter().filter(|thing| !before.contains(thing)));
    left
}

/// Overlay disks that this host answers for: of VMs it owns, and of those nobody owns any more; where no other host sees
/// them, all.
fn disks(attempt: &LocalAttempt) -> Vec<PathBuf> {
    let state = attempt.cluster.state();
    let prefix = format!("{}.", attempt.id);
    let entries = std::fs::read_dir(&attempt.places.disks).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for entry in entries {
        let Ok(file) = entry.file_name().into_string() else { continue };
        // `VM.qcow2`, and `VM+DRIVE.FORMAT` for its other disks.
        let vm = |rest: &str| {
            rest.split_once('+').map(|(vm, _)| vm).or_else(|| rest.strip_suffix(".qcow2"))?.parse::<Name>().ok()
        };
        let Some(name) = file.strip_prefix(&prefix).and_then(vm) else { continue };
        let others = attempt.places.shared
            && state.vms.get(&attempt.vm_id(&name)).is_some_and(|record| record.owner != attempt.me());
        if !others {
            found.push(entry.path());
        }
    }
    found
}

fn run_dirs(places: &Places, attempt: AttemptId) -> Vec<PathBuf> {
    let of_attempt = |dir: &PathBuf| match VmRecord::read(dir) {
        Ok(Some(record)) => record.spec.id.attempt == attempt,
        // A host serves one attempt at a time: what has no record is of this one.
        Ok(None) | Err(_) => true,
    };
    remains::run_dirs(&places.vms()).into_iter().filter(of_attempt).collect()
}

/// What exists of VMs and parties on this host, one thing a line, sorted.
pub fn inventory(places: &Places, attempt: AttemptId) -> Vec<String> {
    let mut all = remains::inventory(&places.vms(), places.cgroups.as_ref());
    let sessions = processes_with(&format!("{}/", places.sessions(attempt).display()));
    all.extend(sessions.into_iter().map(|(pid, _)| format!("session process {pid}")));
    if let Some(groups) = &places.cgroups {
        let own = cgroup_name(places, attempt);
        all.extend(groups.names().into_iter().filter(|name| *name == own).map(|name| format!("cgroup {name}")));
    }
    if let Ok(taps) = crate::qemu::tap::Tap::all() {
        all.extend(taps.into_iter().map(|tap| format!("tap {tap}")));
    }
    all.into_iter().collect()
}
