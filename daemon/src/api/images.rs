//! The catalogue of images, as vtctl asks for it and changes it.
//!
//! Bytes are moved by the hosts that have them and want them ([`crate::images`]); here it is said which, in what order,
//! and what a user is told meanwhile.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::future::join_all;
use vt_protocol::{
    admin::AdminReply,
    catalogue::{
        HostOutcome, ImageProgress, ImageRequest, ImageView, PlacementState, PlacementView, SyncImage, WriterView,
    },
    error::{ErrorCode, Report},
    ids::{Digest, HostId, Name, RequestId},
    image::ImagePackage,
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    State,
    command::{DropPlacement, PinImage},
    state::{Image, Migration, Role, VmState},
};

use super::{DECIDES, blocking, unknown_host, views::natural};
use crate::{
    cluster::{AskError, Cluster},
    host::Host,
    images::{import, store::Store, unknown},
    mesh::{Caller, ReplySink},
};

/// How long a host may take to read a whole image.
const READS: Duration = Duration::from_secs(3600);
/// How often progress is told.
pub(super) const TELLS: Duration = Duration::from_millis(300);
/// A host that does not answer while an image comes to it is asked this often again.
const TRIES: u32 = 10;
const AGAIN: Duration = Duration::from_secs(2);

impl Host {
    /// Answers a request about images; progress goes to `replies`.
    pub(super) async fn images_asked(
        self: &Arc<Self>,
        request: ImageRequest,
        caller: &Caller,
        replies: &ReplySink,
    ) -> Result<AdminReply, Report> {
        match request {
            ImageRequest::List => Ok(AdminReply::Images(views(&self.state()))),
            ImageRequest::Writers => Ok(AdminReply::Writers(writers(&self.state()))),
            ImageRequest::Import(_) | ImageRequest::Export { .. } | ImageRequest::Fetch(_) if !caller.is_local() => {
                Err(Report::new(ErrorCode::Denied, "this goes over the host's own socket only"))
            }
            ImageRequest::Import(import) => self.import(import, replies).await.map(AdminReply::Steps),
            ImageRequest::Fetch(fetch) => self.fetch(fetch, replies).await.map(AdminReply::Steps),
            ImageRequest::Convert(convert) => self.convert(convert, replies).await.map(AdminReply::Steps),
            ImageRequest::Export { image, to } => self.export(&image, &to).await.map(AdminReply::Steps),
            ImageRequest::Packages(image) => self.packages_of(&image).await.map(AdminReply::ImagePackages),
            ImageRequest::Sync(sync) => self.sync_image(sync, replies).await.map(AdminReply::Outcomes),
            ImageRequest::Verify(image) => self.verify_everywhere(&image).await.map(AdminReply::Outcomes),
            ImageRequest::Pin { image, pinned } => {
                let pin = PinImage { image, pinned };
                self.propose(RequestId::random(), pin.into(), DECIDES).await?;
                Ok(AdminReply::Done)
            }
            ImageRequest::Delete(image) => self.delete_image(&image).await.map(AdminReply::Outcomes),
            ImageRequest::Gc => {
                let hosts: Vec<HostId> = self.state().hosts.keys().copied().collect();
                Ok(AdminReply::Outcomes(self.ask_each(hosts, |_| PeerRequest::SweepImages, READS).await))
            }
        }
    }

    /// The pool in which this host has a whole copy of an image, and its content root.
    fn copy_here(&self, name: &Name) -> Result<(Store, Digest), Report> {
        let state = self.state();
        let image = state.images.get(name).ok_or_else(|| unknown(&state, name))?;
        let (root, store) = (image.content.root, self.images().pools().store(&state, &image.pool));
        let store = store.filter(|store| store.has(name, root));
        store.map(|store| (store, root)).ok_or_else(|| not_here(self, &state, image))
    }

    async fn packages_of(&self, name: &Name) -> Result<Vec<ImagePackage>, Report> {
        let (store, _) = self.copy_here(name)?;
        let image = name.clone();
        let record = blocking(move || store.record(&image)).await;
        record.map(|record| record.packages).map_err(|error| {
            Report::new(ErrorCode::ImageDamaged, format!("the record of image {name} cannot be used: {error}"))
                .help(format!("vtctl image verify {name}"))
        })
    }

