//! What exists of VMs on this host, found without anybody's memory of it, and how it is removed.
//!
//! A run folder leads to everything: its record, its control group (whose name follows from the folder), every process
//! that has the folder in its words, its taps, its files. So what a killed daemon left is removed by the next one.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use vt_protocol::vm::NICS_MAX;

use super::{
    command_line::QMP_SOCKET,
    process::{ProcessId, boot_id, open_pidfd, processes_with, stat},
    record::VmRecord,
    tap::Tap,
};
use crate::cgroup::{Cgroup, Cgroups};

const PATIENCE: Duration = Duration::from_secs(20);

/// The name of the control group of the VM in `run_dir`.
pub fn cgroup_name(run_dir: &Path) -> String {
    format!("vm-{}", &blake3::hash(run_dir.as_os_str().as_encoded_bytes()).to_hex()[..16])
}

/// The name of the control group of the guard of that VM.
pub fn guard_cgroup_name(run_dir: &Path) -> String {
    cgroup_name(run_dir).replacen("vm-", "guard-", 1)
}

/// The folder, below `root`, of a VM: its id where that is short enough for the sockets in it, else a digest.
pub fn run_dir_for(root: &Path, vm: &vt_protocol::ids::VmId) -> PathBuf {
    let name = vm.to_string();
    if root.as_os_str().len() + name.len() <= 80 {
        return root.join(name);
    }
    root.join(&blake3::hash(name.as_bytes()).to_hex()[..12])
}

/// The QEMU that has its monitor in `run_dir`, if it lives.
pub fn qemu_of(run_dir: &Path) -> Option<ProcessId> {
    let socket = format!("path={},", run_dir.join(QMP_SOCKET).display());
    let (pid, _) = processes_with(&socket).into_iter().next()?;
    Some(ProcessId { pid, start_ticks: stat(pid)?.start_ticks, boot_id: boot_id() })
}

/// Run folders below `root`, sorted.
pub fn run_dirs(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> =
        entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect();
    dirs.sort();
    dirs
}

/// Everything of VMs below `root`, one thing a line: processes, groups, taps of records, files. Two inventories are
/// equal when nothing came and nothing went.
pub fn inventory(root: &Path, cgroups: Option<&Cgroups>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (pid, words) in processes_with(&format!("{}/", root.display())) {
        let program = words.first().map(String::as_str).unwrap_or_default();
        all.insert(format!("process {pid} {program}"));
    }
    for dir in run_dirs(root) {
        all.insert(format!("folder {}", dir.display()));
        for file in fs::read_dir(&dir).into_iter().flatten().flatten() {
            all.insert(format!("file {}", file.path().display()));
        }
        for name in [cgroup_name(&dir), guard_cgroup_name(&dir)] {
            if cgroups.is_some_and(|groups| groups.get(&name).exists()) {
                all.insert(format!("cgroup {name}"));
            }
        }
        if let Ok(Some(record)) = VmRecord::read(&dir) {
            all.extend(record.taps.iter().filter(|tap| Tap::exists(tap)).map(|tap| format!("tap {tap}")));
        }
    }
    all
}

/// Ends and removes everything that belongs to a run folder, and says what could not be removed. Blocks for up to
/// 20 s where the kernel does not let a process go; usually for milliseconds.
pub fn clear(run_dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let record = VmRecord::read(run_dir).ok().flatten();
    let deadline = Instant::now() + PATIENCE;
    // The guard, whose words have the folder too, would end by itself; it has nothing more to guard.
    let mut pids: Vec<u32> =
        processes_with(&format!("{}/", run_dir.display())).into_iter().map(|(pid, _)| pid).collect();
    pids.extend(guards_of(run_dir));
    let (name, guard_name) = (cgroup_name(run_dir), guard_cgroup_name(run_dir));
    // The guard's group stands beside the VM's, in the folder of the daemon that made both. Where the record cannot be
    // read, the processes still say where that is.
    let mut folder = record.as_ref().and_then(|record| record.cgroup.as_ref()?.parent().map(Path::to_owned));
    for pid in pids {
        if folder.is_none()
            && let Some(group) = Cgroup::of_process(pid)
            && [&name, &guard_name].into_iter().any(|name| group.path().ends_with(name))
        {
            folder = group.path().parent().map(Path::to_owned);
        }
        if let Err(error) = kill(pid, deadline) {
            left.push(format!("process {pid}: {error}"));
        }
    }
    let groups = folder.map(Cgroups::at);
    for group in groups.iter().flat_map(|groups| [groups.get(&name), groups.get(&guard_name)]) {
        if let Err(error) = group.remove(deadline.saturating_duration_since(Instant::now())) {
            left.push(format!("cgroup {}: {error}", group.path().display()));
        }
    }
    let recorded = record.iter().flat_map(|record| record.taps.iter().cloned());
    // Where no record lists them they are found by name.
    let named = (0..NICS_MAX).map(|number| Tap::name_for(run_dir, number));
    let taps: BTreeSet<String> = recorded.chain(named).collect();
    for tap in &taps {
        if Tap::exists(tap)
            && let Err(error) = Tap::delete(tap)
        {
            left.push(format!("tap {tap}: {error}"));
        }
    }
    match fs::remove_dir_all(run_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            left.push(format!("folder {}: {error}", run_dir.display()));
        }
        _ => {}
    }
    left
}

/// Guards that were started for exactly this folder.
fn guards_of(run_dir: &Path) -> Vec<u32> {
    let dir = run_dir.to_string_lossy();
    let found = processes_with(&dir).into_iter();
    found.filter(|(_, words)| words.iter().any(|word| *word == dir)).map(|(pid, _)| pid).collect()
}

/// SIGKILL, and waits for the end.
fn kill(pid: u32, deadline: Instant) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let pidfd = match open_pidfd(pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(()),
        Err(error) => return Err(error),
    };
    match rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let patience = deadline.saturating_duration_since(Instant::now());
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], patience)? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "does not end after SIGKILL")),
        _ => Ok(()),
    }
}
