//! Jobs as they are asked for (a plan), as they are shown (a view), and what happens in them (events).

use serde::{Deserialize, Serialize};

use crate::{
    codec,
    error::{ErrorCode, Report},
    ids::{AttemptId, CaseId, Digest, JobId, Name},
    matrix::Packed,
    params::Params,
    scenario::ScenarioText,
    verdict::Verdict,
    vm::Sample,
};

/// Most cases of one job.
pub const CASES_MAX: usize = 10_000;
/// Most bytes of an encoded plan.
pub const PLAN_MAX: usize = 64 << 20;

/// What a client asks to be run. It is stored as a blob; the log carries its digest and the hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the scenario that cases run whose variant has no `type`; empty where none was named.
    pub scenario: String,
    /// The cases, in order; their index is their position from 1.
    pub cases: Vec<PlannedCase>,
    /// How long one case may take, in ms.
    pub case_timeout_ms: u64,
    /// Hosts that were given but are left over: FAIL instead of SKIP.
    pub strict_hosts: bool,
    /// Who asked. Of a client with a certificate: the name it was admitted under; of others: what vtctl says.
    pub user: String,
    /// A remark of the user.
    pub note: Option<String>,
    /// A party that has come to its end keeps what it holds, its VM above all, until the job is released.
    pub keep: bool,
    /// The variants of a configuration, where there is one.
    pub matrix: Option<Packed>,
    /// The scenario itself, where it is no built-in one.
    pub file: Option<ScenarioText>,
}

impl Plan {
    /// As it is sent and stored.
    ///
    /// # Errors
    /// It is longer than [`PLAN_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, Report> {
        codec::encode_wire(self, PLAN_MAX).map_err(|error| {
            Report::new(ErrorCode::TooLarge, "the plan of the job is too large")
                .with("reason", error.to_string())
                .help("narrow it with --only and --no, or make several jobs of it")
        })
    }
}

/// One case of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCase {
    /// The variant's short name, or its full one where that is not its alone; for a case without a variant the scenario's.
    pub name: String,
    /// The hosts, in order: the first is host1.
    pub hosts: Vec<Name>,
    /// Set where the case is a left-over of the host list and cannot run.
    pub leftover: bool,
    /// Its parameters, where it has no variant.
    pub params: Params,
    /// The number of its variant in the matrix, from 0.
    pub variant: Option<u32>,
    /// Indexes of the cases that have to pass before this one begins, each smaller than its own.
    pub after: Vec<u32>,
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
    /// Values of `type` in configurations of Avocado-VT that mean this scenario as well.
    pub types: Vec<String>,
    /// Keys it reads besides: old spellings, and keys that say whether it can do what a variant asks for.
    pub also_reads: Vec<String>,
    /// What is done and what makes it pass; where Avocado-VT's test of that name does something else than it meant to, that.
    pub about: String,
}

impl ScenarioInfo {
    /// Whether a `type` means this scenario.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.types.iter().any(|other| other == name)
    }

    /// Whether it reads a key, be it the key of one VM, host or device: `mem`, `mem_vm1`, `mem_vm1_host2`,
    /// `image_size_stg`.
    pub fn reads(&self, key: &str) -> bool {
        let known = self.params.iter().map(|(known, ..)| known).chain(&self.also_reads);
        known.into_iter().any(|known| {
            let of_device = OF_DEVICES.contains(&known.as_str());
            key.strip_prefix(known.as_str()).is_some_and(|rest| is_suffix(rest) || of_device && rest.starts_with('_'))
        })
    }
}

/// Keys that a disk, CD, floppy disk or network card has for itself, under the name that the configuration gives it.
const OF_DEVICES: [&str; 17] = [
    "create_image",
    "force_create_image",
    "image_format",
    "image_name",
    "image_raw_device",
    "image_size",
    "cdrom",
    "floppy_name",
    "md5sum",
    "md5sum_1m",
    "sha1sum",
    "skip_hash",
    "nic_model",
    "nettype",
    "macvtap_mode",
    "vhost",
    "netdev_extra_params",
];

/// A key of configurations: who reads it, or why nobody does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// The key, without the names of VMs, hosts and other objects behind it.
    pub key: String,
    /// What it says, where it is read.
    pub meaning: String,
    /// The scenarios that read it.
    pub read_by: Vec<String>,
    /// Why it is without effect, where nobody reads it.
    pub without_effect: Option<String>,
}

/// What would become of a case of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseFate {
    /// What it runs: a scenario, or a `type` that names none.
    pub scenario: String,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of a case, as far as that is known before it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It runs.
    Runs,
    /// It runs and is the same test as an earlier case, whose index this is: its scenario reads no key in which they differ.
    Same(u32),
    /// It is skipped.
    Skipped(Report),
    /// It cannot be run: a plan with it is refused.
    Refused(Report),
}

/// Whether a key of a configuration is read for every scenario: it says which one a variant runs, and on what.
pub fn shapes_a_run(key: &str) -> bool {
    matches!(key, "type" | "vms" | "skip") || key.starts_with('_')
}

/// What may stand behind a key: the names of a VM and of a host.
fn is_suffix(rest: &str) -> bool {
    let mut words = rest.split('_');
    let numbered = |word: &str, name: &str| word.strip_prefix(name).is_some_and(|n| n.parse::<u32>().is_ok());
    words.next() == Some("") && words.all(|word| numbered(word, "vm") || numbered(word, "host"))
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
    /// What it runs: a scenario, or a `type` that names none.
    pub scenario: String,
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
    /// The full name of its variant, where `name` is a shorter one.
    pub variant: Option<String>,
}

