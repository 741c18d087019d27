//! The archive a kernel unpacks as its first file system ("newc"), the same bytes for the same content: sorted, with
//! no times, owners, devices or inode numbers of the machine that made it.

use std::collections::BTreeMap;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A folder with mode 0755.
    Folder,
    /// A file.
    File {
        /// Its bytes.
        bytes: Vec<u8>,
        /// May be run.
        executable: bool,
    },
    /// A symbolic link to this path.
    Link(String),
}

/// A file system to be: paths without leading slash.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree(BTreeMap<String, Entry>);

impl Tree {
    /// Puts an entry, and folders above it where there are none.
    pub(super) fn put(&mut self, path: &str, entry: Entry) {
        let mut above = path;
        while let Some((folder, _)) = above.rsplit_once('/') {
            self.0.entry(folder.to_owned()).or_insert(Entry::Folder);
            above = folder;
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// Whether something stands at the path.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The archive.
    pub(super) fn archive(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in self.0.iter().enumerate() {
            let (mode, links, bytes): (u32, u32, &[u8]) = match entry {
                Entry::Folder => (0o040_755, 2, &[]),
                Entry::File { bytes, executable: true } => (0o100_755, 1, bytes),
                Entry::File { bytes, executable: false } => (0o100_644, 1, bytes),
                Entry::Link(to) => (0o120_777, 1, to.as_bytes()),
            };
            record(&mut out, number + 1, path, mode, links, bytes);
        }
        record(&mut out, 0, "TRAILER!!!", 0, 1, &[]);
        out
    }
}

fn record(out: &mut Vec<u8>, inode: usize, path: &str, mode: u32, links: u32, bytes: &[u8]) {
    // inode, mode, uid, gid, links, mtime, size, device (2), device of a node (2), length of the name, checksum
    let fields: [usize; 13] =
        [inode, mode as usize, 0, 0, links as usize, 0, bytes.len(), 0, 0, 0, 0, path.len() + 1, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(bytes);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn cpio_unpacks_it_and_the_order_of_putting_does_not_matter() {
        let entries = [
            ("bin/sh", Entry::Link("busybox".into())),
            ("bin/busybox", Entry::File { bytes: b"odd length!".to_vec(), executable: true }),
            ("etc/empty", Entry::File { bytes: Vec::new(), executable: false }),
            ("proc", Entry::Folder),
        ];
        let (mut tree, mut reversed) = (Tree::default(), Tree::default());
        entries.iter().for_each(|(path, entry)| tree.put(path, entry.clone()));
        entries.iter().rev().for_each(|(path, entry)| reversed.put(path, entry.clone()));
        let archive = tree.archive();
        assert_eq!(archive, reversed.archive());
        let folder = tempfile::tempdir().unwrap();
        let mut cpio = Command::new("cpio")
            .args(["-i", "-d", "--quiet", "--no-absolute-filenames"])
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(cpio.wait().unwrap().success());
        let at = |path: &str| folder.path().join(path);
        assert_eq!(std::fs::read(at("bin/sh")).unwrap(), b"odd length!");
        assert_eq!(std::fs::read(at("etc/empty")).unwrap(), b"");
        assert!(at("proc").is_dir());
    }
}
