//! What users are shown, made from committed state: status, hosts, jobs, VMs, tokens. Pure; who asks adds what the
//! state does not hold (names of cases from the plan, figures of consensus).

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use vt_protocol::{
    admin::{ClusterStatus, HostRole, HostView, TokenGrant, TokenView, VmView},
    error::ErrorCode,
    ids::{AttemptId, CaseId, HostId, Name},
    job::{CaseStateView, CaseView, JobState as JobStateView, JobView, PlannedCase},
};
use vt_sync::{
    State,
    state::{Case, CaseState, Grant, Host, Job, JobState, Phase, Role, SessionStatus, TokenStatus, VmState},
};

use crate::{
    control::schedule::{self, Condition},
    plan::OpenPlan,
};

/// What consensus knows and the state does not.
#[derive(Debug, Clone, Default)]
pub struct Consensus {
    /// Who votes.
    pub voters: BTreeSet<HostId>,
    /// Who leads, where known.
    pub leader: Option<HostId>,
    /// The term.
    pub term: u64,
    /// Whether the cluster can decide, as this host sees it.
    pub quorum: bool,
    /// Entries each host is behind, where this host leads.
    pub lag: BTreeMap<HostId, u64>,
}

/// How a host is for the scheduler.
pub fn condition(state: &State, host: HostId) -> Condition {
    let Some(record) = state.hosts.get(&host) else { return Condition::Never("is not in the cluster any more") };
    if record.role == Role::Witness {
        Condition::Never("is a witness and runs nothing")
    } else if !record.is_live() {
        Condition::Down
    } else if record.cordoned {
        Condition::Cordoned
    } else if let Some(attempt) = state.busy_with(host) {
        Condition::Busy(attempt.id)
    } else {
        Condition::Free
    }
}

/// The cluster on one screen; `None` before its first entry.
pub fn status(state: &State, consensus: &Consensus, answered_by: &Name) -> Option<ClusterStatus> {
    let cluster = state.cluster.as_ref()?;
    let voters = consensus.voters.len() as u32;
    let name = |host: HostId| state.hosts.get(&host).map(|host| host.name.clone());
    let jobs = state.jobs.values().filter(|job| job.state != JobState::Done).count() as u32;
    Some(ClusterStatus {
        cluster: cluster.id,
        name: cluster.name.clone(),
        ca_fingerprint: cluster.ca.to_string(),
        quorum: consensus.quorum,
        leader: consensus.leader.and_then(name),
        term: consensus.term,
        voters,
        survives: voters.saturating_sub(1) / 2,
        applied: state.index,
        answered_by: answered_by.clone(),
        hosts: hosts(state, consensus),
        jobs,
        notes: notes(state, consensus),
    })
}

fn notes(state: &State, consensus: &Consensus) -> Vec<String> {
    let mut notes = Vec::new();
    if !consensus.quorum {
        notes.push("most voters do not answer: nothing can be decided, and what is shown here may be old".to_owned());
    }
    let hosts = state.hosts.len();
    if hosts > 1
        && let [only] = consensus.voters.iter().collect::<Vec<_>>()[..]
    {
        notes.push(format!("one voter: losing {} stops everything", state.host_name(*only)));
    }
    let willing = state.hosts.values().filter(|host| host.role != Role::Learner).count();
    if hosts == 2 && willing == 2 {
        notes.push("two hosts cannot both vote safely; a third one, or a witness, makes three voters".to_owned());
    }
    for host in state.hosts.values() {
        match host.session.as_ref().map(|session| session.status) {
            Some(SessionStatus::Suspect) => notes.push(format!("{} does not answer", host.name)),
            Some(SessionStatus::Expired) => {
                notes.push(format!("{} is down: its session has ended and what it held was given up", host.name));
            }
            Some(SessionStatus::Live) | None => {}
        }
    }
    if state.authority.as_ref().is_some_and(|authority| authority.previous.is_some()) {
        notes
            .push("two certificate authorities are trusted: vtctl cluster ca show tells what is left to do".to_owned());
    }
    notes
}

