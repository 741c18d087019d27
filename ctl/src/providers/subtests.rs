//! `subtests.cfg`: the tests of all providers as one set of variants.

use std::path::PathBuf;

use super::{Providers, SHARED, error::ProviderError, tree, written::Written};

/// What stands before all other tests of a backend.
const FIRST: [&str; 2] = ["unattended_install", "steps"];
/// What stands behind them.
const LAST: [&str; 2] = ["shutdown", "remove_guest"];

/// A file of tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TestFile {
    pub(super) provider: String,
    pub(super) path: PathBuf,
    /// The provider's tree.
    pub(super) tree: PathBuf,
    /// For this backend, not for all of them.
    pub(super) specific: bool,
}

impl TestFile {
    pub(super) fn text(&self) -> Result<String, ProviderError> {
        tree::text(&self.path, &self.tree)
    }

    fn is_one_of(&self, names: &[&str]) -> bool {
        let name = tree::name(&self.path);
        names.contains(&name.split('.').next().unwrap_or_default())
    }
}

/// The files of tests for a backend: first its own, then those for all, each in order of provider and path.
pub(super) fn files(providers: &Providers, backend: &str) -> Result<Vec<TestFile>, ProviderError> {
    let mut found = Vec::new();
    let mut add = |section: &str, specific: bool| {
        for (definition, _, folder) in providers.offers(section)? {
            let tree = providers.tree_of(definition);
            let sets = definition.offers.iter().map(|offer| tree.join(&offer.subdir).join("cfg"));
            let sets: Vec<PathBuf> = sets.collect();
            for path in tree::files(&folder, "cfg")? {
                // `SUBDIR/cfg` holds parts of sets, not tests.
                if !sets.iter().any(|set| path.starts_with(set)) && !tree::name(&path).contains("__init__") {
                    found.push(TestFile { provider: definition.name.clone(), path, tree: tree.clone(), specific });
                }
            }
        }
        Ok::<(), ProviderError>(())
    };
    add(backend, true)?;
    // Sandboxes have nothing in common with the tests for machines.
    if backend != "lvsb" {
        SHARED.iter().try_for_each(|section| add(section, false))?;
    }
    Ok(found)
}

/// Puts the file together.
pub(super) fn write(files: &[TestFile], backend: &str) -> Result<Written, ProviderError> {
    let (first, last) = match backend {
        "libvirt" => (&FIRST[..1], &LAST[..]),
        "qemu" | "spice" => (&FIRST[..], &LAST[..1]),
        "lvsb" | "virttools" => (&[][..], &[][..]),
        _ => (&FIRST[..1], &LAST[..1]),
    };
    // What is for all backends comes first here, as in Avocado-VT.
    let of = |names: &'static [&'static str]| {
        let named = files.iter().filter(move |file| file.is_one_of(names));
        named.clone().filter(|file| !file.specific).chain(named.filter(|file| file.specific))
    };
    let rest = |specific| {
        files.iter().filter(move |file| file.specific == specific && !file.is_one_of(first) && !file.is_one_of(last))
    };
    let mut written = Written::default();
    written.line(0, "# Do not edit, auto generated file from subtests config");
    written.line(0, "variants subtest:");
    of(first).try_for_each(|file| append(&mut written, file, 4, None))?;
    written.line(4, "- @type_specific:");
    written.line(8, "variants subtest:");
    rest(true).try_for_each(|file| append(&mut written, file, 12, Some(backend)))?;
    rest(false).try_for_each(|file| append(&mut written, file, 4, None))?;
    of(last).try_for_each(|file| append(&mut written, file, 4, None))?;
    Ok(written)
}

/// Adds a file's tests: their names get the provider's name before them, and the tests the keys that say whose they are.
fn append(written: &mut Written, file: &TestFile, indent: usize, backend: Option<&str>) -> Result<(), ProviderError> {
    let text = file.text()?;
    let number = written.file(&file.path);
    let mut named = false;
    for (line, text) in (1..).zip(text.lines()) {
        let place = (number, line);
        if std::mem::take(&mut named) {
            if let Some(backend) = backend {
                written.push(indent + 4, &format!("virt_test_type = {backend}"), place);
            }
            written.push(indent + 4, &format!("provider = {}", file.provider), place);
        }
        match head(text) {
            None => written.push(indent, text, place),
            Some((name, rest)) => {
                named = true;
                written.push(indent, &format!("- {}.{name}:{rest}", file.provider), place);
            }
        }
    }
    Ok(())
}

/// Whether what a text says first is a test: it is a part of a set of variants, and no configuration by itself.
pub(super) fn begins_with_a_test(text: &str) -> bool {
    let said = text.lines().find(|line| !line.trim().is_empty() && !line.trim_start().starts_with(['#', '/']));
    said.is_some_and(|line| head(line).is_some())
}

/// The name of a test and what follows its colon, where a line begins one.
pub(super) fn head(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("- ")?.split_once(':')?;
    let name = name.trim();
    Some((name.strip_prefix('@').unwrap_or(name), rest))
}
