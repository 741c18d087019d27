//! What only looks: help, version, status, lists, single things.

use serde_json::json;
use vt_protocol::{
    admin::{AdminReply, AdminRequest, Hello, NewToken, VmView},
    error::{ErrorCode, Report},
    ids::{Epoch, TokenId},
    job::{CaseFate, Fate},
};

use crate::{
    at,
    fake::{self, Act, Fake},
    ran,
};

#[test]
fn help_version_explain_and_completion_need_no_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let help = ran(dir.path(), &["--help"]).expect(0).out;
    assert!(help.contains("Exit codes:") && help.contains("vtctl run multihost_migration -m host1,host2"), "{help}");
    let version = ran(dir.path(), &["version", "-o", "json", "--endpoint", "./none.sock"]).expect(0).json();
    assert_eq!((&version["product"], &version["vtd"]), (&json!("vtmesh"), &json!(null)));
    let text = ran(dir.path(), &["version", "--endpoint", "./none.sock"]).expect(0).out;
    assert!(text.starts_with("vtmesh: vtctl "), "{text}");
    let explained = ran(dir.path(), &["explain", "e0213"]).expect(0).out;
    assert!(explained.starts_with("E0213: A join token lives"), "{explained}");
    let listed = ran(dir.path(), &["explain", "-o", "name"]).expect(0).out;
    assert_eq!(listed.lines().count(), ErrorCode::ALL.len());
    for shell in ["bash", "zsh", "fish"] {
        let script = ran(dir.path(), &["completion", shell]).expect(0).out;
        assert!(script.contains("multihost") || script.contains("cluster"), "{shell}");
    }
}

#[test]
fn status_is_told_in_words_and_in_json_and_follows_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let well = Fake::healthy(dir.path(), "well");
    let text = at(dir.path(), &well.socket(), &["status"]).expect(0).out;
    assert!(
        text.starts_with("lab1  HEALTHY  survives 1 failure · 3 voters · leader host1 term 3 · 0 jobs\nHOST"),
        "{text}"
    );
    let value = at(dir.path(), &well.socket(), &["cluster", "status", "-o", "json"]).expect(0).json();
    assert_eq!((&value["quorum"], &value["hosts"][2]["state"]), (&json!(true), &json!("live")));

    let lost = Fake::start(dir.path(), "lost", |request| match request {
        AdminRequest::Status => Some(vec![Act::Say(AdminReply::Status(Box::new(fake::status(false))))]),
        AdminRequest::VmList => Some(vec![Act::Say(AdminReply::Vms(vec![]))]),
        _ => None,
    });
    let text = at(dir.path(), &lost.socket(), &["status"]).expect(21).out;
    assert!(text.starts_with("lab1  NO QUORUM  survives 0 more failures") && text.contains("possibly old"), "{text}");
    let old = at(dir.path(), &lost.socket(), &["vm", "list"]).expect(21);
    assert!(old.err.contains("it may be old"), "{}", old.err);
    // A daemon that can decide is preferred, wherever it stands in the list.
    let both = format!("{},{}", lost.socket(), well.socket());
    at(dir.path(), &both, &["status"]).expect(0);
}

