//! Images that are on their way to several hosts at once: each gives the others what it has already, so that who has
//! the whole image sends most blocks once.
//!
//! A host that takes an image says in the catalogue that it does, which is how the others find it; what it has it is
//! asked for again and again, as one bit a block. What may not happen here: a block that was not compared with its
//! digest before it is given on.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vt_protocol::{
    ids::Digest,
    manifest::{self, FileBlocks, Manifest},
};

/// Which blocks of an image are there: a bit a block, for each file in the manifest's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks(Vec<Vec<u8>>);

impl Blocks {
    /// None of them.
    pub(super) fn none(manifest: &Manifest) -> Self {
        Self(manifest.files.iter().map(|file| vec![0; bytes_for(file)]).collect())
    }

    /// All of them.
    pub(super) fn all(manifest: &Manifest) -> Self {
        Self(manifest.files.iter().map(|file| vec![0xff; bytes_for(file)]).collect())
    }

    pub(super) fn add(&mut self, file: usize, block: u32) {
        if let Some(byte) = self.0.get_mut(file).and_then(|bits| bits.get_mut(block as usize / 8)) {
            *byte |= 1 << (block % 8);
        }
    }

    pub(super) fn has(&self, file: usize, block: u32) -> bool {
        let byte = self.0.get(file).and_then(|bits| bits.get(block as usize / 8));
        byte.is_some_and(|byte| byte >> (block % 8) & 1 == 1)
    }

    /// As it is sent.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.concat()
    }

    /// As it was sent; `None` where it is of another image.
    pub(super) fn of_bytes(manifest: &Manifest, bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut all = Vec::new();
        for file in &manifest.files {
            let (bits, after) = rest.split_at_checked(bytes_for(file))?;
            all.push(bits.to_vec());
            rest = after;
        }
        rest.is_empty().then_some(Self(all))
    }
}

fn bytes_for(file: &FileBlocks) -> usize {
    file.digests.len().div_ceil(8)
}

/// An image that is on its way to this host.
#[derive(Debug)]
pub(super) struct Coming {
    manifest: Arc<Manifest>,
    folder: PathBuf,
    blocks: Mutex<Blocks>,
}

impl Coming {
    pub(super) fn blocks(&self) -> MutexGuard<'_, Blocks> {
        // Nothing panics while it holds the lock.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file of it and its length, where all these blocks of it are here.
    pub(super) fn open(&self, file: u16, runs: &[(u32, u32)]) -> Option<(File, u64)> {
        let wanted = self.manifest.files.get(usize::from(file))?;
        manifest::bytes_of(wanted.length, runs)?;
        let here = {
            let blocks = self.blocks();
            let mut all = runs.iter().flat_map(|(first, count)| *first..first.saturating_add(*count));
            all.all(|block| blocks.has(usize::from(file), block))
        };
        let opened = here.then(|| File::open(self.folder.join(&wanted.name)).ok()).flatten()?;
        Some((opened, wanted.length))
    }
}

/// All images that are on their way to this host, by their content roots.
#[derive(Debug, Clone, Default)]
pub(crate) struct Swarm(Arc<Mutex<BTreeMap<Digest, Arc<Coming>>>>);

/// Takes it out of the swarm when it is dropped.
pub(super) struct Joined {
    swarm: Swarm,
    root: Digest,
    pub(super) coming: Arc<Coming>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.swarm.all().remove(&self.root);
    }
}

impl Swarm {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Coming>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on others are given what has come.
    pub(super) fn join(&self, root: Digest, manifest: &Arc<Manifest>, folder: &Path) -> Joined {
        let blocks = Mutex::new(Blocks::none(manifest));
        let coming = Arc::new(Coming { manifest: Arc::clone(manifest), folder: folder.to_owned(), blocks });
        self.all().insert(root, Arc::clone(&coming));
        Joined { swarm: self.clone(), root, coming }
    }

    pub(super) fn coming(&self, root: Digest) -> Option<Arc<Coming>> {
        self.all().get(&root).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |name: &str, blocks: u64| FileBlocks {
            name: name.into(),
            mode: 0o644,
            length: blocks << 16,
            digests: vec![Digest::of(b"x"); blocks as usize],
        };
        Manifest { files: vec![file("a", 3), file("b", 17)] }
    }

    #[test]
    fn what_is_here_is_told_and_understood() {
        let manifest = manifest();
        let mut blocks = Blocks::none(&manifest);
        blocks.add(1, 16);
        blocks.add(0, 2);
        blocks.add(0, 900);
        blocks.add(9, 0);
        let read = Blocks::of_bytes(&manifest, &blocks.bytes()).unwrap();
        assert_eq!(read, blocks);
        assert!(read.has(1, 16) && read.has(0, 2) && !read.has(0, 1) && !read.has(1, 15) && !read.has(9, 0));
        assert_eq!(Blocks::of_bytes(&manifest, &[0; 3]), None);
        assert_eq!(Blocks::of_bytes(&manifest, &[0; 5]), None);
    }

    #[test]
    fn only_blocks_that_have_come_are_given_and_nothing_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b"), b"").unwrap();
        let (swarm, root) = (Swarm::default(), Digest::of(b"root"));
        let joined = swarm.join(root, &Arc::new(manifest()), dir.path());
        joined.coming.blocks().add(1, 4);
        joined.coming.blocks().add(1, 5);
        let coming = swarm.coming(root).unwrap();
        assert!(coming.open(1, &[(4, 2)]).is_some());
        assert!(coming.open(1, &[(4, 3)]).is_none());
        assert!(coming.open(1, &[(4, 1), (90, 1)]).is_none());
        assert!(coming.open(7, &[(0, 1)]).is_none());
        drop(joined);
        assert!(swarm.coming(root).is_none(), "what has come, or was given up, is no longer on its way");
    }
}
