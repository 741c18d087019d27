//! A pool at a real server on the network of a ground: where the disks of its guests lie, if not on the hosts.

use std::{fs, path::PathBuf};

use crate::{
    ceph_server::{CEPH_POOL, CephServer},
    gluster_server::GlusterServer,
    iscsi_server::{IQN, IscsiServer},
    lab::Lab,
    nfs_server::NfsServer,
};

/// Its name in the lab.
pub const POOL: &str = "filer";
/// Length of the LUN: a disk of the built-in image fits in.
const LUN_MIB: u64 = 768;

/// The server.
#[derive(Debug)]
pub enum Pool {
    /// Disks are written through our export, and the server refuses an epoch that is over.
    Nfs(NfsServer),
    /// Disks are written by QEMU's own driver, and the guard has to end a VM in time.
    Gluster(GlusterServer),
    /// The same, and there is one disk for all, which one VM after another has.
    Iscsi(IscsiServer),
    /// Disks are written by QEMU's own driver, and Ceph refuses whose lock was broken.
    Rbd(CephServer),
}

impl Pool {
    /// Kinds of pools, as they are named.
    pub const KINDS: [&str; 4] = ["nfs", "gluster", "iscsi", "rbd"];

    /// Starts a server and makes it known to the lab; `None`: there is no such kind.
    ///
    /// # Panics
    /// It cannot be started or is not taken.
    pub fn on(lab: &Lab, kind: &str) -> Option<Self> {
        let pool = match kind {
            "nfs" => Self::Nfs(NfsServer::on(lab)),
            "gluster" => Self::Gluster(GlusterServer::on(lab)),
            "iscsi" => Self::Iscsi(IscsiServer::on(lab, &[LUN_MIB])),
            "rbd" => Self::Rbd(CephServer::on(lab)),
            _ => return None,
        };
        let place: &[&str] = match &pool {
            Self::Nfs(_) => &["--export", "/disks"],
            Self::Gluster(_) => &["--volume", "disks"],
            Self::Iscsi(_) => &["--iqn", IQN, "--lun", "1"],
            Self::Rbd(_) => &["--rbd-pool", CEPH_POOL],
        };
        let words = ["storage", "add", POOL, "--kind", kind, "--server", pool.address()];
        lab.vtctl(&[&words[..], place].concat()).expect(0);
        Some(pool)
    }

    /// Its server's address.
    pub fn address(&self) -> &str {
        match self {
            Self::Nfs(server) => server.address(),
            Self::Gluster(server) => server.address(),
            Self::Iscsi(server) => server.address(),
            Self::Rbd(server) => server.address(),
        }
    }

    /// The folder or the file that its disks are made of, seen from outside; `None`: they are in the server's memory.
    pub fn place(&self) -> Option<PathBuf> {
        match self {
            Self::Nfs(server) => Some(server.folder("disks")),
            Self::Gluster(server) => Some(server.brick()),
            Self::Iscsi(server) => Some(server.file(1)),
            Self::Rbd(_) => None,
        }
    }

    /// What lies in it, seen from outside.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Nfs(server) => {
                let entries = fs::read_dir(server.folder("disks")).into_iter().flatten().flatten();
                entries.map(|entry| entry.path()).collect()
            }
            Self::Gluster(server) => server.files(),
            // A LUN is there before and after.
            Self::Iscsi(_) => Vec::new(),
            Self::Rbd(server) => server.images(),
        }
    }
}
