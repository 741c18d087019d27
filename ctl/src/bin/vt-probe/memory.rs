//! The memory probe: pages with a pattern that follows from seed, number and generation, rewritten all the time.
//!
//! The generation of each page is kept in a table of its own, so a page that fell back to an earlier, whole state is
//! found as well as a flipped bit. A page is verified before it is rewritten, and what is found is never forgotten:
//! the rewriting cannot wipe the traces away.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use vt_protocol::probe::{FINDINGS_MAX, Finding, MemReport, MemStart, PAGE_BYTES, PAGES_MAX, Pattern};

/// Pages verified under one hold of the lock, so that the writer is never shut out for long.
const BATCH: usize = 64;
/// The writer makes up for a standstill of at most this long.
const CATCH_UP: Duration = Duration::from_millis(100);
/// How long the writer sleeps when it is ahead of its rate.
const NAP: Duration = Duration::from_millis(5);

struct Pages {
    /// The pages, one after the other, with room in front to begin on a page boundary.
    bytes: Vec<u8>,
    start: usize,
    generations: Vec<u64>,
    pattern: Pattern,
    rewritten: u64,
    bad: BTreeMap<u32, Finding>,
}

impl Pages {
    fn new(pages: u32, seed: u64) -> Self {
        // Zeroed pages come from the kernel untouched: they are written once, by the pattern.
        let bytes = vec![0; (pages as usize + 1) * PAGE_BYTES];
        let start = bytes.as_ptr().align_offset(PAGE_BYTES);
        let start = if start > PAGE_BYTES { 0 } else { start };
        let mut made = Self {
            bytes,
            start,
            generations: vec![1; pages as usize],
            pattern: Pattern::new(seed),
            rewritten: 0,
            bad: BTreeMap::new(),
        };
        for page in 0..pages {
            made.write(page, 1);
        }
        made
    }

    fn count(&self) -> u32 {
        u32::try_from(self.generations.len()).unwrap_or(u32::MAX)
    }

    fn at(&self, page: u32) -> usize {
        self.start + page as usize * PAGE_BYTES
    }

    fn write(&mut self, page: u32, generation: u64) {
        let at = self.at(page);
        self.pattern.fill(&mut self.bytes[at..at + PAGE_BYTES], page, generation);
    }

    fn verify(&mut self, page: u32) {
        let at = self.at(page);
        let generation = self.generations[page as usize];
        if let Some(finding) = self.pattern.check(&self.bytes[at..at + PAGE_BYTES], page, generation) {
            self.bad.entry(page).or_insert(finding);
        }
    }

    fn rewrite(&mut self, page: u32) {
        self.verify(page);
        let generation = self.generations[page as usize] + 1;
        self.write(page, generation);
        self.generations[page as usize] = generation;
        self.rewritten += 1;
    }
}

/// A running memory probe; dropping it ends the writer and frees the pages.
pub(crate) struct Memory {
    pages: Arc<Mutex<Pages>>,
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
    started: Instant,
}

impl Memory {
    /// Fills the pages and starts the writer.
    pub(crate) fn start(wanted: &MemStart) -> Result<Self, String> {
        if wanted.pages == 0 || wanted.pages > PAGES_MAX {
            return Err(format!("pages: {} is not in 1 to {PAGES_MAX}", wanted.pages));
        }
        let bytes = u64::from(wanted.pages) * PAGE_BYTES as u64;
        if let Some(free) = crate::identity::memory_available().filter(|free| bytes > free / 10 * 9) {
            return Err(format!("pages: {bytes} bytes wanted, {free} bytes of memory available"));
        }
        let pages = Arc::new(Mutex::new(Pages::new(wanted.pages, wanted.seed)));
        let stop = Arc::new(AtomicBool::new(false));
        let writer = match wanted.rewrite_bytes_per_second {
            0 => None,
            rate => {
                let (pages, stop) = (Arc::clone(&pages), Arc::clone(&stop));
                let writer = thread::Builder::new().name("memory".into());
                Some(writer.spawn(move || write(&pages, &stop, rate)).map_err(|error| error.to_string())?)
            }
        };
        Ok(Self { pages, stop, writer, started: Instant::now() })
    }

