//! `doctor` against a daemon that finds one broken thing until it is told to mend it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::json;
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    doctor::{Finding, Group, Severity},
};

use crate::{
    at,
    fake::{Act, Fake},
};

fn finding(severity: Severity) -> Finding {
    let broken = severity == Severity::Fail;
    Finding {
        check: "D-STO-02".into(),
        group: Group::Storage,
        title: "permissions".into(),
        host: Some("host1".parse().unwrap()),
        other: None,
        severity,
        found: "mode 0777".into(),
        fix: if broken { vec!["chmod 0755 /srv".into()] } else { Vec::new() },
        repairable: broken,
    }
}

#[test]
fn what_is_found_is_shown_counted_and_mended_once_somebody_agreed() {
    let dir = tempfile::tempdir().unwrap();
    let mended = Arc::new(AtomicBool::new(false));
    let state = mended.clone();
    let fake = Fake::start(dir.path(), "a", move |request| {
        let AdminRequest::Doctor(examine) = request else { return None };
        let broken = !state.fetch_or(examine.repair, Ordering::SeqCst) && !examine.repair;
        let severity = if broken { Severity::Fail } else { Severity::Ok };
        Some(vec![Act::Say(AdminReply::Findings(vec![finding(severity)]))])
    });
    let doctor = |words: &[&str]| {
        // Labs of this machine are somebody else's.
        let mut all = vec!["doctor", "--skip", "D-HYG-02"];
        all.extend(words);
        at(dir.path(), &fake.socket(), &all)
    };
    let shown = doctor(&[]).expect(25).out;
    assert!(
        shown.starts_with(
            "storage    0 of 1 ok\n  ✗ D-STO-02 host1  permissions: mode 0777\n      fix  chmod 0755 /srv\n"
        ),
        "{shown}"
    );
    assert!(shown.ends_with("\n1 fail\n"), "{shown}");
    let value = doctor(&["-o", "json", "--check", "d-sto-02"]).expect(25).json();
    assert_eq!(value["exit"], json!({"code": 25, "name": "precondition"}));
    assert_eq!((&value["schema"], &value["worst"]), (&json!("vtmesh/v1/doctor"), &json!("fail")));
    assert_eq!(value["findings"][0]["fix"], json!(["chmod 0755 /srv"]));
    assert_eq!(doctor(&["-o", "name"]).expect(25).out, "D-STO-02\n");

    let refused = doctor(&["--fix"]).expect(2);
    assert!(refused.err.contains("host1: chmod 0755 /srv") && refused.err.contains("--fix --yes"), "{}", refused.err);
    assert!(!mended.load(Ordering::SeqCst), "nobody agreed");
    doctor(&["--all", "--fix", "--yes"]).expect(0);
    let repairs: Vec<AdminRequest> = fake
        .requests()
        .into_iter()
        .filter(|it| matches!(it, AdminRequest::Doctor(examine) if examine.repair))
        .collect();
    let [AdminRequest::Doctor(repair)] = &repairs[..] else { panic!("{repairs:?}") };
    assert!(repair.all && repair.checks.only == ["D-STO-02"], "{repair:?}");
    assert!(doctor(&["--fix"]).expect(0).err.contains("nothing was found that is safe to mend"));
    let nothing = doctor(&["--check", "D-NO-01"]).expect(2);
    assert!(nothing.err.contains("no check of that id"), "{}", nothing.err);
}
