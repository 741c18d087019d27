//! The bulk service: blobs and evidence over TCP with TLS, for admitted hosts and, for reading, clients.
//!
//! What exists is behind [`BlobSource`]; paths are checked there, and that nothing leads out of an attempt's directory
//! is checked here as well.

use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use vt_protocol::admin::AccessRole;
use vt_protocol::bulk::{self, BulkAnswer, BulkError, BulkRequest};
use vt_protocol::call;
use vt_protocol::endpoint::MeshEndpoint;
use vt_protocol::error::{ErrorCode, Report};
use vt_protocol::frame::FrameError;
use vt_protocol::hello::{self, HelloError, Refusal, Welcome};
use vt_protocol::identity::subject::Facts;
use vt_protocol::identity::{Identity, IdentityError};
use vt_protocol::ids::{AttemptId, Digest, HostId, MigrationId};
use vt_protocol::service::Service;

use super::access::{self, Pass};
use super::doors::{Doors, Stranger};
use super::router::CROWDED;
use super::services::Services;
use crate::audit::Actor;
use crate::migrate::carry::{Duplex, splice};

/// Transfers at once.
const TRANSFERS: usize = 64;
/// Connections of migrations at once: several for each, where it has several.
const MIGRATIONS: usize = 256;
/// Connections that were not admitted yet, in all and from one address.
const STRANGERS: usize = 64;
const STRANGERS_OF_ONE: usize = 32;
/// Handshake, hello and request must be done after this long.
const GREETING_TIME: Duration = Duration::from_secs(10);
/// A host that reads an image may think about its next question for so long.
const THINKS: Duration = Duration::from_secs(10);
/// Longest time of one transfer.
const TRANSFER_TIME: Duration = Duration::from_secs(6 * 3600);

/// Bytes that are there, with their number.
pub type Content = (u64, Box<dyn AsyncBufRead + Send + Unpin>);

/// Takes a blob's bytes. Dropped without [`BlobSink::keep`], nothing is left of it.
#[async_trait]
pub trait BlobSink: Send {
    /// Where the bytes go.
    fn writer(&mut self) -> &mut (dyn AsyncWrite + Send + Unpin);

    /// The bytes are whole and have the digest: keep them.
    async fn keep(self: Box<Self>) -> io::Result<()>;
}

/// What this host has to give, and where it keeps what it is given.
#[async_trait]
pub trait BlobSource: Send + Sync + 'static {
    /// A blob; none where it is not here.
    async fn blob(&self, digest: Digest) -> io::Result<Option<Content>>;

    /// A file of an attempt's evidence from `offset`; none where there is none. `path` is relative and leads nowhere
    /// else.
    async fn evidence(&self, attempt: AttemptId, path: &Path, offset: u64) -> io::Result<Option<Content>>;

    /// The manifest of the image with that content root; none where it is not here.
    async fn manifest(&self, root: Digest) -> io::Result<Option<Content>>;

    /// Blocks of a file of that image, as runs of first and count; none where they are not here.
    async fn blocks(&self, root: Digest, file: u16, runs: Vec<(u32, u32)>) -> io::Result<Option<Content>>;

    /// Which blocks of an image that is on its way here have come; none where it is not on its way.
    async fn have(&self, root: Digest) -> io::Result<Option<Content>>;

    /// Room for a blob that is not here; none where it is here already.
    async fn accept(&self, digest: Digest, length: u64) -> Result<Option<Box<dyn BlobSink>>, Report>;

    /// The stream of the QEMU that a migration from `from` comes in to.
    async fn inlet(&self, from: HostId, migration: &MigrationId) -> Result<Box<dyn Duplex>, Report> {
        let _ = (from, migration);
        Err(no_vms())
    }

    /// Room for the file that a VM was saved into by `from`; none where QEMU reads it already.
    async fn state_inlet(
        &self,
        from: HostId,
        migration: &MigrationId,
        length: u64,
    ) -> Result<Option<Box<dyn BlobSink>>, Report> {
        let _ = (from, migration, length);
        Err(no_vms())
    }
}

fn no_vms() -> Report {
    Report::new(ErrorCode::MigrationRefused, "this host has no VMs")
}

