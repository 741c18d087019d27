//! The store of a replica: vote and snapshot in a redb database, the log in a [`super::journal`] beside it.
//!
//! redb commits in two phases with an fsync each before anything counts, and the whole file is verified when it is opened:
//! what a crash tore was never acknowledged and is cut, damage stops the daemon. Its cheaper commit in one phase cannot
//! tell the two apart in the last commit. Commits of entries are many and go to the journal, which can, with one fsync.
//! Nothing here ever lowers durability, and nothing repairs by forgetting.

use std::{
    fs, io,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, Table, TableDefinition,
    backends::FileBackend,
};
use tokio::{sync::watch, time::sleep};
use vt_protocol::{
    codec::{CodecError, Versioned},
    error::{ErrorCode, Report},
    ids::HostId,
};

use super::{
    journal::{Journal, Medium, Row},
    queue::{Batch, Queue},
    types::{Entry, LogId, SnapshotData, SnapshotMeta, Vote},
};
use crate::stored::{Record, StoredHost, StoredLogId, StoredSegments, StoredSnapshot, StoredVote, seal, unseal};

/// Names of the files in the directory.
const STORE_FILE: &str = "raft.redb";
const JOURNAL_FILE: &str = "raft.log";

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const SNAPSHOT: TableDefinition<u64, &[u8]> = TableDefinition::new("snapshot");

const HOST: &str = "host";
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const SEGMENTS: &str = "segments";
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
        let help = match error {
            StoreError::Damaged(_) | StoreError::Missing(_) => {
                "the others have what it had: vtctl host remove HOST there, then move the data directory away here and join afresh"
            }
            StoreError::OtherHost { .. } => "give each host its own data directory back",
            StoreError::Busy => "end the other vtd, or give this one a data directory of its own",
            StoreError::Io(io) if io.kind() == io::ErrorKind::StorageFull => {
                "free space where the data directory is and start vtd again: nothing that was acknowledged is lost"
            }
            StoreError::Io(_) => {
                "see to the disk (findmnt tells whether it is mounted read-only) and start vtd again: nothing that was acknowledged is lost"
            }
        };
        Report::new(code, error.to_string()).caused_by(error).help(help)
    }
}

