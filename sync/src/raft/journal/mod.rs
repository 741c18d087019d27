//! The journal: the file of log entries. Written at its end only, one write and one fsync for each batch.
//!
//! The file is a ring of segments, each written full of zeros and synced before its first use, so that the fsync of a batch
//! has only the batch to write. A batch lies in sectors of its own, each with a checksum and its place ([`sector`]). So
//! when it is opened every sector is whole, or was never written, or is damaged; and what is missing was either never
//! acknowledged (the last batch, torn by a power failure: it is cut off) or is damage ([`order`]). Damage stops the
//! daemon; no bit that changes can make an acknowledged entry look like one that was never written.
//!
//! This stands on two promises: a disk that says it has synced has, and writes 512 bytes whole or not at all. Where the
//! second is broken the daemon stops as well. What may not happen here: a batch begun before the one before it is on disk, or a
//! write after one that failed.

#[cfg(fuzzing)]
pub mod fuzzing;
mod index;
#[cfg(any(test, fuzzing))]
mod memory;
mod order;
mod sector;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::StorageBackend;
use vt_protocol::{codec, ids::HostId};

use self::{
    index::{Index, Spot},
    order::Order,
    sector::{CONTENT, Found, Head, SECTOR},
};
use super::{
    disk::{StoreError, damaged, too_long},
    types::{Entry, LogId},
};
use crate::stored::{RECORD_BYTES, Record, StoredRecord};

/// Sectors of a segment. A batch lies in one segment, so the longest record has to fit into it. Few for fuzz targets, which
/// read whole files many times a second.
const SEGMENT: u64 = if cfg!(fuzzing) { 16 } else { 4096 };
const SEGMENT_BYTES: usize = SEGMENT as usize * SECTOR;
/// Bytes before a record that say how long it is.
const LENGTH: usize = 4;

/// Where the journal is.
pub(super) type Medium = Box<dyn StorageBackend>;

/// An encoded record, with the index of its entry if it is one.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) index: Option<u64>,
    bytes: Vec<u8>,
}

impl Row {
    /// Encodes a record.
    pub(super) fn of(record: Record) -> Result<Self, StoreError> {
        Ok(Self { index: None, bytes: codec::encode(&StoredRecord(record), RECORD_BYTES).map_err(too_long)? })
    }

    /// Encodes an entry, and gives it back.
    pub(super) fn of_entry(entry: Entry) -> Result<(Entry, Self), StoreError> {
        let index = Some(entry.log_id.index);
        let record = StoredRecord(Record::Entry(entry));
        let bytes = codec::encode(&record, RECORD_BYTES).map_err(too_long)?;
        let Record::Entry(entry) = record.0 else { unreachable!("an entry was put in") };
        Ok((entry, Self { index, bytes }))
    }

    /// Bytes it takes.
    pub(super) fn len(&self) -> usize {
        LENGTH + self.bytes.len()
    }
}

/// An open journal. One thread writes at a time.
pub(super) struct Journal {
    host: u64,
    file: Medium,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Number of the first segment in use.
    first: u64,
    /// Where in the file the segments in use are, in order.
    places: VecDeque<usize>,
    /// Places in the file that can be used again, the oldest first.
    unused: VecDeque<usize>,
    /// Segments of the file.
    segments: usize,
    /// Position of the next batch.
    end: u64,
    index: Index,
    /// A write failed: what is on disk is not known before it is read again.
    broken: bool,
}

impl Inner {
    /// Where in the file a sector is.
    fn offset(&self, position: u64) -> Option<u64> {
        let at = usize::try_from((position / SEGMENT).checked_sub(self.first)?).ok()?;
        let place = *self.places.get(at)?;
        Some((place * SEGMENT_BYTES) as u64 + position % SEGMENT * SECTOR as u64)
    }
}

