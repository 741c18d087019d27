//! Images in the directory of a pool: one folder an image, with its manifest. Calls block on the disk.
//!
//! ```text
//! NAME/                     an image; with `manifest` it is the catalogue's
//! .part-NAME-ROOT/          a copy that is on its way: what is right in it stays, whatever happens
//! .part-NAME-get-KEY/       a download that is on its way
//! .new-NAME-N/, .old-NAME-N/  an import under way, and what is being removed
//! ```
//!
//! A folder comes to its name by one rename, so that a name always stands for a whole image. A folder without manifest
//! is nobody's but the user's and is never touched.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Digest, Name},
    image::{ImageRecord, RECORD_FILE},
    manifest::{self, MANIFEST_MAX, Manifest},
};

/// What was left of imports is spared while it is younger: one may be under way.
const YOUNG: Duration = Duration::from_secs(3600);
const NEW: &str = ".new-";
const OLD: &str = ".old-";
const PART: &str = ".part-";

/// A pool's directory on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) path: PathBuf,
    /// Whether every host sees it.
    pub(crate) shared: bool,
}

impl Store {
    /// The folder of an image.
    pub(crate) fn folder(&self, image: &Name) -> PathBuf {
        self.path.join(image.as_str())
    }

    /// The folder of a copy that is on its way.
    pub(super) fn part(&self, image: &Name, root: Digest) -> PathBuf {
        self.path.join(format!("{PART}{image}-{}", &root.to_string()[..16]))
    }

    /// The folder of a download.
    pub(super) fn download(&self, image: &Name, key: &str) -> PathBuf {
        self.path.join(format!("{PART}{image}-get-{key}"))
    }

    /// A new folder for an import.
    pub(super) fn fresh(&self, image: &Name) -> io::Result<PathBuf> {
        let path = self.path.join(format!("{NEW}{image}-{:08x}", rand::random::<u32>()));
        fs::create_dir_all(&self.path)?;
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// The manifest of the version that is here; `None` where there is none, or another version.
    pub(super) fn manifest(&self, image: &Name, root: Digest) -> Option<Manifest> {
        let bytes = read_bounded(&self.folder(image).join(manifest::FILE), MANIFEST_MAX).ok()?;
        Manifest::decode(&bytes, root).ok()
    }

    /// Whether a whole copy of that version lies here, as far as can be told without reading it.
    pub(crate) fn has(&self, image: &Name, root: Digest) -> bool {
        let folder = self.folder(image);
        let whole = |file: &manifest::FileBlocks| {
            fs::metadata(folder.join(&file.name)).is_ok_and(|meta| meta.is_file() && meta.len() == file.length)
        };
        self.manifest(image, root).is_some_and(|manifest| manifest.files.iter().all(whole))
    }

    /// Gives a finished folder the image's name; what had it before is removed.
    pub(super) fn put_in_place(&self, ready: &Path, image: &Name) -> io::Result<()> {
        let place = self.folder(image);
        File::open(ready)?.sync_all()?;
        let there = place.exists();
        let flags = if there { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
        renameat2(AT_FDCWD, ready, AT_FDCWD, &place, flags)?;
        File::open(&self.path)?.sync_all()?;
        if there {
            // What was exchanged; a sweep takes what cannot be removed now.
            let _ = fs::remove_dir_all(ready);
        }
        Ok(())
    }

    /// Removes an image of the catalogue. Returns whether there was one.
    pub(super) fn remove(&self, image: &Name) -> io::Result<bool> {
        let place = self.folder(image);
        if !place.join(manifest::FILE).is_file() {
            return Ok(false);
        }
        let old = self.path.join(format!("{OLD}{image}-{:08x}", rand::random::<u32>()));
        fs::rename(&place, &old)?;
        File::open(&self.path)?.sync_all()?;
        fs::remove_dir_all(&old)?;
        Ok(true)
    }

    /// Removes what broken transfers left, and images of the catalogue that `wanted` does not want. Returns their names.
    pub(super) fn sweep(
        &self,
        wanted: impl Fn(&Name) -> bool,
        under_way: impl Fn(&str) -> bool,
    ) -> io::Result<Vec<String>> {
        let mut removed = Vec::new();
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let old = || {
                let changed = entry.metadata().and_then(|meta| meta.modified());
                changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age >= YOUNG))
            };
            let goes = if name.starts_with(PART) {
                !under_way(&name)
            } else if name.starts_with(NEW) || name.starts_with(OLD) {
                old()
            } else {
                let ours = entry.path().join(manifest::FILE).is_file();
                ours && name.parse::<Name>().is_ok_and(|name| !wanted(&name))
            };
            if goes {
                fs::remove_dir_all(entry.path())?;
                removed.push(name);
            }
        }
        removed.sort();
        Ok(removed)
    }

    /// The record of an image, without its files being looked at.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub(crate) fn record(&self, image: &Name) -> Result<ImageRecord, RecordTrouble> {
        record_in(&self.folder(image))
    }
}

