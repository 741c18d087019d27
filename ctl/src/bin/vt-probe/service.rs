//! Reads calls from the port, runs each on a thread of its own, and writes the replies.
//!
//! The host may go and come back at any time: then a read gives nothing, or the port says that nobody is there.
//! Neither ends the probe, whose patterns must live through a migration.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;
use vt_protocol::probe::{BUSY, Call, DiskStarted, Empty, LINE_MAX, NetStarted, Reply, Request};

use crate::{beacon, clock::Beacon, disk::Disk, echo, exec, identity, memory::Memory};

/// Calls served at once; one more is refused.
const CALLS_MAX: usize = 16;
/// How long to wait when nobody is at the other end.
const ABSENT: Duration = Duration::from_millis(50);
/// Longest excerpt of a line that was no call.
const EXCERPT: usize = 80;

/// Everything the probe keeps.
struct Probe {
    beacon: Beacon,
    memory: Mutex<Option<Memory>>,
    disk: Mutex<Option<Disk>>,
    echo: Mutex<Option<u16>>,
    sends: Mutex<Option<u16>>,
}

/// Serves the port; comes back only when it cannot be used at all.
pub(crate) fn serve(path: &Path) -> io::Error {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    match opened.and_then(|port| Ok((port, Probe::start()?))) {
        Ok((port, probe)) => read_calls(port, &probe),
        Err(error) => error,
    }
}

impl Probe {
    fn start() -> io::Result<Arc<Self>> {
        let beacon = Beacon::start()?;
        let (memory, disk) = (Mutex::new(None), Mutex::new(None));
        Ok(Arc::new(Self { beacon, memory, disk, echo: Mutex::new(None), sends: Mutex::new(None) }))
    }
}

