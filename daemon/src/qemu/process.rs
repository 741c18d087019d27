//! One process that outlives the daemon: started, watched by pidfd, found again, killed.
//!
//! A process is named by its id, the time it was started and the boot it was started in, so that a reused id is not
//! taken for it. Its end is noticed through its pidfd; nothing polls. Dropping a [`Process`] leaves the process alone.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::{io::unix::AsyncFd, sync::watch, time::timeout};

use super::launch;
use crate::cgroup::Cgroup;

/// A process, beyond its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its id.
    pub pid: u32,
    /// When it was started, in the kernel's ticks since boot.
    pub start_ticks: u64,
    /// The boot it was started in.
    pub boot_id: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It was not our child any more, so the kernel told its parent.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "signal {name}"),
                Err(_) => write!(f, "signal {signal}"),
            },
            Self::Unknown => f.write_str("exit status unknown: it was not our child any more"),
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The vtd binary: the way into a session and group of its own.
    pub vtd: PathBuf,
    /// The program, as a path.
    pub program: PathBuf,
    /// Its words.
    pub args: Vec<String>,
    /// Where stdout and stderr are appended.
    pub output: PathBuf,
    /// The group it lives in, where there is one.
    pub cgroup: Option<Cgroup>,
    /// The kernel may end it where memory is short, whatever holds for the daemon.
    pub expendable: bool,
    /// Macvtaps whose devices it has open, by name; `fd=NAME` in its words becomes the descriptor's number.
    pub macvtaps: Vec<String>,
    /// Variables of its environment beside the daemon's own, which hold where they say something else.
    pub environment: Vec<(&'static str, String)>,
}

/// A running or ended process.
#[derive(Debug, Clone)]
pub struct Process {
    id: ProcessId,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Starts it. An error means that nothing was started.
    pub fn spawn(launch: &Launch) -> io::Result<Self> {
        let output = fs::OpenOptions::new().create(true).append(true).open(&launch.output)?;
        let mut command = tokio::process::Command::new(&launch.vtd);
        command.arg(launch::WORD);
        if launch.expendable {
            command.arg(launch::EXPENDABLE);
        }
        if let Some(cgroup) = &launch.cgroup {
            command.arg("--cgroup").arg(cgroup.path());
        }
        for name in &launch.macvtaps {
            command.arg(launch::MACVTAP).arg(name);
        }
        command.arg(&launch.program).args(&launch.args);
        let unsaid = launch.environment.iter().filter(|(name, _)| std::env::var_os(name).is_none());
        command.envs(unsaid.map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).current_dir("/");
        let mut child = command.spawn()?;
        // Not reaped before `wait` below, so the id is still its own.
        let pid = child.id().ok_or_else(|| io::Error::other("ended before it was seen"))?;
        let pidfd = Arc::new(open_pidfd(pid)?);
        let stat = stat(pid).ok_or_else(|| io::Error::other("it has no /proc/PID/stat"))?;
        let id = ProcessId { pid, start_ticks: stat.start_ticks, boot_id: boot_id() };
        let (tell, exit) = watch::channel(None);
        tokio::spawn(async move {
            use std::os::unix::process::ExitStatusExt;
            let exit = match child.wait().await {
                Ok(status) => match (status.code(), status.signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => Exit::Unknown,
                },
                Err(_) => Exit::Unknown,
            };
            tell.send_replace(Some(exit));
        });
        Ok(Self { id, pidfd, exit })
    }

    /// Finds a process again; `None` if it has ended, also when its id is somebody else's now.
    pub fn attach(id: &ProcessId) -> io::Result<Option<Self>> {
        if id.boot_id != boot_id() {
            return Ok(None);
        }
        let pidfd = match open_pidfd(id.pid) {
            Ok(pidfd) => Arc::new(pidfd),
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Read after the pidfd was opened: if it is the same process now, the pidfd is of that process.
        match stat(id.pid) {
            Some(stat) if stat.start_ticks == id.start_ticks && !stat.dead => {}
            _ => return Ok(None),
        }
        let (tell, exit) = watch::channel(None);
        #[expect(deprecated, reason = "the successor is unsafe; an OwnedFd is what it asks for: one open descriptor")]
        let readable = AsyncFd::with_interest(pidfd.try_clone()?, tokio::io::Interest::READABLE)?;
        tokio::spawn(async move {
            let _ = readable.readable().await;
            tell.send_replace(Some(Exit::Unknown));
        });
        Ok(Some(Self { id: id.clone(), pidfd, exit }))
    }

    /// What names it.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.id.pid
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            _ => Exit::Unknown,
        }
    }

    /// SIGKILL. One that has ended is killed already.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// SIGKILL, and waits until it has ended; `None` if the kernel does not let it go within `patience`.
    pub async fn kill_and_wait(&self, patience: Duration) -> io::Result<Option<Exit>> {
        self.kill()?;
        Ok(timeout(patience, self.ended()).await.ok())
    }
}

