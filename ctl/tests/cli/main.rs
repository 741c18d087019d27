//! The real `vtctl` against a scripted daemon: what it prints, how it exits, what it leaves behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bad_input;
mod doctor;
mod fake;
mod look;
mod providers;
mod run;
mod watch;

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a command printed and how it ended.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\n--- stdout\n{}\n--- stderr\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}:\n{}\n--- stderr\n{}", self.out, self.err))
    }
}

/// A command in a directory of its own, with an environment that is the same everywhere.
fn vtctl(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtctl"));
    command.args(words).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_clear().env("LANG", "C.UTF-8").env("HOME", dir).env("USER", "tester");
    // No lab of this machine may be meant by chance.
    command.env("VTMESH_LAB_ROOT", dir.join("labs"));
    command
}

fn ran(dir: &Path, words: &[&str]) -> Ran {
    Ran::of(vtctl(dir, words).output().unwrap())
}

/// Runs with `--endpoint`.
fn at(dir: &Path, endpoint: &str, words: &[&str]) -> Ran {
    let mut all = vec!["--endpoint", endpoint];
    all.extend(words);
    ran(dir, &all)
}

/// Starts with `--endpoint`, stderr into a file that can be looked at meanwhile.
fn start(dir: &Path, endpoint: &str, words: &[&str]) -> (Child, std::path::PathBuf) {
    let log = dir.join("stderr");
    let file = std::fs::File::create(&log).unwrap();
    let mut command = vtctl(dir, &["--endpoint", endpoint]);
    (command.args(words).stderr(file).spawn().unwrap(), log)
}

/// Waits for the end, with a deadline; the process is killed when it passes.
#[track_caller]
fn end(mut child: Child, log: &Path) -> Ran {
    let by = Instant::now() + DEADLINE;
    loop {
        if child.try_wait().unwrap().is_some() {
            let mut ran = Ran::of(child.wait_with_output().unwrap());
            ran.err = std::fs::read_to_string(log).unwrap();
            return ran;
        }
        if Instant::now() > by {
            let _ = child.kill();
            panic!("vtctl does not end; stderr:\n{}", std::fs::read_to_string(log).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn wait(what: &str, holds: impl Fn() -> bool) {
    let by = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < by, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Names in a directory, without what the tests themselves put there.
fn entries(dir: &Path) -> Vec<String> {
    let own = |name: &String| name.ends_with(".sock") || name == "stderr";
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|n| !own(n))
        .collect();
    names.sort();
    names
}
