//! Changing the cluster's hosts: cordons, labels, votes, and how a host goes. Each change is a few entries of the log,
//! in an order that leaves the cluster able to decide wherever it is cut off; repeating it goes on from there.
//!
//! Who votes is changed by [`crate::control::membership`] alone: here roles are wished for, and what comes of it is
//! waited for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{HostId, Name, RequestId},
    membership::{Change, HostChange, Reserved},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    Command, State,
    command::{Cordon, ReleaseHost, RemoveHost, ReserveHost, SetLabels, SetRole},
    state::{self, Role, VmState},
};

use super::{
    left, unknown_host,
    views::{self, stored_role},
};
use crate::{cluster::Cluster, control::leads, host::Host};

/// How long a change of voters may take before it is said that it is still to come.
const VOTES: Duration = Duration::from_secs(25);
/// How long another host may take to lead.
const LEADS: Duration = Duration::from_secs(10);
/// Longest hold of a person on a host, seconds.
const RESERVED_MAX_S: u32 = 30 * 24 * 3600;
/// How often a leader is asked to hand over: one that is behind, or was just elected, may not be able to yet.
const ASKS_AGAIN: Duration = Duration::from_millis(1500);

impl Host {
    /// Changes a host and tells what was done.
    pub(super) async fn change_host(self: &Arc<Self>, change: HostChange, by: Instant) -> Result<Vec<String>, Report> {
        let HostChange { request, host: name, what } = change;
        let state = self.state();
        let host = known(&state, &name)?;
        tracing::info!(host = %name, ?what, "a host is to be changed");
        let mut run = Run { cluster: self, request, by, steps: Vec::new() };
        match what {
            Change::Cordon => run.cordon(&host, true).await?,
            Change::Uncordon => run.cordon(&host, false).await?,
            Change::Drain => run.drain(&host).await?,
            Change::Label(labels) => run.label(&host, labels).await?,
            Change::Role(role) => run.role(&host, stored_role(role)).await?,
            Change::Remove => run.remove(&host).await?,
            Change::Replace { by } => {
                let new = known(&state, &by)?;
                run.replace(&host, &new).await?;
            }
            Change::Reserve { by, reason, for_s } => run.reserve(&host, by, reason, for_s).await?,
            Change::Release => run.release(&host).await?,
        }
        Ok(run.steps)
    }

    /// Takes this host out of the cluster.
    pub(crate) async fn leave_cluster(
        self: &Arc<Self>,
        request: RequestId,
        by: Instant,
    ) -> Result<Vec<String>, Report> {
        self.check_admitted()?;
        let state = self.state();
        let Some(host) = state.hosts.get(&self.me()) else {
            return Err(Report::new(ErrorCode::HostRemoved, "this host is not in the cluster any more")
                .help("vtctl cluster leave --forget --yes   (clears what it kept)"));
        };
        let mut run = Run { cluster: self, request, by, steps: Vec::new() };
        run.remove(host).await?;
        Ok(run.steps)
    }

    /// Has `to` lead.
    pub(super) async fn transfer_leader(self: &Arc<Self>, to: &Name, by: Instant) -> Result<Vec<String>, Report> {
        let state = self.state();
        let host = known(&state, to)?;
        self.have_lead(&state, &host, by).await.map(|step| vec![step])
    }

