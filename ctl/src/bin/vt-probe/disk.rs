//! The disk writer: records with checksums, written past the page cache and acknowledged by the disk one by one.
//!
//! Which number stands in which place is kept in memory, so a write that the disk acknowledged and did not keep is
//! found, as is a torn one. A place is read before it is written again, and what is found is never forgotten.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use vt_protocol::probe::{
    DISK_DATA_OFFSET, DISK_MAGIC, Damage, DiskReport, DiskStart, FINDINGS_MAX, Finding, PAGE_BYTES, Pattern, SLOTS_MAX,
    record_seed,
};

const BLOCK: u64 = PAGE_BYTES as u64;
/// Pause after a write that failed, so that a dead disk is not hammered.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// One block at an address that O_DIRECT takes.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; PAGE_BYTES * 2];
        let start = bytes.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        Self { bytes, start }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + PAGE_BYTES]
    }
}

struct Records {
    disk: File,
    block: Aligned,
    offset: u64,
    seed: u64,
    pattern: Pattern,
    /// Number acknowledged last in each place; 0: none yet. `None`: a write failed there, so either may stand there.
    places: Vec<Option<u64>>,
    next: u64,
    acknowledged: u64,
    write_errors: u64,
    last_error: Option<String>,
    slowest: Duration,
    bad: BTreeMap<u32, Finding>,
}

impl Records {
    fn at(&self, place: u32) -> u64 {
        self.offset + u64::from(place) * BLOCK
    }

    fn verify(&mut self, place: u32) {
        let Some(expected @ 1..) = self.places[place as usize] else { return };
        let at = self.at(place);
        let finding = match self.disk.read_exact_at(self.block.get(), at) {
            Ok(()) => self.pattern.check(self.block.get(), place, expected),
            Err(_) => Some(Finding { index: place, damage: Damage::Unreadable, expected, found: 0, offset: 0 }),
        };
        if let Some(finding) = finding {
            self.bad.entry(place).or_insert(finding);
        }
    }

    /// Writes the next record; whether the disk acknowledged it.
    fn write(&mut self) -> bool {
        let count = self.places.len() as u64;
        let place = u32::try_from(self.next % count).unwrap_or(0);
        self.verify(place);
        let number = self.next + 1;
        let at = self.at(place);
        self.pattern.fill(self.block.get(), place, number);
        let began = Instant::now();
        let result = self.disk.write_all_at(self.block.get(), at);
        self.slowest = self.slowest.max(began.elapsed());
        self.next += 1;
        match result {
            Ok(()) => {
                self.places[place as usize] = Some(number);
                self.acknowledged += 1;
                true
            }
            Err(error) => {
                self.places[place as usize] = None;
                self.write_errors += 1;
                self.last_error = Some(error.to_string());
                false
            }
        }
    }
}

/// A running disk writer; dropping it ends the writer.
pub(crate) struct Disk {
    records: Arc<Mutex<Records>>,
    stop: Arc<Stop>,
    writer: Option<JoinHandle<()>>,
    slots: u32,
}

#[derive(Default)]
struct Stop {
    wanted: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    /// Sleeps, and wakes at once when the end is wanted; whether it is.
    fn sleep(&self, time: Duration) -> bool {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |(): &mut ()| !self.wanted.load(Ordering::Relaxed);
        drop(self.changed.wait_timeout_while(guard, time, waiting).unwrap_or_else(PoisonError::into_inner));
        self.wanted.load(Ordering::Relaxed)
    }

    fn ask(&self) {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }
}

