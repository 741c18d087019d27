//! What can be wrong with providers, and how a user is told.

use std::{
    io,
    path::{Path, PathBuf},
};

use vt_protocol::error::{ErrorCode, Report};

use super::{Definition, perhaps};

/// Why providers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The folder is no providers folder.
    #[error("{root} is no providers folder: it has no {lacks}")]
    Layout {
        /// The folder.
        root: PathBuf,
        /// What it should have.
        lacks: &'static str,
    },
    /// A definition is wrong at one place.
    #[error("{file}:{line}: {what}")]
    Definition {
        /// The ini file.
        file: PathBuf,
        /// Line from 1.
        line: u32,
        /// What is wrong.
        what: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// No provider of this name is defined.
    #[error("no provider is called {name:?}")]
    UnknownProvider {
        /// As asked for.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// There is no such backend.
    #[error("there is no configuration for backend {name:?}")]
    UnknownBackend {
        /// As asked for.
        name: String,
        /// The providers folder.
        root: PathBuf,
        /// Those there are.
        known: Vec<String>,
    },
    /// The tree of a provider is not on this machine.
    #[error("the tests of provider {} are not here", .definition.name)]
    NotHere {
        /// Its definition.
        definition: Box<Definition>,
        /// Where they are looked for.
        tree: PathBuf,
    },
    /// A file or folder of a tree cannot be used.
    #[error("{path}: {what}")]
    Tree {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A provider came from nowhere: git failed or was not let go on.
    #[error("the tests of provider {provider} could not be fetched")]
    Git {
        /// Its name.
        provider: String,
        /// From where.
        uri: String,
        /// What became of git.
        ended: String,
        /// The end of what it said.
        said: String,
    },
    /// The system refused.
    #[error("{path} cannot be used")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ProviderError {
    pub(super) fn definition(file: &Path, line: u32, what: impl Into<String>) -> Self {
        Self::Definition { file: file.to_owned(), line, what: what.into(), help: None }
    }

    pub(super) fn tree(path: &Path, what: impl Into<String>) -> Self {
        Self::Tree { path: path.to_owned(), what: what.into() }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// As a user is told.
    pub fn report(&self) -> Report {
        let title = self.to_string();
        let report = |code| Report::new(code, title.clone()).caused_by(self);
        match self {
            Self::Layout { .. } => report(ErrorCode::BadProvider)
                .with("wanted", "a folder with test-providers.d, shared/cfg and backends, as Avocado-VT's package has"),
            Self::Definition { help, .. } => {
                let report = report(ErrorCode::BadProvider);
                help.iter().fold(report, |report, help| report.help(help.clone()))
            }
            Self::UnknownProvider { name, known } => {
                let report = report(ErrorCode::BadProvider).with("providers", known.join(" "));
                let close = perhaps(name, known.iter().map(String::as_str));
                report.help(close.unwrap_or_else(|| "vtctl provider list".to_owned()))
            }
            Self::UnknownBackend { name, root, known } => {
                let report = report(ErrorCode::BadProvider)
                    .with("folder", root.join("backends").display().to_string())
                    .with("backends", known.join(" "));
                perhaps(name, known.iter().map(String::as_str)).into_iter().fold(report, Report::help)
            }
            Self::NotHere { definition, tree } => {
                let report = report(ErrorCode::ProviderMissing)
                    .with("defined in", definition.file.display().to_string())
                    .with("looked for in", tree.display().to_string());
                if definition.is_git() {
                    report.help(format!("vtctl provider sync {}", definition.name))
                } else {
                    report.help("the uri of the definition names a folder of this machine; correct it or put it there")
                }
            }
            Self::Tree { .. } => report(ErrorCode::BadProvider),
            Self::Git { uri, ended, said, .. } => {
                let report = report(ErrorCode::ProviderMissing).with("from", uri).with("git", ended);
                said.lines().fold(report, |report, line| report.with("git said", line))
            }
            Self::Io { source, .. } => report(ErrorCode::StorageFailed).with("system", source.to_string()),
        }
    }
}

impl From<ProviderError> for Report {
    fn from(error: ProviderError) -> Self {
        error.report()
    }
}