/// Why an image has no record that could be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordTrouble {
    #[error("there is none")]
    Missing(#[source] io::Error),
    #[error("{0}")]
    Damaged(String),
}

/// The record in the folder of an image.
pub(super) fn record_in(folder: &Path) -> Result<ImageRecord, RecordTrouble> {
    /// Package lists are long, but not endless.
    const RECORD_MAX: usize = 4 << 20;
    let json = read_bounded(&folder.join(RECORD_FILE), RECORD_MAX).map_err(RecordTrouble::Missing)?;
    ImageRecord::parse(&json).map_err(|error| RecordTrouble::Damaged(error.to_string()))
}

/// A whole file that is not longer than `cap`.
fn read_bounded(path: &Path, cap: usize) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut bytes = Vec::new();
    File::open(path)?.take(cap as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > cap {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {cap} bytes")));
    }
    Ok(bytes)
}

/// A file or folder of a pool that could not be used.
pub(super) fn trouble(what: &str, path: &Path, error: &io::Error) -> Report {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let (code, title) = if full {
        (ErrorCode::DiskFull, format!("the pool is full: {what}"))
    } else {
        (ErrorCode::StorageFailed, format!("{what}: {error}"))
    };
    Report::new(code, title).with("path", path.display().to_string()).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(folder: &Path) -> Digest {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("disk.raw"), b"disk").unwrap();
        let file = manifest::FileBlocks {
            name: "disk.raw".into(),
            mode: 0o644,
            length: 4,
            digests: vec![Digest::of(b"disk")],
        };
        let (bytes, root) = Manifest { files: vec![file] }.encode().unwrap();
        fs::write(folder.join(manifest::FILE), bytes).unwrap();
        root
    }

    #[test]
    fn a_name_stands_for_a_whole_image_and_a_users_folder_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { path: dir.path().join("pool"), shared: false };
        let name: Name = "disk".parse().unwrap();
        let fresh = store.fresh(&name).unwrap();
        let root = image(&fresh);
        assert!(!store.has(&name, root));
        store.put_in_place(&fresh, &name).unwrap();
        assert!(store.has(&name, root) && !store.has(&name, Digest::of(b"other")));
        fs::write(store.folder(&name).join("disk.raw"), b"dis").unwrap();
        assert!(!store.has(&name, root), "a file that was cut");
        let again = store.fresh(&name).unwrap();
        image(&again);
        store.put_in_place(&again, &name).unwrap();
        assert!(store.has(&name, root) && !again.exists());

        fs::create_dir(store.path.join("mine")).unwrap();
        for left in [".part-disk-0123", ".part-busy-0123", ".new-disk-1"] {
            fs::create_dir(store.path.join(left)).unwrap();
        }
        let swept = store.sweep(|_| true, |part| part.starts_with(".part-busy")).unwrap();
        assert_eq!(swept, [".part-disk-0123"], "an import may be under way, and nobody's folder is ours");
        assert!(!store.remove(&"mine".parse().unwrap()).unwrap());
        assert_eq!(store.sweep(|_| false, |_| true).unwrap(), ["disk"]);
        assert!(store.path.join("mine").is_dir());
    }
}
