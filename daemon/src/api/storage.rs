//! Pools, as vtctl asks for them, changes them and has them tried from every host.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::{Instant, timeout};
use vt_protocol::{
    admin::AdminReply,
    catalogue::{DEFAULT_POOL, HostOutcome, PoolKind, PoolView, StorageRequest},
    error::{ErrorCode, Report},
    ids::{HostId, Name, RequestId},
    peer::{PeerReply, PeerRequest},
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
                let plain = pool.path.is_absolute() && pool.path.components().all(|part| part.as_os_str() != "..");
                let Some(path) = pool.path.to_str().filter(|_| plain) else {
                    let title = format!("{} is no absolute path", pool.path.display());
                    return Err(Report::new(ErrorCode::Usage, title).help("--path /var/lib/images"));
                };
                let add = AddPool { pool: pool.name, kind: pool.kind, path: path.to_owned(), shared: pool.shared };
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
        let store = self.store_called(&state, pool)?;
        let written = match store.shared {
            true => {
                let store = store.clone();
                Some(blocking(move || trial::leave(&store)).await?)
            }
            false => None,
        };
        let hosts: Vec<HostId> = state.hosts.keys().copied().collect();
        let request = |_| PeerRequest::TryPool { pool: pool.clone(), written: written.clone() };
        let outcomes = self.ask_each(hosts, request, DECIDES * 2).await;
        if let Some((name, _)) = written {
            blocking(move || trial::forget(&store, &name)).await;
        }
        Ok(outcomes)
    }

    /// Tries a pool on this host.
    pub(super) async fn try_pool(&self, pool: &Name, written: Option<(String, String)>) -> Result<Vec<String>, Report> {
        // Who asks may know of a pool that this host has not heard of yet.
        let mut watch = self.watch();
        let _ = timeout(BEHIND, watch.wait_for(|state| self.store_called(state, pool).is_ok())).await;
        let store = self.store_called(&self.state(), pool)?;
        blocking(move || trial::run(&store, written.as_ref())).await
    }

    fn store_called(&self, state: &State, pool: &Name) -> Result<Store, Report> {
        self.images().pools().store(state, pool).ok_or_else(|| {
            Report::new(ErrorCode::UnknownPool, format!("there is no pool {pool}")).help("vtctl storage list")
        })
    }
}
