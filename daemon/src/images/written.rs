//! A file that goes to the disk while it is written: at its end little is left to wait for, and what other programs of the
//! host write never stands behind all of it.
//!
//! What may not happen here: a write that the disk lost and nobody hears of. Each failure is told once by the system, so
//! it is kept until the file is finished.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Bytes that are written before the disk is made to take them.
const BATCH: u64 = 64 << 20;

/// Such a file, which several threads may write.
#[derive(Debug)]
pub(super) struct Written {
    file: Arc<File>,
    /// Bytes since the disk was last made to take what there was.
    since: AtomicU64,
    taking: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl Written {
    /// Nothing has been written yet.
    pub(super) fn new(file: File) -> Self {
        Self { file: Arc::new(file), since: AtomicU64::new(0), taking: Mutex::new(None) }
    }

    /// Writes at a place.
    ///
    /// # Errors
    /// That fails, or the disk did not take what came before.
    pub(super) fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)?;
        let count = bytes.len() as u64;
        if self.since.fetch_add(count, Ordering::Relaxed) + count < BATCH {
            return Ok(());
        }
        let mut taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if taking.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        ended(taking.take())?;
        self.since.store(0, Ordering::Relaxed);
        let file = Arc::clone(&self.file);
        *taking = Some(thread::Builder::new().name("to-disk".to_owned()).spawn(move || file.sync_data())?);
        Ok(())
    }

    /// Everything is on disk afterwards.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn finish(&self) -> io::Result<()> {
        ended(self.taking.lock().unwrap_or_else(PoisonError::into_inner).take())?;
        self.file.sync_all()
    }
}

fn ended(thread: Option<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    let panicked = |_| Err(io::Error::other("what was written may not be on disk"));
    thread.map_or(Ok(()), |thread| thread.join().unwrap_or_else(panicked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_batch_is_written_and_a_disk_that_fails_is_heard_of() {
        let file = tempfile::tempfile().unwrap();
        let written = Written::new(file.try_clone().unwrap());
        let piece = vec![7; 1 << 20];
        for at in 0..=2 * (BATCH >> 20) {
            written.write_all_at(&piece, at << 20).unwrap();
        }
        assert!(written.taking.lock().unwrap().is_some(), "the disk was made to take some of it");
        written.finish().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 2 * BATCH + (1 << 20));

        let failed = Written::new(file);
        *failed.taking.lock().unwrap() = Some(thread::spawn(|| Err(io::ErrorKind::StorageFull.into())));
        assert_eq!(failed.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
