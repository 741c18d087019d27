//! The event log of one attempt on this host: one JSON line an event in a file, the latest in memory, readers told.
//!
//! A daemon that starts again goes on where the file ends; a line torn by a crash is cut. Memory and file are bounded:
//! past [`EVENTS_MAX`] readings of migrations and remarks are dropped, with one last remark that says so.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;
use vt_protocol::{
    ids::Name,
    job::{AttemptEvent, Happening},
};

/// Events of one attempt on one host that are kept.
pub const EVENTS_MAX: u64 = 50_000;
/// Events kept in memory; older ones are read from the file.
const RING: usize = 1024;
/// Most events of one answer.
pub const PAGE: usize = 500;

/// Milliseconds since 1970 by this host's clock.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// The log of one attempt.
#[derive(Debug)]
pub struct EventLog {
    host: Name,
    path: PathBuf,
    inner: Mutex<Inner>,
    /// The number of the latest event.
    latest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    latest: u64,
    ring: VecDeque<AttemptEvent>,
}

impl EventLog {
    /// Opens or makes the log at `path`.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, host: Name) -> io::Result<Self> {
        let (ring, latest, whole) = match File::open(path) {
            Ok(file) => scan(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (VecDeque::new(), 0, 0),
            Err(error) => return Err(error),
        };
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        if file.metadata()?.len() > whole {
            file.set_len(whole)?;
        }
        let inner = Mutex::new(Inner { file, latest, ring });
        Ok(Self { host, path: path.to_owned(), inner, latest: watch::Sender::new(latest) })
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock; a poisoned one is still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what happened. A full disk loses the line in the file, not the event for those who watch.
    pub fn note(&self, what: Happening) {
        let mut inner = self.locked();
        let full = inner.latest >= EVENTS_MAX;
        if full && matches!(what, Happening::Progress { .. } | Happening::Log { .. }) {
            return;
        }
        self.append(&mut inner, what);
        if inner.latest == EVENTS_MAX {
            let text = format!("more than {EVENTS_MAX} events: readings and remarks are left out from here on");
            self.append(&mut inner, Happening::Log { level: "warn".into(), text });
        }
        let latest = inner.latest;
        drop(inner);
        self.latest.send_replace(latest);
    }

    /// Adds a remark.
    pub fn say(&self, text: impl Into<String>) {
        self.note(Happening::Log { level: "info".into(), text: text.into() });
    }

    /// Adds a warning.
    pub fn warn(&self, text: impl Into<String>) {
        self.note(Happening::Log { level: "warn".into(), text: text.into() });
    }

    fn append(&self, inner: &mut Inner, what: Happening) {
        let event = AttemptEvent { seq: inner.latest + 1, unix_ms: unix_ms(), host: self.host.clone(), what };
        match serde_json::to_string(&event) {
            Ok(mut line) => {
                line.push('\n');
                if let Err(error) = inner.file.write_all(line.as_bytes()) {
                    tracing::warn!(path = %self.path.display(), %error, "event log: a line was not written");
                }
            }
            Err(error) => tracing::warn!(%error, "event log: an event has no JSON form"),
        }
        inner.latest = event.seq;
        inner.ring.push_back(event);
        if inner.ring.len() > RING {
            inner.ring.pop_front();
        }
    }

    /// Events after `after`, at most [`PAGE`]; waits up to `wait` for the first one.
    pub async fn events_after(&self, after: u64, wait: Duration) -> Vec<AttemptEvent> {
        let mut latest = self.latest.subscribe();
        // The sender lives as long as `self`, so this ends by an event or by time.
        let _ = tokio::time::timeout(wait, latest.wait_for(|latest| *latest > after)).await;
        self.read_after(after)
    }

    fn read_after(&self, after: u64) -> Vec<AttemptEvent> {
        let inner = self.locked();
        if inner.latest <= after {
            return Vec::new();
        }
        if inner.ring.front().is_some_and(|first| first.seq <= after + 1) {
            return inner.ring.iter().filter(|event| event.seq > after).take(PAGE).cloned().collect();
        }
        drop(inner);
        let Ok(file) = File::open(&self.path) else { return Vec::new() };
        lines(file).filter(|event| event.seq > after).take(PAGE).collect()
    }
}

fn lines(file: File) -> impl Iterator<Item = AttemptEvent> {
    BufReader::new(file).lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok())
}

/// The latest events, the number of the last one, and how many bytes of the file are whole lines.
fn scan(file: File) -> io::Result<(VecDeque<AttemptEvent>, u64, u64)> {
    let mut reader = BufReader::new(file);
    let (mut ring, mut latest, mut whole) = (VecDeque::new(), 0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok((ring, latest, whole));
        }
        whole += read as u64;
        if let Ok(event) = serde_json::from_slice::<AttemptEvent>(&line) {
            latest = event.seq.max(latest);
            ring.push_back(event);
            if ring.len() > RING {
                ring.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> EventLog {
        EventLog::open(path, "host1".parse().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn events_are_numbered_and_read_from_memory_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let log = open(&path);
        for i in 0..(RING + 700) {
            log.say(format!("line {i}"));
        }
        let mut after = 0;
        let mut seen = 0;
        loop {
            let page = log.events_after(after, Duration::ZERO).await;
            let Some(last) = page.last() else { break };
            assert!(page.len() <= PAGE);
            assert_eq!(page[0].seq, after + 1);
            seen += page.len();
            after = last.seq;
        }
        assert_eq!(seen, RING + 700);
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_next_event() {
        let dir = tempfile::tempdir().unwrap();
        let log = std::sync::Arc::new(open(&dir.path().join("events.jsonl")));
        let reader = tokio::spawn({
            let log = log.clone();
            async move { log.events_after(0, Duration::from_secs(30)).await }
        });
        tokio::task::yield_now().await;
        log.say("hello");
        assert_eq!(reader.await.unwrap().len(), 1);
        assert!(log.events_after(1, Duration::from_millis(1)).await.is_empty());
    }

    #[tokio::test]
    async fn a_restart_goes_on_where_whole_lines_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        open(&path).say("one");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"seq\":2,\"unix").unwrap();
        let log = open(&path);
        log.say("two");
        let events = log.events_after(0, Duration::ZERO).await;
        assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[tokio::test]
    async fn a_flood_ends_in_one_remark_and_steps_still_count() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir.path().join("events.jsonl"));
        for _ in 0..EVENTS_MAX + 100 {
            log.say("x");
        }
        log.note(Happening::StepBegan("last".into()));
        let events = log.events_after(EVENTS_MAX, Duration::ZERO).await;
        assert_eq!(events.len(), 2);
        assert!(matches!(&events[0].what, Happening::Log { level, .. } if level == "warn"));
        assert_eq!(events[1].what, Happening::StepBegan("last".into()));
    }
}
