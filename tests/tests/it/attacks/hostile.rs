//! The other direction: a daemon that was taken over attacks the client, and a guest attacks the daemon.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use vt_daemon::{
    audit::Audit,
    guest::{
        agent::Agent,
        console::{Console, Credentials},
    },
    mesh::{AdminService, Caller, ReplySink, unix::AdminSocket},
};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, FileChunk, WatchItem},
    error::{ErrorCode, Report},
    hello::Hello,
    ids::{AttemptId, CaseId, JobId},
    job::{AttemptEvent, Happening, JobState, JobView},
};
use vt_tests::program;

use super::{Row, print, target::by};

/// What a terminal would obey, and what turns the direction of writing.
const ESCAPES: &str = "\x1b[2J\x1b]0;owned\x07\x1b[31mPASS\r\x08\x00\u{9b}2J";

/// A daemon that answers what its maker likes.
struct Hostile {
    audit: Arc<Audit>,
    path: String,
}

#[async_trait]
impl AdminService for Hostile {
    fn hello(&self) -> Hello {
        Hello::of(None, None, 1)
    }

    fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    async fn admin(&self, _caller: Caller, request: AdminRequest, replies: ReplySink, _by: Instant) {
        let attempt = AttemptId { case: CaseId { job: JobId(7), index: 1 }, number: 1 };
        let reply = match request {
            AdminRequest::JobFetch(_) => {
                let chunk = FileChunk { path: self.path.clone(), bytes: b"owned".to_vec(), last: true };
                let _ = replies.send(AdminReply::Files(chunk)).await;
                AdminReply::End
            }
            AdminRequest::JobShow(id) => AdminReply::Job(Box::new(JobView {
                id,
                scenario: format!("uptime {ESCAPES}"),
                state: JobState::Done,
                user: ESCAPES.to_owned(),
                note: None,
                cases: Vec::new(),
                counts: Vec::new(),
                submitted_unix_ms: 1,
                matrix: None,
            })),
            AdminRequest::JobLogs(_) => {
                let what = Happening::StepBegan(format!("boot {ESCAPES}"));
                let event = AttemptEvent { seq: 1, unix_ms: 1, host: "host1".parse().unwrap(), what };
                let _ = replies.send(AdminReply::Watch(Box::new(WatchItem::Event { attempt, event }))).await;
                AdminReply::End
            }
            AdminRequest::Inventory => AdminReply::Inventory(vec![format!("process {ESCAPES}")]),
            AdminRequest::Status => AdminReply::Refused(
                Report::new(ErrorCode::NoQuorum, format!("no {ESCAPES}")).with(ESCAPES, ESCAPES).help(ESCAPES),
            ),
            _ => AdminReply::Done,
        };
        let _ = replies.send(reply).await;
    }
}

