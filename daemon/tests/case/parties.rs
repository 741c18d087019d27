//! Parties: barriers, crash, hang, cancel, restart of the daemon, and what a wrong client is told.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};
use vt_daemon::party::places::secret_file;
use vt_protocol::{
    error::ErrorCode,
    ids::AttemptId,
    party::Failure,
    verdict::{Consequence, Outcome, Verdict},
};

use crate::in_process::{LONG, World, shell, wait_file};

/// A party that does nothing: the test acts in its place.
const IDLE: &str = "exec sleep 1000";

async fn idle(hosts: u64) -> (World, AttemptId) {
    let world = World::new(hosts, shell(IDLE)).await;
    let attempt = world.begin("idle", hosts as usize, &[], Duration::from_secs(600));
    (world, attempt)
}

#[tokio::test(flavor = "multi_thread")]
async fn parties_meet_exchange_and_pass() {
    let (world, attempt) = idle(2).await;
    let (one, two) = tokio::join!(world.act(0, attempt), world.act(1, attempt));
    assert_eq!(one.hosts(), two.hosts());
    assert_eq!((one.me().as_str(), two.me().as_str()), ("host1", "host2"));
    for round in 0..3 {
        let (a, b) = (json!({"from": 1, "round": round}), json!({"from": 2}));
        let (first, second) = tokio::join!(one.exchange("data", &a, LONG), two.exchange::<Value>("data", &b, LONG));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first, second);
        assert_eq!(first[0].1["from"], 1);
        assert_eq!(first[1].1["from"], 2);
    }
    one.metric("guest_downtime_ms", 7);
    two.metric("guest_downtime_ms", 9);
    let passed = || Outcome::Passed { remark: None };
    let (a, b) = tokio::join!(one.finish(passed()), two.finish(passed()));
    a.unwrap();
    b.unwrap();
    // The process does not exit by itself: it is stopped.
    assert_eq!(world.verdict().await, (Verdict::Pass, None));
    assert_eq!(world.ended(attempt).metrics["guest_downtime_ms"], 9);
    world.assert_clean().await;
    for place in [0, 1] {
        let events = world.events(place, attempt);
        for part in ["released", "party_ended", "passed"] {
            assert!(events.contains(part), "{part} in {events}");
        }
    }
    assert!(world.evidence(0, attempt, "params.json").contains("\"host1\""));
    assert_eq!(world.evidence(0, attempt, "inventory-before.json"), world.evidence(0, attempt, "inventory-after.json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_breaks_a_barrier_for_good_and_names_who_is_missing() {
    let (world, attempt) = idle(2).await;
    let one = world.act(0, attempt).await;
    let failure = one.barrier("start", Duration::from_millis(100)).await.unwrap_err();
    let Failure::Followed(Consequence::BarrierBroken(why)) = failure.clone() else { panic!("{failure:?}") };
    assert!(why.contains("host2"), "{why}");
    // The late one learns the same, at once.
    let two = world.act(1, attempt).await;
    let late = two.barrier("start", LONG).await.unwrap_err();
    assert!(matches!(late, Failure::Followed(Consequence::BarrierBroken(_))), "{late:?}");
    one.finish(failure.into()).await.unwrap();
    two.finish(late.into()).await.unwrap();
    let (verdict, cause) = world.verdict().await;
    assert_eq!((verdict, cause.unwrap().code), (Verdict::Error, ErrorCode::BarrierTimeout));
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_party_that_crashes_is_quoted_and_breaks_the_barriers_of_the_others() {
    let script = r#"case "$2" in *h1*) exec sleep 1000;; *) echo "no such device: flux capacitor" >&2; exit 3;; esac"#;
    let world = World::new(2, shell(script)).await;
    let attempt = world.begin("idle", 2, &[], Duration::from_secs(600));
    let one = world.act(0, attempt).await;
    let failure = one.barrier("start", LONG).await.unwrap_err();
    assert!(matches!(failure, Failure::Followed(Consequence::BarrierBroken(_))), "{failure:?}");
    one.finish(failure.into()).await.unwrap();
    let (verdict, cause) = world.verdict().await;
    let report = cause.unwrap();
    assert_eq!((verdict, report.code), (Verdict::Error, ErrorCode::PartyCrashed));
    let text = format!("{report:?}");
    assert!(text.contains("flux capacitor") && text.contains("host2") && text.contains('3'), "{text}");
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_party_that_hangs_and_ignores_sigterm_is_gone_after_a_cancel() {
    let script = r#"trap '' TERM; sleep 1000 & echo deaf > "$2.ready"; while :; do sleep 1; done"#;
    let world = World::new(2, shell(script)).await;
    let attempt = world.begin("idle", 2, &[], Duration::from_secs(600));
    for place in [0, 1] {
        world.act(place, attempt).await;
        wait_file(&world.hosts[place].places.socket().with_extension("sock.ready")).await;
    }
    world.cancel();
    let (verdict, cause) = world.verdict().await;
    assert_eq!((verdict, cause.unwrap().code), (Verdict::Cancelled, ErrorCode::Cancelled));
    world.assert_clean().await;
    let socket = world.hosts[0].places.socket().display().to_string();
    assert_eq!(processes_with(&socket), Vec::<u32>::new(), "processes of a party are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_case_that_takes_too_long_is_ended_and_says_where_it_was() {
    let world = World::new(1, shell(IDLE)).await;
    let attempt = world.begin("idle", 1, &[], Duration::from_secs(3));
    let one = world.act(0, attempt).await;
    let step = one.step("polish the mirror").await.unwrap();
    let (verdict, cause) = world.verdict().await;
    drop(step);
    let report = cause.unwrap();
    assert_eq!((verdict, report.code), (Verdict::Timeout, ErrorCode::CaseTimeout));
    assert!(format!("{report:?}").contains("polish the mirror"), "{report:?}");
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_daemon_is_a_slow_answer_and_the_party_goes_on() {
    let (mut world, attempt) = idle(2).await;
    let one = world.act(0, attempt).await;
    let pid = world.party_pid(0, attempt).await;
    let waiting = tokio::spawn(async move {
        let released = one.exchange("start", &json!(1), 2 * LONG).await;
        (one, released)
    });
    let arrived = |state: &vt_sync::State| {
        let attempt = state.attempts.get(&attempt)?;
        attempt.barrier("start", 1).filter(|barrier| barrier.arrived.len() == 1).map(drop)
    };
    world.shared.wait("host1 arrives", arrived).await;
    world.stop_daemon(0).await;
    world.start_daemon(0);
    let two = world.act(1, attempt).await;
    let there = two.exchange("start", &json!(2), LONG).await.unwrap();
    let (one, here) = tokio::time::timeout(2 * LONG, waiting).await.unwrap().unwrap();
    assert_eq!(here.unwrap(), there);
    // A new call over the new connection, under an id the new daemon has not seen.
    one.log("still here").await.unwrap();
    let passed = || Outcome::Passed { remark: None };
    one.finish(passed()).await.unwrap();
    two.finish(passed()).await.unwrap();
    assert_eq!(world.verdict().await.0, Verdict::Pass);
    let events = world.events(0, attempt);
    assert!(events.contains("still here"), "{events}");
    assert!(!alive(pid), "the process of the party outlived its end");
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_party_that_died_while_the_daemon_was_away_is_noticed() {
    let (mut world, attempt) = idle(1).await;
    let _one = world.act(0, attempt).await;
    let pid = world.party_pid(0, attempt).await;
    world.stop_daemon(0).await;
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    world.start_daemon(0);
    let (verdict, cause) = world.verdict().await;
    assert_eq!((verdict, cause.unwrap().code), (Verdict::Error, ErrorCode::PartyCrashed));
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_party_on_no_record_is_ended_and_a_new_one_started() {
    let (mut world, attempt) = idle(1).await;
    let _one = world.act(0, attempt).await;
    let stray = world.party_pid(0, attempt).await;
    world.stop_daemon(0).await;
    // As a daemon leaves it that ends between starting the process and writing it down.
    let path = world.hosts[0].places.record(attempt);
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    record["process"] = Value::Null;
    std::fs::write(&path, record.to_string()).unwrap();
    world.start_daemon(0);
    let one = world.act(0, attempt).await;
    one.finish(Outcome::Passed { remark: None }).await.unwrap();
    assert_eq!(world.verdict().await.0, Verdict::Pass);
    assert!(!alive(stray), "the stray party lives");
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_quorum_is_waited_for_and_nothing_is_lost() {
    let (world, attempt) = idle(2).await;
    let (one, two) = tokio::join!(world.act(0, attempt), world.act(1, attempt));
    world.shared.faults.lock().unwrap().no_quorum = true;
    let waiting = tokio::spawn(async move { (one.barrier("start", LONG).await, one) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.shared.faults.lock().unwrap().no_quorum = false;
    two.barrier("start", LONG).await.unwrap();
    let (released, one) = waiting.await.unwrap();
    released.unwrap();
    one.finish(Outcome::Passed { remark: Some("slow".into()) }).await.unwrap();
    two.finish(Outcome::Passed { remark: None }).await.unwrap();
    assert_eq!(world.verdict().await.0, Verdict::Warn);
    world.assert_clean().await;
}

/// A client that speaks by hand.
struct Raw {
    stream: BufReader<UnixStream>,
}

impl Raw {
    async fn open(world: &World) -> Self {
        Self { stream: BufReader::new(UnixStream::connect(world.hosts[0].places.socket()).await.unwrap()) }
    }

    async fn ask(&mut self, line: &str) -> Option<Value> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).await.ok()?;
        let mut text = String::new();
        let read = tokio::time::timeout(LONG, self.stream.read_line(&mut text)).await.expect("no reply, no end");
        if read.unwrap_or(0) == 0 { None } else { Some(serde_json::from_str(&text).unwrap()) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_client_is_refused_and_hurts_nobody() {
    let (world, attempt) = idle(1).await;
    let good = world.act(0, attempt).await;
    let secret = wait_file(&secret_file(&world.hosts[0].places.socket(), attempt)).await;
    let hello = |attempt: &AttemptId, secret: &str| {
        json!({"id": 0, "call": {"hello": {"attempt": attempt, "secret": secret}}}).to_string()
    };

    let refused = Raw::open(&world).await.ask(&hello(&attempt, "guess")).await.unwrap();
    assert!(refused["failed"].to_string().contains("secret"), "{refused}");
    let other = AttemptId { number: 9, ..attempt };
    let refused = Raw::open(&world).await.ask(&hello(&other, &secret)).await.unwrap();
    assert!(refused["failed"].to_string().contains("Closed"), "{refused}");
    let log = |id: u64, text: &str| json!({"id": id, "call": {"log": {"warn": false, "text": text}}}).to_string();
    let refused = Raw::open(&world).await.ask(&log(1, "x")).await.unwrap();
    assert!(refused["failed"].to_string().contains("hello"), "{refused}");
    for garbage in ["", "}", "{\"id\":1}", "\u{0}\u{1}"] {
        let refused = Raw::open(&world).await.ask(garbage).await.unwrap();
        assert!(refused["failed"].is_object(), "{garbage:?}: {refused}");
    }
    let huge = "x".repeat(3 << 20);
    assert_eq!(Raw::open(&world).await.ask(&huge).await, None, "an endless line is not kept");

    // The same call again is done once; another one under its id is refused.
    let mut raw = Raw::open(&world).await;
    assert!(raw.ask(&hello(&attempt, &secret)).await.unwrap()["ok"]["welcome"].is_object());
    let first = raw.ask(&log(901, "only once")).await.unwrap();
    let mut again = Raw::open(&world).await;
    again.ask(&hello(&attempt, &secret)).await.unwrap();
    assert_eq!(again.ask(&log(901, "only once")).await.unwrap(), first);
    let conflict = again.ask(&log(901, "something else")).await.unwrap();
    assert!(conflict["failed"].to_string().contains(&ErrorCode::RequestConflict.to_string()), "{conflict}");
    let payload = "y".repeat(65 << 10);
    let barrier =
        json!({"id": 902, "call": {"barrier": {"tag": "t", "generation": 1, "deadline_ms": 10, "payload": payload}}});
    let large = again.ask(&barrier.to_string()).await.unwrap();
    assert!(large["failed"].to_string().contains(&ErrorCode::TooLarge.to_string()), "{large}");

    good.finish(Outcome::Passed { remark: None }).await.unwrap();
    assert_eq!(world.verdict().await.0, Verdict::Pass);
    assert_eq!(world.events(0, attempt).matches("only once").count(), 1);
    world.assert_clean().await;
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn processes_with(needle: &str) -> Vec<u32> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != own);
    pids.filter(|pid| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(needle) && alive(*pid)
    })
    .collect()
}
