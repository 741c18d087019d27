//! The peer of a move: two QEMUs with the words that the daemon gave its own, moved over a plain QMP exchange.
//!
//! The same hosts of the same lab, the same guest under the same load; no daemon, no log, no votes. What is measured is
//! measured alike: the destination listens already, and the clock runs from `migrate` to the destination's RESUME.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant as Clock},
};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use vt_daemon::{
    guest::{console::Console, probe::Probe},
    qemu::{
        Sampler,
        qmp::{MigrationStatus, Qmp, Transcript},
    },
};
use vt_protocol::probe::{DISK_DATA_OFFSET, DiskStart, MemStart};
use vt_tests::lab::Lab;

use crate::{idle::cpu_seconds, overhead::Move};

/// Until a guest is up, and until a move has ended.
const PATIENCE: Duration = Duration::from_secs(180);
/// The bridge of a lab's host.
const BRIDGE: &str = "br0";
/// The tap of the bare guest, one in each of the two hosts.
pub(crate) const TAP: &str = "bare0";
/// How long the guest works between two moves, as it does while a scenario checks it.
const BETWEEN: Duration = Duration::from_secs(2);

/// A host of the lab.
#[derive(Debug)]
pub(crate) struct Place {
    namespace: String,
    pub(crate) address: String,
}

/// A running QEMU.
struct Running {
    child: Child,
    qmp: Qmp,
    dir: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Moves a guest `moves` times between host1 and host2. `words` is the command line that the daemon used, program first.
pub(crate) async fn measure(lab: &Lab, words: &[String], moves: usize) -> anyhow::Result<Vec<Move>> {
    let places = places(lab)?;
    let _taps: Vec<TapGuard<'_>> = places.iter().map(TapGuard::new).collect::<anyhow::Result<_>>()?;
    let work = tempfile::Builder::new().prefix("vtbench").tempdir()?;
    let disk = overlay(words, &work)?;
    let mut here = start(words, &places[0], &work.path().join("0"), &disk, false).await?;
    here.qmp.cont().await?;
    load(&here.dir).await?;
    let mut measured = Vec::new();
    for number in 1..=moves {
        sleep(BETWEEN).await;
        let place = &places[number % 2];
        let there = start(words, place, &work.path().join(number.to_string()), &disk, true).await?;
        let uri = listen(&there.qmp, &place.address).await?;
        measured.push(exchange(&here.qmp, &there.qmp, &uri).await.with_context(|| format!("bare move {number}"))?);
        here.qmp.quit().await?;
        here = there;
    }
    Ok(measured)
}

/// What the readings of a transfer cost the process that takes them, % of a core: so many seconds with them less as many
/// without, while a guest is sent slowly.
pub(crate) async fn readings(lab: &Lab, words: &[String], seconds: u64) -> anyhow::Result<f64> {
    let places = places(lab)?;
    let _taps: Vec<TapGuard<'_>> = places.iter().map(TapGuard::new).collect::<anyhow::Result<_>>()?;
    let work = tempfile::Builder::new().prefix("vtbench").tempdir()?;
    let disk = overlay(words, &work)?;
    let here = start(words, &places[0], &work.path().join("0"), &disk, false).await?;
    here.qmp.cont().await?;
    load(&here.dir).await?;
    let there = start(words, &places[1], &work.path().join("1"), &disk, true).await?;
    let uri = listen(&there.qmp, &places[1].address).await?;
    // Slower than the guest writes: it never completes by itself.
    let slow = BTreeMap::from([("max-bandwidth".to_owned(), (1 << 20).into())]);
    here.qmp.migrate_set_parameters(&slow).await?;
    here.qmp.migrate(uri.as_str()).await?;
    let span = Duration::from_secs(seconds);
    let before = cpu_seconds(std::process::id())?;
    sleep(span).await;
    let without = cpu_seconds(std::process::id())?;
    let sampler = Sampler::start(here.qmp.clone(), Instant::now());
    sleep(span).await;
    let with = cpu_seconds(std::process::id())?;
    let taken = sampler.finish().await.len() as f64;
    let status = here.qmp.query_migrate().await?.status;
    ensure!(status == MigrationStatus::Active && taken >= seconds as f64 * 8.0, "{taken} readings of {status}");
    here.qmp.migrate_cancel().await?;
    Ok(((with - without) - (without - before)).max(0.0) / seconds as f64 * 100.0)
}

/// What a person with two monitors would type, without the pauses for thought.
async fn exchange(source: &Qmp, destination: &Qmp, uri: &str) -> anyhow::Result<Move> {
    let (mut left, mut arrived, mut resumed) = (source.events(), destination.events(), destination.events());
    let deadline = Instant::now() + PATIENCE;
    let ended = |status: &MigrationStatus| {
        matches!(status, MigrationStatus::Completed | MigrationStatus::Failed | MigrationStatus::Cancelled)
    };
    let begun = Clock::now();
    source.migrate(uri).await?;
    let (left, arrived) = tokio::join!(
        source.wait_migration(&mut left, ended, deadline),
        destination.wait_migration(&mut arrived, ended, deadline)
    );
    let (left, arrived) = (left?, arrived?);
    if left != MigrationStatus::Completed || arrived != MigrationStatus::Completed {
        bail!("the bare migration ended as {left} at the source, {arrived} at the destination");
    }
    destination.cont().await?;
    resumed.wait_for(|event| event.name == "RESUME", deadline).await?;
    let wall_ms = begun.elapsed().as_secs_f64() * 1000.0;
    let info = source.query_migrate().await?;
    let ms = |value: Option<u64>| value.map(|ms| ms as f64).context("QEMU says how long it took");
    let (total_ms, down_ms) = (ms(info.total_ms)?, ms(info.downtime_ms)?);
    Ok(Move { wall_ms, total_ms, down_ms, parts_ms: Vec::new() })
}

pub(crate) fn places(lab: &Lab) -> anyhow::Result<Vec<Place>> {
    let status = lab.json(&["lab", "status"]);
    let hosts = status["hosts"].as_array().context("a lab has hosts")?;
    let text = |host: &serde_json::Value, key: &str| host[key].as_str().unwrap_or_default().to_owned();
    let places: Vec<Place> =
        hosts.iter().take(2).map(|h| Place { namespace: text(h, "namespace"), address: text(h, "address") }).collect();
    ensure!(places.len() == 2 && places.iter().all(|p| !p.namespace.is_empty()), "two hosts are needed: {status}");
    Ok(places)
}

pub(crate) fn inside(place: &Place, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", place.namespace)).arg("--").arg(program).stdin(Stdio::null());
    command
}

/// The tap of one host; gone with the value, and with the lab in any case.
pub(crate) struct TapGuard<'a> {
    place: &'a Place,
}

