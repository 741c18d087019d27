//! Watching: daemons that go away, Ctrl-C, time that runs out.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    verdict::Verdict,
};

use crate::{
    at, end,
    fake::{self, Act, Fake, Gate},
    start, wait,
};

fn shown(err: &str, step: &str) -> usize {
    err.lines().filter(|line| line.contains(&format!("  {step} "))).count()
}

#[test]
fn a_watch_goes_on_at_another_daemon_and_each_item_is_shown_once() {
    let dir = tempfile::tempdir().unwrap();
    let items = |n: u64| (1..=n).map(|seq| fake::step(seq, "host1", &format!("step{seq}"))).collect::<Vec<_>>();
    let first = Fake::start(dir.path(), "a", move |request| match request {
        AdminRequest::JobWatch(_) => {
            let begin = vec![fake::job_item(fake::running())];
            Some(fake::says(begin.into_iter().chain(items(3)).collect()).into_iter().chain([Act::Die]).collect())
        }
        _ => None,
    });
    // The second replays from the beginning; one step it does not tell, as that attempt was over: the log has it.
    let second = Fake::start(dir.path(), "b", move |request| match request {
        AdminRequest::JobWatch(_) => {
            let begin = vec![fake::job_item(fake::running())];
            let all = begin.into_iter().chain(items(5)).chain([fake::job_item(fake::passed())]);
            Some(fake::stream(all.collect()))
        }
        AdminRequest::JobLogs(_) => Some(fake::stream(items(6))),
        _ => None,
    });
    let both = format!("{},{}", first.socket(), second.socket());
    let ran = at(dir.path(), &both, &["run", "multihost_migration", "-m", "host1,host2"]).expect(0);
    for n in 1..=6 {
        assert_eq!(shown(&ran.err, &format!("step{n}")), 1, "step{n}:\n{}", ran.err);
    }
    assert!(ran.err.contains("the daemon went away") && ran.err.contains("b.sock"), "{}", ran.err);
    assert_eq!(first.requests().iter().filter(|request| matches!(request, AdminRequest::RunSubmit(_))).count(), 1);
    assert!(!second.requests().iter().any(|request| matches!(request, AdminRequest::RunSubmit(_))));
}

#[test]
fn a_daemon_that_was_cut_off_in_silence_is_left_for_one_that_can_decide() {
    let dir = tempfile::tempdir().unwrap();
    let cut = Gate::new();
    let is_cut = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (gate, flag) = (cut.clone(), is_cut.clone());
    let first = Fake::start(dir.path(), "a", move |request| match request {
        AdminRequest::JobWatch(_) => {
            let says = fake::says(vec![fake::job_item(fake::running()), fake::step(1, "host1", "step1")]);
            // Then nothing: it is alive, and nothing reaches it.
            Some(says.into_iter().chain([Act::Open(gate.clone()), Act::Wait(Gate::new())]).collect())
        }
        AdminRequest::Status if flag.load(std::sync::atomic::Ordering::SeqCst) => {
            Some(vec![Act::Say(AdminReply::Status(Box::new(fake::status(false))))])
        }
        _ => None,
    });
    let second = Fake::healthy(dir.path(), "b");
    let both = format!("{},{}", first.socket(), second.socket());
    let (child, log) = start(dir.path(), &both, &["job", "watch", "job_7"]);
    first.wait_for("the watch", |request| matches!(request, AdminRequest::JobWatch(_)));
    is_cut.store(true, std::sync::atomic::Ordering::SeqCst);
    let ran = end(child, &log).expect(0);
    assert!(ran.err.contains("is cut off; goes on with") && ran.err.contains("b.sock"), "{}", ran.err);
    second.wait_for("the watch", |request| matches!(request, AdminRequest::JobWatch(_)));
}

/// A daemon whose job runs until it is cancelled.
fn cancellable(dir: &std::path::Path) -> Fake {
    let cancelled = Gate::new();
    Fake::start(dir, "d", move |request| match request {
        AdminRequest::JobWatch(_) => {
            let last = fake::says(vec![fake::job_item(fake::ended(&[(Verdict::Cancelled, None)]))]);
            let begin = fake::says(vec![fake::job_item(fake::running()), fake::step(1, "host1", "step1")]);
            Some(begin.into_iter().chain([Act::Wait(cancelled.clone())]).chain(last).chain([Act::End]).collect())
        }
        AdminRequest::JobCancel(_) => Some(vec![Act::Say(AdminReply::Done), Act::Open(cancelled.clone())]),
        _ => None,
    })
}

