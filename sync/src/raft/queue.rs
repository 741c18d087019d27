//! Entries on their way to the disk: readable at once, acknowledged when they are on it.
//!
//! While one transaction is written, the entries that come meanwhile gather and are the next one together. So a leader's
//! disk works at the same time as its followers', and many requests share one fsync. What may not happen here: an
//! acknowledgement before the commit, or an order other than that of the log.

use std::{
    collections::BTreeMap,
    io, mem,
    ops::RangeInclusive,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::types::Entry;

/// Told what became of the entries it was given with.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Sealed entries by index, in order.
pub(super) type Records = Vec<(u64, Vec<u8>)>;

/// Who appends more than this waits until the disk has caught up.
const ENTRIES_MAX: usize = 4096;
const BYTES_MAX: usize = 16 << 20;

/// Entries that are not known to be on disk.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// Whether somebody writes.
    busy: watch::Sender<bool>,
}

#[derive(Default)]
struct Inner {
    /// By index, with the length of the record.
    entries: BTreeMap<u64, (Entry, usize)>,
    bytes: usize,
    next: Batch,
}

/// What is written together.
#[derive(Default)]
pub(super) struct Batch {
    records: Records,
    done: Vec<Done>,
}

impl Queue {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes entries with their records. True: nobody writes, so the caller has to see to it.
    pub(super) fn push(&self, entries: Vec<(Entry, Vec<u8>)>, done: Done) -> bool {
        let mut inner = self.inner();
        for (entry, record) in entries {
            let index = entry.log_id.index;
            inner.bytes += record.len();
            inner.entries.insert(index, (entry, record.len()));
            inner.next.records.push((index, record));
        }
        inner.next.done.push(done);
        !self.busy.send_replace(true)
    }

    /// What is to be written next; `None`: nothing, and the writer is done.
    pub(super) fn take(&self) -> Option<Batch> {
        let mut inner = self.inner();
        if inner.next.done.is_empty() {
            self.busy.send_replace(false);
            return None;
        }
        Some(mem::take(&mut inner.next))
    }

    /// Entries of the range, with the lengths of their records.
    pub(super) fn range(&self, range: RangeInclusive<u64>) -> Vec<(Entry, usize)> {
        if range.is_empty() {
            return Vec::new();
        }
        self.inner().entries.range(range).map(|(_, entry)| entry.clone()).collect()
    }

    /// Whether it holds more than it should.
    pub(super) fn is_full(&self) -> bool {
        let inner = self.inner();
        inner.entries.len() > ENTRIES_MAX || inner.bytes > BYTES_MAX
    }

    /// Waits until nothing is on its way.
    pub(super) async fn drained(&self) {
        // The sender lives as long as this does.
        let _ = self.busy.subscribe().wait_for(|busy| !busy).await;
    }

    /// Tells those who wait for a batch, which covered these indices, what became of it.
    pub(super) fn written(&self, indices: Option<RangeInclusive<u64>>, done: Vec<Done>, result: &io::Result<()>) {
        if result.is_ok() {
            let mut inner = self.inner();
            for index in indices.into_iter().flatten() {
                inner.bytes -= inner.entries.remove(&index).map_or(0, |(_, length)| length);
            }
        }
        for done in done {
            done(match result {
                Ok(()) => Ok(()),
                // An error of the system cannot be copied; its kind and words can.
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
    }
}

impl Batch {
    /// Its records, the indices they cover, and who waits for them.
    pub(super) fn parts(self) -> (Records, Option<RangeInclusive<u64>>, Vec<Done>) {
        let indices = self.records.first().zip(self.records.last()).map(|(first, last)| first.0..=last.0);
        (self.records, indices, self.done)
    }
}
