//! The data directory of a daemon: locked for as long as the daemon lives, and where things are in it.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use vt_protocol::error::{ErrorCode, Report};

use crate::qemu::record::write_whole;

/// Name of the lock's file.
const LOCK: &str = "lock";
/// Name of the file that says when the state of the cluster was last saved.
const SAVED: &str = "saved";

/// When the state of the cluster was last saved to a file by way of the host with this data directory, seconds since 1970; 0
/// where it never was.
pub fn saved_unix_s(directory: &Path) -> u64 {
    fs::read_to_string(directory.join(SAVED)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The data directory, locked.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Opens and locks the directory, making it where it is missing (mode 0700).
    ///
    /// # Errors
    /// Another daemon uses it, or it cannot be made.
    pub fn open(path: &Path) -> Result<Self, Report> {
        let failed = |error: &dyn std::error::Error| {
            Report::new(ErrorCode::StorageFailed, "the data directory cannot be used")
                .with("directory", path.display().to_string())
                .with("system", error.to_string())
                .help(format!(
                    "see to its disk (findmnt -T {} tells whether it is read-only), then start vtd again",
                    path.display()
                ))
        };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700))).map_err(|e| failed(&e))?;
        let file = File::options().create(true).truncate(false).write(true).open(path.join(LOCK));
        let file = file.map_err(|error| failed(&error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                // For people who look; the lock itself is what counts.
                let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let pid = fs::read_to_string(path.join(LOCK)).unwrap_or_default();
                Err(Report::new(ErrorCode::AlreadyClaimed, "another vtd uses this data directory")
                    .with("directory", path.display().to_string())
                    .with("process", pid.trim())
                    .help("stop the other daemon, or give this one a data directory of its own under [paths]"))
            }
            Err((_, error)) => Err(failed(&error)),
        }
    }

    /// Where the claim to a cluster is: identity and record.
    pub fn cluster(&self) -> PathBuf {
        self.path.join("cluster")
    }

    /// Where consensus keeps its log and state.
    pub fn raft(&self) -> PathBuf {
        self.path.join("raft")
    }

    /// A file that is there from the beginning of a claim until log and state were made.
    pub fn fresh(&self) -> PathBuf {
        self.path.join("raft.new")
    }

    /// A file that is there when the cluster was recovered without this host: the generation it met.
    pub fn superseded(&self) -> PathBuf {
        self.path.join("superseded")
    }

    /// Writes down that the state of the cluster was saved to a file by way of this host.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note_saved(&self, unix_s: u64) -> io::Result<()> {
        write_whole(&self.path.join(SAVED), format!("{unix_s}\n").as_bytes())
    }

    /// Where blobs are.
    pub fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// Where evidence of attempts is.
    pub fn attempts(&self) -> PathBuf {
        self.path.join("attempts")
    }

    /// Where copies of other hosts' evidence are while they are made.
    pub fn copies(&self) -> PathBuf {
        self.path.join("copies")
    }

    /// Where the audit trail of this host is.
    pub fn audit(&self) -> PathBuf {
        self.path.join("audit")
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_serves_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let refused = DataDir::open(&path).unwrap_err();
        assert_eq!(refused.title, "another vtd uses this data directory");
        assert_eq!(refused.evidence[1].1, std::process::id().to_string());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(first);
        DataDir::open(&path).unwrap();
    }
}
