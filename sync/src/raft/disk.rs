//! The file under log, vote and snapshot: one redb database.
//!
//! Everything is committed in two phases with an fsync each before it counts, and the whole file is verified when it is
//! opened: a tail torn by a crash was never acknowledged and is cut, a damaged middle stops the daemon. Nothing here ever
//! lowers durability, and nothing repairs by forgetting.

use std::{
    io,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, Table, TableDefinition,
    WriteTransaction,
};
use tokio::sync::watch;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::HostId,
};

use super::{
    queue::Queue,
    types::{Entry, LogId, SnapshotData, SnapshotMeta, Vote},
};
use crate::stored::{RecordError, StoredEntry, StoredHost, StoredLogId, StoredSnapshot, StoredVote, seal, unseal};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const SNAPSHOT: TableDefinition<u64, &[u8]> = TableDefinition::new("snapshot");

const HOST: &str = "host";
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const COMMITTED: &str = "committed";
const SNAPSHOT_META: &str = "snapshot";

/// Bytes of one row of a snapshot.
const ROW_BYTES: usize = 1 << 20;
/// redb's own cache would take up to 1 GiB.
const CACHE_BYTES: usize = 4 << 20;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store is damaged. The daemon must not go on with it: the host joins afresh.
    #[error("the store of log and state is damaged: {0}")]
    Damaged(String),
    /// There is no store where there has to be one: a host that lost its data never comes back under its old id.
    #[error("there is no store of log and state at {0}")]
    Missing(String),
    /// The store belongs to another host.
    #[error("the store belongs to host {found}, not {wanted}")]
    OtherHost {
        /// Whose it is.
        found: HostId,
        /// Whose it should be.
        wanted: HostId,
    },
    /// Another process has the store open.
    #[error("another process has the store open")]
    Busy,
    /// The system refused.
    #[error("the store of log and state cannot be used")]
    Io(#[source] io::Error),
}

impl From<&StoreError> for Report {
    fn from(error: &StoreError) -> Self {
        let code = match error {
            StoreError::Damaged(_) | StoreError::Missing(_) | StoreError::OtherHost { .. } => ErrorCode::StoreDamaged,
            StoreError::Io(io) if io.kind() == io::ErrorKind::StorageFull => ErrorCode::DiskFull,
            StoreError::Busy | StoreError::Io(_) => ErrorCode::StorageFailed,
        };
        Report::new(code, error.to_string()).caused_by(error)
    }
}

fn damaged(text: impl Into<String>) -> StoreError {
    StoreError::Damaged(text.into())
}

macro_rules! from_redb {
    ($($kind:ty),*) => {
        $(impl From<$kind> for StoreError {
            fn from(error: $kind) -> Self {
                match redb::Error::from(error) {
                    redb::Error::Io(error)
                        if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
                    {
                        Self::Damaged(error.to_string())
                    }
                    redb::Error::Io(error) => Self::Io(error),
                    redb::Error::DatabaseAlreadyOpen => Self::Busy,
                    other => Self::Damaged(other.to_string()),
                }
            }
        })*
    };
}
from_redb!(DatabaseError, StorageError, redb::TransactionError, redb::TableError, redb::CommitError);

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// Where the file is.
pub(crate) enum Place<'a> {
    /// On disk; `create` makes a new one where there is none.
    File { path: &'a Path, create: bool },
    /// Behind a backend, whose calls return at once: simulations and tests.
    Backend(Box<dyn FnOnce() -> Result<Database, DatabaseError> + Send>),
}

impl<'a> Place<'a> {
    pub(crate) fn backend(backend: impl StorageBackend) -> Place<'a> {
        Place::Backend(Box::new(|| builder().create_with_backend(backend)))
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// The open store.
pub(crate) struct Disk {
    db: Database,
    /// Writes go to a thread that may block; not in simulations, where time stands still meanwhile.
    threads: bool,
    /// Entries that are not on disk yet.
    queue: Queue,
    /// The committed place in the log, written along with the next entries: it may be behind, it is learned again.
    committed: Mutex<Option<LogId>>,
    /// Dropped last: its receivers learn that the file is closed.
    closed: watch::Sender<()>,
}

/// One write transaction.
pub(crate) struct Write<'t> {
    log: Table<'t, u64, &'static [u8]>,
    meta: Table<'t, &'static str, &'static [u8]>,
    snapshot: Table<'t, u64, &'static [u8]>,
}

