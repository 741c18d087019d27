//! Jobs, cases, attempts, parties, verdicts.

use vt_protocol::{
    error::{
        ErrorCode,
        ErrorCode::{
            BadParameter, CannotRunHere, CaseClosed, HostBusy, HostDown, HostInUse, HostLost, NoVariants,
            ParentNotPassed, RequestConflict, SessionOver, TooLarge, UnknownHost, UnknownJob,
        },
        Report,
    },
    ids::{AttemptId, CaseId, Epoch, JobId},
    verdict::{Blame, Consequence, Outcome, Verdict},
};
use vt_sync::{
    bounds,
    command::{
        CancelJob, ForgetJob, NewCase, OpenSession, PartyEnded, ReleaseJob, RemoveHost, SetRole, SkipCase, SubmitJob,
    },
    state::{BarrierState, CaseState, JobState, PartyState, Role},
};

use crate::world::{JOB, World, attempt, caused, h, passed, start, submit};

fn case(index: u32) -> CaseId {
    CaseId { job: JOB, index }
}

fn verdict(world: &World, index: u32) -> Option<Verdict> {
    world.state.case(case(index)).unwrap().verdict()
}

fn code(world: &World, index: u32) -> Option<ErrorCode> {
    match &world.state.case(case(index)).unwrap().state {
        CaseState::Done { cause, .. } => cause.as_ref().map(|cause| cause.code),
        _ => None,
    }
}

fn skip(index: u32, verdict: Verdict) -> SkipCase {
    SkipCase { case: case(index), verdict, cause: Report::new(CannotRunHere, "no host was left") }
}

#[test]
fn a_job_names_known_hosts_once_and_has_cases() {
    let mut world = World::of(2);
    assert_eq!(world.no(submit(JOB, &[])), NoVariants);
    assert_eq!(world.no(submit(JOB, &[&[1, 9]])), UnknownHost);
    assert_eq!(world.no(submit(JOB, &[&[1, 1]])), BadParameter);
    let mut big = submit(JOB, &[]);
    big.cases = vec![NewCase::on(vec![]); bounds::CASES_PER_JOB + 1];
    assert_eq!(world.no(big), TooLarge);
    world.ok(submit(JOB, &[&[1, 2]]));
    assert_eq!(world.no(submit(JOB, &[&[1, 2]])), RequestConflict);
}

#[test]
fn an_attempt_gets_all_hosts_or_none() {
    let mut world = World::of(4);
    world.submit(&[&[1, 2], &[2, 3], &[3, 4], &[]]);
    assert_eq!(world.no(start(9, &[1, 2])), UnknownJob);
    assert_eq!(world.no(start(1, &[2, 1])), BadParameter, "the order of hosts is the case's");
    assert_eq!(world.no(start(4, &[])), BadParameter);
    let mut second = start(1, &[1, 2]);
    second.number = 2;
    assert_eq!(world.no(second), CaseClosed, "numbers have no gaps");
    world.start(1, &[1, 2]);
    assert_eq!(world.no(start(1, &[1, 2])), CaseClosed);
    assert_eq!(world.no(start(2, &[2, 3])), HostBusy);
    world.suspect(4);
    assert_eq!(world.no(start(3, &[3, 4])), HostDown, "a suspect host gets nothing");
    world.expire(4);
    assert_eq!(world.no(start(3, &[3, 4])), HostDown);
    world.ok(OpenSession { host: h(4), incarnation: 9, resume: false });
    world.start(3, &[3, 4]);
    assert_eq!(world.state.jobs[&JOB].state, JobState::Running);
}

#[test]
fn a_witness_runs_nothing() {
    let mut world = World::of(2);
    world.submit(&[&[1, 2]]);
    world.ok(SetRole { host: h(2), role: Role::Witness });
    assert_eq!(world.no(start(1, &[1, 2])), CannotRunHere);
}