fn press(child: &std::process::Child, signal: Signal) {
    // It may have ended just now.
    let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal);
}

#[test]
fn ctrl_c_without_a_terminal_cancels_the_job_and_waits_for_its_end() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let dir = tempfile::tempdir().unwrap();
        let daemon = cancellable(dir.path());
        let (child, log) = start(dir.path(), &daemon.socket(), &["run", "multihost_migration", "-m", "host1,host2"]);
        // The signal is caught before the watch begins, so a shown step means that it is.
        wait("a step is shown", || std::fs::read_to_string(&log).unwrap().contains("step1"));
        press(&child, signal);
        let ran = end(child, &log).expect(102);
        assert!(ran.out.contains("CANCELLED  1 of 1"), "{}", ran.out);
        assert!(daemon.requests().iter().any(|request| matches!(request, AdminRequest::JobCancel(_))));
    }
}

#[test]
fn ctrl_c_twice_leaves_at_once_and_says_how_to_come_back() {
    let dir = tempfile::tempdir().unwrap();
    // Cancelling hangs here, so that only leaving can end it.
    let daemon = Fake::start(dir.path(), "d", |request| match request {
        AdminRequest::JobWatch(_) => {
            let begin = fake::says(vec![fake::job_item(fake::running()), fake::step(1, "host1", "step1")]);
            Some(begin.into_iter().chain([Act::Wait(Gate::new())]).collect())
        }
        AdminRequest::JobCancel(_) => Some(vec![Act::Wait(Gate::new())]),
        _ => None,
    });
    let (mut child, log) = start(dir.path(), &daemon.socket(), &["run", "multihost_migration", "-m", "host1,host2"]);
    wait("a step is shown", || std::fs::read_to_string(&log).unwrap().contains("step1"));
    // On a busy machine two presses may be further apart than they were sent: press until two are close enough.
    for _ in 0..200 {
        press(&child, Signal::SIGINT);
        std::thread::sleep(Duration::from_millis(100));
        if child.try_wait().unwrap().is_some() {
            break;
        }
    }
    let ran = end(child, &log).expect(130);
    assert!(ran.err.contains("vtctl job watch job_7") && ran.err.contains("vtctl job cancel job_7"), "{}", ran.err);
}

#[test]
fn the_time_of_the_client_runs_out_and_the_job_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = cancellable(dir.path());
    let ran = at(dir.path(), &daemon.socket(), &["run", "multihost_migration", "-m", "host1,host2", "--timeout", "3s"])
        .expect(124);
    assert!(ran.err.contains("error[E0208]") && ran.err.contains("vtctl job watch job_7"), "{}", ran.err);
    assert!(!daemon.requests().iter().any(|request| matches!(request, AdminRequest::JobCancel(_))));
}

#[test]
fn logs_that_break_go_on_without_repeating() {
    let dir = tempfile::tempdir().unwrap();
    let first = Fake::start(dir.path(), "a", |request| match request {
        AdminRequest::JobLogs(_) => {
            let items = vec![fake::step(1, "host1", "one"), fake::step(2, "host1", "two")];
            Some(fake::says(items).into_iter().chain([Act::Die]).collect())
        }
        _ => None,
    });
    let second = Fake::start(dir.path(), "b", |request| match request {
        AdminRequest::JobLogs(_) => Some(fake::stream(
            (1..=3).map(|seq| fake::step(seq, "host1", ["one", "two", "three"][seq as usize - 1])).collect(),
        )),
        _ => None,
    });
    let both = format!("{},{}", first.socket(), second.socket());
    let out = at(dir.path(), &both, &["job", "logs", "job_7", "--follow"]).expect(0).out;
    let steps: Vec<&str> = out.lines().filter_map(|line| line.split_whitespace().nth(4)).collect();
    assert_eq!(steps, ["one", "two", "three"], "{out}");
}
