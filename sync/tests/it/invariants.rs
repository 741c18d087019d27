//! Random commands, and what must hold after each of them. The checks are shown to fail on states made wrong by hand.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use vt_protocol::{
    codec,
    error::{ErrorCode, Report},
    ids::{AttemptId, CaseId, Epoch, RequestId, VmId},
    verdict::{Blame, Consequence, Outcome, Verdict},
};
use vt_sync::{
    Command, Request, State, bounds,
    command::{
        AbortMigration, Arrive, BeginMigration, BreakBarrier, CancelJob, ClaimVm, ExpireSession, FinishMigration,
        MigrationPrepared, OpenSession, PartyEnded, ReleaseVm, RemoveHost, RenewSessions, SkipCase, StartAttempt,
        SuspectHost, VoteDestLoaded, VoteSourceCompleted,
    },
    state::{BarrierState, CaseState, JobState, PartyState, Phase},
};

use crate::world::{JOB, World, caused, h, hosts, key, mig, passed, submit, vm};

/// What must hold between a state and the next one.
fn check(before: &State, after: &State) -> Result<(), String> {
    owners(before, after)?;
    migrations(before, after)?;
    barriers(before, after)?;
    cases(before, after)?;
    busy(after)
}

fn owners(before: &State, after: &State) -> Result<(), String> {
    for (id, vm) in &after.vms {
        if vm.epoch != vm.writer_epoch {
            return Err(format!("{id}: owner and writer have different epochs"));
        }
        let Some(old) = before.vms.get(id) else { continue };
        if (old.owner, old.epoch) == (vm.owner, vm.epoch) {
            continue;
        }
        let moved = vm.migration.as_ref().is_some_and(|m| {
            m.source_completed
                && m.dest_loaded
                && m.phase == Phase::Moved { epoch: vm.epoch }
                && (m.from, m.to) == (old.owner, vm.owner)
        });
        let undecided = old.migration.as_ref().is_some_and(|m| m.is_under_way());
        if !moved || !undecided || vm.epoch.0 != after.index || vm.epoch <= old.epoch {
            return Err(format!("{id}: the owner changed without both votes"));
        }
    }
    Ok(())
}

fn decided(state: &State) -> BTreeMap<String, Phase> {
    let current = state.vms.values().filter_map(|vm| vm.migration.as_ref());
    let history = state.attempts.values().chain(state.ended.values()).flat_map(|attempt| &attempt.history);
    current.chain(history).filter(|m| !m.is_under_way()).map(|m| (m.id.to_string(), m.phase.clone())).collect()
}

fn migrations(before: &State, after: &State) -> Result<(), String> {
    let now = decided(after);
    for (id, phase) in decided(before) {
        if now.get(&id).is_some_and(|later| *later != phase) {
            return Err(format!("{id}: a decision changed"));
        }
    }
    Ok(())
}

fn barriers(before: &State, after: &State) -> Result<(), String> {
    for (id, attempt) in &after.attempts {
        for (key, barrier) in &attempt.barriers {
            if barrier.state == BarrierState::Released && !barrier.missing().is_empty() {
                return Err(format!("{id} {key}: released before all arrived"));
            }
            if barrier.arrived.keys().any(|host| !barrier.wanted.contains(host)) {
                return Err(format!("{id} {key}: somebody arrived who was not wanted"));
            }
            let old = before.attempts.get(id).and_then(|attempt| attempt.barriers.get(key));
            if old.is_some_and(|old| old.state != BarrierState::Open && old.state != barrier.state) {
                return Err(format!("{id} {key}: released or broken a second time"));
            }
            if let Some(old) = old
                && old.arrived.iter().any(|(host, payload)| barrier.arrived.get(host) != Some(payload))
            {
                return Err(format!("{id} {key}: a payload was lost or changed"));
            }
        }
    }
    Ok(())
}