#[test]
fn a_case_is_judged_when_the_last_party_ended_and_never_again() {
    let mut world = World::running();
    let first = world.ended(1, passed());
    world.ok(first.clone());
    world.ok(first.clone());
    assert_eq!(verdict(&world, 1), None);
    assert_eq!(world.no(world.ended(3, passed())), BadParameter, "no party of it");
    let mut old = world.ended(2, passed());
    old.epoch = Epoch(1);
    assert_eq!(world.no(old), CaseClosed);
    assert_eq!(world.no(world.ended(1, caused(Blame::Product, HostLost))), CaseClosed, "it has ended otherwise");
    world.end(2, passed());
    assert_eq!(verdict(&world, 1), Some(Verdict::Pass));
    assert_eq!(world.state.jobs[&JOB].state, JobState::Done);
    assert!(world.state.attempts.is_empty());
    assert_eq!(world.state.ended[&attempt(1)].verdict, Some(Verdict::Pass));
    assert_eq!(world.no(first), CaseClosed);
    assert_eq!(world.no(start(1, &[1, 2])), CaseClosed);
}

#[test]
fn the_first_cause_in_the_log_decides() {
    let mut world = World::running();
    world.end(2, caused(Blame::Product, ErrorCode::MigrationFailed));
    world.end(1, caused(Blame::Infrastructure, ErrorCode::Leftover));
    assert_eq!((verdict(&world, 1), code(&world, 1)), (Some(Verdict::Fail), Some(ErrorCode::MigrationFailed)));
}

#[test]
fn a_lost_host_makes_an_error_although_the_other_followed() {
    let mut world = World::running();
    world.expire(2);
    let attempt_now = &world.state.attempts[&attempt(1)];
    assert_eq!(attempt_now.parties[&h(2)], PartyState::Fenced);
    assert_eq!(world.no(world.ended(2, passed())), SessionOver, "a fenced party says nothing any more");
    world.end(1, Outcome::Followed(Consequence::PeerGone("host2".into())));
    assert_eq!((verdict(&world, 1), code(&world, 1)), (Some(Verdict::Error), Some(HostLost)));
}

#[test]
fn a_daemon_that_lost_what_it_held_fences_its_party_and_one_that_resumes_does_not() {
    let mut world = World::running();
    world.ok(OpenSession { host: h(1), incarnation: 5, resume: true });
    assert!(world.state.attempts[&attempt(1)].runs_on(h(1)));
    world.ok(OpenSession { host: h(1), incarnation: 6, resume: false });
    assert!(!world.state.attempts[&attempt(1)].runs_on(h(1)));
    assert_eq!(world.no(RemoveHost { host: h(2) }), HostInUse, "its party runs, and its guards may let a VM run");
    world.expire(2);
    assert_eq!(verdict(&world, 1), Some(Verdict::Error), "both are gone, so it is judged");
    world.ok(RemoveHost { host: h(2) });
}

#[test]
fn a_suspect_host_is_the_cause_where_parties_report_consequences_only() {
    let mut world = World::running();
    assert_eq!(world.arrives(1, "go"), BarrierState::Open);
    world.suspect(2);
    assert!(matches!(world.barrier("go"), BarrierState::Broken { .. }));
    world.end(1, Outcome::Followed(Consequence::BarrierBroken("go".into())));
    world.end(2, Outcome::Followed(Consequence::BarrierBroken("go".into())));
    assert_eq!((verdict(&world, 1), code(&world, 1)), (Some(Verdict::Error), Some(HostLost)));
}

#[test]
fn a_suspicion_that_cost_nothing_leaves_the_verdict_alone() {
    let mut world = World::running();
    world.arrives(1, "go");
    world.suspect(2);
    world.end(1, passed());
    world.end(2, passed());
    assert_eq!(verdict(&world, 1), Some(Verdict::Pass));
}