impl<'a> TapGuard<'a> {
    pub(crate) fn new(place: &'a Place) -> anyhow::Result<Self> {
        let guard = Self { place };
        for words in [
            &["tuntap", "add", "dev", TAP, "mode", "tap"][..],
            &["link", "set", "dev", TAP, "master", BRIDGE],
            &["link", "set", "dev", TAP, "up"],
        ] {
            ensure!(inside(place, "ip").args(words).status()?.success(), "ip {}", words.join(" "));
        }
        Ok(guard)
    }
}

impl Drop for TapGuard<'_> {
    fn drop(&mut self) {
        let _ = inside(self.place, "ip").args(["link", "delete", "dev", TAP]).status();
    }
}

pub(crate) fn overlay(words: &[String], work: &TempDir) -> anyhow::Result<PathBuf> {
    let kernel = after(words, "-kernel").context("the guest boots from a kernel")?;
    let image = Path::new(kernel).with_file_name("disk.qcow2");
    let disk = work.path().join("disk.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([&image, &disk])
        .status()
        .context("qemu-img")?;
    ensure!(made.success(), "qemu-img create over {}", image.display());
    Ok(disk)
}

async fn start(words: &[String], place: &Place, dir: &Path, disk: &Path, incoming: bool) -> anyhow::Result<Running> {
    std::fs::create_dir(dir)?;
    let words = replaced(words, dir, disk, incoming)?;
    let log = std::fs::File::create(dir.join("stderr"))?;
    let child = inside(place, &words[0]).args(&words[1..]).stdout(log.try_clone()?).stderr(log).spawn()?;
    let socket = dir.join("qmp");
    let deadline = Instant::now() + PATIENCE;
    let qmp = loop {
        match Qmp::connect(&socket, Transcript::none()).await {
            Ok(qmp) => break qmp,
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
            Err(error) => {
                let said = std::fs::read_to_string(dir.join("stderr")).unwrap_or_default();
                return Err(error).context(format!("the monitor of a bare QEMU: {said}"));
            }
        }
    };
    let running = Running { child, qmp, dir: dir.to_owned() };
    // As the daemon sets them.
    let capabilities = ["events", "late-block-activate"].map(|name| (name.to_owned(), true));
    running.qmp.migrate_set_capabilities(&BTreeMap::from(capabilities)).await?;
    Ok(running)
}

/// Ports of the bare QEMUs: outside of the daemons' range.
async fn listen(qmp: &Qmp, address: &str) -> anyhow::Result<String> {
    let mut last = None;
    for port in 49300..49320 {
        let uri = format!("tcp:{address}:{port}");
        match qmp.migrate_incoming(&uri).await {
            Ok(()) => return Ok(uri),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("a port")?).context("no port could be opened")
}

/// The load that `multihost_migration` puts on its guest where nobody says otherwise.
pub(crate) async fn load(dir: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut probe = Probe::new(dir.join("probe"));
    probe.hello(deadline).await?;
    Console::connect(&dir.join("con"), Default::default(), deadline).await?.login(deadline).await?;
    probe.mem_start(MemStart { pages: 4096, seed: 1, rewrite_bytes_per_second: 8 << 20 }, deadline).await?;
    let disk =
        DiskStart { device: "/dev/vda".to_owned(), offset: DISK_DATA_OFFSET, bytes: 1 << 20, seed: 1, interval_ms: 20 };
    probe.disk_start(disk, deadline).await?;
    probe.net_start(7007, deadline).await?;
    Ok(())
}

fn after<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
    words.iter().position(|word| word == option).and_then(|at| words.get(at + 1)).map(String::as_str)
}

/// The daemon's words with other places on the host: what the guest sees stays the same. Pure.
fn replaced(words: &[String], dir: &Path, disk: &Path, incoming: bool) -> anyhow::Result<Vec<String>> {
    let pidfile = after(words, "-pidfile").context("QEMU was started with a pid file")?;
    let run_dir = Path::new(pidfile).parent().context("a pid file is in a folder")?.display().to_string();
    let dir = dir.display().to_string();
    let mut out: Vec<String> = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "-incoming" {
            words.next();
            continue;
        }
        // Commas end a value in QEMU's lists; the places of a lab have none.
        let values = word.split(',').map(|value| match value.split_once('=') {
            Some(("logfile", _)) => format!("logfile={dir}/serial.log"),
            Some(("file", _)) => format!("file={}", disk.display()),
            Some(("ifname", _)) => format!("ifname={TAP}"),
            _ => value.replace(&run_dir, &dir),
        });
        out.push(values.collect::<Vec<_>>().join(","));
    }
    if incoming {
        out.extend(["-incoming".to_owned(), "defer".to_owned()]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn only_places_on_the_host_are_replaced() {
        let theirs = words(
            "/usr/bin/qemu -m 256M -pidfile /run/x/vm/1.1.vm1/pid \
             -chardev socket,id=con,path=/run/x/vm/1.1.vm1/con,server=on,logfile=/var/a/serial.log,logappend=on \
             -drive if=none,id=vda,format=qcow2,file=/var/disks/1.qcow2,cache=writeback \
             -netdev tap,id=net0,ifname=vmt1,script=no -append vtmesh.ip=10.77.0.100/24,x -incoming defer",
        );
        let ours = replaced(&theirs, Path::new("/tmp/b/1"), Path::new("/tmp/b/d"), false).unwrap();
        let wanted = words(
            "/usr/bin/qemu -m 256M -pidfile /tmp/b/1/pid \
             -chardev socket,id=con,path=/tmp/b/1/con,server=on,logfile=/tmp/b/1/serial.log,logappend=on \
             -drive if=none,id=vda,format=qcow2,file=/tmp/b/d,cache=writeback \
             -netdev tap,id=net0,ifname=bare0,script=no -append vtmesh.ip=10.77.0.100/24,x",
        );
        assert_eq!(ours, wanted);
        let destination = replaced(&theirs, Path::new("/tmp/b/1"), Path::new("/tmp/b/d"), true).unwrap();
        assert_eq!(destination[..wanted.len()], wanted[..]);
        assert_eq!(destination[wanted.len()..], ["-incoming", "defer"]);
    }

    #[test]
    fn words_without_a_pid_file_are_not_the_daemons() {
        assert!(replaced(&words("qemu -S"), Path::new("/a"), Path::new("/b"), false).is_err());
    }
}
