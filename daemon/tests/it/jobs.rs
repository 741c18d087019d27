//! Jobs on real daemons, without a VM: what is refused, queued, skipped, cancelled, and what is left of it.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, JobLogs, RunSubmit, WatchItem},
    error::{ErrorCode, Report},
    ids::{JobId, RequestId},
    job::{CaseStateView, Happening, JobState, JobView, Plan, PlannedCase},
    matrix::MatrixBuilder,
    membership::{Change, HostChange},
    params::{Origin, Params},
    verdict::Verdict,
};

use crate::daemons::{Daemon, Daemons, PATIENCE};

/// A plan of the scenario with the one-host case whose image is on no host.
pub(crate) fn plan(cases: &[&[&str]]) -> Plan {
    let mut params = Params::new();
    params.set("image", "nowhere", Origin { file: "-p".into(), line: 0 });
    let case = |hosts: &&[&str]| PlannedCase {
        name: "uptime".into(),
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        leftover: hosts.is_empty(),
        params: params.clone(),
        ..PlannedCase::default()
    };
    Plan {
        scenario: "uptime".into(),
        cases: cases.iter().map(case).collect(),
        case_timeout_ms: 120_000,
        strict_hosts: false,
        user: "tester".into(),
        note: None,
        ..Plan::default()
    }
}

pub(crate) async fn submit(daemon: &Daemon, plan: Plan) -> Result<JobId, Report> {
    match daemon.ask(&AdminRequest::RunSubmit(RunSubmit { request: RequestId::random(), plan })).await? {
        AdminReply::Submitted(job) => Ok(job),
        other => panic!("{other:?}"),
    }
}

