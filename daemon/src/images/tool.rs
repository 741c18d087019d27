//! Programs of others, run within bounds: what they are given may be made to hurt its reader.

use std::{ffi::OsStr, fs::File, io, process::Stdio, time::Duration};

use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};
use vt_protocol::{
    error::{ErrorCode, Report},
    manifest::FILE_BYTES_MAX,
};

/// Most memory of a program, bytes, and most CPU time, seconds.
const MEMORY: u64 = 4 << 30;
const CPU_S: u64 = 3600;
/// Most bytes of an answer that are kept.
const ANSWER_MAX: u64 = 1 << 20;
/// What `prlimit` ends with where it cannot run the program.
const NOT_RUN: [i32; 2] = [126, 127];

/// A program, and what is said where it is not there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// The Debian package that has it.
    pub(crate) package: &'static str,
    pub(crate) missing: ErrorCode,
    /// Longest time until it is done.
    pub(crate) patience: Duration,
}

/// What it said, and how it ended.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
}

impl Said {
    /// Its complaint.
    pub(crate) fn words(&self) -> String {
        String::from_utf8_lossy(&self.err).trim().to_owned()
    }

    /// Whether it ended because the disk is full.
    pub(crate) fn is_full(&self) -> bool {
        self.words().contains("No space left on device")
    }
}

impl Tool {
    /// Runs it to its end. What it writes goes to `out`, else into the answer.
    ///
    /// # Errors
    /// It is not there, or not done in time.
    pub(crate) async fn run<W: AsRef<OsStr>>(self, words: &[W], out: Option<File>) -> Result<Said, Report> {
        self.run_with(None, words, out).await
    }

    /// The same, with a variable in its environment.
    ///
    /// # Errors
    /// It is not there, or not done in time.
    pub(crate) async fn run_with<W: AsRef<OsStr>>(
        self,
        variable: Option<(&str, String)>,
        words: &[W],
        out: Option<File>,
    ) -> Result<Said, Report> {
        let missing = || {
            Report::new(self.missing, format!("{} is not there or cannot be run", self.name))
                .help(format!("apt-get install {} util-linux", self.package))
        };
        let mut command = Command::new("prlimit");
        command.args([
            format!("--as={MEMORY}"),
            format!("--cpu={CPU_S}"),
            format!("--fsize={FILE_BYTES_MAX}"),
            "--core=0".to_owned(),
        ]);
        // What it says is looked into here, and names of files are UTF-8.
        command.arg(self.name).args(words).env("LC_ALL", "C.UTF-8").envs(variable);
        command.stdin(Stdio::null()).stdout(out.map_or_else(Stdio::piped, Stdio::from)).stderr(Stdio::piped());
        let child = command.kill_on_drop(true).spawn().map_err(|error| missing().caused_by(&error))?;
        let said = match timeout(self.patience, hear(child)).await {
            Ok(said) => said.map_err(|error| missing().caused_by(&error))?,
            Err(_) => {
                let title = format!("{} was not done with it after {} s", self.name, self.patience.as_secs());
                return Err(Report::new(ErrorCode::ImageRefused, title));
            }
        };
        if said.code.is_some_and(|code| NOT_RUN.contains(&code)) && said.words().starts_with("prlimit:") {
            return Err(missing().with("said", said.words()));
        }
        Ok(said)
    }
}

/// Waits for a program's end and hears what it says, of each stream so much.
pub(crate) async fn hear(mut child: Child) -> io::Result<Said> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_there_is_told_with_its_package_and_what_hangs_is_given_up() {
        let absent = Tool {
            name: "absent-tool",
            package: "absent",
            missing: ErrorCode::QemuMissing,
            patience: Duration::from_secs(60),
        };
        let report = absent.run(&["x"], None).await.err().unwrap();
        assert_eq!(report.code, ErrorCode::QemuMissing, "{report:?}");
        assert!(report.help[0].contains("install absent"), "{report:?}");
        let sleep = Tool { name: "sleep", package: "coreutils", patience: Duration::from_millis(50), ..absent };
        assert_eq!(sleep.run(&["60"], None).await.err().unwrap().code, ErrorCode::ImageRefused);
        let echo = Tool { name: "echo", ..absent };
        assert_eq!(echo.run(&["hello"], None).await.unwrap().out, b"hello\n");
    }
}