impl CaseView {
    /// Its folder in the evidence: its index, and as much of its name as is safe in a file system.
    pub fn folder(&self) -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '=') { c } else { '_' };
        let name: String = self.name.chars().take(FOLDER_NAME_MAX).map(safe).collect();
        format!("cases/{:04}-{name}", self.id.index)
    }
}

/// Most characters of a case's name in the name of its folder.
const FOLDER_NAME_MAX: usize = 80;

/// The matrix of a job, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatrixView {
    /// Digest of the packed matrix: the same for every job that ran the same variants.
    pub digest: Digest,
    /// How many variants it has.
    pub variants: u32,
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
    /// Its matrix, where a configuration made its cases; not in lists.
    pub matrix: Option<MatrixView>,
}

impl JobView {
    /// What of this view differs from an earlier one: all of it but the cases that are as they were.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let same = |case: &&CaseView| earlier.cases.get(place(case)) == Some(*case);
        let cases = self.cases.iter().filter(|case| !same(case)).cloned().collect();
        Self { cases, ..self.head() }
    }

    /// Takes over what [`Self::since`] gave.
    pub fn take(&mut self, mut changed: Self) {
        let mut cases = std::mem::take(&mut self.cases);
        for case in std::mem::take(&mut changed.cases) {
            if let Some(known) = cases.get_mut(place(&case)) {
                *known = case;
            }
        }
        *self = Self { cases, ..changed };
    }

    fn head(&self) -> Self {
        Self {
            id: self.id,
            scenario: self.scenario.clone(),
            state: self.state,
            user: self.user.clone(),
            note: self.note.clone(),
            cases: Vec::new(),
            counts: self.counts.clone(),
            submitted_unix_ms: self.submitted_unix_ms,
            matrix: self.matrix.clone(),
        }
    }
}

/// Where a case stands among the cases of its job.
fn place(case: &CaseView) -> usize {
    usize::try_from(case.id.index).map_or(usize::MAX, |index| index.wrapping_sub(1))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_is_too_large_is_refused_where_it_is_made() {
        let plan = Plan { note: Some("x".repeat(PLAN_MAX)), ..Plan::default() };
        let report = plan.encode().unwrap_err();
        assert!(report.code == ErrorCode::TooLarge && !report.help.is_empty(), "{report:?}");
        assert_eq!(codec::decode_wire(&Plan::default().encode().unwrap(), PLAN_MAX), Ok(Plan::default()));
    }

    #[test]
    fn a_scenario_reads_its_keys_and_those_of_one_vm_or_host() {
        let info = ScenarioInfo {
            name: "s".into(),
            summary: String::new(),
            hosts: 2,
            params: vec![("mem".into(), String::new(), String::new())],
            types: vec!["old".into()],
            also_reads: vec!["mig_downtime".into()],
            about: String::new(),
        };
        for (key, read) in [
            ("mem", true),
            ("mem_vm1", true),
            ("mem_vm1_host2", true),
            ("mem_host2", true),
            ("mig_downtime", true),
            ("mem_probe", false),
            ("mem_vm", false),
            ("memory", false),
            ("mem_", false),
        ] {
            assert_eq!(info.reads(key), read, "{key}");
        }
        assert!(info.is_called("s") && info.is_called("old") && !info.is_called("new"));
    }

    fn case(index: u32, name: &str) -> CaseView {
        CaseView {
            id: CaseId { job: JobId(1), index },
            name: name.to_owned(),
            scenario: String::new(),
            hosts: vec![],
            state: CaseStateView::Pending { why: None },
            attempt: None,
            elapsed_ms: None,
            guest_downtime_ms: None,
            qemu_downtime_ms: None,
            migrations: None,
            variant: None,
        }
    }

    #[test]
    fn what_changed_in_a_view_makes_the_later_one_of_the_earlier_one() {
        let mut earlier = JobView {
            id: JobId(1),
            scenario: "s".into(),
            state: JobState::Queued,
            user: "me".into(),
            note: None,
            cases: (1..=500).map(|index| case(index, "v")).collect(),
            counts: vec![(None, 500)],
            submitted_unix_ms: 1,
            matrix: None,
        };
        let mut later = JobView { state: JobState::Running, counts: vec![(None, 499)], ..earlier.clone() };
        later.cases[41].state = CaseStateView::Done { verdict: Verdict::Pass, cause: None };
        let changed = later.since(&earlier);
        assert_eq!(changed.cases.iter().map(|case| case.id.index).collect::<Vec<_>>(), [42]);
        earlier.take(changed);
        assert_eq!(earlier, later);
        // A case that is not there is nobody's.
        earlier.take(JobView { cases: vec![case(0, "x"), case(501, "x")], ..earlier.clone() });
        assert_eq!(earlier, later);
    }

    #[test]
    fn a_folder_is_named_after_its_case_whatever_that_is_called() {
        let folder = |name: &str| case(7, name).folder();
        assert_eq!(folder("(a=b).c-1"), "cases/0007-_a=b_.c-1");
        assert_eq!(folder("../é/x y"), "cases/0007-..___x_y");
        assert_eq!(folder(&"x".repeat(500)).len(), "cases/0007-".len() + FOLDER_NAME_MAX);
    }
}
