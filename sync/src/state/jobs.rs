//! Jobs and their cases. Names and parameters of cases stay in the plan, a blob that is named by its digest.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, CaseId, Digest, Epoch, HostId, JobId},
    verdict::Verdict,
};

use super::{Decision, Entry, State, bounded, reject, within};
use crate::{
    answer::{Answer, Effect, Rejected},
    bounds,
    command::{CancelJob, ForgetJob, NewCase, ReleaseJob, SkipCase, SubmitJob},
};

/// One `vtctl run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Name of the scenario.
    pub scenario: String,
    /// Digest of the plan.
    pub plan: Digest,
    /// Hosts that hold the plan.
    pub holders: Vec<HostId>,
    /// A case left without hosts fails instead of being skipped.
    pub strict: bool,
    /// Who submitted it, for people.
    pub submitted_by: String,
    /// When, seconds since 1970. Data only.
    pub submitted_unix_s: u64,
    /// When, in the log: jobs are served in this order.
    pub submitted_at: Epoch,
    /// How it stands.
    pub state: JobState,
    /// Who cancelled it.
    pub cancelled_by: Option<String>,
    /// Its cases; the case with index `i` is at `i - 1`.
    pub cases: Vec<Arc<Case>>,
    /// What it was to keep after its cases is wanted no longer.
    pub released: bool,
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// No case has started.
    Queued,
    /// A case has started.
    Running,
    /// A user cancelled it, and attempts still run.
    Cancelling,
    /// Every case has its verdict.
    Done,
}

/// One scenario × one variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// The hosts it runs on, host1 first; empty for one that was left without hosts.
    pub hosts: Vec<HostId>,
    /// How it stands.
    pub state: CaseState,
    /// How many attempts were started.
    pub attempts: u32,
    /// Indexes of the cases that have to pass before it begins, each smaller than its own.
    pub after: Vec<u32>,
}

/// How a case stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaseState {
    /// It waits for its hosts.
    Pending,
    /// This attempt runs.
    Running {
        /// Which.
        attempt: AttemptId,
    },
    /// It has its verdict, once and for all.
    Done {
        /// The joint verdict.
        verdict: Verdict,
        /// Why, where it is not PASS.
        cause: Option<Report>,
    },
}

impl Job {
    /// The case with this index, from 1.
    pub fn case(&self, index: u32) -> Option<&Arc<Case>> {
        self.cases.get(usize::try_from(index).ok()?.checked_sub(1)?)
    }

    /// The cases with their ids, in order.
    pub fn cases(&self) -> impl Iterator<Item = (CaseId, &Arc<Case>)> {
        (1..).zip(&self.cases).map(|(index, case)| (CaseId { job: self.id, index }, case))
    }

    /// The first case that this one still waits for.
    pub fn waits_for(&self, case: &Case) -> Option<u32> {
        case.after.iter().copied().find(|index| self.case(*index).is_none_or(|parent| parent.verdict().is_none()))
    }

    /// The first case that had to pass before this one, and did not.
    pub fn failed_before(&self, case: &Case) -> Option<u32> {
        let failed = |verdict| !matches!(verdict, Verdict::Pass | Verdict::Warn);
        case.after
            .iter()
            .copied()
            .find(|index| self.case(*index).and_then(|parent| parent.verdict()).is_some_and(failed))
    }

    /// How many cases have no verdict yet.
    pub fn open_cases(&self) -> usize {
        self.cases.iter().filter(|case| !matches!(case.state, CaseState::Done { .. })).count()
    }
}

