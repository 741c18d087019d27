//! The destination's way in: where its QEMU listens, and how what a daemon carries gets there.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use rand::Rng;
use tokio::{
    fs::File,
    io::AsyncWrite,
    net::UnixStream,
    time::{Instant, sleep},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{HostId, MigrationId},
    vm::Transport,
};

use super::{carry::Duplex, outlet::StateFile, receive::Incoming};
use crate::{
    guard::{GuardError, GuardHandle},
    mesh::bulk::BlobSink,
    party::{attempt::LocalAttempt, local_vm::LocalVm},
    qemu::{
        pipe,
        qmp::{Address, MigrationStatus, Qmp, QmpError},
    },
};

/// Ports that migrations come in on.
pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 49152..=49215;
/// The socket that a destination QEMU, or its helper, listens at.
const SOCKET: &str = "in";
/// How long QEMU, or its helper, may take to open that.
const OPENS: Duration = Duration::from_secs(10);

/// Why QEMU is to listen, and who tells it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Listen<'a> {
    /// A migration is to come in.
    First(&'a Qmp),
    /// The connection of a post-copy broke.
    Again(&'a Qmp),
    /// The same, where QEMU does not answer this daemon: its guard tells it.
    AgainByGuard(&'a GuardHandle),
}

/// Why QEMU does not listen.
#[derive(Debug, thiserror::Error)]
enum NotListening {
    #[error(transparent)]
    Qemu(#[from] QmpError),
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error("what is run anew, or handed to QEMU, cannot be listened at again")]
    Once,
}

impl NotListening {
    fn report(&self) -> Report {
        match self {
            Self::Qemu(error) => error.report(),
            Self::Guard(error) => error.report(),
            Self::Once => Report::new(ErrorCode::MigrationRefused, self.to_string()),
        }
    }
}

impl Listen<'_> {
    async fn at(self, address: Address) -> Result<(), NotListening> {
        match (self, address) {
            (Listen::First(qmp), address) => Ok(qmp.migrate_incoming(address).await?),
            (Listen::Again(qmp), Address::Uri(uri)) => Ok(qmp.migrate_recover(&uri).await?),
            (Listen::AgainByGuard(guard), Address::Uri(uri)) => Ok(guard.listen(&uri).await?),
            (_, Address::Command(_)) => Err(NotListening::Once),
        }
    }

    /// Makes a descriptor QEMU's.
    async fn give(self, name: &str, descriptor: OwnedFd) -> Result<(), NotListening> {
        match self {
            Listen::First(qmp) | Listen::Again(qmp) => Ok(qmp.give_descriptor(name, descriptor).await?),
            Listen::AgainByGuard(_) => Err(NotListening::Once),
        }
    }
}

impl LocalAttempt {
    /// Has QEMU listen. Returns where, as the source is told.
    pub(super) async fn open_inlet(
        &self,
        incoming: &Incoming,
        transport: Transport,
        listen: Listen<'_>,
    ) -> Result<String, Report> {
        let socket = self.places.vm(&incoming.id.vm).join(SOCKET);
        let local = |error: io::Error| {
            Report::new(ErrorCode::Internal, "the way in of the migration could not be opened").caused_by(&error)
        };
        let at = match transport {
            Transport::Tcp | Transport::Tls => return self.open_port("tcp", self.places.migration, listen).await,
            Transport::Tcp6 => return self.open_port("tcp", self.ipv6()?.into(), listen).await,
            Transport::Rdma => return self.open_port("rdma", self.places.migration, listen).await,
            // QEMU reads it when it is here.
            Transport::File => return Ok("mesh:file".to_owned()),
            Transport::Mesh => Address::Uri(format!("unix:{}", socket.display())),
            Transport::Exec => {
                let words =
                    [&self.places.vtd.display().to_string(), pipe::WORD, pipe::LISTEN, &socket.display().to_string()];
                Address::Command(words.iter().map(|word| (*word).to_owned()).collect())
            }
            Transport::Fd => {
                let (theirs, ours) = std::os::unix::net::UnixStream::pair().map_err(local)?;
                ours.set_nonblocking(true).map_err(local)?;
                let name = format!("in{}", incoming.id.number);
                listen.give(&name, theirs.into()).await.map_err(|error| error.report())?;
                incoming.hold(UnixStream::from_std(ours).map_err(local)?);
                Address::Uri(format!("fd:{name}"))
            }
        };
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(local(error)),
            _ => {}
        }
        listen.at(at).await.map_err(|error| error.report())?;
        Ok(format!("mesh:{transport}"))
    }

    /// Finds a port for a migration to come in on, and has QEMU open it. Returns where it listens.
    async fn open_port(&self, scheme: &str, at: IpAddr, listen: Listen<'_>) -> Result<String, Report> {
        let mut last = None;
        for address in free_ports(at) {
            let uri = format!("{scheme}:{address}");
            match listen.at(Address::Uri(uri.clone())).await {
                Ok(()) => return Ok(uri),
                Err(error) if error.to_string().contains("in use") => last = Some(error.to_string()),
                Err(error) => return Err(error.report()),
            }
        }
        Err(no_port(at, last))
    }

    fn ipv6(&self) -> Result<Ipv6Addr, Report> {
        ipv6_beside(self.places.migration).ok_or_else(|| no_ipv6(self.places.migration))
    }

    /// The stream of a destination QEMU, for a connection that the source's daemon carries.
    ///
    /// # Errors
    /// Nothing of that kind comes in here from that host.
    pub(crate) async fn inlet(&self, from: HostId, id: &MigrationId) -> Result<Box<dyn Duplex>, Report> {
        self.comes_in(from, id)?;
        if let Some(stream) = self.incoming(id).and_then(|incoming| incoming.take_held()) {
            return Ok(Box::new(stream));
        }
        let stream = connect(&self.places.vm(&id.vm).join(SOCKET)).await.map_err(|error| {
            Report::new(ErrorCode::MigrationRefused, format!("QEMU does not take the stream of {id}")).caused_by(&error)
        })?;
        Ok(Box::new(stream))
    }

    /// Room for the file that a VM was saved into; none where QEMU reads it already.
    ///
    /// # Errors
    /// Nothing of that kind comes in here from that host, or it cannot be written.
    pub(crate) async fn state_inlet(
        self: &Arc<Self>,
        from: HostId,
        id: &MigrationId,
        length: u64,
    ) -> Result<Option<Box<dyn BlobSink>>, Report> {
        self.comes_in(from, id)?;
        let refused = |text: String| Report::new(ErrorCode::MigrationRefused, text);
        let incoming = self.incoming(id).ok_or_else(|| refused(format!("{id} has lost its place here")))?;
        let vm = incoming.vm().ok_or_else(|| refused(format!("{id} has no QEMU here")).retryable())?;
        match vm.qemu.qmp().query_migrate().await.map_err(|error| error.report())?.status {
            MigrationStatus::None => {}
            _ => return Ok(None),
        }
        let full = |error: &io::Error| {
            Report::new(ErrorCode::DiskFull, format!("the file of {id}, {length} bytes, cannot be kept"))
                .caused_by(error)
        };
        let state = StateFile::of(self, id).map_err(|error| full(&error))?;
        let file = File::create(&state.path).await.map_err(|error| full(&error))?;
        Ok(Some(Box::new(StateSink { file, state, incoming, vm })))
    }

    /// Whether that migration comes in here from that host.
    fn comes_in(&self, from: HostId, id: &MigrationId) -> Result<(), Report> {
        let state = self.cluster.state();
        if state.migration(id).is_some_and(|migration| migration.from == from && migration.to == self.me()) {
            return Ok(());
        }
        Err(Report::new(ErrorCode::Denied, format!("{id} does not come in here from that host")))
    }
}

