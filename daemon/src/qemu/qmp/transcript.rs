//! What was said on a monitor, both ways, one JSON object a line: `{"t_ms":…,"mono_ns":…,"dir":"out","msg":{…}}`.
//!
//! `t_ms` is wall time (ms since 1970), `mono_ns` CLOCK_MONOTONIC, both taken when the line was handed to or read from
//! the socket. A line that is no JSON stands as text under `raw`. Writing never holds up the monitor: where the file is
//! slower than QEMU, lines are dropped and counted in a line of their own; after [`BYTES_MAX`] the transcript ends.

use std::{
    io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use serde::de::IgnoredAny;
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt,
    sync::{mpsc, oneshot},
};

/// Most bytes of one transcript.
pub(super) const BYTES_MAX: u64 = 256 * 1024 * 1024;
const QUEUE: usize = 1024;
const BATCH_MAX: usize = 1024 * 1024;

#[derive(Clone, Copy)]
pub(crate) enum Direction {
    Out,
    In,
}

enum Item {
    Entry(Entry),
    Flush(oneshot::Sender<()>),
}

struct Entry {
    t_ms: u64,
    mono_ns: u64,
    direction: Direction,
    text: String,
    lost_before: u64,
}

/// The sending end of a transcript; a closed or absent one swallows everything.
#[derive(Debug, Clone)]
pub struct Transcript {
    queue: Option<mpsc::Sender<Item>>,
    lost: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Transcript {
    /// No transcript.
    pub fn none() -> Self {
        Self { queue: None, lost: Default::default() }
    }

    /// Appends to `path`, which is made if it is not there: a daemon that comes back goes on in the same file.
    pub async fn append(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path).await?;
        let written = file.metadata().await?.len();
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(write(file, written, entries));
        Ok(Self { queue: Some(queue), lost: Default::default() })
    }

    pub(crate) fn note(&self, direction: Direction, text: &str) {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(queue) = &self.queue else { return };
        let Ok(permit) = queue.try_reserve() else {
            self.lost.fetch_add(1, Relaxed);
            return;
        };
        permit.send(Item::Entry(Entry {
            t_ms: wall_ms(),
            mono_ns: monotonic_ns(),
            direction,
            text: text.to_owned(),
            lost_before: self.lost.swap(0, Relaxed),
        }));
    }

    /// Returns when everything noted so far is in the file, or the transcript has ended.
    pub async fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, flushed) = oneshot::channel();
        if queue.send(Item::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// CLOCK_MONOTONIC in ns.
pub(crate) fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// One line of the file. The text of a message is kept as it was on the wire, so that its numbers are QEMU's.
fn row(entry: &Entry) -> String {
    let direction = match entry.direction {
        Direction::Out => "out",
        Direction::In => "in",
    };
    let text = entry.text.trim();
    let content = match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => format!("\"msg\":{text}"),
        Err(_) => format!("\"raw\":{}", serde_json::Value::from(text)),
    };
    let lost = if entry.lost_before > 0 { format!(",\"lost_before\":{}", entry.lost_before) } else { String::new() };
    format!("{{\"t_ms\":{},\"mono_ns\":{},\"dir\":\"{direction}\"{lost},{content}}}\n", entry.t_ms, entry.mono_ns)
}

async fn write(mut file: File, mut written: u64, mut items: mpsc::Receiver<Item>) {
    while let Some(first) = items.recv().await {
        let mut batch = String::new();
        let mut flushes = Vec::new();
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Entry(entry) => batch.push_str(&row(&entry)),
                Item::Flush(done) => flushes.push(done),
            }
            next = if batch.len() < BATCH_MAX { items.try_recv().ok() } else { None };
        }
        written = written.saturating_add(batch.len() as u64);
        let full = written > BYTES_MAX;
        if full {
            batch = "{\"raw\":\"transcript ends here: it is full\"}\n".to_owned();
        }
        // Returning drops the queue: the monitor goes on without a transcript.
        if let Err(error) = async { file.write_all(batch.as_bytes()).await.and(file.flush().await) }.await {
            tracing::warn!(%error, "QMP transcript ends: cannot write");
            return;
        }
        if full {
            return;
        }
        for done in flushes {
            let _ = done.send(());
        }
    }
}
