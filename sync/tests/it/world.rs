//! A state and short words for commands.

use std::collections::BTreeMap;

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, CaseId, ClusterId, Digest, Epoch, HostId, JobId, MigrationId, TokenId, VmId},
    verdict::{Blame, Cause, Outcome},
};
use vt_sync::{
    Answer, Applied, Command, Request, State,
    command::{
        AbortMigration, AdmitHost, Arrive, BeginMigration, BreakBarrier, ClaimVm, CreateToken, ExpireSession,
        FinishMigration, InitCluster, MigrationPrepared, NewCase, NewHost, OpenSession, PartyEnded, ReleaseVm,
        StartAttempt, SubmitJob, SuspectHost, VoteDestLoaded, VoteSourceCompleted,
    },
    state::{BarrierKey, BarrierState, Role, VmRecord},
};

pub(crate) const JOB: JobId = JobId(7);

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) index: u64,
}

pub(crate) fn h(id: u64) -> HostId {
    HostId(id)
}

pub(crate) fn hosts(ids: &[u64]) -> Vec<HostId> {
    ids.iter().copied().map(HostId).collect()
}

pub(crate) fn new_host(id: u64) -> NewHost {
    NewHost {
        id: h(id),
        name: format!("host{id}").parse().unwrap(),
        addresses: vec![format!("10.0.0.{id}:7465").parse().unwrap()],
        labels: BTreeMap::new(),
        role: None,
        public_key: vec![u8::try_from(id).unwrap(); 44],
        build: "1".into(),
        facts: None,
    }
}

pub(crate) fn secret() -> Digest {
    Digest::of(b"secret")
}

pub(crate) fn token(id: u64) -> CreateToken {
    let made_by = "admin".into();
    CreateToken { token: TokenId(id), secret_hash: secret(), role: Role::Voter, made_by, expires_unix_s: 1 }
}

pub(crate) fn admit(id: u64) -> AdmitHost {
    AdmitHost { token: TokenId(id), secret_hash: secret(), host: new_host(id) }
}

pub(crate) fn attempt(index: u32) -> AttemptId {
    AttemptId { case: CaseId { job: JOB, index }, number: 1 }
}

pub(crate) fn passed() -> Outcome {
    Outcome::Passed { remark: None }
}

pub(crate) fn caused(blame: Blame, code: ErrorCode) -> Outcome {
    Outcome::Caused(Cause { blame, report: Report::new(code, "it went wrong") })
}

pub(crate) fn vm() -> VmId {
    VmId { attempt: attempt(1), name: "vm1".parse().unwrap() }
}

pub(crate) fn mig(number: u32) -> MigrationId {
    MigrationId { vm: vm(), number }
}

impl World {
    /// A state without a cluster.
    pub(crate) fn empty() -> Self {
        Self { state: State::default(), index: 0 }
    }

    /// Hosts 1 to `n`, each with a live session.
    pub(crate) fn of(n: u64) -> Self {
        let mut world = Self::empty();
        let id = ClusterId(1);
        world.ok(InitCluster { id, name: "c".parse().unwrap(), ca: Digest::of(b"ca"), host: new_host(1) });
        for id in 2..=n {
            world.ok(token(id));
            world.ok(admit(id));
        }
        for id in 1..=n {
            world.ok(OpenSession { host: h(id), incarnation: id, resume: false });
        }
        world
    }

    /// Two hosts with attempt 1 of one case running on both.
    pub(crate) fn running() -> Self {
        let mut world = Self::of(3);
        world.submit(&[&[1, 2]]);
        world.start(1, &[1, 2]);
        world
    }

    /// As [`Self::running`], with a VM on host 1 that is being moved to host 2, which is prepared.
    pub(crate) fn migrating() -> Self {
        let mut world = Self::running();
        world.claim(1);
        world.begin(1, 1, 2);
        world.ok(MigrationPrepared {
            migration: mig(1),
            host: h(2),
            address: "tcp:10.0.0.2:49152".into(),
            detail: vec![],
        });
        world
    }

    pub(crate) fn apply(&mut self, request: &Request) -> Result<Applied, vt_sync::Rejected> {
        self.index += 1;
        self.state.apply(self.index, request)
    }

    pub(crate) fn ok(&mut self, command: impl Into<Command>) -> Applied {
        let command = command.into();
        let name = command.name();
        self.apply(&Request::new(command)).unwrap_or_else(|rejected| panic!("{name}: {rejected}"))
    }

    /// The command is refused and changes nothing.
    pub(crate) fn no(&mut self, command: impl Into<Command>) -> ErrorCode {
        let command = command.into();
        let before = self.state.clone();
        let name = command.name();
        let rejected = self.apply(&Request::new(command)).expect_err(name);
        let after = State { requests: before.requests.clone(), index: before.index, ..self.state.clone() };
        assert!(after == before, "{name} was refused and changed something");
        rejected.code
    }

    pub(crate) fn submit(&mut self, cases: &[&[u64]]) {
        self.ok(submit(JOB, cases));
    }

    pub(crate) fn start(&mut self, case: u32, on: &[u64]) -> Epoch {
        self.ok(start(case, on)).epoch().unwrap()
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.state.attempt(attempt(1)).unwrap().epoch
    }

