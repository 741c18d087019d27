//! The disk of a VM: an overlay on its image, in the host's folder of disks or in a pool that a case names (`disk_pool`).
//!
//! At an NFS server it is written through an export of ours, under the epoch of the VM's owner (see [`crate::pools`]); in a
//! volume of Gluster, in a LUN of iSCSI and in a Ceph by QEMU's own driver. The image below it is this host's own copy, which is named to
//! QEMU and never followed from what stands in the disk.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Epoch, Name, VmId},
    party::StartVm,
    pool::IscsiPlace,
    vm::{Backend, Drive},
};

use super::{attempt::LocalAttempt, image::Image, local_vm::LocalVm};
use crate::{
    pools::{
        export::{self, DISK_SOCKET, Served, Word},
        rbd,
        remote::{Overlay, Remote},
    },
    qemu::{Disk, command_line::Below},
};

/// The parameter that names the pool.
pub(crate) const POOL: &str = "disk_pool";
/// A new overlay has a few clusters only.
const OVERLAY_MAX: u64 = 64 << 20;

/// Where the disk of a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DiskPlace {
    /// A file of this host, which other hosts may see too.
    File(PathBuf),
    /// A file of a pool at a server.
    Pool {
        /// The pool.
        pool: Remote,
        /// Its name there.
        file: String,
    },
}

impl fmt::Display for DiskPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Pool { pool, .. } if pool.is_one_disk() => pool.fmt(f),
            Self::Pool { pool, file } => write!(f, "{file} in {pool}"),
        }
    }
}

impl DiskPlace {
    /// Whether a VM can have its disk there.
    pub(super) fn suits(&self, call: &StartVm) -> Result<(), Report> {
        let title = match self {
            Self::File(_) if call.backend == Backend::Libvirt && devices(&call.drives).next().is_some() => {
                "a VM that has the disk of a pool is started by the daemon, not by libvirt"
            }
            Self::File(_) => return Ok(()),
            Self::Pool { .. } if !call.drives.is_empty() => {
                "a VM whose disk lies in a pool has no other disks and no CDs"
            }
            Self::Pool { .. } if call.backend == Backend::Libvirt => {
                "a VM whose disk lies in a pool is started by the daemon, not by libvirt"
            }
            Self::Pool { .. } => return Ok(()),
        };
        Err(Report::new(ErrorCode::CannotRunHere, title).with("disk", self.to_string()))
    }

    /// As QEMU is given it. `epoch`: it is taken over under it at once.
    pub(crate) fn for_qemu(&self, image: &Image, run_dir: &Path, epoch: Option<Epoch>) -> Disk {
        let format = "qcow2".to_owned();
        let (pool, file) = match self {
            Self::File(path) => return Disk { path: path.display().to_string(), format, below: None, served: None },
            Self::Pool { pool, file } => (pool, file),
        };
        let below =
            Some(Below { path: image.disk().display().to_string(), format: image.record.format.name().to_owned() });
        match pool {
            Remote::Nfs(place) => Disk {
                path: format!("nbd+unix:///?socket={}", run_dir.join(DISK_SOCKET).display()),
                format,
                below,
                served: Some(Served { place: place.clone(), file: file.clone(), epoch }),
            },
            Remote::Gluster(_) | Remote::Iscsi(_) | Remote::Rbd(_) => {
                Disk { path: pool.uri(file), format, below, served: None }
            }
        }
    }

    /// Whether it is written through an export of ours, under the owner's epoch.
    fn is_exported(&self) -> bool {
        matches!(self, Self::Pool { pool: Remote::Nfs(_), .. })
    }

    /// Makes it, on top of an image, for the owner of that epoch. One left from before is replaced: the claim says that
    /// it is nobody's. `scratch` is a folder of this host.
    async fn make(&self, image: &Image, epoch: Epoch, scratch: &Path) -> Result<(), Report> {
        let (pool, file) = match self {
            Self::File(path) => return image.overlay(path).await,
            Self::Pool { pool, file } => (pool, file),
        };
        let local = scratch.join(format!(".new-{file}"));
        image.overlay(&local).await?;
        let made = match read_overlay(&local).await {
            Ok(overlay) => pool.create(file, epoch, &overlay).await,
            Err(error) => {
                Err(Report::new(ErrorCode::StorageFailed, "the overlay disk could not be made").caused_by(&error))
            }
        };
        let _ = tokio::fs::remove_file(&local).await;
        made
    }
}

