//! A pool at a real server on the network of a ground: where the disks of its guests lie, if not on the hosts.

use std::{fs, path::PathBuf};

use crate::{gluster_server::GlusterServer, lab::Lab, nfs_server::NfsServer};

/// Its name in the lab.
pub const POOL: &str = "filer";

/// The server.
#[derive(Debug)]
pub enum Pool {
    /// Disks are written through our export, and the server refuses an epoch that is over.
    Nfs(NfsServer),
    /// Disks are written by QEMU's own driver, and the guard has to end a VM in time.
    Gluster(GlusterServer),
}

impl Pool {
    /// Kinds of pools, as they are named.
    pub const KINDS: [&str; 2] = ["nfs", "gluster"];

    /// Starts a server and makes it known to the lab; `None`: there is no such kind.
    ///
    /// # Panics
    /// It cannot be started or is not taken.
    pub fn on(lab: &Lab, kind: &str) -> Option<Self> {
        let pool = match kind {
            "nfs" => Self::Nfs(NfsServer::on(lab)),
            "gluster" => Self::Gluster(GlusterServer::on(lab)),
            _ => return None,
        };
        let place = match &pool {
            Self::Nfs(server) => ["--server", server.address(), "--export", "/disks"],
            Self::Gluster(server) => ["--server", server.address(), "--volume", "disks"],
        };
        lab.vtctl(&[&["storage", "add", POOL, "--kind", kind][..], &place].concat()).expect(0);
        Some(pool)
    }

    /// What lies in it, seen from outside.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Nfs(server) => {
                let entries = fs::read_dir(server.folder("disks")).into_iter().flatten().flatten();
                entries.map(|entry| entry.path()).collect()
            }
            Self::Gluster(server) => server.files(),
        }
    }
}
