//! Pools that are no directory: how disks of VMs lie there, and what keeps a host that may no longer write from writing.
//!
//! | file | noun |
//! |---|---|
//! | `nfs` | an export of an NFS server, spoken to from user space |
//! | `export` | a process that gives one disk of such a pool to one QEMU, as a block device |
//! | `trial` | whether such a server can do what disks need of it |
//! | `gluster`, `gluster_trial` | a volume of Gluster, and the same for it |
//! | `iscsi` | a LUN of an iSCSI server |
//! | `rbd` | a pool of a Ceph |
//! | `opened` | a disk that QEMU's driver has open, for trials |
//! | `remote` | any of them |
//!
//! **The fence** of NFS (that of Ceph is in `rbd`; the others have none, see `gluster` and `iscsi`). The disk of a VM belongs, at the server, to a user
//! number that is made from the writer's epoch, and the export writes under that number. A host that becomes the owner gives
//! the file to its own number before the guest runs. From then on the *server* refuses whatever the host before it sends, also
//! what was on its way, also from a machine that was frozen as a whole and knows of nothing. So no clock and no daemon has to
//! be trusted for it.
//!
//! What may not happen here: a write under a number that was not taken over, or a take-over before the log says whose
//! the VM is.

pub mod export;
mod gluster;
mod gluster_trial;
pub(crate) mod iscsi;
mod nfs;
mod opened;
pub(crate) mod rbd;
pub(crate) mod remote;
mod trial;

use std::{fmt::Display, time::Duration};

use tokio::time::timeout;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Epoch,
};

/// User numbers of writers: above those of people and systems, below what tools take for -1.
const USERS: u64 = 1 << 29;

/// The user number that a writer's epoch has at the servers of pools. Epochs only grow, so that none is used again
/// before half a billion entries of the log.
pub(crate) fn user_of(epoch: Epoch) -> u32 {
    (USERS + epoch.0 % USERS) as u32
}

/// Does something at a server, which may take `limit`.
///
/// # Errors
/// It went wrong, or the server has not answered by then.
async fn in_time<T>(
    (server, pool): (&str, &impl Display),
    limit: Duration,
    what: impl Future<Output = Result<T, Report>>,
) -> Result<T, Report> {
    timeout(limit, what).await.unwrap_or_else(|_| {
        let title = format!("the server {server} does not answer within {} s", limit.as_secs());
        Err(Report::new(ErrorCode::StorageFailed, title).with("pool", pool.to_string()).retryable())
    })
}

/// What QEMU's driver of a pool has said.
fn no_driver(place: &impl Display, title: &str, said: &str) -> Report {
    let report = Report::new(ErrorCode::StorageFailed, title).with("pool", place.to_string()).with("said", said);
    match said.contains("Unknown protocol") || said.contains("Unknown driver") {
        true => report.help("apt-get install qemu-block-extra   (more drivers of QEMU)"),
        false => report,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_that_follow_each_other_have_numbers_of_their_own() {
        assert_ne!(user_of(Epoch(1)), user_of(Epoch(2)));
        assert!(user_of(Epoch(0)) > 65_535 && user_of(Epoch(u64::MAX)) < u32::MAX / 2);
    }
}