impl Disk {
    /// Opens and verifies the store of `host`.
    pub(crate) fn open(place: Place<'_>, host: HostId) -> Result<Self, StoreError> {
        let threads = matches!(place, Place::File { .. });
        let made = match place {
            Place::File { path, create } => {
                let exists = path.try_exists().map_err(StoreError::Io)?;
                if !exists && !create {
                    return Err(StoreError::Missing(path.display().to_string()));
                }
                // A damaged file may also make redb panic.
                catch_unwind(AssertUnwindSafe(|| builder().create(path)))
            }
            Place::Backend(make) => catch_unwind(AssertUnwindSafe(make)),
        };
        let db = made.map_err(|_| damaged("its file cannot be read"))??;
        let (queue, committed, closed) = (Queue::default(), Mutex::default(), watch::Sender::new(()));
        let mut disk = Self { db, threads, queue, committed, closed };
        let verified = catch_unwind(AssertUnwindSafe(|| disk.verify(host)));
        disk.committed = Mutex::new(verified.map_err(|_| damaged("its file cannot be read"))??);
        Ok(disk)
    }

    /// Checks whose store it is and reads every record once. Gives the committed place in the log.
    fn verify(&self, host: HostId) -> Result<Option<LogId>, StoreError> {
        let write = self.begin()?;
        {
            let mut tables = Write::open(&write)?;
            match tables.get::<StoredHost>(HOST)? {
                Some(StoredHost(found)) if found != host.0 => {
                    return Err(StoreError::OtherHost { found: HostId(found), wanted: host });
                }
                Some(_) => {}
                None if tables.log.first()?.is_none() && tables.meta.first()?.is_none() => {
                    tables.put(HOST, &StoredHost(host.0))?;
                }
                None => return Err(damaged("it does not say whose it is")),
            }
        }
        write.commit()?;

        let purged = self.purged()?.map(|id| id.index);
        let read = self.db.begin_read()?;
        let log = read.open_table(LOG)?;
        let mut before = purged;
        for row in log.range::<u64>(..)? {
            let (key, record) = row?;
            let entry = open_entry(key.value(), record.value())?;
            if before.is_some_and(|before| entry.log_id.index != before + 1) {
                return Err(damaged(format!("entry {} does not follow {}", entry.log_id.index, before.unwrap_or(0))));
            }
            before = Some(entry.log_id.index);
        }
        self.snapshot()?;
        self.vote()?;
        Ok(self.meta::<StoredLogId>(COMMITTED)?.and_then(|id| id.0))
    }

    /// Its channel closes when the file is closed.
    pub(crate) fn closing(&self) -> watch::Receiver<()> {
        self.closed.subscribe()
    }

    fn begin(&self) -> Result<WriteTransaction, StoreError> {
        let mut write = self.db.begin_write()?;
        // Without it a damaged last commit would pass for a torn one and be forgotten.
        write.set_two_phase_commit(true);
        Ok(write)
    }

