//! A disk that QEMU's driver has open: `qemu-io`, which does what it is told, for trials of pools.

use std::process::Stdio;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// QEMU's tool that does single reads and writes.
const QEMU_IO: &str = "qemu-io";
/// What it prints when it waits.
const PROMPT: &[u8] = b"qemu-io> ";
/// What it says where bytes are not what they should be.
pub(super) const OTHERWISE: &str = "verification failed";
/// And where it could not do it.
pub(super) const FAILED: &str = "failed";
/// Most that it may say, bytes.
const SAID_MAX: u64 = 8 << 20;
/// How much of it is quoted, characters.
const QUOTE: usize = 600;

/// The open disk. The tool is killed when this is dropped, for drivers may take seconds to close.
pub(super) struct Opened {
    _child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Opened {
    /// Opens it; `uri` as the driver has it. Bounded by the caller.
    ///
    /// # Errors
    /// In the words of QEMU.
    pub(super) async fn open(uri: &str) -> Result<Self, String> {
        let mut child = Command::new(QEMU_IO)
            .args(["-f", "raw", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{QEMU_IO}: {error}"))?;
        let (Some(stdin), Some(mut stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("qemu-io has no pipes".to_owned());
        };
        if said(&mut stdout).await.is_none() {
            let mut why = Vec::new();
            let _ = stderr.take(SAID_MAX).read_to_end(&mut why).await;
            return Err(quote(&why));
        }
        // What it warns of from here on is not read.
        Ok(Self { _child: child, stdin, stdout })
    }

    /// Has it do something; what it said.
    ///
    /// # Errors
    /// It has ended.
    pub(super) async fn tell(&mut self, command: &str) -> Result<String, String> {
        let gone = || "qemu-io has ended".to_owned();
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.map_err(|_| gone())?;
        said(&mut self.stdout).await.ok_or_else(gone)
    }

    /// Has it do all of them.
    ///
    /// # Errors
    /// One did not go well; in the words of QEMU.
    pub(super) async fn does(&mut self, commands: &[&str]) -> Result<(), String> {
        for command in commands {
            let said = self.tell(command).await?;
            if said.contains(OTHERWISE) || said.contains(FAILED) {
                return Err(format!("{command}: {}", said.trim()));
            }
        }
        Ok(())
    }
}

/// What comes before the next prompt; `None`: none comes.
async fn said(stdout: &mut ChildStdout) -> Option<String> {
    let mut all = Vec::new();
    while !all.ends_with(PROMPT) {
        if all.len() as u64 > SAID_MAX || stdout.read_buf(&mut all).await.ok()? == 0 {
            return None;
        }
    }
    all.truncate(all.len() - PROMPT.len());
    Some(String::from_utf8_lossy(&all).into_owned())
}

/// The end of what was said, without what is only noise.
pub(super) fn quote(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("is deprecated")).collect();
    let text = lines.join("\n");
    let skip = text.chars().count().saturating_sub(QUOTE);
    text.chars().skip(skip).filter(|c| !c.is_control() || *c == '\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_the_end_without_noise() {
        assert_eq!(quote(b"qemu-io: warning: 'gluster' is deprecated\ncan't open\x1b"), "can't open");
        assert_eq!(quote(&[b'a'; 5000]).len(), QUOTE);
    }
}
