//! A backend's configuration set in memory, by the rules of vt-bootstrap.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    HostOs, Providers, SHARED, error::ProviderError, guest_os, subtests, subtests::TestFile, tree, written::Written,
};

/// The file of a set that a run begins with.
pub const MAIN: &str = "tests.cfg";

/// A configuration set.
#[derive(Debug)]
pub struct Assembly {
    backend: String,
    files: BTreeMap<String, Written>,
    tests: Vec<TestFile>,
}

impl Assembly {
    /// Puts a set together. `host` is the machine that `host.cfg` tells of, where the folder has none of its own.
    ///
    /// # Errors
    /// The backend is not known, the tree of one of its providers is not here, or a file cannot be used.
    pub fn new(providers: &Providers, backend: &str, host: &HostOs) -> Result<Self, ProviderError> {
        let own = providers.backend_folder(backend)?;
        let shared = providers.root.join("shared/cfg");
        let tests = subtests::files(providers, backend)?;
        let mut files = BTreeMap::new();
        // Later ones take the place of earlier ones of the same name.
        for file in provided(providers, backend)? {
            copy(&mut files, &file.0, &file.1)?;
        }
        for file in tree::children(&shared, "cfg")? {
            copy(&mut files, &file, &shared)?;
        }
        files.insert("host.cfg".to_owned(), host.write());
        for file in tree::files(&own, "cfg")? {
            copy(&mut files, &file, &own)?;
        }
        let guests = shared.join("guest-os");
        if guests.is_dir() {
            files.insert("guest-os.cfg".to_owned(), guest_os::write(&guests)?);
        }
        files.insert("subtests.cfg".to_owned(), subtests::write(&tests, backend)?);
        Ok(Self { backend: backend.to_owned(), files, tests })
    }

    /// Whose set it is.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// The name under which a [`vt_cfg::Source`] of this set has a file.
    pub fn path(&self, name: &str) -> String {
        format!("@{}/{name}", self.backend)
    }

    /// Names and texts of all files, in order of name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(name, written)| (name.as_str(), written.text()))
    }

    /// The text of one file.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.files.get(name).map(Written::text)
    }

    /// File and line on disk that a line of a file of the set came from.
    pub fn place(&self, name: &str, line: u32) -> Option<(&Path, u32)> {
        self.files.get(name)?.place(line)
    }

    pub(super) fn tests(&self) -> &[TestFile] {
        &self.tests
    }
}

/// Files of `SUBDIR/cfg` with the folder they are in: what a definition does not name comes first, and so gives way. The
/// multi-host set of a provider is among them.
fn provided(providers: &Providers, backend: &str) -> Result<Vec<(PathBuf, PathBuf)>, ProviderError> {
    let mut found = Vec::new();
    let mut named = Vec::new();
    for section in [SHARED[1], backend] {
        for (definition, offer, folder) in providers.offers(section)? {
            let folder = folder.join("cfg");
            if folder.is_dir() {
                found.extend(tree::children(&folder, "cfg")?.into_iter().map(|file| (file, folder.clone())));
            }
            for name in &offer.configs {
                let file = folder.join(name);
                if !file.is_file() {
                    let what = format!("configs names {name}, which is not in {}", folder.display());
                    return Err(ProviderError::definition(&definition.file, offer.line, what));
                }
                named.push((file, folder.clone()));
            }
        }
    }
    found.extend(named);
    Ok(found)
}

fn copy(files: &mut BTreeMap<String, Written>, file: &Path, within: &Path) -> Result<(), ProviderError> {
    files.insert(tree::name(file), Written::copy(file, &tree::text(file, within)?));
    Ok(())
}
