//! Avocado-VT's test providers: where tests come from, and the configuration set that is made of them.
//!
//! A providers folder has the layout of Avocado-VT's own package: `test-providers.d/*.ini` say where trees of tests are,
//! `shared/cfg` and `backends/NAME/cfg` hold what all tests share. Out of them a backend's set is assembled in memory, the
//! way vt-bootstrap writes it to disk. The same files give the same bytes.
//!
//! What may not happen here: running anything that a provider brings. `sync` is the only place that starts a program (git)
//! or touches a network, and only when it is asked for.

mod assemble;
mod definition;
mod error;
mod git;
mod guest_os;
mod guests;
mod host_os;
pub(crate) mod ini;
mod offers;
mod set;
mod subtests;
mod tree;
mod written;

use std::path::{Path, PathBuf};

pub use self::{
    assemble::{Assembly, MAIN},
    definition::{Definition, Offer, Uri},
    error::ProviderError,
    git::sync,
    guests::Guest,
    host_os::HostOs,
    offers::Test,
    set::{Selected, assemble, providers},
};
use crate::suggest;

/// Backends that Avocado-VT knows; folders below `backends` come on top.
const BACKENDS: [&str; 8] = ["libguestfs", "libvirt", "lvsb", "openvswitch", "qemu", "spice", "v2v", "virttools"];
/// Sections whose tests are for every backend.
const SHARED: [&str; 2] = ["generic", "multi_host_migration"];
/// Most definitions of one folder.
const DEFINITIONS_MAX: usize = 1000;

/// A providers folder with its definitions.
#[derive(Debug, Clone)]
pub struct Providers {
    root: PathBuf,
    trees: PathBuf,
    backends: Vec<String>,
    definitions: Vec<Definition>,
}

impl Providers {
    /// Reads the definitions of a folder. Trees that came by git are looked for below `trees`.
    ///
    /// # Errors
    /// The folder has another layout, or a definition is wrong: the message names file and line.
    pub fn read(root: &Path, trees: &Path) -> Result<Self, ProviderError> {
        for part in ["test-providers.d", "shared/cfg", "backends"] {
            if !root.join(part).is_dir() {
                return Err(ProviderError::Layout { root: root.to_owned(), lacks: part });
            }
        }
        let mut backends: Vec<String> = BACKENDS.iter().map(|name| (*name).to_owned()).collect();
        backends.extend(tree::folders(&root.join("backends"))?);
        backends.sort();
        backends.dedup();
        let mut definitions = Vec::new();
        for file in tree::children(&root.join("test-providers.d"), "ini")? {
            if definitions.len() == DEFINITIONS_MAX {
                return Err(ProviderError::tree(&file, format!("more than {DEFINITIONS_MAX} definitions")));
            }
            definitions.push(Definition::read(&file, &backends)?);
        }
        Ok(Self { root: root.to_owned(), trees: trees.to_owned(), backends, definitions })
    }

    /// The definitions, in order of name.
    pub fn definitions(&self) -> &[Definition] {
        &self.definitions
    }

    /// The definition of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn definition(&self, name: &str) -> Result<&Definition, ProviderError> {
        self.definitions.iter().find(|definition| definition.name == name).ok_or_else(|| {
            let known = self.definitions.iter().map(|definition| definition.name.as_str());
            ProviderError::UnknownProvider { name: name.to_owned(), known: known.map(str::to_owned).collect() }
        })
    }

    /// Where the tree of a provider is, or will be.
    pub fn tree_of(&self, definition: &Definition) -> PathBuf {
        definition.tree(&self.trees)
    }

    /// What providers offer for one section, with the folder that the section names.
    fn offers(&self, section: &str) -> Result<Vec<(&Definition, &Offer, PathBuf)>, ProviderError> {
        let mut found = Vec::new();
        for definition in &self.definitions {
            let Some(offer) = definition.offers.iter().find(|offer| offer.section == section) else { continue };
            let tree = self.tree_of(definition);
            if !tree.is_dir() {
                return Err(ProviderError::NotHere { definition: Box::new(definition.clone()), tree });
            }
            let folder = tree.join(&offer.subdir);
            if !folder.is_dir() {
                let what = format!("there is no folder {} in {}", offer.subdir, tree.display());
                return Err(ProviderError::definition(&definition.file, offer.line, what));
            }
            found.push((definition, offer, folder));
        }
        Ok(found)
    }

    /// The folder of a backend's own configuration.
    fn backend_folder(&self, backend: &str) -> Result<PathBuf, ProviderError> {
        let folder = self.root.join("backends").join(backend).join("cfg");
        let here = self.backends.iter().any(|known| known == backend) && folder.is_dir();
        if here {
            return Ok(folder);
        }
        let known = |name: &&String| self.root.join("backends").join(name).join("cfg").is_dir();
        let known: Vec<String> = self.backends.iter().filter(known).cloned().collect();
        Err(ProviderError::UnknownBackend { name: backend.to_owned(), root: self.root.clone(), known })
    }
}

/// Where trees that come by git are kept: below `/var/cache` for root, below the home folder for others.
pub fn default_trees() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/cache/vtmesh/providers".into();
    }
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("vtmesh/providers")
}

/// A line of help, where one of the names is close to what was written.
fn perhaps<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    suggest::close(written, names).first().map(|name| format!("did you mean {name}?"))
}