fn no_pool(name: &Name) -> Report {
    Report::new(ErrorCode::UnknownPool, format!("there is no pool {name}")).help("vtctl storage list")
}

/// The name that the disk of a VM has in a pool.
fn disk_file(vm: &VmId) -> String {
    format!("{vm}.qcow2")
}

/// Pools of one disk whose disks these drives are.
fn devices(drives: &[Drive]) -> impl Iterator<Item = &Name> {
    drives.iter().filter_map(|drive| drive.content.device())
}

/// Reads a new overlay.
async fn read_overlay(path: &Path) -> io::Result<Overlay<'_>> {
    if tokio::fs::metadata(path).await?.len() > OVERLAY_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a new overlay is too long"));
    }
    let bytes = tokio::fs::read(path).await?;
    // qcow2 has the size at byte 24.
    let size = bytes.get(24..32).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let size = size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a new overlay is too short"))?;
    Ok(Overlay { path, bytes, guest: size })
}

impl LocalAttempt {
    /// The pool that disks of this case lie in; `None`: this host's folder of disks.
    ///
    /// # Errors
    /// The case names one that cannot have them.
    fn disk_pool(&self) -> Result<Option<Remote>, Report> {
        let Some(name) = self.disk_pool_name() else { return Ok(None) };
        let Some(pool) = self.cluster.state().pools.get(&name).cloned() else {
            return Err(no_pool(&name).with("parameter", POOL));
        };
        let cannot = |why: &str| {
            let title = format!("pool {name} cannot have the disks of VMs: {why}");
            Report::new(ErrorCode::CannotRunHere, title).with("parameter", POOL)
        };
        match Remote::of(&pool) {
            Ok(Some(pool)) if pool.is_read_only() => Err(cannot("it is read-only")),
            Ok(Some(pool)) => Ok(Some(pool)),
            Ok(None) => Err(cannot("it is a directory, and disks lie in paths.disks of vtd.toml")),
            Err(error) => Err(cannot(&error.to_string())),
        }
    }

    /// Its name. That it is one was looked at when the parameters were read.
    fn disk_pool_name(&self) -> Option<Name> {
        self.record().case.params.text(POOL).map(str::trim)?.parse().ok()
    }

    /// Pools that a VM has to have alone: those of one disk.
    pub(super) fn wanted_alone(&self, drives: &[Drive]) -> Result<Vec<Name>, Report> {
        let mut alone: Vec<Name> = devices(drives).cloned().collect();
        if self.disk_pool()?.is_some_and(|pool| pool.is_one_disk()) {
            alone.extend(self.disk_pool_name());
        }
        Ok(alone)
    }

    /// The LUN that is a pool of this name.
    ///
    /// # Errors
    /// There is no such pool, or it is of another kind.
    pub(super) fn lun(&self, pool: &Name) -> Result<IscsiPlace, Report> {
        let state = self.cluster.state();
        match Remote::of(state.pools.get(pool).ok_or_else(|| no_pool(pool))?) {
            Ok(Some(Remote::Iscsi(place))) => Ok(place),
            _ => {
                let title = format!("pool {pool} is no device: those of kind iscsi are");
                Err(Report::new(ErrorCode::CannotRunHere, title).with("parameter", "image_raw_device"))
            }
        }
    }

    /// Whether both sides of a move see the same disk. Where they do not, it moves with its VM.
    pub(crate) fn disks_are_seen(&self) -> bool {
        self.places.shared || matches!(self.disk_pool(), Ok(Some(_)))
    }

    /// Where the disk of a VM of this attempt is.
    ///
    /// # Errors
    /// The case names a pool that cannot have it.
    pub(crate) fn disk_place(&self, vm: &VmId) -> Result<DiskPlace, Report> {
        Ok(match self.disk_pool()? {
            Some(pool) => DiskPlace::Pool { pool, file: disk_file(vm) },
            None => DiskPlace::File(self.places.disk(vm)),
        })
    }

    /// Where the disk of a VM is that runs already.
    pub(crate) fn disk_found(&self, vm: &VmId) -> DiskPlace {
        self.disk_place(vm).unwrap_or_else(|_| DiskPlace::File(self.places.disk(vm)))
    }

