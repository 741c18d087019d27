//! What QEMU's own tool says of a disk and does with it.

use std::{ffi::OsStr, path::Path, time::Duration};

use serde_json::Value;
use vt_protocol::{
    catalogue::ImageFormat,
    error::{ErrorCode, Report},
};

use super::tool::{Said, Tool};

pub(crate) const QEMU_IMG: Tool = Tool {
    name: "qemu-img",
    package: "qemu-utils",
    missing: ErrorCode::QemuMissing,
    patience: Duration::from_secs(3600),
};

/// Most lines of a complaint that are quoted.
const QUOTED_LINES: usize = 6;

/// The exit code of `qemu-img check` for leaked clusters, which cost space and hurt nobody.
const LEAKED: i32 = 3;

/// What the guest sees of a disk, bytes.
///
/// # Errors
/// The tool cannot make sense of it.
pub(super) async fn virtual_bytes(disk: &Path, format: ImageFormat) -> Result<u64, Report> {
    let said = run(&["info", "--output=json", "-f", format.name()], &[disk]).await?;
    size_in(&said).ok_or_else(|| refused(&said, "qemu-img cannot read it"))
}

/// The same in the answer of the tool; `None`: it says something else.
pub(crate) fn size_in(said: &Said) -> Option<u64> {
    let info = serde_json::from_slice::<Value>(&said.out).ok().filter(|_| said.code == Some(0));
    info?["virtual-size"].as_u64()
}

/// Looks for damage inside a qcow2 disk. Says what was found and does not matter.
///
/// # Errors
/// It is corrupt.
pub(crate) async fn check(disk: &Path) -> Result<Option<String>, Report> {
    let said = run(&["check", "--output=json", "-f", "qcow2"], &[disk]).await?;
    match said.code {
        Some(0) => Ok(None),
        Some(LEAKED) => {
            let leaks = serde_json::from_slice::<Value>(&said.out).ok().and_then(|found| found["leaks"].as_u64());
            Ok(Some(format!("{} clusters of it are allocated and not used", leaks.unwrap_or_default())))
        }
        _ => Err(refused(&said, "it is corrupt inside")),
    }
}

/// Makes a disk name another image below it, without either being read.
///
/// # Errors
/// The tool refuses.
pub(super) async fn rebase(disk: &Path, backing: &str, format: ImageFormat) -> Result<(), Report> {
    let said = run(&["rebase", "-q", "-u", "-f", "qcow2", "-F", format.name(), "-b", backing], &[disk]).await?;
    done(&said, "it cannot be put upon its backing image")
}

/// Writes what the guest sees of a disk into a new file.
///
/// # Errors
/// The tool refuses, or there is no room.
pub(super) async fn convert(
    (from, is): (&Path, ImageFormat),
    (to, becomes): (&Path, ImageFormat),
    compress: bool,
) -> Result<(), Report> {
    let mut words = vec!["convert", "-q", "-f", is.name(), "-O", becomes.name()];
    words.extend(compress.then_some("-c"));
    done(&run(&words, &[from, to]).await?, "it cannot be converted")
}

fn done(said: &Said, title: &str) -> Result<(), Report> {
    if said.code == Some(0) { Ok(()) } else { Err(refused(said, title)) }
}

fn refused(said: &Said, title: &str) -> Report {
    let report = match said.is_full() {
        true => Report::new(ErrorCode::DiskFull, format!("the pool is full: {title}")),
        false => Report::new(ErrorCode::ImageRefused, title),
    };
    // It may have a line for every cluster.
    let words = said.words();
    report.with("qemu-img", words.lines().take(QUOTED_LINES).collect::<Vec<_>>().join("\n"))
}

async fn run(words: &[&str], files: &[&Path]) -> Result<Said, Report> {
    let words: Vec<&OsStr> = words.iter().map(OsStr::new).chain(files.iter().map(|file| file.as_os_str())).collect();
    QEMU_IMG.run(&words, None).await
}