#[test]
fn cancelling_ends_what_waits_at_once_and_tells_what_runs() {
    let mut world = World::of(4);
    world.submit(&[&[1, 2], &[3, 4], &[1, 2]]);
    world.start(1, &[1, 2]);
    world.arrives(1, "go");
    world.ok(CancelJob { job: JOB, by: "me".into() });
    world.ok(CancelJob { job: JOB, by: "me".into() });
    assert_eq!((verdict(&world, 2), verdict(&world, 3)), (Some(Verdict::Cancelled), Some(Verdict::Cancelled)));
    assert_eq!(world.state.jobs[&JOB].state, JobState::Cancelling);
    assert!(world.state.attempts[&attempt(1)].cancelled);
    assert!(matches!(world.barrier("go"), BarrierState::Broken { .. }));
    assert_eq!(world.no(world.claiming(1)), ErrorCode::Cancelled);
    world.end(1, passed());
    world.end(2, Outcome::Followed(Consequence::Closed));
    assert_eq!(verdict(&world, 1), Some(Verdict::Cancelled));
    assert_eq!(world.state.jobs[&JOB].state, JobState::Done);
    assert_eq!(world.no(CancelJob { job: JobId(99), by: "me".into() }), UnknownJob);
}

#[test]
fn a_release_is_noted_at_any_time_and_ends_nothing_by_itself() {
    let mut world = World::running();
    assert!(!world.state.jobs[&JOB].released);
    world.ok(ReleaseJob { job: JOB });
    world.ok(ReleaseJob { job: JOB });
    assert!(world.state.jobs[&JOB].released);
    assert_eq!(world.state.jobs[&JOB].state, JobState::Running);
    assert_eq!(world.no(ReleaseJob { job: JobId(99) }), UnknownJob);
}

#[test]
fn a_leftover_case_is_skipped_or_failed_but_never_passed() {
    let mut world = World::of(2);
    world.submit(&[&[], &[], &[1, 2]]);
    world.ok(skip(1, Verdict::Skip));
    world.ok(skip(2, Verdict::Fail));
    assert_eq!((verdict(&world, 1), verdict(&world, 2)), (Some(Verdict::Skip), Some(Verdict::Fail)));
    assert_eq!(world.no(skip(1, Verdict::Skip)), CaseClosed);
    assert_eq!(world.no(skip(3, Verdict::Pass)), BadParameter);
    world.start(3, &[1, 2]);
    assert_eq!(world.no(skip(3, Verdict::Skip)), CaseClosed);
}

/// Cases on host1 and host2, each with the cases that have to pass before it.
fn dependent(after: &[&[u32]]) -> SubmitJob {
    let mut job = submit(JOB, &vec![&[1, 2][..]; after.len()]);
    job.cases.iter_mut().zip(after).for_each(|(case, after)| case.after = after.to_vec());
    job
}

fn run(world: &mut World, index: u32, outcome: Outcome) {
    let id = AttemptId { case: case(index), number: 1 };
    world.start(index, &[1, 2]);
    for host in [1, 2] {
        let epoch = world.state.attempts[&id].epoch;
        let ended = PartyEnded {
            attempt: id,
            epoch,
            host: h(host),
            outcome: outcome.clone(),
            metrics: std::collections::BTreeMap::new(),
        };
        world.ok(ended);
    }
}

#[test]
fn a_dependent_waits_for_its_parents_and_is_skipped_when_one_does_not_pass() {
    let mut world = World::of(2);
    world.ok(dependent(&[&[], &[1], &[], &[1, 3], &[4], &[]]));
    assert_eq!(world.no(start(2, &[1, 2])), CaseClosed, "its parent has no verdict yet");
    run(&mut world, 1, passed());
    run(&mut world, 2, passed());
    assert_eq!(world.no(start(4, &[1, 2])), CaseClosed, "one of two parents is missing");
    run(&mut world, 3, caused(Blame::Product, ErrorCode::MigrationFailed));
    // Who depends on the one that failed, and who depends on that: in the entry of the verdict.
    for index in [4, 5] {
        assert_eq!((verdict(&world, index), code(&world, index)), (Some(Verdict::Skip), Some(ParentNotPassed)));
    }
    assert_eq!(world.state.jobs[&JOB].state, JobState::Running, "the last one depends on nobody");
    run(&mut world, 6, passed());
    assert_eq!(world.state.jobs[&JOB].state, JobState::Done);
}

