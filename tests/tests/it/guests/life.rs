//! Jobs that are cancelled, queued or outlive a daemon; in the end nothing is left.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use vt_tests::{lab::Lab, wait};

const SOON: Duration = Duration::from_secs(90);

/// Submits a job and gives its id.
pub(super) fn submit(lab: &Lab, arguments: &[&str]) -> String {
    let mut all = vec!["run"];
    all.extend(arguments);
    all.extend(["--detach", "-o", "json"]);
    let answer = lab.vtctl(&all).expect(0).json();
    answer["job"].as_str().or_else(|| answer["id"].as_str()).unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// A job as any host knows it. While its leader is gone there is no quorum for a moment, and the exit code says so.
pub(super) fn show(lab: &Lab, job: &str) -> Value {
    let ran = lab.vtctl(&["job", "show", job, "-o", "json"]);
    assert!(ran.code == 0 || ran.code == 21, "{ran:?}");
    ran.json()
}

/// Waits until the log of a job holds `text`.
fn wait_for_log(lab: &Lab, job: &str, text: &str) {
    wait::until(&format!("{text:?} in the log of {job}"), SOON, || {
        let ran = lab.vtctl(&["job", "logs", job]);
        if ran.stdout.contains(text) { Ok(()) } else { Err((ran.code, ran.stdout, ran.stderr)) }
    });
}

pub(super) fn wait_until_done(lab: &Lab, job: &str) -> Value {
    wait::until(&format!("{job} to be done"), SOON * 2, || {
        let shown = show(lab, job);
        if shown["state"] == "done" { Ok(shown) } else { Err(shown.to_string()) }
    })
}

#[test]
fn a_job_is_cancelled_at_any_time_and_leaves_nothing() {
    let lab = Lab::up(2);
    let before = lab.inventory(2);
    // While the guest boots, while probes run, and in the middle of a migration that would take minutes.
    for moment in ["boot", "probes on", "migrate host1"] {
        let job = submit(&lab, &["multihost_migration", "-m", "host1,host2", "-p", "mig_speed=1M", "-p", "mem=128M"]);
        wait_for_log(&lab, &job, moment);
        lab.vtctl(&["job", "cancel", &job, "-y"]).expect(0);
        let shown = wait_until_done(&lab, &job);
        assert_eq!(shown["cases"][0]["verdict"], "cancelled", "{moment}: {shown}");
        let watched = lab.vtctl(&["job", "watch", &job]);
        assert_eq!(watched.code, 102, "{moment}: {}", watched.stderr);
        assert_eq!(lab.inventory(2), before, "cancelled at {moment:?}, something was left behind");
    }
}

#[test]
fn a_host_in_use_is_not_removed_and_is_drained_when_its_case_has_ended() {
    let lab = Lab::up(2);
    let job = submit(&lab, &["uptime", "-m", "host2", "-p", "mem=128M"]);
    wait_for_log(&lab, &job, "boot");
    let refused = lab.vtctl(&["host", "remove", "host2"]);
    assert_eq!(refused.code, 24, "{refused:?}");
    assert!(refused.stderr.contains("E0311") && refused.stderr.contains("vtctl host drain host2"), "{refused:?}");
    let late = lab.vtctl(&["host", "drain", "host2", "--timeout", "2s"]);
    assert_eq!(late.code, 124, "{late:?}");
    let drained = lab.vtctl(&["host", "drain", "host2"]).expect(0);
    assert!(drained.stdout.contains("host2 is idle"), "{drained:?}");
    assert_eq!(wait_until_done(&lab, &job)["cases"][0]["verdict"], "pass", "what ran there went on");
    let refused = lab.vtctl(&["run", "uptime", "-m", "host2"]);
    assert_eq!(refused.code, 25, "{refused:?}");
    assert!(refused.stderr.contains("E0310"), "{refused:?}");
    lab.vtctl(&["host", "remove", "host2"]).expect(0);
    let hosts = lab.json(&["host", "list"])["hosts"].as_array().unwrap().len();
    assert_eq!(hosts, 1);
}

#[test]
fn a_job_whose_hosts_are_busy_waits_its_turn() {
    let lab = Lab::up(1);
    let first = submit(&lab, &["uptime", "-m", "host1"]);
    let second = submit(&lab, &["uptime", "-m", "host1"]);
    wait_for_log(&lab, &first, "boot");
    assert_eq!(show(&lab, &second)["cases"][0]["state"], "pending");
    for job in [first, second] {
        assert_eq!(wait_until_done(&lab, &job)["cases"][0]["verdict"], "pass");
    }
}

#[test]
fn a_vm_and_its_case_outlive_a_restart_of_the_daemon() {
    let lab = Lab::up(3);
    let words = ["multihost_migration", "-m", "host1,host2", "-p", "migrate_count=2", "-p", "shell_client=ssh"];
    let job = submit(&lab, &words);
    // Its shell has answered: the session is held.
    wait_for_log(&lab, &job, "  shell ");
    // Only the daemon, not its host: QEMU, guard, party and the session into the guest go on.
    lab.end_daemon("host1", Signal::SIGKILL);
    lab.vtctl(&["lab", "start", "host1"]).expect(0);
    let shown = wait_until_done(&lab, &job);
    assert_eq!(shown["cases"][0]["verdict"], "pass", "{shown}");
}
