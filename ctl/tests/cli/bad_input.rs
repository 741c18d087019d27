//! Bad input: each gives one clear error, the right exit code, and leaves nothing behind.

use serde_json::json;
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    error::{ErrorCode, Report},
};

use crate::{
    at, entries,
    fake::{self, Act, Fake},
    ran, vtctl,
};

struct Bad {
    words: &'static [&'static str],
    exit: i32,
    code: &'static str,
    says: &'static [&'static str],
}

const RUN: &str = "multihost_migration";

const TABLE: &[Bad] = &[
    Bad {
        words: &["run", RUN, "-m", "host1,hots2"],
        exit: 23,
        code: "E0302",
        says: &["\"hots2\"", "host1 host2 host3", "did you mean host2?"],
    },
    Bad {
        words: &["run", RUN, "-m", "host1,nosuch"],
        exit: 23,
        code: "E0302",
        says: &["host1 host2 host3", "vtctl host list"],
    },
    Bad {
        words: &["run", "multihost_migraton", "-m", "host1,host2"],
        exit: 23,
        code: "E0305",
        says: &["did you mean multihost_migration?"],
    },
    Bad { words: &["run", RUN, "-m", "host1,host2", "-p", "novalue"], exit: 2, code: "E0001", says: &["novalue"] },
    Bad { words: &["run", RUN, "-m", "host1,host2", "-p", "=x"], exit: 2, code: "E0001", says: &["=x"] },
    Bad {
        words: &["run", RUN, "-m", "host1,host2", "-p", "mme=1"],
        exit: 2,
        code: "E0002",
        says: &["did you mean mem?"],
    },
    Bad { words: &["run", RUN, "-m", "host1"], exit: 25, code: "E0304", says: &["needs 2 hosts", "given", "host1"] },
    Bad {
        words: &["run", RUN],
        exit: 25,
        code: "E0304",
        says: &["none", "vtctl run multihost_migration -m host1,host2"],
    },
    Bad { words: &["run", RUN, "-m", "host1,host1"], exit: 2, code: "E0001", says: &["host1 is named twice"] },
    Bad { words: &["run", RUN, "-m", "host1,Host 2"], exit: 2, code: "E0001", says: &["Host 2"] },
    Bad {
        words: &["run", RUN, "-m", "host1,host2", "--group-hosts", "1"],
        exit: 25,
        code: "E0304",
        says: &["--group-hosts"],
    },
    Bad { words: &["run", RUN, "-m", "host1,host2", "--group-hosts", "some"], exit: 2, code: "E0001", says: &["some"] },
    Bad { words: &["run", RUN, "-M", "hosts.txt"], exit: 2, code: "E0003", says: &["hosts.txt:2", "not a host"] },
    Bad { words: &["run", RUN, "-M", "missing.txt"], exit: 2, code: "E0003", says: &["missing.txt"] },
    Bad {
        words: &["run", RUN, "-m", "host1,host2", "-r", "taken"],
        exit: 25,
        code: "E0802",
        says: &["taken", "-r DIR"],
    },
    Bad { words: &["run", RUN, "-m", "host1,host2", "--report", "html=x"], exit: 2, code: "E0001", says: &["html"] },
    Bad {
        words: &["run", RUN, "-m", "host1,host2", "--case-timeout", "soon"],
        exit: 2,
        code: "E0001",
        says: &["soon"],
    },
    Bad {
        words: &["run", RUN, "-m", "host1,host2", "-p", "mem=lots"],
        exit: 2,
        code: "E0002",
        says: &["mem", "lots", "512M"],
    },
    Bad { words: &["job", "show", "job_!"], exit: 2, code: "E0001", says: &["job_!"] },
    Bad { words: &["job", "show", "job_9"], exit: 23, code: "E0308", says: &["vtctl job list"] },
    Bad { words: &["job", "watch", "job_9"], exit: 23, code: "E0308", says: &["vtctl job list"] },
    Bad { words: &["host", "show", "host9"], exit: 23, code: "E0302", says: &["did you mean host1?"] },
    Bad { words: &["scenario", "show", "uptim"], exit: 23, code: "E0305", says: &["did you mean uptime?"] },
    Bad { words: &["explain", "E9999"], exit: 2, code: "E0001", says: &["E9999"] },
    Bad { words: &["clutser", "status"], exit: 2, code: "E0001", says: &["cluster"] },
    Bad { words: &["cluster", "token", "create", "--ttl", "25h"], exit: 2, code: "E0001", says: &["24h"] },
    Bad { words: &["cluster", "join", "--token-file", "missing.txt"], exit: 2, code: "E0001", says: &["missing.txt"] },
    Bad { words: &["lab", "down", "--lab", "../../x"], exit: 2, code: "E0001", says: &["../../x"] },
];

fn daemon(dir: &std::path::Path) -> Fake {
    Fake::start(dir, "d", |request| {
        let report = match request {
            AdminRequest::RunSubmit(submit) if submit.plan.cases[0].params.text("mem") == Some("lots") => {
                Report::new(ErrorCode::BadParameter, "parameter mem = \"lots\" (-p) is not a size such as 512M")
            }
            AdminRequest::JobShow(job) | AdminRequest::JobWatch(job) if *job != fake::JOB => {
                Report::new(ErrorCode::UnknownJob, format!("there is no job {job}")).help("vtctl job list")
            }
            _ => return None,
        };
        Some(vec![Act::Say(AdminReply::Refused(report))])
    })
}

