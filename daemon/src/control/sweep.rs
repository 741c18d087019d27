//! Removes what nobody wants any more: plans and evidence of jobs that are no longer on record, and of those that have ended
//! what is older, or more, than the settings let stay.
//!
//! Young things are spared: a plan may belong to a job that is about to be proposed, and a host that just joined does
//! not know yet what is on record.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use vt_protocol::ids::AttemptId;
use vt_sync::{State, state::JobState};

use crate::{cluster::Cluster, evidence::files, host::Host, settings::EvidenceSettings};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(600);
/// What nobody knows and is younger is spared.
const AGE: Duration = Duration::from_secs(24 * 3600);
/// So is what a job has left that ended a moment ago: somebody may be about to look at it.
const FRESH: Duration = Duration::from_secs(3600);

/// Sweeps now and then, until `stop`.
pub async fn run(host: Arc<Host>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(EVERY) => {}
        }
        let state = host.state();
        if state.cluster.is_none() {
            continue;
        }
        let (blobs, attempts) = (host.blobs().clone(), host.data().attempts());
        let limits = host.settings().evidence;
        let swept = tokio::task::spawn_blocking(move || {
            let wanted: BTreeSet<_> = state.jobs.values().map(|job| job.plan).collect();
            let plans = blobs.sweep(&wanted, AGE);
            let forgotten = sweep_attempts(&attempts, &state, AGE);
            (plans, forgotten + sweep_ended(&attempts, &state, limits, FRESH))
        });
        match swept.await {
            Ok((Ok(plans), attempts)) if plans + attempts > 0 => {
                tracing::info!(plans, attempts, "what belonged to forgotten or old jobs is removed");
            }
            Ok((Err(error), _)) => tracing::warn!(%error, "plans of forgotten jobs were not removed"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "nothing was swept"),
        }
    }
}

/// Evidence of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    path: PathBuf,
    attempt: AttemptId,
    /// Since something was last written straight into its folder.
    age: Duration,
    bytes: u64,
}

/// What there is in a directory of evidence; foreign folders are left out. Sizes only of what `sized` wants.
fn kept(directory: &Path, sized: impl Fn(AttemptId) -> bool) -> Vec<Kept> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let one = |entry: fs::DirEntry| {
        let attempt = entry.file_name().to_string_lossy().parse::<AttemptId>().ok()?;
        let age = entry.metadata().ok()?.modified().ok()?.elapsed().unwrap_or_default();
        let path = entry.path();
        let list = if sized(attempt) { files::list(&path).unwrap_or_default() } else { Vec::new() };
        Some(Kept { path, attempt, age, bytes: list.iter().map(|(_, bytes)| *bytes).sum() })
    };
    entries.filter_map(one).collect()
}

fn remove(which: impl Iterator<Item = Kept>) -> usize {
    which.filter(|one| fs::remove_dir_all(&one.path).is_ok()).count()
}

/// Removes evidence of jobs that are not on record and that is older than `age`; returns of how many attempts.
fn sweep_attempts(directory: &Path, state: &State, age: Duration) -> usize {
    let forgotten = |one: &Kept| one.age >= age && !state.jobs.contains_key(&one.attempt.case.job);
    remove(kept(directory, |_| false).into_iter().filter(forgotten))
}

/// Removes evidence of jobs that have ended and is older, or more, than it may be; returns of how many attempts.
fn sweep_ended(directory: &Path, state: &State, limits: EvidenceSettings, fresh: Duration) -> usize {
    let ended = |attempt: AttemptId| {
        let done = state.jobs.get(&attempt.case.job).is_some_and(|job| job.state == JobState::Done);
        // One that `run --keep` has kept still writes.
        done && !state.vms.keys().any(|vm| vm.attempt == attempt)
    };
    let all = kept(directory, ended).into_iter().filter(|one| ended(one.attempt)).collect();
    remove(too_much(all, limits, fresh).into_iter())
}

/// What of it has to go: what is too old, and then the oldest until the rest takes no more room than it may. Pure.
fn too_much(mut all: Vec<Kept>, limits: EvidenceSettings, fresh: Duration) -> Vec<Kept> {
    all.sort_by_key(|one| std::cmp::Reverse(one.age));
    let mut bytes: u64 = all.iter().map(|one| one.bytes).sum();
    let mut goes = |one: &Kept| {
        let goes = one.age >= fresh && (one.age >= limits.keep || bytes > limits.most_bytes);
        if goes {
            bytes -= one.bytes;
        }
        goes
    };
    all.retain(|one| goes(one));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fake::Fake;

    #[test]
    fn the_oldest_goes_first_until_there_is_room_and_the_young_stay() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let one = |number: u32, age: u64, bytes: u64| Kept {
            path: PathBuf::new(),
            attempt: format!("7f3k2a.{number}.1").parse().unwrap(),
            age: hours(age),
            bytes,
        };
        let all = vec![one(1, 0, 60), one(2, 50, 10), one(3, 5, 20), one(4, 9, 30)];
        let gone = |keep: u64, most_bytes: u64| {
            let limits = EvidenceSettings { keep: hours(keep), most_bytes };
            let gone = too_much(all.clone(), limits, FRESH);
            gone.iter().map(|one| one.attempt.case.index).collect::<Vec<_>>()
        };
        assert_eq!(gone(100, 120), Vec::<u32>::new());
        assert_eq!(gone(24, 120), [2], "too old");
        assert_eq!(gone(100, 110), [2], "one is enough");
        assert_eq!(gone(100, 100), [2, 4]);
        assert_eq!(gone(100, 0), [2, 4, 3], "what is fresh stays, however much it is");
    }

    #[test]
    fn evidence_of_jobs_on_record_and_foreign_folders_stay() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1.1.1", "zz.1.1", "notes"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let fake = Fake::new(1);
        fake.apply(vt_sync::command::SubmitJob {
            job: vt_protocol::ids::JobId(1),
            scenario: "s".into(),
            plan: vt_protocol::ids::Digest::of(b"plan"),
            holders: Vec::new(),
            strict: false,
            submitted_by: "me".into(),
            submitted_unix_s: 0,
            cases: vec![vt_sync::command::NewCase::on(vec![vt_protocol::ids::HostId(1)])],
            refusals: vec![],
        });
        let state = fake.state();
        assert_eq!(sweep_attempts(dir.path(), &state, AGE), 0, "the young are spared");
        assert_eq!(sweep_attempts(dir.path(), &state, Duration::ZERO), 1);
        assert!(dir.path().join("1.1.1").exists() && dir.path().join("notes").exists());
        assert!(!dir.path().join("zz.1.1").exists());
    }
}
