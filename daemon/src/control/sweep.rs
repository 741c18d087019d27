//! Removes what nobody wants any more: plans and evidence of jobs that are no longer on record.
//!
//! Young things are spared: a plan may belong to a job that is about to be proposed, and a host that just joined does
//! not know yet what is on record.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use vt_protocol::ids::AttemptId;
use vt_sync::State;

use crate::{cluster::Cluster, host::Host};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(3600);
/// What is younger is spared.
const AGE: Duration = Duration::from_secs(24 * 3600);

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
        let swept = tokio::task::spawn_blocking(move || {
            let wanted: BTreeSet<_> = state.jobs.values().map(|job| job.plan).collect();
            let plans = blobs.sweep(&wanted, AGE);
            (plans, sweep_attempts(&attempts, &state, AGE))
        });
        match swept.await {
            Ok((Ok(plans), attempts)) if plans + attempts > 0 => {
                tracing::info!(plans, attempts, "what belonged to forgotten jobs is removed");
            }
            Ok((Err(error), _)) => tracing::warn!(%error, "plans of forgotten jobs were not removed"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "nothing was swept"),
        }
    }
}

/// Removes evidence of jobs that are not on record and that is older than `age`; returns of how many attempts.
fn sweep_attempts(directory: &Path, state: &State, age: Duration) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let forgotten = entries.filter(|entry| {
        let Ok(attempt) = entry.file_name().to_string_lossy().parse::<AttemptId>() else { return false };
        let old = entry
            .metadata()
            .and_then(|data| data.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed >= age));
        old && !state.jobs.contains_key(&attempt.case.job)
    });
    forgotten.filter(|entry| fs::remove_dir_all(entry.path()).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fake::Fake;

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
