//! A hundred writes a second while everything about votes and leadership changes: none may miss its deadline.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    admin::{AdminReply, AdminRequest, HostRole},
    client::Client,
    ids::RequestId,
    membership::{Change, HostChange},
};

use crate::daemons::Daemons;

/// What every write has to keep.
const DEADLINE: Duration = Duration::from_secs(2);
/// A hundred a second.
const EVERY: Duration = Duration::from_millis(10);

/// One write: a label, asked of the daemon behind `socket`.
async fn write(socket: &Path, number: u64) -> Result<(), String> {
    let label = [("probe".to_owned(), Some(number.to_string()))].into();
    let change =
        HostChange { request: RequestId::random(), host: "host1".parse().unwrap(), what: Change::Label(label) };
    // Longer than the deadline: a late answer shows how late it was.
    let by = Instant::now() + 5 * DEADLINE;
    let client = Client::local(socket, by).await.map_err(|error| error.to_string())?;
    match client.call(&AdminRequest::HostChange(change), by).await.map_err(|error| error.to_string())? {
        AdminReply::Steps(_) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Writes through all hosts in turn until `stop`; gives how long each took.
async fn probe(sockets: Arc<Vec<PathBuf>>, stop: CancellationToken) -> Vec<Duration> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut writes = JoinSet::new();
    let mut number = 0;
    while !stop.is_cancelled() {
        ticks.tick().await;
        number += 1;
        let sockets = Arc::clone(&sockets);
        writes.spawn(async move {
            let begun = Instant::now();
            let written = write(&sockets[number as usize % sockets.len()], number).await;
            (number, begun.elapsed(), written)
        });
    }
    let mut took = Vec::new();
    while let Some(done) = writes.join_next().await {
        let (number, elapsed, written) = done.unwrap();
        written.unwrap_or_else(|error| panic!("write {number} failed after {elapsed:?}: {error}"));
        took.push(elapsed);
    }
    took.sort_unstable();
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_misses_its_deadline_while_voters_and_leaders_change() {
    let daemons = Daemons::cluster_of(5, HostRole::Learner).await;
    let sockets: Vec<PathBuf> = daemons.all.iter().map(|daemon| daemon.socket()).collect();
    let stop = CancellationToken::new();
    let probing = tokio::spawn(probe(Arc::new(sockets), stop.clone()));
    let asked = &daemons.all[0];
    let role = |host: &str, role| {
        AdminRequest::HostChange(HostChange {
            request: RequestId::random(),
            host: host.parse().unwrap(),
            what: Change::Role(role),
        })
    };
    let lead = |host: &str| AdminRequest::TransferLeader(host.parse().unwrap());
    let mut seen = Vec::new();
    for (request, voters) in [
        (role("host2", HostRole::Voter), 1),
        (role("host3", HostRole::Voter), 3),
        (lead("host3"), 3),
        (role("host4", HostRole::Voter), 3),
        (role("host5", HostRole::Voter), 5),
        (lead("host5"), 5),
        (role("host5", HostRole::Learner), 3),
        (role("host4", HostRole::Learner), 3),
        (role("host3", HostRole::Learner), 1),
    ] {
        asked.ask(&request).await.unwrap_or_else(|error| panic!("{request:?}: {error:?}\n{}", asked.log()));
        let status = asked.wait("led", |status| status.quorum && status.leader.is_some()).await;
        assert_eq!(status.voters, voters, "{request:?}");
        seen.push(status.voters);
    }
    stop.cancel();
    let took = probing.await.unwrap();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!(
        "{} writes while voters went {seen:?}: p50 {:?}, p99 {:?}, longest {:?}",
        took.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    assert!(took.len() > 100, "{} writes show nothing", took.len());
    assert!(at(1.0) <= DEADLINE, "the longest write took {:?}", at(1.0));
}
