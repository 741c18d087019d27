//! Whether the kernel of this host can carry a guest's packets (vhost), asked of the QEMU that would have it do so.
//!
//! A QEMU that is told `vhost=on` on a host without it says so on stderr and carries the packets itself: a test of vhost
//! would be one of something else. So it is asked before, and told then that it must.

use std::{fs, path::Path, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// The kernel's part of it.
pub const DEVICE: &str = "/dev/vhost-net";
/// What makes a QEMU carry a tap's packets by the kernel, or not start.
pub const OPTIONS: &str = "vhost=on,vhostforce=on";
/// How long a QEMU may take to start with such a tap and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most of QEMU's words that are told, characters.
const WORDS_MAX: usize = 300;

/// Whether a QEMU starts with a tap whose packets the kernel carries by `device`.
///
/// # Errors
/// It does not; in the words of the kernel or of QEMU.
pub async fn probe(qemu: &Path, device: &Path) -> Result<(), String> {
    if let Err(error) = fs::File::options().read(true).write(true).open(device) {
        return Err(format!("{} cannot be opened: {error}", device.display()));
    }
    // The kernel puts a free number for `%d`, and the tap ends with its QEMU.
    let card = format!("tap,id=vhost,ifname=vmprobe%d,script=no,downscript=no,{OPTIONS}");
    let run = async {
        let mut child = Command::new(qemu)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-S"])
            .args(["-monitor", "stdio", "-netdev", &card])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that has ended is told by how it did.
            let _ = stdin.write_all(b"quit\n").await;
        }
        child.wait_with_output().await
    };
    match timeout(PATIENCE, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let words = String::from_utf8_lossy(&output.stderr);
            let words: String = words.trim().chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
            Err(format!("QEMU does not start with it ({}): {words}", output.status))
        }
        Ok(Err(error)) => Err(format!("QEMU cannot be run: {error}")),
        Err(_) => Err(format!("QEMU does not start with it within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn it_works_where_a_qemu_starts_with_it_and_the_reason_is_told_where_not() {
        let folder = tempfile::tempdir().unwrap();
        let qemu = |name: &str, does: &str| {
            let file = folder.path().join(name);
            fs::write(&file, format!("#!/bin/sh\n{does}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            file
        };
        let starts = qemu("starts", "case \"$*\" in *vhost=on,vhostforce=on*) read quit; exit 0;; esac; exit 3");
        let refuses = qemu("refuses", "echo 'qemu: vhost-net requested but could not be initialized' >&2; exit 1");
        let there = Path::new("/dev/null");
        assert_eq!(probe(&starts, there).await, Ok(()));
        let why = probe(&refuses, there).await.unwrap_err();
        assert!(why.contains("exit status: 1") && why.contains("could not be initialized"), "{why}");
        let why = probe(&starts, &folder.path().join("vhost-net")).await.unwrap_err();
        assert!(why.contains("vhost-net cannot be opened: No such file"), "{why}");
        let why = probe(&folder.path().join("none"), there).await.unwrap_err();
        assert!(why.contains("QEMU cannot be run"), "{why}");
    }
}
