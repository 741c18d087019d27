//! A disk that lets its host down: what was acknowledged is there afterwards, or the host stops clearly and comes back.
//!
//! | row | what is shown |
//! |---|---|
//! | power fails between any two operations of the store | any of the unsynced sectors are lost, and nothing that was acknowledged |
//! | the same, and syncs do nothing | the check above turns red |
//! | the disk is full, or became read-only | the host stops, says why and what to do, and comes back |
//!
//! Flipped bits and cut files: `damage` in `sync/tests`. A full and a read-only disk under a real daemon: `guests`.
//! `VTMESH_POWER_SEEDS=1000 cargo nextest run -p vt-tests disk::` fails more often.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use rand::{Rng, SeedableRng, rngs::StdRng};
use vt_protocol::{
    chance,
    error::{ErrorCode, Report},
    ids::HostId,
};
use vt_sync::{
    RaftTransport, Replica, ReplicaConfig, ReplicaRole, Request, Storage, Unreachable, command::SetSetting,
    raft::OpenError,
};
use vt_tests::{beginning, sim::disk::Disk};

const HOST: HostId = HostId(1);
const PATIENCE: Duration = Duration::from_secs(20);
/// Power failures of one seed, one after the other.
const FAILURES: usize = 4;

struct Nobody;

#[async_trait]
impl RaftTransport for Nobody {
    async fn call(&self, _: HostId, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, Unreachable> {
        Err(Unreachable("nobody is there".into()))
    }
}

async fn open(disk: &Disk) -> Result<Replica, OpenError> {
    let [store, journal] = disk.open();
    let storage =
        Storage::Backend { store: Box::new(store), journal: Box::new(journal), latency: Arc::new(|| Duration::ZERO) };
    // Snapshots often, so that they are among what fails.
    let config = ReplicaConfig { snapshot_entries: 15, keep_entries: 5, ..ReplicaConfig::default() };
    Replica::open(storage, HOST, &config, Arc::new(Nobody)).await
}

/// A cluster of one host on a good disk.
async fn made() -> (Disk, Replica) {
    let disk = Disk::default();
    let replica = open(&disk).await.unwrap();
    replica.init_single("host1").await.unwrap();
    for command in beginning::cluster(&[HOST]) {
        replica.propose(Request::new(command), PATIENCE).await.unwrap();
    }
    (disk, replica)
}

/// Sets one setting after the other until the disk lets the replica down, or to `upto`. Gives the last acknowledged one.
async fn work(replica: &Replica, from: u64, upto: u64) -> u64 {
    for number in from + 1..=upto {
        let set = SetSetting { key: "last".into(), value: Some(number.to_string()) };
        if replica.propose(Request::new(set), PATIENCE).await.is_err() {
            return number - 1;
        }
    }
    upto
}

/// The last setting that a host has which was started again.
async fn found(replica: &Replica) -> Result<u64, String> {
    let state = replica.read_barrier(PATIENCE).await.map_err(|error| error.to_string())?;
    Ok(state.settings.get("last").map_or(0, |value| value.parse().unwrap()))
}

/// Fails the power some times, each between two operations that the seed decides. What is wrong afterwards, if anything.
async fn power_fails(seed: u64, lies: bool) -> Result<u64, String> {
    chance::seed(Some(seed));
    let mut rng = StdRng::seed_from_u64(seed);
    let (disk, mut replica) = made().await;
    if lies {
        disk.begin_to_lie();
    }
    let mut acknowledged = 0;
    for failure in 0..FAILURES {
        disk.fail_after(rng.random_range(0..250), StdRng::seed_from_u64(rng.random()));
        acknowledged = work(&replica, acknowledged, u64::MAX - 1).await;
        replica.shutdown().await;
        replica = open(&disk).await.map_err(|error| format!("failure {failure}: it does not start: {error}"))?;
        let found = found(&replica).await.map_err(|error| format!("failure {failure}: {error}"))?;
        // What was under way may or may not have come about.
        if found < acknowledged || found > acknowledged + 1 {
            return Err(format!("failure {failure}: {acknowledged} was acknowledged, {found} is there"));
        }
        acknowledged = found;
    }
    Ok(acknowledged)
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    0..std::env::var("VTMESH_POWER_SEEDS").map_or(count, |number| number.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_when_the_power_fails() {
    let mut acknowledged = 0;
    for seed in seeds(25) {
        acknowledged += power_fails(seed, false).await.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
    println!("{} power failures, {acknowledged} acknowledged, none lost", seeds(25).end * FAILURES as u64);
    assert!(acknowledged > 100, "too little was acknowledged to mean anything: {acknowledged}");
}

#[tokio::test(start_paused = true)]
async fn without_its_syncs_the_store_loses_what_it_acknowledged_and_that_is_noticed() {
    let mut red = 0;
    for seed in 0..5 {
        red += u32::from(power_fails(seed, true).await.inspect_err(|wrong| println!("seed {seed}: {wrong}")).is_err());
    }
    assert_eq!(red, 5, "a store without fsync passes");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_stops_the_host_clearly_and_it_comes_back() {
    for (kind, code, word) in [
        (io::ErrorKind::StorageFull, ErrorCode::DiskFull, "free space"),
        (io::ErrorKind::ReadOnlyFilesystem, ErrorCode::StorageFailed, "read-only"),
    ] {
        let (disk, replica) = made().await;
        let acknowledged = work(&replica, 0, 40).await;
        disk.refuse(Some(kind));
        assert_eq!(work(&replica, acknowledged, 41).await, 40, "{kind}: it is acknowledged and nowhere");
        let mut leadership = replica.leadership();
        leadership.wait_for(|now| now.role == ReplicaRole::Stopped).await.unwrap();
        assert!(replica.status().failure.is_some(), "{kind}: it does not say why it stopped");
        replica.shutdown().await;
        let error = open(&disk).await.err().unwrap_or_else(|| panic!("{kind}: it starts"));
        let report = Report::from(&error);
        assert_eq!(report.code, code, "{report:?}");
        assert!(report.help.iter().any(|line| line.contains(word)), "{report:?}");
        disk.refuse(None);
        let again = open(&disk).await.unwrap();
        assert_eq!(found(&again).await.unwrap(), acknowledged);
        assert_eq!(work(&again, acknowledged, 60).await, 60, "{kind}: it goes on");
        again.shutdown().await;
    }
}
