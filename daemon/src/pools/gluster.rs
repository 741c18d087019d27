//! A volume of Gluster. QEMU reaches its disks by its own driver; what is ours to do there (a disk made, removed, looked
//! for) is an errand: glusterfs's own client mounts the volume for a few milliseconds, where nobody else sees it.
//!
//! **What protects a disk here.** QEMU's driver takes no locks, and Gluster looks at who writes only when a file is opened: a
//! writer whose epoch is over is not refused. What there is, is the owner's record and the guard, which pauses and ends a
//! VM whose host is cut off. A machine that was frozen as a whole is not kept off, and `storage check` says so.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt as _, process::Command};
use vt_protocol::{
    error::{ErrorCode, Report},
    pool::GlusterPlace,
};

use super::{in_time, opened::quote};
use crate::images::tool::hear;

/// How long an errand may take.
const ERRAND: Duration = Duration::from_secs(60);
/// Where a new connection to glusterd goes.
const PORT: u16 = 24007;

/// Around every errand. The mount and the client end with this shell: they are in namespaces of its own.
const AROUND: &str = "set -eu; umask 077; server=$1 port=$2 volume=$3; shift 3\n\
                      glusterfs --volfile-server=\"$server\" --volfile-server-port=\"$port\" --volfile-id=\"$volume\" \
                      --log-file=/dev/stderr --log-level=ERROR /mnt\n\
                      cd /mnt\n";

/// A file named `$1` is made of standard input, and is safe when this ends.
pub(super) const PUT: &str = "rm -f -- \"$1\"; cat >\"$1\"; sync -- \"$1\"";
/// The beginning of it.
pub(super) const HEAD: &str = "head -c 4096 -- \"$1\"";
/// It is removed, if it is there.
pub(super) const REMOVE: &str = "rm -f -- \"$1\"";
/// All names.
pub(super) const LIST: &str = "ls -A";
/// Bytes that are free.
pub(super) const FREE: &str = "df --output=avail -B1 . | tail -n 1";

/// Does something in a volume, and returns what that printed.
///
/// # Errors
/// The volume is not there, or it did not work.
pub(super) async fn errand(place: &GlusterPlace, script: &str, words: &[&str], input: &[u8]) -> Result<String, Report> {
    let failed = |title: String| Report::new(ErrorCode::StorageFailed, title).with("pool", place.to_string());
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
        .args([format!("{AROUND}{script}").as_str(), "sh", &place.server])
        .args([&place.port.unwrap_or(PORT).to_string(), &place.volume])
        .args(words)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let work = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends before it has read everything says why by itself.
            let _ = stdin.write_all(input).await;
        }
        hear(child).await
    };
    let no_mount = |error| failed("a volume cannot be mounted here".to_owned()).caused_by(&error);
    let done = in_time((place.server.as_str(), place), ERRAND, async { work.await.map_err(no_mount) }).await?;
    if done.code == Some(0) {
        return Ok(String::from_utf8_lossy(&done.out).into_owned());
    }
    let said = quote(&done.err);
    Err(if done.is_full() {
        Report::new(ErrorCode::DiskFull, "the pool is full").with("pool", place.to_string())
    } else if done.code == Some(127) {
        failed("Gluster's client is not on this host".to_owned()).help("apt-get install glusterfs-client")
    } else {
        failed(format!("volume {} of {} cannot be used", place.volume, place.server))
            .help("gluster volume status VOLUME   (at the server)")
    }
    .with("said", said))
}
