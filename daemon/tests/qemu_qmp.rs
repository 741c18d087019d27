//! The QMP connection against a monitor that misbehaves, and against a real QEMU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::Instant,
};
use vt_daemon::qemu::qmp::{EventError, Qmp, QmpError, Transcript};

const LONG: Duration = Duration::from_secs(30);
const GREETING: &str =
    r#"{"QMP":{"version":{"qemu":{"major":99,"minor":1,"micro":0},"package":""},"capabilities":["oob","telepathy"]}}"#;

/// A monitor that does what a test says.
struct FakeMonitor {
    stream: BufReader<UnixStream>,
}

impl FakeMonitor {
    async fn accept(listener: &UnixListener) -> Self {
        let mut monitor = Self { stream: BufReader::new(listener.accept().await.unwrap().0) };
        monitor.say(GREETING).await;
        let hello = monitor.hear().await;
        assert_eq!(hello["execute"], "qmp_capabilities");
        assert_eq!(hello["arguments"]["enable"], json!(["oob"]));
        monitor.answer(&hello, json!({})).await;
        monitor
    }

    async fn say(&mut self, line: &str) {
        self.say_bytes(format!("{line}\r\n").as_bytes()).await;
    }

    async fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        tokio::time::timeout(LONG, self.stream.read_line(&mut line)).await.expect("a command").unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn answer(&mut self, command: &Value, value: Value) {
        self.say(&json!({ "return": value, "id": command["id"] }).to_string()).await;
    }
}

async fn pair() -> (tempfile::TempDir, Qmp, FakeMonitor, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let file = dir.path().join("qmp.jsonl");
    let listener = UnixListener::bind(&socket).unwrap();
    let transcript = Transcript::append(&file).await.unwrap();
    let (qmp, monitor) = tokio::join!(Qmp::connect(&socket, transcript), FakeMonitor::accept(&listener));
    (dir, qmp.unwrap(), monitor, file)
}