impl State {
    pub(super) fn submit_job(&mut self, entry: &mut Entry, c: &SubmitJob) -> Decision {
        within("bytes of a scenario's name", c.scenario.len(), bounds::TEXT_BYTES)?;
        within("bytes of a user's name", c.submitted_by.len(), bounds::TEXT_BYTES)?;
        within("holders of a plan", c.holders.len(), bounds::HOLDERS)?;
        within("cases of a job", c.cases.len(), bounds::CASES_PER_JOB)?;
        if c.cases.is_empty() {
            return reject(ErrorCode::NoVariants, "the job has no case");
        }
        if self.jobs.contains_key(&c.job) {
            return reject(ErrorCode::RequestConflict, format!("{} exists already", c.job));
        }
        for case in &c.cases {
            within("hosts of a case", case.hosts.len(), bounds::HOSTS)?;
            for (i, host) in case.hosts.iter().enumerate() {
                self.known_host(*host)?;
                if case.hosts[..i].contains(host) {
                    let text = format!("{} is named twice in one case", self.host_name(*host));
                    return reject(ErrorCode::BadParameter, text);
                }
            }
        }
        known_links(c)?;
        for old in self.jobs_making_room(c.cases.len())? {
            self.jobs.remove(&old);
            entry.tell(Effect::Job(old));
        }
        let case = |new: &NewCase| {
            let refusal = new.refused.and_then(|place| c.refusals.get(place as usize));
            let state = refusal.map_or(CaseState::Pending, |refusal| CaseState::Done {
                verdict: Verdict::Skip,
                cause: Some(bounded(refusal)),
            });
            Arc::new(Case { hosts: new.hosts.clone(), state, attempts: 0, after: new.after.clone() })
        };
        let job = Job {
            id: c.job,
            scenario: c.scenario.clone(),
            plan: c.plan,
            holders: c.holders.clone(),
            strict: c.strict,
            submitted_by: c.submitted_by.clone(),
            submitted_unix_s: c.submitted_unix_s,
            submitted_at: entry.epoch(),
            state: JobState::Queued,
            cancelled_by: None,
            cases: c.cases.iter().map(case).collect(),
            released: false,
        };
        self.jobs.insert(c.job, Arc::new(job));
        self.settle_job(entry, c.job);
        Ok(Answer::Epoch(entry.epoch()))
    }

    /// The oldest finished jobs that have to go so that one more with this many cases fits.
    fn jobs_making_room(&self, cases: usize) -> Result<Vec<JobId>, Rejected> {
        let mut jobs = self.jobs.len() + 1;
        let mut total = cases + self.jobs.values().map(|job| job.cases.len()).sum::<usize>();
        let mut finished: Vec<_> = self.jobs.values().filter(|job| job.state == JobState::Done).collect();
        finished.sort_by_key(|job| job.submitted_at);
        let mut leaving = Vec::new();
        let mut finished = finished.into_iter();
        while jobs > bounds::JOBS || total > bounds::CASES {
            let Some(job) = finished.next() else {
                let text = format!(
                    "{} jobs wait or run; {} jobs or {} cases are the bound",
                    self.jobs.len(),
                    bounds::JOBS,
                    bounds::CASES
                );
                return reject(ErrorCode::TooLarge, text);
            };
            jobs -= 1;
            total -= job.cases.len();
            leaving.push(job.id);
        }
        Ok(leaving)
    }

    pub(super) fn known_job(&self, id: JobId) -> Result<&Arc<Job>, Rejected> {
        self.jobs.get(&id).ok_or_else(|| Rejected::new(ErrorCode::UnknownJob, format!("{id} is not on record")))
    }

    pub(super) fn known_case(&self, id: CaseId) -> Result<&Arc<Case>, Rejected> {
        let job = self.known_job(id.job)?;
        job.case(id.index).ok_or_else(|| Rejected::new(ErrorCode::UnknownJob, format!("{id} is not on record")))
    }

    pub(super) fn cancel_job(&mut self, entry: &mut Entry, c: &CancelJob) -> Decision {
        within("bytes of a user's name", c.by.len(), bounds::TEXT_BYTES)?;
        let job = self.known_job(c.job)?;
        if matches!(job.state, JobState::Done | JobState::Cancelling) {
            return Ok(Answer::Done);
        }
        let report = Report::new(ErrorCode::Cancelled, format!("{} cancelled {}", c.by, c.job));
        let running: Vec<_> = job.cases.iter().filter_map(|case| case.running()).collect();
        let pending: Vec<_> =
            job.cases().filter(|(_, case)| case.state == CaseState::Pending).map(|(id, _)| id).collect();
        if let Some(job) = self.jobs.get_mut(&c.job) {
            let job = Arc::make_mut(job);
            job.cancelled_by = Some(c.by.clone());
            job.state = JobState::Cancelling;
        }
        for case in pending {
            self.set_case(case, CaseState::Done { verdict: Verdict::Cancelled, cause: Some(report.clone()) });
        }
        for attempt in running {
            self.cancel_attempt(entry, attempt, &report);
        }
        self.settle_job(entry, c.job);
        Ok(Answer::Done)
    }

