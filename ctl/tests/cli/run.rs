//! `run` from the plan to the evidence: verdicts, reports, evidence that does not come.

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, FileChunk},
    error::{ErrorCode, Report},
    job::{Happening, ScenarioInfo},
    scenario::{Mistake, ScenarioChecked},
    verdict::Verdict,
    vm::Sample,
};

use crate::{
    at, entries,
    fake::{self, Act, Fake, JOB},
};

const RUN: &[&str] = &["run", "multihost_migration", "-m", "host1,host2"];

fn words<'a>(more: &[&'a str]) -> Vec<&'a str> {
    RUN.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn a_run_that_passes_shows_its_steps_and_leaves_the_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Fake::start(dir.path(), "d", |request| match request {
        AdminRequest::JobWatch(_) => {
            let sample = Sample { ram_total_bytes: 100, ram_remaining_bytes: 50, ..Sample::default() };
            let reading = Happening::Progress { migration: "mig_7.1.1.vm1.1".into(), sample };
            Some(fake::stream(vec![
                fake::job_item(fake::running()),
                fake::step(1, "host1", "boot vm1"),
                fake::event(2, "host1", reading),
                fake::step(3, "host1", "migrate vm1 to host2"),
                fake::job_item(fake::passed()),
            ]))
        }
        _ => None,
    });
    let ran = at(
        dir.path(),
        &daemon.socket(),
        &words(&["-p", "mem=512M", "--report", "junit=r/x.xml,json=r.json", "--note", "n"]),
    );
    let ran = ran.expect(0);
    assert!(ran.err.starts_with("job_7  multihost_migration  host1,host2  1 case\n"), "{}", ran.err);
    assert!(ran.err.contains("  ✓ host1  boot vm1"), "{}", ran.err);
    assert!(ran.out.starts_with("#  VARIANT              VERDICT   TIME  GUEST DOWN  QEMU DOWN  NOTE\n1  multihost_migration  PASS     7.4 s       38 ms      31 ms  2 migrations\nPASS  1 of 1"), "{}", ran.out);
    let results = dir.path().join("vtmesh-results/job_7");
    assert_eq!(entries(&results), ["cases", "job.json", "results.json", "results.xml", "summary.md"]);
    assert_eq!(entries(&dir.path().join("vtmesh-results")), ["job_7"], "nothing half-made is left");
    let document: Value =
        serde_json::from_str(&std::fs::read_to_string(results.join("results.json")).unwrap()).unwrap();
    assert_eq!((&document["schema"], &document["cases"][0]["verdict"]), (&json!("vtmesh/v1/results"), &json!("pass")));
    let junit = std::fs::read_to_string(dir.path().join("r/x.xml")).unwrap();
    let junit = roxmltree::Document::parse(&junit).unwrap();
    assert_eq!(junit.root_element().attribute("tests"), Some("1"));
    assert!(dir.path().join("r.json").is_file());
    let plan = daemon.requests().into_iter().find_map(|request| match request {
        AdminRequest::RunSubmit(submit) => Some(submit.plan),
        _ => None,
    });
    let plan = plan.unwrap();
    assert_eq!(
        (plan.cases.len(), plan.cases[0].params.text("mem"), plan.note.as_deref()),
        (1, Some("512M"), Some("n"))
    );
    assert_eq!(plan.user, "tester");
}

#[test]
fn json_is_one_document_and_progress_in_json_is_lines() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Fake::healthy(dir.path(), "d");
    let ran = at(dir.path(), &daemon.socket(), &words(&["-o", "json", "--progress", "json", "-r", "out"])).expect(0);
    let value = ran.json();
    assert_eq!((&value["id"], &value["exit"]["code"]), (&json!("job_7"), &json!(0)));
    assert!(value["evidence"].as_str().unwrap().ends_with("/out"));
    let last = ran.err.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).next_back().unwrap();
    assert_eq!((&last["kind"], &last["final"]), (&json!("job"), &json!(true)));
    let quiet = at(dir.path(), &daemon.socket(), &words(&["-q", "-r", "out2"])).expect(0);
    assert_eq!(quiet.err, "");
    assert!(quiet.out.starts_with("PASS  1 of 1"), "{}", quiet.out);
}