impl Disk {
    /// Checks that the disk may be written to, and starts the writer.
    pub(crate) fn start(wanted: &DiskStart) -> Result<Self, String> {
        let slots = slots(wanted)?;
        let disk = open(wanted, slots)?;
        let records = Arc::new(Mutex::new(Records {
            disk,
            block: Aligned::new(),
            offset: wanted.offset,
            seed: wanted.seed,
            pattern: Pattern::new(record_seed(wanted.seed)),
            places: vec![Some(0); slots as usize],
            next: 0,
            acknowledged: 0,
            write_errors: 0,
            last_error: None,
            slowest: Duration::ZERO,
            bad: BTreeMap::new(),
        }));
        let stop = Arc::new(Stop::default());
        let (writing, stopping) = (Arc::clone(&records), Arc::clone(&stop));
        let pause = Duration::from_millis(wanted.interval_ms);
        let run = move || {
            loop {
                let written = lock(&writing).write();
                if stopping.sleep(if written { pause } else { ERROR_PAUSE.max(pause) }) {
                    return;
                }
            }
        };
        let writer = thread::Builder::new().name("disk".into()).spawn(run).map_err(|error| error.to_string())?;
        Ok(Self { records, stop, writer: Some(writer), slots })
    }

    /// Places the writer goes round.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Reads every acknowledged record again. Between two places the writer may go on.
    pub(crate) fn check(&self) -> DiskReport {
        let mut checked = 0;
        for place in 0..self.slots {
            let mut records = lock(&self.records);
            checked += u32::from(matches!(records.places[place as usize], Some(1..)));
            records.verify(place);
        }
        let records = lock(&self.records);
        DiskReport {
            seed: records.seed,
            records_checked: checked,
            acknowledged: records.acknowledged,
            write_errors: records.write_errors,
            last_error: records.last_error.clone(),
            slowest_write_ns: u64::try_from(records.slowest.as_nanos()).unwrap_or(u64::MAX),
            bad_records: u32::try_from(records.bad.len()).unwrap_or(u32::MAX),
            findings: records.bad.values().take(FINDINGS_MAX).cloned().collect(),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing to hand back.
            let _ = writer.join();
        }
    }
}

fn slots(wanted: &DiskStart) -> Result<u32, String> {
    if wanted.offset < DISK_DATA_OFFSET || !wanted.offset.is_multiple_of(BLOCK) {
        return Err(format!("offset: {} is not a multiple of {BLOCK} from {DISK_DATA_OFFSET} on", wanted.offset));
    }
    if wanted.interval_ms > 60_000 {
        return Err(format!("interval_ms: {} is not in 0 to 60000", wanted.interval_ms));
    }
    let slots = wanted.bytes / BLOCK;
    if slots == 0 || slots > u64::from(SLOTS_MAX) || !wanted.bytes.is_multiple_of(BLOCK) {
        let most = u64::from(SLOTS_MAX) * BLOCK;
        return Err(format!("bytes: {} is not a multiple of {BLOCK} up to {most}", wanted.bytes));
    }
    u32::try_from(slots).map_err(|error| error.to_string())
}

/// Opens the disk for writes that return when the disk has them, unless it is not ours to write to.
fn open(wanted: &DiskStart, slots: u32) -> Result<File, String> {
    let device = &wanted.device;
    let told = |error: std::io::Error| format!("{device}: {error}");
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let direct = nix::libc::O_DIRECT | nix::libc::O_DSYNC;
    let disk = match options.clone().custom_flags(direct).open(device) {
        // tmpfs has no O_DIRECT; a block device always does.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
            options.custom_flags(nix::libc::O_DSYNC).open(device).map_err(told)?
        }
        other => other.map_err(told)?,
    };
    let kind = disk.metadata().map_err(told)?;
    if !kind.file_type().is_block_device() && !kind.is_file() {
        return Err(format!("{device}: neither a block device nor a file"));
    }
    let mut block = Aligned::new();
    disk.read_exact_at(block.get(), 0).map_err(told)?;
    let begins_as_ours = block.get().starts_with(DISK_MAGIC);
    if !begins_as_ours && block.get().iter().any(|byte| *byte != 0) {
        return Err(format!("{device}: holds something else than a disk for probes; nothing was written"));
    }
    let last = wanted.offset.checked_add(u64::from(slots - 1) * BLOCK).ok_or("offset: too large")?;
    disk.read_exact_at(block.get(), last).map_err(|error| format!("{device}: no block at {last}: {error}"))?;
    Ok(disk)
}