/// Serves bulk transfers on one TCP port.
pub struct BulkServer {
    listener: TcpListener,
    endpoint: MeshEndpoint,
    acceptor: Mutex<(Arc<Identity>, TlsAcceptor)>,
    services: Arc<dyn Services>,
    source: Arc<dyn BlobSource>,
}

impl BulkServer {
    /// A server on `listener`, which has the port number of `endpoint` and shows what that shows.
    ///
    /// # Errors
    /// TLS refuses the identity.
    pub fn new(
        listener: TcpListener,
        endpoint: MeshEndpoint,
        services: Arc<dyn Services>,
        source: Arc<dyn BlobSource>,
    ) -> Result<Self, IdentityError> {
        let identity = endpoint.identity();
        let acceptor = Mutex::new((Arc::clone(&identity), bulk::acceptor(&identity)?));
        Ok(Self { listener, endpoint, acceptor, services, source })
    }

    /// TLS with the identity of this moment.
    fn acceptor(&self) -> Result<TlsAcceptor, IdentityError> {
        let identity = self.endpoint.identity();
        let mut made = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&made.0, &identity) {
            *made = (Arc::clone(&identity), bulk::acceptor(&identity)?);
        }
        Ok(made.1.clone())
    }

    /// Serves until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let room = Room::default();
        let doors = Doors::new(STRANGERS, STRANGERS_OF_ONE);
        let server = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = server.listener.accept() => accepted,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the bulk port takes no connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Over the limit the connection is dropped: the other side tries again, and nothing piles up here.
            let place = doors.enter(address.ip());
            let (server, room, stop) = (Arc::clone(&server), room.clone(), stop.clone());
            let Some(stranger) = place else {
                tokio::spawn(async move { server.refused("unknown".to_owned(), address, CROWDED).await });
                continue;
            };
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = server.serve_one(tcp, address, stranger, room) => {}
                }
            });
        }
    }

    async fn serve_one(&self, tcp: TcpStream, address: SocketAddr, stranger: Stranger, room: Room) {
        match self.connection(tcp, address, stranger, room).await {
            Ok(()) => {}
            Err(BulkFailure::Door { who, reason }) => self.refused(who, address, &reason).await,
            Err(error) => tracing::info!(%address, %error, "a bulk connection ended early"),
        }
    }

    /// Writes down who was not let in.
    async fn refused(&self, who: String, address: SocketAddr, reason: &str) {
        self.services.audit().refusal(Actor::named(who, address.to_string()), "connect blob", "", reason).await;
    }

    async fn connection(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        stranger: Stranger,
        room: Room,
    ) -> Result<(), BulkFailure> {
        tcp.set_nodelay(true)?;
        let door = |who: &str, reason: String| BulkFailure::Door { who: who.to_owned(), reason };
        let mut stream = match timeout(GREETING_TIME, self.acceptor()?.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(door("unknown", error.to_string())),
            Err(_) => return Err(door("unknown", "the handshake took too long".to_owned())),
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let shown = shown.and_then(|certificate| Facts::read(certificate).ok());
        let by = Instant::now() + GREETING_TIME;
        let mine = self.services.hello();
        let who = shown.as_ref().map_or_else(|| "unknown".to_owned(), access::holder);
        let theirs = hello::hear(&mut stream, by).await.map_err(|error| door(&who, error.to_string()))?;
        let checked = hello::check(&mine, &theirs)
            .and_then(|version| self.pass(shown.as_ref()).map(|_| Welcome { hello: mine, version }));
        hello::answer(&mut stream, &checked, by).await?;
        if let Err(refusal) = checked {
            let _ = stream.shutdown().await;
            return Err(door(&who, refusal.to_string()));
        }
        drop(stranger);
        let served =
            self.requests(&mut stream, shown.as_ref(), Actor::named(who, address.to_string()), by, &room).await;
        let _ = timeout(GREETING_TIME, stream.shutdown()).await;
        served
    }

    /// What the holder of a certificate may do at this moment.
    fn pass(&self, shown: Option<&Facts>) -> Result<Pass, Refusal> {
        access::admit(Service::Blob, shown, &self.services.membership(), vt_protocol::rehearsal::unix_s())
    }

    /// Serves a request; after one that reads an image others, until none comes.
    async fn requests(
        &self,
        stream: &mut bulk::Incoming,
        shown: Option<&Facts>,
        actor: Actor,
        first_by: Instant,
        room: &Room,
    ) -> Result<(), BulkFailure> {
        let mut by = first_by;
        loop {
            let request = match bulk::take(stream, by).await {
                Ok(request) => request,
                // It has what it wanted.
                Err(FrameError::Closed | FrameError::Io(_) | FrameError::Deadline) if by != first_by => return Ok(()),
                Err(error) => {
                    let report = Report::new(ErrorCode::WireVersion, "the request was not understood");
                    call::put_failure(stream, &report.with("reason", error.to_string())).await?;
                    return Err(error.into());
                }
            };
            tracing::debug!(?actor, ?request, "a bulk request");
            // A host may have been removed since it came in.
            let pass = match self.pass(shown) {
                Ok(pass) => pass,
                Err(refusal) => {
                    let report = Report::new(ErrorCode::HostRemoved, refusal.to_string());
                    return Ok(call::put_failure(stream, &report).await?);
                }
            };
            let Ok(_permit) = room.of(&request).try_acquire_owned() else {
                let report = Report::new(ErrorCode::Unreachable, "the host serves too many transfers").retryable();
                return Ok(call::put_failure(stream, &report).await?);
            };
            if let BulkRequest::Evidence { path, .. } = &request
                && inner(path).is_none()
            {
                let why = "the path leads out of the attempt";
                self.services.audit().refusal(actor.clone(), "evidence", path, why).await;
            }
            let more = request.is_of_image();
            self.serve(stream, &pass, request).await?;
            if !more {
                return Ok(());
            }
            by = Instant::now() + THINKS;
        }
    }

    async fn serve(&self, stream: &mut bulk::Incoming, pass: &Pass, request: BulkRequest) -> Result<(), BulkFailure> {
        let by = Instant::now() + TRANSFER_TIME;
        // Images hold the keys of their guests: they go from host to host only.
        if request.is_of_image() && matches!(pass, Pass::Client { .. }) {
            let report = Report::new(ErrorCode::Denied, "blocks of images are for hosts of the cluster");
            return Ok(call::put_failure(stream, &report).await?);
        }
        let found = match request {
            BulkRequest::Blob(digest) => self.source.blob(digest).await?,
            BulkRequest::Evidence { attempt, path, offset } => match inner(&path) {
                Some(path) => self.source.evidence(attempt, path, offset).await?,
                None => {
                    let report = Report::new(ErrorCode::ResultsMissing, "the path leads out of the attempt");
                    return Ok(call::put_failure(stream, &report.with("path", path)).await?);
                }
            },
            BulkRequest::Keep { digest, length } => return self.keep(stream, pass, digest, length, by).await,
            BulkRequest::Migration(migration) => return self.carry(stream, pass, &migration).await,
            BulkRequest::State { migration, length } => {
                return self.keep_state(stream, pass, &migration, length, by).await;
            }
            BulkRequest::Manifest(root) => self.source.manifest(root).await?,
            BulkRequest::Blocks { root, file, runs } => self.source.blocks(root, file, runs).await?,
            BulkRequest::Have(root) => self.source.have(root).await?,
        };
        match found {
            Some((length, mut content)) => {
                bulk::put_answer(stream, BulkAnswer::Follows(length)).await?;
                Ok(bulk::relay(&mut content, stream, length, by).await?)
            }
            None => {
                let report = Report::new(ErrorCode::ResultsMissing, "this host does not have it");
                Ok(call::put_failure(stream, &report).await?)
            }
        }
    }

    /// Carries a connection of a migration to its QEMU, until one side ends it.
    async fn carry(
        &self,
        stream: &mut bulk::Incoming,
        pass: &Pass,
        migration: &MigrationId,
    ) -> Result<(), BulkFailure> {
        let found = match host_only(pass) {
            Ok(from) => self.source.inlet(from, migration).await,
            Err(report) => Err(report),
        };
        match found {
            Ok(mut inlet) => {
                bulk::put_answer(stream, BulkAnswer::Send).await?;
                Ok(splice(stream, &mut *inlet).await?)
            }
            Err(report) => Ok(call::put_failure(stream, &report).await?),
        }
    }

    async fn keep_state(
        &self,
        stream: &mut bulk::Incoming,
        pass: &Pass,
        migration: &MigrationId,
        length: u64,
        by: Instant,
    ) -> Result<(), BulkFailure> {
        let room = match host_only(pass) {
            Ok(from) => self.source.state_inlet(from, migration, length).await,
            Err(report) => Err(report),
        };
        let mut sink = match room {
            Ok(Some(sink)) => sink,
            Ok(None) => return Ok(bulk::put_answer(stream, BulkAnswer::Kept).await?),
            Err(report) => return Ok(call::put_failure(stream, &report).await?),
        };
        bulk::put_answer(stream, BulkAnswer::Send).await?;
        // TLS has checked the bytes on their way; QEMU checks what they say.
        bulk::pump(stream, &mut sink.writer(), length, by).await?;
        let title = "the destination cannot read the file that the VM was saved into";
        kept(stream, sink, Report::new(ErrorCode::MigrationRefused, title)).await
    }

    async fn keep(
        &self,
        stream: &mut bulk::Incoming,
        pass: &Pass,
        digest: Digest,
        length: u64,
        by: Instant,
    ) -> Result<(), BulkFailure> {
        if matches!(pass, Pass::Client { role, .. } if *role < AccessRole::Runner) {
            let report = Report::new(ErrorCode::Denied, "the role of your certificate does not allow this");
            return Ok(call::put_failure(stream, &report).await?);
        }
        let mut sink = match self.source.accept(digest, length).await {
            Ok(Some(sink)) => sink,
            Ok(None) => return Ok(bulk::put_answer(stream, BulkAnswer::Kept).await?),
            Err(report) => return Ok(call::put_failure(stream, &report).await?),
        };
        bulk::put_answer(stream, BulkAnswer::Send).await?;
        let found = bulk::pump(stream, &mut sink.writer(), length, by).await?;
        if found != digest {
            let report = BulkError::Digest { wanted: digest, found }.report();
            return Ok(call::put_failure(stream, &report).await?);
        }
        kept(stream, sink, Report::new(ErrorCode::StorageFailed, "the blob could not be stored")).await
    }
}

