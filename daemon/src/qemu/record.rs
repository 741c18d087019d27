//! What is on disk about a running VM, so that a daemon that comes back finds it: `vm.json` in its run folder.
//!
//! Written before QEMU is started and again when its process id is known, each time as a whole (temporary file, rename).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vt_protocol::vm::{Accelerator, VmSpec};

use super::process::ProcessId;

/// The record's file name.
pub const RECORD_FILE: &str = "vm.json";
const VERSION: u32 = 1;

/// What is known of a VM's process and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Form of this file.
    pub version: u32,
    /// The VM.
    pub spec: VmSpec,
    /// Versioned machine type.
    pub machine: String,
    /// How instructions are run.
    pub accelerator: Accelerator,
    /// CPU model.
    pub cpu_model: String,
    /// Whether it was started to receive a migration.
    pub incoming: bool,
    /// The process; `None` while it is being started.
    pub process: Option<ProcessId>,
    /// Folder of its control group, where it has one.
    pub cgroup: Option<PathBuf>,
    /// Its taps.
    pub taps: Vec<String>,
    /// Folder of its evidence.
    pub evidence: PathBuf,
}

impl VmRecord {
    /// The form written by this build.
    pub const VERSION: u32 = VERSION;

    /// Writes it into `run_dir`, whole or not at all.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        write_whole(&run_dir.join(RECORD_FILE), &serde_json::to_vec_pretty(self)?)
    }

    /// Reads it from `run_dir`; `None` if there is none.
    pub fn read(run_dir: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(run_dir.join(RECORD_FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: Self = serde_json::from_slice(&bytes)?;
        if record.version != VERSION {
            return Err(io::Error::other(format!("{RECORD_FILE} has version {}, wanted {VERSION}", record.version)));
        }
        Ok(Some(record))
    }
}

/// Writes a file so that a reader sees the old content or the new, also after a crash.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with(path, bytes, fs::OpenOptions::new().write(true).create(true).truncate(true))
}

/// The same, for its owner alone.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    write_with(path, bytes, fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600))
}

fn write_with(path: &Path, bytes: &[u8], options: &fs::OpenOptions) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let write = || {
        let mut file = options.open(&temporary)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}