#[test]
fn lists_and_single_things_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Fake::start(dir.path(), "d", |request| {
        let reply = match request {
            AdminRequest::Hello => {
                AdminReply::Hello(Hello { build: "0.1.0".into(), cluster: None, host: Some("host1".parse().unwrap()) })
            }
            AdminRequest::Inventory => AdminReply::Inventory(vec!["process 1 qemu".into(), "tap vt-1".into()]),
            AdminRequest::VmList => AdminReply::Vms(vec![VmView {
                id: "7.1.1.vm1".into(),
                name: "vm1".parse().unwrap(),
                owner: "host2".parse().unwrap(),
                epoch: Epoch(9),
                image: "tiny".parse().unwrap(),
                attempt: fake::attempt(1),
                migration: None,
            }]),
            AdminRequest::JobList => AdminReply::Jobs(vec![fake::passed()]),
            AdminRequest::TokenCreate(_) => AdminReply::Token(NewToken {
                id: TokenId(5),
                text: "vtj1_secret".into(),
                expires_unix_s: 1_795_458_869,
            }),
            AdminRequest::TokenList => AdminReply::Tokens(vec![]),
            AdminRequest::TokenRevoke(_) | AdminRequest::JobCancel(_) => AdminReply::Done,
            _ => return None,
        };
        Some(vec![Act::Say(reply)])
    });
    let run = |words: &[&str]| at(dir.path(), &daemon.socket(), words).expect(0).out;
    assert_eq!(run(&["host", "list", "-o", "name"]), "host1\nhost2\nhost3\n");
    assert!(
        run(&["host", "list"]).starts_with("HOST   ROLE    STATE  LAG  VMS  ATTEMPT  VERSION\nhost1  leader  live")
    );
    assert_eq!(run(&["host", "list", "-o", "jsonl"]).lines().count(), 3);
    assert_eq!(run(&["host", "inventory", "host1"]), "process 1 qemu\ntap vt-1\n");
    assert_eq!(run(&["scenario", "list", "-o", "name"]), "multihost_migration\nuptime\n");
    assert!(run(&["scenario", "show", "uptime"]).contains("vtctl run uptime -m host1\n"));
    assert!(run(&["vm", "list"]).contains("7.1.1.vm1  vm1   host2      9  tiny   7.1.1    —\n"));
    assert!(run(&["job", "list"]).contains("job_7  done   multihost_migration  PASS 1"));
    assert!(run(&["job", "show", "7"]).ends_with("PASS  1 of 1\n"));
    assert_eq!(run(&["job", "show", "@latest"]), run(&["job", "show", "7"]));
    assert_eq!(run(&["cluster", "token", "create", "-o", "name"]), "vtj1_secret\n");
    assert_eq!(run(&["cluster", "token", "revoke", "tk_5"]), "tk_5 revoked\n");
    assert_eq!(run(&["cluster", "token", "list"]), "TOKEN  ROLE  STATE  EXPIRES  MADE ON\n");
    assert_eq!(run(&["job", "cancel", "job_7"]), "job_7 is cancelled and has ended\n");
    assert!(run(&["job", "logs", "job_7"]).ends_with("1.1  host1  done      boot vm1  1.0 s\n"));
    for words in [
        &["host", "list"][..],
        &["scenario", "list"],
        &["scenario", "show", "uptime"],
        &["vm", "list"],
        &["job", "list"],
        &["job", "show", "job_7"],
        &["job", "logs", "job_7"],
        &["cluster", "token", "create"],
        &["cluster", "token", "list"],
        &["host", "inventory"],
    ] {
        let all: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
        let value = at(dir.path(), &daemon.socket(), &all).expect(0).json();
        assert!(value["schema"].as_str().is_some_and(|schema| schema.starts_with("vtmesh/v1/")), "{words:?}: {value}");
    }
}

#[test]
fn without_utf8_nothing_but_ascii_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Fake::healthy(dir.path(), "d");
    let mut command = crate::vtctl(dir.path(), &["--endpoint", &daemon.socket(), "status"]);
    let ran = crate::Ran::of(command.env("LANG", "C").output().unwrap()).expect(0);
    assert!(ran.out.is_ascii(), "{}", ran.out);
}

#[test]
fn a_secret_is_never_in_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Fake::start(dir.path(), "d", |request| match request {
        AdminRequest::Join(join) => {
            assert_eq!(join.token, "vtj1_verysecret");
            Some(vec![Act::Say(fake::refused(
                Report::new(ErrorCode::TokenUsed, "the join token was already used").with("by", "host2"),
            ))])
        }
        AdminRequest::TokenCreate(_) => Some(vec![Act::Say(AdminReply::Done)]),
        _ => None,
    });
    let ran = at(dir.path(), &daemon.socket(), &["cluster", "join", "vtj1_verysecret", "-v"]).expect(22);
    assert!(ran.err.starts_with("error[E0215]: the join token was already used\n   by   host2\n"), "{}", ran.err);
    assert!(!ran.err.contains("verysecret") && !ran.out.contains("verysecret"));
    at(dir.path(), &daemon.socket(), &["cluster", "token", "create"]).expect(1);
}

