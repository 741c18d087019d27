//! Evidence of an attempt that has ended is kept on two hosts: each of the two keepers copies what the other hosts of
//! the attempt have, so that one host that is lost afterwards takes no evidence with it.
//!
//! A copy is made beside its place and renamed. What may not happen here: a decision, or a wait that holds up a case.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    ids::{AttemptId, HostId},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::State;

use crate::{cluster::Cluster, evidence::files, host::Host};

/// Folder of copies within the evidence of an attempt. VMs have folders beside it, and no VM can have this name.
const FOLDER: &str = "@from";
/// One question to another host.
const ASKS: Duration = Duration::from_secs(10);
/// A host that does not answer is asked this often, with a pause between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(10);
/// Hosts that are copied from at the same time.
const AT_ONCE: usize = 4;
/// Bytes of one piece.
const PIECE: u32 = 1 << 20;
/// Most bytes that are copied of one host's evidence.
const BYTES_MAX: u64 = 256 << 20;

/// Who keeps the evidence of an attempt that has ended: its first two hosts; for one host alone, it and a holder of
/// the plan, which is another host where there is one.
pub fn keepers(state: &State, attempt: AttemptId) -> Vec<HostId> {
    let Some(record) = state.attempt(attempt) else { return Vec::new() };
    let mut keepers: Vec<HostId> = record.hosts.iter().copied().take(2).collect();
    if let [only] = keepers[..] {
        let holders = state.jobs.get(&attempt.case.job).map(|job| job.holders.as_slice()).unwrap_or_default();
        keepers.extend(holders.iter().copied().find(|holder| *holder != only));
    }
    keepers
}

/// The folder of the copy of `host`'s evidence, with a `/` at its end.
pub fn folder(host: &str) -> String {
    format!("{FOLDER}/{host}/")
}

/// What lies in `folder`, relative to it. In the empty folder: the host's own files, without copies of others'.
pub fn own(list: Vec<(String, u64)>, folder: &str) -> Vec<(String, u64)> {
    let copies = format!("{FOLDER}/");
    let within = |(path, size): (String, u64)| {
        if folder.is_empty() {
            (!path.starts_with(&copies)).then_some((path, size))
        } else {
            path.strip_prefix(folder).map(|rest| (rest.to_owned(), size))
        }
    };
    list.into_iter().filter_map(within).collect()
}

/// Copies evidence of attempts that end, until `stop`.
pub async fn run(host: Arc<Host>, stop: CancellationToken) {
    let mut watch = host.watch();
    // What ended before this daemon started is looked at once more: it may have ended while nobody copied.
    let mut seen = BTreeSet::new();
    let mut copying = JoinSet::new();
    loop {
        let state = watch.borrow_and_update().clone();
        let me = host.me();
        let new: Vec<AttemptId> = state.ended.keys().filter(|attempt| !seen.contains(*attempt)).copied().collect();
        seen.retain(|attempt| state.ended.contains_key(attempt));
        for attempt in new {
            seen.insert(attempt);
            if !keepers(&state, attempt).contains(&me) {
                continue;
            }
            let others = state.ended.get(&attempt).map(|record| record.hosts.clone()).unwrap_or_default();
            for other in others.into_iter().filter(|other| *other != me) {
                if copying.len() >= AT_ONCE {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        _ = copying.join_next() => {}
                    }
                }
                copying.spawn(copy(Arc::clone(&host), attempt, other, state.host_name(other)));
            }
        }
        while copying.try_join_next().is_some() {}
        tokio::select! {
            () = stop.cancelled() => return,
            changed = watch.changed() => if changed.is_err() { return },
        }
    }
}

async fn copy(host: Arc<Host>, attempt: AttemptId, other: HostId, name: String) {
    let place = host.data().attempts().join(attempt.to_string()).join(FOLDER).join(&name);
    if place.exists() {
        return;
    }
    for tries in 1..=TRIES {
        match copy_once(&host, attempt, other, &place).await {
            Ok(files) => return tracing::debug!(%attempt, host = name, files, "evidence was copied"),
            Err(why) if tries == TRIES => {
                tracing::info!(%attempt, host = name, why, "evidence of another host was not copied");
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn copy_once(host: &Arc<Host>, attempt: AttemptId, other: HostId, place: &Path) -> Result<usize, String> {
    let list = match host.ask(other, PeerRequest::EvidenceList(attempt), ASKS).await {
        Ok(PeerReply::EvidenceList(list)) => own(list, ""),
        Ok(_) => return Err("another kind of answer than was asked for".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let staging = host.data().copies().join(format!("{attempt}-{other}"));
    let said = |error: io::Error| error.to_string();
    fresh(&staging).map_err(said)?;
    let mut bytes_left = BYTES_MAX;
    let mut copied = 0;
    for (path, size) in list {
        let Some(goal) = files::below(&staging, &path) else { continue };
        if size > bytes_left {
            tracing::info!(%attempt, path, size, "evidence is too large to be copied");
            continue;
        }
        bytes_left -= size;
        let bytes = read(host, attempt, other, &path, size).await?;
        if let Some(parent) = goal.parent() {
            fs::create_dir_all(parent).map_err(said)?;
        }
        fs::write(&goal, bytes).map_err(said)?;
        copied += 1;
    }
    if copied > 0 {
        let parent: PathBuf = place.parent().map(Path::to_owned).unwrap_or_default();
        fs::create_dir_all(parent).and_then(|()| fs::rename(&staging, place)).map_err(said)?;
    }
    Ok(copied)
}

async fn read(host: &Host, attempt: AttemptId, other: HostId, path: &str, size: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // A file may have grown since it was listed; what it had then is enough.
    while (bytes.len() as u64) < size {
        let offset = bytes.len() as u64;
        let request = PeerRequest::EvidenceRead { attempt, path: path.to_owned(), offset, length: PIECE };
        match host.ask(other, request, ASKS).await {
            Ok(PeerReply::Bytes(piece)) if piece.is_empty() => break,
            Ok(PeerReply::Bytes(piece)) => bytes.extend_from_slice(&piece),
            Ok(_) => return Err("another kind of answer than was asked for".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(bytes)
}

fn fresh(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_own_files_and_copies_of_others_are_told_apart() {
        let own_log = || ("events.jsonl".to_owned(), 1);
        let list = || vec![own_log(), ("@from/host2/events.jsonl".to_owned(), 2), ("from/serial.log".to_owned(), 3)];
        assert_eq!(own(list(), ""), [own_log(), ("from/serial.log".to_owned(), 3)], "a VM may be called from");
        assert!(FOLDER.parse::<vt_protocol::ids::Name>().is_err(), "no VM can be called as the folder is");
        assert_eq!(own(list(), &folder("host2")), [("events.jsonl".to_owned(), 2)]);
        assert!(own(list(), &folder("host3")).is_empty());
    }
}