fn read_calls(mut port: File, probe: &Arc<Probe>) -> io::Error {
    let writer = match port.try_clone() {
        Ok(writer) => Arc::new(Mutex::new(writer)),
        Err(error) => return error,
    };
    let running = Arc::new(AtomicUsize::new(0));
    let (mut lines, mut bytes) = (Lines::default(), [0; 4096]);
    loop {
        match port.read(&mut bytes) {
            Ok(0) => thread::sleep(ABSENT),
            Ok(length) => {
                for line in lines.push(&bytes[..length]) {
                    take(line, probe, &writer, &running);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_absence(&error) => thread::sleep(ABSENT),
            Err(error) => return error,
        }
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::EPIPE | nix::libc::EAGAIN))
}

/// Runs one line on a thread of its own.
fn take(line: Line, probe: &Arc<Probe>, writer: &Arc<Mutex<File>>, running: &Arc<AtomicUsize>) {
    let call = match line {
        Line::Whole(text) if text.trim_ascii().is_empty() => return,
        Line::Whole(text) => serde_json::from_slice::<Call>(&text).map_err(|error| {
            format!("not a call: {error}: {}", String::from_utf8_lossy(&text[..text.len().min(EXCERPT)]))
        }),
        Line::TooLong => Err(format!("not a call: longer than {LINE_MAX} bytes")),
    };
    let call = match call {
        Ok(call) => call,
        Err(error) => return send(writer, &Reply { id: None, ok: None, error: Some(error) }),
    };
    let id = call.id;
    let refused = |why: &str| send(writer, &Reply { id: Some(id), ok: None, error: Some(why.into()) });
    if running.fetch_add(1, Ordering::Relaxed) >= CALLS_MAX {
        running.fetch_sub(1, Ordering::Relaxed);
        return refused(&format!("{BUSY}: too many calls at once"));
    }
    let (probe, answering, done) = (Arc::clone(probe), Arc::clone(writer), Arc::clone(running));
    let spawned = thread::Builder::new().name("call".into()).spawn(move || {
        let (ok, error) = match answer(&probe, &call.request) {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(error)),
        };
        send(&answering, &Reply { id: Some(id), ok, error });
        done.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        running.fetch_sub(1, Ordering::Relaxed);
        refused(&format!("{BUSY}: {error}"));
    }
}

fn send(writer: &Mutex<File>, reply: &Reply) {
    let Ok(mut line) = serde_json::to_vec(reply) else { return };
    line.push(b'\n');
    let mut writer = lock(writer);
    // The host asks again when it is back; a reply that nobody waits for is of no use.
    let _ = writer.write_all(&line);
}

fn answer(probe: &Probe, request: &Request) -> Result<Value, String> {
    match request {
        Request::Hello => value(identity::hello()?),
        Request::MemStart(wanted) => {
            let mut memory = lock(&probe.memory);
            refuse_second(memory.is_some(), "the memory probe")?;
            *memory = Some(Memory::start(wanted)?);
            value(Empty {})
        }
        Request::MemCheck => value(lock(&probe.memory).as_ref().ok_or("the memory probe does not run")?.check()),
        Request::MemStop => {
            *lock(&probe.memory) = None;
            value(Empty {})
        }
        Request::DiskStart(wanted) => {
            let mut disk = lock(&probe.disk);
            refuse_second(disk.is_some(), "the disk writer")?;
            let started = Disk::start(wanted)?;
            let slots = started.slots();
            *disk = Some(started);
            value(DiskStarted { slots })
        }
        Request::DiskCheck => value(lock(&probe.disk).as_ref().ok_or("the disk writer does not run")?.check()),
        Request::DiskStop => {
            *lock(&probe.disk) = None;
            value(Empty {})
        }
        Request::Clock => value(probe.beacon.report(false)),
        Request::ClockReset => value(probe.beacon.report(true)),
        Request::NetStart { port } => start_once(&probe.echo, *port, "the echo", echo::start),
        Request::BeaconStart { port } => start_once(&probe.sends, *port, "the beacon", beacon::start),
        Request::Exec(wanted) => value(exec::run(wanted)?),
    }
}

/// Starts what runs on one port until the guest ends; asked for the same port again it runs already.
fn start_once(
    running: &Mutex<Option<u16>>,
    port: u16,
    what: &str,
    start: fn(u16) -> Result<(), String>,
) -> Result<Value, String> {
    let mut running = lock(running);
    match *running {
        Some(other) if other != port => return Err(format!("{what} runs already, on port {other}")),
        Some(_) => {}
        None => {
            start(port)?;
            *running = Some(port);
        }
    }
    value(NetStarted { port })
}

fn refuse_second(running: bool, what: &str) -> Result<(), String> {
    if running { Err(format!("{what} runs already; stop it first")) } else { Ok(()) }
}

fn value(answer: impl Serialize) -> Result<Value, String> {
    serde_json::to_value(answer).map_err(|error| error.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Whole(Vec<u8>),
    TooLong,
}

/// Cuts bytes into lines; the rest of a line that grew too long is dropped.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
    dropping: bool,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut found = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.rest);
                if !std::mem::take(&mut self.dropping) {
                    found.push(Line::Whole(line));
                }
            } else if self.dropping {
            } else if self.rest.len() >= LINE_MAX {
                self.rest = Vec::new();
                self.dropping = true;
                found.push(Line::TooLong);
            } else {
                self.rest.push(*byte);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::{fd::OwnedFd, unix::net::UnixStream},
    };

    use super::*;

    #[test]
    fn lines_are_cut_wherever_the_pieces_end() {
        let mut lines = Lines::default();
        let whole = |text: &str| Line::Whole(text.as_bytes().to_vec());
        assert_eq!(lines.push(b"a\nb"), [whole("a")]);
        assert_eq!(lines.push(b"c\n\nd\n"), [whole("bc"), whole(""), whole("d")]);
        assert_eq!(lines.push(&vec![b'x'; LINE_MAX + 10]), [Line::TooLong]);
        assert_eq!(lines.push(b"rest\nnext\n"), [whole("next")]);
    }

    /// The probe at the other end of a socket, which behaves like the port as far as bytes go.
    struct Wire {
        host: BufReader<UnixStream>,
    }

    impl Wire {
        fn new() -> Self {
            let (host, guest) = UnixStream::pair().unwrap();
            let probe = Probe::start().unwrap();
            thread::spawn(move || read_calls(File::from(OwnedFd::from(guest)), &probe));
            Self { host: BufReader::new(host) }
        }

        fn ask(&mut self, line: &str) -> Reply {
            self.host.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
            let mut answer = String::new();
            self.host.read_line(&mut answer).unwrap();
            serde_json::from_str(&answer).unwrap()
        }
    }

    #[test]
    fn garbage_is_answered_and_the_next_call_works() {
        let mut wire = Wire::new();
        for garbage in ["{", "null", "\u{0}\u{1}\u{7f}", r#"{"id":1}"#, r#"{"id":1,"request":{"op":"format_disk"}}"#] {
            let reply = wire.ask(garbage);
            assert_eq!(reply.id, None);
            assert!(reply.error.unwrap().starts_with("not a call"), "{garbage}");
        }
        let reply = wire.ask(r#"{"id":77,"request":{"op":"hello"}}"#);
        assert_eq!((reply.id, reply.error), (Some(77), None));
        assert_eq!(reply.ok.unwrap()["version"], 1);
    }

    #[test]
    fn probes_start_once_and_tell_when_they_do_not_run() {
        let mut wire = Wire::new();
        assert!(wire.ask(r#"{"id":1,"request":{"op":"mem_check"}}"#).error.unwrap().contains("does not run"));
        let start = r#"{"id":2,"request":{"op":"mem_start","pages":8,"seed":1,"rewrite_bytes_per_second":100000}}"#;
        assert_eq!(wire.ask(start).error, None);
        assert!(wire.ask(start).error.unwrap().contains("runs already"));
        let report = wire.ask(r#"{"id":3,"request":{"op":"mem_check"}}"#).ok.unwrap();
        assert_eq!((report["pages_checked"].as_u64(), report["bad_pages"].as_u64()), (Some(8), Some(0)));
        assert_eq!(wire.ask(r#"{"id":4,"request":{"op":"mem_stop"}}"#).error, None);
        assert_eq!(wire.ask(start).error, None);
    }
}
