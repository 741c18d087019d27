//! The guard's own way to the VM's monitor: no runtime, never blocks, knows only what a guard needs.
//!
//! Commands are sent without waiting for the greeting or for one another: QEMU takes them in order. Everything that is
//! not the answer to one of ours, or news that the VM runs, is dropped unread.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};
use serde_json::{Value, json};

/// Longest line that is looked at; a longer one is dropped.
const LINE_MAX: usize = 64 * 1024;

/// What the monitor said that a guard wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// It takes commands.
    Ready,
    /// Answer to the question before the latest `stop`.
    WasRunning(bool),
    /// The latest `stop` returned.
    Stopped,
    /// CPUs run again.
    Resumed,
    /// Answer to a command out of band, by its number: done, or why not.
    Answered(u64, Result<(), String>),
    /// The connection is gone.
    Lost,
}

pub(super) struct Monitor {
    path: PathBuf,
    stream: Option<UnixStream>,
    lines: Lines,
    ready: bool,
    next_id: u64,
    hello: u64,
    question: u64,
    stop: u64,
    /// Commands out of band that were not answered yet.
    asked: BTreeSet<u64>,
}

impl Monitor {
    pub(super) fn new(path: &Path) -> Self {
        let (stream, lines) = (None, Lines::new(LINE_MAX));
        let asked = BTreeSet::new();
        Self { path: path.to_owned(), stream, lines, ready: false, next_id: 1, hello: 0, question: 0, stop: 0, asked }
    }

    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Connects, if it is not connected.
    pub(super) fn connect(&mut self) -> io::Result<()> {
        if self.stream.is_some() {
            return Ok(());
        }
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // For Unix sockets there is no "in progress": it is connected, or its queue is full and we try again.
        connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(&self.path)?)?;
        self.stream = Some(UnixStream::from(fd));
        self.lines = Lines::new(LINE_MAX);
        self.hello = self.send("execute", "qmp_capabilities", json!({ "enable": ["oob"] }))?;
        Ok(())
    }

    /// Asks whether the VM runs, and pauses it.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        self.connect()?;
        self.question = self.send("execute", "query-status", json!({}))?;
        self.stop = self.send("execute", "stop", json!({}))?;
        Ok(())
    }

    /// Lets the VM run.
    pub(super) fn cont(&mut self) -> io::Result<()> {
        self.connect()?;
        self.send("execute", "cont", json!({})).map(drop)
    }

    /// Has QEMU do what its main loop is not needed for; gives the number of the answer.
    pub(super) fn out_of_band(&mut self, command: &str, arguments: Value) -> io::Result<u64> {
        let id = self.send("exec-oob", command, arguments)?;
        self.asked.insert(id);
        Ok(id)
    }

    fn send(&mut self, how: &str, command: &str, arguments: Value) -> io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let line = format!("{}\n", json!({ (how): command, "arguments": arguments, "id": id }));
        let stream = self.stream.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        // A few hundred bytes at most: a socket that cannot take them at once is one that nobody reads.
        if let Err(error) = stream.write_all(line.as_bytes()) {
            self.lose();
            return Err(error);
        }
        Ok(id)
    }

    fn lose(&mut self) {
        self.stream = None;
        self.ready = false;
        self.asked.clear();
    }

    /// Reads what there is.
    pub(super) fn read(&mut self) -> Vec<Heard> {
        let mut heard = Vec::new();
        let Some(stream) = &mut self.stream else { return heard };
        let alive = self.lines.read_from(stream);
        while let Some(line) = self.lines.next() {
            heard.extend(self.understand(&line));
        }
        if !alive {
            self.lose();
            heard.push(Heard::Lost);
        }
        heard
    }

    fn understand(&mut self, line: &[u8]) -> Option<Heard> {
        let message: Value = serde_json::from_slice(line).ok()?;
        if message.get("event").and_then(Value::as_str) == Some("RESUME") {
            return Some(Heard::Resumed);
        }
        let id = message.get("id")?.as_u64()?;
        if self.asked.remove(&id) {
            let why = |error: &Value| error["desc"].as_str().unwrap_or("no reason was given").to_owned();
            return Some(Heard::Answered(id, message.get("error").map_or(Ok(()), |error| Err(why(error)))));
        }
        let answer = message.get("return")?;
        if id == self.hello {
            self.ready = true;
            Some(Heard::Ready)
        } else if id == self.question {
            answer.get("running")?.as_bool().map(Heard::WasRunning)
        } else if id == self.stop {
            Some(Heard::Stopped)
        } else {
            None
        }
    }
}