/// All hosts, in natural order of names.
pub fn hosts(state: &State, consensus: &Consensus) -> Vec<HostView> {
    let mut views: Vec<HostView> = state.hosts.values().map(|host| host_view(state, consensus, host)).collect();
    views.sort_by(|a, b| natural(a.name.as_str(), b.name.as_str()));
    views
}

/// One host.
pub fn host_view(state: &State, consensus: &Consensus, host: &Host) -> HostView {
    let role = match (host.role, consensus.voters.contains(&host.id)) {
        (Role::Witness, _) => HostRole::Witness,
        (_, true) => HostRole::Voter,
        (_, false) => HostRole::Learner,
    };
    HostView {
        id: host.id,
        name: host.name.clone(),
        role,
        leader: consensus.leader == Some(host.id),
        state: match host.session.as_ref().map(|session| session.status) {
            None => "joining",
            Some(SessionStatus::Live) => "live",
            Some(SessionStatus::Suspect) => "suspect",
            Some(SessionStatus::Expired) => "expired",
        }
        .to_owned(),
        addresses: host.addresses.clone(),
        labels: host.labels.clone(),
        build: host.build.clone(),
        attempt: state.busy_with(host.id).map(|attempt| attempt.id),
        vms: state.vms.values().filter(|vm| vm.owner == host.id && vm.state == VmState::Owned).count() as u32,
        lag: consensus.lag.get(&host.id).copied(),
        cordoned: host.cordoned,
        reserved: state.reservations.get(&host.id).map(|hold| (**hold).clone()),
    }
}

/// Tokens, in the order they were made.
pub fn tokens(state: &State, made_on: impl Fn(&str) -> Name) -> Vec<TokenView> {
    let mut tokens: Vec<_> = state.tokens.values().collect();
    tokens.sort_by_key(|token| token.made_at);
    let view = |token: &&Arc<vt_sync::state::Token>| TokenView {
        id: token.id,
        grant: match &token.grant {
            Grant::Host(role) => TokenGrant::Host(shown_role(*role)),
            Grant::Client(client) => TokenGrant::Client(client.role),
        },
        state: match token.status {
            TokenStatus::Open => "open".to_owned(),
            TokenStatus::Used { host } => format!("used by {}", state.host_name(host)),
            TokenStatus::Revoked => "revoked".to_owned(),
            TokenStatus::Expired => "expired".to_owned(),
            TokenStatus::Enrolled { client } => match state.clients.get(&client) {
                Some(client) => format!("used by {}", client.name),
                None => "used".to_owned(),
            },
        },
        expires_unix_s: token.expires_unix_s,
        made_on: made_on(&token.made_by),
    };
    tokens.iter().map(view).collect()
}

/// The wire's word for a role.
pub fn shown_role(role: Role) -> HostRole {
    match role {
        Role::Voter => HostRole::Voter,
        Role::Learner => HostRole::Learner,
        Role::Witness => HostRole::Witness,
    }
}

/// The state's word for a role.
pub fn stored_role(role: HostRole) -> Role {
    match role {
        HostRole::Voter => Role::Voter,
        HostRole::Learner => Role::Learner,
        HostRole::Witness => Role::Witness,
    }
}

/// VMs of live attempts, by owner record.
pub fn vms(state: &State) -> Vec<VmView> {
    let named = |host: HostId| state.hosts.get(&host).map(|host| host.name.clone());
    let view = |vm: &Arc<vt_sync::state::VmRecord>| {
        Some(VmView {
            id: vm.id.to_string(),
            name: vm.id.name.clone(),
            owner: named(vm.owner)?,
            epoch: vm.epoch,
            image: vm.image.clone(),
            attempt: vm.id.attempt,
            migration: vm.migration.as_ref().and_then(|migration| {
                let phase = match migration.phase {
                    Phase::Begun => "begun",
                    Phase::Prepared { .. } if migration.source_completed => "source completed",
                    Phase::Prepared { .. } if migration.dest_loaded => "destination loaded",
                    Phase::Prepared { .. } => "prepared",
                    Phase::Moved { .. } => "moved",
                    Phase::Aborted { .. } => "aborted",
                };
                Some((named(migration.from)?, named(migration.to)?, phase.to_owned()))
            }),
        })
    };
    state.vms.values().filter_map(view).collect()
}

