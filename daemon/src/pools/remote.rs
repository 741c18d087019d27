//! A pool at a server, of whatever kind: its disks made, removed and listed, and the whole of it tried.

use std::{fmt, path::Path, time::Duration};

use vt_protocol::{
    error::Report,
    ids::Epoch,
    pool::{GlusterPlace, IscsiPlace, NfsPlace, Place, PlaceError, RbdPlace},
};
use vt_sync::state::Pool;

use super::{
    gluster::{self, errand},
    gluster_trial, in_time, iscsi,
    nfs::{NfsError, ROOT, Share},
    rbd, trial, user_of,
};

/// How long a server may take to make or remove a disk.
const SERVES: Duration = Duration::from_secs(60);
/// Room for what qcow2 writes beside the guest's data, at the least, bytes.
const TABLES: u64 = 16 << 20;

/// Length of qcow2's clusters, bytes.
const CLUSTER: usize = 64 << 10;

/// A new overlay that a disk is made of.
pub(crate) struct Overlay<'a> {
    /// Where it lies on this host.
    pub(crate) path: &'a Path,
    /// The whole of it.
    pub(crate) bytes: Vec<u8>,
    /// What its guest sees, bytes.
    pub(crate) guest: u64,
}

impl Overlay<'_> {
    /// What it may grow to, where it has no file that grows.
    fn most(&self) -> u64 {
        self.guest.saturating_add(self.guest / 1024).saturating_add(TABLES)
    }
}

/// A pool at a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Remote {
    /// An export of an NFS server.
    Nfs(NfsPlace),
    /// A volume of Gluster.
    Gluster(GlusterPlace),
    /// A LUN of an iSCSI server.
    Iscsi(IscsiPlace),
    /// A pool of a Ceph.
    Rbd(RbdPlace),
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nfs(place) => place.fmt(f),
            Self::Gluster(place) => place.fmt(f),
            Self::Iscsi(place) => place.fmt(f),
            Self::Rbd(place) => place.fmt(f),
        }
    }
}

impl Remote {
    /// Reads what is on record; `None`: it is a directory.
    ///
    /// # Errors
    /// It is no place of a pool.
    pub(crate) fn of(pool: &Pool) -> Result<Option<Self>, PlaceError> {
        Ok(match Place::parse(pool.kind, &pool.path)? {
            Place::Dir(_) => None,
            Place::Nfs(place) => Some(Self::Nfs(place)),
            Place::Gluster(place) => Some(Self::Gluster(place)),
            Place::Iscsi(place) => Some(Self::Iscsi(place)),
            Place::Rbd(place) => Some(Self::Rbd(place)),
        })
    }

    /// A file of it, as a driver of QEMU takes it.
    pub(crate) fn uri(&self, file: &str) -> String {
        match self {
            Self::Iscsi(place) => place.to_string(),
            Self::Rbd(place) => rbd::uri(place, file),
            Self::Nfs(_) | Self::Gluster(_) => format!("{self}/{file}"),
        }
    }

    /// Whether there is one disk in it, which one VM may have at a time, and no files.
    pub(crate) fn is_one_disk(&self) -> bool {
        matches!(self, Self::Iscsi(_))
    }

    /// Whether nothing is to be written there.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Self::Nfs(place) if place.read_only)
    }

    /// Makes a disk for the owner of that epoch, from a new overlay. One left from before is replaced.
    pub(crate) async fn create(&self, file: &str, epoch: Epoch, overlay: &Overlay<'_>) -> Result<(), Report> {
        let place = match self {
            Self::Nfs(place) => place,
            Self::Gluster(place) => {
                // QEMU's driver takes a read that ends with the file for a failed one.
                let mut whole = overlay.bytes.clone();
                whole.resize(overlay.bytes.len().next_multiple_of(CLUSTER), 0);
                return errand(place, gluster::PUT, &[file], &whole).await.map(drop);
            }
            Self::Iscsi(place) => return iscsi::put(place, overlay.path, overlay.most()).await,
            Self::Rbd(place) => return rbd::put(place, file, overlay.path, overlay.most()).await,
        };
        // Our export has no file that grows.
        let length = overlay.most();
        on_server(place, async |share| {
            share.remove(file).await?;
            let disk = share.create(file, user_of(epoch)).await?;
            let made = async {
                share.set_length(&disk, length).await?;
                share.write(&disk, 0, &overlay.bytes, true).await
            };
            let Err(error) = made.await else { return Ok(()) };
            let _ = share.remove(file).await;
            Err(error)
        })
        .await
    }

    /// Removes disks, those that are there. What lies in a LUN is overwritten by who has it next: it may be another's already.
    pub(crate) async fn remove(&self, files: &[String]) -> Result<(), Report> {
        match self {
            Self::Nfs(place) => {
                on_server(place, async |share| {
                    for file in files {
                        share.remove(file).await?;
                    }
                    Ok(())
                })
                .await
            }
            Self::Gluster(place) => {
                for file in files {
                    errand(place, gluster::REMOVE, &[file], &[]).await?;
                }
                Ok(())
            }
            Self::Iscsi(_) => Ok(()),
            Self::Rbd(place) => {
                for file in files {
                    rbd::remove(place, file).await?;
                }
                Ok(())
            }
        }
    }

    /// All names.
    pub(crate) async fn names(&self) -> Result<Vec<String>, Report> {
        match self {
            Self::Nfs(place) => on_server(place, async |share| share.names().await).await,
            Self::Gluster(place) => {
                let listed = errand(place, gluster::LIST, &[], &[]).await?;
                Ok(listed.lines().map(str::to_owned).collect())
            }
            Self::Iscsi(_) => Ok(Vec::new()),
            Self::Rbd(place) => rbd::names(place).await,
        }
    }

    /// Writes a file that other hosts are to read; `None` where nothing is to be written. Removed by [`Self::forget`].
    pub(crate) async fn leave(&self) -> Result<Option<(String, String)>, Report> {
        match self {
            Self::Nfs(place) if place.read_only => Ok(None),
            Self::Nfs(place) => trial::leave(place).await.map(Some),
            Self::Gluster(place) => gluster_trial::leave(place).await.map(Some),
            Self::Iscsi(_) => Ok(None),
            Self::Rbd(place) => rbd::leave(place).await.map(Some),
        }
    }

    /// Removes what [`Self::leave`] wrote.
    pub(crate) async fn forget(&self, name: &str) {
        match self {
            Self::Nfs(place) => trial::forget(place, name).await,
            Self::Gluster(place) => gluster_trial::forget(place, name).await,
            Self::Iscsi(_) => {}
            Self::Rbd(place) => rbd::forget(place, name).await,
        }
    }

    /// Tries it from this host.
    ///
    /// # Errors
    /// Something does not work that disks need.
    pub(crate) async fn run_trial(&self, written: Option<&(String, String)>) -> Result<Vec<String>, Report> {
        match self {
            Self::Nfs(place) => trial::run(place, written).await,
            Self::Gluster(place) => gluster_trial::run(place, written).await,
            Self::Iscsi(place) => iscsi::run_trial(place).await,
            Self::Rbd(place) => rbd::run_trial(place, written).await,
        }
    }
}

/// Does something at an NFS server, as its root.
async fn on_server<T>(
    place: &NfsPlace,
    what: impl AsyncFnOnce(&mut Share) -> Result<T, NfsError>,
) -> Result<T, Report> {
    let work = async {
        let mut share = Share::open(place, ROOT).await?;
        what(&mut share).await
    };
    in_time((place.server.as_str(), place), SERVES, async { work.await.map_err(|error| error.report(place)) }).await
}
