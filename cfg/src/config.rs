//! The public face: parse once, expand as often as wanted.

use crate::diag::Diagnostic;
use crate::expand::prepare::Prepared;
use crate::expand::{Names, Variants};
use crate::model::Model;
use crate::parser::{self, Options};
use crate::source::Source;

/// A parsed configuration.
#[derive(Debug)]
pub struct Config {
    pub(crate) m: Model,
    pub(crate) p: Prepared,
}

/// Parses `path` and then every text of `extra` (named `<string>`), as if it stood behind the file's last line.
///
/// All mistakes found are returned, at most a hundred.
///
/// # Errors
/// Any mistake, also in included files: nothing is half accepted.
pub fn parse(source: &dyn Source, path: &str, extra: &[String], options: &Options) -> Result<Config, Vec<Diagnostic>> {
    let mut m = parser::parse(source, path, extra, options)?;
    let p = Prepared::new(&mut m, options);
    Ok(Config { m, p })
}

impl Config {
    /// The variants in order, computed while they are asked for.
    pub fn variants(&self) -> Variants<'_> {
        Variants::new(self)
    }

    /// Their full names only, which is much cheaper.
    pub fn names(&self) -> Names<'_> {
        Names(Variants::new(self))
    }

    /// How many variants there are, without walking them all.
    ///
    /// Assignments are not run, so errors they would cause are not seen.
    ///
    /// # Errors
    /// A selection too entangled to be counted in bounded time, or a join below a join.
    pub fn count(&self) -> Result<u128, Diagnostic> {
        crate::expand::count(self)
    }

    /// Files read, in order of their first use.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.m.files.iter().map(String::as_str)
    }
}
