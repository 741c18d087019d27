//! The source's way out: what its QEMU is told to send to, and what carries it from there.

use std::{io, path::PathBuf, sync::Arc};

use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{HostId, MigrationId},
    vm::Transport,
};

use super::carry::Carrier;
use crate::{
    party::{attempt::LocalAttempt, local_vm::LocalVm},
    qemu::{pipe, qmp::Address},
};

/// The socket that a source QEMU, or its helper, sends to.
pub(super) const SOCKET: &str = "out";

/// A way out, open as long as it is held.
#[derive(Debug)]
pub(super) struct Outlet {
    /// What QEMU is told.
    pub(super) address: Address,
    carrier: Option<Carrier>,
    file: Option<StateFile>,
}

/// A file that a VM is saved into; removed when it is dropped.
#[derive(Debug)]
pub(super) struct StateFile {
    pub(super) path: PathBuf,
}

impl StateFile {
    /// The file of a migration on this host; what an earlier try left is removed.
    pub(super) fn of(attempt: &LocalAttempt, id: &MigrationId) -> io::Result<Self> {
        let folder = attempt.places.states();
        std::fs::create_dir_all(&folder)?;
        let file = Self { path: folder.join(format!("{id}.{}", attempt.me())) };
        match std::fs::remove_file(&file.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(file),
        }
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Outlet {
    /// Opens the way out to where the destination listens.
    pub(super) async fn open(
        attempt: &Arc<LocalAttempt>,
        vm: &LocalVm,
        (id, to): (&MigrationId, HostId),
        transport: Transport,
        there: &str,
    ) -> Result<Self, Report> {
        let local = |error: io::Error| {
            Report::new(ErrorCode::Internal, "the way out of the migration could not be opened").caused_by(&error)
        };
        let socket = vm.qemu.run_dir().join(SOCKET);
        let name = socket.display().to_string();
        let listen = || Carrier::listen(attempt, id, to, socket.clone()).map(Some).map_err(local);
        let (address, carrier, file) = match transport {
            Transport::Tcp | Transport::Tcp6 | Transport::Tls | Transport::Rdma => (Address::from(there), None, None),
            Transport::Mesh => (Address::Uri(format!("unix:{name}")), listen()?, None),
            Transport::Exec => {
                let vtd = attempt.places.vtd.display().to_string();
                let words = vec![vtd, pipe::WORD.to_owned(), pipe::CONNECT.to_owned(), name];
                (Address::Command(words), listen()?, None)
            }
            Transport::Fd => {
                let (theirs, ours) = std::os::unix::net::UnixStream::pair().map_err(local)?;
                ours.set_nonblocking(true).map_err(local)?;
                let ours = tokio::net::UnixStream::from_std(ours).map_err(local)?;
                let name = format!("out{}", id.number);
                vm.qemu.qmp().give_descriptor(&name, theirs.into()).await.map_err(|error| error.report())?;
                (Address::Uri(format!("fd:{name}")), Some(Carrier::stream(attempt, id, to, ours)), None)
            }
            Transport::File => {
                let file = StateFile::of(attempt, id).map_err(local)?;
                (Address::Uri(format!("file:{}", file.path.display())), None, Some(file))
            }
        };
        Ok(Self { address, carrier, file })
    }

    /// Where somebody else tells QEMU to send to `there`.
    pub(super) fn none(there: &str) -> Self {
        Self { address: Address::from(there), carrier: None, file: None }
    }

    /// Ends what is carried, before another way out is opened in the same place.
    pub(super) fn close(&mut self) {
        self.carrier = None;
    }

    /// Whether what QEMU has written still has to be brought to the destination.
    pub(super) fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// Brings the file to the destination; done when the QEMU there reads it.
    pub(super) async fn deliver(
        &self,
        attempt: &LocalAttempt,
        (id, to): (&MigrationId, HostId),
        by: Instant,
    ) -> Result<u64, Report> {
        let Some(file) = &self.file else { return Ok(0) };
        attempt.cluster.give_state(to, id, &file.path, by).await.map_err(|error| {
            let report = Report::from(error);
            Report::new(ErrorCode::MigrationFailed, "the file that the VM was saved into did not reach the destination")
                .with("file", file.path.display().to_string())
                .with("why", report.title)
        })
    }
}