#[test]
fn lint_knows_what_scenarios_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("m.cfg"),
        "mem = 1\nmig_protocol_vm1 = tcp\nmigrate_cuont = 2\nmine = 3\nkill_vm_host2 = no\n",
    )
    .unwrap();
    let daemon = Fake::healthy(dir.path(), "vtd");
    let words = ["variants", "lint", "--keys", "-c", "m.cfg", "-o", "json"];
    let lines = |value: &serde_json::Value| -> Vec<(u64, String)> {
        let of =
            |f: &serde_json::Value| (f["line"].as_u64().unwrap(), f["hint"].as_str().unwrap_or_default().to_owned());
        value["findings"].as_array().unwrap().iter().map(of).collect()
    };
    let found = at(dir.path(), &daemon.socket(), &words).expect(0);
    let document = found.json();
    assert_eq!(lines(&document), [(3, "migrate_count is read".to_owned()), (4, String::new()), (5, String::new())]);
    let message = document["findings"][2]["message"].as_str().unwrap();
    assert_eq!(message, "nothing reads the key kill_vm_host2: VMs end with their case");
    let alone = at(dir.path(), "./none.sock", &words).expect(0);
    assert_eq!(lines(&alone.json()).len(), 5);
    assert!(alone.err.contains("what scenarios read is not known"), "{}", alone.err);
    // Without the flag no daemon is asked.
    let plain = at(dir.path(), "./none.sock", &["variants", "lint", "-c", "m.cfg"]).expect(0);
    assert!(!plain.err.contains("not known"), "{}", plain.err);
}

#[test]
fn keys_are_listed_with_who_reads_them_or_why_nobody_does() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Fake::healthy(dir.path(), "vtd");
    let run = |words: &[&str]| at(dir.path(), &daemon.socket(), words);
    let listed = run(&["scenario", "params"]).expect(0);
    assert!(listed.err.contains("5 keys, 1 of them without effect"), "{}", listed.err);
    let one = run(&["scenario", "params", "kill_vm"]).expect(0);
    assert!(one.out.contains("VMs end with their case"), "{}", one.out);
    let json = run(&["scenario", "params", "--without-effect", "-o", "json"]).expect(0).json();
    assert_eq!((json["keys"].as_array().unwrap().len(), &json["keys"][0]["key"]), (1, &"kill_vm".into()));
    let refused = run(&["scenario", "params", "kil_vm"]).expect(2);
    assert!(refused.err.contains("vtctl scenario params kill_vm"), "{}", refused.err);
}

#[test]
fn every_variant_of_a_configuration_has_its_fate() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m.cfg"), "type = uptime\nvariants:\n  - a:\n  - b:\n  - c:\n").unwrap();
    let daemon = Fake::start(dir.path(), "d", |request| match request {
        AdminRequest::PlanCheck(plan) => {
            assert_eq!(plan.cases.iter().map(|case| case.hosts.len()).collect::<Vec<_>>(), [1, 1, 1]);
            let fate = |fate| CaseFate { scenario: "uptime".into(), fate };
            let skipped = Report::new(ErrorCode::CannotRunHere, "no such disk");
            let fates = vec![fate(Fate::Runs), fate(Fate::Same(1)), fate(Fate::Skipped(skipped))];
            Some(vec![Act::Say(AdminReply::Fates(fates))])
        }
        _ => None,
    });
    let words = ["scenario", "parity", "-c", "m.cfg"];
    let ran = at(dir.path(), &daemon.socket(), &words).expect(0);
    assert!(ran.err.contains("3 variants: 1 runs, 1 same, 1 skip"), "{}", ran.err);
    assert!(ran.out.contains("the same test as a") && ran.out.contains("no such disk"), "{}", ran.out);
    let json = at(dir.path(), &daemon.socket(), &[&words[..], &["-o", "json"]].concat()).expect(0).json();
    assert_eq!((&json["counts"]["skip"], &json["variants"][1]["fate"]), (&1.into(), &"same".into()), "{json}");
}