fn cases(before: &State, after: &State) -> Result<(), String> {
    for (job_id, job) in &after.jobs {
        if (job.state == JobState::Done) != (job.open_cases() == 0) {
            return Err(format!("{job_id}: done and open at once"));
        }
        for (id, case) in job.cases() {
            if let CaseState::Running { attempt } = case.state
                && !after.attempts.contains_key(&attempt)
            {
                return Err(format!("{id}: it runs without an attempt"));
            }
            if case.attempts > 0 && (job.waits_for(case).is_some() || job.failed_before(case).is_some()) {
                return Err(format!("{id}: it began before what it depends on had passed"));
            }
            if let CaseState::Done { verdict: Verdict::Pass | Verdict::Warn, .. } = case.state {
                let attempt = AttemptId { case: id, number: case.attempts };
                let all_passed = after.attempt(attempt).is_some_and(|attempt| {
                    attempt.parties.values().all(|p| matches!(p, PartyState::Ended(Outcome::Passed { .. })))
                });
                if !all_passed {
                    return Err(format!("{id}: it passed and a party did not"));
                }
            }
            let old = before.case(id);
            if let Some(old) = old
                && matches!(old.state, CaseState::Done { .. })
                && old.state != case.state
            {
                return Err(format!("{id}: a verdict changed"));
            }
        }
    }
    for (id, attempt) in &after.attempts {
        if after.case(id.case).and_then(|case| case.running()) != Some(*id) {
            return Err(format!("{id}: its case does not know of it"));
        }
        if attempt.parties.values().all(|party| *party != PartyState::Running) {
            return Err(format!("{id}: every party has ended and it was not judged"));
        }
    }
    Ok(())
}

fn busy(after: &State) -> Result<(), String> {
    for host in after.hosts.keys() {
        let serves = after.attempts.values().filter(|attempt| attempt.runs_on(*host)).count();
        if serves > 1 {
            return Err(format!("{host} serves {serves} attempts"));
        }
    }
    for attempt in after.attempts.values() {
        let vms = after.vms.keys().filter(|vm| vm.attempt == attempt.id).count();
        if vms > bounds::VMS_PER_ATTEMPT || attempt.barriers.len() > bounds::BARRIERS_PER_ATTEMPT {
            return Err(format!("{} is over its bounds", attempt.id));
        }
    }
    Ok(())
}

