//! A disk behind our own export: two exports of one file at a real server, each with a client that never stops writing its
//! own mark, and the disk given from one to the other at a random moment, while something is the matter with the host of the
//! first. The watcher reads the file at the server, past both. Without its margin the second begins without having taken the
//! disk over, under the epoch of the first.
//!
//! No guest and no daemon is in it: what is shown is that nothing has to be trusted but the server.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vt_protocol::chance;

use super::{Margin, Trouble};
use crate::{nfs_server::NfsServer, program, wait};

/// Length of the disk: blocks that the writers go round in.
const BLOCKS: u64 = 64;
const BLOCK: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(30);

/// What one seed has shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// Blocks that the first writer was told are written, before the disk went.
    pub first: u64,
    /// Blocks that the second was told are written.
    pub second: u64,
    /// How many blocks the watcher found overwritten by the first after the disk had gone.
    pub stale: u64,
}

/// `vtd export` of one file of a server, as a VM has it beside its QEMU.
pub struct Export {
    run_dir: tempfile::TempDir,
    process: Child,
}

impl Export {
    /// Starts it and waits until a client can connect. `command`: runs `vtd` in the host's network. `server`: its address
    /// there. `epoch`: the file is taken over under it at once.
    ///
    /// # Errors
    /// It cannot be started.
    ///
    /// # Panics
    /// It is not ready in time; says why.
    pub fn start(mut command: Command, server: &str, file: &str, epoch: Option<u64>) -> anyhow::Result<Self> {
        let run_dir = tempfile::tempdir()?;
        command.args(["export", "--run-dir"]).arg(run_dir.path());
        command.args(["--pool", &format!("nfs://{server}/disks"), "--file", file]);
        if let Some(epoch) = epoch {
            command.args(["--epoch", &epoch.to_string()]);
        }
        let log = fs::File::create(run_dir.path().join("log"))?;
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let export = Self { run_dir, process };
        let socket = export.socket();
        wait::until("an export", PATIENCE, || match socket.exists() {
            true => Ok(()),
            false => Err(fs::read_to_string(export.run_dir.path().join("log"))),
        });
        Ok(export)
    }

    /// Where a client connects.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.path().join("disk")
    }

    /// Has it take the disk over.
    fn take(&self, epoch: u64) -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(self.run_dir.path().join("dctl"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{}", serde_json::json!({ "Take": epoch }))?;
        for line in BufReader::new(stream).lines() {
            let word: serde_json::Value = serde_json::from_str(&line?)?;
            if word["Taken"] == epoch {
                return Ok(());
            }
            ensure!(word["NotTaken"].is_null(), "{word}");
        }
        bail!("the export has ended")
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.process.id())?), signal)?)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One host's way to the disk: its export, and a client that writes.
struct Writer {
    export: Export,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    client: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(command: Command, server: &str, file: &str, epoch: Option<u64>) -> anyhow::Result<Self> {
        let export = Export::start(command, server, file, epoch)?;
        Ok(Self { export, stop: Arc::default(), written: Arc::default(), client: None })
    }

    /// Writes that mark round and round, each block answered before the next, until it is refused or stopped.
    fn write(&mut self, mark: u8) -> anyhow::Result<()> {
        let mut client = Nbd::connect(&self.export.socket())?;
        let (stop, written) = (self.stop.clone(), self.written.clone());
        self.client = Some(std::thread::spawn(move || {
            for number in 0u64.. {
                if stop.load(Ordering::Relaxed) || client.write(number % BLOCKS, &[mark; BLOCK]).is_err() {
                    return;
                }
                written.fetch_add(1, Ordering::Relaxed);
            }
        }));
        Ok(())
    }

    fn await_blocks(&self, count: u64) {
        wait::until("blocks that are written", PATIENCE, || {
            let now = self.written.load(Ordering::Relaxed);
            if now >= count { Ok(()) } else { Err(now) }
        });
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.export.signal(Signal::SIGKILL);
        if let Some(client) = self.client.take() {
            let _ = client.join();
        }
    }
}

/// A client of a block device, as small as can be.
struct Nbd(UnixStream);

impl Nbd {
    fn connect(socket: &Path) -> anyhow::Result<Self> {
        use std::io::Read;
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        ensure!(greeting[..8] == *b"NBDMAGIC", "no block device");
        // The old way to name an export: no name, and no zeros in the answer.
        let words = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &1u32.to_be_bytes(), &0u32.to_be_bytes()].concat();
        stream.write_all(&words)?;
        stream.read_exact(&mut [0; 10])?;
        Ok(Self(stream))
    }

    fn write(&mut self, block: u64, bytes: &[u8]) -> anyhow::Result<()> {
        use std::io::Read;
        let length = u32::try_from(bytes.len())?;
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0, 0, 1]);
        request.extend(block.to_be_bytes());
        request.extend((block * BLOCK as u64).to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(bytes);
        self.0.write_all(&request)?;
        let mut answer = [0; 16];
        self.0.read_exact(&mut answer)?;
        match u32::from_be_bytes([answer[4], answer[5], answer[6], answer[7]]) {
            0 => Ok(()),
            errno => bail!("refused: {}", std::io::Error::from_raw_os_error(i32::try_from(errno)?)),
        }
    }
}

