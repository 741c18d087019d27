//! Files as blocks with digests: read, compared, copied. What is zero is neither written nor, where the file system knows
//! of holes, read or hashed; where it can (XFS, Btrfs), a copy shares the blocks of what it was made of. Calls block on the
//! disk.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::unistd::{Whence, lseek};
use vt_protocol::{ids::Digest, manifest::block_bytes};

use super::written::Written;

/// Zeros to compare with: as long as the longest block that is compared in one go.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Whether there are only zeros.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|piece| *piece == ZEROS[..piece.len()])
}

/// Digests of blocks, of which those of zeros are known beforehand.
#[derive(Debug)]
pub(super) struct Hasher {
    zeros: Vec<u8>,
    zero: Digest,
}

impl Hasher {
    /// For blocks of that length, bytes.
    pub(super) fn new(block: u32) -> Self {
        let zeros = vec![0; block as usize];
        Self { zero: Digest::of(&zeros), zeros }
    }

    /// The digest of a block, and whether it is all zeros.
    fn digest(&self, bytes: &[u8]) -> (Digest, bool) {
        if is_zero(bytes) { (self.hole(bytes.len()).1, true) } else { (Digest::of(bytes), false) }
    }

    /// A block of so many zeros, at most as many as a block has, and its digest.
    pub(super) fn hole(&self, count: usize) -> (&[u8], Digest) {
        let zeros = &self.zeros[..count];
        (zeros, if count == self.zeros.len() { self.zero } else { Digest::of(zeros) })
    }
}

/// Reads a file block by block. `each` gets number, bytes, digest, and whether there are only zeros.
///
/// # Errors
/// The file cannot be read or ends early, or `each` fails.
pub(super) fn read(
    file: &File,
    length: u64,
    done: &AtomicU64,
    mut each: impl FnMut(u32, &[u8], Digest, bool) -> io::Result<()>,
) -> io::Result<()> {
    if file.metadata()?.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let block = block_bytes(length);
    let hasher = Hasher::new(block);
    let mut buffer = vec![0; block as usize];
    let mut data_from = 0;
    for index in 0..length.div_ceil(u64::from(block)) {
        let begin = index * u64::from(block);
        let count = usize::try_from((length - begin).min(u64::from(block))).unwrap_or(buffer.len());
        if data_from < begin + count as u64 {
            data_from = data_from.max(next_data(file, begin, length));
        }
        if data_from >= begin + count as u64 {
            let (zeros, digest) = hasher.hole(count);
            each(index as u32, zeros, digest, true)?;
        } else {
            let bytes = &mut buffer[..count];
            file.read_exact_at(bytes, begin)?;
            let (digest, zero) = hasher.digest(bytes);
            each(index as u32, bytes, digest, zero)?;
        }
        done.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Where data begins at or after `from`: before it there are only holes. `from` where the file system does not tell.
fn next_data(file: &File, from: u64, length: u64) -> u64 {
    let Ok(offset) = i64::try_from(from) else { return from };
    match lseek(file, offset, Whence::SeekData) {
        Ok(data) => u64::try_from(data).unwrap_or(from),
        Err(nix::errno::Errno::ENXIO) => length,
        Err(_) => from,
    }
}

/// The digests of all blocks of a file.
///
/// # Errors
/// It cannot be read or is shorter than `length`.
pub(super) fn digests(file: &File, length: u64, done: &AtomicU64) -> io::Result<Vec<Digest>> {
    let mut digests = Vec::new();
    read(file, length, done, |_, _, digest, _| {
        digests.push(digest);
        Ok(())
    })?;
    Ok(digests)
}

/// Has an empty file share all blocks of another one, where the file system can; whether it did. It is empty otherwise.
///
/// # Errors
/// It is not empty again.
pub(super) fn shares(from: &File, to: &File) -> io::Result<bool> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(true);
    }
    // Another file system, one that cannot, no room: all the same, it is to be copied.
    to.set_len(0).map(|()| false)
}

/// Copies a file without its zeros into an empty one, which is open for both ways, and tells the digests of its blocks. `also` sees all bytes in order.
///
/// # Errors
/// One cannot be read, or the other not be written.
pub(super) fn copy(
    from: &File,
    to: File,
    length: u64,
    done: &AtomicU64,
    mut also: impl FnMut(&[u8]),
) -> io::Result<Vec<Digest>> {
    let mut digests = Vec::new();
    if shares(from, &to)? && to.metadata()?.len() == length {
        // What is described is the copy: the other may be written to meanwhile.
        read(&to, length, done, |_, bytes, digest, _| {
            also(bytes);
            digests.push(digest);
            Ok(())
        })?;
        to.sync_all()?;
        return Ok(digests);
    }
    to.set_len(0).and_then(|()| to.set_len(length))?;
    let to = Written::new(to);
    let block = u64::from(block_bytes(length));
    read(from, length, done, |index, bytes, digest, zero| {
        also(bytes);
        digests.push(digest);
        if zero { Ok(()) } else { to.write_all_at(bytes, u64::from(index) * block) }
    })?;
    to.finish()?;
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_the_digests_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let length = (8 << 20) + 77;
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let source = File::options().create_new(true).read(true).write(true).open(&from).unwrap();
        source.set_len(length).unwrap();
        source.write_all_at(b"hello", 3 << 20).unwrap();
        source.write_all_at(b"end", length - 3).unwrap();
        let goal = File::options().create_new(true).read(true).write(true).open(&to).unwrap();
        let done = AtomicU64::new(0);
        let mut whole = blake3::Hasher::new();
        let digests = copy(&source, goal.try_clone().unwrap(), length, &done, |bytes| {
            whole.update(bytes);
        })
        .unwrap();
        let bytes = std::fs::read(&to).unwrap();
        assert!(bytes == std::fs::read(&from).unwrap());
        assert_eq!(whole.finalize(), blake3::hash(&bytes), "holes count as zeros");
        let wanted: Vec<Digest> = bytes.chunks(64 << 10).map(Digest::of).collect();
        assert_eq!(digests, wanted);
        assert_eq!(super::digests(&goal, length, &done).unwrap(), wanted);
        assert_eq!(done.into_inner(), 2 * length);
        assert!(goal.metadata().unwrap().blocks() * 512 < 1 << 20, "zeros are not written");
    }

    #[test]
    fn a_file_that_is_shorter_than_it_should_be_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("short");
        for length in [100, 64 << 10] {
            std::fs::write(&path, vec![1; length]).unwrap();
            let error = digests(&File::open(&path).unwrap(), 200_000, &AtomicU64::new(0)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "what is not there is no hole");
        }
    }
}
