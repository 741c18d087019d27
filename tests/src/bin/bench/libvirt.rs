//! The same guest on the same two hosts, moved in four ways in one run: by `virsh migrate`, by the scenario through libvirt,
//! by the scenario over QMP, and by a bare QMP exchange.
//!
//! All four may send as much in a second, which is what QEMU does where nobody says otherwise; libvirt would set no limit.
//! What virsh moves is a domain as the daemon described its own, in places of its own. It has no owner record and no votes:
//! libvirt lets it run as soon as it is there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use vt_tests::lab::Lab;

use crate::{
    bare::{self, Place, TAP, TapGuard},
    figures::Figure,
    overhead::{self, Move},
};

/// How long the guest works between two moves, as it does while a scenario checks it.
const BETWEEN: Duration = Duration::from_secs(2);
/// The most that is sent in a second, MiB: QEMU's own default.
const BANDWIDTH_MIB: u32 = 128;
const SCENARIO: &str = "multihost_migration";
/// The description of a domain, in the evidence of where the VM was started.
const DOMAIN: &str = "host1/vm1/start/domain.xml";
const NAME: &str = "vtbench";

/// Measures everything, there and back `rounds` times each.
pub(crate) fn measure(rounds: usize) -> anyhow::Result<Vec<Figure>> {
    let lab = Lab::up_libvirt(2);
    let results = tempfile::tempdir()?;
    let qmp = by_scenario(&lab, results.path(), "qmp", rounds)?;
    let libvirt = by_scenario(&lab, results.path(), "libvirt", rounds)?;
    let words = overhead::command(&results.path().join("qmp"), SCENARIO)?;
    let xml = results.path().join("libvirt").join(format!("cases/0001-{SCENARIO}")).join(DOMAIN);
    let xml = fs::read_to_string(&xml).with_context(|| xml.display().to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let virsh = runtime.block_on(by_virsh(&lab, &words, &xml, 2 * rounds))?;
    let bare = runtime.block_on(bare::measure(&lab, &words, 2 * rounds))?;
    Ok(figures(&[
        ("virsh migrate --live --p2p", virsh),
        ("vtctl, libvirt", libvirt),
        ("vtctl, QMP", qmp),
        ("bare QMP", bare),
    ]))
}

fn by_scenario(lab: &Lab, results: &Path, backend: &str, rounds: usize) -> anyhow::Result<Vec<Move>> {
    let bundle = results.join(backend);
    let (count, folder) = (format!("migrate_count={rounds}"), bundle.display().to_string());
    let speed = format!("mig_speed={BANDWIDTH_MIB}M");
    let typed = ["run", SCENARIO, "-m", "host1,host2", "-p", &count, "-p", &speed, "--backend", backend, "-r", &folder];
    let ran = lab.vtctl(&typed);
    ensure!(ran.code == 0, "the scenario did not pass:\n{}\n{}", ran.stdout, ran.stderr);
    let job = serde_json::from_slice(&fs::read(bundle.join("job.json")).context("job.json of the run")?)?;
    overhead::moves(&job)
}

async fn by_virsh(lab: &Lab, words: &[String], xml: &str, moves: usize) -> anyhow::Result<Vec<Move>> {
    let places = bare::places(lab)?;
    let _taps: Vec<TapGuard<'_>> = places.iter().map(TapGuard::new).collect::<anyhow::Result<_>>()?;
    let work = tempfile::Builder::new().prefix("vtbench").tempdir()?;
    let disk = bare::overlay(words, &work)?;
    let description = |number: usize| -> anyhow::Result<PathBuf> {
        let dir = work.path().join(number.to_string());
        fs::create_dir(&dir)?;
        let file = dir.join("domain.xml");
        fs::write(&file, placed(xml, &dir, &disk)?)?;
        Ok(file)
    };
    let hosts = [Libvirt::new(lab, &places[0], "host1"), Libvirt::new(lab, &places[1], "host2")];
    let first = description(0)?;
    hosts[0].said(&["create", &first.display().to_string()])?;
    let _ended = Ended(&hosts);
    bare::load(first.parent().context("a description is in a folder")?).await?;
    let mut measured = Vec::new();
    for number in 1..=moves {
        tokio::time::sleep(BETWEEN).await;
        let (here, there) = (&hosts[(number + 1) % 2], &hosts[number % 2]);
        let description = description(number)?.display().to_string();
        let begun = Instant::now();
        let (to, uri) = (format!("qemu+tcp://{}/system", there.address), format!("tcp://{}", there.address));
        // The overlay is seen by both hosts, which libvirt cannot know.
        let speed = BANDWIDTH_MIB.to_string();
        let (xml, limit) = (["--xml", &description], ["--bandwidth", &speed]);
        let words = [&["migrate", "--live", "--p2p", "--unsafe"], &limit[..], &xml, &[NAME, &to, &uri]].concat();
        here.said(&words).with_context(|| format!("virsh migrate {number}"))?;
        let wall_ms = begun.elapsed().as_secs_f64() * 1000.0;
        let job = there.said(&["domjobinfo", NAME, "--completed"])?;
        let ms = |key| job_ms(&job, key).with_context(|| format!("domjobinfo says {key:?}: {job}"));
        let (total_ms, down_ms) = (ms("Time elapsed")?, ms("Total downtime")?);
        measured.push(Move { wall_ms, total_ms, down_ms, parts_ms: Vec::new() });
    }
    Ok(measured)
}

/// libvirt of a host of the lab.
struct Libvirt<'a> {
    place: &'a Place,
    address: &'a str,
    uri: String,
}

