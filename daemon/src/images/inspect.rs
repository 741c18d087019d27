//! What QEMU's own tool says of a disk, asked within bounds: the file may be made to hurt its reader.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};
use vt_protocol::{
    catalogue::ImageFormat,
    error::{ErrorCode, Report},
};

/// Most memory and CPU time of the tool, in bytes and seconds.
const MEMORY: u64 = 4 << 30;
const CPU_S: u64 = 600;
/// Longest time until it answers.
const PATIENCE: Duration = Duration::from_secs(900);
/// Most bytes of an answer.
const ANSWER_MAX: u64 = 1 << 20;

/// The exit code of `qemu-img check` for leaked clusters, which cost space and hurt nobody.
const LEAKED: i32 = 3;

/// What the guest sees of a disk, bytes.
///
/// # Errors
/// The tool cannot make sense of it.
pub(super) async fn virtual_bytes(disk: &Path, format: ImageFormat) -> Result<u64, Report> {
    let said = run(&["info", "--output=json", "-f", format.name()], disk).await?;
    let size = serde_json::from_slice::<Value>(&said.out).ok().and_then(|info| info["virtual-size"].as_u64());
    match size {
        Some(size) if said.code == Some(0) => Ok(size),
        _ => Err(said.refused("qemu-img cannot read it")),
    }
}

/// Looks for damage inside a qcow2 disk. Says what was found and does not matter.
///
/// # Errors
/// It is corrupt.
pub(super) async fn check(disk: &Path) -> Result<Option<String>, Report> {
    let said = run(&["check", "--output=json", "-f", "qcow2"], disk).await?;
    match said.code {
        Some(0) => Ok(None),
        Some(LEAKED) => {
            let leaks = serde_json::from_slice::<Value>(&said.out).ok().and_then(|found| found["leaks"].as_u64());
            Ok(Some(format!("{} clusters of it are allocated and not used", leaks.unwrap_or_default())))
        }
        _ => Err(said.refused("it is corrupt inside")),
    }
}

/// Makes a disk name another image below it, without either being read.
///
/// # Errors
/// The tool refuses.
pub(super) async fn rebase(disk: &Path, backing: &str, format: ImageFormat) -> Result<(), Report> {
    let words = ["rebase", "-q", "-u", "-f", "qcow2", "-F", format.name(), "-b", backing];
    let said = run(&words, disk).await?;
    if said.code == Some(0) { Ok(()) } else { Err(said.refused("it cannot be put upon its backing image")) }
}

struct Said {
    code: Option<i32>,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Said {
    fn refused(&self, title: &str) -> Report {
        let words = String::from_utf8_lossy(&self.err);
        Report::new(ErrorCode::ImageRefused, title).with("qemu-img", words.trim())
    }
}

async fn run(words: &[&str], disk: &Path) -> Result<Said, Report> {
    let mut command = Command::new("prlimit");
    command.args([format!("--as={MEMORY}"), format!("--cpu={CPU_S}"), "--core=0".to_owned()]);
    command.arg("qemu-img").args(words).arg(disk);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let missing = |error: std::io::Error| {
        Report::new(ErrorCode::QemuMissing, "qemu-img is not there or cannot be run")
            .help("apt-get install qemu-utils util-linux")
            .caused_by(&error)
    };
    let child = command.spawn().map_err(missing)?;
    match timeout(PATIENCE, hear(child)).await {
        Ok(said) => said.map_err(missing),
        Err(_) => {
            let title = format!("qemu-img was not done with it after {} s", PATIENCE.as_secs());
            Err(Report::new(ErrorCode::ImageRefused, title))
        }
    }
}

async fn hear(mut child: Child) -> std::io::Result<Said> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read_out = async {
        if let Some(stdout) = stdout {
            let _ = stdout.take(ANSWER_MAX).read_to_end(&mut out).await;
        }
    };
    let read_err = async {
        if let Some(stderr) = stderr {
            let _ = stderr.take(ANSWER_MAX).read_to_end(&mut err).await;
        }
    };
    tokio::join!(read_out, read_err);
    let status = child.wait().await?;
    Ok(Said { code: status.code(), out, err })
}
