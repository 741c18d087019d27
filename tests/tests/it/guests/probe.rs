//! A hundred writes a second while everything about votes, leadership and builds changes: none may miss its deadline.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    client::Client,
    ids::RequestId,
    membership::{Change, HostChange},
};
use vt_tests::{lab::Lab, wait};

use super::life::{show, submit, wait_until_done};

/// What every write has to keep.
const DEADLINE: Duration = Duration::from_secs(2);
/// A hundred a second.
const EVERY: Duration = Duration::from_millis(10);
/// Before all hosts are asked again, where none of them could answer.
const AGAIN: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(60);

/// Asks one daemon to do it.
async fn ask(socket: &Path, change: &HostChange, by: Instant) -> Result<(), String> {
    let client = Client::local(socket, by).await.map_err(|error| error.to_string())?;
    match client.call(&AdminRequest::HostChange(change.clone()), by).await.map_err(|error| error.to_string())? {
        AdminReply::Steps(_) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// One write, a label: asked of a host, and of the next one where that ends or is not there, as vtctl does, under one id.
async fn write(sockets: &[PathBuf], number: usize) -> Result<(), String> {
    let label = [("probe".to_owned(), Some(number.to_string()))].into();
    let change =
        HostChange { request: RequestId::random(), host: "host1".parse().unwrap(), what: Change::Label(label) };
    // Longer than the deadline: a late answer shows how late it was.
    let by = Instant::now() + 5 * DEADLINE;
    for turn in number.. {
        match ask(&sockets[turn % sockets.len()], &change, by).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= by => return Err(error),
            Err(_) if (turn + 1 - number).is_multiple_of(sockets.len()) => sleep(AGAIN).await,
            Err(_) => {}
        }
    }
    unreachable!("hosts are asked until the time is over")
}

/// A write that has ended: its number, how long it took, and how it went.
type Written = (usize, Duration, Result<(), String>);

/// Writes through all hosts in turn.
struct Probe {
    stop: CancellationToken,
    writes: JoinHandle<JoinSet<Written>>,
}

impl Probe {
    fn start(lab: &Lab, hosts: usize) -> Self {
        let socket = |number| lab.run_dir(&format!("host{number}")).join("vtd.sock");
        let sockets: Arc<Vec<PathBuf>> = Arc::new((1..=hosts).map(socket).collect());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let writes = tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut writes = JoinSet::new();
            for number in 1.. {
                if stopped.is_cancelled() {
                    break;
                }
                ticks.tick().await;
                let sockets = Arc::clone(&sockets);
                writes.spawn(async move {
                    let begun = Instant::now();
                    let written = write(&sockets, number).await;
                    (number, begun.elapsed(), written)
                });
            }
            writes
        });
        Self { stop, writes }
    }

    /// Ends it. Every write was done, and within its deadline.
    async fn end(self, meanwhile: &str) {
        self.stop.cancel();
        let mut writes = self.writes.await.unwrap();
        let mut took = Vec::new();
        while let Some(done) = writes.join_next().await {
            let (number, elapsed, written) = done.unwrap();
            written.unwrap_or_else(|error| panic!("write {number} failed after {elapsed:?}: {error}"));
            took.push(elapsed);
        }
        took.sort_unstable();
        assert!(took.len() > 100, "{} writes show nothing", took.len());
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        let (p50, p99, longest) = (at(0.5), at(0.99), at(1.0));
        println!("{} writes while {meanwhile}: p50 {p50:?}, p99 {p99:?}, longest {longest:?}", took.len());
        assert!(longest <= DEADLINE, "the longest write took {longest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_misses_its_deadline_while_voters_and_leaders_change() {
    let lab = Lab::up(5);
    let probe = Probe::start(&lab, 5);
    let mut seen = vec![5];
    for (words, voters) in [
        (["host", "demote", "host5"], 3),
        (["host", "demote", "host4"], 3),
        (["host", "demote", "host3"], 1),
        (["host", "promote", "host3"], 3),
        (["cluster", "transfer", "host3"], 3),
        (["host", "promote", "host4"], 3),
        (["host", "promote", "host5"], 5),
        (["cluster", "transfer", "host5"], 5),
        (["host", "demote", "host5"], 3),
    ] {
        lab.vtctl(&words).expect(0);
        let status = lab.wait_for_live(5);
        assert_eq!(status["voters"], voters, "{words:?}: {status}");
        seen.push(voters);
    }
    probe.end(&format!("voters went {seen:?}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_misses_its_deadline_while_hosts_are_upgraded_under_a_vm_and_a_job_that_waits() {
    let lab = Lab::up(3);
    // One keeps its host until it is released; the other one waits for that.
    let held = submit(&lab, &["uptime", "-m", "host1", "-p", "mem=128M", "--keep"]);
    let queued = submit(&lab, &["uptime", "-m", "host1", "-p", "mem=128M"]);
    let running = || lab.json(&["vm", "list"])["vms"].as_array().map_or(0, Vec::len);
    wait::until("a VM", SOON, || if running() == 1 { Ok(()) } else { Err(show(&lab, &held).to_string()) });

    let probe = Probe::start(&lab, 3);
    // Each host is replaced by a build that speaks one version more, the leader last.
    let leader = lab.wait_for_live(3)["leader"].as_str().unwrap().to_owned();
    let others = ["host1", "host2", "host3"].into_iter().filter(|host| *host != leader);
    for host in others.chain([leader.as_str()]) {
        lab.end_daemon(host, Signal::SIGTERM);
        let mut start = lab.command(&["lab", "start", host]);
        assert!(start.env("VTMESH_REHEARSE_WIRE", "1-2").status().unwrap().success(), "{host}");
        lab.wait_for_live(3);
    }
    probe.end("all hosts were upgraded").await;

    assert_eq!(running(), 1, "the VM went on");
    assert_eq!(show(&lab, &queued)["cases"][0]["state"], "pending", "its host is not free");
    lab.vtctl(&["job", "release", &held]).expect(0);
    for job in [held, queued] {
        let shown = wait_until_done(&lab, &job);
        assert_eq!(shown["cases"][0]["verdict"], "pass", "{shown}");
    }
}
