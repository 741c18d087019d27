//! The QEMUs of this host by name: those that its settings name, and no other.
//!
//! What may not happen here: a program that a case brings along. Who may run a case does not choose what a host runs as
//! root, so a path is a way to name one of these, and nothing more.

use std::{collections::BTreeMap, fs, path::PathBuf};

use vt_protocol::ids::Name;

use super::process::resolve_program;

/// The name of the one that is meant where none is named.
pub const DEFAULT: &str = "default";
/// What old configurations call whatever QEMU a host has.
const ANY: &str = "qemu";
/// Most of them beside the default.
const NAMED_MAX: usize = 16;

/// The QEMUs of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    default: String,
    named: BTreeMap<Name, String>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binary<'a> {
    /// What the settings call it.
    pub name: &'a str,
    /// Its path, or its name in `PATH`.
    pub path: &'a str,
}

impl std::fmt::Display for Binary<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.path)
    }
}

impl Binaries {
    /// The default alone.
    pub fn only(default: &str) -> Self {
        Self { default: default.to_owned(), named: BTreeMap::new() }
    }

    pub(crate) fn set_default(&mut self, path: String) {
        self.default = path;
    }

    /// Adds one, or has a name mean another; `false` where the name cannot be had, or there are too many.
    pub(crate) fn add(&mut self, name: Name, path: String) -> bool {
        let free = ![DEFAULT, ANY].contains(&name.as_str());
        let room = self.named.len() < NAMED_MAX || self.named.contains_key(&name);
        if free && room {
            self.named.insert(name, path);
        }
        free && room
    }

    /// The one that is meant where none is named.
    pub fn usual(&self) -> Binary<'_> {
        Binary { name: DEFAULT, path: &self.default }
    }

    /// All of them, the usual one first.
    pub fn all(&self) -> impl Iterator<Item = Binary<'_>> {
        let named = self.named.iter().map(|(name, path)| Binary { name: name.as_str(), path });
        std::iter::once(self.usual()).chain(named)
    }

    /// The one that a word means: its name, its path, or another path to the same file. No word means the default.
    pub fn find(&self, word: &str) -> Option<Binary<'_>> {
        let word = if [ANY, ""].contains(&word) { DEFAULT } else { word };
        let known = self.all().find(|binary| binary.name == word || binary.path == word);
        known.or_else(|| {
            let wanted = file(word)?;
            self.all().find(|binary| file(binary.path).is_some_and(|path| path == wanted))
        })
    }
}

/// The file that a program is, whatever links lead to it.
fn file(program: &str) -> Option<PathBuf> {
    fs::canonicalize(resolve_program(program)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_found_by_its_name_its_path_and_another_path_to_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("qemu-kvm").display().to_string();
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        let mut all = Binaries::only("sh");
        assert!(all.add("old".parse().unwrap(), "/bin/cat".into()));
        let found = |word: &str| all.find(word).map(|binary| binary.name);
        for word in ["", "qemu", "default", "sh", "/bin/sh", &link] {
            assert_eq!(found(word), Some("default"), "{word}");
        }
        for word in ["old", "/bin/cat", "cat"] {
            assert_eq!(found(word), Some("old"), "{word}");
        }
        for word in ["new", "/bin/ls", "/no/such", "../bin/sh"] {
            assert_eq!(found(word), None, "{word}");
        }
    }

    #[test]
    fn a_name_is_the_users_own_and_there_are_so_many() {
        let mut all = Binaries::only("sh");
        let mut add = |name: &str| all.add(name.parse().unwrap(), "/q".into());
        assert!(!add("default") && !add("qemu"));
        assert!((0..NAMED_MAX).all(|number| add(&format!("q{number}"))));
        assert!(!add("one-more") && add("q3"));
    }
}
