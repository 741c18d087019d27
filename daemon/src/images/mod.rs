//! Images of this host: what the catalogue says is made true in the directories of its pools.
//!
//! | file | noun |
//! |---|---|
//! | `store` | a pool's directory: folders of images, whole or on their way |
//! | `header`, `inspect` | what a disk says of itself: to us, and to QEMU's tool |
//! | `tool` | programs of others, within bounds |
//! | `blocks`, `sum`, `written` | files as blocks with digests; digests that others state; files on their way to the disk |
//! | `import`, `fetch`, `convert` | taking a disk or folder into a pool: from this host, an address, another image |
//! | `pull`, `seeds`, `serve` | a copy from other hosts, what of it is here already, and what others are given |
//! | `asking`, `swarm` | a copy that goes to several hosts at once: what is asked of whom, and what they have |
//! | `trial` | whether a pool can do what images and disks need of it |
//!
//! What may not happen here: an image's name on something that is not whole, or a word in the catalogue about a copy
//! that was not made.

mod asking;
mod blocks;
pub(crate) mod convert;
pub(crate) mod fetch;
mod header;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod pull;
mod seeds;
pub(crate) mod serve;
pub(crate) mod store;
pub(crate) mod sum;
mod swarm;
pub(crate) mod tool;
pub(crate) mod trial;
mod written;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use vt_protocol::{
    bulk::BulkDialer,
    catalogue::{DEFAULT_POOL, PlacementState, PoolKind},
    error::{ErrorCode, Report},
    ids::{Digest, HostId, Name, RequestId},
    manifest::Manifest,
    peer::Pulling,
};
use vt_sync::{State, command::PlaceImage, state::Image};

use self::{
    pull::{Pull, Source},
    store::{Store, trouble},
    swarm::Swarm,
};
use crate::{
    cluster::Cluster,
    host::Host,
    mesh::{AdminService, MembershipView},
    settings::Settings,
};

/// How far this host may be behind one that asks it for something.
pub(crate) const BEHIND: Duration = Duration::from_secs(5);
/// How long an entry about a copy may take.
const DECIDES: Duration = Duration::from_secs(20);

/// The pools of this host.
#[derive(Debug, Clone)]
pub struct Pools {
    default: Store,
    /// Copies on their way here.
    swarm: Swarm,
    /// What others ask for.
    known: serve::Known,
}

impl Pools {
    /// The pool that every host has, from its settings.
    pub fn new(settings: &Settings) -> Self {
        Self::at(settings.paths.images.clone(), settings.pool_shared)
    }

    /// A host whose images are in that directory.
    pub fn at(images: PathBuf, shared: bool) -> Self {
        Self { default: Store { path: images, shared }, swarm: Swarm::default(), known: serve::Known::default() }
    }

    /// The directory of a pool by its name; `None` where the cluster knows none, or it is none.
    pub(crate) fn store(&self, state: &State, pool: &Name) -> Option<Store> {
        if pool.as_str() == DEFAULT_POOL {
            return Some(self.default.clone());
        }
        let pool = state.pools.get(pool).filter(|pool| pool.kind == PoolKind::Dir)?;
        Some(Store { path: PathBuf::from(&pool.path), shared: pool.shared })
    }

    /// The pool in which an image lies; one that is not in the catalogue lies in the default one.
    pub(crate) fn store_of(&self, state: &State, image: &Name) -> Store {
        let known = state.images.get(image).and_then(|image| self.store(state, &image.pool));
        known.unwrap_or_else(|| self.default.clone())
    }

    /// All pools of this host.
    pub(crate) fn all(&self, state: &State) -> Vec<(Name, Store)> {
        let default = DEFAULT_POOL.parse().map(|name| (name, self.default.clone()));
        let others = state.pools.keys().filter_map(|name| Some((name.clone(), self.store(state, name)?)));
        default.into_iter().chain(others).collect()
    }
}

/// Pools of this host, and copies that are on their way to it.
pub struct Images {
    pools: Pools,
    pulls: Mutex<BTreeMap<Name, watch::Receiver<Pulling>>>,
    fetches: Mutex<BTreeSet<Name>>,
}

/// A download of an image, which nobody else may begin or sweep away meanwhile.
pub(crate) struct Fetching<'a> {
    images: &'a Images,
    name: Name,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.images.fetches().remove(&self.name);
    }
}

