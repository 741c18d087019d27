//! Jobs as they are asked for (a plan), as they are shown (a view), and what happens in them (events).

use serde::{Deserialize, Serialize};

use crate::{
    error::Report,
    ids::{AttemptId, CaseId, JobId, Name},
    params::Params,
    verdict::Verdict,
    vm::Sample,
};

/// Most cases of one job.
pub const CASES_MAX: usize = 10_000;
/// Most bytes of an encoded plan.
pub const PLAN_MAX: usize = 64 << 20;

/// What a client asks to be run. It is stored as a blob; the log carries its digest and the hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the scenario.
    pub scenario: String,
    /// The cases, in order; their index is their position from 1.
    pub cases: Vec<PlannedCase>,
    /// How long one case may take, in ms.
    pub case_timeout_ms: u64,
    /// Hosts that were given but are left over: FAIL instead of SKIP.
    pub strict_hosts: bool,
    /// Who asked, as the client knows itself.
    pub user: String,
    /// A remark of the user.
    pub note: Option<String>,
    /// A party that has come to its end keeps what it holds, its VM above all, until the job is released.
    pub keep: bool,
}

/// One case of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCase {
    /// The variant's name; for a case without a variant the scenario's.
    pub name: String,
    /// The hosts, in order: the first is host1.
    pub hosts: Vec<Name>,
    /// Set where the case is a left-over of the host list and cannot run.
    pub leftover: bool,
    /// Its parameters.
    pub params: Params,
}

/// A scenario, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioInfo {
    /// Its name.
    pub name: String,
    /// One line.
    pub summary: String,
    /// How many hosts a case takes.
    pub hosts: u32,
    /// Parameters it takes: key, default, meaning.
    pub params: Vec<(String, String, String)>,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// No case has begun.
    Queued,
    /// At least one case has begun.
    Running,
    /// A user cancelled it; running cases are being ended.
    Cancelling,
    /// Every case has a verdict.
    Done,
}

/// Where a case stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaseStateView {
    /// Waits for its hosts. `why` is what it waits for, where that is known.
    Pending {
        /// What it waits for.
        why: Option<String>,
    },
    /// An attempt runs.
    Running {
        /// Which.
        attempt: AttemptId,
    },
    /// It has a verdict.
    Done {
        /// The verdict.
        verdict: Verdict,
        /// Why it is not PASS.
        cause: Option<Report>,
    },
}

/// A case as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseView {
    /// Which.
    pub id: CaseId,
    /// The variant's name.
    pub name: String,
    /// Its hosts, in order.
    pub hosts: Vec<Name>,
    /// Where it stands.
    pub state: CaseStateView,
    /// The latest attempt.
    pub attempt: Option<AttemptId>,
    /// How long the latest attempt took, ms.
    pub elapsed_ms: Option<u64>,
    /// Longest standstill that the guest saw in a migration, ms.
    pub guest_downtime_ms: Option<u64>,
    /// Longest downtime by QEMU's count, ms.
    pub qemu_downtime_ms: Option<u64>,
    /// How many migrations were completed.
    pub migrations: Option<u64>,
}

/// A job as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Which.
    pub id: JobId,
    /// Its scenario.
    pub scenario: String,
    /// Where it stands.
    pub state: JobState,
    /// Who asked.
    pub user: String,
    /// A remark of the user.
    pub note: Option<String>,
    /// Its cases; empty in lists.
    pub cases: Vec<CaseView>,
    /// Number of cases by verdict, and of those without one under `None`.
    pub counts: Vec<(Option<Verdict>, u32)>,
    /// When it was submitted, by the clock of the host that took it: ms since 1970.
    pub submitted_unix_ms: u64,
}

/// Something that happened on one host in one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptEvent {
    /// Position in this host's log of the attempt, from 1.
    pub seq: u64,
    /// When, by this host's clock: ms since 1970.
    pub unix_ms: u64,
    /// The host.
    pub host: Name,
    /// What.
    pub what: Happening,
}

/// What happened: the one vocabulary of progress, reports and stored logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// A step of the scenario began.
    StepBegan(String),
    /// A step ended well.
    StepEnded {
        /// Which.
        step: String,
        /// How long it took, ms.
        ms: u64,
        /// What is worth saying of it.
        note: String,
    },
    /// A barrier: this party arrived, it was released, or it broke.
    Barrier {
        /// Its tag.
        tag: String,
        /// `arrived`, `released` or `broken`.
        what: String,
        /// How many have arrived, of how many.
        arrived: (u32, u32),
        /// Who is missing.
        missing: Vec<Name>,
    },
    /// A reading of a running migration.
    Progress {
        /// Text form of its id.
        migration: String,
        /// The reading.
        sample: Sample,
    },
    /// A remark of the scenario or the daemon.
    Log {
        /// `info` or `warn`.
        level: String,
        /// The text.
        text: String,
    },
    /// The party ended.
    PartyEnded {
        /// `passed`, or why not.
        outcome: String,
    },
}
