//! Avocado-VT's Cartesian configuration language: text in, variants out.
//!
//! ```
//! let mut files = vt_cfg::MemSource::new();
//! files.insert("tests.cfg", "variants:\n  - a:\n      x = 1\n  - b:\n");
//! let config = vt_cfg::parse(&files, "tests.cfg", &["only a".into()], &vt_cfg::Options::default()).unwrap();
//! let names: Vec<String> = config.names().map(Result::unwrap).collect();
//! assert_eq!(names, ["a"]);
//! ```
//!
//! Pure: text comes through a [`Source`], results are values. No process, no network, no other crate of the project. Where the
//! behaviour differs from the reference implementation stands in `DIFFERENCES.md` beside this crate.

mod chars;
mod config;
mod diag;
mod expand;
mod inspect;
mod intern;
mod lexer;
mod model;
mod parser;
mod source;
mod stream;

pub use config::{Config, parse};
pub use diag::{Diagnostic, Severity};
pub use expand::variant::{Origin, Variant};
pub use expand::{Names, Variants};
pub use inspect::{Condition, Explanation, KeyHistory, LintOptions, Removal, Step};
pub use parser::Options;
pub use source::{FsSource, MemSource, Source, SourceError};
pub use stream::StreamError;
