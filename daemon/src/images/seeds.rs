//! What of an image lies here already, so that it need not come: blocks of an older version, or of a damaged copy. What may
//! not happen here: a block that is believed to be what it was.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use vt_protocol::{
    ids::Digest,
    manifest::{self, MANIFEST_MAX, Manifest},
};

use super::blocks;

/// Blocks of what lies here under the image's name: an older version, or a damaged copy.
pub(super) struct Seeds {
    files: Vec<File>,
    /// Which of them has a block, and where.
    known: HashMap<Digest, (usize, u64)>,
    /// Which of them is called as a file of the new version, by its place.
    called: Vec<Option<usize>>,
}

impl Seeds {
    /// From a folder, which need not be there. What its manifest says is only a hint.
    pub(super) fn of(folder: &Path, new: &Manifest) -> Self {
        let (mut files, mut names, mut known) = (Vec::new(), Vec::new(), HashMap::new());
        let manifest = seeds_manifest(&folder.join(manifest::FILE));
        for file in manifest.into_iter().flat_map(|manifest| manifest.files) {
            let Ok(opened) = File::open(folder.join(&file.name)) else { continue };
            for (index, digest) in (0..).zip(&file.digests) {
                if let Some((begin, _)) = file.place(index) {
                    known.entry(*digest).or_insert((files.len(), begin));
                }
            }
            files.push(opened);
            names.push(file.name);
        }
        let called = new.files.iter().map(|file| names.iter().position(|name| *name == file.name)).collect();
        Self { files, known, called }
    }

    /// Has an empty file, at a place of the new version, begin as the one that is called so here, where that costs no room.
    pub(super) fn share(&self, number: usize, goal: &File) -> io::Result<()> {
        match self.called.get(number).copied().flatten() {
            Some(file) => blocks::shares(&self.files[file], goal).map(drop),
            None => Ok(()),
        }
    }

    /// Writes the block with that digest into `goal`, the file at a place of the new version, where it is known here and
    /// still is what it was.
    pub(super) fn give(
        &self,
        number: usize,
        (begin, length): (u64, u32),
        digest: Digest,
        goal: &File,
    ) -> io::Result<bool> {
        let Some(known) = self.known.get(&digest) else { return Ok(false) };
        // The same place first: most of it has not moved.
        let same = self.called.get(number).copied().flatten().map(|file| (file, begin));
        for (file, from) in same.into_iter().chain([*known]) {
            let mut bytes = vec![0; length as usize];
            if self.files[file].read_exact_at(&mut bytes, from).is_ok() && Digest::of(&bytes) == digest {
                goal.write_all_at(&bytes, begin)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn seeds_manifest(path: &Path) -> Option<Manifest> {
    let bytes = fs::read(path).ok().filter(|bytes| bytes.len() <= MANIFEST_MAX)?;
    Manifest::decode(&bytes, Digest::of(&bytes)).ok()
}
