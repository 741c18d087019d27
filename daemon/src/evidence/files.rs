//! The files of evidence as other hosts see them: relative paths, sizes, pieces.
//!
//! What may not happen here: a path that leads out of the directory, a link that is followed, a piece larger than
//! [`PIECE_MAX`].

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

/// Most bytes of one piece.
pub const PIECE_MAX: u32 = 4 << 20;
/// Most files of one directory that are listed.
pub const FILES_MAX: usize = 4096;
const DEPTH_MAX: usize = 6;

/// Every file below `root`: relative path with `/` and size, in order of path. Links are left out.
///
/// # Errors
/// A directory cannot be read. One that is not there has no files.
pub fn list(root: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    walk(root, "", 0, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk(dir: &Path, prefix: &str, depth: usize, found: &mut Vec<(String, u64)>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type()?;
        if kind.is_dir() && depth < DEPTH_MAX {
            walk(&entry.path(), &format!("{prefix}{name}/"), depth + 1, found)?;
        } else if kind.is_file() && found.len() < FILES_MAX {
            // A file may go away between the two calls.
            if let Ok(meta) = entry.metadata() {
                found.push((format!("{prefix}{name}"), meta.len()));
            }
        }
    }
    Ok(())
}

/// `path` below `root`, where it is relative and stays below.
pub fn below(root: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !path.is_empty() && !path.contains('\0')).then(|| root.join(relative))
}

/// A piece of the file `path` below `root`; empty at its end.
///
/// # Errors
/// The path leads out, is no plain file, or cannot be read.
pub fn read(root: &Path, path: &str, offset: u64, length: u32) -> io::Result<Vec<u8>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is no file of evidence"));
    let full = below(root, path).ok_or_else(wrong)?;
    let mut walked = root.to_owned();
    for part in Path::new(path).components() {
        walked.push(part);
        if fs::symlink_metadata(&walked)?.file_type().is_symlink() {
            return Err(wrong());
        }
    }
    let mut file = File::open(full)?;
    if !file.metadata()?.is_file() {
        return Err(wrong());
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut piece = Vec::new();
    file.take(u64::from(length.min(PIECE_MAX))).read_to_end(&mut piece)?;
    Ok(piece)
}

/// The last `most` bytes of a file as text; empty where it cannot be read.
pub fn tail(path: &Path, most: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// Writes a file whole or not at all: beside it first, then renamed.
///
/// # Errors
/// The directory cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = part_of(path);
    let written = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // Half a file on a full disk is found by nobody and takes what little room there is.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Where [`write_whole`] writes before the file has its name.
pub fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(std::ffi::OsStr::to_owned).unwrap_or_default();
    name.push(".part");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_and_read_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("vm1")).unwrap();
        fs::write(dir.path().join("vm1/serial.log"), b"0123456789").unwrap();
        fs::write(dir.path().join("a"), b"").unwrap();
        assert_eq!(list(dir.path()).unwrap(), [("a".to_owned(), 0), ("vm1/serial.log".to_owned(), 10)]);
        assert_eq!(read(dir.path(), "vm1/serial.log", 4, 3).unwrap(), b"456");
        assert_eq!(read(dir.path(), "vm1/serial.log", 10, 3).unwrap(), b"");
        assert!(list(&dir.path().join("absent")).unwrap().is_empty());
        assert_eq!(tail(&dir.path().join("vm1/serial.log"), 4), "6789");
        assert_eq!(tail(&dir.path().join("absent"), 4), "");
    }

    #[test]
    fn a_file_that_cannot_be_written_whole_leaves_no_part() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        fs::create_dir_all(taken.join("inside")).unwrap();
        assert!(write_whole(&taken, b"text").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the folder that was there");
        write_whole(&dir.path().join("a"), b"text").unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"text");
        assert!(!part_of(&dir.path().join("a")).exists());
    }

    #[test]
    fn no_path_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), b"x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("direct")).unwrap();
        let up = format!("../{}/secret", outside.path().file_name().unwrap().to_str().unwrap());
        let absolute = outside.path().join("secret").to_str().unwrap().to_owned();
        for path in ["", ".", "..", "link/secret", "direct", "a\0b", &up, &absolute] {
            assert!(read(dir.path(), path, 0, 10).is_err(), "{path:?}");
        }
        assert!(list(dir.path()).unwrap().is_empty(), "links are left out");
    }
}