/// A job; `plan` gives the names of its cases, which are not listed without it.
pub fn job(state: &State, job: &Job, plan: Option<&OpenPlan>) -> JobView {
    let mut counts: BTreeMap<Option<_>, u32> = BTreeMap::new();
    for case in &job.cases {
        let verdict = match &case.state {
            CaseState::Done { verdict, .. } => Some(*verdict),
            CaseState::Pending | CaseState::Running { .. } => None,
        };
        *counts.entry(verdict).or_default() += 1;
    }
    JobView {
        id: job.id,
        scenario: job.scenario.clone(),
        state: match job.state {
            JobState::Queued => JobStateView::Queued,
            JobState::Running => JobStateView::Running,
            JobState::Cancelling => JobStateView::Cancelling,
            JobState::Done => JobStateView::Done,
        },
        user: job.submitted_by.clone(),
        note: plan.and_then(|plan| plan.plan().note.clone()),
        cases: plan.map(|plan| cases(state, job, plan)).unwrap_or_default(),
        counts: counts.into_iter().collect(),
        submitted_unix_ms: job.submitted_unix_s.saturating_mul(1000),
        matrix: plan.and_then(OpenPlan::matrix),
    }
}

fn cases(state: &State, job: &Job, plan: &OpenPlan) -> Vec<CaseView> {
    let name_of = |index: u32| plan.case(index).map_or_else(String::new, |(parent, _)| parent.name.clone());
    let view = |((id, case), (planned, scenario)): ((CaseId, &Arc<Case>), (&PlannedCase, &str))| {
        let attempt = (case.attempts > 0).then_some(AttemptId { case: id, number: case.attempts });
        let record_of = attempt.and_then(|attempt| state.attempt(attempt));
        let figure = |name: &str| record_of.and_then(|attempt| attempt.metrics.get(name)).copied();
        CaseView {
            id,
            name: planned.name.clone(),
            scenario: scenario.to_owned(),
            hosts: planned.hosts.clone(),
            state: match &case.state {
                CaseState::Pending => CaseStateView::Pending {
                    why: match job.waits_for(case) {
                        Some(parent) => Some(format!("{} has no verdict yet", name_of(parent))),
                        None => state.held_from(&job.submitted_by, &case.hosts).or_else(|| {
                            schedule::why(&case.hosts, |host| condition(state, host), |host| state.host_name(host))
                        }),
                    },
                },
                CaseState::Running { attempt } => CaseStateView::Running { attempt: *attempt },
                CaseState::Done { verdict, cause } => {
                    let mut cause = cause.clone();
                    // The state knows cases by their indexes only.
                    if let Some(cause) = cause.as_mut().filter(|cause| cause.code == ErrorCode::ParentNotPassed)
                        && let Some(parent) = job.failed_before(case)
                    {
                        cause.title = format!("parent {} did not pass", name_of(parent));
                    }
                    CaseStateView::Done { verdict: *verdict, cause }
                }
            },
            attempt,
            elapsed_ms: figure("elapsed_ms"),
            guest_downtime_ms: figure("guest_downtime_ms"),
            qemu_downtime_ms: figure("qemu_downtime_ms"),
            migrations: record_of.map(moved),
            variant: plan.variant(planned).map(str::to_owned),
        }
    };
    job.cases().zip(plan.cases()).map(view).collect()
}