/// A server that ends under a writer, and is there again after a while: how many blocks were acknowledged before it ended
/// and after it was back. Nothing of them may be lost, and the writer hears of nothing but that it took long.
///
/// # Errors
/// Something of that is not so.
pub fn server_goes(server: &mut NfsServer, away: Duration) -> anyhow::Result<(u64, u64)> {
    let path = server.folder("disks").join("stays");
    fs::File::create(&path)?.set_len(BLOCKS * BLOCK as u64)?;
    let mut writer = Writer::start(server.command(program("vtd")), server.address(), "stays", Some(7))?;
    writer.write(0x33)?;
    writer.await_blocks(BLOCKS / 2);
    server.end();
    let before = writer.written.load(Ordering::Relaxed);
    let gone = Instant::now();
    wait::until("the server's time to come back", away * 2, || {
        if gone.elapsed() > away { Ok(()) } else { Err(gone.elapsed()) }
    });
    let meanwhile = writer.written.load(Ordering::Relaxed);
    ensure!(meanwhile <= before + 1, "{meanwhile} blocks were acknowledged by nobody, after {before}");
    ensure!(writer.client.as_ref().is_some_and(|client| !client.is_finished()), "the writer was refused");
    server.come_back();
    writer.await_blocks(meanwhile + BLOCKS);
    let after = writer.written.load(Ordering::Relaxed) - meanwhile;
    drop(writer);
    let disk = fs::read(&path)?;
    ensure!(disk.iter().all(|byte| *byte == 0x33), "what was acknowledged is not there");
    fs::remove_file(&path)?;
    Ok((before, after))
}

/// A server that is full under a writer: how many blocks were acknowledged before one was refused for want of room. They are
/// all there, nothing behind them is, and what has its place already can be written still.
///
/// # Errors
/// Something of that is not so.
pub fn server_fills(server: &NfsServer) -> anyhow::Result<u64> {
    const LONG: u64 = 1 << 16;
    let path = server.folder("disks").join("fills");
    fs::File::create(&path)?.set_len(LONG * BLOCK as u64)?;
    let export = Export::start(server.command(program("vtd")), server.address(), "fills", Some(7))?;
    let mut client = Nbd::connect(&export.socket())?;
    let mut written = 0;
    let refused = loop {
        ensure!(written < LONG, "the server has no end");
        match client.write(written, &[0x44; BLOCK]) {
            Ok(()) => written += 1,
            Err(error) => break error.to_string(),
        }
    };
    ensure!(refused.contains("No space left on device"), "{refused}");
    client.write(0, &[0x55; BLOCK])?;
    ensure!(client.write(written, &[0x44; BLOCK]).is_err(), "there is room again, from nowhere");
    let disk = fs::File::open(&path)?;
    for block in 0..=written {
        let mut bytes = [0; BLOCK];
        disk.read_exact_at(&mut bytes, block * BLOCK as u64)?;
        let wanted = if block == 0 {
            0x55
        } else if block < written {
            0x44
        } else {
            0
        };
        ensure!(bytes == [wanted; BLOCK], "block {block} of {written} is not what was acknowledged");
    }
    fs::remove_file(&path)?;
    Ok(written)
}

/// Plays one seed.
///
/// # Errors
/// Something did not run as it should, or the second writer was refused.
pub fn play(server: &NfsServer, seed: u64, trouble: Trouble, margin: Margin) -> anyhow::Result<Shown> {
    const FIRST: u8 = 0x11;
    const SECOND: u8 = 0x22;
    chance::seed(Some(seed));
    let draw = |below: u64| chance::number() % below;
    let file = format!("writers-{seed}-{trouble:?}-{margin:?}");
    let path = server.folder("disks").join(&file);
    fs::File::create(&path)?.set_len(BLOCKS * BLOCK as u64)?;
    let (then, now) = (100 + 10 * seed, 100 + 10 * seed + 1 + draw(9));

    let host = server.neighbour();
    let mut first = Writer::start(host.command(program("vtd")), host.server(), &file, Some(then))?;
    let mut second = Writer::start(server.command(program("vtd")), server.address(), &file, None)?;
    first.write(FIRST)?;
    first.await_blocks(1 + draw(200));
    // Somewhere in a write, for there is always one.
    match trouble {
        Trouble::Frozen => first.export.signal(Signal::SIGSTOP)?,
        Trouble::CutOff => host.cut(),
        Trouble::Unaware => {}
    }
    match margin {
        Margin::Kept => second.export.take(now)?,
        Margin::TakenOut => second.export.take(then)?,
    }
    second.write(SECOND)?;
    second.await_blocks(BLOCKS);
    let before = first.written.load(Ordering::Relaxed);
    // Round once more, so that every block is the second's and a write of the first would be seen.
    second.stop.store(true, Ordering::Relaxed);
    if let Some(client) = second.client.take() {
        let _ = client.join();
    }
    match trouble {
        Trouble::Frozen => first.export.signal(Signal::SIGCONT)?,
        Trouble::CutOff => host.mend(),
        Trouble::Unaware => {}
    }
    // It goes on until it is refused; without the margin it never is, and goes round.
    wait::until("the first to be refused, or to go on", PATIENCE, || {
        let over = first.client.as_ref().is_none_or(JoinHandle::is_finished);
        let on = first.written.load(Ordering::Relaxed) > before + BLOCKS;
        if over || on { Ok(()) } else { Err(first.written.load(Ordering::Relaxed)) }
    });
    let disk = fs::File::open(&path)?;
    let mut stale = 0;
    for block in 0..BLOCKS {
        let mut bytes = [0; BLOCK];
        disk.read_exact_at(&mut bytes, block * BLOCK as u64).context("the watcher")?;
        stale += u64::from(bytes.contains(&FIRST));
    }
    let shown = Shown { first: before, second: second.written.load(Ordering::Relaxed), stale };
    drop((first, second));
    fs::remove_file(&path)?;
    Ok(shown)
}