    /// Appends entries: readable when this returns, and `done` is told when they are on disk.
    pub(crate) async fn append(
        self: &Arc<Self>,
        entries: Vec<Entry>,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> io::Result<()> {
        let entries = entries.into_iter().map(sealed).collect::<Result<Vec<_>, _>>()?;
        if !self.threads {
            let records = entries.into_iter().map(|(entry, record)| (entry.log_id.index, record)).collect();
            self.commit(move |write| write.put_entries(records)).await?;
            done(Ok(()));
            return Ok(());
        }
        if self.queue.push(entries, Box::new(done)) {
            let disk = Arc::clone(self);
            tokio::task::spawn_blocking(move || disk.write_queue());
        }
        if self.queue.is_full() {
            self.queue.drained().await;
        }
        Ok(())
    }

    fn write_queue(&self) {
        while let Some(batch) = self.queue.take() {
            let (records, indices, done) = batch.parts();
            // A damaged file may make redb panic; whoever waits has to be told all the same.
            let put = AssertUnwindSafe(|| self.commit_here(|write| write.put_entries(records)));
            let result = catch_unwind(put).unwrap_or_else(|_| Err(damaged("its file cannot be written")));
            self.queue.written(indices, done, &result.map_err(io::Error::from));
        }
    }

    /// Runs `change` in one transaction, after everything that was appended before; on disk when this returns.
    pub(crate) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Write<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> io::Result<T> {
        self.queue.drained().await;
        self.commit(change).await
    }

    async fn commit<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Write<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> io::Result<T> {
        if !self.threads {
            return Ok(self.commit_here(change)?);
        }
        let disk = Arc::clone(self);
        let run = move || disk.commit_here(change);
        Ok(tokio::task::spawn_blocking(run).await.map_err(io::Error::other)??)
    }

    fn commit_here<T>(&self, change: impl FnOnce(&mut Write<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let write = self.begin()?;
        let value = {
            let mut tables = Write::open(&write)?;
            let value = change(&mut tables)?;
            // Others may have committed what is still on its way to this disk: that is not said before it is there.
            let committed = *self.committed();
            let last = tables.last()?;
            if let Some(committed) = committed.filter(|committed| last.is_some_and(|last| committed.index <= last)) {
                tables.put(COMMITTED, &StoredLogId(Some(committed)))?;
            }
            value
        };
        write.commit()?;
        Ok(value)
    }

    fn committed(&self) -> MutexGuard<'_, Option<LogId>> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_committed(&self, committed: Option<LogId>) {
        *self.committed() = committed;
    }

    pub(crate) fn get_committed(&self) -> Option<LogId> {
        *self.committed()
    }

    fn meta<T: vt_protocol::codec::Versioned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let read = self.db.begin_read()?;
        let table = read.open_table(META)?;
        let Some(record) = table.get(key)? else { return Ok(None) };
        unseal(key.as_bytes(), record.value()).map(Some).map_err(|error| damaged(format!("record {key}: {error}")))
    }

    pub(crate) fn vote(&self) -> Result<Option<Vote>, StoreError> {
        Ok(self.meta::<StoredVote>(VOTE)?.map(|vote| vote.0))
    }

    pub(crate) fn purged(&self) -> Result<Option<LogId>, StoreError> {
        Ok(self.meta::<StoredLogId>(PURGED)?.and_then(|id| id.0))
    }

    pub(crate) fn last(&self) -> Result<Option<LogId>, StoreError> {
        let read = self.db.begin_read()?;
        let log = read.open_table(LOG)?;
        let Some((key, record)) = log.last()? else { return Ok(None) };
        Ok(Some(open_entry(key.value(), record.value())?.log_id))
    }

    /// Entries of the range, in order, on disk or on their way there; stops after `bytes` bytes, but never before the first.
    pub(crate) fn entries(&self, range: RangeInclusive<u64>, bytes: usize) -> Result<Vec<Entry>, StoreError> {
        // First: what leaves the queue meanwhile is on disk as well.
        let queued = self.queue.range(range.clone());
        let Some((first, _)) = queued.first() else { return Ok(self.entries_on_disk(range, bytes)?.0) };
        let first = first.log_id.index;
        let (mut entries, mut left) = (Vec::new(), bytes);
        if *range.start() < first {
            (entries, left) = self.entries_on_disk(*range.start()..=first - 1, bytes)?;
            if entries.last().is_none_or(|last| last.log_id.index + 1 != first) {
                return Ok(entries);
            }
        }
        for (entry, length) in queued {
            if !entries.is_empty() && length > left {
                break;
            }
            left = left.saturating_sub(length);
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The same of those on disk, and how many bytes are left.
    fn entries_on_disk(&self, range: RangeInclusive<u64>, bytes: usize) -> Result<(Vec<Entry>, usize), StoreError> {
        let read = self.db.begin_read()?;
        let log = read.open_table(LOG)?;
        let mut entries: Vec<Entry> = Vec::new();
        let mut left = bytes;
        for row in log.range(range)? {
            let (key, record) = row?;
            if !entries.is_empty() && record.value().len() > left {
                break;
            }
            left = left.saturating_sub(record.value().len());
            let entry = open_entry(key.value(), record.value())?;
            if entries.last().is_some_and(|before| before.log_id.index + 1 != entry.log_id.index) {
                return Err(damaged(format!("an entry before {} is missing", entry.log_id.index)));
            }
            entries.push(entry);
        }
        Ok((entries, left))
    }

    /// The snapshot, verified.
    pub(crate) fn snapshot(&self) -> Result<Option<(SnapshotMeta, SnapshotData)>, StoreError> {
        let Some(stored) = self.meta::<StoredSnapshot>(SNAPSHOT_META)? else { return Ok(None) };
        let read = self.db.begin_read()?;
        let table = read.open_table(SNAPSHOT)?;
        let mut bytes = Vec::new();
        for row in table.range::<u64>(..)? {
            bytes.extend_from_slice(row?.1.value());
        }
        if bytes.len() as u64 != stored.bytes || *blake3::hash(&bytes).as_bytes() != stored.digest {
            return Err(damaged("the snapshot does not have its digest"));
        }
        Ok(Some((stored.meta, Arc::new(bytes))))
    }
}

fn open_entry(index: u64, record: &[u8]) -> Result<Entry, StoreError> {
    let entry: StoredEntry = unseal(&index.to_le_bytes(), record)
        .map_err(|error: RecordError| damaged(format!("entry {index}: {error}")))?;
    if entry.0.log_id.index != index {
        return Err(damaged(format!("entry {} stands in the place of {index}", entry.0.log_id.index)));
    }
    Ok(entry.0)
}

/// An entry with its record.
fn sealed(entry: Entry) -> Result<(Entry, Vec<u8>), StoreError> {
    let stored = StoredEntry(entry);
    let record = seal(&stored.0.log_id.index.to_le_bytes(), &stored).map_err(too_long)?;
    Ok((stored.0, record))
}

fn too_long(error: vt_protocol::codec::CodecError) -> StoreError {
    StoreError::Io(io::Error::new(io::ErrorKind::InvalidInput, error))
}

impl<'t> Write<'t> {
    fn open(write: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self { log: write.open_table(LOG)?, meta: write.open_table(META)?, snapshot: write.open_table(SNAPSHOT)? })
    }

    fn get<T: vt_protocol::codec::Versioned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let Some(record) = self.meta.get(key)? else { return Ok(None) };
        unseal(key.as_bytes(), record.value()).map(Some).map_err(|error| damaged(format!("record {key}: {error}")))
    }