/// A pidfd of a process.
pub(crate) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a process id"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

pub(crate) struct Stat {
    pub(crate) start_ticks: u64,
    /// Ended, and not yet reaped.
    pub(crate) dead: bool,
}

/// What the kernel says of a process.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in brackets may itself hold blanks and brackets: the fields begin after the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    Some(Stat { dead: matches!(state, "Z" | "X" | "x"), start_ticks: fields.nth(18)?.parse().ok()? })
}

/// The id of this boot of the kernel.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Living processes one of whose words contains `needle`, with their words. The caller itself is left out.
pub(crate) fn processes_with(needle: &str) -> Vec<(u32, Vec<String>)> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<(u32, Vec<String>)> = pids
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let text = String::from_utf8_lossy(&bytes);
            let words: Vec<String> = text.split('\0').map(str::to_owned).collect();
            let alive = words.iter().any(|word| word.contains(needle)) && stat(pid).is_some_and(|stat| !stat.dead);
            alive.then_some((pid, words))
        })
        .collect();
    found.sort_by_key(|(pid, _)| *pid);
    found
}

/// The last `lines` lines of a file, at most 4 KiB of them; empty if it cannot be read.
pub(crate) fn last_lines(file: &Path, lines: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    const MAX: u64 = 4096;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(file)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX)))?;
        let mut bytes = Vec::new();
        file.take(MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The path of a program: a path as it is, a name looked up in `PATH`; `None` if no executable file is there.
pub fn resolve_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runnable =
        |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if name.contains('/') {
        let path = PathBuf::from(name);
        return runnable(&path).then_some(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| runnable(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_does_not_shift_the_fields() {
        let line = "4 (a) R (b) S 1 4 4 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 987654 1 2";
        let seen = parse_stat(line).unwrap();
        assert_eq!((seen.start_ticks, seen.dead), (987_654, false));
        assert!(parse_stat("4 (x) Z 1 4 4 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 5 1 2").unwrap().dead);
        assert!(parse_stat("rubbish").is_none() && parse_stat("1 (x) R 1").is_none());
        assert!(stat(std::process::id()).is_some());
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert!(resolve_program("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(resolve_program("/bin/sh"), Some("/bin/sh".into()));
        for name in ["no-such-program-anywhere", "/etc/passwd", "/no/such", ""] {
            assert_eq!(resolve_program(name), None, "{name}");
        }
    }

    #[test]
    fn the_last_lines_of_a_file_are_bounded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "x".repeat(10_000) + "\na\n\nb\nc\n").unwrap();
        assert_eq!(last_lines(file.path(), 2), "b\nc");
        assert!(last_lines(file.path(), 100).len() <= 4096);
        assert_eq!(last_lines(Path::new("/no/such"), 3), "");
    }

    #[tokio::test]
    async fn a_process_of_another_boot_or_start_is_not_found() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let start_ticks = stat(child.id()).unwrap().start_ticks;
        let id = ProcessId { pid: child.id(), start_ticks, boot_id: boot_id() };
        let other_boot = ProcessId { boot_id: "other".into(), ..id.clone() };
        let other_start = ProcessId { start_ticks: id.start_ticks + 1, ..id.clone() };
        assert!(Process::attach(&other_boot).unwrap().is_none());
        assert!(Process::attach(&other_start).unwrap().is_none());
        let process = Process::attach(&id).unwrap().unwrap();
        assert_eq!(process.exit(), None);
        process.kill().unwrap();
        assert_eq!(timeout(Duration::from_secs(20), process.ended()).await.unwrap(), Exit::Unknown);
        assert!(Process::attach(&id).unwrap().is_none(), "a zombie is not running");
        child.wait().unwrap();
        process.kill().unwrap();
    }
}
