//! openraft's log storage over [`Disk`].

use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};

use super::{
    disk::Disk,
    types::{Entry, LogId, TypeConfig, Vote},
};

/// Most bytes of entries sent to a follower at once.
const SEND_BYTES: usize = 1 << 20;

/// Log and vote. Clones share the store.
#[derive(Clone)]
pub(crate) struct Log {
    disk: Arc<Disk>,
}

impl Log {
    pub(crate) fn new(disk: Arc<Disk>) -> Self {
        Self { disk }
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let first = match range.start_bound() {
            Included(first) => *first,
            Excluded(before) => before.saturating_add(1),
            Unbounded => 0,
        };
        let last = match range.end_bound() {
            Included(last) => *last,
            Excluded(0) => return Ok(Vec::new()),
            Excluded(after) => after - 1,
            Unbounded => u64::MAX,
        };
        if first > last {
            return Ok(Vec::new());
        }
        Ok(self.disk.entries(first..=last, usize::MAX)?)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        Ok(self.disk.entries(start..=end - 1, SEND_BYTES)?)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.disk.vote()?)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let purged = self.disk.purged()?;
        Ok(LogState { last_purged_log_id: purged, last_log_id: self.disk.last()?.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = *vote;
        self.disk.write(move |write| write.set_vote(vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // Written with the next entries: an fsync of its own would buy nothing, for it is learned again after a restart.
        self.disk.set_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.disk.get_committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.disk.append(entries, |result| callback.io_completed(result)).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let first = last_log_id.map_or(0, |last| last.index + 1);
        self.disk.truncate(first).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.disk.purge(log_id).await
    }
}