    async fn have_lead(&self, state: &State, to: &state::Host, by: Instant) -> Result<String, Report> {
        let consensus = self.consensus();
        let refused = |why: &str| {
            let report = Report::new(ErrorCode::NotAVoter, format!("{} {why}, so it cannot lead", to.name));
            report.help("vtctl cluster status   (shows who votes)")
        };
        if !consensus.voters.contains(&to.id) {
            return Err(refused("does not vote"));
        }
        if !to.is_live() {
            return Err(refused("does not answer"));
        }
        let mut leadership = self.leadership();
        let until = by.min(Instant::now() + LEADS);
        let mut last = None;
        loop {
            let leader = leadership.borrow_and_update().leader;
            if leader == Some(to.id) {
                return Ok(format!("{} leads", to.name));
            }
            if let Some(leader) = leader
                && let Err(error) = self.ask(leader, PeerRequest::HandOver(to.id), left(until)).await
            {
                last = Some(Report::from(error).title);
            }
            let again = until.min(Instant::now() + ASKS_AGAIN);
            let took_over = timeout_at(again, leadership.wait_for(|now| now.leader == Some(to.id))).await.is_ok();
            if !took_over && again >= until {
                let leader = self.leadership().borrow().leader.map(|leader| state.host_name(leader));
                let report = Report::new(ErrorCode::DeadlinePassed, format!("{} did not take over in time", to.name))
                    .with("leader", leader.unwrap_or_else(|| "none".to_owned()))
                    .retryable();
                return Err(last.into_iter().fold(report, |report, why| report.with("asked", why)));
            }
        }
    }

    /// Hands leadership to another voter, where this host leads.
    pub(super) async fn hand_over_to(&self, to: HostId) -> PeerReply {
        let now = self.leadership().borrow().clone();
        if !leads(&now) {
            return PeerReply::NotLeader(now.leader);
        }
        tracing::info!(to = self.state().host_name(to), "handing leadership over, as asked");
        match self.replica().transfer_leader(to).await {
            Ok(()) => PeerReply::Done,
            Err(error) => PeerReply::Refused(
                Report::new(ErrorCode::Internal, "leadership cannot be handed over").caused_by(&error),
            ),
        }
    }
}

fn known(state: &State, name: &Name) -> Result<Arc<state::Host>, Report> {
    state.host_named(name.as_str()).cloned().ok_or_else(|| unknown_host(state, name))
}

/// Refuses a host that runs something.
fn idle(state: &State, host: &state::Host) -> Result<(), Report> {
    let vms: Vec<String> = state
        .vms
        .values()
        .filter(|vm| vm.owner == host.id && vm.state == VmState::Owned)
        .map(|vm| vm.id.to_string())
        .collect();
    let attempt = state.busy_with(host.id).map(|attempt| attempt.id);
    if vms.is_empty() && attempt.is_none() {
        return Ok(());
    }
    let what = if vms.is_empty() { "serves an attempt" } else { "owns VMs" };
    let mut report = Report::new(ErrorCode::HostInUse, format!("{} {what} and cannot go now", host.name));
    if let Some(attempt) = attempt {
        report = report.with("attempt", attempt.to_string());
    }
    if !vms.is_empty() {
        report = report.with("vms", vms.join(" "));
    }
    Err(report.help(format!("vtctl host drain {}   (waits until it is idle)", host.name)))
}

/// One change under way.
struct Run<'a> {
    cluster: &'a Arc<Host>,
    request: RequestId,
    by: Instant,
    steps: Vec<String>,
}