/// A command in few numbers, so that most of them meet something.
#[derive(Debug, Clone)]
enum Op {
    Open(u64, bool),
    Renew(u64),
    Suspect(u64),
    Expire(u64),
    Start(u32),
    Skip(u32),
    Cancel,
    End(u32, u64, u8),
    Arrive(u32, u64, u8, u32, bool),
    Break(u32, u64, u8, u32),
    Claim(u32, u64),
    Release(u64),
    Begin(u32, u64, u64),
    Prepared(u32, u64),
    Source(u32, u64),
    Dest(u32, u64),
    Abort(u32, u64),
    Finish(u32, u64),
    Remove(u64),
    Repeat,
    /// What an honest host would do next about the VM; the number picks among several.
    Honest(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let host = || 1..5_u64;
    let case = || 1..4_u32;
    // Mostly the case that moves a VM: it has the longest way to go.
    let busy_case = || prop_oneof![4 => Just(1_u32), 1 => 2..4_u32];
    let number = || prop_oneof![4 => Just(1_u32), 1 => Just(2_u32)];
    prop_oneof![
        1 => (host(), any::<bool>()).prop_map(|(a, b)| Op::Open(a, b)),
        1 => host().prop_map(Op::Renew),
        1 => host().prop_map(Op::Suspect),
        1 => host().prop_map(Op::Expire),
        8 => case().prop_map(Op::Start),
        1 => case().prop_map(Op::Skip),
        1 => Just(Op::Cancel),
        3 => (busy_case(), host(), 0..4_u8).prop_map(|(a, b, c)| Op::End(a, b, c)),
        8 => (busy_case(), host(), 0..3_u8, 1..3_u32, any::<bool>())
            .prop_map(|(a, b, c, d, e)| Op::Arrive(a, b, c, d, e)),
        1 => (busy_case(), host(), 0..3_u8, 1..3_u32).prop_map(|(a, b, c, d)| Op::Break(a, b, c, d)),
        4 => (busy_case(), host()).prop_map(|(a, b)| Op::Claim(a, b)),
        1 => host().prop_map(Op::Release),
        6 => (number(), host(), host()).prop_map(|(a, b, c)| Op::Begin(a, b, c)),
        6 => (number(), host()).prop_map(|(a, b)| Op::Prepared(a, b)),
        6 => (number(), host()).prop_map(|(a, b)| Op::Source(a, b)),
        6 => (number(), host()).prop_map(|(a, b)| Op::Dest(a, b)),
        2 => (number(), host()).prop_map(|(a, b)| Op::Abort(a, b)),
        3 => (number(), host()).prop_map(|(a, b)| Op::Finish(a, b)),
        1 => prop_oneof![Just(3_u64), Just(4)].prop_map(Op::Remove),
        3 => Just(Op::Repeat),
        40 => any::<u8>().prop_map(Op::Honest),
    ]
}

const CASES: [&[u64]; 3] = [&[1, 2], &[2, 3], &[3, 4]];

impl Op {
    /// The command as somebody who reads the state would send it; `None` repeats the last request.
    fn command(&self, state: &State) -> Option<Command> {
        let attempt = |index| AttemptId { case: CaseId { job: JOB, index }, number: 1 };
        let epoch = |index| state.attempt(attempt(index)).map_or(Epoch(0), |a| a.epoch);
        let session = |host| state.hosts.get(&h(host)).and_then(|x| x.session.as_ref()).map_or(Epoch(0), |s| s.epoch);
        let owner = || state.vms.get(&vm()).map_or(Epoch(0), |vm| vm.epoch);
        let why = || Report::new(ErrorCode::MigrationFailed, "random");
        let tag = |tag: u8| format!("t{tag}");
        Some(match self.clone() {
            Op::Open(host, resume) => OpenSession { host: h(host), incarnation: 1, resume }.into(),
            Op::Renew(host) => RenewSessions { sessions: vec![(h(host), session(host))] }.into(),
            Op::Suspect(host) => {
                SuspectHost { host: h(host), epoch: session(host), renewed: Epoch(state.index) }.into()
            }
            Op::Expire(host) => {
                ExpireSession { host: h(host), epoch: session(host), renewed: Epoch(state.index) }.into()
            }
            Op::Start(index) => {
                StartAttempt { case: CaseId { job: JOB, index }, number: 1, hosts: hosts(CASES[index as usize - 1]) }
                    .into()
            }
            Op::Skip(index) => {
                SkipCase { case: CaseId { job: JOB, index }, verdict: Verdict::Skip, cause: why() }.into()
            }
            Op::Cancel => CancelJob { job: JOB, by: "me".into() }.into(),
            Op::End(index, host, how) => PartyEnded {
                attempt: attempt(index),
                epoch: epoch(index),
                host: h(host),
                outcome: match how {
                    0 => caused(Blame::Product, ErrorCode::MigrationFailed),
                    1 => Outcome::Followed(Consequence::Closed),
                    _ => passed(),
                },
                metrics: BTreeMap::new(),
            }
            .into(),
            Op::Arrive(index, host, t, generation, odd) => Arrive {
                attempt: attempt(index),
                epoch: epoch(index),
                host: h(host),
                barrier: key(&tag(t), generation),
                parties: vec![],
                payload: vec![u8::from(odd)],
            }
            .into(),
            Op::Break(index, host, t, generation) => BreakBarrier {
                attempt: attempt(index),
                epoch: epoch(index),
                host: h(host),
                barrier: key(&tag(t), generation),
                parties: vec![],
            }
            .into(),
            Op::Claim(index, host) => ClaimVm {
                vm: VmId { attempt: attempt(index), name: "vm1".parse().unwrap() },
                host: h(host),
                epoch: epoch(index),
                image: "guest".parse().unwrap(),
                spec: None,
                also: vec![],
                alone: vec![],
            }
            .into(),
            Op::Release(host) => ReleaseVm { vm: vm(), host: h(host), epoch: owner() }.into(),
            Op::Begin(n, from, to) => {
                BeginMigration { migration: mig(n), from: h(from), epoch: owner(), to: h(to) }.into()
            }
            Op::Prepared(n, host) => {
                MigrationPrepared { migration: mig(n), host: h(host), address: "a".into(), detail: vec![] }.into()
            }
            Op::Source(n, host) => VoteSourceCompleted { migration: mig(n), host: h(host) }.into(),
            Op::Dest(n, host) => VoteDestLoaded { migration: mig(n), host: h(host) }.into(),
            Op::Abort(n, host) => AbortMigration { migration: mig(n), host: h(host), why: why() }.into(),
            Op::Finish(n, host) => FinishMigration { migration: mig(n), host: h(host) }.into(),
            Op::Remove(host) => RemoveHost { host: h(host) }.into(),
            Op::Repeat => return None,
            Op::Honest(pick) => return honest(state, pick).command(state),
        })
    }
}

fn honest(state: &State, pick: u8) -> Op {
    if !state.attempts.contains_key(&crate::world::attempt(1)) {
        return Op::Start(1 + u32::from(pick) % 3);
    }
    if pick.is_multiple_of(3) {
        return Op::Arrive(1, 1 + u64::from(pick) % 2, pick % 5, 1, true);
    }
    let Some(record) = state.vms.get(&vm()) else { return Op::Claim(1, 1 + u64::from(pick) % 2) };
    let other = if record.owner == h(1) { 2 } else { 1 };
    let Some(migration) = &record.migration else { return Op::Begin(record.migrations + 1, record.owner.0, other) };
    let (n, from, to) = (migration.id.number, migration.from.0, migration.to.0);
    match migration.phase {
        Phase::Begun => Op::Prepared(n, to),
        Phase::Prepared { .. } if pick.is_multiple_of(2) => Op::Source(n, from),
        Phase::Prepared { .. } => Op::Dest(n, to),
        _ => Op::Finish(n, record.owner.0),
    }
}

fn ready() -> World {
    let mut world = World::of(4);
    let mut job = submit(JOB, &CASES);
    job.cases[2].after = vec![2];
    world.ok(job);
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_the_invariants_hold(ops in proptest::collection::vec(op(), 1..120)) {
        let mut world = ready();
        let mut log: Vec<Request> = Vec::new();
        for op in &ops {
            let before = world.state.clone();
            let request = match op.command(&world.state) {
                Some(command) => Request::with_id(RequestId(log.len() as u128 + (1 << 64)), command),
                None => log.last().cloned().unwrap_or_else(|| Request::with_id(RequestId(0), CancelJob { job: JOB, by: "me".into() })),
            };
            let repeated = log.contains(&request);
            let outcome = world.apply(&request);
            if repeated || outcome.is_err() {
                let rest = State { requests: before.requests.clone(), index: before.index, ..world.state.clone() };
                prop_assert!(rest == before, "{} was refused or repeated and changed something", request);
            }
            if let Err(broken) = check(&before, &world.state) {
                return Err(TestCaseError::fail(format!("after {request}: {broken}")));
            }
            log.push(request);
        }
        // The same log gives the same state, and a state survives its encoding.
        let mut again = ready();
        for request in &log {
            let _ = again.apply(request);
        }
        // Requests of the preparation have random ids; all else is equal.
        again.state.requests = world.state.requests.clone();
        prop_assert!(again.state == world.state);
        let bytes = codec::encode_as(1, &world.state, usize::MAX).unwrap();
        let (_, body) = codec::split(&bytes, usize::MAX).unwrap();
        prop_assert!(codec::body_from::<State>(body).unwrap() == world.state);
    }
}

#[test]
fn random_commands_get_far_enough_to_mean_something() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut moved, mut released, mut aborted, mut passes) = (0, 0, 0, 0);
    for _ in 0..60 {
        let ops = proptest::collection::vec(op(), 100..120).new_tree(&mut runner).unwrap().current();
        let mut world = ready();
        for op in ops {
            if let Some(command) = op.command(&world.state) {
                let _ = world.apply(&Request::new(command));
            }
            released += usize::from(
                world
                    .state
                    .attempts
                    .values()
                    .flat_map(|a| a.barriers.values())
                    .any(|b| b.state == BarrierState::Released),
            );
        }
        for phase in decided(&world.state).values() {
            match phase {
                Phase::Moved { .. } => moved += 1,
                _ => aborted += 1,
            }
        }
        passes += world.state.jobs[&JOB].cases.iter().filter(|c| c.verdict() == Some(Verdict::Pass)).count();
    }
    assert!(moved > 5 && aborted > 5 && released > 20 && passes > 0, "{moved} {aborted} {released} {passes}");
}