async fn show(daemon: &Daemon, job: JobId) -> JobView {
    match daemon.ask(&AdminRequest::JobShow(job)).await.unwrap() {
        AdminReply::Job(job) => *job,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn done(daemon: &Daemon, job: JobId) -> JobView {
    let by = Instant::now() + PATIENCE;
    loop {
        let view = show(daemon, job).await;
        if view.state == JobState::Done {
            return view;
        }
        assert!(Instant::now() < by, "not done: {view:#?}\n{}", daemon.log());
        sleep(Duration::from_millis(100)).await;
    }
}

async fn inventory(daemon: &Daemon) -> Vec<String> {
    match daemon.ask(&AdminRequest::Inventory).await.unwrap() {
        AdminReply::Inventory(lines) => lines,
        other => panic!("{other:?}"),
    }
}

fn verdict(view: &JobView, index: usize) -> (Verdict, Option<ErrorCode>) {
    match &view.cases[index].state {
        CaseStateView::Done { verdict, cause } => (*verdict, cause.as_ref().map(|cause| cause.code)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_job_runs_its_cases_says_why_and_leaves_evidence_and_nothing_else() {
    let daemons = Daemons::cluster(3).await;
    let [first, second, third] = &daemons.all[..] else { panic!("three daemons") };
    let before = [inventory(first).await, inventory(second).await];

    // Two cases on one host wait for each other; one was left over. Any host takes and shows it.
    let job = submit(third, plan(&[&["host1"], &["host1"], &["host2"], &[]])).await.unwrap();
    let mut items = third.stream(&AdminRequest::JobWatch(job)).await;
    let mut events = 0;
    let mut last = None;
    loop {
        match items.next().await {
            Some(AdminReply::Watch(item)) => match *item {
                WatchItem::Job(view) => last = Some(view),
                WatchItem::Changed(_) => {}
                WatchItem::Event { .. } => events += 1,
            },
            Some(AdminReply::End) => break,
            other => panic!("{other:?}: {}", third.log()),
        }
    }
    let last = last.unwrap();
    assert_eq!(last.state, JobState::Done, "the last view of a watch is the end");
    assert!(events > 0);
    for daemon in [first, second] {
        let view = done(daemon, job).await;
        for index in 0..3 {
            assert_eq!(verdict(&view, index), (Verdict::Error, Some(ErrorCode::ImageMissing)), "{view:#?}");
        }
        assert_eq!(verdict(&view, 3), (Verdict::Skip, Some(ErrorCode::CannotRunHere)));
    }
    assert_eq!([inventory(first).await, inventory(second).await], before);

    // The log of a job that is done, from a host that had no part in it.
    let logs = AdminRequest::JobLogs(JobLogs { job, follow: false });
    let mut items = third.stream(&logs).await;
    let mut ended = Vec::new();
    loop {
        match items.next().await {
            Some(AdminReply::Watch(item)) => {
                if let WatchItem::Event { attempt, event } = *item
                    && matches!(event.what, Happening::PartyEnded { .. })
                {
                    ended.push((attempt.case.index, event.host.to_string()));
                }
            }
            Some(AdminReply::End) => break,
            other => panic!("{other:?}: {}", third.log()),
        }
    }
    ended.sort();
    assert_eq!(ended, [(1, "host1".to_owned()), (2, "host1".to_owned()), (3, "host2".to_owned())]);

    let files = fetch(third, job).await;
    let job_json = files.iter().find(|(path, _)| path == "job.json").expect("the job on one page");
    let value: serde_json::Value = serde_json::from_slice(&job_json.1).unwrap();
    assert_eq!(value["counts"], serde_json::json!({"error": 3, "skip": 1}));
    for path in [
        "cases/0001-uptime/host1/events.jsonl",
        "cases/0002-uptime/host1/params.json",
        "cases/0003-uptime/host2/outcome.json",
    ] {
        assert!(files.iter().any(|(found, _)| found == path), "{path} in {:?}", paths(&files));
    }
}

fn paths(files: &[(String, Vec<u8>)]) -> Vec<&str> {
    files.iter().map(|(path, _)| path.as_str()).collect()
}

async fn fetch(daemon: &Daemon, job: JobId) -> Vec<(String, Vec<u8>)> {
    let mut items = daemon.stream(&AdminRequest::JobFetch(job)).await;
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    loop {
        match items.next().await {
            Some(AdminReply::Files(chunk)) => match files.last_mut() {
                Some((path, bytes)) if *path == chunk.path => bytes.extend(chunk.bytes),
                _ => files.push((chunk.path, chunk.bytes)),
            },
            Some(AdminReply::End) => return files,
            other => panic!("{other:?}: {}", daemon.log()),
        }
    }
}

#[tokio::test]
async fn evidence_outlives_the_host_it_was_made_on() {
    let mut daemons = Daemons::cluster(3).await;
    let job = submit(&daemons.all[0], plan(&[&["host1"]])).await.unwrap();
    done(&daemons.all[0], job).await;
    // A case on one host is copied by a second holder of its plan.
    let by = Instant::now() + PATIENCE;
    let copied = |daemon: &Daemon| {
        let attempts = std::fs::read_dir(daemon.dir.join("data/attempts")).into_iter().flatten().flatten();
        attempts.into_iter().any(|attempt| attempt.path().join("@from/host1/events.jsonl").exists())
    };
    while !daemons.all[1..].iter().any(copied) {
        assert!(Instant::now() < by, "nobody copied the evidence");
        sleep(Duration::from_millis(50)).await;
    }
    daemons.all[0].kill();
    daemons.all[1].wait("led again", |status| status.quorum).await;
    for daemon in &daemons.all[1..] {
        let files = fetch(daemon, job).await;
        assert!(files.iter().any(|(path, _)| path == "cases/0001-uptime/host1/events.jsonl"), "{:?}", paths(&files));
    }
}

#[tokio::test]
async fn what_cannot_run_is_refused_and_nothing_is_stored() {
    let mut daemons = Daemons::cluster(3).await;
    let first = &daemons.all[0];
    let scenario = |name: &str| Plan { scenario: name.into(), ..plan(&[&["host1"]]) };
    let params = |key: &str, value: &str| {
        let mut plan = plan(&[&["host1"]]);
        plan.cases[0].params.set(key, value, Origin { file: "-p".into(), line: 0 });
        plan
    };
    for (plan, code, help) in [
        (scenario("uptimes"), ErrorCode::UnknownScenario, "uptime"),
        (plan(&[&["hots1"]]), ErrorCode::UnknownHost, "did you mean host1?"),
        (plan(&[&["host1", "host1"]]), ErrorCode::Usage, ""),
        (plan(&[]), ErrorCode::NoVariants, ""),
        (params("mem", "lots"), ErrorCode::BadParameter, ""),
    ] {
        let refused = submit(first, plan).await.unwrap_err();
        assert_eq!(refused.code, code, "{refused:?}");
        assert!(refused.help.iter().any(|line| line.contains(help)) || help.is_empty(), "{refused:?}");
    }
    let blobs = std::fs::read_dir(first.dir.join("data/blobs")).unwrap().count();
    assert_eq!(blobs, 0, "a refused job has stored nothing");
    assert!(matches!(first.ask(&AdminRequest::JobList).await.unwrap(), AdminReply::Jobs(jobs) if jobs.is_empty()));
    let refused = first.ask(&AdminRequest::JobShow(JobId(1))).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::UnknownJob);

    daemons.all[2].kill();
    let first = &daemons.all[0];
    first.wait("aware of the dead host", |status| status.hosts.iter().any(|host| host.state != "live")).await;
    let refused = submit(first, plan(&[&["host3"]])).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::HostDown, "{refused:?}");
}

/// Thousands of variants: one whose image is on no host, those that depend on it, and those of tests that do not exist.
fn matrix(variants: u32) -> Plan {
    let mut builder = MatrixBuilder::new();
    for i in 0..variants {
        let kind =
            if i < 2 { "uptime" } else { ["juggling", "migration_multi_host_with_kdump", "uptimes"][i as usize % 3] };
        let own = format!("/images/{i}.qcow2");
        let params = [("image", "nowhere"), ("type", kind), ("image_name", own.as_str())];
        builder.add(&format!("full.v{i}"), params.map(|(key, value)| (key, value, "tests.cfg", 7))).unwrap();
    }
    let case = |i: u32| PlannedCase {
        name: format!("v{i}"),
        hosts: if i < 2 { vec!["host1".parse().unwrap()] } else { vec![] },
        variant: Some(i),
        after: if i == 1 { vec![1] } else { vec![] },
        ..PlannedCase::default()
    };
    let cases = (0..variants).map(case).collect();
    Plan { scenario: String::new(), cases, matrix: Some(builder.pack().unwrap()), ..plan(&[]) }
}

#[tokio::test]
async fn a_matrix_of_thousands_of_variants_is_taken_and_each_says_what_became_of_it() {
    let daemons = Daemons::cluster(1).await;
    let first = &daemons.all[0];
    let submitted = matrix(5000);
    let job = submit(first, submitted.clone()).await.unwrap();
    let view = done(first, job).await;
    assert_eq!((view.cases.len(), view.scenario.as_str()), (5000, "uptime"));
    assert_eq!(view.counts, [(Some(Verdict::Skip), 4999), (Some(Verdict::Error), 1)]);
    let cause = |index: usize| match &view.cases[index].state {
        CaseStateView::Done { cause: Some(cause), .. } => cause.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(verdict(&view, 0), (Verdict::Error, Some(ErrorCode::ImageMissing)));
    assert_eq!((cause(1).code, cause(1).title.as_str()), (ErrorCode::ParentNotPassed, "parent v0 did not pass"));
    assert_eq!(cause(3).title, "type = juggling names no scenario");
    assert_eq!(cause(2).help[0], "did you mean `uptime`?");
    assert_eq!(
        (view.cases[4999].variant.as_deref(), &*view.cases[4999].scenario),
        (Some("full.v4999"), "migration_multi_host_with_kdump")
    );
    // What comes back to be run again is what was sent, to the byte.
    let AdminReply::Plan(again) = first.ask(&AdminRequest::JobPlan(job)).await.unwrap() else { panic!("no plan") };
    assert_eq!(*again, submitted);
    assert_eq!(view.matrix.unwrap().digest, submitted.matrix.unwrap().digest());
    let files = fetch(first, job).await;
    let packed = files.iter().find(|(path, _)| path == "matrix.bin").map(|(_, bytes)| bytes.as_slice());
    assert_eq!(packed, again.matrix.as_ref().map(|packed| packed.bytes()));

    let many = Plan { cases: vec![PlannedCase::default(); 10_001], ..plan(&[]) };
    let refused = submit(first, many).await.unwrap_err();
    assert!(refused.title.contains("10001") && refused.help[0].contains("--only"), "{refused:?}");
    let stray = matrix(3);
    let stray = Plan { matrix: matrix(2).matrix, ..stray };
    assert_eq!(submit(first, stray).await.unwrap_err().code, ErrorCode::BadConfig);
}

#[tokio::test]
async fn the_same_request_is_one_job() {
    let daemons = Daemons::cluster(1).await;
    let request = RequestId::random();
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let submit = RunSubmit { request, plan: plan(&[&["host1"]]) };
        match daemons.all[0].ask(&AdminRequest::RunSubmit(submit)).await.unwrap() {
            AdminReply::Submitted(job) => jobs.push(job),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(jobs[0], jobs[1]);
    let other = RunSubmit { request, plan: plan(&[&["host1"], &["host1"]]) };
    let refused = daemons.all[0].ask(&AdminRequest::RunSubmit(other)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::RequestConflict);
    done(&daemons.all[0], jobs[0]).await;
}

#[tokio::test]
async fn a_job_of_another_waits_for_a_host_that_is_reserved_and_ones_own_does_not() {
    let daemons = Daemons::cluster(1).await;
    let host = &daemons.all[0];
    let change = |what| {
        let host = "host1".parse().unwrap();
        AdminRequest::HostChange(HostChange { request: RequestId::random(), host, what })
    };
    let hold = |by: &str, for_s| change(Change::Reserve { by: by.into(), reason: "bisecting".into(), for_s });
    host.ask(&hold("alice", 3600)).await.unwrap();
    assert_eq!(host.ask(&hold("bob", 60)).await.unwrap_err().code, ErrorCode::HostReserved);
    assert_eq!(host.ask(&hold("alice", 0)).await.unwrap_err().code, ErrorCode::Usage);
    let others = submit(host, plan(&[&["host1"]])).await.unwrap();
    let own = submit(host, Plan { user: "alice".into(), ..plan(&[&["host1"]]) }).await.unwrap();
    done(host, own).await;
    let waiting = show(host, others).await;
    let CaseStateView::Pending { why: Some(why) } = &waiting.cases[0].state else { panic!("{waiting:#?}") };
    assert_eq!(why, "host1 is reserved by alice: bisecting");
    host.ask(&change(Change::Release)).await.unwrap();
    done(host, others).await;
    // One that nobody releases ends by itself.
    host.ask(&hold("alice", 1)).await.unwrap();
    host.wait("free", |status| status.hosts[0].reserved.is_none()).await;
}