/// Ports of the range that nobody has, as the kernel says, from a random one on: another daemon's QEMU may have some, and
/// QEMU's own errors are kept for real ones.
pub(crate) fn free_ports(at: IpAddr) -> impl Iterator<Item = SocketAddr> {
    let (first, count) = (*PORTS.start(), PORTS.end() - PORTS.start() + 1);
    let begin = rand::rng().random_range(0..count);
    let all = (0..count).map(move |offset| SocketAddr::new(at, first + (begin + offset) % count));
    all.filter(|address| TcpListener::bind(address).is_ok())
}

/// What is told where none of them could be opened; `last` is what QEMU said of the last one.
pub(super) fn no_port(at: IpAddr, last: Option<String>) -> Report {
    Report::new(ErrorCode::NetworkSetup, "no port for the migration could be opened")
        .with("address", at.to_string())
        .with("ports", format!("{}-{}", PORTS.start(), PORTS.end()))
        .with("system", last.unwrap_or_else(|| "every port is taken".to_owned()))
}

/// What a host without an IPv6 address says.
pub(super) fn no_ipv6(beside: IpAddr) -> Report {
    Report::new(ErrorCode::CannotRunHere, "the destination has no IPv6 address where migrations come in")
        .with("address", beside.to_string())
}

/// An IPv6 address of the interface that has `address`; itself where it is one.
pub(super) fn ipv6_beside(address: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(six) = address {
        return Some(six);
    }
    let all: Vec<(String, IpAddr)> = nix::ifaddrs::getifaddrs()
        .ok()?
        .filter_map(|interface| {
            let shown = interface.address?;
            let four = shown.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
            let six = shown.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip()));
            Some((interface.interface_name, four.or(six)?))
        })
        .collect();
    let (name, _) = all.iter().find(|(_, shown)| *shown == address)?;
    all.iter().filter(|(other, _)| other == name).find_map(|(_, shown)| match shown {
        IpAddr::V6(six) if !six.is_unicast_link_local() => Some(*six),
        _ => None,
    })
}

/// QEMU's helper opens its socket a moment after it was started; a full queue is a moment's matter as well.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let until = Instant::now() + OPENS;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Takes the file that a VM was saved into, and has QEMU read it when it is whole.
struct StateSink {
    file: File,
    state: StateFile,
    incoming: Arc<Incoming>,
    vm: Arc<LocalVm>,
}

#[async_trait]
impl BlobSink for StateSink {
    fn writer(&mut self) -> &mut (dyn AsyncWrite + Send + Unpin) {
        &mut self.file
    }

    async fn keep(self: Box<Self>) -> io::Result<()> {
        let Self { file, state, incoming, vm } = *self;
        drop(file.into_std().await);
        let uri = format!("file:{}", state.path.display());
        vm.qemu.qmp().migrate_incoming(&uri).await.map_err(io::Error::other)?;
        incoming.keep_state(state);
        Ok(())
    }
}

/// Files of migrations that a daemon before this one left.
pub(crate) fn clear_states(folder: &Path) {
    let left = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for path in left.map(|entry| entry.path()).collect::<Vec<PathBuf>>() {
        let _ = std::fs::remove_file(path);
    }
}