fn lock(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::NamedTempFile, DiskStart) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(2 * DISK_DATA_OFFSET).unwrap();
        let wanted = DiskStart {
            device: file.path().to_str().unwrap().into(),
            offset: DISK_DATA_OFFSET,
            bytes: 8 * BLOCK,
            seed: 9,
            interval_ms: 0,
        };
        (file, wanted)
    }

    fn wait_for_writes(disk: &Disk, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while lock(&disk.records).acknowledged < count {
            assert!(Instant::now() < deadline, "waited 20 s for {count} writes");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn records_are_written_and_found_again() {
        let (_file, wanted) = disk();
        let disk = Disk::start(&wanted).unwrap();
        wait_for_writes(&disk, 20);
        let report = disk.check();
        assert_eq!((report.records_checked, report.bad_records, report.write_errors), (8, 0, 0), "{report:?}");
        assert!(report.acknowledged >= 20);
    }

    #[test]
    fn a_lost_and_a_torn_write_are_found_and_not_forgotten() {
        let (file, wanted) = disk();
        // So slow that after the first write only the test writes.
        let disk = Disk::start(&DiskStart { interval_ms: 60_000, ..wanted }).unwrap();
        wait_for_writes(&disk, 1);
        for _ in 0..7 {
            assert!(lock(&disk.records).write());
        }
        let block = |place: u64| DISK_DATA_OFFSET + place * BLOCK;
        let mut old = vec![0; PAGE_BYTES];
        file.as_file().read_exact_at(&mut old, block(0)).unwrap();
        assert!(lock(&disk.records).write(), "number 9 into place 0");
        file.as_file().write_all_at(&old, block(0)).unwrap();
        file.as_file().write_all_at(&[0; 512], block(3) + 2048).unwrap();
        file.as_file().write_all_at(&[0; PAGE_BYTES], block(5)).unwrap();
        for _ in 0..2 {
            let found: Vec<_> = disk.check().findings.iter().map(|f| (f.index, f.damage)).collect();
            assert_eq!(found, [(0, Damage::Stale), (3, Damage::Changed), (5, Damage::Missing)]);
        }
        for _ in 0..8 {
            assert!(lock(&disk.records).write());
        }
        assert_eq!(disk.check().bad_records, 3, "writing again does not wipe the traces away");
    }

    #[test]
    fn a_disk_of_someone_else_is_not_touched() {
        let (file, wanted) = disk();
        file.as_file().write_all_at(b"\xebX\x90mkfs.fat", 0).unwrap();
        assert!(Disk::start(&wanted).err().unwrap().contains("something else"));
        file.as_file().write_all_at(DISK_MAGIC, 0).unwrap();
        assert!(Disk::start(&wanted).is_ok());
    }

    #[test]
    fn bad_values_are_refused_with_their_name() {
        let (_file, wanted) = disk();
        let bad = [
            ("offset", DiskStart { offset: 0, ..wanted.clone() }),
            ("offset", DiskStart { offset: DISK_DATA_OFFSET + 1, ..wanted.clone() }),
            ("bytes", DiskStart { bytes: 0, ..wanted.clone() }),
            ("bytes", DiskStart { bytes: u64::MAX, ..wanted.clone() }),
            ("no block", DiskStart { bytes: 4096 * BLOCK, ..wanted.clone() }),
            ("interval_ms", DiskStart { interval_ms: u64::MAX, ..wanted.clone() }),
            ("/nonexistent", DiskStart { device: "/nonexistent".into(), ..wanted.clone() }),
            ("/dev/null", DiskStart { device: "/dev/null".into(), ..wanted.clone() }),
        ];
        for (word, wanted) in bad {
            let error = Disk::start(&wanted).err().unwrap();
            assert!(error.contains(word), "{error}");
        }
    }
}