impl<'a> Libvirt<'a> {
    fn new(lab: &Lab, place: &'a Place, host: &str) -> Self {
        let socket = format!("/run/vtmesh/labs/{}/{host}/libvirt/run/libvirt-sock", lab.name());
        Self { place, address: &place.address, uri: format!("qemu+unix:///system?socket={socket}") }
    }

    fn virsh(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command: Command = bare::inside(self.place, "virsh");
        command.args(["-q", "-c", &self.uri]).args(words).output().context("virsh (libvirt-clients)")
    }

    fn said(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.virsh(words)?;
        if !output.status.success() {
            bail!("virsh {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Ends the domain, wherever it is.
struct Ended<'a>(&'a [Libvirt<'a>]);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        for host in self.0 {
            let _ = host.virsh(&["destroy", NAME]);
        }
    }
}

/// The daemon's domain under another name and with other places on the host: what the guest sees stays the same. Pure.
fn placed(xml: &str, dir: &Path, disk: &Path) -> anyhow::Result<String> {
    let between = |begin: &str, end: &str| {
        let from = xml.find(begin)? + begin.len();
        Some(&xml[from..from + xml[from..].find(end)?])
    };
    let of = |begin, end| between(begin, end).with_context(|| format!("the description has {begin}"));
    let console = of("<source mode='bind' path='", "'")?;
    let run_dir = Path::new(console).parent().context("the console is in a folder")?.display().to_string();
    let log = of("<log file='", "'")?;
    let log_dir = Path::new(log).parent().context("the log is in a folder")?.display().to_string();
    let dir = dir.display().to_string();
    let name = format!("<name>{}</name>", of("<name>", "</name>")?);
    let uuid = format!("<uuid>{}</uuid>", of("<uuid>", "</uuid>")?);
    let placed = xml
        .replace(&name, &format!("<name>{NAME}</name>"))
        .replace(&uuid, "<uuid>5f0a4d2e-0000-4000-8000-76746265636e</uuid>")
        .replace(of("<source file='", "'")?, &disk.display().to_string())
        .replace(of("<target dev='vmt", "'").map(|rest| format!("vmt{rest}"))?.as_str(), TAP);
    Ok(placed.replace(&run_dir, &dir).replace(&log_dir, &dir))
}

/// `Time elapsed:      738          ms`. Pure.
fn job_ms(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is shown of them, the last one being what the others are compared with. Pure.
fn figures(ways: &[(&str, Vec<Move>)]) -> Vec<Figure> {
    type Of = fn(&Move) -> f64;
    let of: [(&str, Of); 3] = [("wall", |m| m.wall_ms), ("total-time", |m| m.total_ms), ("downtime", |m| m.down_ms)];
    let mut figures = Vec::new();
    for (what, of) in of {
        let values = |moves: &[Move]| moves.iter().map(of).collect::<Vec<f64>>();
        let peer = ways.last().and_then(|(name, moves)| {
            let peer = Figure { values: values(moves), ..Figure::new("", None) };
            Some(((*name).to_owned(), peer.percentile(50.0)?))
        });
        figures.extend(ways.iter().map(|(name, moves)| Figure {
            values: values(moves),
            peer: peer.clone().filter(|(peer, _)| peer != name),
            ..Figure::new(format!("{what} of a move by {name}, ms"), None)
        }));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_and_places_on_the_host_are_replaced() {
        let theirs = "<name>vtmesh-1.vm1</name><uuid>a-b</uuid><source file='/disks/1.qcow2'/><target dev='vda'/>\
                      <target dev='vmt82c9' managed='no'/><source mode='bind' path='/run/x/1/con'/>\
                      <log file='/evidence/start/serial.log'/><qemu:arg value='path=/run/x/1/qmp'/>";
        let ours = placed(theirs, Path::new("/tmp/b/1"), Path::new("/tmp/b/d")).unwrap();
        let wanted = "<name>vtbench</name><uuid>5f0a4d2e-0000-4000-8000-76746265636e</uuid><source file='/tmp/b/d'/>\
                      <target dev='vda'/><target dev='bare0' managed='no'/><source mode='bind' path='/tmp/b/1/con'/>\
                      <log file='/tmp/b/1/serial.log'/><qemu:arg value='path=/tmp/b/1/qmp'/>";
        assert_eq!(ours, wanted);
        assert!(placed("<domain/>", Path::new("/a"), Path::new("/b")).is_err());
    }

    #[test]
    fn what_virsh_says_of_a_job_is_read() {
        let said =
            "Job type:         Completed   \nTime elapsed:     738          ms\nTotal downtime:   19           ms\n";
        assert_eq!((job_ms(said, "Time elapsed"), job_ms(said, "Total downtime")), (Some(738.0), Some(19.0)));
        assert_eq!(job_ms(said, "Setup time"), None);
    }

    #[test]
    fn each_way_is_compared_with_the_last_one() {
        let moved = |wall_ms: f64| vec![Move { wall_ms, total_ms: 700.0, down_ms: 9.0, parts_ms: Vec::new() }];
        let shown = figures(&[("virsh", moved(2400.0)), ("bare QMP", moved(800.0))]);
        assert_eq!(shown.len(), 6);
        assert!(shown[0].line().contains("3.00 × bare QMP"), "{}", shown[0].line());
        assert!(shown[1].peer.is_none());
    }
}