impl Journal {
    /// Opens the journal of `host` in a file that was last said to have so many segments, and reads it through. Entries up
    /// to `purged` stand in a snapshot. Also gives the last place in the log that is known to be committed.
    pub(super) fn open(
        file: Medium,
        host: HostId,
        segments: usize,
        purged: Option<u64>,
    ) -> Result<(Self, Option<LogId>), StoreError> {
        if file.len().map_err(StoreError::Io)? < (segments * SEGMENT_BYTES) as u64 {
            return Err(damaged("its journal was cut"));
        }
        let journal = Self { host: host.0, file, inner: Mutex::default() };
        let heads = (0..segments).map(|place| journal.heads(place)).collect::<Result<Vec<_>, _>>()?;
        let Order { first, places, unused, batches, torn } = Order::of(&heads).map_err(damaged)?;
        drop(heads);
        *journal.inner() = Inner { first, places, unused, segments, ..Inner::default() };
        journal.settle(&batches, &torn)?;
        let mut committed = None;
        for batch in &batches {
            journal.replay(batch, purged, &mut committed)?;
        }
        {
            let mut inner = journal.inner();
            // A segment of which only a torn batch was left has been begun: the one before it may go with its entries.
            let begun = (first + (inner.places.len() as u64).saturating_sub(1)) * SEGMENT;
            inner.end = batches.last().map_or(begun, |batch| batch.end.max(begun));
            if let Some(purged) = purged {
                inner.purge(purged);
            }
            let expected = purged.map_or(0, |purged| purged + 1);
            if let Some((found, _)) = inner.index.first().filter(|(found, _)| *found != expected) {
                return Err(damaged(format!("its first entry is {found} and not {expected}")));
            }
        }
        Ok((journal, committed))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The heads of the segment at a place.
    fn heads(&self, place: usize) -> Result<Vec<Option<Head>>, StoreError> {
        let mut bytes = vec![0; SEGMENT_BYTES];
        self.file.read((place * SEGMENT_BYTES) as u64, &mut bytes).map_err(StoreError::Io)?;
        let head = |(at, bytes)| match sector::read(self.host, bytes) {
            Found::Blank => Ok(None),
            Found::Whole(head, _) => Ok(Some(head)),
            Found::Damaged => Err(damaged(format!("sector {at} of segment {place} of its journal is not as written"))),
        };
        bytes.chunks(SECTOR).enumerate().map(head).collect()
    }

    /// Cuts a torn tail off, and writes the last batch once more: the program before may have ended before it was synced.
    fn settle(&self, batches: &[Range<u64>], torn: &[u64]) -> Result<(), StoreError> {
        for position in torn {
            self.write(*position, &[0; SECTOR])?;
        }
        if let Some(last) = batches.last() {
            let bytes = self.sectors(last.clone())?;
            self.write(last.start, &bytes)?;
            self.file.sync_data().map_err(StoreError::Io)?;
        }
        Ok(())
    }

    /// Reads a batch for what it says of the log.
    fn replay(&self, batch: &Range<u64>, purged: Option<u64>, committed: &mut Option<LogId>) -> Result<(), StoreError> {
        let content = self.content(batch.clone())?;
        let mut at = 0;
        while at < content.len() {
            let bytes = row_at(&content, at).ok_or_else(|| damaged(format!("the batch at {} is cut", batch.start)))?;
            let mut inner = self.inner();
            match decode(bytes)? {
                Record::Entry(entry) => {
                    let spot = spot(batch.start, at, bytes.len());
                    inner.index.push(entry.log_id.index, spot, purged).map_err(damaged)?;
                }
                Record::Truncated(first) => inner.index.truncate(first),
                Record::Committed(id) => *committed = Some(id),
            }
            at += LENGTH + bytes.len();
        }
        Ok(())
    }

    /// The bytes of these sectors, which are in one segment.
    fn sectors(&self, positions: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let offset = self.inner().offset(positions.start).ok_or_else(|| damaged("a segment is missing"))?;
        let count = usize::try_from(positions.end - positions.start).unwrap_or(usize::MAX);
        let mut bytes = vec![0; count.min(SEGMENT as usize) * SECTOR];
        self.file.read(offset, &mut bytes).map_err(StoreError::Io)?;
        Ok(bytes)
    }

    /// What these sectors contain.
    fn content(&self, positions: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let bytes = self.sectors(positions.clone())?;
        let mut content = Vec::with_capacity(bytes.len());
        for (position, bytes) in positions.clone().zip(bytes.chunks(SECTOR)) {
            match sector::read(self.host, bytes) {
                // Records are found by how many bytes come before them: only the last sector may be less than full.
                Found::Whole(head, part)
                    if head.position == position && (part.len() == CONTENT || position + 1 == positions.end) =>
                {
                    content.extend_from_slice(part);
                }
                _ => return Err(damaged(format!("sector {position} of its journal is not as written"))),
            }
        }
        Ok(content)
    }

    /// Index of the last entry.
    pub(super) fn last(&self) -> Option<u64> {
        self.inner().index.last()
    }

    /// An entry, with the length of its record; `None`: there is none of this index.
    pub(super) fn entry(&self, index: u64) -> Result<Option<(Entry, usize)>, StoreError> {
        let Some(spot) = self.inner().index.get(index) else { return Ok(None) };
        let sectors = (spot.skip + spot.length).div_ceil(CONTENT) as u64;
        let content = self.content(spot.position..spot.position + sectors)?;
        let bytes = content.get(spot.skip..spot.skip + spot.length);
        match bytes.map(decode).transpose()? {
            Some(Record::Entry(entry)) if entry.log_id.index == index => Ok(Some((entry, spot.length))),
            _ => Err(damaged(format!("entry {index} is not where it was written"))),
        }
    }

    /// Appends records: on disk when this returns. Before a new segment is used `grown` is told how many the file has.
    pub(super) fn append(
        &self,
        mut rows: &[Row],
        grown: &dyn Fn(usize) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        while !rows.is_empty() {
            if self.inner().broken {
                return Err(StoreError::Io(io::Error::other("an earlier write to the journal failed")));
            }
            let written = self.put(rows, grown);
            self.inner().broken |= written.is_err();
            rows = &rows[written?..];
        }
        Ok(())
    }

    /// Writes one batch of as many as fit, and gives how many.
    fn put(&self, rows: &[Row], grown: &dyn Fn(usize) -> Result<(), StoreError>) -> Result<usize, StoreError> {
        let mut position = self.inner().end;
        let mut count = fitting(rows, position);
        if count == 0 {
            position = position.next_multiple_of(SEGMENT);
            count = fitting(rows, position);
        }
        if count == 0 {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "a record is longer than a segment of the journal");
            return Err(StoreError::Io(error));
        }
        self.reach(position / SEGMENT, grown)?;
        let rows = &rows[..count];
        let content: Vec<u8> = rows.iter().flat_map(|row| [&length(&row.bytes)[..], &row.bytes].concat()).collect();
        let parts = content.chunks(CONTENT);
        let sectors = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(parts.len() * SECTOR);
        for (at, part) in (position..).zip(parts) {
            let used = u32::try_from(part.len()).unwrap_or(u32::MAX);
            sector::put(self.host, Head { position: at, batch: position, sectors, used }, part, &mut bytes);
        }
        self.write(position, &bytes)?;
        self.file.sync_data().map_err(StoreError::Io)?;
        let mut inner = self.inner();
        inner.end = position + u64::from(sectors);
        let mut at = 0;
        for row in rows {
            if let Some(index) = row.index {
                inner.index.push(index, spot(position, at, row.bytes.len()), None).map_err(damaged)?;
            }
            at += row.len();
        }
        Ok(count)
    }

