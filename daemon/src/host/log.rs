//! Opens the log of a host, and carries what its replica says to the others.

use std::{fs, io, os::unix::fs::DirBuilderExt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::HostId,
    service::Service,
    transport::Transport,
};
use vt_sync::raft::{RaftTransport, Replica, ReplicaConfig, Storage, Unreachable};

use crate::{
    data::DataDir,
    mesh::{Peers, join::claim::Record},
    settings::Settings,
};

/// Opens log and state. They are made once, for a host that was just claimed: one that lost them must not come back.
pub(super) async fn open_replica(
    settings: &Settings,
    data: &DataDir,
    record: &Record,
    peers: Arc<Peers>,
) -> Result<Replica, Report> {
    let path = data.raft();
    let fresh = data.fresh();
    let create = fresh.exists();
    let failed = |error: io::Error| {
        Report::new(ErrorCode::StorageFailed, "the directory of the log cannot be used").caused_by(&error)
    };
    if create {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
    }
    let config = ReplicaConfig {
        heartbeat: Duration::from_millis(settings.raft.heartbeat_ms),
        election_min: Duration::from_millis(settings.raft.election_ms.0),
        election_max: Duration::from_millis(settings.raft.election_ms.1),
        ..ReplicaConfig::default()
    };
    let transport = Arc::new(RaftOverPeers(peers));
    let storage = Storage::Directory { path: path.clone(), create };
    let opened = Replica::open(storage, record.host, &config, transport).await;
    let replica = opened.map_err(|error| Report::from(&error).with("directory", path.display().to_string()))?;
    if create {
        fs::remove_file(&fresh).map_err(failed)?;
    }
    Ok(replica)
}

/// Messages between replicas go over the mesh.
struct RaftOverPeers(Arc<Peers>);

#[async_trait]
impl RaftTransport for RaftOverPeers {
    async fn call(&self, target: HostId, request: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, Unreachable> {
        let by = Instant::now() + deadline;
        self.0.call(target, Service::Raft, request, by).await.map_err(|error| Unreachable(error.to_string()))
    }
}