#[test]
fn four_hosts_are_two_pairs_and_a_fifth_is_left_over() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Fake::healthy(dir.path(), "d");
    std::fs::write(dir.path().join("hosts"), "# more\nhost3\n").unwrap();
    let out = at(dir.path(), &daemon.socket(), &words(&["-M", "hosts", "--detach", "--strict-hosts", "--repeat", "2"]))
        .expect(0)
        .out;
    assert_eq!(out, "job_7\n");
    let AdminRequest::RunSubmit(submit) = daemon.requests().pop().unwrap() else { panic!() };
    let cases: Vec<_> =
        submit.plan.cases.iter().map(|case| (case.name.as_str(), case.hosts.len(), case.leftover)).collect();
    assert_eq!(
        cases,
        [("multihost_migration#1", 2, false), ("multihost_migration#2", 2, false), ("multihost_migration", 1, true)]
    );
    assert!(submit.plan.strict_hosts);
}

#[test]
fn verdicts_make_the_exit_code_and_causes_are_told() {
    let cause = || {
        Some(Report::new(ErrorCode::MemoryDamaged, "page 17 is damaged").with("page", "17").help("look at memory.json"))
    };
    for (verdicts, exit) in [
        (vec![(Verdict::Fail, cause()), (Verdict::Error, None), (Verdict::Pass, None)], 100),
        (vec![(Verdict::Error, cause()), (Verdict::Timeout, None)], 101),
        (vec![(Verdict::Timeout, cause()), (Verdict::Cancelled, None)], 104),
        (vec![(Verdict::Cancelled, cause())], 102),
        (vec![(Verdict::Skip, cause()), (Verdict::Warn, None)], 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let job = fake::ended(&verdicts);
        let daemon = Fake::start(dir.path(), "d", move |request| match request {
            AdminRequest::JobWatch(_) => Some(fake::stream(vec![fake::job_item(job.clone())])),
            AdminRequest::JobShow(_) => Some(vec![Act::Say(AdminReply::Job(Box::new(job.clone())))]),
            _ => None,
        });
        let ran = at(dir.path(), &daemon.socket(), RUN).expect(exit);
        let expected = format!(
            "{} 1 multihost_migration on host1,host2: page 17 is damaged\n   page 17\n   help look at memory.json\n   more vtctl explain E0620\n",
            verdicts[0].0
        );
        assert!(ran.out.contains(&expected), "{expected}\n{}", ran.out);
        // Watching the finished job again exits alike; fetching its evidence is about the evidence.
        at(dir.path(), &daemon.socket(), &["job", "watch", "job_7"]).expect(exit);
        at(dir.path(), &daemon.socket(), &["job", "fetch", "job_7", "-r", "again"]).expect(0);
    }
}

fn chunk(path: &str, last: bool) -> Act {
    Act::Say(AdminReply::Files(FileChunk { path: path.into(), bytes: b"x".to_vec(), last }))
}

fn fetching(dir: &std::path::Path, acts: Vec<Act>) -> Fake {
    Fake::start(dir, "d", move |request| match request {
        AdminRequest::JobFetch(_) => Some(acts.clone()),
        _ => None,
    })
}

#[test]
fn evidence_that_ends_early_leaves_nothing_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = fetching(dir.path(), vec![chunk("job.json", true), chunk("a", false), Act::HangUp]);
    let ran = at(dir.path(), &daemon.socket(), &words(&["-r", "out", "--report", "junit=x.xml"])).expect(20);
    assert!(ran.err.contains("error[E0204]: the evidence stopped coming before it was whole\n"), "{}", ran.err);
    assert!(ran.err.contains("vtctl job fetch job_7 -r out"), "{}", ran.err);
    assert!(ran.out.contains("PASS  1 of 1"), "the verdict is told all the same");
    assert_eq!(entries(dir.path()), ["x.xml"], "no half bundle; the report that was asked for is there");
    assert_eq!(daemon.requests().iter().filter(|request| matches!(request, AdminRequest::JobFetch(_))).count(), 3);
    // A stream that is said to be complete inside a file is no better.
    drop(daemon);
    let daemon = fetching(dir.path(), vec![chunk("a", false), Act::End]);
    at(dir.path(), &daemon.socket(), &["job", "fetch", "job_7", "-r", "out"]).expect(20);
    assert_eq!(entries(dir.path()), ["x.xml"]);
}

#[test]
fn evidence_cannot_be_written_elsewhere() {
    for path in ["../out.txt", "/tmp/vtctl-escape", "a/../../b"] {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        let daemon = fetching(dir.path(), vec![chunk(path, true), Act::End]);
        let ran = at(&inside, &daemon.socket(), &["job", "fetch", "job_7", "-r", "out"]).expect(1);
        assert!(ran.err.contains("evidence that cannot be used"), "{}", ran.err);
        assert!(entries(&inside).is_empty() && entries(dir.path()) == ["inside"], "{path}");
    }
}

