//! Content-addressed blobs of this host: plans of jobs, by BLAKE3 digest.
//!
//! A blob is written beside its place, synced, and renamed, so that a name always stands for whole content; what is
//! read is compared with its name. Which blobs are wanted is the caller's knowledge: [`BlobStore::sweep`] is told.

use std::{
    collections::BTreeSet,
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Digest,
    job::PLAN_MAX,
};

/// Why a blob was not stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It is larger than a plan may be.
    #[error("a blob of {0} bytes is larger than {PLAN_MAX}")]
    TooLarge(u64),
    /// The bytes are not those of the digest they came with.
    #[error("the bytes do not have the digest {0}")]
    Mismatch(Digest),
    /// The file system failed.
    #[error("the blob {path} cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<BlobError> for Report {
    fn from(error: BlobError) -> Self {
        let code = match &error {
            BlobError::TooLarge(_) => ErrorCode::TooLarge,
            BlobError::Mismatch(_) => ErrorCode::StorageFailed,
            BlobError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorCode::DiskFull,
            BlobError::Io { .. } => ErrorCode::StorageFailed,
        };
        Self::new(code, error.to_string()).caused_by(&error)
    }
}

/// The blobs in one directory. Calls block on the disk.
#[derive(Debug, Clone)]
pub struct BlobStore {
    directory: PathBuf,
}

impl BlobStore {
    /// Opens the directory, making it where it is missing; leftovers of a crash are removed.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, BlobError> {
        let directory = directory.into();
        let failed = |source| BlobError::Io { path: directory.clone(), source };
        fs::create_dir_all(&directory).map_err(failed)?;
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(".new-") {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { directory })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.directory.join(digest.to_string())
    }

    /// Stores `bytes` on disk; storing them twice is storing them once.
    ///
    /// # Errors
    /// They are too large, or the disk fails; nothing is left behind then.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        if bytes.len() > PLAN_MAX {
            return Err(BlobError::TooLarge(bytes.len() as u64));
        }
        let digest = Digest::of(bytes);
        let path = self.path(digest);
        if path.exists() && self.get(digest).is_ok_and(|found| found.is_some()) {
            return Ok(digest);
        }
        let new = self.directory.join(format!(".new-{digest}-{:x}", rand::random::<u64>()));
        let written = write_synced(&new, bytes)
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| fs::File::open(&self.directory)?.sync_all());
        written.map(|()| digest).map_err(|source| {
            let _ = fs::remove_file(&new);
            BlobError::Io { path, source }
        })
    }

    /// Stores `bytes` that came with `digest`.
    ///
    /// # Errors
    /// They do not have that digest, or [`Self::put`] fails.
    pub fn put_as(&self, digest: Digest, bytes: &[u8]) -> Result<(), BlobError> {
        if Digest::of(bytes) != digest {
            return Err(BlobError::Mismatch(digest));
        }
        self.put(bytes).map(drop)
    }

    /// The blob; `None` where it is not here.
    ///
    /// # Errors
    /// The disk fails, or the file does not hold what its name says.
    pub fn get(&self, digest: Digest) -> Result<Option<Vec<u8>>, BlobError> {
        let path = self.path(digest);
        let failed = |source| BlobError::Io { path: path.clone(), source };
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(PLAN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() > PLAN_MAX {
            return Err(BlobError::TooLarge(bytes.len() as u64));
        }
        if Digest::of(&bytes) == digest { Ok(Some(bytes)) } else { Err(BlobError::Mismatch(digest)) }
    }

    /// Removes what is not in `wanted` and older than `age`; returns how many. Young ones may belong to a job that is
    /// about to be proposed.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn sweep(&self, wanted: &BTreeSet<Digest>, age: Duration) -> Result<usize, BlobError> {
        let failed = |source| BlobError::Io { path: self.directory.clone(), source };
        let mut removed = 0;
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(digest) = entry.file_name().to_string_lossy().parse::<Digest>() else { continue };
            let old = entry
                .metadata()
                .and_then(|data| data.modified())
                .is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed >= age));
            if old && !wanted.contains(&digest) && fs::remove_file(entry.path()).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_comes_back_and_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let digest = store.put(b"plan").unwrap();
        assert_eq!(store.put(b"plan").unwrap(), digest);
        fs::write(directory.path().join(".new-crashed"), b"half").unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        assert_eq!(store.get(digest).unwrap().unwrap(), b"plan");
        assert_eq!(store.get(Digest::of(b"other")).unwrap(), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the leftover of a crash is gone");
    }

    #[test]
    fn content_that_is_not_what_its_name_says_is_never_given_out() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        assert!(matches!(store.put_as(Digest::of(b"a"), b"b"), Err(BlobError::Mismatch(_))));
        let digest = store.put(b"plan").unwrap();
        fs::write(directory.path().join(digest.to_string()), b"flan").unwrap();
        assert!(matches!(store.get(digest), Err(BlobError::Mismatch(_))));
        store.put(b"plan").unwrap();
        assert_eq!(store.get(digest).unwrap().unwrap(), b"plan", "storing it again repairs it");
    }

    #[test]
    fn a_sweep_takes_what_nobody_wants_and_spares_the_young() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let (kept, lost) = (store.put(b"kept").unwrap(), store.put(b"lost").unwrap());
        assert_eq!(store.sweep(&BTreeSet::from([kept]), Duration::from_secs(3600)).unwrap(), 0);
        assert_eq!(store.sweep(&BTreeSet::from([kept]), Duration::ZERO).unwrap(), 1);
        assert!(store.get(kept).unwrap().is_some() && store.get(lost).unwrap().is_none());
    }
}