    /// Makes the disk of a VM that this host owns.
    pub(crate) async fn make_disk(&self, place: &DiskPlace, image: &Image, epoch: Epoch) -> Result<(), Report> {
        place.make(image, epoch, &self.places.data).await
    }

    /// Removes the disk of a VM where it lies in a pool.
    pub(super) async fn remove_from_pool(&self, vm: &VmId) {
        let Ok(Some(pool)) = self.disk_pool() else { return };
        let file = disk_file(vm);
        if let Err(report) = pool.remove(std::slice::from_ref(&file)).await {
            self.evidence.events.warn(format!("disk {file} in {pool} is left behind: {report}"));
        }
    }

    /// Takes the disk of a VM that has moved here over, whose server refuses the source's writes from now on.
    /// Called after the decision was read from committed state, and before the guest runs.
    pub(crate) async fn take_disk(&self, vm: &LocalVm) -> Result<(), Report> {
        let DiskPlace::Pool { pool: pool @ (Remote::Nfs(_) | Remote::Rbd(_)), file } = &vm.disk else { return Ok(()) };
        // The decision may have been told before it was applied here, and the epoch is in it.
        let me = self.me();
        let owned = |state: &vt_sync::State| state.vms.get(&vm.id).filter(|vm| vm.owner == me).map(|vm| vm.epoch);
        let epoch = self.wait_state(owned).await.map_err(|failure| {
            Report::new(ErrorCode::CaseClosed, "the attempt ended before the disk was taken over")
                .with("because", format!("{failure:?}"))
        })?;
        vm.set_epoch(epoch);
        match pool {
            Remote::Rbd(place) => rbd::take(place, file).await?,
            _ => export::take(vm.qemu.run_dir(), epoch).await.map_err(|error| error.report())?,
        }
        self.evidence.events.say(format!("{}: the disk is taken over under epoch {epoch}", vm.id));
        Ok(())
    }

    /// Hears what the export of a VM's disk says. A disk that failed under its VM ends it: what the guest does after that
    /// says nothing of the product.
    pub(crate) fn watch_disk(self: &Arc<Self>, vm: &Arc<LocalVm>) {
        if !vm.disk.is_exported() {
            return;
        }
        let (attempt, vm) = (self.clone(), vm.clone());
        tokio::spawn(async move {
            let events = &attempt.evidence.events;
            let tell = |word| match word {
                Word::Taken(_) | Word::NotTaken(_) => {}
                Word::Waits => events.warn(format!("{}: the server of its disk does not answer", vm.id)),
                Word::Answers { ms } => events.warn(format!("{}: the server answers again, after {ms} ms", vm.id)),
                Word::Trouble { full, why } => {
                    events.warn(format!("{}: its disk failed and it is ended: {why}", vm.id));
                    let code = if full { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
                    vm.set_disk_failed(code, why);
                    if let Err(error) = vm.qemu.process().kill() {
                        events.warn(format!("{}: it cannot be ended: {error}", vm.id));
                    }
                }
            };
            tokio::select! {
                () = export::listen(vm.qemu.run_dir().to_owned(), tell) => {}
                () = attempt.closing.cancelled() => {}
            }
        });
    }

    /// Disks in a pool that this host answers for at the end of the attempt: of VMs it owns, and of those nobody owns any
    /// more. What is removed, or why not.
    pub(crate) async fn give_back_pool(&self) -> Vec<String> {
        // One that cannot have disks has none.
        let Ok(Some(pool)) = self.disk_pool() else { return Vec::new() };
        let (state, prefix) = (self.cluster.state(), format!("{}.", self.id));
        let mine = |file: &str| {
            let name = file.strip_prefix(&prefix)?.strip_suffix(".qcow2")?.parse::<Name>().ok()?;
            let others = state.vms.get(&self.vm_id(&name)).is_some_and(|record| record.owner != self.me());
            (!others).then_some(())
        };
        let removed = async {
            let mut files = pool.names().await?;
            files.retain(|file| mine(file).is_some());
            pool.remove(&files).await
        };
        match removed.await {
            Ok(()) => Vec::new(),
            Err(report) => vec![format!("disks {prefix}* in {pool}: {}", report.title)],
        }
    }
}