/// How many migrations of an attempt were completed.
fn moved(attempt: &Arc<vt_sync::state::Attempt>) -> u64 {
    attempt.history.iter().filter(|migration| matches!(migration.phase, Phase::Moved { .. })).count() as u64
}

/// Order in which numbers inside names count as numbers: host2 before host10.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut a_rest, mut b_rest) = (a, b);
    loop {
        let (a_digits, b_digits) = (digits(a_rest), digits(b_rest));
        if a_digits > 0 && b_digits > 0 {
            let (a_number, b_number) = (&a_rest[..a_digits], &b_rest[..b_digits]);
            let (a_plain, b_plain) = (a_number.trim_start_matches('0'), b_number.trim_start_matches('0'));
            let order = a_plain.len().cmp(&b_plain.len()).then_with(|| a_plain.cmp(b_plain));
            if order != Ordering::Equal {
                return order;
            }
            (a_rest, b_rest) = (&a_rest[a_digits..], &b_rest[b_digits..]);
            continue;
        }
        match (a_rest.chars().next(), b_rest.chars().next()) {
            (None, None) => return a.cmp(b),
            (x, y) if x != y => return x.cmp(&y),
            (Some(c), _) => (a_rest, b_rest) = (&a_rest[c.len_utf8()..], &b_rest[c.len_utf8()..]),
            (None, Some(_)) => return Ordering::Less,
        }
    }
}

