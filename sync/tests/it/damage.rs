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

const ENTRIES: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_changed_anywhere_is_noticed_or_harmless() {
    let dir = tempfile::TempDir::new().unwrap();
    let replica = open(dir.path(), true).await.unwrap();
    replica.init_single("host1").await.unwrap();
    wait("a leader", || replica.status().quorum.then_some(())).await;
    for command in World::init_commands() {
        replica.propose(Request::new(command), PATIENCE).await.unwrap();
    }
    for i in 0..ENTRIES {
        let set = SetSetting { key: format!("k{i}"), value: Some("v".repeat(100)) };
        replica.propose(Request::new(set), PATIENCE).await.unwrap();
    }
    let last = replica.status().last_log;
    replica.shutdown().await;
    drop(replica);
    let path = dir.path().join("raft.redb");
    let whole = fs::read(&path).unwrap();

    let (mut noticed, mut harmless) = (0, 0);
    // Bytes in use are what is not zero; the step takes some of every page.
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    for at in used.iter().step_by(used.len() / 60 + 1) {
        fs::write(&path, &whole).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[whole[*at] ^ 0x40], *at as u64).unwrap();
        drop(file);
        match open(dir.path(), false).await {
            Err(error) => {
                assert!(matches!(error, OpenError::Store(StoreError::Damaged(_))), "byte {at}: {error:?}");
                noticed += 1;
            }
            Ok(replica) => {
                wait("the log to be read", || (replica.status().last_log > 0).then_some(())).await;
                assert!(replica.status().last_log >= last, "byte {at}: entries are gone and nobody noticed");
                let state = wait("the state", || (replica.state().index >= last).then(|| replica.state())).await;
                assert_eq!(state.settings.len(), ENTRIES, "byte {at}");
                replica.shutdown().await;
                harmless += 1;
            }
        }
    }
    assert!(noticed > 4, "{noticed} noticed, {harmless} harmless: the test does not reach what matters");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_file_is_noticed() {
    let dir = tempfile::TempDir::new().unwrap();
    let replica = open(dir.path(), true).await.unwrap();
    replica.init_single("host1").await.unwrap();
    wait("a leader", || replica.status().quorum.then_some(())).await;
    replica.shutdown().await;
    drop(replica);
    let path = dir.path().join("raft.redb");
    let whole = fs::read(&path).unwrap();
    for len in [1, 100, 4096, whole.len() / 2, whole.len() - 4096] {
        fs::write(&path, &whole[..len]).unwrap();
        let error = open(dir.path(), false).await.err().unwrap_or_else(|| panic!("cut to {len} of {}", whole.len()));
        assert!(matches!(error, OpenError::Store(StoreError::Damaged(_))), "{len}: {error:?}");
    }
}
