//! What an image consists of, block by block. The digest of a manifest's bytes is the content root of the image: whoever
//! has the root can tell a true block from a false one, wherever it comes from.
//!
//! Blocks have a fixed length that begins at the cluster of a qcow2 file and grows with the file, so that a manifest
//! stays small. What may not happen here: reading files.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, CodecError},
    ids::Digest,
};

/// Shortest length of a block, bytes: the cluster of a qcow2 file where nobody says otherwise.
pub const BLOCK_MIN: u32 = 64 << 10;
/// Most blocks of one file: longer files have longer blocks.
pub const BLOCKS_MAX: u64 = 1 << 18;
/// Most files of one image.
pub const FILES_MAX: usize = 16;
/// Longest file of an image, bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 40;
/// Longest manifest, bytes.
pub const MANIFEST_MAX: usize = (BLOCKS_MAX as usize) * 2 * 32 + (64 << 10);

/// All files of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Sorted by name.
    pub files: Vec<FileBlocks>,
}

/// One file, and the digest of each of its blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileBlocks {
    /// Its name in the folder of the image, without a path.
    pub name: String,
    /// Permission bits; keys are for their owner alone.
    pub mode: u32,
    /// Length in bytes.
    pub length: u64,
    /// Digests of its blocks, in order; the last block may be shorter than the others.
    pub digests: Vec<Digest>,
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not the bytes that were meant.
    #[error("the manifest does not have the digest {0}")]
    Root(Digest),
    /// Not decodable.
    #[error("the manifest is not readable")]
    Codec(#[from] CodecError),
    /// Against the rules above.
    #[error("the manifest is not usable: {0}")]
    Shape(String),
}

/// The length of the blocks of a file of that length, bytes.
pub fn block_bytes(length: u64) -> u32 {
    let mut block = BLOCK_MIN;
    while length.div_ceil(u64::from(block)) > BLOCKS_MAX && block < 1 << 30 {
        block *= 2;
    }
    block
}

/// Where a block of a file of that length begins and how long it is, bytes; `None` past the end.
pub fn place(file_length: u64, index: u32) -> Option<(u64, u32)> {
    let block = u64::from(block_bytes(file_length));
    let begin = u64::from(index) * block;
    let length = file_length.checked_sub(begin).filter(|left| *left > 0)?.min(block);
    // A block is at most 1 GiB.
    Some((begin, u32::try_from(length).ok()?))
}

/// Where a run of blocks (first, and how many) of a file of that length begins and how long it is, bytes; `None` where it
/// has none, or one past the end.
pub fn span(file_length: u64, (first, count): (u32, u32)) -> Option<(u64, u64)> {
    let last = first.checked_add(count.checked_sub(1)?)?;
    let ((begin, _), (end, length)) = (place(file_length, first)?, place(file_length, last)?);
    Some((begin, end + u64::from(length) - begin))
}

/// How many bytes runs of blocks of a file of that length have together; `None` as of [`span`].
pub fn bytes_of(file_length: u64, runs: &[(u32, u32)]) -> Option<u64> {
    runs.iter().try_fold(0u64, |sum, run| sum.checked_add(span(file_length, *run)?.1))
}

impl FileBlocks {
    /// The length of its blocks, bytes.
    pub fn block(&self) -> u32 {
        block_bytes(self.length)
    }

    /// Where a block begins and how long it is, bytes; `None` past the end.
    pub fn place(&self, index: u32) -> Option<(u64, u32)> {
        place(self.length, index)
    }
}

impl Manifest {
    /// Its bytes, as they are kept and sent, and their digest: the content root.
    ///
    /// # Errors
    /// It is longer than a manifest may be.
    pub fn encode(&self) -> Result<(Vec<u8>, Digest), CodecError> {
        let bytes = codec::encode_wire(self, MANIFEST_MAX)?;
        let root = Digest::of(&bytes);
        Ok((bytes, root))
    }