#[tokio::test]
async fn garbage_unknown_events_and_foreign_answers_do_not_end_the_connection() {
    let (_dir, qmp, mut monitor, file) = pair().await;
    let mut events = qmp.events();
    let asked = tokio::spawn({
        let qmp = qmp.clone();
        async move { qmp.query_status().await }
    });
    let command = monitor.hear().await;
    monitor.say("this is no JSON").await;
    monitor
        .say_bytes(b"\xff\xfe\x00\n\n[1,2]\n42\n\"x\"\n{}\n{\"return\":{}}\n{\"return\":{},\"id\":\"seven\"}\n")
        .await;
    monitor.say(r#"{"return":{},"id":4711}"#).await;
    monitor.say(r#"{"event":7}"#).await;
    monitor.say(r#"{"event":"GUEST_ASCENDED","data":{"to":["x",null]},"timestamp":{"seconds":-1}}"#).await;
    monitor
        .say(r#"{"event":"MIGRATION","data":{"status":"teleporting"},"timestamp":{"seconds":7,"microseconds":5}}"#)
        .await;
    monitor.say_bytes(&vec![b'x'; 9 * 1024 * 1024]).await;
    monitor.say_bytes(b"\n").await;
    monitor.answer(&command, json!({ "status": "levitating", "running": true })).await;
    let status = asked.await.unwrap().unwrap();
    assert_eq!((status.state.as_str(), status.running), ("levitating", true));

    let first = events.next().await.unwrap();
    assert_eq!((first.name.as_str(), first.timestamp_us), ("GUEST_ASCENDED", None));
    let second = events.wait_for(|e| e.name == "MIGRATION", Instant::now() + LONG).await.unwrap();
    assert_eq!((second.text("status"), second.timestamp_us), (Some("teleporting"), Some(7_000_005)));

    // The transcript holds all of it, as JSON lines that parse.
    qmp.close();
    let rows: Vec<Value> = {
        let transcript = Transcript::append(&file).await.unwrap();
        transcript.flush().await;
        let deadline = Instant::now() + LONG;
        loop {
            let text = std::fs::read_to_string(&file).unwrap();
            if text.contains("levitating") {
                break text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            }
            assert!(Instant::now() < deadline, "transcript is incomplete: {text}");
            tokio::task::yield_now().await;
        }
    };
    assert!(rows.iter().any(|row| row["dir"] == "out" && row["msg"]["execute"] == "query-status"));
    assert!(rows.iter().any(|row| row["dir"] == "in" && row["raw"] == "this is no JSON"));
    assert!(rows.iter().all(|row| row["t_ms"].as_u64() > Some(1_600_000_000_000) && row["mono_ns"].is_u64()));
}

#[tokio::test]
async fn a_command_given_up_or_dropped_disturbs_nothing() {
    let (_dir, qmp, mut monitor, _) = pair().await;
    let error = qmp.execute("slow", Value::Null, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, QmpError::Timeout { .. }), "{error}");
    let slow = monitor.hear().await;
    {
        let dropped = qmp.execute("dropped", Value::Null, LONG);
        tokio::select! { biased; _ = dropped => panic!("nobody answered"), _ = tokio::task::yield_now() => {} }
    }
    let asked = tokio::spawn({
        let qmp = qmp.clone();
        async move { qmp.execute("next", json!({"a": 1}), LONG).await }
    });
    let mut next = monitor.hear().await;
    if next["execute"] == "dropped" {
        monitor.answer(&next, json!("late")).await;
        next = monitor.hear().await;
    }
    assert_eq!((&next["execute"], &next["arguments"]), (&json!("next"), &json!({"a": 1})));
    monitor.answer(&slow, json!("late")).await;
    monitor.answer(&next, json!("right")).await;
    assert_eq!(asked.await.unwrap().unwrap(), json!("right"));
}

#[tokio::test]
async fn seven_in_band_commands_are_in_flight_and_out_of_band_passes_them() {
    let (_dir, qmp, mut monitor, _) = pair().await;
    let asked: Vec<_> = (0..20)
        .map(|i| {
            let qmp = qmp.clone();
            tokio::spawn(async move { qmp.execute("stuck", json!({ "i": i }), LONG).await })
        })
        .collect();
    let mut first = Vec::new();
    for _ in 0..7 {
        first.push(monitor.hear().await);
    }
    // Full: the eighth waits for its place, until its own time is up.
    let error = qmp.execute("eighth", Value::Null, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, QmpError::Timeout { .. }), "{error}");
    let oob = tokio::spawn({
        let qmp = qmp.clone();
        async move { qmp.execute_oob("yank", json!({}), LONG).await }
    });
    let command = monitor.hear().await;
    assert_eq!(command["exec-oob"], "yank");
    monitor.answer(&command, json!("out of band")).await;
    assert_eq!(oob.await.unwrap().unwrap(), json!("out of band"));
    for command in &first {
        monitor.answer(command, json!({})).await;
    }
    for _ in 7..20 {
        let command = monitor.hear().await;
        assert_eq!(command["execute"], "stuck");
        monitor.answer(&command, json!({})).await;
    }
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_end_of_the_monitor_reaches_every_asker_and_listener() {
    let (_dir, qmp, mut monitor, _) = pair().await;
    let mut events = qmp.events();
    let asked = tokio::spawn({
        let qmp = qmp.clone();
        async move { qmp.execute("last", Value::Null, LONG).await }
    });
    monitor.hear().await;
    drop(monitor);
    let error = asked.await.unwrap().unwrap_err();
    assert!(matches!(error, QmpError::Closed { .. }), "{error}");
    assert!(matches!(events.next().await, Err(EventError::Closed(_))));
    assert!(matches!(qmp.events().next().await, Err(EventError::Closed(_))));
    assert!(matches!(qmp.query_status().await, Err(QmpError::Closed { .. })));
    assert!(!qmp.is_open());
}

#[tokio::test]
async fn a_listener_that_is_too_slow_is_told_how_much_it_missed() {
    let (_dir, qmp, mut monitor, _) = pair().await;
    let mut slow = qmp.events();
    let mut quick = qmp.events();
    for i in 0..2000 {
        monitor.say(&json!({"event": "TICK", "data": {"i": i}}).to_string()).await;
        quick.wait_for(|e| e.data["i"] == i, Instant::now() + LONG).await.unwrap();
    }
    let EventError::Lagged(missed) = slow.next().await.unwrap_err() else { panic!("not told") };
    assert!(missed > 1000, "{missed}");
    assert_eq!(slow.next().await.unwrap().data["i"], missed);
}

#[tokio::test]
async fn what_does_not_greet_is_refused() {
    for greeting in ["SSH-2.0-OpenSSH_9.2\r\n", "{\"hello\":1}\n", ""] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting.as_bytes()).await.unwrap();
        };
        let (qmp, ()) = tokio::join!(Qmp::connect(&socket, Transcript::none()), serve);
        assert!(matches!(qmp, Err(QmpError::Greeting(_))), "{greeting:?}");
    }
    let missing = Qmp::connect(&PathBuf::from("/nonexistent/qmp"), Transcript::none()).await;
    assert!(matches!(missing, Err(QmpError::Connect { .. })));
}
