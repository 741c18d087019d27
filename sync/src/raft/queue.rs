//! The newest entries of the log: readable at once, acknowledged when they are on disk.
//!
//! While one batch is written, the entries that come meanwhile gather and are the next one together. So a leader's disk
//! works at the same time as its followers', and many requests share one fsync. Some of those on disk stay here, for they
//! are soon read to be sent and applied. What may not happen here: an acknowledgement before the disk has it, or an order
//! other than that of the log.

use std::{
    collections::BTreeMap,
    io, mem,
    ops::{RangeBounds, RangeInclusive},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{journal::Row, types::Entry};

/// Told what became of the entries it was given with.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Who appends more than this waits until the disk has caught up.
const ENTRIES_MAX: usize = 4096;
const BYTES_MAX: usize = 16 << 20;
/// Of those that are on disk, so much stays.
const KEPT_ENTRIES: usize = 256;
const KEPT_BYTES: usize = 1 << 20;

/// The newest entries.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// Told when nobody writes any more. It wakes in order, which a `watch` does not: a simulation has to repeat itself.
    idle: Notify,
}

#[derive(Default)]
struct Inner {
    /// By index, with the length of the record: those on disk, then those on their way.
    entries: BTreeMap<u64, (Entry, usize)>,
    /// How many of them are on disk, and their bytes.
    kept: (usize, usize),
    /// Bytes of those on their way.
    bytes: usize,
    next: Batch,
    /// Whether somebody writes.
    busy: bool,
}

/// What is written together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) rows: Vec<Row>,
    pub(super) done: Vec<Done>,
}

impl Queue {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes entries with their records. True: nobody writes, so the caller has to see to it.
    pub(super) fn push(&self, entries: Vec<(Entry, Row)>, done: Done) -> bool {
        let mut inner = self.inner();
        for (entry, row) in entries {
            inner.bytes += row.len();
            inner.entries.insert(entry.log_id.index, (entry, row.len()));
            inner.next.rows.push(row);
        }
        inner.next.done.push(done);
        !mem::replace(&mut inner.busy, true)
    }

    /// What is to be written next; `None`: nothing, and the writer is done.
    pub(super) fn take(&self) -> Option<Batch> {
        let mut inner = self.inner();
        if inner.next.done.is_empty() {
            inner.busy = false;
            self.idle.notify_waiters();
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

    /// Whether more is on its way than should be.
    pub(super) fn is_full(&self) -> bool {
        let inner = self.inner();
        inner.entries.len() - inner.kept.0 > ENTRIES_MAX || inner.bytes > BYTES_MAX
    }

    /// Forgets all but these. Nothing is on its way.
    pub(super) fn retain(&self, these: impl RangeBounds<u64>) {
        let mut inner = self.inner();
        inner.entries.retain(|index, _| these.contains(index));
        inner.kept = (inner.entries.len(), inner.entries.values().map(|(_, length)| length).sum());
    }

    /// Waits until nothing is on its way.
    pub(super) async fn drained(&self) {
        loop {
            // Before the look: what ends in between is told to it.
            let idle = self.idle.notified();
            if !self.inner().busy {
                return;
            }
            idle.await;
        }
    }

    /// Tells those who wait for a batch what became of it: so many entries, of so many bytes.
    pub(super) fn written(&self, entries: usize, bytes: usize, done: Vec<Done>, result: &io::Result<()>) {
        if result.is_ok() {
            let mut inner = self.inner();
            inner.bytes -= bytes;
            inner.kept = (inner.kept.0 + entries, inner.kept.1 + bytes);
            while inner.kept.0 > KEPT_ENTRIES || inner.kept.1 > KEPT_BYTES {
                let Some((_, (_, length))) = inner.entries.pop_first() else { break };
                inner.kept = (inner.kept.0 - 1, inner.kept.1 - length);
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