/// Runs vtctl against a hostile daemon in `dir`; gives its exit code and all it printed.
async fn against(dir: &Path, path: &str, words: &[&str]) -> (i32, String) {
    let socket = dir.join("s");
    let service = Arc::new(Hostile { audit: Audit::new(&dir.join("audit")), path: path.to_owned() });
    let stop = CancellationToken::new();
    let serving = tokio::spawn(AdminSocket::bind(&socket).unwrap().serve(service, stop.clone()));
    let mut command = Command::new(program("vtctl"));
    command.arg("--endpoint").arg(&socket).args(words).current_dir(dir).env("HOME", dir).env("LANG", "C.UTF-8");
    let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    stop.cancel();
    serving.await.unwrap();
    let text = [ran.stdout, ran.stderr].concat();
    (ran.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_taken_over_does_not_take_over_the_client() {
    let mut rows = Vec::new();
    for path in ["../evil", "/tmp/evil", "a/../../evil", "a/./../b", "", "..", "x\0y", "a//../../evil", "-r/../../x"] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("work");
        std::fs::create_dir(&dir).unwrap();
        let (code, text) = against(&dir, path, &["job", "fetch", "7", "-r", "results"]).await;
        assert_ne!(code, 0, "{path:?}: {text}");
        assert!(text.contains("evidence that cannot be used"), "it is the path that is refused: {text}");
        assert!(!dir.join("results").exists(), "{path:?}");
        let beside: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(beside, ["work"], "{path:?} led out");
        let first = text.lines().next().unwrap_or_default().to_owned();
        rows.push(Row::new(
            format!("a bundle with a file at {path:?}"),
            first,
            format!("exit {code}, nothing written"),
        ));
    }
    for words in [&["job", "show", "7"][..], &["job", "logs", "7"], &["host", "inventory"], &["status"]] {
        let dir = tempfile::tempdir().unwrap();
        let (code, text) = against(dir.path(), "x", words).await;
        let obeyed: Vec<char> = text.chars().filter(|c| c.is_control() && !matches!(c, '\n' | '\t')).collect();
        assert!(obeyed.is_empty(), "{words:?} printed {obeyed:?}: {text:?}");
        let attack = format!("terminal escapes in `{}`", words.join(" "));
        rows.push(Row::new(attack, "control characters are not printed", format!("exit {code}")));
    }
    print("a hostile daemon", &rows);
}

/// A guest at the other end of a new socket in `dir`: whatever it is asked, it sends `bytes`, `times` over.
fn guest(dir: &Path, bytes: Vec<u8>, times: usize) -> (PathBuf, JoinHandle<()>) {
    let socket = dir.join("guest");
    let listener = UnixListener::bind(&socket).unwrap();
    let sending = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 4096];
        for _ in 0..times {
            let _ = timeout(Duration::from_millis(10), stream.read(&mut asked)).await;
            if stream.write_all(&bytes).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    });
    (socket, sending)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_cannot_fill_the_daemon_or_the_terminal() {
    let nested = format!("{{\"return\":{}{}}}\n", "[".repeat(100_000), "]".repeat(100_000));
    let numbers = format!("{{\"return\":[{}1]}}\n", "1e999,".repeat(1000));
    let escapes = format!("{ESCAPES}\n");
    let mut rows = Vec::new();
    for (attack, bytes, times) in [
        ("a line of the agent without an end", vec![b'x'; 1 << 20], 64),
        ("an agent's answer of 64 MiB", [br#"{"return":""#, &vec![b'a'; 1 << 20][..]].concat(), 64),
        ("an agent's answer nested 100000 deep", nested.into_bytes(), 1),
        ("an agent's answer with impossible numbers", numbers.into_bytes(), 1),
        ("an agent that sends escape sequences", escapes.clone().into_bytes(), 1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (socket, sending) = guest(dir.path(), bytes, times);
        let mut agent = Agent::connect(&socket, by()).await.unwrap();
        let error = agent.ping(Instant::now() + Duration::from_secs(4)).await.unwrap_err();
        sending.abort();
        rows.push(told(attack, &error.to_string()));
    }
    for (attack, bytes, times) in [
        ("a console that never stops", vec![b'x'; 1 << 20], 64),
        ("a console that draws for ever", escapes.repeat(1 << 14).into_bytes(), 64),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (socket, sending) = guest(dir.path(), bytes, times);
        let mut console = Console::connect(&socket, Credentials::default(), by()).await.unwrap();
        let error = console.login(Instant::now() + Duration::from_secs(4)).await.unwrap_err();
        sending.abort();
        rows.push(told(attack, &error.to_string()));
        let tail = console.tail();
        assert!(tail.len() < 20_000 && harmless(&tail), "{attack}: {tail:?}");
    }
    print("a hostile guest", &rows);
}

/// The error of a case is short, and nothing in it drives a terminal.
fn told(attack: &str, error: &str) -> Row {
    assert!(error.len() < 4000, "{attack}: {} bytes of error", error.len());
    assert!(harmless(error), "{attack}: {error:?}");
    Row::new(attack, error.chars().take(70).collect::<String>(), "in the error of the case")
}

fn harmless(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && c != '\n')
}
