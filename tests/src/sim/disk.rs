//! A disk whose power may fail: what was synced is there, of what was only written any part may be.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

#[derive(Debug, Default)]
struct Platter {
    /// What would be there after a power failure, for certain.
    synced: Vec<u8>,
    /// What is read.
    live: Vec<u8>,
    /// Writes since the last sync, in order.
    pending: Vec<Pending>,
    /// Goes up at every power failure: older handles reach nothing any more.
    generation: u64,
    lies: bool,
    /// Nothing more can be written.
    full: bool,
}

#[derive(Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// A disk. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<Platter>>);

/// A disk is written in pieces of this many bytes; a piece is written whole or not at all.
const SECTOR: usize = 512;

impl Disk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a program that is started now has of the disk.
    pub fn open(&self) -> Handle {
        Handle { disk: self.clone(), generation: self.platter().generation }
    }

    /// From now on syncs do nothing.
    pub fn begin_to_lie(&self) {
        self.platter().lies = true;
    }

    /// From now on nothing can be written, or again.
    pub fn set_full(&self, full: bool) {
        self.platter().full = full;
    }

    /// Whether nothing can be written.
    pub fn is_full(&self) -> bool {
        self.platter().full
    }

    /// Its program is ended and the machine goes on: older handles are dead, and nothing is lost.
    pub fn program_ended(&self) {
        self.platter().generation += 1;
    }

    /// The power fails: handles are dead, and of unsynced writes some sectors are there and some are not.
    pub fn power_failure(&self, rng: &mut StdRng) {
        let mut platter = self.platter();
        platter.generation += 1;
        // Each sector for itself: what becomes of one must not hang on the order of others.
        let chances: u64 = rng.random();
        let mut times: std::collections::BTreeMap<usize, u64> = std::collections::BTreeMap::new();
        let mut kept = std::mem::take(&mut platter.synced);
        for pending in std::mem::take(&mut platter.pending) {
            match pending {
                Pending::Length(len) => kept.resize(kept.len().max(len), 0),
                Pending::Write(at, bytes) => {
                    for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                        let from = at + i * SECTOR;
                        let time = times.entry(from).or_default();
                        *time += 1;
                        if platter.lies || is_lost(chances, from, *time) {
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
        platter.live.clone_from(&kept);
        platter.synced = kept;
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
    generation: u64,
}

impl Handle {
    fn platter(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.disk.platter();
        if platter.generation == self.generation { Ok(platter) } else { Err(io::Error::other("the power has failed")) }
    }

    fn writable(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.platter()?;
        if platter.full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(platter) }
    }
}

impl redb::StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter()?.live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter()?;
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = platter.live.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.writable()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        platter.live.resize(len, 0);
        platter.pending.push(Pending::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter()?;
        if !platter.lies {
            let Platter { synced, live, pending, .. } = &mut *platter;
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
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.writable()?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let end = at + data.len();
        if platter.live.len() < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        platter.live[at..end].copy_from_slice(data);
        platter.pending.push(Pending::Write(at, data.to_vec()));
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
        let handle = disk.open();
        handle.set_len(4096).unwrap();
        handle.write(0, &[1; 512]).unwrap();
        handle.sync_data().unwrap();
        handle.write(512, &[2; 1024]).unwrap();
        disk.power_failure(&mut StdRng::seed_from_u64(1));
        assert!(handle.write(0, &[3]).is_err());
        let mut found = [0; 1536];
        disk.open().read(0, &mut found).unwrap();
        assert!(found[..512].iter().all(|b| *b == 1));
        for sector in found[512..].chunks(512) {
            assert!(sector.iter().all(|b| *b == sector[0]) && [0, 2].contains(&sector[0]));
        }
    }

    #[test]
    fn a_lying_disk_forgets() {
        let disk = Disk::default();
        disk.begin_to_lie();
        let handle = disk.open();
        handle.set_len(512).unwrap();
        handle.write(0, &[1; 512]).unwrap();
        handle.sync_data().unwrap();
        disk.power_failure(&mut StdRng::seed_from_u64(1));
        let mut found = [9; 512];
        disk.open().read(0, &mut found).unwrap();
        assert_eq!(found, [0; 512]);
    }
}