    /// Reads the manifest with that root.
    ///
    /// # Errors
    /// The bytes are others, or describe what no image of ours has.
    pub fn decode(bytes: &[u8], root: Digest) -> Result<Self, ManifestError> {
        if Digest::of(bytes) != root {
            return Err(ManifestError::Root(root));
        }
        let manifest: Self = codec::decode_wire(bytes, MANIFEST_MAX)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let shape = |text: String| Err(ManifestError::Shape(text));
        if self.files.is_empty() || self.files.len() > FILES_MAX {
            return shape(format!("it names {} files", self.files.len()));
        }
        let mut names = BTreeSet::new();
        for file in &self.files {
            if !plain(&file.name) || !names.insert(&file.name) {
                return shape(format!("it names a file {:?}", file.name));
            }
            let blocks = file.length.div_ceil(u64::from(file.block()));
            if file.length > FILE_BYTES_MAX || file.digests.len() as u64 != blocks {
                let given = file.digests.len();
                return shape(format!("{} of {} bytes has {given} blocks, not {blocks}", file.name, file.length));
            }
        }
        Ok(())
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.length).sum()
    }
}

/// Whether a file of that name lies in the folder itself, and is none of the daemon's own.
pub fn plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && !name.contains(['/', '\0']) && name != FILE
}

/// Name of the manifest's file in the folder of an image.
pub const FILE: &str = "manifest";

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, length: u64) -> FileBlocks {
        let blocks = length.div_ceil(u64::from(block_bytes(length)));
        let digests = (0..blocks).map(|n| Digest::of(&n.to_le_bytes())).collect();
        FileBlocks { name: name.into(), mode: 0o644, length, digests }
    }

    #[test]
    fn a_block_grows_with_the_file_and_the_manifest_does_not() {
        assert_eq!(block_bytes(0), BLOCK_MIN);
        assert_eq!(block_bytes(16 << 30), BLOCK_MIN);
        assert_eq!(block_bytes((16 << 30) + 1), 2 * BLOCK_MIN);
        for length in [1, 4 << 30, 1 << 40, FILE_BYTES_MAX] {
            assert!(length.div_ceil(u64::from(block_bytes(length))) <= BLOCKS_MAX, "{length}");
        }
    }

    #[test]
    fn a_block_has_its_place_and_the_last_is_short() {
        let disk = file("disk", 2 * u64::from(BLOCK_MIN) + 5);
        assert_eq!(disk.place(0), Some((0, BLOCK_MIN)));
        assert_eq!(disk.place(2), Some((2 * u64::from(BLOCK_MIN), 5)));
        assert_eq!((disk.place(3), disk.place(u32::MAX)), (None, None));
        assert_eq!(bytes_of(disk.length, &[(0, 1), (2, 1)]), Some(u64::from(BLOCK_MIN) + 5));
        assert_eq!(span(disk.length, (1, 2)), Some((u64::from(BLOCK_MIN), u64::from(BLOCK_MIN) + 5)));
        for runs in [&[(0, 0)][..], &[(2, 2)], &[(u32::MAX, 2)], &[(3, 1)]] {
            assert_eq!(bytes_of(disk.length, runs), None, "{runs:?}");
        }
    }

    #[test]
    fn a_manifest_comes_back_and_a_false_one_does_not() {
        let good = Manifest { files: vec![file("disk.qcow2", 200_000), file("image.json", 3)] };
        let (bytes, root) = good.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes, root).unwrap(), good);
        assert_eq!(Manifest::decode(&bytes, Digest::of(b"x")), Err(ManifestError::Root(Digest::of(b"x"))));
        type Change = fn(&mut Manifest);
        let changes: [Change; 6] = [
            |m| m.files[0].name = "../disk".into(),
            |m| m.files[0].name = ".hidden".into(),
            |m| m.files[0].name = FILE.into(),
            |m| m.files[0].name = m.files[1].name.clone(),
            |m| m.files[0].length = u64::MAX,
            |m| m.files.clear(),
        ];
        for (at, change) in changes.iter().enumerate() {
            let mut bad = good.clone();
            change(&mut bad);
            let (bytes, root) = bad.encode().unwrap();
            assert!(matches!(Manifest::decode(&bytes, root), Err(ManifestError::Shape(_))), "{at}");
        }
        let cut = &bytes[..bytes.len() - 1];
        assert!(matches!(Manifest::decode(cut, Digest::of(cut)), Err(ManifestError::Codec(_))));
    }
}
