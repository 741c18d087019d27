//! `vtd session`: holds what runs in a terminal of a guest for a daemon that comes and goes. The terminal's other end is a Unix
//! socket, as a serial console is one of QEMU's: who connects last is spoken to, and of what is said while nobody listens the
//! end is kept.
//!
//! It ends with its client, and when its socket is taken away. What may not happen here: anything about what is said.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use clap::Args;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    process::Command,
    time::{interval, timeout},
};

use crate::cgroup::Cgroup;

/// The word of the command line.
const WORD: &str = "session";
/// Kept of what nobody has heard, bytes.
const KEPT: usize = 64 << 10;
/// How often is looked whether the socket is still wanted.
const LOOK: Duration = Duration::from_millis(200);
/// How long whoever is connected may take to hear; who takes longer is not spoken to any more.
const HEARS: Duration = Duration::from_secs(10);

/// Its words.
#[derive(Debug, Args)]
pub struct HolderWords {
    /// Where it is spoken to.
    #[arg(long)]
    socket: PathBuf,
    /// The control group that it and its client are to be in.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// What runs in the terminal.
    #[arg(last = true, required = true)]
    client: Vec<String>,
}

/// The command that holds a client at a socket; words and variables that it gets besides go to the client.
pub(super) fn command(vtd: &Path, socket: &Path, cgroup: Option<&Cgroup>, client: &str) -> Command {
    let mut command = Command::new(vtd);
    command.arg(WORD).arg("--socket").arg(socket);
    if let Some(group) = cgroup {
        command.arg("--cgroup").arg(group.path());
    }
    command.arg("--").arg(client);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Holds a client until it ends. Returns the exit code.
pub fn run(words: &HolderWords) -> u8 {
    // What ends the daemon is not meant for this process.
    let _ = nix::unistd::setsid();
    if let Some(group) = &words.cgroup {
        // Where that fails it still ends with its socket.
        let _ = Cgroup::at(group.clone()).enter();
    }
    let Some((program, arguments)) = words.client.split_first() else { return 1 };
    let mut client = Command::new(program);
    client.args(arguments);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let held = runtime.and_then(|runtime| runtime.block_on(hold(&words.socket, client)));
    u8::from(held.is_err())
}

/// Runs a client with its terminal at a socket.
async fn hold(socket: &Path, mut client: Command) -> io::Result<()> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    client.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs).kill_on_drop(true);
    let _process = client.spawn()?;
    // It holds our copies of the client's ends: without them gone, its end would not be seen.
    drop(client);
    ours.set_nonblocking(true)?;
    let mut terminal = UnixStream::from_std(ours)?;
    // Made last: who sees it finds the client running.
    let listener = UnixListener::bind(socket)?;
    let (mut said, mut keys) = ([0; 4096], [0; 4096]);
    let (mut unheard, mut daemon) = (Vec::new(), None);
    let mut look = interval(LOOK);
    loop {
        tokio::select! {
            length = terminal.read(&mut said) => match length {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    unheard.extend_from_slice(&said[..length]);
                    tell(&mut daemon, &mut unheard).await;
                }
            },
            accepted = listener.accept() => {
                daemon = Some(accepted?.0);
                tell(&mut daemon, &mut unheard).await;
            }
            length = typed(&mut daemon, &mut keys) => match length {
                Ok(0) | Err(_) => daemon = None,
                Ok(length) if terminal.write_all(&keys[..length]).await.is_err() => break,
                Ok(_) => {}
            },
            _ = look.tick() => if !socket.exists() {
                return Ok(());
            },
        }
    }
    // Why the client has ended is what it said last.
    if daemon.is_none() && !unheard.is_empty() {
        daemon = timeout(HEARS, listener.accept()).await.ok().and_then(Result::ok).map(|(stream, _)| stream);
        tell(&mut daemon, &mut unheard).await;
    }
    tokio::fs::remove_file(socket).await
}

/// The next keys of whoever is connected.
async fn typed(daemon: &mut Option<UnixStream>, keys: &mut [u8]) -> io::Result<usize> {
    match daemon {
        Some(stream) => stream.read(keys).await,
        None => std::future::pending().await,
    }
}

/// Tells what is unheard to whoever is connected, else keeps the end of it.
async fn tell(daemon: &mut Option<UnixStream>, unheard: &mut Vec<u8>) {
    if let Some(stream) = daemon {
        match timeout(HEARS, stream.write_all(unheard)).await {
            Ok(Ok(())) => return unheard.clear(),
            // A part of it may have been heard: more is better than less, for what is said is looked at again.
            _ => *daemon = None,
        }
    }
    let gone = unheard.len().saturating_sub(KEPT);
    unheard.drain(..gone);
}

#[cfg(test)]
mod tests {
    use tokio::{task::JoinHandle, time::Instant};

    use super::*;
    use crate::guest::console::{Console, Credentials};

    /// A shell that says who it is, with a prompt.
    const SHELL: &str = "while printf 'guest$ '; IFS= read -r -d $'\\r' line; do eval \"${line#$'\\x03'}\"; done";

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn held(socket: &Path, script: &str) -> JoinHandle<io::Result<()>> {
        let mut client = Command::new("bash");
        client.args(["-c", script]);
        let socket = socket.to_owned();
        tokio::spawn(async move { hold(&socket, client).await })
    }

    async fn console(socket: &Path) -> Console {
        Console::connect(socket, Credentials::default(), soon()).await.unwrap()
    }

    #[tokio::test]
    async fn whoever_comes_next_speaks_to_the_same_shell_until_its_socket_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let holder = held(&socket, SHELL);
        let mut first = console(&socket).await;
        let said = first.run("mine=kept; echo $$", soon()).await.unwrap();
        drop(first);
        let mut second = console(&socket).await;
        assert_eq!(second.run("echo $$", soon()).await.unwrap(), said);
        // One that comes while another is there takes its place.
        let mut third = console(&socket).await;
        assert_eq!(third.run("echo $$", soon()).await.unwrap(), said);
        assert!(second.run("echo $$", soon()).await.is_err());
        std::fs::remove_file(&socket).unwrap();
        holder.await.unwrap().unwrap();
        assert!(third.run("echo $$", soon()).await.is_err(), "the shell is gone");
    }

    #[tokio::test]
    async fn last_words_are_heard_by_who_comes_after_them_and_a_flood_is_kept_within_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, said) = (folder.path().join("s"), folder.path().join("said"));
        let flood = format!("head -c 3000000 /dev/zero | tr '\\0' x; echo refused; : >{}", said.display());
        let holder = held(&socket, &flood);
        let until = soon();
        while !said.exists() {
            assert!(Instant::now() < until, "it is not heard out");
            tokio::time::sleep(LOOK).await;
        }
        let mut console = console(&socket).await;
        assert!(console.last_words().await.ends_with("refused"));
        holder.await.unwrap().unwrap();
        assert!(!socket.exists());
    }
}