#[test]
fn the_checks_catch_an_owner_that_changed_without_votes() {
    let world = World::migrating();
    let mut bad = world.state.clone();
    let record = Arc::make_mut(bad.vms.get_mut(&vm()).unwrap());
    (record.owner, record.epoch, record.writer_epoch) = (h(2), Epoch(bad.index + 1), Epoch(bad.index + 1));
    bad.index += 1;
    assert!(check(&world.state, &bad).unwrap_err().contains("without both votes"));
    // One vote is not two.
    let migration = Arc::make_mut(bad.vms.get_mut(&vm()).unwrap()).migration.as_mut().unwrap();
    migration.source_completed = true;
    migration.phase = Phase::Moved { epoch: Epoch(bad.index) };
    assert!(check(&world.state, &bad).unwrap_err().contains("without both votes"));
    // A writer that stays behind.
    let mut bad = world.state.clone();
    Arc::make_mut(bad.vms.get_mut(&vm()).unwrap()).writer_epoch = Epoch(1);
    assert!(check(&world.state, &bad).is_err());
}

#[test]
fn the_checks_catch_a_case_that_began_too_early() {
    let mut world = ready();
    world.start(1, &[1, 2]);
    let mut bad = world.state.clone();
    let job = Arc::make_mut(bad.jobs.get_mut(&JOB).unwrap());
    Arc::make_mut(&mut job.cases[0]).after = vec![2];
    assert!(check(&world.state, &bad).unwrap_err().contains("depends on had passed"));
}

