//! Parameters of scenarios that would be a shell's or QEMU's, if they came so far.

use vt_protocol::{
    admin::{AdminRequest, RunSubmit},
    error::ErrorCode,
    ids::RequestId,
    job::{Plan, PlannedCase},
    params::{Origin, Params},
};

use super::{Row, print, target::Target};

#[tokio::test(flavor = "multi_thread")]
async fn parameters_reach_neither_a_shell_nor_qemu() {
    let mut target = Target::start(6).await;
    let mut rows = Vec::new();
    for (key, value) in [
        ("image", "../../../etc/shadow"),
        ("image", "tiny,file=/etc/shadow"),
        ("image", "/dev/sda"),
        ("image", "a\0b"),
        ("machine", "pc,dumpdtb=/etc/cron.d/x"),
        ("machine", "pc -drive file=/etc/shadow"),
        ("machine", "-monitor"),
        ("machine", "pc\n-drive"),
        ("cpu_model", "qemu64 -object x"),
        ("cpu_model", "-daemonize"),
        ("cpu_model", "$(reboot)"),
        ("cpu_model", "qemu64;reboot"),
        ("mem", "256M;reboot"),
        ("mem", "`reboot`"),
        ("smp", "1,maxcpus=9999"),
        ("smp", "1\0"),
        ("accelerator", "tcg,tb-size=99999"),
        ("capabilities", "xbzrle\"},{\"execute\":\"quit\"}"),
        ("mig_speed", "1e309"),
        ("migrate_count", "99999999999999999999"),
    ] {
        let attack = format!("-p {key}={value:?}");
        let since = target.moment().await;
        let request = AdminRequest::RunSubmit(submit("multihost_migration", &[(key, value)]));
        let report = target.ask(&request).await.unwrap_err();
        assert_eq!(report.code, ErrorCode::BadParameter, "{attack}: {report:?}");
        let entry = target.logged(since, &attack, |entry| entry.verb == "run").await;
        rows.push(Row::of(&attack, report, &entry));
    }
    let attack = "a scenario called like an escape sequence";
    let since = target.moment().await;
    let report = target.ask(&AdminRequest::RunSubmit(submit("x\x1b[2J\n\u{202e}", &[]))).await.unwrap_err();
    assert_eq!(report.code, ErrorCode::UnknownScenario, "{report:?}");
    let entry = target.logged(since, attack, |entry| entry.verb == "run").await;
    rows.push(Row::of(attack, report.code, &entry));
    let trail = std::fs::read(target.path().join("data/audit/actions.jsonl")).unwrap();
    assert!(!trail.contains(&0x1b), "the trail holds no escape sequence");
    target.lives("parameters").await;
    print("parameters", &rows);
}

/// A job of one case on the one host there is.
pub(super) fn submit(scenario: &str, params: &[(&str, &str)]) -> RunSubmit {
    let mut all = Params::new();
    for (key, value) in params {
        all.set(*key, *value, Origin { file: "-p".into(), line: 0 });
    }
    let host = "host1".parse().unwrap();
    let case = PlannedCase { name: "x".into(), hosts: vec![host], params: all, ..PlannedCase::default() };
    let plan = Plan {
        scenario: scenario.to_owned(),
        cases: vec![case],
        case_timeout_ms: 60_000,
        strict_hosts: false,
        user: "mallory".into(),
        note: None,
        keep: false,
        matrix: None,
        file: None,
    };
    RunSubmit { request: RequestId::random(), plan }
}
