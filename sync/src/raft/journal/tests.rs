//! The journal over a file in memory.

use std::sync::Mutex;

use super::{
    memory::{Shared, entry},
    *,
};

/// A journal with what its store would remember of it.
struct Fixture {
    file: Shared,
    segments: Mutex<usize>,
    journal: Journal,
}

impl Fixture {
    fn new() -> Self {
        let file = Shared::default();
        let (journal, committed) = Journal::open(Box::new(file.clone()), HostId(1), 0, None).unwrap();
        assert_eq!(committed, None);
        Self { file, segments: Mutex::new(0), journal }
    }

    fn reopen(&mut self, purged: Option<u64>) -> Result<(), StoreError> {
        let segments = *self.segments.lock().unwrap();
        self.journal = Journal::open(Box::new(self.file.clone()), HostId(1), segments, purged)?.0;
        Ok(())
    }

    fn append(&self, entries: Range<u64>, bytes: usize) {
        let rows: Vec<Row> = entries.map(|index| Row::of_entry(entry(index, bytes)).unwrap().1).collect();
        self.journal.append(&rows, &|segments| self.grown(segments)).unwrap();
    }

    fn grown(&self, segments: usize) -> Result<(), StoreError> {
        *self.segments.lock().unwrap() = segments;
        Ok(())
    }

    fn has(&self, entries: Range<u64>, bytes: usize) {
        assert_eq!(self.journal.last(), entries.clone().last());
        assert!(entries.start == 0 || self.journal.entry(entries.start - 1).unwrap().is_none());
        for index in entries {
            assert_eq!(self.journal.entry(index).unwrap().unwrap().0, entry(index, bytes));
        }
    }
}

#[test]
fn segments_are_filled_freed_and_used_again() {
    const LARGE: usize = 300_000;
    let mut fixture = Fixture::new();
    fixture.append(0..40, LARGE);
    fixture.has(0..40, LARGE);
    fixture.reopen(None).unwrap();
    fixture.has(0..40, LARGE);
    let segments = *fixture.segments.lock().unwrap();
    for round in 1..5 {
        let begin = round * 40;
        fixture.journal.purge(begin - 3);
        fixture.append(begin..begin + 40, LARGE);
        fixture.has(begin - 2..begin + 40, LARGE);
        fixture.reopen(Some(begin - 3)).unwrap();
        fixture.has(begin - 2..begin + 40, LARGE);
    }
    assert!(*fixture.segments.lock().unwrap() <= segments + 1, "places are used again");
    let long = Row::of_entry(entry(200, SEGMENT_BYTES)).unwrap().1;
    assert!(fixture.journal.append(&[long], &|_| Ok(())).is_err(), "longer than a segment");
}

#[test]
fn what_was_removed_stays_removed_and_a_log_goes_on_behind_a_snapshot() {
    let mut fixture = Fixture::new();
    fixture.append(0..10, 10);
    fixture.journal.truncate(6, &|segments| fixture.grown(segments)).unwrap();
    fixture.has(0..6, 10);
    fixture.reopen(None).unwrap();
    fixture.has(0..6, 10);
    fixture.append(6..8, 20);
    fixture.journal.purge(5);
    fixture.has(6..8, 20);
    fixture.reopen(Some(5)).unwrap();
    fixture.has(6..8, 20);
    // A snapshot from elsewhere covers more than there was.
    fixture.journal.purge(100);
    assert_eq!(fixture.journal.last(), None);
    fixture.append(101..103, 10);
    fixture.reopen(Some(100)).unwrap();
    fixture.has(101..103, 10);
    assert!(fixture.reopen(Some(50)).is_err(), "entries 51 to 100 are nowhere");
}

/// Power failed in the first batch of a segment, and everything before it stands in a snapshot.
#[test]
fn a_segment_with_nothing_but_a_torn_batch_is_where_the_log_goes_on() {
    const LARGE: usize = 300_000;
    let mut fixture = Fixture::new();
    let position = |fixture: &Fixture, index: u64| fixture.journal.inner().index.get(index).unwrap().position;
    let mut next = 0;
    while next == 0 || position(&fixture, next - 1) < SEGMENT {
        fixture.append(next..next + 1, LARGE);
        next += 1;
    }
    let (torn, last) = (next - 1, next - 2);
    let second = position(&fixture, torn) + 1;
    let lost = fixture.journal.inner().offset(second).unwrap();
    fixture.file.write(lost, &[0; SECTOR]).unwrap();
    fixture.reopen(Some(last)).unwrap();
    assert_eq!(fixture.journal.last(), None);
    // Short enough for what is left of the segment before.
    fixture.append(torn..torn + 2, 3);
    fixture.reopen(Some(last)).unwrap();
    fixture.has(torn..torn + 2, 3);
}

#[test]
fn after_a_write_that_failed_nothing_is_written() {
    let fixture = Fixture::new();
    let row = || [Row::of_entry(entry(0, 10)).unwrap().1];
    let full = |_| Err(StoreError::Io(io::ErrorKind::StorageFull.into()));
    assert!(fixture.journal.append(&row(), &full).is_err());
    assert!(fixture.journal.append(&row(), &|_| Ok(())).is_err(), "it is not known what the disk has");
}