impl Images {
    /// Nothing is on its way yet.
    pub fn new(pools: Pools) -> Self {
        Self { pools, pulls: Mutex::default(), fetches: Mutex::default() }
    }

    /// The pools.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Begins a download; `None` where one is under way.
    pub(crate) fn fetching(&self, name: &Name) -> Option<Fetching<'_>> {
        let begun = self.fetches().insert(name.clone());
        begun.then(|| Fetching { images: self, name: name.clone() })
    }

    fn fetches(&self) -> MutexGuard<'_, BTreeSet<Name>> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pulls(&self) -> MutexGuard<'_, BTreeMap<Name, watch::Receiver<Pulling>>> {
        // Nothing panics while it holds the lock.
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// Has an image come here, with all that it is built upon, and tells how far it is; waits up to `wait` for its end.
    ///
    /// # Errors
    /// The catalogue does not have it.
    pub(crate) async fn pull_image(
        self: &Arc<Self>,
        image: Name,
        root: Digest,
        rate: u64,
        wait: Duration,
    ) -> Result<Pulling, Report> {
        // Who asks may know of a version that this host has not heard of yet.
        let mut watch = self.watch();
        let heard = |state: &Arc<State>| state.images.get(&image).is_some_and(|known| known.content.root == root);
        let _ = timeout(BEHIND, watch.wait_for(heard)).await;
        let state = self.state();
        let known = known(&state, &image)?;
        let here = self.has_image(&state, known);
        let mut progress = {
            let mut pulls = self.images().pulls();
            let last = pulls.get(&image).cloned();
            let runs = last.as_ref().is_some_and(|pull| pull.borrow().ended.is_none());
            let arrived = here && last.as_ref().is_some_and(|pull| matches!(pull.borrow().ended, Some(Ok(()))));
            match last {
                // One that has just ended tells what it moved.
                Some(pull) if runs || arrived => pull,
                _ if here => {
                    let bytes = known.content.bytes;
                    return Ok(Pulling { done: bytes, total: bytes, ended: Some(Ok(())), ..Pulling::default() });
                }
                _ => {
                    let (sender, receiver) = watch::channel(Pulling::default());
                    pulls.insert(image.clone(), receiver.clone());
                    let (host, image) = (Arc::clone(self), image.clone());
                    self.spawn(async move {
                        let ended = host.pull_chain(&image, rate, &sender).await;
                        if let Err(report) = &ended {
                            tracing::warn!(%image, %report, "a copy of an image was not made");
                        }
                        sender.send_modify(|now| now.ended = Some(ended));
                    });
                    receiver
                }
            }
        };
        // Its end, or the end of its task, which says so before.
        let _ = timeout(wait, progress.wait_for(|now| now.ended.is_some())).await;
        let now = progress.borrow().clone();
        if now.ended.is_some() {
            self.images().pulls().remove(&image);
        }
        Ok(now)
    }

    /// Whether a whole copy of the version that counts is here, with all that it is built upon.
    fn has_image(&self, state: &State, image: &Image) -> bool {
        let below = state.backing_of(&image.name).into_iter().filter_map(|name| state.images.get(&name));
        std::iter::once(image).chain(below.map(Arc::as_ref)).all(|image| {
            let store = self.images().pools.store(state, &image.pool);
            image.is_on(self.me()) && store.is_some_and(|store| store.has(&image.name, image.content.root))
        })
    }

    async fn pull_chain(
        self: &Arc<Self>,
        image: &Name,
        rate: u64,
        progress: &watch::Sender<Pulling>,
    ) -> Result<(), Report> {
        let mut chain = self.state().backing_of(image);
        chain.reverse();
        chain.push(image.clone());
        for name in chain {
            let state = self.state();
            let image = known(&state, &name)?;
            if self.has_image(&state, image) {
                continue;
            }
            progress.send_modify(|now| (now.done, now.total) = (0, 0));
            self.pull_one(&state, image, rate, progress).await?;
        }
        Ok(())
    }

    async fn pull_one(
        self: &Arc<Self>,
        state: &State,
        image: &Image,
        rate: u64,
        progress: &watch::Sender<Pulling>,
    ) -> Result<(), Report> {
        let (name, root) = (&image.name, image.content.root);
        let Some(store) = self.images().pools.store(state, &image.pool) else {
            return Err(Report::new(ErrorCode::UnknownPool, format!("there is no pool {}", image.pool)));
        };
        let sources = self.sources(state, image);
        if sources.is_empty() {
            let title = format!("no host that answers has a whole copy of image {name}");
            return Err(Report::new(ErrorCode::NoSource, title)
                .help(format!("vtctl image show {name}"))
                .help(format!("vtctl image import {}   (where it was built anew)", store.folder(name).display()))
                .retryable());
        }
        self.place_image(image, PlacementState::Copying, store.shared).await?;
        // Made anew each time: the identity may have been changed meanwhile.
        let dialer = BulkDialer::new(&self.identity(), self.hello()).map_err(|error| {
            Report::new(ErrorCode::StoreDamaged, "the identity of this host does not serve TLS").caused_by(&error)
        })?;
        // Where each begins: they all have the same hosts in mind.
        let hosts: Vec<HostId> = state.hosts.keys().copied().collect();
        let place = hosts.iter().position(|host| *host == self.me()).unwrap_or_default();
        let also = {
            let (host, name) = (Arc::clone(self), name.clone());
            move || host.also_taking(&name, root)
        };
        let pull = Pull {
            dialer,
            store: store.clone(),
            image: name.clone(),
            root,
            sources,
            also: Arc::new(also),
            begin: (place, hosts.len().max(1)),
            swarm: self.images().pools.swarm.clone(),
            rate,
            progress: progress.clone(),
        };
        if let Err(report) = pull.run().await {
            if let Err(error) = self.place_image(image, PlacementState::Missing, store.shared).await {
                tracing::info!(%name, %error, "the catalogue still says that the image is on its way");
            }
            return Err(report);
        }
        self.place_image(image, PlacementState::Present, store.shared).await
    }

    /// Says in the catalogue how the copy of this host is.
    pub(crate) async fn place_image(&self, image: &Image, state: PlacementState, shared: bool) -> Result<(), Report> {
        let place = PlaceImage { image: image.name.clone(), root: image.content.root, host: self.me(), state, shared };
        self.propose(RequestId::random(), place.into(), DECIDES).await?;
        Ok(())
    }

    /// Other hosts that have an image and answer.
    fn sources(&self, state: &State, image: &Image) -> Vec<Source> {
        image.sources().filter_map(|host| self.source(state, host)).collect()
    }

    /// Other hosts that are taking that version, or have it, and answer; and how their copies are.
    fn also_taking(&self, name: &Name, root: Digest) -> Vec<(Source, PlacementState)> {
        let state = self.state();
        let Some(image) = state.images.get(name).filter(|image| image.content.root == root) else { return Vec::new() };
        let good = |state| matches!(state, PlacementState::Copying | PlacementState::Present);
        let copies = image.placements.iter().filter(|(_, copy)| good(copy.state));
        copies.filter_map(|(host, copy)| Some((self.source(&state, *host)?, copy.state))).collect()
    }

    fn source(&self, state: &State, host: HostId) -> Option<Source> {
        let membership = self.members().membership();
        let live = state.hosts.get(&host).is_some_and(|host| host.is_live());
        let member = membership.hosts.get(&host).filter(|_| live && host != self.me())?;
        Some(Source {
            host,
            name: member.name.to_string(),
            address: *member.addresses.first()?,
            key: member.key.clone(),
        })
    }

    /// Reads this host's copy of an image and compares it with its digests. Says in the catalogue what it found.
    ///
    /// # Errors
    /// It is damaged or not here; the report names what is wrong.
    pub(crate) async fn verify_image(&self, name: &Name) -> Result<Vec<String>, Report> {
        let state = self.state();
        let image = known(&state, name)?;
        let Some(store) = self.images().pools.store(&state, &image.pool) else {
            return Err(Report::new(ErrorCode::UnknownPool, format!("there is no pool {}", image.pool)));
        };
        let root = image.content.root;
        let found = blocking({
            let (store, name) = (store.clone(), name.clone());
            move || verify(&store, &name, root)
        })
        .await;
        let holds = image.placements.get(&self.me()).map(|copy| copy.state);
        match &found {
            Ok(_) if holds.is_some_and(|state| state != PlacementState::Present) => {
                self.place_image(image, PlacementState::Present, store.shared).await?;
            }
            Err(_) if holds == Some(PlacementState::Present) => {
                self.place_image(image, PlacementState::Missing, store.shared).await?;
            }
            _ => {}
        }
        found
    }

    /// Removes this host's copy of an image that is no longer on record here.
    ///
    /// # Errors
    /// It is on record, or cannot be removed.
    pub(crate) async fn drop_image(&self, name: &Name) -> Result<Vec<String>, Report> {
        // Who asks has proposed it; this host may be a moment behind.
        let me = self.me();
        let mut watch = self.watch();
        let gone = |state: &Arc<State>| !state.images.get(name).is_some_and(|image| image.placements.contains_key(&me));
        if timeout(DECIDES, watch.wait_for(gone)).await.is_err() {
            return Err(Report::new(ErrorCode::ImageInUse, format!("the copy of {name} here is on record")));
        }
        let state = self.state();
        let stores = self.images().pools.all(&state);
        let name = name.clone();
        blocking(move || {
            let mut told = Vec::new();
            for (pool, store) in stores {
                match store.remove(&name) {
                    Ok(true) => told.push(format!("its copy in pool {pool} is removed")),
                    Ok(false) => {}
                    Err(error) => return Err(trouble("it cannot be removed", &store.folder(&name), &error)),
                }
            }
            Ok(told)
        })
        .await
    }

    /// Removes what broken transfers left here, and copies that are not on record.
    ///
    /// # Errors
    /// A pool cannot be read, or something cannot be removed.
    pub(crate) async fn sweep_images(&self) -> Result<Vec<String>, Report> {
        let state = self.state();
        let me = self.me();
        let under_way: Vec<String> = {
            let pulls = self.images().pulls();
            let pulled = pulls.iter().filter(|(_, pull)| pull.borrow().ended.is_none()).map(|(name, _)| name);
            pulled.chain(&*self.images().fetches()).map(Name::to_string).collect()
        };
        let stores = self.images().pools.all(&state);
        blocking(move || {
            let mut told = Vec::new();
            for (pool, store) in stores {
                let wanted = |name: &Name| {
                    let image = state.images.get(name).filter(|image| image.pool == pool);
                    image.is_some_and(|image| store.shared || image.placements.contains_key(&me))
                };
                let busy = |part: &str| under_way.iter().any(|name| part.contains(name.as_str()));
                let removed = store.sweep(wanted, busy);
                let removed = removed.map_err(|error| trouble("the pool cannot be swept", &store.path, &error))?;
                told.extend(removed.into_iter().map(|name| format!("{name} in pool {pool}")));
            }
            Ok(told)
        })
        .await
    }
}