impl Run<'_> {
    /// One entry. `step` tells it from the other entries of the same change.
    async fn decide(&self, step: &str, command: impl Into<Command>) -> Result<(), Report> {
        let id = RequestId::derived(&[step.as_bytes(), &self.request.0.to_le_bytes()]);
        self.cluster.propose(id, command.into(), left(self.by)).await?;
        Ok(())
    }

    fn done(&mut self, step: String) {
        tracing::info!(step, "a host was changed");
        self.steps.push(step);
    }

    async fn cordon(&mut self, host: &state::Host, cordoned: bool) -> Result<(), Report> {
        let step = if cordoned { "cordon" } else { "uncordon" };
        self.decide(step, Cordon { host: host.id, cordoned }).await?;
        self.done(match cordoned {
            true => format!("no new case begins on {}", host.name),
            false => format!("cases may begin on {} again", host.name),
        });
        Ok(())
    }

    async fn reserve(&mut self, host: &state::Host, by: String, reason: String, for_s: u32) -> Result<(), Report> {
        if !(1..=RESERVED_MAX_S).contains(&for_s) {
            let title = format!("a host is reserved for 1 to {RESERVED_MAX_S} seconds, not {for_s}");
            return Err(Report::new(ErrorCode::Usage, title));
        }
        let until_unix_s = self.cluster.cluster_clock().await?.saturating_add(for_s.into());
        let step =
            format!("{} is reserved by {by} for {for_s} s; cases of others wait, what runs there goes on", host.name);
        self.decide("reserve", ReserveHost { host: host.id, hold: Reserved { by, reason, until_unix_s } }).await?;
        self.done(step);
        Ok(())
    }

    async fn release(&mut self, host: &state::Host) -> Result<(), Report> {
        let held = self.cluster.state().reservations.get(&host.id).map(|hold| hold.by.clone());
        self.decide("release", ReleaseHost { host: host.id, until_unix_s: None }).await?;
        self.done(match held {
            Some(by) => format!("{} is no longer reserved by {by}", host.name),
            None => format!("{} was not reserved", host.name),
        });
        Ok(())
    }

    async fn drain(&mut self, host: &state::Host) -> Result<(), Report> {
        self.cordon(host, true).await?;
        let consensus = self.cluster.consensus();
        if consensus.leader != Some(host.id) {
            return Ok(());
        }
        let state = self.cluster.state();
        let others = state.hosts.values().filter(|other| other.id != host.id && other.is_live());
        let heir = others.into_iter().find(|other| consensus.voters.contains(&other.id)).cloned();
        match heir {
            Some(heir) => {
                let step = self.cluster.have_lead(&state, &heir, self.by).await?;
                self.done(step);
            }
            None => self.done(format!("{} goes on leading: no other voter answers", host.name)),
        }
        Ok(())
    }

    async fn label(&mut self, host: &state::Host, labels: BTreeMap<String, Option<String>>) -> Result<(), Report> {
        let said: Vec<String> = labels
            .iter()
            .map(|(key, value)| match value {
                Some(value) => format!("{key}={value}"),
                None => format!("{key} cleared"),
            })
            .collect();
        self.decide("label", SetLabels { host: host.id, labels }).await?;
        self.done(format!("labels of {}: {}", host.name, said.join(", ")));
        Ok(())
    }

    async fn role(&mut self, host: &state::Host, role: Role) -> Result<(), Report> {
        if role == Role::Learner {
            self.others_can_decide(host)?;
        }
        self.decide("role", SetRole { host: host.id, role }).await?;
        match role {
            Role::Learner => self.loses_its_vote(host).await,
            Role::Voter | Role::Witness => {
                self.gets_its_vote(host).await;
                Ok(())
            }
        }
    }

    /// Refuses to take the vote of the last host that could decide.
    fn others_can_decide(&self, host: &state::Host) -> Result<(), Report> {
        let (state, consensus) = (self.cluster.state(), self.cluster.consensus());
        if !consensus.voters.contains(&host.id) {
            return Ok(());
        }
        let mut others = state.hosts.values().filter(|other| other.id != host.id);
        let able = others.any(|other| other.role != Role::Learner && other.is_live());
        if able {
            return Ok(());
        }
        Err(Report::new(ErrorCode::LastVoter, format!("{} is the last voter that answers", host.name))
            .help("vtctl host promote HOST   (another host, first)"))
    }

    /// Waits until a host that is wished to vote does, or says what it waits for.
    async fn gets_its_vote(&mut self, host: &state::Host) {
        let mut leadership = self.cluster.leadership();
        // A host that cannot vote for want of others is not waited for long.
        let state = self.cluster.state();
        let willing = state.hosts.values().filter(|host| host.role != Role::Learner && host.is_live()).count();
        let patience = if matches!(willing, 1 | 3) || willing >= 5 { VOTES } else { Duration::from_secs(3) };
        let until = self.by.min(Instant::now() + patience);
        let votes = leadership.wait_for(|now| now.voters.contains(&host.id) && now.settled);
        if matches!(timeout_at(until, votes).await, Ok(Ok(_))) {
            return self.done(format!("{} votes; voters: {}", host.name, self.voters()));
        }
        let name = &host.name;
        self.done(match willing {
            2 | 4 => format!(
                "{name} is to vote, and stays a learner for now: {willing} hosts may vote, voters are 1, 3 or 5"
            ),
            _ => format!(
                "{name} is to vote as soon as a voter is needed and it has caught up; voters: {}",
                self.voters()
            ),
        });
    }

    async fn loses_its_vote(&mut self, host: &state::Host) -> Result<(), Report> {
        let mut leadership = self.cluster.leadership();
        let until = self.by.min(Instant::now() + VOTES);
        let lost = leadership.wait_for(|now| !now.voters.contains(&host.id) && now.settled);
        if matches!(timeout_at(until, lost).await, Ok(Ok(_))) {
            self.done(format!("{} does not vote; voters: {}", host.name, self.voters()));
            return Ok(());
        }
        Err(Report::new(ErrorCode::DeadlinePassed, format!("{} still votes: the change is under way", host.name))
            .with("voters", self.voters())
            .help("vtctl cluster status   (then the same command again: it goes on from here)")
            .retryable())
    }

    fn voters(&self) -> String {
        let state = self.cluster.state();
        let mut names: Vec<String> =
            self.cluster.leadership().borrow().voters.iter().map(|id| state.host_name(*id)).collect();
        names.sort_by(|a, b| views::natural(a, b));
        names.join(", ")
    }

    /// Votes go before the host does: the cluster can decide at every moment in between.
    async fn remove(&mut self, host: &state::Host) -> Result<(), Report> {
        let state = self.cluster.state();
        if state.hosts.len() == 1 {
            return Err(Report::new(ErrorCode::LastVoter, format!("{} is the only host of the cluster", host.name))
                .help("vtctl cluster leave --forget --yes   (on it: ends the cluster)"));
        }
        idle(&state, host)?;
        self.others_can_decide(host)?;
        self.decide("cordon", Cordon { host: host.id, cordoned: true }).await?;
        // What began before the cordon is seen now.
        if let Err(report) = idle(&self.cluster.state(), host) {
            self.decide("uncordon", Cordon { host: host.id, cordoned: host.cordoned }).await?;
            return Err(report);
        }
        self.decide("role", SetRole { host: host.id, role: Role::Learner }).await?;
        self.loses_its_vote(host).await?;
        self.decide("remove", RemoveHost { host: host.id }).await?;
        self.done(format!("{} is not in the cluster any more: its key and id stay refused", host.name));
        Ok(())
    }

    async fn replace(&mut self, old: &state::Host, new: &state::Host) -> Result<(), Report> {
        if old.id == new.id {
            return Err(Report::new(ErrorCode::Usage, format!("{} cannot be replaced by itself", old.name)));
        }
        if !new.is_live() {
            return Err(Report::new(ErrorCode::HostDown, format!("{} does not answer", new.name)).retryable());
        }
        idle(&self.cluster.state(), old)?;
        let labels: BTreeMap<String, Option<String>> = old
            .labels
            .iter()
            .filter(|(key, _)| !new.labels.contains_key(*key))
            .map(|(key, value)| (key.clone(), Some(value.clone())))
            .collect();
        if !labels.is_empty() {
            self.label(new, labels).await?;
        }
        if new.role != old.role && old.role != Role::Learner {
            self.decide("heir", SetRole { host: new.id, role: old.role }).await?;
            self.done(format!("{} takes the part of {} in decisions", new.name, old.name));
        }
        self.remove(old).await
    }
}