    /// Index of the last entry, also where it is behind a snapshot.
    fn last(&self) -> Result<Option<u64>, StoreError> {
        if let Some((index, _)) = self.log.last()? {
            return Ok(Some(index.value()));
        }
        Ok(self.get::<StoredLogId>(PURGED)?.and_then(|purged| purged.0).map(|id| id.index))
    }

    fn put<T: vt_protocol::codec::Versioned>(&mut self, key: &str, value: &T) -> Result<(), StoreError> {
        let record = seal(key.as_bytes(), value).map_err(too_long)?;
        self.meta.insert(key, record.as_slice())?;
        Ok(())
    }

    pub(crate) fn set_vote(&mut self, vote: Vote) -> Result<(), StoreError> {
        self.put(VOTE, &StoredVote(vote))
    }

    /// Puts sealed entries into the log, by index.
    fn put_entries(&mut self, records: Vec<(u64, Vec<u8>)>) -> Result<(), StoreError> {
        for (index, record) in records {
            self.log.insert(index, record.as_slice())?;
        }
        Ok(())
    }

    /// Removes entries from `first` on.
    pub(crate) fn truncate(&mut self, first: u64) -> Result<(), StoreError> {
        self.log.retain_in(first.., |_, _| false)?;
        Ok(())
    }

    /// Removes entries up to and with `upto`.
    pub(crate) fn purge(&mut self, upto: LogId) -> Result<(), StoreError> {
        self.put(PURGED, &StoredLogId(Some(upto)))?;
        self.log.retain_in(..=upto.index, |_, _| false)?;
        Ok(())
    }

    /// Replaces the snapshot, unless the one on disk is newer.
    pub(crate) fn set_snapshot(&mut self, meta: SnapshotMeta, bytes: &[u8]) -> Result<(), StoreError> {
        if let Some(old) = self.get::<StoredSnapshot>(SNAPSHOT_META)?
            && old.meta.last_log_id > meta.last_log_id
        {
            return Ok(());
        }
        self.snapshot.retain(|_, _| false)?;
        for (row, part) in (0..).zip(bytes.chunks(ROW_BYTES)) {
            self.snapshot.insert(row, part)?;
        }
        let digest = *blake3::hash(bytes).as_bytes();
        self.put(SNAPSHOT_META, &StoredSnapshot { meta, bytes: bytes.len() as u64, digest })
    }
}
