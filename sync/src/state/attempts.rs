//! Attempts: executions of cases, their parties, and the joint verdict.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, Epoch, HostId, Name},
    verdict::{Blame, Cause, Consequence, Outcome, Verdict, judge},
};

use super::{
    Barrier, BarrierKey, CaseState, Decision, Entry, JobState, Migration, Role, State, bounded, in_force, reject,
};
use crate::{
    answer::{Answer, Effect, Rejected},
    bounds,
    command::{PartyEnded, StartAttempt},
};

/// One execution of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its id.
    pub id: AttemptId,
    /// Its fencing number.
    pub epoch: Epoch,
    /// Its hosts, host1 first; frozen.
    pub hosts: Vec<HostId>,
    /// How each party stands.
    pub parties: BTreeMap<HostId, PartyState>,
    /// How parties ended and what else ended the attempt early, in log order.
    pub endings: Vec<Ending>,
    /// A user cancelled it: parties are to end.
    pub cancelled: bool,
    /// Barriers on record. One goes when all who passed it passed the next one of its tag.
    pub barriers: BTreeMap<BarrierKey, Arc<Barrier>>,
    /// The last generation of each tag whose record is gone.
    pub passed: BTreeMap<String, u32>,
    /// The last migration begun of each VM that was ever migrated: a number is used once, also when a VM of the same name
    /// is started anew, for a late vote must never count for another movement.
    pub moves: BTreeMap<Name, u32>,
    /// Migrations that were decided and finished, oldest first, bounded.
    pub history: Vec<Migration>,
    /// The joint verdict, once every party has ended.
    pub verdict: Option<Verdict>,
    /// Figures for people, by name with unit.
    pub metrics: BTreeMap<String, u64>,
}

/// How a party stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartyState {
    /// It runs, or will.
    Running,
    /// It ended by itself.
    Ended(Outcome),
    /// Its host lost its session.
    Fenced,
}

/// Something that ended a party, or the attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Whose party ended; `None`: a cause that no party reported.
    pub host: Option<HostId>,
    /// How.
    pub outcome: Outcome,
}

impl Attempt {
    /// Whether this host's party runs.
    pub fn runs_on(&self, host: HostId) -> bool {
        self.parties.get(&host) == Some(&PartyState::Running)
    }

    /// The joint verdict of the endings so far.
    ///
    /// A barrier that broke for a suspect host or a deadline is a cause even where no party says so, for parties then
    /// report consequences only. Where every party passed all the same, nothing was lost by it.
    fn judge(&self) -> (Verdict, Option<Cause>) {
        let parties = self.endings.iter().filter(|ending| ending.host.is_some());
        let all_passed = parties.clone().all(|ending| matches!(ending.outcome, Outcome::Passed { .. }));
        let counts = |ending: &&Ending| {
            let by_user = matches!(&ending.outcome, Outcome::Caused(cause) if cause.blame == Blame::User);
            ending.host.is_some() || !all_passed || by_user
        };
        judge(self.endings.iter().filter(counts).map(|ending| &ending.outcome))
    }

    /// What is over the bound is left out: figures are for people and decide nothing.
    fn add_metrics(&mut self, metrics: &BTreeMap<String, u64>) {
        for (name, value) in metrics.iter().filter(|(name, _)| name.len() <= bounds::TEXT_BYTES) {
            if let Some(known) = self.metrics.get_mut(name) {
                *known = (*known).max(*value);
            } else if self.metrics.len() < bounds::METRICS {
                self.metrics.insert(name.clone(), *value);
            }
        }
    }

    pub(super) fn add_cause(&mut self, cause: Cause) {
        let causes = self.endings.iter().filter(|ending| ending.host.is_none()).count();
        if causes < bounds::ATTEMPT_CAUSES {
            self.endings.push(Ending { host: None, outcome: Outcome::Caused(cause) });
        }
    }
}