fn known<'a>(state: &'a State, image: &Name) -> Result<&'a Arc<Image>, Report> {
    state.images.get(image).ok_or_else(|| unknown(state, image))
}

/// There is no such image.
pub(crate) fn unknown(state: &State, image: &Name) -> Report {
    let report = Report::new(ErrorCode::UnknownImage, format!("there is no image {image} in the catalogue"));
    match crate::nearest::nearest(image.as_str(), state.images.keys().map(Name::as_str)) {
        Some(near) => report.help(format!("did you mean {near}?")),
        None => report,
    }
    .help("vtctl image list")
}

/// Compares all files of a copy with the manifest.
fn verify(store: &Store, image: &Name, root: Digest) -> Result<Vec<String>, Report> {
    let folder = store.folder(image);
    let damaged = |title: String| {
        Report::new(ErrorCode::ImageDamaged, title)
            .with("folder", folder.display().to_string())
            .help(format!("vtctl image sync {image}   (replaces what is damaged)"))
    };
    let Some(Manifest { files }) = store.manifest(image, root) else {
        return Err(damaged(format!("the copy of {image} is gone, or of another version")));
    };
    let done = AtomicU64::new(0);
    for wanted in &files {
        let path = folder.join(&wanted.name);
        let read = File::open(&path).and_then(|file| {
            if file.metadata()?.len() != wanted.length {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it has another length"));
            }
            blocks::digests(&file, wanted.length, &done)
        });
        let found = read.map_err(|error| damaged(format!("{} of image {image}: {error}", wanted.name)))?;
        let wrong: Vec<usize> =
            found.iter().zip(&wanted.digests).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect();
        if let Some(first) = wrong.first() {
            let count = wrong.len();
            let title = format!("{count} block(s) of {} of image {image} are damaged", wanted.name);
            return Err(damaged(title).with("first block", first.to_string()));
        }
    }
    Ok(vec![format!("{} bytes are as they should be", done.load(Ordering::Relaxed))])
}

/// Runs what waits for the disk where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // The process ends on a panic, and nobody cancels this task.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
