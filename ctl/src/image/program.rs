//! Runs the programs that a build needs, and tells apart what can go wrong with them.

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, Stdio},
};

use super::error::ImageError;

/// Most of a program's stderr that is kept, in bytes from the end.
const SAID_MAX: usize = 8 * 1024;

/// Runs a program to its end and returns its stdout. `step` says what for, `writes` where it writes.
pub(super) fn run<I>(program: impl AsRef<OsStr>, arguments: I, step: &str, writes: &Path) -> Result<Vec<u8>, ImageError>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let name = program.as_ref().to_string_lossy().into_owned();
    let output = Command::new(program)
        .args(arguments)
        .current_dir(writes)
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ImageError::Program { program: name.clone(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr[output.stderr.len().saturating_sub(SAID_MAX)..]).into_owned();
    if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
        return Err(ImageError::DiskFull { path: writes.into() });
    }
    Err(ImageError::ProgramFailed { program: name, step: step.into(), status: output.status.to_string(), said })
}