    async fn export(&self, name: &Name, to: &Path) -> Result<Vec<String>, Report> {
        let (store, root) = self.copy_here(name)?;
        let (name, to) = (name.clone(), to.to_owned());
        blocking(move || import::export(&store, &name, root, &to)).await
    }

    /// Has hosts take an image, all at the same time, and tells how far they are.
    async fn sync_image(&self, sync: SyncImage, replies: &ReplySink) -> Result<Vec<HostOutcome>, Report> {
        let state = self.state();
        let root = state.images.get(&sync.image).ok_or_else(|| unknown(&state, &sync.image))?.content.root;
        let mut hosts = Vec::new();
        for name in &sync.hosts {
            hosts.push(state.host_named(name.as_str()).ok_or_else(|| unknown_host(&state, name))?.id);
        }
        if hosts.is_empty() {
            hosts.extend(state.hosts.values().filter(|host| host.role != Role::Witness).map(|host| host.id));
        }
        let mut outcomes = join_all(hosts.into_iter().map(|host| self.sync_to(host, &sync, root, replies))).await;
        outcomes.sort_by(|a, b| natural(a.host.as_str(), b.host.as_str()));
        Ok(outcomes)
    }

    async fn sync_to(&self, host: HostId, sync: &SyncImage, root: Digest, replies: &ReplySink) -> HostOutcome {
        let name = self.name_of(host);
        let mut silent = 0;
        loop {
            let wait_ms = TELLS.as_millis() as u32;
            let pull = PeerRequest::PullImage { image: sync.image.clone(), root, rate: sync.rate, wait_ms };
            let now = match self.ask(host, pull, DECIDES).await {
                Ok(PeerReply::Pulling(now)) => now,
                Ok(_) => return trouble(name, Report::new(ErrorCode::WireVersion, "it gave another kind of answer")),
                Err(AskError::Refused(report)) => return trouble(name, *report),
                // It may be on its way back; what it has stays with it.
                Err(error) => {
                    silent += 1;
                    if silent > TRIES {
                        return trouble(name, error.into());
                    }
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            silent = 0;
            match now.ended {
                None => {
                    let progress = ImageProgress {
                        host: name.clone(),
                        image: sync.image.clone(),
                        done: now.done,
                        total: now.total,
                        moved: now.moved,
                    };
                    self.tell(replies, progress).await;
                }
                Some(Ok(())) => {
                    let told = if now.moved == 0 && now.done == now.total {
                        "it is there".to_owned()
                    } else {
                        let told = format!("{} of {} bytes came over the network", now.moved, now.total);
                        match now.shared {
                            0 => told,
                            shared => format!("{told}, {shared} of them from hosts that were taking it too"),
                        }
                    };
                    return HostOutcome { host: name, told: vec![told], trouble: None };
                }
                Some(Err(report)) => return trouble(name, report),
            }
        }
    }

    async fn verify_everywhere(&self, name: &Name) -> Result<Vec<HostOutcome>, Report> {
        let state = self.state();
        let image = state.images.get(name).ok_or_else(|| unknown(&state, name))?;
        // One that is on its way is compared as it comes.
        let settled = image.placements.iter().filter(|(_, copy)| copy.state != PlacementState::Copying);
        let hosts = settled.map(|(host, _)| *host).collect();
        Ok(self.ask_each(hosts, |_| PeerRequest::VerifyImage(name.clone()), READS).await)
    }

    /// Off the record first, so that nothing is built upon it any more, then off the disks.
    async fn delete_image(&self, name: &Name) -> Result<Vec<HostOutcome>, Report> {
        let state = self.state();
        let image = state.images.get(name).ok_or_else(|| unknown(&state, name))?;
        let mut hosts: Vec<HostId> = image.placements.keys().copied().collect();
        if hosts.is_empty() {
            // Every host that had it has left the cluster.
            hosts.push(self.me());
        }
        for host in &hosts {
            let drop = DropPlacement { image: name.clone(), host: *host };
            self.propose(RequestId::random(), drop.into(), DECIDES).await?;
        }
        let mut outcomes = self.ask_each(hosts, |_| PeerRequest::DropImage(name.clone()), DECIDES * 2).await;
        for outcome in &mut outcomes {
            outcome.trouble = outcome.trouble.take().map(|report| report.help("vtctl image gc   (once it answers)"));
        }
        Ok(outcomes)
    }

    /// Asks hosts the same at the same time.
    pub(super) async fn ask_each(
        &self,
        hosts: Vec<HostId>,
        request: impl Fn(HostId) -> PeerRequest,
        patience: Duration,
    ) -> Vec<HostOutcome> {
        let mut outcomes = join_all(hosts.into_iter().map(|host| {
            let request = request(host);
            async move {
                let name = self.name_of(host);
                match self.ask(host, request, patience).await {
                    Ok(PeerReply::Told(told)) => HostOutcome { host: name, told, trouble: None },
                    Ok(_) => trouble(name, Report::new(ErrorCode::WireVersion, "it gave another kind of answer")),
                    Err(error) => trouble(name, error.into()),
                }
            }
        }))
        .await;
        outcomes.sort_by(|a, b| natural(a.host.as_str(), b.host.as_str()));
        outcomes
    }

    pub(super) fn name_of(&self, host: HostId) -> Name {
        let state = self.state();
        state.hosts.get(&host).map_or_else(|| self.record().name.clone(), |host| host.name.clone())
    }

    pub(super) async fn tell(&self, replies: &ReplySink, progress: ImageProgress) {
        // Who went away needs no progress; what was asked for goes on.
        let _ = replies.send(AdminReply::ImageProgress(progress)).await;
    }
}

/// This host has no whole copy of an image.
pub(super) fn not_here(me: &Host, state: &State, image: &Image) -> Report {
    let (name, me) = (&image.name, &me.record().name);
    let hosts: Vec<String> = image.sources().map(|host| state.host_name(host)).collect();
    Report::new(ErrorCode::ImageMissing, format!("image {name} is not on {me}"))
        .with("it is on", hosts.join(", "))
        .help(format!("vtctl image sync {name} -m {me}"))
}

fn trouble(host: Name, report: Report) -> HostOutcome {
    HostOutcome { host, told: Vec::new(), trouble: Some(report) }
}

fn views(state: &State) -> Vec<ImageView> {
    let mut views: Vec<ImageView> = state.images.values().map(|image| view(state, image)).collect();
    views.sort_by(|a, b| natural(a.name.as_str(), b.name.as_str()));
    views
}

fn view(state: &State, image: &Image) -> ImageView {
    let placement = |(host, copy): (&HostId, &vt_sync::state::Placement)| {
        let host = state.hosts.get(host)?.name.clone();
        Some(PlacementView { host, state: copy.state, shared: copy.shared })
    };
    let mut placements: Vec<PlacementView> = image.placements.iter().filter_map(placement).collect();
    placements.sort_by(|a, b| natural(a.host.as_str(), b.host.as_str()));
    ImageView {
        name: image.name.clone(),
        pool: image.pool.clone(),
        format: image.content.format,
        virtual_bytes: image.content.virtual_bytes,
        bytes: image.content.bytes,
        root: image.content.root,
        backing: state.backing_of(&image.name),
        pinned: image.pinned,
        placements,
        jobs: image.jobs.clone(),
        vms: state.vms.values().filter(|vm| vm.lies_on(&image.name)).map(|vm| vm.id.to_string()).collect(),
    }
}

fn writers(state: &State) -> Vec<WriterView> {
    let name = |host: HostId| state.hosts.get(&host).map(|host| host.name.clone());
    let writer = |vm: &Arc<vt_sync::state::VmRecord>| {
        let moving = vm.migration.as_ref().filter(|migration: &&Migration| migration.is_under_way());
        Some(WriterView {
            vm: vm.id.to_string(),
            image: vm.image.clone(),
            host: name(vm.owner)?,
            epoch: vm.writer_epoch.0,
            state: match vm.state {
                VmState::Owned => "writes".to_owned(),
                VmState::Lost => "lost its session: its guard has stopped it".to_owned(),
            },
            moving_to: moving.and_then(|migration| name(migration.to)),
        })
    };
    state.vms.values().filter_map(writer).collect()
}