#[test]
fn what_cannot_run_at_all_is_skipped_when_it_is_submitted_and_so_is_what_depends_on_it() {
    let mut world = World::of(2);
    let mut job = dependent(&[&[], &[1], &[2], &[]]);
    job.refusals = vec![Report::new(ErrorCode::UnknownScenario, "type = x names no scenario")];
    job.cases[0].refused = Some(0);
    world.ok(job.clone());
    assert_eq!((verdict(&world, 1), code(&world, 1)), (Some(Verdict::Skip), Some(ErrorCode::UnknownScenario)));
    assert_eq!((verdict(&world, 2), verdict(&world, 3)), (Some(Verdict::Skip), Some(Verdict::Skip)));
    assert_eq!((verdict(&world, 4), world.state.jobs[&JOB].state), (None, JobState::Running));

    let mut all = World::of(2);
    job.cases.iter_mut().for_each(|case| case.refused = Some(0));
    all.ok(job);
    assert_eq!(all.state.jobs[&JOB].state, JobState::Done, "nothing is left to be done");
}

#[test]
fn a_job_with_links_that_lead_nowhere_is_refused() {
    for after in [&[&[][..], &[2]], &[&[][..], &[3]], &[&[1][..], &[]], &[&[][..], &[0]]] {
        assert_eq!(World::of(2).no(dependent(after)), BadParameter, "{after:?}");
    }
    let mut job = dependent(&[&[]]);
    job.cases[0].refused = Some(0);
    assert_eq!(World::of(2).no(job.clone()), BadParameter);
    job.refusals = vec![Report::new(CannotRunHere, "no"); bounds::REFUSALS_PER_JOB + 1];
    assert_eq!(World::of(2).no(job), TooLarge);
    let many = vec![1; bounds::AFTER_PER_JOB + 1];
    assert_eq!(World::of(2).no(dependent(&[&[], &many])), TooLarge);
}

#[test]
fn the_oldest_finished_job_makes_room_and_waiting_ones_do_not() {
    let mut world = World::of(1);
    for id in 0..bounds::JOBS as u64 {
        world.ok(submit(JobId(1000 + id), &[&[1]]));
    }
    assert_eq!(world.no(submit(JOB, &[&[1]])), TooLarge);
    assert_eq!(world.no(ForgetJob { job: JobId(1005) }), CaseClosed);
    for id in [1007, 1005] {
        world.ok(CancelJob { job: JobId(id), by: "me".into() });
    }
    world.ok(submit(JOB, &[&[1]]));
    assert!(!world.state.jobs.contains_key(&JobId(1005)), "the oldest of the finished");
    world.ok(ForgetJob { job: JobId(1007) });
    assert_eq!(world.no(ForgetJob { job: JobId(1007) }), UnknownJob);
}

#[test]
fn a_report_of_any_size_is_cut() {
    let mut world = World::running();
    let mut report = Report::new(ErrorCode::Internal, "é".repeat(1400));
    report.evidence = vec![("k".repeat(3000), "v".repeat(3000)); 100];
    let outcome = Outcome::Caused(vt_protocol::verdict::Cause { blame: Blame::Infrastructure, report });
    world.end(1, outcome.clone());
    world.end(2, outcome);
    let CaseState::Done { cause: Some(kept), .. } = &world.state.case(case(1)).unwrap().state else { panic!() };
    let bytes = kept.title.len() + kept.evidence.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    assert!(bytes <= bounds::REPORT_BYTES, "{bytes}");
}