    pub(crate) fn session(&self, host: u64) -> Epoch {
        self.state.hosts[&h(host)].session.as_ref().unwrap().epoch
    }

    pub(crate) fn expire(&mut self, host: u64) {
        self.ok(self.expiring(host));
    }

    /// The verdict of a leader that has heard every renewal so far.
    pub(crate) fn expiring(&self, host: u64) -> ExpireSession {
        let SuspectHost { host, epoch, renewed } = self.suspecting(host);
        ExpireSession { host, epoch, renewed }
    }

    /// The suspicion of such a leader.
    pub(crate) fn suspecting(&self, host: u64) -> SuspectHost {
        let session = self.state.hosts[&h(host)].session.as_ref().unwrap();
        SuspectHost { host: h(host), epoch: session.epoch, renewed: session.renewed }
    }

    pub(crate) fn suspect(&mut self, host: u64) {
        self.ok(self.suspecting(host));
    }

    pub(crate) fn end(&mut self, host: u64, outcome: Outcome) {
        self.ok(self.ended(host, outcome));
    }

    pub(crate) fn ended(&self, host: u64, outcome: Outcome) -> PartyEnded {
        PartyEnded { attempt: attempt(1), epoch: self.epoch(), host: h(host), outcome, metrics: BTreeMap::new() }
    }

    pub(crate) fn arrive(&self, host: u64, tag: &str, payload: &[u8]) -> Arrive {
        Arrive {
            attempt: attempt(1),
            epoch: self.epoch(),
            host: h(host),
            barrier: key(tag, 1),
            parties: vec![],
            payload: payload.to_vec(),
        }
    }

    pub(crate) fn give_up(&self, host: u64, tag: &str) -> BreakBarrier {
        BreakBarrier { attempt: attempt(1), epoch: self.epoch(), host: h(host), barrier: key(tag, 1), parties: vec![] }
    }

    pub(crate) fn arrives(&mut self, host: u64, tag: &str) -> BarrierState {
        match self.ok(self.arrive(host, tag, b"")).answer {
            Answer::Barrier(state) => state,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn barrier(&self, tag: &str) -> BarrierState {
        self.state.attempt(attempt(1)).unwrap().barrier(tag, 1).unwrap().state.clone()
    }

    pub(crate) fn claim(&mut self, host: u64) -> Epoch {
        self.ok(self.claiming(host)).epoch().unwrap()
    }

    pub(crate) fn claiming(&self, host: u64) -> ClaimVm {
        ClaimVm {
            vm: vm(),
            host: h(host),
            epoch: self.epoch(),
            image: "guest".parse().unwrap(),
            spec: None,
            also: Vec::new(),
            alone: Vec::new(),
        }
    }

    pub(crate) fn releasing(&self, host: u64) -> ReleaseVm {
        ReleaseVm { vm: vm(), host: h(host), epoch: self.vm().epoch }
    }

    pub(crate) fn vm(&self) -> VmRecord {
        VmRecord::clone(&self.state.vms[&vm()])
    }

    pub(crate) fn begin(&mut self, number: u32, from: u64, to: u64) {
        self.ok(self.beginning(number, from, to));
    }

    pub(crate) fn beginning(&self, number: u32, from: u64, to: u64) -> BeginMigration {
        BeginMigration { migration: mig(number), from: h(from), epoch: self.vm().epoch, to: h(to) }
    }

    pub(crate) fn moved(&mut self, command: impl Into<Command>) -> Option<Epoch> {
        match self.ok(command).answer {
            Answer::Voted { moved } => moved,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn key(tag: &str, generation: u32) -> BarrierKey {
    BarrierKey { tag: tag.into(), generation }
}

pub(crate) fn submit(job: JobId, cases: &[&[u64]]) -> SubmitJob {
    SubmitJob {
        job,
        scenario: "multihost_migration".into(),
        plan: Digest::of(b"plan"),
        holders: vec![h(1)],
        strict: false,
        submitted_by: "me".into(),
        submitted_unix_s: 0,
        cases: cases.iter().map(|ids| NewCase::on(hosts(ids))).collect(),
        refusals: vec![],
    }
}

pub(crate) fn start(case: u32, on: &[u64]) -> StartAttempt {
    StartAttempt { case: CaseId { job: JOB, index: case }, number: 1, hosts: hosts(on) }
}

pub(crate) fn source_votes(host: u64) -> VoteSourceCompleted {
    VoteSourceCompleted { migration: mig(1), host: h(host) }
}

pub(crate) fn destination_votes(host: u64) -> VoteDestLoaded {
    VoteDestLoaded { migration: mig(1), host: h(host) }
}

pub(crate) fn aborts(host: u64) -> AbortMigration {
    AbortMigration { migration: mig(1), host: h(host), why: Report::new(ErrorCode::MigrationFailed, "it failed") }
}

pub(crate) fn finishes(host: u64) -> FinishMigration {
    FinishMigration { migration: mig(1), host: h(host) }
}

impl World {
    /// The first commands of a cluster, for replicas.
    pub(crate) fn init_commands() -> Vec<Command> {
        let init =
            InitCluster { id: ClusterId(1), name: "c".parse().unwrap(), ca: Digest::of(b"ca"), host: new_host(1) };
        vec![init.into()]
    }
}