#[test]
fn missing_evidence_does_not_hide_the_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Fake::start(dir.path(), "d", |request| match request {
        AdminRequest::JobWatch(_) => Some(fake::stream(vec![fake::job_item(fake::ended(&[(Verdict::Fail, None)]))])),
        AdminRequest::JobFetch(_) => Some(vec![Act::Say(fake::refused(Report::new(
            ErrorCode::ResultsMissing,
            "no host that answers has evidence of it",
        )))]),
        _ => None,
    });
    let ran = at(dir.path(), &daemon.socket(), &words(&["-o", "json"])).expect(100);
    assert_eq!((&ran.json()["exit"]["code"], &ran.json()["evidence"]), (&json!(100), &Value::Null));
    assert!(ran.err.contains("error[E0801]"), "{}", ran.err);
    at(dir.path(), &daemon.socket(), &["job", "fetch", "job_7"]).expect(23);
}

#[test]
fn a_submission_whose_answer_was_lost_is_repeated_under_the_same_id() {
    let dir = tempfile::tempdir().unwrap();
    let first = Fake::start(dir.path(), "a", |request| match request {
        AdminRequest::RunSubmit(_) => Some(vec![Act::Die]),
        _ => None,
    });
    let second = Fake::healthy(dir.path(), "b");
    let both = format!("{},{}", first.socket(), second.socket());
    at(dir.path(), &both, &words(&["--detach"])).expect(0);
    let submitted = |fake: &Fake| {
        let ids = fake.requests().into_iter().filter_map(|request| match request {
            AdminRequest::RunSubmit(submit) => Some(submit.request),
            _ => None,
        });
        ids.collect::<Vec<_>>()
    };
    assert_eq!(submitted(&first).len(), 1);
    assert_eq!(submitted(&first), submitted(&second));
    assert_eq!(JOB.to_string(), "job_7");
}

#[test]
fn a_scenario_in_a_file_is_checked_first_and_travels_with_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.scenario"), "name = 'x'\ndo = 'y'\n").unwrap();
    let good = Fake::start(dir.path(), "good", |request| match request {
        AdminRequest::ScenarioCheck(check) => {
            assert_eq!(check.params.text("mem"), Some("64M"));
            let info = ScenarioInfo { name: "x".into(), hosts: 2, ..fake::scenarios().remove(1) };
            let checked = ScenarioChecked { info: Some(info), timeout_ms: Some(90_000), ..ScenarioChecked::default() };
            Some(vec![Act::Say(AdminReply::ScenarioChecked(Box::new(checked)))])
        }
        _ => None,
    });
    let words = ["run", "x.scenario", "-m", "host1,host2", "-p", "mem=64M", "--detach"];
    at(dir.path(), &good.socket(), &words).expect(0);
    let mut plans = good.requests().into_iter().filter_map(|request| match request {
        AdminRequest::RunSubmit(submit) => Some(submit.plan),
        _ => None,
    });
    let plan = plans.next_back().unwrap();
    let file = plan.file.unwrap();
    assert_eq!((plan.scenario.as_str(), plan.case_timeout_ms), ("x", 90_000));
    assert_eq!((file.file.as_str(), file.text.as_str()), ("x.scenario", "name = 'x'\ndo = 'y'\n"));

    let bad = Fake::start(dir.path(), "bad", |request| match request {
        AdminRequest::ScenarioCheck(_) => {
            let mistake =
                Mistake { line: 2, column: 6, length: 3, message: "no such thing".into(), hint: Some("z?".into()) };
            let checked = ScenarioChecked { mistakes: vec![mistake], ..ScenarioChecked::default() };
            Some(vec![Act::Say(AdminReply::ScenarioChecked(Box::new(checked)))])
        }
        _ => None,
    });
    for words in [&words[..], &["scenario", "check", "x.scenario"], &["scenario", "show", "./x.scenario"]] {
        let ran = at(dir.path(), &bad.socket(), words).expect(3);
        assert!(ran.err.contains("x.scenario:2:6") && ran.err.contains("no such thing"), "{}", ran.err);
        let json = at(dir.path(), &bad.socket(), &[words, &["-o", "json"]].concat()).expect(3).json();
        assert!(json["evidence"].to_string().contains("x.scenario:2"), "{json}");
    }
    assert!(!bad.requests().iter().any(|request| matches!(request, AdminRequest::RunSubmit(_))));
    at(dir.path(), &bad.socket(), &["run", "y.scenario", "-m", "host1,host2"]).expect(3);
}
