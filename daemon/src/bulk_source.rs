//! What this host gives and takes in bulk: its blobs, the evidence of attempts, and blocks of its images.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt, AsyncWrite, BufReader},
    net::TcpListener,
    sync::watch,
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, Digest, HostId, MigrationId},
    job::PLAN_MAX,
};
use vt_sync::State;

use crate::{
    blob::BlobStore,
    cluster::Cluster,
    host::Host,
    images::{Pools, serve},
    mesh::bulk::{BlobSink, BlobSource, BulkServer, Content},
    migrate::carry::Duplex,
    party::Supervisor,
};

/// How much of a file is read at once, bytes.
const READ: usize = 64 << 10;

/// The bulk service of a host on `listener`.
///
/// # Errors
/// TLS refuses the identity.
pub fn server(listener: TcpListener, host: &Arc<Host>) -> Result<BulkServer, Report> {
    let source = Source {
        blobs: host.blobs().clone(),
        attempts: host.data().path().join("attempts"),
        host: Arc::downgrade(host),
        pools: host.images().pools().clone(),
        state: host.watch(),
    };
    BulkServer::new(listener, host.endpoint().clone(), host.clone(), Arc::new(source)).map_err(|error| {
        Report::new(ErrorCode::StoreDamaged, "the identity of this host does not serve TLS").caused_by(&error)
    })
}

struct Source {
    blobs: BlobStore,
    attempts: PathBuf,
    host: Weak<Host>,
    pools: Pools,
    state: watch::Receiver<Arc<State>>,
}

impl Source {
    fn supervisor(&self) -> Result<Arc<Supervisor>, Report> {
        let host = self.host.upgrade();
        host.and_then(|host| host.supervisor().cloned())
            .ok_or_else(|| Report::new(ErrorCode::Unreachable, "the daemon is starting or stopping").retryable())
    }
}

#[async_trait]
impl BlobSource for Source {
    async fn blob(&self, digest: Digest) -> io::Result<Option<Content>> {
        let blobs = self.blobs.clone();
        let found = tokio::task::spawn_blocking(move || blobs.get(digest)).await?.map_err(io::Error::other)?;
        Ok(found.map(|bytes| {
            let content: Content = (bytes.len() as u64, Box::new(io::Cursor::new(bytes)));
            content
        }))
    }

    async fn evidence(&self, attempt: AttemptId, path: &Path, offset: u64) -> io::Result<Option<Content>> {
        let full = self.attempts.join(attempt.to_string()).join(path);
        let root = self.attempts.clone();
        // A link that a program of the attempt made must not lead elsewhere.
        let inside = tokio::task::spawn_blocking(move || {
            let (root, full) = (root.canonicalize()?, full.canonicalize()?);
            Ok::<_, io::Error>(full.starts_with(root).then_some(full))
        });
        let full = match inside.await? {
            Ok(Some(full)) => full,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut file = tokio::fs::File::open(full).await?;
        let length = file.metadata().await?.len().saturating_sub(offset);
        file.seek(io::SeekFrom::Start(offset)).await?;
        Ok(Some((length, Box::new(BufReader::with_capacity(READ, file.take(length))))))
    }

    async fn manifest(&self, root: Digest) -> io::Result<Option<Content>> {
        let state = self.state.borrow().clone();
        serve::manifest(&self.pools, &state, root).await
    }

    async fn blocks(&self, root: Digest, file: u16, runs: Vec<(u32, u32)>) -> io::Result<Option<Content>> {
        let state = self.state.borrow().clone();
        serve::blocks(&self.pools, &state, root, file, runs).await
    }

    async fn have(&self, root: Digest) -> io::Result<Option<Content>> {
        Ok(serve::have(&self.pools, root))
    }

    async fn accept(&self, digest: Digest, length: u64) -> Result<Option<Box<dyn BlobSink>>, Report> {
        if length > PLAN_MAX as u64 {
            return Err(Report::new(
                ErrorCode::TooLarge,
                format!("a blob of {length} bytes is larger than {PLAN_MAX}"),
            ));
        }
        let blobs = self.blobs.clone();
        let here = tokio::task::spawn_blocking(move || blobs.get(digest)).await;
        if matches!(here, Ok(Ok(Some(_)))) {
            return Ok(None);
        }
        Ok(Some(Box::new(Sink { blobs: self.blobs.clone(), digest, bytes: io::Cursor::new(Vec::new()) })))
    }

    async fn inlet(&self, from: HostId, migration: &MigrationId) -> Result<Box<dyn Duplex>, Report> {
        self.supervisor()?.inlet(from, migration).await
    }

    async fn state_inlet(
        &self,
        from: HostId,
        migration: &MigrationId,
        length: u64,
    ) -> Result<Option<Box<dyn BlobSink>>, Report> {
        self.supervisor()?.state_inlet(from, migration, length).await
    }
}

/// Collects a blob, which is small enough for memory, and stores it whole.
struct Sink {
    blobs: BlobStore,
    digest: Digest,
    bytes: io::Cursor<Vec<u8>>,
}

#[async_trait]
impl BlobSink for Sink {
    fn writer(&mut self) -> &mut (dyn AsyncWrite + Send + Unpin) {
        &mut self.bytes
    }

    async fn keep(self: Box<Self>) -> io::Result<()> {
        let Self { blobs, digest, bytes } = *self;
        tokio::task::spawn_blocking(move || blobs.put_as(digest, bytes.get_ref())).await?.map_err(io::Error::other)
    }
}
