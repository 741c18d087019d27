//! Images and pools: what every host agrees that an image is, which version of it counts, and where whole copies are.
//!
//! A version is a content root. One that is registered anew makes the copies of the one before stale, all in one entry;
//! not while a VM's disk or another image lies upon it. Bytes are not here, and a copy is only as good as its host says.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    catalogue::{DEFAULT_POOL, ImageFormat, PlacementState, PoolKind},
    error::ErrorCode,
    ids::{Digest, Epoch, HostId, JobId, Name},
};

use super::{Decision, Entry, State, reject, within};
use crate::{
    answer::{Answer, Effect, Rejected},
    bounds,
    command::{AddPool, DropPlacement, PinImage, PlaceImage, RegisterImage, RemovePool},
};

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageContent {
    /// Digest of its manifest.
    pub root: Digest,
    /// The format of its disk.
    pub format: ImageFormat,
    /// What the guest sees, bytes.
    pub virtual_bytes: u64,
    /// What its files have, bytes.
    pub bytes: u64,
    /// The image that its disk is built upon.
    pub backing: Option<Name>,
}

/// An image of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name.
    pub name: Name,
    /// The pool that it lies in, on every host.
    pub pool: Name,
    /// The version that counts.
    pub content: ImageContent,
    /// When that version was registered.
    pub registered: Epoch,
    /// Its copies.
    pub placements: BTreeMap<HostId, Placement>,
    /// Whether it is kept from being deleted.
    pub pinned: bool,
    /// Jobs that used it, latest last, bounded.
    pub jobs: Vec<JobId>,
}

/// A copy of an image on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// How it is.
    pub state: PlacementState,
    /// Whether every host sees it.
    pub shared: bool,
}

impl Image {
    /// Whether that host has a whole copy of the version that counts.
    pub fn is_on(&self, host: HostId) -> bool {
        let whole = |placement: &Placement| placement.state == PlacementState::Present;
        self.placements.iter().any(|(at, placement)| (*at == host || placement.shared) && whole(placement))
    }

    /// Hosts with a whole copy.
    pub fn sources(&self) -> impl Iterator<Item = HostId> {
        self.placements.iter().filter(|(_, copy)| copy.state == PlacementState::Present).map(|(host, _)| *host)
    }
}

/// A pool that was made known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: PoolKind,
    /// Where it is: a directory, the same on every host, or a URI; see [`vt_protocol::pool::Place`].
    pub path: String,
    /// Whether every host sees the same files there.
    pub shared: bool,
}

impl State {
    /// Images that this one is built upon, nearest first. Bounded by the number of images: there are no loops, for an
    /// image is registered after what it is built upon.
    pub fn backing_of(&self, image: &Name) -> Vec<Name> {
        let next = |name: &Name| self.images.get(name).and_then(|image| image.content.backing.clone());
        let chain = std::iter::successors(next(image), next);
        chain.take(bounds::BACKING).collect()
    }

    /// What keeps an image from being changed or deleted; `None` where nothing does.
    pub fn image_held_by(&self, name: &Name) -> Option<String> {
        let below = |image: &Name| image == name || self.backing_of(image).contains(name);
        let vm = self.vms.values().find(|vm| std::iter::once(&vm.image).chain(&vm.also).any(below));
        let upon = || self.images.values().find(|image| image.content.backing.as_ref() == Some(name));
        vm.map(|vm| format!("VM {}", vm.id)).or_else(|| upon().map(|image| format!("image {}", image.name)))
    }

    pub(super) fn register_image(&mut self, entry: &mut Entry, c: &RegisterImage) -> Decision {
        self.known_host(c.host)?;
        if c.pool.as_str() != DEFAULT_POOL {
            match self.pools.get(&c.pool).map(|pool| pool.kind) {
                Some(PoolKind::Dir) => {}
                Some(kind) => {
                    let text = format!("pool {} is of kind {}, which takes no images", c.pool, kind.name());
                    return reject(ErrorCode::ImageRefused, text);
                }
                None => return reject(ErrorCode::UnknownPool, format!("there is no pool {}", c.pool)),
            }
        }
        if let Some(backing) = &c.content.backing {
            if backing == &c.image || self.backing_of(backing).contains(&c.image) {
                return reject(ErrorCode::ImageRefused, format!("{} would be built upon itself", c.image));
            }
            if self.backing_of(backing).len() + 1 >= bounds::BACKING {
                return reject(ErrorCode::TooLarge, format!("{} is built upon too many images", c.image));
            }
            let Some(below) = self.images.get(backing) else {
                return reject(
                    ErrorCode::UnknownImage,
                    format!("{} is built upon {backing}, which is unknown", c.image),
                );
            };
            if below.pool != c.pool {
                return reject(ErrorCode::ImageRefused, format!("{} lies in another pool than {backing}", c.image));
            }
        }
        let placement = Placement { state: PlacementState::Present, shared: c.shared };
        if let Some(known) = self.images.get(&c.image) {
            if known.pool != c.pool {
                return reject(ErrorCode::NameTaken, format!("{} lies in pool {}", c.image, known.pool));
            }
            if known.content != c.content
                && let Some(holder) = self.image_held_by(&c.image)
            {
                return reject(ErrorCode::ImageInUse, format!("{} is used by {holder}", c.image));
            }
        } else {
            within("images", self.images.len() + 1, bounds::IMAGES)?;
        }
        let fresh = || {
            Arc::new(Image {
                name: c.image.clone(),
                pool: c.pool.clone(),
                content: c.content.clone(),
                registered: entry.epoch(),
                placements: BTreeMap::new(),
                pinned: false,
                jobs: Vec::new(),
            })
        };
        let image = Arc::make_mut(self.images.entry(c.image.clone()).or_insert_with(fresh));
        if image.content != c.content {
            image.content = c.content.clone();
            image.registered = entry.epoch();
            image.placements.values_mut().for_each(|copy| copy.state = PlacementState::Stale);
        }
        image.placements.insert(c.host, placement);
        entry.tell(Effect::Image(c.image.clone()));
        Ok(Answer::Done)
    }

