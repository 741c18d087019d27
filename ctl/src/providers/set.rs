//! What `-c`, `--providers` and their like select: the files that a configuration is read from.
//!
//! Files are those of the file system. Behind them stands the set of a backend, under names such as `@qemu/tests.cfg`: a
//! file that is not there is looked for in the set by its name, so a configuration of one's own can include
//! `tests-shared.cfg` from anywhere.
//!
//! A file of tests, as providers hold them, begins with a variant and is no configuration by itself. Such files are read as one
//! set of variants, as vt-bootstrap puts them into `subtests.cfg`.

use std::{borrow::Cow, cell::OnceCell, path::Path};

use vt_cfg::{Config, Diagnostic, FsSource, Options, Source, SourceError};
use vt_protocol::error::Report;

use super::{Assembly, HostOs, MAIN, Providers, default_trees, subtests::begins_with_a_test, written::Written};
use crate::{
    args::{GuestArgs, ProvidersArgs, SetArgs},
    ui::report::usage,
};

/// The providers folder that is meant.
///
/// # Errors
/// None is named, or it cannot be used.
pub fn providers(from: &ProvidersArgs) -> Result<Providers, Report> {
    let Some(root) = &from.providers else {
        return Err(usage("which providers are meant?")
            .help("--providers DIR, or VTCTL_PROVIDERS=DIR")
            .with("wanted", "a folder with test-providers.d, shared/cfg and backends, as Avocado-VT's package has"));
    };
    let trees = from.trees.clone().unwrap_or_else(default_trees);
    Ok(Providers::read(root, &trees)?)
}

/// The configuration set that is meant.
///
/// # Errors
/// No providers are named, or the set cannot be put together.
pub fn assemble(set: &SetArgs) -> Result<Assembly, Report> {
    Ok(Assembly::new(&providers(&set.from)?, &set.backend, &HostOs::here())?)
}

/// Files, and the set behind them.
#[derive(Debug)]
pub struct Selected {
    set: SetArgs,
    guests: GuestArgs,
    /// Put together when it is first needed: most configurations need none.
    assembly: OnceCell<Assembly>,
    files: Vec<String>,
    /// What stands for the files of tests among them, under the name of the first.
    tests: Option<(String, Written)>,
}

impl Selected {
    /// Finds out which file to begin with. Without any it is the set's [`MAIN`].
    ///
    /// # Errors
    /// There is neither a file nor a set, or the set cannot be put together.
    pub fn new(set: &SetArgs, guests: &GuestArgs, config: &[String]) -> Result<Self, Report> {
        let (set, guests) = (set.clone(), guests.clone());
        let mut selected = Self { set, guests, assembly: OnceCell::new(), files: Vec::new(), tests: None };
        if config.is_empty() {
            if !selected.has_set() {
                return Err(usage("which configuration is meant?")
                    .help("-c FILE")
                    .help("--providers DIR   # all tests that providers offer; also VTCTL_PROVIDERS=DIR"));
            }
            selected.files.push(selected.assembly()?.path(MAIN));
        }
        for file in config {
            let elsewhere = selected.has_set() && !Path::new(file).exists();
            // Named as the set names it, so that its includes are the set's.
            let of_set =
                if elsewhere { Some(selected.assembly()?).filter(|set| set.text(file).is_some()) } else { None };
            let file = of_set.map_or_else(|| file.clone(), |set| set.path(file));
            if !selected.is_one_more_test(&file) {
                selected.files.push(file);
            }
        }
        Ok(selected)
    }

    /// Takes in a file of tests. The first one stands for all of them. What cannot be read is told when it is.
    fn is_one_more_test(&mut self, file: &str) -> bool {
        let Some(text) = FsSource.read(file).ok().filter(|text| begins_with_a_test(text)) else { return false };
        let more = self.tests.is_some();
        let (_, written) = self.tests.get_or_insert_with(|| {
            let mut written = Written::default();
            written.line(0, "variants:");
            (file.to_owned(), written)
        });
        written.append(4, Path::new(file), &text);
        more
    }

    /// Reads the configuration: the files, what guest and machine type leave of them, and then `statements`.
    ///
    /// # Errors
    /// Every mistake, at its place on disk.
    pub fn parse(&self, statements: &[String], options: &Options) -> Result<Config, Vec<Diagnostic>> {
        let mut all: Vec<String> = self.files.iter().skip(1).map(|file| format!("include {file}")).collect();
        let filters = self.guests.guest_os.iter().chain(&self.guests.machine_type);
        all.extend(filters.map(|filter| format!("only {filter}")));
        all.extend_from_slice(statements);
        vt_cfg::parse(self, self.main(), &all, options)
            .map_err(|mistakes| mistakes.into_iter().map(|mistake| self.placed(mistake)).collect())
    }

    /// The file that comes first.
    pub fn main(&self) -> &str {
        self.files.first().map_or("", String::as_str)
    }

    /// The file on disk, and its line, that a line of a file came from.
    pub fn place(&self, file: &str, line: u32) -> (String, u32) {
        let of_tests = self.tests_of(file).and_then(|written| written.place(line));
        let found =
            of_tests.or_else(|| self.assembly.get().and_then(|assembly| assembly.place(self.name_in_set(file)?, line)));
        found.map_or_else(|| (file.to_owned(), line), |(file, line)| (file.display().to_string(), line))
    }

    /// A finding at its place on disk.
    pub fn placed(&self, mut finding: Diagnostic) -> Diagnostic {
        let (file, line) = self.place(&finding.file, finding.line);
        if (&file, line) != (&finding.file, finding.line) {
            // The line is indented otherwise there.
            (finding.file, finding.line, finding.column) = (file, line, 0);
            finding.text = String::new();
        }
        finding
    }

    fn assembly(&self) -> Result<&Assembly, Report> {
        if let Some(made) = self.assembly.get() {
            return Ok(made);
        }
        let made = assemble(&self.set)?;
        Ok(self.assembly.get_or_init(|| made))
    }

    fn tests_of(&self, file: &str) -> Option<&Written> {
        self.tests.as_ref().filter(|(name, _)| name == file).map(|(_, written)| written)
    }

    fn has_set(&self) -> bool {
        self.set.from.providers.is_some()
    }

    fn name_in_set<'a>(&self, path: &'a str) -> Option<&'a str> {
        let prefix = format!("@{}/", self.set.backend);
        match path.strip_prefix(&prefix) {
            Some(name) => Some(name),
            None if Path::new(path).exists() => None,
            None => path.rsplit('/').next(),
        }
    }
}

impl Source for Selected {
    fn read(&self, path: &str) -> Result<Cow<'_, str>, SourceError> {
        if let Some(written) = self.tests_of(path) {
            return Ok(written.text().into());
        }
        let found = FsSource.read(path);
        let (Err(SourceError::Missing(_)), true) = (&found, self.has_set()) else { return found };
        let reason = |report: Report| SourceError::Unreadable { path: path.to_owned(), reason: report.title };
        let assembly = self.assembly().map_err(reason)?;
        self.name_in_set(path).and_then(|name| assembly.text(name)).map_or(found, |text| Ok(text.into()))
    }

    fn home(&self, user: Option<&str>) -> Option<String> {
        FsSource.home(user)
    }
}
