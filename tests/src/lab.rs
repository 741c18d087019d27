//! A lab for one test: made by the real `vtctl`, removed when the test ends, however it ends.

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{program, wait};

static LABS: AtomicU32 = AtomicU32::new(0);

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    name: String,
    /// Of the environment of its daemons.
    variables: Vec<(String, String)>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Of a program that ended.
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The same, if the exit code is `code`.
    ///
    /// # Panics
    /// It is not; shows everything that was printed.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// It is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e}\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr))
    }
}

/// Where labs keep their data.
pub fn lab_root() -> String {
    std::env::var("VTMESH_LAB_ROOT").unwrap_or_else(|_| "/var/lib/vtmesh/labs".into())
}

/// Runs `vtctl` without a lab.
pub fn vtctl(arguments: &[&str]) -> Ran {
    Ran::of(Command::new(program("vtctl")).args(arguments).stdin(Stdio::null()).output().expect("vtctl runs"))
}

impl Lab {
    /// Makes a lab of `hosts` hosts and waits until all of them are live.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn up(hosts: u32) -> Self {
        Self::up_as(hosts, &[])
    }

    /// A lab made with these words of `vtctl lab up` besides.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn up_as(hosts: u32, words: &[&str]) -> Self {
        Self::up_with(hosts, Vec::new(), words)
    }

    /// A lab whose hosts share no storage.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn up_separate(hosts: u32) -> Self {
        Self::up_as(hosts, &["--separate-pools"])
    }

    /// A lab whose hosts have a libvirtd each.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn up_libvirt(hosts: u32) -> Self {
        Self::up_as(hosts, &["--libvirt"])
    }

    /// The same, with these variables in the environment of its daemons.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn up_with(hosts: u32, variables: Vec<(String, String)>, more: &[&str]) -> Self {
        let name = format!("t{:x}{:x}", std::process::id() % 0xfffff, LABS.fetch_add(1, Ordering::Relaxed));
        let lab = Self { name, variables };
        let hosts_text = hosts.to_string();
        let mut words = vec!["lab", "up", "--hosts", &hosts_text];
        words.extend(more);
        lab.vtctl(&words).expect(0);
        lab.wait_for_live(hosts as usize);
        lab
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A `vtctl` command that means this lab.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("vtctl"));
        command.args(arguments).args(["--lab", &self.name]).stdin(Stdio::null());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `vtctl` in this lab.
    pub fn vtctl(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().expect("vtctl runs"))
    }

    /// Starts `vtctl` in this lab and does not wait for it.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vtctl runs")
    }

    /// The process on a host whose words are `wanted`, e.g. to be killed.
    pub fn process(&self, host: &str, wanted: impl Fn(&[String]) -> bool) -> Option<String> {
        let namespace = format!("vt-{}-{host}", self.name);
        let pids = Command::new("ip").args(["netns", "pids", &namespace]).output().expect("ip runs");
        let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
        let found = pids.lines().find(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<String> =
                words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            wanted(&words)
        });
        found.map(str::to_owned)
    }

    /// Where a host's sockets are.
    pub fn run_dir(&self, host: &str) -> PathBuf {
        ["/run/vtmesh/labs", &self.name, host].iter().collect()
    }

    /// Ends the daemon of a host by that signal and waits until it is gone. What it has started goes on.
    ///
    /// # Panics
    /// There is none, or it stays.
    pub fn end_daemon(&self, host: &str, signal: Signal) {
        let daemon = || self.process(host, |words| words.get(1).is_some_and(|word| word == "--config"));
        let pid = daemon().unwrap_or_else(|| panic!("{host} has no daemon"));
        kill(Pid::from_raw(pid.parse().expect("ip prints numbers")), signal).expect("it was there");
        wait::until(&format!("the daemon of {host} to be gone"), Duration::from_secs(30), || {
            daemon().map_or(Ok(()), Err)
        });
    }

    /// Runs `vtctl … -o json`; the command must succeed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        self.vtctl(&all).expect(0).json()
    }

    /// Waits until `count` hosts are live and the cluster can decide.
    pub fn wait_for_live(&self, count: usize) -> Value {
        wait::until(&format!("{count} live hosts"), Duration::from_secs(60), || {
            let ran = self.vtctl(&["cluster", "status", "-o", "json"]);
            let status: Value = serde_json::from_str(&ran.stdout).unwrap_or(Value::Null);
            let live = status["hosts"].as_array().into_iter().flatten().filter(|host| host["state"] == "live").count();
            if live >= count && status["quorum"] == true { Ok(status) } else { Err((ran.code, ran.stdout, ran.stderr)) }
        })
    }

    /// What exists on all hosts that can be left behind by a case: processes, taps, sockets, files.
    pub fn inventory(&self, hosts: u32) -> Vec<String> {
        let mut lines = Vec::new();
        for number in 1..=hosts {
            let host = format!("host{number}");
            let ran = self.vtctl(&["host", "inventory", &host]).expect(0);
            lines.extend(ran.stdout.lines().map(|line| format!("{host}: {line}")));
        }
        lines.sort();
        lines
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
        let ran = vtctl(&["lab", "down", "--lab", &self.name]);
        if ran.code != 0 && !std::thread::panicking() {
            panic!("lab {} could not be removed: {}", self.name, ran.stderr);
        }
    }
}

impl Lab {
    /// Prints the end of each daemon's log, for whoever reads a failure.
    fn keep_logs(&self) {
        let Ok(entries) = std::fs::read_dir(format!("{}/{}", lab_root(), self.name)) else { return };
        for entry in entries.filter_map(Result::ok) {
            let Ok(bytes) = std::fs::read(entry.path().join("vtd.log")) else { continue };
            let tail = &bytes[bytes.len().saturating_sub(6000)..];
            eprintln!("--- log of {}\n{}", entry.file_name().to_string_lossy(), String::from_utf8_lossy(tail));
        }
    }
}