    /// Sees to it that the segment of this number has a place, one that is free or a new one.
    fn reach(&self, number: u64, grown: &dyn Fn(usize) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let segments = {
            let mut inner = self.inner();
            if inner.first + (inner.places.len() as u64) > number {
                return Ok(());
            }
            if let Some(place) = inner.unused.pop_front() {
                inner.places.push_back(place);
                return Ok(());
            }
            inner.segments
        };
        let zeros = vec![0; SEGMENT_BYTES];
        let length = ((segments + 1) * SEGMENT_BYTES) as u64;
        let made = self.file.set_len(length).and_then(|()| self.file.write(length - SEGMENT_BYTES as u64, &zeros));
        made.and_then(|()| self.file.sync_data()).map_err(StoreError::Io)?;
        grown(segments + 1)?;
        let mut inner = self.inner();
        inner.segments += 1;
        inner.places.push_back(segments);
        Ok(())
    }

    fn write(&self, position: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let offset = self.inner().offset(position).ok_or_else(|| damaged("a segment is missing"))?;
        self.file.write(offset, bytes).map_err(StoreError::Io)
    }

    /// Removes entries from `first` on.
    pub(super) fn truncate(
        &self,
        first: u64,
        grown: &dyn Fn(usize) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if self.last().is_none_or(|last| last < first) {
            return Ok(());
        }
        self.append(&[Row::of(Record::Truncated(first))?], grown)?;
        self.inner().index.truncate(first);
        Ok(())
    }

    /// Forgets entries up to and with `upto`, which stand in a snapshot; their segments are used again.
    pub(super) fn purge(&self, upto: u64) {
        self.inner().purge(upto);
    }
}

impl Inner {
    fn purge(&mut self, upto: u64) {
        self.index.purge(upto);
        // The last segment stays in any case: it says where the journal ends.
        let last = self.first + (self.places.len() as u64).saturating_sub(1);
        let keep = self.index.first().map_or(last, |(_, spot)| spot.position / SEGMENT);
        while self.first < keep {
            self.unused.extend(self.places.pop_front());
            self.first += 1;
        }
    }
}

/// How many records fit between `position` and the end of its segment.
fn fitting(rows: &[Row], position: u64) -> usize {
    let mut left = (SEGMENT - position % SEGMENT) as usize * CONTENT;
    let fits = |row: &&Row| {
        let rest = left.checked_sub(row.len());
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    rows.iter().take_while(fits).count()
}

fn length(bytes: &[u8]) -> [u8; LENGTH] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn row_at(content: &[u8], at: usize) -> Option<&[u8]> {
    let (length, rest) = content.get(at..)?.split_first_chunk::<LENGTH>()?;
    rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

/// Where the record is whose length stands so far into the content of the batch.
fn spot(batch: u64, at: usize, length: usize) -> Spot {
    let begin = at + LENGTH;
    Spot { position: batch + (begin / CONTENT) as u64, skip: begin % CONTENT, length }
}

fn decode(bytes: &[u8]) -> Result<Record, StoreError> {
    let record = codec::decode::<StoredRecord>(bytes, RECORD_BYTES);
    record.map(|record| record.0).map_err(|error| damaged(format!("a record of its journal: {error}")))
}
