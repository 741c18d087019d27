//! The watcher of an image: looks at it from outside, past every host, again and again, and notes the records of guests that
//! come to stand on it. Each guest's probe writes numbered records round and round, so a record tells who wrote it and when.
//!
//! Two writers are seen as a number that goes back in its place, or as a record of a guest that is new after the image was
//! given to another one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::unistd::{Whence, lseek};
use vt_protocol::{
    ids::AttemptId,
    probe::{PAGE_BYTES, page_marker, record_seed},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// The beginning of a record: whose it is, which place, which number.
const HEAD: usize = 24;

/// Who writes records: what they begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writer([u8; 8]);

impl Writer {
    /// The guest of that attempt.
    pub fn of(attempt: &AttemptId) -> Self {
        let seed = u64::from(attempt.number) << 32 ^ attempt.case.job.0;
        let marker = page_marker(record_seed(seed), 0);
        Self(marker[..8].try_into().expect("it has 16 bytes"))
    }
}

/// A record that stands on an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    writer: Writer,
    number: u64,
}

/// A block of a file.
type Place = (u64, u64);

/// A record that should not have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    /// Its number.
    pub number: u64,
    /// The number that stood there, of the same guest; `None`: the image was given to another guest before it came.
    pub instead_of: Option<u64>,
}

/// What was seen, look by look.
#[derive(Debug, Default)]
struct History {
    looks: u64,
    known: Vec<Writer>,
    stands: BTreeMap<Place, Record>,
    counts: BTreeMap<Writer, u64>,
    /// Whose the image is, and after which look it became that.
    turn: Option<(Writer, u64)>,
    late: Vec<Late>,
}

impl History {
    /// What a look has found, of writers that are known.
    fn look(&mut self, found: impl IntoIterator<Item = (Place, Record)>) {
        self.looks += 1;
        // What is new was written since the look before began: the first of those may have begun before the image was given.
        let turn = self.turn.filter(|(_, since)| self.looks > since + 1).map(|(writer, _)| writer);
        for (place, record) in found {
            let before = self.stands.insert(place, record);
            if before == Some(record) {
                continue;
            }
            *self.counts.entry(record.writer).or_default() += 1;
            let before = before.filter(|before| before.writer == record.writer).map(|before| before.number);
            if before.is_some_and(|before| record.number < before) {
                self.late.push(Late { number: record.number, instead_of: before });
            } else if turn.is_some_and(|turn| turn != record.writer) {
                self.late.push(Late { number: record.number, instead_of: None });
            }
        }
    }
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct ImageWatcher {
    history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ImageWatcher {
    /// Watches those files, and whatever comes to lie in those folders.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(places: Vec<PathBuf>) -> anyhow::Result<Self> {
        let (history, stop) = (Arc::<Mutex<History>>::default(), Arc::<AtomicBool>::default());
        let (filled, stopped) = (history.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("image".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let known = locked(&filled).known.clone();
                // A file that goes while it is read has no more to tell.
                let found = places.iter().flat_map(|place| files(place)).flat_map(|file| records(&file, &known));
                let found: Vec<_> = found.collect();
                locked(&filled).look(found);
                std::thread::sleep(PAUSE);
            }
        })?;
        Ok(Self { history, stop, thread: Some(thread) })
    }

    /// Notes records of that writer too.
    pub fn know(&self, writer: Writer) {
        locked(&self.history).known.push(writer);
    }

    /// From now on the image is that writer's.
    pub fn give(&self, writer: Writer) {
        let mut history = locked(&self.history);
        history.turn = Some((writer, history.looks + 1));
    }

    /// How many new records of a writer were seen.
    pub fn count(&self, writer: Writer) -> u64 {
        locked(&self.history).counts.get(&writer).copied().unwrap_or(0)
    }

    /// Records that should not have come.
    pub fn late(&self) -> Vec<Late> {
        locked(&self.history).late.clone()
    }
}

