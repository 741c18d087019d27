//! A disk whose power may fail: what was synced is there, of what was only written any part may be.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng, rngs::StdRng};

/// Whether a disk keeps what it said it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Honesty {
    /// It does.
    Honest,
    /// From some moment on it says that it has synced and has not: the broken store that a run must catch.
    Lying,
}

/// A file.
#[derive(Debug, Default)]
struct File {
    /// What would be there after a power failure, for certain.
    synced: Vec<u8>,
    /// What is read.
    live: Vec<u8>,
    /// Writes since the last sync, in order.
    pending: Vec<Pending>,
}

#[derive(Debug, Default)]
struct Platter {
    files: [File; FILES],
    /// Goes up at every power failure: older handles reach nothing any more.
    generation: u64,
    lies: bool,
    /// How long a write waits.
    latency: Duration,
    /// What every write is refused with.
    refuses: Option<io::ErrorKind>,
    /// So many more operations, and the power fails; and what decides what that leaves.
    fuse: Option<(u64, StdRng)>,
}

#[derive(Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// A disk. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<Platter>>);

/// The files of a store: vote and snapshot, and the log.
const FILES: usize = 2;
/// A disk is written in pieces of this many bytes; a piece is written whole or not at all.
const SECTOR: usize = 512;

impl Disk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a program that is started now has of the disk: a handle to each file.
    pub fn open(&self) -> [Handle; FILES] {
        let generation = self.platter().generation;
        std::array::from_fn(|file| Handle { disk: self.clone(), file, generation })
    }

    /// From now on syncs do nothing.
    pub fn begin_to_lie(&self) {
        self.platter().lies = true;
    }

    /// From now on writes are refused with that, or no more.
    pub fn refuse(&self, with: Option<io::ErrorKind>) {
        self.platter().refuses = with;
    }

    /// From now on each write waits so long before it is done.
    pub fn slow_down(&self, to: Duration) {
        self.platter().latency = to;
    }

    /// How long a write waits.
    pub fn latency(&self) -> Duration {
        self.platter().latency
    }

    /// Whether writes are refused.
    pub fn refuses(&self) -> bool {
        self.platter().refuses.is_some()
    }

    /// The power fails after so many more writes and syncs.
    pub fn fail_after(&self, operations: u64, rng: StdRng) {
        self.platter().fuse = Some((operations, rng));
    }

    /// Its program is ended and the machine goes on: older handles are dead, and nothing is lost.
    pub fn program_ended(&self) {
        self.platter().generation += 1;
    }

    /// The power fails: handles are dead, and of unsynced writes some sectors are there and some are not.
    pub fn power_failure(&self, rng: &mut StdRng) {
        self.platter().power_failure(rng);
    }
}

impl Platter {
    fn power_failure(&mut self, rng: &mut StdRng) {
        self.generation += 1;
        for file in &mut self.files {
            // Each sector for itself: what becomes of one must not hang on the order of others.
            file.power_failure(self.lies, rng.random());
        }
    }

    /// Counts an operation down to a power failure.
    fn burn(&mut self) {
        match self.fuse.take() {
            Some((0, mut rng)) => self.power_failure(&mut rng),
            Some((left, rng)) => self.fuse = Some((left - 1, rng)),
            None => {}
        }
    }
}

impl File {
    fn power_failure(&mut self, lies: bool, chances: u64) {
        let mut times: std::collections::BTreeMap<usize, u64> = std::collections::BTreeMap::new();
        let mut kept = std::mem::take(&mut self.synced);
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Length(len) => kept.resize(kept.len().max(len), 0),
                Pending::Write(at, bytes) => {
                    for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                        let from = at + i * SECTOR;
                        let time = times.entry(from).or_default();
                        *time += 1;
                        if lies || is_lost(chances, from, *time) {
                            continue;
                        }
                        if kept.len() < from + sector.len() {
                            kept.resize(from + sector.len(), 0);
                        }
                        kept[from..from + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
        self.live.clone_from(&kept);
        self.synced = kept;
    }

    fn sync(&mut self) {
        let Self { synced, live, pending } = self;
        // The same as copying all that is read, but only what changed.
        for change in pending.drain(..) {
            match change {
                Pending::Length(len) => synced.resize(len, 0),
                Pending::Write(at, bytes) => {
                    if synced.len() < at + bytes.len() {
                        synced.resize(at + bytes.len(), 0);
                    }
                    synced[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        debug_assert_eq!(synced.len(), live.len());
    }
}

/// Whether a write of a sector is lost, the how manieth to it since the last sync.
fn is_lost(chances: u64, sector: usize, time: u64) -> bool {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&chances.to_le_bytes()).update(&sector.to_le_bytes()).update(&time.to_le_bytes());
    hasher.finalize().as_bytes()[0] & 1 == 0
}

/// A program's access to a disk, until the power fails.
#[derive(Debug)]
pub struct Handle {
    disk: Disk,
    file: usize,
    generation: u64,
}

impl Handle {
    fn platter(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.disk.platter();
        if platter.generation == self.generation { Ok(platter) } else { Err(io::Error::other("the power has failed")) }
    }

    fn writable(&self) -> io::Result<MutexGuard<'_, Platter>> {
        self.disk.platter().burn();
        let platter = self.platter()?;
        platter.refuses.map_or(Ok(platter), |refused| Err(refused.into()))
    }
}

impl redb::StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter()?.files[self.file].live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter()?;
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = platter.files[self.file].live.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.writable()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let file = &mut platter.files[self.file];
        file.live.resize(len, 0);
        file.pending.push(Pending::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.platter().burn();
        let mut platter = self.platter()?;
        if !platter.lies {
            platter.files[self.file].sync();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.writable()?;
        let file = &mut platter.files[self.file];
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let end = at + data.len();
        if file.live.len() < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.live[at..end].copy_from_slice(data);
        file.pending.push(Pending::Write(at, data.to_vec()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use redb::StorageBackend;

    use super::*;

    #[test]
    fn what_was_synced_is_there_and_old_handles_are_dead() {
        let disk = Disk::default();
        let [handle, _] = disk.open();
        handle.set_len(4096).unwrap();
        handle.write(0, &[1; 512]).unwrap();
        handle.sync_data().unwrap();
        handle.write(512, &[2; 1024]).unwrap();
        disk.power_failure(&mut StdRng::seed_from_u64(1));
        assert!(handle.write(0, &[3]).is_err());
        let mut found = [0; 1536];
        disk.open()[0].read(0, &mut found).unwrap();
        assert!(found[..512].iter().all(|b| *b == 1));
        for sector in found[512..].chunks(512) {
            assert!(sector.iter().all(|b| *b == sector[0]) && [0, 2].contains(&sector[0]));
        }
    }

    #[test]
    fn a_lying_disk_forgets() {
        let disk = Disk::default();
        disk.begin_to_lie();
        let [handle, _] = disk.open();
        handle.set_len(512).unwrap();
        handle.write(0, &[1; 512]).unwrap();
        handle.sync_data().unwrap();
        disk.power_failure(&mut StdRng::seed_from_u64(1));
        let mut found = [9; 512];
        disk.open()[0].read(0, &mut found).unwrap();
        assert_eq!(found, [0; 512]);
    }
}
