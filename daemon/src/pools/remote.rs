//! A pool at a server, of whatever kind: its disks made, removed and listed, and the whole of it tried.

use std::{fmt, time::Duration};

use vt_protocol::{
    error::Report,
    ids::Epoch,
    pool::{GlusterPlace, NfsPlace, Place, PlaceError},
};
use vt_sync::state::Pool;

use super::{
    gluster::{self, errand},
    gluster_trial, in_time,
    nfs::{NfsError, ROOT, Share},
    trial, user_of,
};

/// How long a server may take to make or remove a disk.
const SERVES: Duration = Duration::from_secs(60);
/// Room for what qcow2 writes beside the guest's data, at the least, bytes.
const TABLES: u64 = 16 << 20;

/// Length of qcow2's clusters, bytes.
const CLUSTER: usize = 64 << 10;

/// A pool at a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Remote {
    /// An export of an NFS server.
    Nfs(NfsPlace),
    /// A volume of Gluster.
    Gluster(GlusterPlace),
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nfs(place) => place.fmt(f),
            Self::Gluster(place) => place.fmt(f),
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
        })
    }

    /// A file of it, as a driver of QEMU takes it.
    pub(crate) fn uri(&self, file: &str) -> String {
        format!("{self}/{file}")
    }

    /// Whether nothing is to be written there.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Self::Nfs(place) if place.read_only)
    }

    /// Makes a disk for the owner of that epoch, from the bytes of a new overlay whose guest sees `guest` bytes. One left
    /// from before is replaced.
    pub(crate) async fn create(&self, file: &str, epoch: Epoch, overlay: &[u8], guest: u64) -> Result<(), Report> {
        let place = match self {
            Self::Nfs(place) => place,
            Self::Gluster(place) => {
                // QEMU's driver takes a read that ends with the file for a failed one.
                let mut whole = overlay.to_vec();
                whole.resize(overlay.len().next_multiple_of(CLUSTER), 0);
                return errand(place, gluster::PUT, &[file], &whole).await.map(drop);
            }
        };
        // Our export has no file that grows.
        let length = guest.saturating_add(guest / 1024).saturating_add(TABLES);
        on_server(place, async |share| {
            share.remove(file).await?;
            let disk = share.create(file, user_of(epoch)).await?;
            let made = async {
                share.set_length(&disk, length).await?;
                share.write(&disk, 0, overlay, true).await
            };
            let Err(error) = made.await else { return Ok(()) };
            let _ = share.remove(file).await;
            Err(error)
        })
        .await
    }

    /// Removes disks, those that are there.
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
        }
    }

    /// Writes a file that other hosts are to read; `None` where nothing is to be written. Removed by [`Self::forget`].
    pub(crate) async fn leave(&self) -> Result<Option<(String, String)>, Report> {
        match self {
            Self::Nfs(place) if place.read_only => Ok(None),
            Self::Nfs(place) => trial::leave(place).await.map(Some),
            Self::Gluster(place) => gluster_trial::leave(place).await.map(Some),
        }
    }

    /// Removes what [`Self::leave`] wrote.
    pub(crate) async fn forget(&self, name: &str) {
        match self {
            Self::Nfs(place) => trial::forget(place, name).await,
            Self::Gluster(place) => gluster_trial::forget(place, name).await,
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