#[test]
fn the_checks_catch_a_changed_decision_an_early_release_and_a_second_verdict() {
    let mut world = World::migrating();
    world.ok(crate::world::aborts(1));
    let mut bad = world.state.clone();
    let record = Arc::make_mut(bad.vms.get_mut(&vm()).unwrap());
    record.migration.as_mut().unwrap().phase = Phase::Moved { epoch: record.epoch };
    assert!(check(&world.state, &bad).unwrap_err().contains("decision changed"));

    let mut world = World::running();
    world.arrives(1, "go");
    let mut bad = world.state.clone();
    let id = crate::world::attempt(1);
    let attempt = Arc::make_mut(bad.attempts.get_mut(&id).unwrap());
    Arc::make_mut(attempt.barriers.get_mut(&key("go", 1)).unwrap()).state = BarrierState::Released;
    assert!(check(&world.state, &bad).unwrap_err().contains("before all arrived"));

    let mut broken = world.state.clone();
    let attempt = Arc::make_mut(broken.attempts.get_mut(&id).unwrap());
    Arc::make_mut(attempt.barriers.get_mut(&key("go", 1)).unwrap()).state =
        BarrierState::Broken { missing: vec![h(2)], why: "x".into() };
    assert!(check(&broken, &world.state).unwrap_err().contains("second time"));

    world.end(1, passed());
    world.end(2, passed());
    let mut bad = world.state.clone();
    let job = Arc::make_mut(bad.jobs.get_mut(&JOB).unwrap());
    Arc::make_mut(&mut job.cases[0]).state = CaseState::Done { verdict: Verdict::Fail, cause: None };
    assert!(check(&world.state, &bad).unwrap_err().contains("verdict changed"));
}
