//! What `--fix` does: only what takes nothing from anybody and can be undone.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::PathBuf,
};

/// One thing that is safe to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Repair {
    /// Make a directory that only root can write.
    Make {
        /// Which.
        path: PathBuf,
    },
    /// Take rights from a directory.
    Mode {
        /// Which.
        path: PathBuf,
        /// What stays.
        mode: u32,
    },
}

impl Repair {
    /// The same as a command.
    pub(super) fn command(&self) -> String {
        match self {
            Self::Make { path } => format!("mkdir -p -m 0755 {}", path.display()),
            Self::Mode { path, mode } => format!("chmod {mode:04o} {}", path.display()),
        }
    }

    /// Does it.
    pub(super) fn apply(&self) -> io::Result<()> {
        match self {
            Self::Make { path } => DirBuilder::new().recursive(true).mode(0o755).create(path),
            Self::Mode { path, mode } => fs::set_permissions(path, Permissions::from_mode(*mode)),
        }
    }
}