impl State {
    pub(super) fn start_attempt(&mut self, entry: &mut Entry, c: &StartAttempt) -> Decision {
        let case = self.known_case(c.case)?;
        match case.state {
            CaseState::Pending => {}
            CaseState::Running { .. } => return reject(ErrorCode::CaseClosed, format!("{} runs already", c.case)),
            CaseState::Done { .. } => return reject(ErrorCode::CaseClosed, format!("{} has its verdict", c.case)),
        }
        if self.known_job(c.case.job)?.state == JobState::Cancelling {
            return reject(ErrorCode::Cancelled, format!("{} is being cancelled", c.case.job));
        }
        if let Some(parent) = self.known_job(c.case.job)?.waits_for(case) {
            return reject(ErrorCode::CaseClosed, format!("{} waits for case {parent}", c.case));
        }
        if c.number != case.attempts + 1 {
            let text = format!("the next attempt of {} is number {}, not {}", c.case, case.attempts + 1, c.number);
            return reject(ErrorCode::CaseClosed, text);
        }
        if c.hosts != case.hosts || c.hosts.is_empty() {
            return reject(ErrorCode::BadParameter, format!("the hosts are not those of {}", c.case));
        }
        for host in &c.hosts {
            if !self.known_host(*host)?.is_live() {
                return reject(ErrorCode::HostDown, format!("{} does not answer", self.host_name(*host)));
            }
            if self.known_host(*host)?.role == Role::Witness {
                return reject(
                    ErrorCode::CannotRunHere,
                    format!("{} is a witness and runs nothing", self.host_name(*host)),
                );
            }
            if self.known_host(*host)?.cordoned {
                return reject(ErrorCode::Cordoned, format!("{} is cordoned", self.host_name(*host)));
            }
            if let Some(other) = self.busy_with(*host) {
                let text = format!("{} serves {}", self.host_name(*host), other.id);
                return reject(ErrorCode::HostBusy, text);
            }
        }
        let id = AttemptId { case: c.case, number: c.number };
        let attempt = Attempt {
            id,
            epoch: entry.epoch(),
            hosts: c.hosts.clone(),
            parties: c.hosts.iter().map(|host| (*host, PartyState::Running)).collect(),
            endings: Vec::new(),
            cancelled: false,
            barriers: BTreeMap::new(),
            passed: BTreeMap::new(),
            moves: BTreeMap::new(),
            history: Vec::new(),
            verdict: None,
            metrics: BTreeMap::new(),
        };
        self.attempts.insert(id, Arc::new(attempt));
        self.set_case(c.case, CaseState::Running { attempt: id });
        self.settle_job(entry, c.case.job);
        entry.tell(Effect::Attempt(id));
        Ok(Answer::Epoch(entry.epoch()))
    }

    pub(super) fn party_ended(&mut self, entry: &mut Entry, c: &PartyEnded) -> Decision {
        let outcome = bounded_outcome(&c.outcome);
        let attempt = self.live_attempt(c.attempt, c.epoch)?;
        match attempt.parties.get(&c.host) {
            Some(PartyState::Running) => {}
            // Reported again under another id: nothing is left to do.
            Some(PartyState::Ended(before)) if *before == outcome => return Ok(Answer::Done),
            _ => return Err(self.no_party(c.attempt, c.host)),
        }
        if let Some(attempt) = self.attempts.get_mut(&c.attempt) {
            Arc::make_mut(attempt).add_metrics(&c.metrics);
        }
        self.end_party(entry, c.attempt, c.host, PartyState::Ended(outcome.clone()), outcome);
        Ok(Answer::Done)
    }

    /// A live attempt under its epoch.
    pub(super) fn live_attempt(&self, id: AttemptId, epoch: Epoch) -> Result<&Arc<Attempt>, Rejected> {
        match self.attempts.get(&id) {
            Some(attempt) if in_force(Some(attempt.epoch), epoch) => Ok(attempt),
            Some(attempt) => {
                reject(ErrorCode::CaseClosed, format!("attempt {id} has epoch {}, not {epoch}", attempt.epoch))
            }
            None => reject(ErrorCode::CaseClosed, format!("attempt {id} has ended or never was")),
        }
    }