pub(super) fn damaged(text: impl Into<String>) -> StoreError {
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

/// Where the files are.
pub(crate) enum Place<'a> {
    /// In a directory; `create` makes new ones where there are none.
    Directory { path: &'a Path, create: bool },
    /// Behind backends, whose calls return at once: simulations and tests. Before each write the latency passes.
    Backend { store: Medium, journal: Medium, latency: Latency },
}

/// How long a simulated disk lets the next write wait.
pub type Latency = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Who waits for the medium.
enum Writer {
    /// A thread, which may block.
    Thread,
    /// A task, for in simulations time stands still while a thread waits.
    Task(Latency),
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// The open store.
pub(crate) struct Disk {
    db: Database,
    journal: Journal,
    writer: Writer,
    /// The newest entries, on disk or not yet.
    queue: Queue,
    committed: Mutex<Committed>,
    /// Dropped last: its receivers learn that the files are closed.
    closed: watch::Sender<()>,
}

/// The committed place in the log. It is written along with the next entries: it may be behind, it is learned again.
#[derive(Debug, Clone, Copy)]
struct Committed {
    known: Option<LogId>,
    written: Option<LogId>,
}

/// One write transaction.
pub(crate) struct Write<'t> {
    meta: Table<'t, &'static str, &'static [u8]>,
    snapshot: Table<'t, u64, &'static [u8]>,
}

impl Disk {
    /// Opens and verifies the store of `host`.
    pub(crate) fn open(place: Place<'_>, host: HostId) -> Result<Self, StoreError> {
        // A damaged file may also make redb panic.
        let opened = catch_unwind(AssertUnwindSafe(|| Self::open_here(place, host)));
        opened.map_err(|_| damaged("its file cannot be read"))?
    }

    fn open_here(place: Place<'_>, host: HostId) -> Result<Self, StoreError> {
        let (db, segments, file, writer) = match place {
            Place::Directory { path, create } => {
                let store = path.join(STORE_FILE);
                if !create && !store.try_exists().map_err(StoreError::Io)? {
                    return Err(StoreError::Missing(store.display().to_string()));
                }
                let db = builder().create(&store)?;
                let segments = claim(&db, host, create)?;
                (db, segments, journal_file(path, segments)?, Writer::Thread)
            }
            Place::Backend { store, journal, latency } => {
                let db = builder().create_with_backend(Boxed(store))?;
                let segments = claim(&db, host, true)?;
                (db, segments, journal, Writer::Task(latency))
            }
        };
        let purged = meta::<StoredLogId>(&db, PURGED)?.and_then(|id| id.0);
        let (journal, written) = Journal::open(file, host, segments, purged.map(|id| id.index))?;
        // What is behind a snapshot was committed.
        let committed = Mutex::new(Committed { known: written.max(purged), written });
        let (queue, closed) = (Queue::default(), watch::Sender::new(()));
        let disk = Self { db, journal, writer, queue, committed, closed };
        disk.snapshot()?;
        disk.vote()?;
        Ok(disk)
    }

    /// Its channel closes when the file is closed.
    pub(crate) fn closing(&self) -> watch::Receiver<()> {
        self.closed.subscribe()
    }

    /// Appends entries: readable when this returns, and `done` is told when they are on disk.
    pub(crate) async fn append(
        self: &Arc<Self>,
        entries: Vec<Entry>,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> io::Result<()> {
        let entries = entries.into_iter().map(Row::of_entry).collect::<Result<Vec<_>, _>>()?;
        if self.queue.push(entries, Box::new(done)) {
            let disk = Arc::clone(self);
            match &self.writer {
                Writer::Thread => drop(tokio::task::spawn_blocking(move || while disk.write_next() {})),
                Writer::Task(latency) => {
                    let latency = Arc::clone(latency);
                    tokio::spawn(async move {
                        sleep(latency()).await;
                        while disk.write_next() {
                            sleep(latency()).await;
                        }
                    });
                }
            }
        }
        if self.queue.is_full() {
            self.queue.drained().await;
        }
        Ok(())
    }

    /// Writes what has gathered. False: nothing had.
    fn write_next(&self) -> bool {
        let Some(Batch { mut rows, done }) = self.queue.take() else { return false };
        let (entries, bytes) = (rows.len(), rows.iter().map(Row::len).sum());
        let put = || {
            let committed = self.to_be_told(rows.last().and_then(|row| row.index));
            rows.extend(committed.map(|id| Row::of(Record::Committed(id))).transpose()?);
            self.journal.append(&rows, &|segments| self.set_segments(segments))?;
            if committed.is_some() {
                self.committed().written = committed;
            }
            Ok(())
        };
        // A damaged file may make redb panic; whoever waits has to be told all the same.
        let result = catch_unwind(AssertUnwindSafe(put)).unwrap_or_else(|_| Err(damaged("it cannot be written")));
        self.queue.written(entries, bytes, done, &result.map_err(io::Error::from));
        true
    }

    /// The committed place that the journal is to be told of together with entries up to `last`. Others may have committed
    /// what is still on its way to this disk: that is not said before it is there.
    fn to_be_told(&self, last: Option<u64>) -> Option<LogId> {
        let Committed { known, written } = *self.committed();
        known.filter(|known| Some(known.index) <= last && Some(*known) > written)
    }

    /// Notes how many segments the journal has, before they are used.
    fn set_segments(&self, segments: usize) -> Result<(), StoreError> {
        self.commit_here(|write| write.put(SEGMENTS, &StoredSegments(segments as u64)))
    }

    /// Runs `change` in one transaction, after everything that was appended before; on disk when this returns.
    pub(crate) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Write<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> io::Result<T> {
        self.queue.drained().await;
        self.run(move |disk| disk.commit_here(change)).await
    }

    /// Runs what may block.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        what: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> io::Result<T> {
        if let Writer::Task(latency) = &self.writer {
            sleep(latency()).await;
            return Ok(what(self)?);
        }
        let disk = Arc::clone(self);
        Ok(tokio::task::spawn_blocking(move || what(&disk)).await.map_err(io::Error::other)??)
    }

    fn commit_here<T>(&self, change: impl FnOnce(&mut Write<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        commit(&self.db, change)
    }

    /// Removes entries from `first` on.
    pub(crate) async fn truncate(self: &Arc<Self>, first: u64) -> io::Result<()> {
        self.queue.drained().await;
        self.run(move |disk| disk.journal.truncate(first, &|segments| disk.set_segments(segments))).await?;
        self.queue.retain(..first);
        Ok(())
    }

    /// Removes entries up to and with `upto`.
    pub(crate) async fn purge(self: &Arc<Self>, upto: LogId) -> io::Result<()> {
        self.write(move |write| write.set_purged(upto)).await?;
        self.journal.purge(upto.index);
        self.queue.retain(upto.index + 1..);
        Ok(())
    }

    fn committed(&self) -> MutexGuard<'_, Committed> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_committed(&self, committed: Option<LogId>) {
        self.committed().known = committed;
    }

    pub(crate) fn get_committed(&self) -> Option<LogId> {
        self.committed().known
    }

    pub(crate) fn vote(&self) -> Result<Option<Vote>, StoreError> {
        Ok(meta::<StoredVote>(&self.db, VOTE)?.map(|vote| vote.0))
    }

    pub(crate) fn purged(&self) -> Result<Option<LogId>, StoreError> {
        Ok(meta::<StoredLogId>(&self.db, PURGED)?.and_then(|id| id.0))
    }

    /// The last entry on disk.
    pub(crate) fn last(&self) -> Result<Option<LogId>, StoreError> {
        let Some(last) = self.journal.last() else { return Ok(None) };
        Ok(self.journal.entry(last)?.map(|(entry, _)| entry.log_id))
    }

    /// Entries of the range, in order, on disk or on their way there; stops after `bytes` bytes, but never before the first.
    pub(crate) fn entries(&self, range: RangeInclusive<u64>, bytes: usize) -> Result<Vec<Entry>, StoreError> {
        // First: what leaves the queue meanwhile is on disk as well.
        let queued = self.queue.range(range.clone());
        let first = queued.first().map(|(entry, _)| entry.log_id.index);
        let end = first.or_else(|| Some(self.journal.last()?.min(*range.end()) + 1)).unwrap_or(0);
        let on_disk = (*range.start()..end).filter_map(|index| self.journal.entry(index).transpose());
        let (mut entries, mut left) = (Vec::new(), bytes);
        for found in on_disk.chain(queued.into_iter().map(Ok)) {
            let (entry, length) = found?;
            if !entries.is_empty() && length > left {
                break;
            }
            left = left.saturating_sub(length);
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The snapshot, verified.
    pub(crate) fn snapshot(&self) -> Result<Option<(SnapshotMeta, SnapshotData)>, StoreError> {
        let Some(stored) = meta::<StoredSnapshot>(&self.db, SNAPSHOT_META)? else { return Ok(None) };
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

/// Checks that the store is that of `host`; begins it if it is empty and may be. Gives how many segments its journal has.
fn claim(db: &Database, host: HostId, create: bool) -> Result<usize, StoreError> {
    commit(db, |write| {
        match write.get::<StoredHost>(HOST)? {
            Some(StoredHost(found)) if found != host.0 => {
                return Err(StoreError::OtherHost { found: HostId(found), wanted: host });
            }
            Some(_) => {}
            None if create && write.meta.first()?.is_none() => {
                write.put(HOST, &StoredHost(host.0))?;
                write.put(SEGMENTS, &StoredSegments(0))?;
            }
            None => return Err(damaged("it does not say whose it is")),
        }
        let segments = write.get::<StoredSegments>(SEGMENTS)?.ok_or_else(|| damaged("it knows of no journal"))?.0;
        usize::try_from(segments).map_err(|_| damaged("its journal is too long"))
    })
}

/// The journal's file; a new one where nothing was ever written to it.
fn journal_file(directory: &Path, segments: usize) -> Result<Medium, StoreError> {
    let path = directory.join(JOURNAL_FILE);
    let mut open = fs::OpenOptions::new();
    let file = match open.read(true).write(true).create(segments == 0).truncate(false).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::Missing(path.display().to_string()));
        }
        opened => opened.map_err(StoreError::Io)?,
    };
    if segments == 0 {
        // The names of new files are on disk before anything is acknowledged that is in them.
        fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(StoreError::Io)?;
    }
    Ok(Box::new(FileBackend::new(file)?))
}

fn commit<T>(db: &Database, change: impl FnOnce(&mut Write<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut write = db.begin_write()?;
    // Without it a damaged last commit would pass for a torn one and be forgotten.
    write.set_two_phase_commit(true);
    let value = change(&mut Write { meta: write.open_table(META)?, snapshot: write.open_table(SNAPSHOT)? })?;
    write.commit()?;
    Ok(value)
}

fn meta<T: Versioned>(db: &Database, key: &str) -> Result<Option<T>, StoreError> {
    let read = db.begin_read()?;
    let table = read.open_table(META)?;
    let Some(record) = table.get(key)? else { return Ok(None) };
    unseal(key.as_bytes(), record.value()).map(Some).map_err(|error| damaged(format!("record {key}: {error}")))
}

pub(super) fn too_long(error: CodecError) -> StoreError {
    StoreError::Io(io::Error::new(io::ErrorKind::InvalidInput, error))
}

impl Write<'_> {
    fn get<T: Versioned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let Some(record) = self.meta.get(key)? else { return Ok(None) };
        unseal(key.as_bytes(), record.value()).map(Some).map_err(|error| damaged(format!("record {key}: {error}")))
    }

    fn put<T: Versioned>(&mut self, key: &str, value: &T) -> Result<(), StoreError> {
        let record = seal(key.as_bytes(), value).map_err(too_long)?;
        self.meta.insert(key, record.as_slice())?;
        Ok(())
    }

    pub(crate) fn set_vote(&mut self, vote: Vote) -> Result<(), StoreError> {
        self.put(VOTE, &StoredVote(vote))
    }

    /// Entries up to and with `upto` stand in a snapshot and count no more.
    pub(crate) fn set_purged(&mut self, upto: LogId) -> Result<(), StoreError> {
        self.put(PURGED, &StoredLogId(Some(upto)))
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

/// Boxed backends, for redb wants a type.
#[derive(Debug)]
struct Boxed(Medium);

impl StorageBackend for Boxed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
