//! Where the QEMUs of a libvirt find their certificates: one folder, that its `qemu.conf` names, for all of them.
//!
//! Ours are made for one migration. So one VM comes in with TLS at a time, and one leaves: whoever has the folder for a side
//! keeps it until the move is over. A destination is ready before its source takes its own side, so nobody waits in a ring.

use std::{io, path::PathBuf, sync::Arc};

use tokio::sync::{Mutex, OwnedMutexGuard};

/// The folder.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
    server: Arc<Mutex<()>>,
    client: Arc<Mutex<()>>,
}

/// One side of the folder is the holder's.
#[derive(Debug)]
pub struct Held {
    _side: OwnedMutexGuard<()>,
}

impl Certificates {
    /// In this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, server: Arc::default(), client: Arc::default() }
    }

    /// Takes the side of TLS's server, or of its client, and writes its files: name and text of each. Keys are the owner's
    /// to read.
    ///
    /// # Errors
    /// They cannot be written.
    pub async fn take(&self, server: bool, files: &[(String, &str)]) -> io::Result<Held> {
        let side = if server { &self.server } else { &self.client };
        let held = Held { _side: Arc::clone(side).lock_owned().await };
        for (name, text) in files {
            crate::qemu::record::write_private(&self.folder.join(name), text.as_bytes())?;
        }
        Ok(held)
    }
}
