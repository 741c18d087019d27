//! A journal in memory with what may become of it on a disk, for fuzz targets: built with them alone.

use std::sync::Mutex;

use redb::StorageBackend;
use vt_protocol::ids::HostId;

use super::{
    Journal, Row, SECTOR, SEGMENT, StoreError,
    memory::{Shared, entry},
    sector::{self, CONTENT, Head},
};
use crate::stored::Record;

const HOST: HostId = HostId(1);

/// A record to be written.
#[derive(Debug)]
pub enum Piece {
    /// An entry of this index, with a value of that many bytes.
    Entry(u64, usize),
    /// Entries from this index on are gone.
    Truncated(u64),
    /// These bytes in place of a record.
    Bytes(Vec<u8>),
}

/// What became of a file. Sectors are counted from its beginning and wrap around at its end, as bits do.
#[derive(Debug)]
pub enum Damage {
    /// One bit changed.
    Flip(u64),
    /// A sector is as if it had never been written.
    Blank(u64),
    /// The second sector has become the first.
    Copy(u64, u64),
    /// A sector that is sealed as it should be, and says this.
    Forge {
        /// Which it is.
        sector: u64,
        /// The sector it says it is.
        position: u64,
        /// Where its batch is said to begin.
        batch: u64,
        /// How many sectors its batch is said to have.
        sectors: u32,
        /// What it contains.
        content: Vec<u8>,
    },
}

/// A journal's file, and what its store remembers of it.
#[derive(Debug, Default)]
pub struct File {
    file: Shared,
    segments: Mutex<usize>,
}

impl File {
    /// Writes batches, each on disk before the next. False: they are not what a log may hold, and the journal refused one.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn write(&self, batches: &[Vec<Piece>]) -> Result<bool, StoreError> {
        let journal = self.journal(None)?;
        for batch in batches {
            let rows = batch.iter().map(row).collect::<Result<Vec<_>, _>>()?;
            if journal.append(&rows, &|segments| self.grown(segments)).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn journal(&self, purged: Option<u64>) -> Result<Journal, StoreError> {
        let segments = self.segments.lock().map_or(0, |segments| *segments);
        Ok(Journal::open(Box::new(self.file.clone()), HOST, segments, purged)?.0)
    }

    fn grown(&self, to: usize) -> Result<(), StoreError> {
        if let Ok(mut segments) = self.segments.lock() {
            *segments = to;
        }
        Ok(())
    }

    /// Damages the file.
    ///
    /// # Panics
    /// Memory cannot be written.
    pub fn damage(&self, damage: &Damage) {
        let length = self.file.len().expect("it has a length");
        let Some(sectors) = (length / SECTOR as u64).checked_sub(1).map(|last| last + 1) else { return };
        let read = |sector: u64| {
            let mut bytes = vec![0; SECTOR];
            self.file.read(sector % sectors * SECTOR as u64, &mut bytes).expect("it is in memory");
            bytes
        };
        let (sector, bytes) = match damage {
            Damage::Flip(bit) => {
                let (sector, bit) = (bit / (SECTOR as u64 * 8), (bit % (SECTOR as u64 * 8)) as usize);
                let mut bytes = read(sector);
                bytes[bit / 8] ^= 1 << (bit % 8);
                (sector, bytes)
            }
            Damage::Blank(sector) => (*sector, vec![0; SECTOR]),
            Damage::Copy(from, to) => (*to, read(*from)),
            Damage::Forge { sector, position, batch, sectors, content } => {
                let content = &content[..content.len().min(CONTENT)];
                let head = Head { position: *position, batch: *batch, sectors: *sectors, used: content.len() as u32 };
                let mut bytes = Vec::new();
                sector::put(HOST.0, head, content, &mut bytes);
                (*sector, bytes)
            }
        };
        self.file.write(sector % sectors * SECTOR as u64, &bytes).expect("it is in memory");
    }

    /// Opens the file as a daemon that starts, and gives the last index. Every entry can be read then, one more can be
    /// written, and is there when it is opened again.
    ///
    /// # Errors
    /// It is damaged.
    ///
    /// # Panics
    /// It opened and does not keep what that promises.
    pub fn open(&self, purged: Option<u64>) -> Result<Option<u64>, StoreError> {
        let journal = self.journal(purged)?;
        let last = journal.last();
        let first = purged.map_or(0, |purged| purged + 1);
        for index in last.map_or(0..0, |last| first..last + 1) {
            assert!(journal.entry(index).expect("an open journal is whole").is_some(), "entry {index} of {last:?}");
        }
        let next = last.map_or(first, |last| last + 1);
        if next > u64::MAX >> 2 {
            return Ok(last);
        }
        journal.append(&[row(&Piece::Entry(next, 3))?], &|segments| self.grown(segments)).expect("it goes on");
        drop(journal);
        assert_eq!(self.journal(purged).expect("it opens again").last(), Some(next));
        Ok(last)
    }

    /// Sectors of one segment.
    pub const SEGMENT: u64 = SEGMENT;
}

fn row(piece: &Piece) -> Result<Row, StoreError> {
    match piece {
        Piece::Entry(index, bytes) => Ok(Row::of_entry(entry(*index, *bytes))?.1),
        Piece::Truncated(first) => Row::of(Record::Truncated(*first)),
        Piece::Bytes(bytes) => Ok(Row { index: None, bytes: bytes.clone() }),
    }
}