fn digits(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use vt_protocol::{
        error::Report,
        ids::{ClusterId, Digest, Epoch, JobId},
        job::Plan,
        verdict::Verdict,
    };
    use vt_sync::{
        Command, Request,
        command::{InitCluster, NewCase, NewHost, OpenSession, SkipCase, StartAttempt, SubmitJob, SuspectHost},
    };

    use super::*;

    fn new_host(id: u64, name: &str) -> NewHost {
        NewHost {
            id: HostId(id),
            name: name.parse().unwrap(),
            addresses: vec!["10.0.0.1:7465".parse().unwrap()],
            labels: BTreeMap::new(),
            role: None,
            public_key: vec![id as u8],
            build: "0.1.0".into(),
            facts: None,
        }
    }

    struct World {
        state: State,
    }

    impl World {
        /// A cluster of host1 and host2, both live.
        fn new() -> Self {
            let mut world = Self { state: State::default() };
            world.apply(InitCluster {
                id: ClusterId(1),
                name: "lab".parse().unwrap(),
                ca: Digest::of(b"ca"),
                host: new_host(1, "host1"),
            });
            world.apply(vt_sync::command::CreateToken {
                token: vt_protocol::ids::TokenId(5),
                secret_hash: Digest::of(b"secret"),
                role: Role::Voter,
                made_by: "host1".into(),
                expires_unix_s: 9,
            });
            world.apply(vt_sync::command::AdmitHost {
                token: vt_protocol::ids::TokenId(5),
                secret_hash: Digest::of(b"secret"),
                host: new_host(2, "host2"),
            });
            for host in [1, 2] {
                world.apply(OpenSession { host: HostId(host), incarnation: 1, resume: false });
            }
            world
        }

        fn apply(&mut self, command: impl Into<Command>) {
            let index = self.state.index + 1;
            self.state.apply(index, &Request::new(command)).unwrap();
        }

        fn suspect(&mut self, host: u64) {
            let session = self.state.hosts[&HostId(host)].session.clone().unwrap();
            self.apply(SuspectHost { host: HostId(host), epoch: session.epoch, renewed: session.renewed });
        }

        fn job(&mut self) -> OpenPlan {
            let case = |name: &str, hosts: &[&str]| PlannedCase {
                name: name.into(),
                hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
                leftover: hosts.is_empty(),
                ..PlannedCase::default()
            };
            let plan = Plan {
                scenario: "s".into(),
                cases: vec![case("a", &["host1", "host2"]), case("b", &["host1"]), case("c", &[])],
                note: Some("night run".into()),
                ..Plan::default()
            };
            let hosts = |ids: &[u64]| NewCase::on(ids.iter().map(|id| HostId(*id)).collect());
            self.apply(SubmitJob {
                job: JobId(3),
                scenario: "s".into(),
                plan: Digest::of(b"plan"),
                holders: vec![HostId(1)],
                strict: false,
                submitted_by: "me".into(),
                submitted_unix_s: 7,
                cases: vec![hosts(&[1, 2]), hosts(&[1]), hosts(&[])],
                refusals: vec![],
            });
            OpenPlan::new(plan).unwrap()
        }
    }

    fn voters(ids: &[u64]) -> Consensus {
        Consensus {
            voters: ids.iter().map(|id| HostId(*id)).collect(),
            leader: Some(HostId(1)),
            term: 4,
            quorum: true,
            lag: BTreeMap::new(),
        }
    }

    #[test]
    fn a_status_says_what_is_fragile() {
        let mut world = World::new();
        let me = "host1".parse().unwrap();
        let shown = status(&world.state, &voters(&[1]), &me).unwrap();
        assert_eq!((shown.voters, shown.survives, shown.hosts.len()), (1, 0, 2));
        assert_eq!(shown.leader.unwrap().as_str(), "host1");
        assert!(shown.notes[0].contains("losing host1 stops everything"), "{:?}", shown.notes);
        assert_eq!(shown.hosts[1].role, HostRole::Learner);

        let shown = status(&world.state, &voters(&[1, 2, 3]), &me).unwrap();
        assert_eq!(shown.survives, 1);
        assert!(!shown.notes.iter().any(|note| note.contains("one voter")));

        world.suspect(2);
        let consensus = Consensus { quorum: false, ..voters(&[1]) };
        let shown = status(&world.state, &consensus, &me).unwrap();
        assert!(shown.notes[0].contains("may be old"), "{:?}", shown.notes);
        assert!(shown.notes.iter().any(|note| note == "host2 does not answer"), "{:?}", shown.notes);
        assert_eq!(shown.hosts[1].state, "suspect");
    }

    #[test]
    fn a_job_shows_each_case_with_its_name_and_what_it_waits_for() {
        let mut world = World::new();
        let plan = world.job();
        world.suspect(2);
        world.apply(StartAttempt { case: CaseId { job: JobId(3), index: 2 }, number: 1, hosts: vec![HostId(1)] });
        world.apply(SkipCase {
            case: CaseId { job: JobId(3), index: 3 },
            verdict: Verdict::Skip,
            cause: Report::new(ErrorCode::CannotRunHere, "left over"),
        });
        let record = &world.state.jobs[&JobId(3)];
        let view = job(&world.state, record, Some(&plan));
        assert_eq!(view.state, JobStateView::Running);
        assert_eq!(view.counts, [(None, 2), (Some(Verdict::Skip), 1)]);
        assert_eq!(view.cases[0].state, CaseStateView::Pending { why: Some("host2 is down".into()) });
        assert_eq!(view.cases[1].name, "b");
        assert!(matches!(view.cases[1].state, CaseStateView::Running { attempt } if attempt.number == 1));
        assert!(matches!(view.cases[2].state, CaseStateView::Done { verdict: Verdict::Skip, .. }));
        assert_eq!(view.note.as_deref(), Some("night run"));
        assert!(job(&world.state, record, None).cases.is_empty());
        assert_eq!(condition(&world.state, HostId(2)), Condition::Down);
        assert!(matches!(condition(&world.state, HostId(1)), Condition::Busy(_)));
        assert!(matches!(condition(&world.state, HostId(99)), Condition::Never(_)));
        assert_eq!(world.state.hosts[&HostId(1)].session.as_ref().unwrap().epoch, Epoch(4));
    }

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["host10", "host2", "host1", "a", "host02", "host", "lab-a1"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a", "host", "host1", "host02", "host2", "host10", "lab-a1"]);
    }
}