/// Keeps what has come, and says so; otherwise says `failed`.
async fn kept(stream: &mut bulk::Incoming, sink: Box<dyn BlobSink>, failed: Report) -> Result<(), BulkFailure> {
    match sink.keep().await {
        Ok(()) => Ok(bulk::put_answer(stream, BulkAnswer::Kept).await?),
        Err(error) => Ok(call::put_failure(stream, &failed.caused_by(&error)).await?),
    }
}

/// How many are served at once, of either kind.
#[derive(Clone)]
struct Room {
    transfers: Arc<Semaphore>,
    migrations: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self { transfers: Arc::new(Semaphore::new(TRANSFERS)), migrations: Arc::new(Semaphore::new(MIGRATIONS)) }
    }
}

impl Room {
    fn of(&self, request: &BulkRequest) -> Arc<Semaphore> {
        match request {
            BulkRequest::Migration(_) | BulkRequest::State { .. } => Arc::clone(&self.migrations),
            BulkRequest::Blob(_)
            | BulkRequest::Evidence { .. }
            | BulkRequest::Keep { .. }
            | BulkRequest::Manifest(_)
            | BulkRequest::Have(_)
            | BulkRequest::Blocks { .. } => Arc::clone(&self.transfers),
        }
    }
}

/// The host that asks: a migration is for hosts alone.
fn host_only(pass: &Pass) -> Result<HostId, Report> {
    match pass {
        Pass::Host(host) => Ok(*host),
        _ => Err(Report::new(ErrorCode::Denied, "a migration's stream is for the hosts of the migration")),
    }
}

/// A relative path made of plain names only.
fn inner(path: &str) -> Option<&Path> {
    let path = Path::new(path);
    // `components` drops a dot in the middle; one in front, like everything else that is no name, is refused.
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && path.components().next().is_some() && !path.as_os_str().as_bytes().contains(&0)).then_some(path)
}

#[derive(Debug, thiserror::Error)]
enum BulkFailure {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Transfer(#[from] BulkError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{reason}")]
    Door { who: String, reason: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_inside() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "./a", "..", "a\0b"] {
            assert_eq!(inner(path), None, "{path}");
        }
        assert_eq!(inner("h1/serial.log"), Some(Path::new("h1/serial.log")));
    }
}
