//! How images come into the catalogue: taken from a file, from an address, or made of another one. Each is whole in its
//! pool before the catalogue hears of it, and what the catalogue does not want does not stay.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::time::interval;
use vt_protocol::{
    catalogue::{ConvertImage, DEFAULT_POOL, FetchImage, ImageProgress, ImportImage},
    error::{ErrorCode, Report},
    ids::{Name, RequestId},
    manifest::block_bytes,
};
use vt_sync::{State, command::RegisterImage};

use super::{
    DECIDES, blocking,
    images::{TELLS, not_here},
};
use crate::{
    cluster::Cluster,
    host::Host,
    images::{
        convert,
        fetch::{self, Coming},
        import::{self, Taken},
        store::Store,
        unknown,
    },
    mesh::ReplySink,
};

/// A name and a pool for an image that is to come.
struct Place {
    name: Name,
    pool: Name,
    store: Store,
}

impl Place {
    /// Whether a new version may have that name there. `its_folder`: what is taken is a folder, which may be the one.
    fn find(host: &Host, state: &State, name: &Name, pool: Option<&Name>, its_folder: bool) -> Result<Self, Report> {
        let pool = match pool {
            Some(pool) => pool.clone(),
            None => DEFAULT_POOL.parse().map_err(|_| Report::new(ErrorCode::Internal, "no pool has a name"))?,
        };
        let Some(store) = host.images().pools().store(state, &pool) else {
            return Err(match state.pools.get(&pool) {
                Some(other) => {
                    let title = format!("pool {pool} is of kind {}, which takes no images", other.kind.name());
                    let report = Report::new(ErrorCode::ImageRefused, title);
                    report.help(format!("vtctl run SCENARIO -m HOSTS -p disk_pool={pool}   (disks of VMs lie there)"))
                }
                None => {
                    Report::new(ErrorCode::UnknownPool, format!("there is no pool {pool}")).help("vtctl storage list")
                }
            });
        };
        let known = state.images.get(name);
        if let (Some(_), Some(holder)) = (known, state.image_held_by(name)) {
            let title = format!("{name} is used by {holder}: another version cannot take its place");
            return Err(Report::new(ErrorCode::ImageInUse, title).help(format!("--name another-{name}")));
        }
        let folder = store.folder(name);
        if known.is_none() && folder.exists() && !its_folder {
            let title = format!("there is a folder {} already, which is not in the catalogue", folder.display());
            return Err(Report::new(ErrorCode::NameTaken, title)
                .help(format!("vtctl image import {}", folder.display()))
                .help("vtctl image import FILE --name ANOTHER"));
        }
        Ok(Self { name: name.clone(), pool, store })
    }
}

impl Host {
    pub(super) async fn import(&self, import: ImportImage, replies: &ReplySink) -> Result<Vec<String>, Report> {
        let state = self.state();
        let its_folder = import.path.is_dir();
        let place = Place::find(self, &state, &import.name, import.pool.as_ref(), its_folder)?;
        let path = import.path.clone();
        let coming =
            Coming { total: AtomicU64::new(blocking(move || import::total(&path)).await), ..Coming::default() };
        let coming = Arc::new(coming);
        let taking = import::take(&place.store, &state, &import, &coming.done);
        let taken = self.telling(&place, &coming, replies, taking).await?;
        self.register(place, taken).await
    }

    pub(super) async fn fetch(&self, asked: FetchImage, replies: &ReplySink) -> Result<Vec<String>, Report> {
        let state = self.state();
        let place = Place::find(self, &state, &asked.name, asked.pool.as_ref(), false)?;
        let Some(_fetching) = self.images().fetching(&asked.name) else {
            let title = format!("image {} is on its way from an address already", asked.name);
            return Err(Report::new(ErrorCode::ImageInUse, title).retryable());
        };
        let coming = Arc::new(Coming::default());
        let taking = fetch::fetch(&place.store, &state, &asked, &coming);
        let taken = self.telling(&place, &coming, replies, taking).await?;
        self.register(place, taken).await
    }

    pub(super) async fn convert(&self, asked: ConvertImage, replies: &ReplySink) -> Result<Vec<String>, Report> {
        let state = self.state();
        let image = state.images.get(&asked.image).ok_or_else(|| unknown(&state, &asked.image))?;
        if asked.name == asked.image {
            let title = format!("{} cannot be made of itself", asked.name);
            return Err(Report::new(ErrorCode::Usage, title).help("vtctl image convert IMAGE ANOTHER-NAME"));
        }
        let place = Place::find(self, &state, &asked.name, asked.pool.as_ref().or(Some(&image.pool)), false)?;
        let from = self.images().pools().store(&state, &image.pool);
        let Some(from) = from.filter(|store| store.has(&asked.image, image.content.root)) else {
            return Err(not_here(self, &state, image));
        };
        let below = state.backing_of(&asked.image).into_iter().filter_map(|name| state.images.get(&name));
        let chain = std::iter::once(image).chain(below).map(|image| (image.name.clone(), image.content.root));
        let making = convert::convert((from, place.store.clone()), chain.collect(), &asked);
        let taken = self.telling(&place, &Coming::default(), replies, making).await?;
        self.register(place, taken).await
    }

    /// Tells how far something is until it is done.
    async fn telling(
        &self,
        place: &Place,
        coming: &Coming,
        replies: &ReplySink,
        work: impl Future<Output = Result<Taken, Report>>,
    ) -> Result<Taken, Report> {
        tokio::pin!(work);
        let mut tick = interval(TELLS);
        loop {
            tokio::select! {
                taken = &mut work => return taken,
                _ = tick.tick() => {
                    let total = coming.total.load(Ordering::Relaxed);
                    let done = coming.done.load(Ordering::Relaxed).min(total);
                    let (host, image) = (self.record().name.clone(), place.name.clone());
                    self.tell(replies, ImageProgress { host, image, done, total, moved: 0 }).await;
                }
            }
        }
    }

    /// Gives what was taken its name, on disk and then in the catalogue.
    async fn register(&self, place: Place, taken: Taken) -> Result<Vec<String>, Report> {
        let Place { name, pool, store } = place;
        let content = taken.content.clone();
        let mut steps = vec![format!(
            "{name} ({}, the guest sees {} bytes, {} bytes in blocks of {}) is in pool {pool} of {}",
            content.format.name(),
            content.virtual_bytes,
            content.bytes,
            block_bytes(content.bytes),
            self.record().name
        )];
        steps.extend(taken.notes.iter().cloned());
        let in_place = taken.in_place();
        blocking({
            let (store, name) = (store.clone(), name.clone());
            move || taken.place(&store, &name)
        })
        .await?;
        let register = RegisterImage {
            image: name.clone(),
            pool,
            content: content.clone(),
            host: self.me(),
            shared: store.shared,
        };
        if let Err(error) = self.propose(RequestId::random(), register.into(), DECIDES).await {
            // What the catalogue does not want does not stay; the user's own folder does.
            blocking(move || import::undo(&store, &name, in_place)).await;
            return Err(error.into());
        }
        steps.push(format!("content root {}", content.root));
        Ok(steps)
    }
}