impl Drop for ImageWatcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn locked(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file, or those of a folder.
fn files(place: &Path) -> Vec<PathBuf> {
    match fs::read_dir(place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect(),
        Err(_) => vec![place.to_owned()],
    }
}

/// The records of those writers that stand in a file, where it has data.
fn records(path: &Path, known: &[Writer]) -> Vec<(Place, Record)> {
    let mut found = Vec::new();
    let Ok(file) = File::open(path) else { return found };
    let Ok(inode) = file.metadata().map(|meta| meta.ino()) else { return found };
    let mut at = 0;
    while let Ok(begin) = lseek(file.as_fd(), at, Whence::SeekData) {
        let Ok(end) = lseek(file.as_fd(), begin, Whence::SeekHole) else { break };
        let (first, last) = (begin.unsigned_abs() / BLOCK, end.unsigned_abs().div_ceil(BLOCK));
        for block in first..last {
            let mut head = [0; HEAD];
            if file.read_exact_at(&mut head, block * BLOCK).is_ok()
                && let Some(record) = record(&head, known)
            {
                found.push(((inode, block), record));
            }
        }
        at = end;
    }
    found
}

const BLOCK: u64 = PAGE_BYTES as u64;

fn record(head: &[u8; HEAD], known: &[Writer]) -> Option<Record> {
    let word = |at: usize| head[at..at + 8].try_into().expect("eight of them");
    let writer = Writer(word(0));
    known.contains(&writer).then(|| Record { writer, number: u64::from_le_bytes(word(16)) })
}

/// Waits until that holds of what was seen, and gives how long it took.
///
/// # Errors
/// It does not within `deadline`.
pub fn until(
    what: &str,
    deadline: Duration,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    while !holds()? {
        anyhow::ensure!(begun.elapsed() < deadline, "waited {} s for {what}", deadline.as_secs());
        std::thread::sleep(PAUSE);
    }
    Ok(begun.elapsed())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vt_protocol::probe::Pattern;

    use super::*;

    const FIRST: Writer = Writer([1; 8]);
    const SECOND: Writer = Writer([2; 8]);

    fn at(block: u64, writer: Writer, number: u64) -> (Place, Record) {
        ((7, block), Record { writer, number })
    }

    #[test]
    fn one_writer_goes_round_and_the_next_one_after_it() {
        let mut history = History::default();
        for look in 0..20 {
            history.look([at(0, FIRST, 2 * look + 1), at(1, FIRST, 2 * look + 2)]);
        }
        history.turn = Some((SECOND, history.looks + 1));
        // On its way when the image was given, and seen by the look after that.
        history.look([at(0, FIRST, 41), at(1, FIRST, 40)]);
        for look in 0..20 {
            history.look([at(0, FIRST, 41), at(1, SECOND, look + 1)]);
        }
        assert_eq!((history.late.as_slice(), history.counts[&FIRST], history.counts[&SECOND]), (&[][..], 41, 20));
    }

    #[test]
    fn a_number_that_goes_back_and_a_record_of_the_first_that_comes_too_late_are_two_writers() {
        let mut history = History::default();
        history.look([at(0, FIRST, 9)]);
        history.look([at(0, FIRST, 1)]);
        assert_eq!(history.late, [Late { number: 1, instead_of: Some(9) }]);
        let mut history = History::default();
        history.look([at(0, FIRST, 9)]);
        history.turn = Some((SECOND, history.looks + 1));
        history.look([at(0, FIRST, 9)]);
        history.look([at(0, FIRST, 9), at(1, SECOND, 1)]);
        history.look([at(0, FIRST, 10), at(1, SECOND, 2)]);
        assert_eq!(history.late, [Late { number: 10, instead_of: None }]);
    }

    #[test]
    fn records_of_a_guest_are_found_in_a_file_with_holes() {
        let attempt: AttemptId = "7f3k2a.1.1".parse().unwrap();
        let seed = u64::from(attempt.number) << 32 ^ attempt.case.job.0;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        let mut page = vec![0; PAGE_BYTES];
        Pattern::new(record_seed(seed)).fill(&mut page, 3, 12);
        file.write_all_at(&page, 40 << 20).unwrap();
        let found = records(&path, &[Writer::of(&attempt)]);
        let wanted = Record { writer: Writer::of(&attempt), number: 12 };
        assert_eq!(
            found.iter().map(|((_, block), record)| (*block, *record)).collect::<Vec<_>>(),
            [((40 << 20) / BLOCK, wanted)]
        );
        assert_eq!(records(&path, &[FIRST]), []);
        assert_eq!(files(folder.path()), [path]);
    }
}