    pub(super) fn place_image(&mut self, entry: &mut Entry, c: &PlaceImage) -> Decision {
        self.known_host(c.host)?;
        let image = self.known_image(&c.image)?;
        if image.content.root != c.root {
            let text = format!("{} is of another version than {}", c.image, c.root);
            return reject(ErrorCode::RequestConflict, text);
        }
        image.placements.insert(c.host, Placement { state: c.state, shared: c.shared });
        entry.tell(Effect::Image(c.image.clone()));
        Ok(Answer::Done)
    }

    /// The last copy takes the image with it.
    pub(super) fn drop_placement(&mut self, entry: &mut Entry, c: &DropPlacement) -> Decision {
        let holder = self.image_held_by(&c.image);
        let image = self.known_image(&c.image)?;
        if image.pinned {
            return reject(ErrorCode::ImageInUse, format!("{} is pinned", c.image));
        }
        if let Some(holder) = holder {
            return reject(ErrorCode::ImageInUse, format!("{} is used by {holder}", c.image));
        }
        image.placements.remove(&c.host);
        if image.placements.is_empty() {
            self.images.remove(&c.image);
        }
        entry.tell(Effect::Image(c.image.clone()));
        Ok(Answer::Done)
    }

    pub(super) fn pin_image(&mut self, entry: &mut Entry, c: &PinImage) -> Decision {
        self.known_image(&c.image)?.pinned = c.pinned;
        entry.tell(Effect::Image(c.image.clone()));
        Ok(Answer::Done)
    }

    pub(super) fn add_pool(&mut self, entry: &mut Entry, c: &AddPool) -> Decision {
        within("bytes of a path", c.path.len(), bounds::TEXT_BYTES)?;
        let pool = Pool { name: c.pool.clone(), kind: c.kind, path: c.path.clone(), shared: c.shared };
        if self.pools.get(&c.pool).is_some_and(|known| **known == pool) {
            return Ok(Answer::Done);
        }
        if c.pool.as_str() == DEFAULT_POOL || self.pools.contains_key(&c.pool) {
            return reject(ErrorCode::NameTaken, format!("there is a pool called {} already", c.pool));
        }
        // Under two names it would be given away twice.
        let same = |known: &&Arc<Pool>| known.kind == PoolKind::Iscsi && known.path == pool.path;
        if let Some(known) = self.pools.values().find(same).filter(|_| pool.kind == PoolKind::Iscsi) {
            return reject(ErrorCode::PoolInUse, format!("pool {} is that LUN", known.name));
        }
        within("pools", self.pools.len() + 1, bounds::POOLS)?;
        self.pools.insert(c.pool.clone(), Arc::new(pool));
        entry.tell(Effect::Pool(c.pool.clone()));
        Ok(Answer::Done)
    }

    pub(super) fn remove_pool(&mut self, entry: &mut Entry, c: &RemovePool) -> Decision {
        if !self.pools.contains_key(&c.pool) {
            return reject(ErrorCode::UnknownPool, format!("there is no pool {} that could be removed", c.pool));
        }
        if let Some(image) = self.images.values().find(|image| image.pool == c.pool) {
            return reject(ErrorCode::ImageInUse, format!("image {} lies in pool {}", image.name, c.pool));
        }
        if let Some(vm) = self.vms.values().find(|vm| vm.alone.contains(&c.pool)) {
            return reject(ErrorCode::PoolInUse, format!("VM {} has the disk of pool {}", vm.id, c.pool));
        }
        self.pools.remove(&c.pool);
        entry.tell(Effect::Pool(c.pool.clone()));
        Ok(Answer::Done)
    }

    /// Notes that a job uses an image. One that is not in the catalogue is nobody's business.
    pub(super) fn image_used(&mut self, name: &Name, job: JobId) {
        let Some(image) = self.images.get_mut(name).filter(|image| image.jobs.last() != Some(&job)) else { return };
        let jobs = &mut Arc::make_mut(image).jobs;
        jobs.retain(|known| *known != job);
        jobs.push(job);
        if jobs.len() > bounds::JOBS_PER_IMAGE {
            jobs.remove(0);
        }
    }

    /// Forgets the copies of a host that leaves. An image without copies stays, so that it can be told what is lost.
    pub(super) fn drop_copies_of(&mut self, entry: &mut Entry, host: HostId) {
        for (name, image) in &mut self.images {
            if image.placements.contains_key(&host) {
                Arc::make_mut(image).placements.remove(&host);
                entry.tell(Effect::Image(name.clone()));
            }
        }
    }

    fn known_image(&mut self, name: &Name) -> Result<&mut Image, Rejected> {
        let unknown = || Rejected::new(ErrorCode::UnknownImage, format!("there is no image {name} in the catalogue"));
        self.images.get_mut(name).map(Arc::make_mut).ok_or_else(unknown)
    }
}
