//! Lines in files that are bounded: `NAME.jsonl` is written to, `NAME.1.jsonl` is the one before it, and so on; the
//! oldest goes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// Longest line read back, in bytes.
const LINE_BYTES: u64 = 64 << 10;

/// One journal.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    name: &'static str,
    files: usize,
    bytes: u64,
    open: Option<(File, u64)>,
}

impl Journal {
    /// A journal of at most `files` files of `bytes` each; nothing is made yet.
    pub(super) fn new(dir: &Path, name: &'static str, files: usize, bytes: u64) -> Self {
        Self { dir: dir.to_owned(), name, files, bytes, open: None }
    }

    /// Appends one line; with `sync` it is on disk afterwards.
    pub(super) fn append(&mut self, line: &str, sync: bool) -> io::Result<()> {
        debug_assert!(!line.contains('\n'), "JSON escapes line breaks");
        let mut whole = String::with_capacity(line.len() + 1);
        whole.push_str(line);
        whole.push('\n');
        let length = whole.len() as u64;
        if self.open.as_ref().is_some_and(|(_, size)| size + length > self.bytes) {
            self.open = None;
            self.rotate()?;
        }
        if self.open.is_none() {
            self.open = Some(self.open_newest()?);
        }
        let Some((file, size)) = &mut self.open else { return Ok(()) };
        let written = file.write_all(whole.as_bytes()).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        match written {
            Ok(()) => *size += length,
            // What the file holds now is not known: it is looked at again before the next line.
            Err(_) => self.open = None,
        }
        written
    }

    /// The files, oldest first.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        (0..self.files).rev().map(|age| self.path(age)).collect()
    }

    fn path(&self, age: usize) -> PathBuf {
        match age {
            0 => self.dir.join(format!("{}.jsonl", self.name)),
            age => self.dir.join(format!("{}.{age}.jsonl", self.name)),
        }
    }

    fn open_newest(&self) -> io::Result<(File, u64)> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut file = OpenOptions::new().append(true).read(true).create(true).mode(0o600).open(self.path(0))?;
        let mut size = file.metadata()?.len();
        if size > 0 && !ends_in_newline(&self.path(0), size)? {
            // A line that was cut by a crash must not swallow the next one.
            file.write_all(b"\n")?;
            size += 1;
        }
        Ok((file, size))
    }

    fn rotate(&self) -> io::Result<()> {
        for age in (0..self.files - 1).rev() {
            match fs::rename(self.path(age), self.path(age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn ends_in_newline(path: &Path, size: u64) -> io::Result<bool> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(size - 1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// The newest `limit` lines that are wanted, oldest first. Lines that cannot be read, such as one cut by a crash, are
/// passed over.
pub(super) fn read<T: DeserializeOwned>(files: &[PathBuf], limit: usize, wanted: impl Fn(&T) -> bool) -> Vec<T> {
    let mut found = std::collections::VecDeque::new();
    for path in files {
        let Ok(file) = File::open(path) else { continue };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let Ok(item) = serde_json::from_slice::<T>(&line) else { continue };
            if wanted(&item) {
                if found.len() == limit {
                    found.pop_front();
                }
                if limit > 0 {
                    found.push_back(item);
                }
            }
        }
    }
    found.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(journal: &Journal) -> Vec<u64> {
        read::<u64>(&journal.files(), 1000, |_| true)
    }

    #[test]
    fn it_is_bounded_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(dir.path(), "n", 3, 100);
        for number in 1000..1200_u64 {
            journal.append(&number.to_string(), false).unwrap();
        }
        let left = numbers(&journal);
        assert_eq!(*left.last().unwrap(), 1199);
        assert!(left.windows(2).all(|pair| pair[1] == pair[0] + 1) && left.len() >= 40, "{left:?}");
        let bytes: u64 = journal.files().iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        assert!(bytes <= 300, "{bytes}");
        assert_eq!(read::<u64>(&journal.files(), 2, |n| n % 2 == 0), [1196, 1198]);
    }

    #[test]
    fn a_line_that_was_cut_swallows_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(dir.path(), "n", 2, 1000);
        journal.append("1", true).unwrap();
        OpenOptions::new().append(true).open(dir.path().join("n.jsonl")).unwrap().write_all(b"\"to").unwrap();
        let mut again = Journal::new(dir.path(), "n", 2, 1000);
        again.append("2", true).unwrap();
        assert_eq!(numbers(&again), [1, 2]);
    }
}
