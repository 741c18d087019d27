//! What can go wrong when an image is built, and how a user is told.

use std::{io, path::PathBuf};

use vt_protocol::error::{ErrorCode, Report};

use super::elf::ElfError;

/// Longest quotation of a program's output, in lines from the end.
const QUOTED_LINES: usize = 6;

/// Why no image was built. Nothing but the package cache is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name cannot be that of a folder.
    #[error("{0:?} cannot be the name of an image")]
    Name(String),
    /// A recipe cannot be used: which, and why.
    #[error("recipe {0} cannot be used: {1}")]
    Recipe(String, String),
    /// The image is made from packages of this machine's architecture, and only one is supported.
    #[error("the built-in guest is made for amd64, this machine is {0}")]
    Architecture(String),
    /// A program that the build needs is not installed.
    #[error("{program} cannot be run")]
    Program {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed while {step}")]
    ProgramFailed {
        /// The program.
        program: String,
        /// What was being done.
        step: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// The package lists do not know a package.
    #[error("the package lists of this machine have no {0}")]
    NoPackage(String),
    /// What apt says of a package makes no sense.
    #[error("what apt says about {package} has no {field}")]
    PackageRecord {
        /// The package.
        package: String,
        /// The field that is missing.
        field: &'static str,
    },
    /// A downloaded file is not what the package lists say.
    #[error("the file of package {package} has another SHA-256 than its record")]
    PackageDamaged {
        /// The package.
        package: String,
        /// As the lists say.
        wanted: String,
        /// As it is.
        found: String,
    },
    /// A file that should come from a package is in none of them.
    #[error("no package brought {0}")]
    Missing(String),
    /// A program, library or module is not what it should be.
    #[error("{path} cannot be read as a program")]
    Elf {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ElfError,
    },
    /// No space left.
    #[error("the disk is full")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// A file or folder could not be used.
    #[error("{path} cannot be used")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { path, source },
        }
    }

    /// As a user is told.
    pub fn report(&self) -> Report {
        let title = self.to_string();
        let report = |code| Report::new(code, title.clone()).caused_by(self);
        match self {
            Self::Recipe(..) => report(ErrorCode::BadConfig),
            Self::Name(_) => {
                report(ErrorCode::Usage).help("use letters, digits, - and _, and begin with a letter or digit")
            }
            Self::Architecture(_) => {
                report(ErrorCode::ImageBuild).help("build the image on an amd64 machine and copy its folder")
            }
            Self::Program { source, .. } => report(ErrorCode::ImageBuild)
                .with("system", source.to_string())
                .help("the build needs a Debian 12 or 13 machine with the packages apt, dpkg and coreutils"),
            Self::ProgramFailed { step, status, said, .. } => {
                let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
                let quoted = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
                let report = report(ErrorCode::ImageBuild).with("while", step.clone()).with("ended", status.clone());
                let report = quoted.iter().fold(report, |report, line| report.with("it said", *line));
                report.help("apt-get update").help("vtctl image build")
            }
            Self::NoPackage(package) => report(ErrorCode::ImageBuild)
                .with("asked", format!("apt-cache show {package}"))
                .help("apt-get update")
                .help(format!("apt-cache policy {package}")),
            Self::Elf { path, source } => report(ErrorCode::ImageBuild)
                .with("file", path.display().to_string())
                .with("reason", source.to_string())
                .help("the probe comes with vtctl, the rest from the packages: one of them is not for this machine"),
            Self::PackageRecord { .. } | Self::Missing(_) => report(ErrorCode::ImageBuild)
                .help("the distribution's packages are not as expected; please report this with `apt-cache policy`"),
            Self::PackageDamaged { wanted, found, .. } => report(ErrorCode::ImageBuild)
                .with("wanted", wanted.clone())
                .with("found", found.clone())
                .help("the damaged file was removed; run the build again"),
            Self::DiskFull { path } => report(ErrorCode::DiskFull)
                .with("writing", path.display().to_string())
                .help("df -h")
                .help("the build needs 400 MB for a moment; choose another place for images, or free some space"),
            Self::Io { path, source } => report(ErrorCode::StorageFailed)
                .with("path", path.display().to_string())
                .with("system", source.to_string()),
        }
    }
}

impl From<&ImageError> for Report {
    fn from(error: &ImageError) -> Self {
        error.report()
    }
}
