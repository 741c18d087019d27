//! The scheduler: on the leader, committed state in, attempts out. It remembers nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use vt_protocol::ids::{HostId, RequestId};
use vt_sync::{
    Command, State,
    command::{SkipCase, StartAttempt},
    raft::Leadership,
    state::{Case, CaseState, JobState},
};

use super::{
    leads,
    schedule::{self, Condition, Decision, Waiting},
};
use crate::{api::views::condition, cluster::Cluster};

/// Decisions before the state is looked at again.
const AT_ONCE: usize = 64;
/// How long an entry may take to be applied.
const DECIDES: Duration = Duration::from_secs(5);
/// After a failed proposal the state is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// Schedules while this host leads, until `stop`.
pub async fn run(cluster: Arc<dyn Cluster>, mut leadership: watch::Receiver<Leadership>, stop: CancellationToken) {
    let mut watch = cluster.watch();
    loop {
        let mut again = None;
        if leads(&leadership.borrow_and_update()) {
            let state = watch.borrow_and_update().clone();
            for decision in decisions(&state) {
                let command = command(decision);
                let name = command.name();
                if let Err(error) = cluster.propose(RequestId::random(), command, DECIDES).await {
                    // The state moved on, or cannot be moved now; the next look decides anew.
                    tracing::debug!(%error, command = name, "the scheduler was refused");
                    again = Some(Instant::now() + AGAIN);
                    break;
                }
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() { return },
            changed = watch.changed() => if changed.is_err() { return },
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
        }
    }
}

/// What is to be done as the state is.
pub fn decisions(state: &State) -> Vec<Decision> {
    let mut jobs: Vec<_> = state.jobs.values().filter(|job| may_begin(job.state)).collect();
    jobs.sort_by_key(|job| job.submitted_at);
    let waiting = jobs.into_iter().flat_map(|job| {
        // One that waits for another case, or for a host that somebody holds, keeps no hosts from those behind it.
        let ready = |case: &Case| {
            let pending = case.state == CaseState::Pending && job.waits_for(case).is_none();
            pending && state.held_from(&job.submitted_by, &case.hosts).is_none()
        };
        job.cases().filter(move |(_, case)| ready(case)).map(|(id, case)| Waiting {
            case: id,
            hosts: case.hosts.clone(),
            attempts: case.attempts,
            strict: job.strict,
        })
    });
    // Looked up once: there may be thousands of cases on a few hosts.
    let conditions: BTreeMap<HostId, Condition> =
        state.hosts.keys().map(|host| (*host, condition(state, *host))).collect();
    let condition = |host| conditions.get(&host).copied().unwrap_or_else(|| condition(state, host));
    schedule::decide(waiting, condition, |host| state.host_name(host), AT_ONCE)
}

fn may_begin(state: JobState) -> bool {
    matches!(state, JobState::Queued | JobState::Running)
}

/// What a decision asks the log for.
pub fn command(decision: Decision) -> Command {
    match decision {
        Decision::Start { case, number, hosts } => StartAttempt { case, number, hosts }.into(),
        Decision::End { case, verdict, cause } => SkipCase { case, verdict, cause }.into(),
    }
}