#[test]
fn every_mistake_has_its_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    std::fs::write(dir.path().join("hosts.txt"), "host1\nnot a host\n").unwrap();
    std::fs::create_dir(dir.path().join("taken")).unwrap();
    std::fs::write(dir.path().join("taken/file"), "").unwrap();
    let before = entries(dir.path());
    for bad in TABLE {
        let ran = at(dir.path(), &daemon.socket(), bad.words);
        let all = format!("{:?}\n{}{}", bad.words, ran.out, ran.err);
        assert_eq!(ran.code, bad.exit, "{all}");
        assert!(ran.err.starts_with(&format!("error[{}]: ", bad.code)), "{all}");
        assert_eq!(ran.err.matches("error[").count(), 1, "one error: {all}");
        for words in bad.says {
            assert!(ran.err.contains(words), "{words}: {all}");
        }
        assert_eq!(ran.out, "", "{all}");
        assert_eq!(entries(dir.path()), before, "{all}");
    }
    let submitted = daemon.requests().iter().filter(|request| matches!(request, AdminRequest::RunSubmit(_))).count();
    assert_eq!(submitted, 1, "only the value that the daemon alone can judge was submitted");
}

#[test]
fn an_error_in_json_is_one_object_on_stdout() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let ran = at(dir.path(), &daemon.socket(), &["run", RUN, "-m", "host1,nosuch", "-o", "json"]).expect(23);
    let value = ran.json();
    assert_eq!((&value["schema"], &value["code"]), (&json!("vtmesh/v1/error"), &json!("E0302")));
    assert_eq!(value["exit"], json!({"code": 23, "name": "not_found"}));
    assert_eq!(ran.err, "");
}

#[test]
fn nobody_answers() {
    let dir = tempfile::tempdir().unwrap();
    let refusing = std::os::unix::net::UnixListener::bind(dir.path().join("dead.sock")).unwrap();
    drop(refusing);
    for words in [
        &["status"][..],
        &["run", RUN, "-m", "host1,host2"],
        &["job", "list"],
        &["job", "watch", "job_7", "--timeout", "2s"],
    ] {
        let ran = at(dir.path(), "./none.sock,./dead.sock", words);
        // A watch looks for daemons until the time is over.
        let exit = if words.contains(&"--timeout") { 124 } else { 20 };
        let ran = ran.expect(exit);
        if exit == 20 {
            assert!(ran.err.starts_with("error[E0204]: no daemon answered\n"), "{}", ran.err);
            assert!(
                ran.err.contains("./none.sock: No such file") && ran.err.contains("./dead.sock: Connection refused"),
                "{}",
                ran.err
            );
        }
    }
    let ran = ran(dir.path(), &["status", "--lab", "nosuch"]).expect(23);
    assert!(ran.err.starts_with("error[E0323]"), "{}", ran.err);
}

#[test]
fn a_daemon_elsewhere_wants_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let ran = at(dir.path(), "127.0.0.1:9", &["status"]).expect(22);
    assert!(ran.err.starts_with("error[E0205]") && ran.err.contains("VTCTL_IDENTITY"), "{}", ran.err);
    assert!(ran.err.contains("asked"), "{}", ran.err);
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    for words in [&["explain"][..], &["--help"], &["nosuch"], &["status", "--endpoint", "./none.sock"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = vtctl(dir.path(), words);
        let status = command.stdout(writer.try_clone().unwrap()).stderr(writer).status().unwrap();
        // 101 is what a panic exits with.
        assert!(matches!(status.code(), Some(0 | 2 | 20)), "{words:?}: {status}");
    }
}

#[test]
fn no_quorum_and_unclaimed_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let lost = Fake::start(dir.path(), "lost", |request| match request {
        AdminRequest::Status => Some(vec![Act::Say(AdminReply::Status(Box::new(fake::status(false))))]),
        _ => None,
    });
    let ran = at(
        dir.path(),
        &format!("{},./none.sock", lost.socket()),
        &["run", RUN, "-m", "host1,host2", "--timeout", "1s"],
    );
    let ran = ran.expect(21);
    assert!(ran.err.starts_with("error[E0203]: the cluster cannot decide"), "{}", ran.err);
    assert!(ran.err.contains("host1 without quorum") && ran.err.contains("./none.sock"), "{}", ran.err);
    assert!(!lost.requests().iter().any(|request| matches!(request, AdminRequest::RunSubmit(_))));

    let unclaimed = Fake::start(dir.path(), "new", |request| match request {
        AdminRequest::Status => Some(vec![Act::Say(fake::refused(Report::new(
            ErrorCode::Unclaimed,
            "this daemon belongs to no cluster yet",
        )))]),
        _ => None,
    });
    let ran = at(dir.path(), &unclaimed.socket(), &["status"]).expect(25);
    assert!(ran.err.starts_with("error[E0201]") && ran.err.contains("vtctl cluster init"), "{}", ran.err);
}

#[test]
fn a_daemon_that_talks_nonsense_or_nothing_is_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let talker = std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { break };
            match n {
                0 => _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
                1 => _ = std::io::Write::write_all(&mut stream, &[0xff; 64]),
                _ => break,
            }
        }
    });
    for _ in 0..2 {
        let ran = at(dir.path(), "./odd.sock", &["status"]);
        assert!(matches!(ran.code, 20 | 24), "{} {}", ran.code, ran.err);
        assert!(ran.err.starts_with("error[E0"), "{}", ran.err);
    }
    drop(std::os::unix::net::UnixStream::connect(&path));
    talker.join().unwrap();
}
