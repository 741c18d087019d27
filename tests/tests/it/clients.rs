//! A machine without a daemon: a token makes it a client, `--context` reaches the cluster, and an admin ends it.

use std::{path::Path, process::Command};

use serde_json::Value;
use vt_protocol::admin::AccessRole;
use vt_tests::program;

use crate::attacks::Target;

/// Runs vtctl as a user of another machine: with a home of its own and no lab. Gives exit code, JSON, and all that was
/// printed.
fn vtctl(home: &Path, words: &[&str]) -> (i32, Value, String) {
    let mut command = Command::new(program("vtctl"));
    command.args(words).args(["-o", "json"]).env_clear().env("HOME", home).env("USER", "wanda");
    let ran = command.env("VTMESH_LAB_ROOT", home.join("labs")).output().unwrap();
    let out = String::from_utf8_lossy(&ran.stdout).into_owned();
    let json = serde_json::from_str(&out).unwrap_or(Value::Null);
    (ran.status.code().unwrap_or(-1), json, out + &String::from_utf8_lossy(&ran.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_a_client_of_a_machine_without_a_daemon() {
    let target = Target::start(8).await;
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let token = target.client_token(AccessRole::Runner, "alice").await.reveal();
    let (code, joined, text) = vtctl(home, &["config", "use-context", "lab-a", "--join", &token]);
    assert_eq!(code, 0, "{text}");
    assert_eq!((&joined["client"], &joined["role"]), (&"alice".into(), &"runner".into()), "the admin's name counts");
    assert!(!text.contains(&token), "a secret is never printed");

    // The context is current, and can be named.
    for words in [&["job", "list"][..], &["--context", "lab-a", "host", "list"]] {
        let (code, _, text) = vtctl(home, words);
        assert_eq!(code, 0, "{words:?}: {text}");
    }
    // Who asked is what the certificate says, and not what the client's machine calls its user.
    let (code, job, text) = vtctl(home, &["run", "uptime", "-m", "host1", "--detach"]);
    assert_eq!(code, 0, "{text}");
    let (_, jobs, text) = vtctl(home, &["job", "list"]);
    assert_eq!((&jobs["jobs"][0]["id"], &jobs["jobs"][0]["user"]), (&job["id"], &"alice".into()), "{text}");
    let (code, report, text) = vtctl(home, &["cluster", "token", "create"]);
    assert_eq!((code, &report["code"]), (22, &"E0205".into()), "{text}");
    let (code, report, _) = vtctl(home, &["--context", "lab-b", "status"]);
    assert_eq!((code, &report["code"]), (2, &"E0001".into()));

    // The token is used; the context that is there stays.
    let (code, report, text) = vtctl(home, &["config", "use-context", "other", "--join", &token]);
    assert_eq!((code, &report["code"]), (22, &"E0215".into()), "{text}");
    let (_, contexts, _) = vtctl(home, &["config", "contexts"]);
    assert_eq!(contexts["contexts"].as_array().unwrap().len(), 1);
    assert_eq!(contexts["contexts"][0]["client"], "alice");

    // Revoked by an admin on the host, who also sees who did what.
    let socket = target.socket().display().to_string();
    let at_home = |words: &[&str]| vtctl(home, &[&["--endpoint", socket.as_str()], words].concat());
    assert_eq!(at_home(&["cluster", "access", "list"]).1["clients"][0]["name"], "alice");
    assert_eq!(at_home(&["cluster", "access", "revoke", "alice"]).0, 0);
    let (code, report, text) = vtctl(home, &["job", "list"]);
    assert_eq!((code, &report["code"]), (22, &"E0222".into()), "{text}");
    let said = report["help"].to_string();
    assert!(said.contains("vtctl config use-context --join"), "{said}");
    let (code, trail, _) = at_home(&["cluster", "audit"]);
    assert_eq!(code, 0);
    let entries = trail["entries"].as_array().unwrap();
    let has = |verb: &str, outcome: &str, who: &str| {
        let fits = |entry: &&Value| entry["verb"] == verb && entry["outcome"] == outcome;
        entries.iter().filter(fits).any(|entry| entry["who"].as_str().is_some_and(|text| text.contains(who)))
    };
    assert!(has("cluster token create", "denied", "client alice (runner)"), "{trail:#}");
    assert!(has("cluster access revoke", "done", "uid "), "{trail:#}");
    assert!(has("connect admin", "denied", "client alice"), "{trail:#}");

    // One that is over is told so before anyone is asked.
    let token = {
        let words = ["cluster", "token", "create", "--role", "client-viewer", "--for", "bob", "--valid", "1s"];
        at_home(&words).1["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(vtctl(home, &["config", "use-context", "short", "--join", &token]).0, 0);
    vt_tests::wait::until("the certificate is over", std::time::Duration::from_secs(60), || {
        match vtctl(home, &["--context", "short", "status"]) {
            (22, report, _) if report["code"] == "E0223" => Ok(()),
            other => Err(other),
        }
    });
}