/// Lines of a socket that does not block.
pub(super) struct Lines {
    max: usize,
    buffer: Vec<u8>,
    skipping: bool,
}

impl Lines {
    pub(super) fn new(max: usize) -> Self {
        Self { max, buffer: Vec::new(), skipping: false }
    }

    /// Takes in what there is now; `false` when the stream has ended. At most a megabyte a call, so that one peer does
    /// not keep the others waiting.
    pub(super) fn read_from(&mut self, stream: &mut UnixStream) -> bool {
        let mut chunk = [0; 16 * 1024];
        for _ in 0..64 {
            match stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(length) => self.push(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn push(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let whole = part.ends_with(b"\n");
            // The length of the line under construction, not of the whole buffer.
            let begun = self.buffer.iter().rev().take_while(|b| **b != b'\n').count();
            if !self.skipping && begun + part.len() > self.max {
                self.buffer.truncate(self.buffer.len() - begun);
                self.skipping = true;
            }
            if !self.skipping {
                self.buffer.extend_from_slice(part);
            }
            if whole {
                self.skipping = false;
            }
        }
    }

    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer.iter().position(|b| *b == b'\n')?;
        let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
        line.pop();
        Some(line)
    }
}

/// Whether an error says that nobody is there (yet), and not that something is wrong.
pub(super) fn is_absence(error: &io::Error) -> bool {
    let absent = [Errno::ENOENT, Errno::ECONNREFUSED, Errno::EAGAIN];
    error.raw_os_error().is_some_and(|code| absent.iter().any(|errno| *errno as i32 == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_oversized_ones_dropped() {
        let mut lines = Lines::new(8);
        for part in ["ab", "c\nde", "f\n", "123456789", "0\n", "g\n\n", "12345678\nh\n"] {
            lines.push(part.as_bytes());
        }
        let all: Vec<String> = std::iter::from_fn(|| lines.next()).map(|l| String::from_utf8(l).unwrap()).collect();
        assert_eq!(all, ["abc", "def", "g", "", "h"]);
    }

    #[test]
    fn only_what_a_guard_wants_to_know_is_heard() {
        let mut monitor = Monitor::new(Path::new("/x"));
        (monitor.hello, monitor.question, monitor.stop) = (1, 2, 3);
        monitor.asked.extend([4, 5]);
        let mut hear = |line: &str| monitor.understand(line.as_bytes());
        assert_eq!(hear(r#"{"return":{},"id":1}"#), Some(Heard::Ready));
        assert_eq!(hear(r#"{"return":{"running":true,"status":"running"},"id":2}"#), Some(Heard::WasRunning(true)));
        assert_eq!(hear(r#"{"return":{},"id":3}"#), Some(Heard::Stopped));
        assert_eq!(hear(r#"{"event":"RESUME","timestamp":{}}"#), Some(Heard::Resumed));
        assert_eq!(hear(r#"{"return":{},"id":4}"#), Some(Heard::Answered(4, Ok(()))));
        let refused = hear(r#"{"error":{"class":"GenericError","desc":"not paused"},"id":5}"#);
        assert_eq!(refused, Some(Heard::Answered(5, Err("not paused".to_owned()))));
        for noise in [
            r#"{"error":{"class":"GenericError","desc":"no"},"id":3}"#,
            r#"{"return":{},"id":99}"#,
            r#"{"return":{},"id":4}"#,
            r#"{"return":{"running":"maybe"},"id":2}"#,
            r#"{"event":"STOP"}"#,
            "[]",
            "\u{fffd}",
        ] {
            assert_eq!(hear(noise), None, "{noise}");
        }
    }
}
