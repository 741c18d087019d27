//! Watching jobs: a stream of job views on change and of events gathered from the hosts of their attempts.
//!
//! Each host is asked for the events of an attempt by long polls that end when the attempt has ended and nothing more
//! comes; a host that does not answer is asked again until then. Everything waits for the watcher: a slow one slows
//! its own stream and nobody else's.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use vt_protocol::{
    admin::{AdminReply, JobLogs, WatchItem},
    error::Report,
    ids::{AttemptId, CaseId, HostId, JobId},
    job::JobView,
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    State,
    state::{CaseState, JobState},
};

use super::{known_job, views};
use crate::{cluster::Cluster, host::Host, mesh::ReplySink, plan::OpenPlan};

/// One long poll, ms.
const WAIT_MS: u32 = 5000;
/// A poll may take this long on top of its wait.
const SLACK: Duration = Duration::from_secs(3);
/// After a host did not answer.
const PAUSE: Duration = Duration::from_millis(500);
/// After the end of an attempt its hosts are asked this long for what is left.
const PATIENCE: Duration = Duration::from_secs(5);
/// Hosts that are asked at the same time, for one watcher.
const FOLLOWED: usize = 64;

impl Host {
    pub(super) async fn watch_job(self: &Arc<Self>, id: JobId, replies: &ReplySink) -> Result<(), Report> {
        let job = Arc::clone(known_job(&self.state(), id)?);
        let plan = self.plan_of(&job).await?;
        self.follow(id, Some(plan), true, replies).await;
        Ok(())
    }

    pub(super) async fn job_logs(self: &Arc<Self>, logs: JobLogs, replies: &ReplySink) -> Result<(), Report> {
        known_job(&self.state(), logs.job)?;
        self.follow(logs.job, None, logs.follow, replies).await;
        Ok(())
    }

    /// Streams until the job is done, or, without `on`, until all that has happened was told.
    async fn follow(self: &Arc<Self>, id: JobId, views: Option<Arc<OpenPlan>>, on: bool, replies: &ReplySink) {
        let mut watch = self.watch();
        // Who watches wants what is still to come; the log of a job is all there was.
        let skip = if views.is_some() { done(&self.state(), id) } else { BTreeSet::new() };
        let mut shown: Option<JobView> = None;
        let mut followed = BTreeSet::new();
        let mut followers = JoinSet::new();
        loop {
            let state = watch.borrow_and_update().clone();
            // A finished job that made room for others is gone: the watch ends as well.
            let Some(job) = state.jobs.get(&id) else { break };
            if let Some(plan) = &views {
                let view = views::job(&state, job, Some(plan));
                if job.state != JobState::Done && shown.as_ref() != Some(&view) {
                    // A job may have thousands of cases: after the first view only what changed is sent.
                    let news = match &shown {
                        None => WatchItem::Job(view.clone()),
                        Some(earlier) => WatchItem::Changed(view.since(earlier)),
                    };
                    if replies.send(item(news)).await.is_err() {
                        return;
                    }
                    shown = Some(view);
                }
            }
            for attempt in attempts(&state, id, &skip) {
                let Some(record) = state.attempt(attempt) else { continue };
                for host in &record.hosts {
                    while followers.try_join_next().is_some() {}
                    if followers.len() < FOLLOWED && followed.insert((attempt, *host)) {
                        followers.spawn(Arc::clone(self).follow_host(attempt, *host, on, replies.clone()));
                    }
                }
            }
            if job.state == JobState::Done || !on {
                while followers.join_next().await.is_some() {}
                // More may be followed now that these have ended.
                let all = attempts(&state, id, &skip);
                let hosts = |attempt: &AttemptId| state.attempt(*attempt).map_or(0, |record| record.hosts.len());
                if followed.len() >= all.iter().map(hosts).sum() {
                    break;
                }
                continue;
            }
            tokio::select! {
                changed = watch.changed() => if changed.is_err() { break },
                () = replies.gone() => return,
            }
        }
        if let Some(plan) = views
            && let Some(job) = self.state().jobs.get(&id)
        {
            let last = views::job(&self.state(), job, Some(&plan));
            // A caller that went away needs no last view.
            let _ = replies.send(item(WatchItem::Job(last))).await;
        }
    }

    /// Streams the events of one attempt from one host.
    async fn follow_host(self: Arc<Self>, attempt: AttemptId, host: HostId, on: bool, replies: ReplySink) {
        let mut watch = self.watch();
        let mut after = 0;
        let mut ends: Option<Instant> = None;
        loop {
            let over = !watch.borrow_and_update().attempts.contains_key(&attempt);
            if over {
                ends.get_or_insert_with(|| Instant::now() + PATIENCE);
            }
            let wait_ms = if over || !on { 0 } else { WAIT_MS };
            let request = PeerRequest::Events { attempt, after, wait_ms };
            let asked = self.ask(host, request, Duration::from_millis(wait_ms.into()) + SLACK);
            let answer = tokio::select! {
                answer = asked => answer,
                () = replies.gone() => return,
                // It has ended: what is left is asked for without a wait.
                _ = watch.wait_for(|state| !state.attempts.contains_key(&attempt)), if !over => continue,
            };
            match answer {
                Ok(PeerReply::Events(events)) if events.is_empty() => {
                    if over || !on {
                        return;
                    }
                }
                Ok(PeerReply::Events(events)) => {
                    for event in events {
                        after = after.max(event.seq);
                        if replies.send(item(WatchItem::Event { attempt, event })).await.is_err() {
                            return;
                        }
                    }
                }
                Ok(_) | Err(_) => {
                    if !on || ends.is_some_and(|at| Instant::now() >= at) {
                        return;
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

fn item(item: WatchItem) -> AdminReply {
    AdminReply::Watch(Box::new(item))
}

/// The attempts of a job, without those of the cases in `skip`.
fn attempts(state: &State, id: JobId, skip: &BTreeSet<CaseId>) -> Vec<AttemptId> {
    let Some(job) = state.jobs.get(&id) else { return Vec::new() };
    let wanted = job.cases().filter(|(case, _)| !skip.contains(case));
    wanted.flat_map(|(case, record)| (1..=record.attempts).map(move |number| AttemptId { case, number })).collect()
}

/// The cases of a job that have their verdict.
fn done(state: &State, id: JobId) -> BTreeSet<CaseId> {
    let Some(job) = state.jobs.get(&id) else { return BTreeSet::new() };
    let done = job.cases().filter(|(_, case)| matches!(case.state, CaseState::Done { .. }));
    done.map(|(case, _)| case).collect()
}