    /// Verifies every page.
    pub(crate) fn check(&self) -> MemReport {
        let (count, seed) = {
            let pages = lock(&self.pages);
            (pages.count(), pages.pattern.seed())
        };
        for first in (0..count).step_by(BATCH) {
            let mut pages = lock(&self.pages);
            for page in first..count.min(first.saturating_add(BATCH as u32)) {
                pages.verify(page);
            }
        }
        let pages = lock(&self.pages);
        MemReport {
            seed,
            pages_checked: count,
            pages_rewritten: pages.rewritten,
            running_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            bad_pages: u32::try_from(pages.bad.len()).unwrap_or(u32::MAX),
            findings: pages.bad.values().take(FINDINGS_MAX).cloned().collect(),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing to hand back.
            let _ = writer.join();
        }
    }
}

fn write(pages: &Mutex<Pages>, stop: &AtomicBool, bytes_per_second: u64) {
    let count = lock(pages).count();
    let per_page = Duration::from_secs_f64(PAGE_BYTES as f64 / bytes_per_second as f64);
    let mut due = Instant::now();
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if due > now {
            thread::sleep((due - now).clamp(Duration::from_micros(100), NAP));
            continue;
        }
        due = due.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + per_page;
        lock(pages).rewrite(next);
        next = (next + 1) % count;
    }
}

fn lock(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use vt_protocol::probe::Damage;

    use super::*;

    impl Pages {
        fn page_mut(&mut self, page: u32) -> &mut [u8] {
            let at = self.at(page);
            &mut self.bytes[at..at + PAGE_BYTES]
        }
    }

    fn probe(pages: u32, rate: u64) -> Memory {
        Memory::start(&MemStart { pages, seed: 42, rewrite_bytes_per_second: rate }).unwrap()
    }

    fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ready() {
            assert!(Instant::now() < deadline, "waited 20 s for {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn unhurt_pages_are_found_whole_while_they_are_rewritten() {
        let memory = probe(100, 50_000_000);
        wait_for("every page to be rewritten", || memory.check().pages_rewritten > 200);
        let report = memory.check();
        assert_eq!((report.pages_checked, report.bad_pages), (100, 0), "{:?}", report.findings);
    }

    #[test]
    fn a_damaged_page_is_told_every_time_although_it_was_rewritten() {
        let memory = probe(10, 0);
        lock(&memory.pages).page_mut(4)[1000] ^= 0x10;
        lock(&memory.pages).rewrite(4);
        lock(&memory.pages).page_mut(7)[0] ^= 1;
        for _ in 0..3 {
            let report = memory.check();
            assert_eq!(report.bad_pages, 2);
            let found: Vec<_> = report.findings.iter().map(|f| (f.index, f.damage, f.offset)).collect();
            assert_eq!(found, [(4, Damage::Changed, 1000), (7, Damage::Changed, 0)]);
        }
    }

    #[test]
    fn a_lost_update_of_a_page_is_found() {
        let memory = probe(3, 0);
        let old = lock(&memory.pages).page_mut(1).to_vec();
        lock(&memory.pages).rewrite(1);
        lock(&memory.pages).page_mut(1).copy_from_slice(&old);
        let report = memory.check();
        assert_eq!(report.findings.len(), 1);
        let finding = &report.findings[0];
        assert_eq!((finding.damage, finding.expected, finding.found), (Damage::Stale, 2, 1));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for pages in [0, PAGES_MAX + 1, u32::MAX] {
            assert!(Memory::start(&MemStart { pages, seed: 0, rewrite_bytes_per_second: 1 }).is_err());
        }
    }
}
