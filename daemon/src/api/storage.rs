//! Pools, as vtctl asks for them, changes them and has them tried from every host.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::{Instant, timeout};
use vt_protocol::{
    admin::AdminReply,
    catalogue::{DEFAULT_POOL, HostOutcome, PoolKind, PoolView, StorageRequest},
    error::{ErrorCode, Report},
    ids::{HostId, Name, RequestId},
    peer::{PeerReply, PeerRequest},
    pool::Place,
};
use vt_sync::{
    State,
    command::{AddPool, RemovePool},
};

use super::{ASKS, DECIDES, blocking, left};
use crate::{
    cluster::Cluster,
    host::Host,
    images::{BEHIND, store::Store, trial},
    pools::remote::Remote,
};

impl Host {
    /// Answers a request about pools.
    pub(super) async fn storage_asked(
        self: &Arc<Self>,
        request: StorageRequest,
        by: Instant,
    ) -> Result<AdminReply, Report> {
        match request {
            StorageRequest::List => Ok(AdminReply::Pools(self.pools().await)),
            StorageRequest::Add(pool) => {
                Place::parse(pool.kind, &pool.place).map_err(|error| {
                    Report::new(ErrorCode::Usage, error.to_string()).help("vtctl storage add --help")
                })?;
                let shared = pool.shared || pool.kind != PoolKind::Dir;
                let add = AddPool { pool: pool.name, kind: pool.kind, path: pool.place, shared };
                self.propose(RequestId::random(), add.into(), left(by)).await?;
                Ok(AdminReply::Done)
            }
            StorageRequest::Remove(pool) => {
                self.propose(RequestId::random(), RemovePool { pool }.into(), left(by)).await?;
                Ok(AdminReply::Done)
            }
            StorageRequest::Check(pool) => self.check_pool(&pool).await.map(AdminReply::Outcomes),
        }
    }

    async fn pools(&self) -> Vec<PoolView> {
        let state = self.state();
        let images = |pool: &Name| state.images.values().filter(|i| i.pool == *pool).map(|i| i.name.clone()).collect();
        let mut views = Vec::new();
        if let Ok(name) = DEFAULT_POOL.parse::<Name>() {
            let (mut paths, mut shared) = (BTreeMap::new(), true);
            for host in state.hosts.values() {
                if let Ok(PeerReply::Facts(facts)) = self.ask(host.id, PeerRequest::Facts, ASKS).await {
                    shared &= facts.pool.shared;
                    paths.insert(host.name.clone(), facts.pool.path);
                }
            }
            views.push(PoolView { images: images(&name), name, kind: PoolKind::Dir, paths, shared });
        }
        views.extend(state.pools.values().map(|pool| PoolView {
            name: pool.name.clone(),
            kind: pool.kind,
            paths: state.hosts.values().map(|host| (host.name.clone(), pool.path.clone())).collect(),
            shared: pool.shared,
            images: images(&pool.name),
        }));
        views
    }

    /// Tries a pool on every host. Where it is shared, each reads what this one has written.
    async fn check_pool(&self, pool: &Name) -> Result<Vec<HostOutcome>, Report> {
        let state = self.state();
        let tried = self.tried(&state, pool)?;
        let left = match &tried {
            Tried::Dir(store) if !store.shared => Ok(None),
            Tried::Dir(store) => {
                let store = store.clone();
                blocking(move || trial::leave(&store)).await.map(Some)
            }
            Tried::Remote(pool) => pool.leave().await,
        };
        let written = left.as_ref().ok().cloned().flatten();
        let hosts: Vec<HostId> = state.hosts.keys().copied().collect();
        let request = |_| PeerRequest::TryPool { pool: pool.clone(), written: written.clone() };
        let outcomes = self.ask_each(hosts, request, DECIDES * 2).await;
        if let Some((name, _)) = written {
            match tried {
                Tried::Dir(store) => blocking(move || trial::forget(&store, &name)).await,
                Tried::Remote(pool) => pool.forget(&name).await,
            }
        }
        // Where nothing can be left, no host can write either, and each says why. Else it was this host alone.
        match left {
            Err(report) if outcomes.iter().all(|outcome| outcome.trouble.is_none()) => Err(report),
            _ => Ok(outcomes),
        }
    }

    /// Tries a pool on this host.
    pub(super) async fn try_pool(&self, pool: &Name, written: Option<(String, String)>) -> Result<Vec<String>, Report> {
        // Who asks may know of a pool that this host has not heard of yet.
        let mut watch = self.watch();
        let _ =
            timeout(BEHIND, watch.wait_for(|state| state.pools.contains_key(pool) || pool.as_str() == DEFAULT_POOL))
                .await;
        match self.tried(&self.state(), pool)? {
            Tried::Dir(store) => blocking(move || trial::run(&store, written.as_ref())).await,
            Tried::Remote(pool) => pool.run_trial(written.as_ref()).await,
        }
    }

    fn tried(&self, state: &State, name: &Name) -> Result<Tried, Report> {
        if let Some(store) = self.images().pools().store(state, name) {
            return Ok(Tried::Dir(store));
        }
        let Some(pool) = state.pools.get(name) else {
            return Err(
                Report::new(ErrorCode::UnknownPool, format!("there is no pool {name}")).help("vtctl storage list")
            );
        };
        match Remote::of(pool) {
            Ok(Some(pool)) => Ok(Tried::Remote(pool)),
            Ok(None) => Ok(Tried::Dir(Store { path: pool.path.clone().into(), shared: pool.shared })),
            Err(error) => Err(Report::new(ErrorCode::StorageFailed, error.to_string())),
        }
    }
}

/// What is tried.
enum Tried {
    Dir(Store),
    Remote(Remote),
}