    /// A live attempt in which this host's party runs.
    pub(super) fn running_party(&self, id: AttemptId, epoch: Epoch, host: HostId) -> Result<&Arc<Attempt>, Rejected> {
        let attempt = self.live_attempt(id, epoch)?;
        if attempt.runs_on(host) { Ok(attempt) } else { Err(self.no_party(id, host)) }
    }

    fn no_party(&self, id: AttemptId, host: HostId) -> Rejected {
        let name = self.host_name(host);
        match self.attempts.get(&id).and_then(|attempt| attempt.parties.get(&host)) {
            Some(PartyState::Fenced) => {
                Rejected::new(ErrorCode::SessionOver, format!("{name} lost its session and with it its part in {id}"))
            }
            Some(_) => Rejected::new(ErrorCode::CaseClosed, format!("the party of {name} in {id} has ended")),
            None => Rejected::new(ErrorCode::BadParameter, format!("{name} is no party of {id}")),
        }
    }

    /// Ends a running party. The last one has the case judged and the attempt closed.
    pub(super) fn end_party(
        &mut self,
        entry: &mut Entry,
        id: AttemptId,
        host: HostId,
        how: PartyState,
        outcome: Outcome,
    ) {
        let name = self.host_name(host);
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let attempt = Arc::make_mut(attempt);
        attempt.parties.insert(host, how);
        attempt.endings.push(Ending { host: Some(host), outcome });
        let open = attempt.parties.values().any(|party| *party == PartyState::Running);
        entry.tell(Effect::Attempt(id));
        self.abort_unvoted_of(entry, id, host);
        self.break_barriers_missing(entry, id, host, &format!("the party of {name} has ended"));
        if !open {
            self.close_attempt(entry, id);
        }
    }

    /// Judges the case of an attempt whose parties have all ended.
    fn close_attempt(&mut self, entry: &mut Entry, id: AttemptId) {
        self.drop_vms_of(entry, id);
        let Some(attempt) = self.attempts.remove(&id) else { return };
        let mut attempt = Arc::unwrap_or_clone(attempt);
        let (verdict, cause) = attempt.judge();
        attempt.verdict = Some(verdict);
        attempt.barriers.clear();
        attempt.passed.clear();
        self.ended.insert(id, Arc::new(attempt));
        if self.ended.len() > bounds::ENDED_ATTEMPTS
            && let Some(oldest) = self.ended.values().min_by_key(|attempt| attempt.epoch).map(|attempt| attempt.id)
        {
            self.ended.remove(&oldest);
        }
        self.set_case(id.case, CaseState::Done { verdict, cause: cause.map(|cause| cause.report) });
        self.settle_job(entry, id.case.job);
    }

    pub(super) fn cancel_attempt(&mut self, entry: &mut Entry, id: AttemptId, report: &Report) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let attempt = Arc::make_mut(attempt);
        attempt.cancelled = true;
        attempt.add_cause(Cause { blame: Blame::User, report: report.clone() });
        entry.tell(Effect::Attempt(id));
        self.break_all_barriers(entry, id, &report.title);
    }
}

fn bounded_outcome(outcome: &Outcome) -> Outcome {
    let cut = |text: &String| text.chars().take(Report::TEXT_MAX).collect::<String>();
    match outcome {
        Outcome::Passed { remark } => Outcome::Passed { remark: remark.as_ref().map(cut) },
        Outcome::Caused(cause) => Outcome::Caused(Cause { blame: cause.blame, report: bounded(&cause.report) }),
        Outcome::Followed(Consequence::BarrierBroken(text)) => Outcome::Followed(Consequence::BarrierBroken(cut(text))),
        Outcome::Followed(Consequence::PeerGone(text)) => Outcome::Followed(Consequence::PeerGone(cut(text))),
        Outcome::Followed(Consequence::Closed) => Outcome::Followed(Consequence::Closed),
    }
}