    pub(super) fn release_job(&mut self, entry: &mut Entry, c: &ReleaseJob) -> Decision {
        self.known_job(c.job)?;
        if let Some(job) = self.jobs.get_mut(&c.job) {
            Arc::make_mut(job).released = true;
        }
        entry.tell(Effect::Job(c.job));
        Ok(Answer::Done)
    }

    pub(super) fn skip_case(&mut self, entry: &mut Entry, c: &SkipCase) -> Decision {
        if matches!(c.verdict, Verdict::Pass | Verdict::Warn) {
            return reject(ErrorCode::BadParameter, "a case that did not run has not passed");
        }
        match self.known_case(c.case)?.state {
            CaseState::Pending => {}
            CaseState::Running { .. } => return reject(ErrorCode::CaseClosed, format!("{} runs", c.case)),
            CaseState::Done { .. } => return reject(ErrorCode::CaseClosed, format!("{} has its verdict", c.case)),
        }
        self.set_case(c.case, CaseState::Done { verdict: c.verdict, cause: Some(bounded(&c.cause)) });
        self.settle_job(entry, c.case.job);
        Ok(Answer::Done)
    }

    pub(super) fn forget_job(&mut self, entry: &mut Entry, c: &ForgetJob) -> Decision {
        if self.known_job(c.job)?.state != JobState::Done {
            return reject(ErrorCode::CaseClosed, format!("{} has not finished", c.job));
        }
        self.jobs.remove(&c.job);
        entry.tell(Effect::Job(c.job));
        Ok(Answer::Done)
    }

    pub(super) fn set_case(&mut self, id: CaseId, state: CaseState) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        if let Some(case) = Arc::make_mut(job).cases.get_mut(id.index as usize - 1) {
            let case = Arc::make_mut(case);
            if let CaseState::Running { attempt } = state {
                case.attempts = attempt.number;
            }
            case.state = state;
        }
    }

    /// Skips what waits for a case that did not pass, and brings a job's state in line with its cases.
    pub(super) fn settle_job(&mut self, entry: &mut Entry, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let job = Arc::make_mut(job);
        // A case only waits for cases in front of it: one look from the first to the last is enough.
        for place in 0..job.cases.len() {
            if job.cases[place].state == CaseState::Pending && job.failed_before(&job.cases[place]).is_some() {
                let cause = Some(Report::new(ErrorCode::ParentNotPassed, "a case that it depends on did not pass"));
                Arc::make_mut(&mut job.cases[place]).state = CaseState::Done { verdict: Verdict::Skip, cause };
            }
        }
        if job.open_cases() == 0 {
            job.state = JobState::Done;
        } else if job.state == JobState::Queued && job.cases.iter().any(|case| case.state != CaseState::Pending) {
            job.state = JobState::Running;
        }
        entry.tell(Effect::Job(id));
    }
}

/// Whether cases depend on cases in front of them only, and refusals are there.
fn known_links(c: &SubmitJob) -> Result<(), Rejected> {
    within("reasons to skip cases", c.refusals.len(), bounds::REFUSALS_PER_JOB)?;
    let dependencies = c.cases.iter().map(|case| case.after.len()).fold(0, usize::saturating_add);
    within("dependencies between the cases of a job", dependencies, bounds::AFTER_PER_JOB)?;
    for (index, case) in (1..).zip(&c.cases) {
        if case.after.iter().any(|before| !(1..index).contains(before)) {
            return reject(
                ErrorCode::BadParameter,
                format!("case {index} depends on a case that is not in front of it"),
            );
        }
        if case.refused.is_some_and(|place| place as usize >= c.refusals.len()) {
            return reject(ErrorCode::BadParameter, format!("case {index} is refused for a reason that is not given"));
        }
    }
    Ok(())
}

impl Case {
    /// The attempt that runs.
    pub fn running(&self) -> Option<AttemptId> {
        match self.state {
            CaseState::Running { attempt } => Some(attempt),
            _ => None,
        }
    }

    /// The verdict, where there is one.
    pub fn verdict(&self) -> Option<Verdict> {
        match self.state {
            CaseState::Done { verdict, .. } => Some(verdict),
            _ => None,
        }
    }
}
