//! A damaged file stops the daemon or loses nothing; it never passes for a shorter one.

use std::{fs, os::unix::fs::FileExt, path::Path, sync::Arc, time::Duration};

use vt_protocol::ids::HostId;
use vt_sync::{
    RaftTransport, Replica, Request, Storage, Unreachable,
    command::SetSetting,
    raft::{OpenError, StoreError},
};

use crate::{
    harness::{PATIENCE, config, wait},
    world::World,
};

struct Nobody;

#[async_trait::async_trait]
impl RaftTransport for Nobody {
    async fn call(&self, _: HostId, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, Unreachable> {
        Err(Unreachable("nobody is there".into()))
    }
}

async fn open(dir: &Path, create: bool) -> Result<Replica, OpenError> {
    let storage = Storage::Directory { path: dir.to_owned(), create };
    Replica::open(storage, HostId(1), &config(), Arc::new(Nobody)).await
}

const FILES: [&str; 2] = ["raft.redb", "raft.log"];
const ENTRIES: usize = 40;

/// A store with entries behind a snapshot, closed. Also gives the last index.
async fn store() -> (tempfile::TempDir, u64) {
    let dir = tempfile::TempDir::new().unwrap();
    let replica = open(dir.path(), true).await.unwrap();
    replica.init_single("host1").await.unwrap();
    wait("a leader", || replica.status().quorum.then_some(())).await;
    for command in World::init_commands() {
        replica.propose(Request::new(command), PATIENCE).await.unwrap();
    }
    for i in 0..ENTRIES {
        if i == ENTRIES / 2 {
            replica.snapshot().await.unwrap();
            wait("a snapshot", || (replica.status().snapshot > 0).then_some(())).await;
        }
        let set = SetSetting { key: format!("k{i}"), value: Some("v".repeat(100)) };
        replica.propose(Request::new(set), PATIENCE).await.unwrap();
    }
    let last = replica.status().last_log;
    replica.shutdown().await;
    (dir, last)
}

/// Opens what was damaged. True: the damage was noticed; false: nothing is lost.
async fn is_noticed(dir: &Path, last: u64, what: &str) -> bool {
    match open(dir, false).await {
        Err(error) => {
            assert!(matches!(error, OpenError::Store(StoreError::Damaged(_))), "{what}: {error:?}");
            true
        }
        Ok(replica) => {
            wait("the log to be read", || (replica.status().last_log > 0).then_some(())).await;
            assert!(replica.status().last_log >= last, "{what}: entries are gone and nobody noticed");
            let state = wait("the state", || (replica.state().index >= last).then(|| replica.state())).await;
            assert_eq!(state.settings.len(), ENTRIES, "{what}");
            replica.shutdown().await;
            false
        }
    }
}

/// `VTMESH_FLIPS` is how many bytes of each file are changed, one at a time: 60, and 2000 in `make proofs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_changed_anywhere_is_noticed_or_harmless() {
    let flips: usize = std::env::var("VTMESH_FLIPS").map_or(60, |number| number.parse().unwrap());
    let (dir, last) = store().await;
    let whole = FILES.map(|name| fs::read(dir.path().join(name)).unwrap());
    let restore = || {
        for (name, bytes) in FILES.iter().zip(&whole) {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
    };
    for (name, bytes) in FILES.iter().zip(&whole) {
        let (mut noticed, mut harmless) = (0, 0);
        // Bytes in use are what is not zero; the step takes some of every page.
        let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        for (at, bit) in used.iter().step_by(used.len() / flips + 1).zip((0..8).cycle()) {
            restore();
            let file = fs::OpenOptions::new().write(true).open(dir.path().join(name)).unwrap();
            file.write_all_at(&[bytes[*at] ^ (1 << bit)], *at as u64).unwrap();
            drop(file);
            match is_noticed(dir.path(), last, &format!("{name}, byte {at}")).await {
                true => noticed += 1,
                false => harmless += 1,
            }
        }
        println!("{name}: of {} changed bytes {noticed} were noticed, {harmless} are harmless", noticed + harmless);
        assert!(noticed > 4, "{name}: {noticed} noticed, {harmless} harmless: the test does not reach what matters");
        assert!(*name != "raft.log" || harmless == 0, "nothing in the log is harmless: {harmless}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_or_missing_file_is_noticed() {
    let (dir, last) = store().await;
    for name in FILES {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        for len in [0, 1, 100, 4096, whole.len() / 2, whole.len() - 4096] {
            fs::write(&path, &whole[..len]).unwrap();
            // An empty store is a new one, which does not know of the journal beside it.
            assert!(is_noticed(dir.path(), last, &format!("{name} cut to {len} of {}", whole.len())).await);
        }
        fs::remove_file(&path).unwrap();
        let error = open(dir.path(), false).await.err().unwrap();
        assert!(matches!(error, OpenError::Store(StoreError::Missing(_))), "{name}: {error:?}");
        fs::write(&path, &whole).unwrap();
    }
    assert!(!is_noticed(dir.path(), last, "the whole store").await);
}
