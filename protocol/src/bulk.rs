//! Bytes in bulk between hosts, and from hosts to vtctl: TLS 1.3 over TCP, same identity and port number as QUIC.
//!
//! A connection has a hello, a request, then the announced number of bytes; a host that reads an image asks for one part
//! of it after another on the same one. A blob is checked against its digest while it arrives, so a damaged or false one
//! is an error and not a file. A connection on which nothing moves is dropped. What exists and who may have it is not
//! decided here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::call::{self, CallError};
use crate::codec;
use crate::error::{ErrorCode, Report};
use crate::frame::{FrameError, SMALL_CAP};
use crate::hello::{self, Hello};
use crate::identity::subject::{public_key_of, server_name};
use crate::identity::{Identity, IdentityError, PublicKey, tls};
use crate::ids::{AttemptId, Digest, HostId, MigrationId};
use crate::service::Service;

/// A transfer on which no byte moves for this long is dropped.
pub const STALL: Duration = Duration::from_secs(15);
/// Longest path of an evidence file, in bytes.
pub const PATH_MAX: usize = 512;

const BUFFER: usize = 64 << 10;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkRequest {
    /// A blob, from its beginning.
    Blob(Digest),
    /// A file of the evidence of an attempt, from `offset`.
    Evidence {
        /// Which attempt.
        attempt: AttemptId,
        /// Its path relative to the attempt's directory; the server refuses what leads out of it.
        path: String,
        /// Bytes to skip.
        offset: u64,
    },
    /// Take this blob: its bytes follow after the answer.
    Keep {
        /// Its digest; the bytes are checked against it.
        digest: Digest,
        /// Its length in bytes.
        length: u64,
    },
    /// A connection of the source's QEMU: both ways, until one side ends it. Only between the hosts of the migration.
    Migration(MigrationId),
    /// The file that the source's QEMU has saved a VM into: its bytes follow after the answer.
    State {
        /// Which migration.
        migration: MigrationId,
        /// Its length in bytes.
        length: u64,
    },
    /// The manifest of the image with that content root. Hosts only.
    Manifest(Digest),
    /// Blocks of a file of that image, one after the other. Hosts only.
    Blocks {
        /// The content root.
        root: Digest,
        /// Place of the file in the manifest.
        file: u16,
        /// Block numbers: first and how many.
        runs: Vec<(u32, u32)>,
    },
    /// Which blocks of the image with that content root have come to a host that is taking it: a bit a block, each file
    /// from a byte of its own. Hosts only.
    Have(Digest),
}

/// The server's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkAnswer {
    /// So many bytes follow.
    Follows(u64),
    /// Send yours.
    Send,
    /// It is here already, or is now.
    Kept,
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// No connection, or the other side refused the request.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The stream failed or ended early.
    #[error("the transfer broke after {done} of {length} bytes")]
    Broken {
        /// Bytes that came.
        done: u64,
        /// Bytes announced.
        length: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nothing moved for [`STALL`], or the deadline passed.
    #[error("the transfer stood still after {done} of {length} bytes")]
    Stalled {
        /// Bytes that came.
        done: u64,
        /// Bytes announced.
        length: u64,
    },
    /// More was announced than is taken.
    #[error("{length} bytes are more than the cap of {cap}")]
    TooLong {
        /// Bytes announced.
        length: u64,
        /// The cap.
        cap: u64,
    },
    /// The bytes do not have the digest.
    #[error("the bytes have digest {found}, not {wanted}")]
    Digest {
        /// What was wanted.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
}

impl BulkRequest {
    /// Whether it reads an image. After it the connection is open for another one.
    pub fn is_of_image(&self) -> bool {
        matches!(self, Self::Manifest(_) | Self::Blocks { .. } | Self::Have(_))
    }
}

impl BulkError {
    /// As a user meets it.
    pub fn report(&self) -> Report {
        match self {
            BulkError::Call(error) => error.report(),
            BulkError::TooLong { .. } => Report::new(ErrorCode::TooLarge, self.to_string()),
            BulkError::Digest { .. } => Report::new(ErrorCode::ImageDamaged, self.to_string()),
            BulkError::Broken { .. } | BulkError::Stalled { .. } => {
                Report::new(ErrorCode::Unreachable, self.to_string()).caused_by(self).retryable()
            }
        }
    }
}

/// Whom a dialler expects at an address.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The host.
    pub host: HostId,
    /// Its admitted key.
    pub key: PublicKey,
}

/// Dials the bulk service of other hosts.
#[derive(Clone)]
pub struct BulkDialer {
    connector: TlsConnector,
    name: ServerName<'static>,
    mine: Hello,
}

impl BulkDialer {
    /// A dialler that shows `identity`.
    pub fn new(identity: &Identity, mine: Hello) -> Result<Self, IdentityError> {
        let config = tls::client(identity, Service::Blob)?;
        let name = server_name(identity.facts().subject.cluster());
        let name = ServerName::try_from(name.clone()).map_err(|_| IdentityError::Name(name))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, mine })
    }

    /// A connection on which things are asked for.
    ///
    /// # Errors
    /// There is none, or not to the host that is expected.
    pub async fn link(&self, address: SocketAddr, expected: Option<&Expected>, by: Instant) -> Result<Link, BulkError> {
        Ok(Link { stream: self.open(address, expected, by).await? })
    }

    /// Fetches a blob or a file into `sink`; returns its length. At most `cap` bytes are taken.
    pub async fn fetch<W: AsyncWrite + Unpin>(
        &self,
        address: SocketAddr,
        expected: Option<&Expected>,
        want: &BulkRequest,
        cap: u64,
        sink: &mut W,
        by: Instant,
    ) -> Result<u64, BulkError> {
        self.link(address, expected, by).await?.fetch(want, cap, sink, by).await
    }

    /// Gives a blob of `length` bytes to a host, which checks it against `digest`; done when it is kept there.
    pub async fn offer<R: AsyncRead + Unpin>(
        &self,
        address: SocketAddr,
        expected: Option<&Expected>,
        (digest, length): (Digest, u64),
        source: &mut R,
        by: Instant,
    ) -> Result<(), BulkError> {
        self.give(address, expected, &BulkRequest::Keep { digest, length }, length, source, by).await
    }

    /// A connection of a migration to its destination, which has agreed; it is for both ways from here on.
    pub async fn migration(
        &self,
        address: SocketAddr,
        expected: Option<&Expected>,
        migration: &MigrationId,
        by: Instant,
    ) -> Result<Outgoing, BulkError> {
        let mut stream = self.open(address, expected, by).await?;
        match ask(&mut stream, &BulkRequest::Migration(migration.clone()), by).await? {
            BulkAnswer::Send => Ok(stream),
            BulkAnswer::Follows(_) | BulkAnswer::Kept => Err(unexpected()),
        }
    }

    /// Gives the destination of a migration the file of `length` bytes that the VM was saved into; done when the QEMU
    /// there reads it.
    pub async fn state<R: AsyncRead + Unpin>(
        &self,
        address: SocketAddr,
        expected: Option<&Expected>,
        (migration, length): (&MigrationId, u64),
        source: &mut R,
        by: Instant,
    ) -> Result<(), BulkError> {
        let request = BulkRequest::State { migration: migration.clone(), length };
        self.give(address, expected, &request, length, source, by).await
    }

    async fn give<R: AsyncRead + Unpin>(
        &self,
        address: SocketAddr,
        expected: Option<&Expected>,
        request: &BulkRequest,
        length: u64,
        source: &mut R,
        by: Instant,
    ) -> Result<(), BulkError> {
        let mut stream = self.open(address, expected, by).await?;
        match ask(&mut stream, request, by).await? {
            BulkAnswer::Kept => return Ok(()),
            BulkAnswer::Send => {}
            BulkAnswer::Follows(_) => return Err(unexpected()),
        }
        pump(source, &mut stream, length, by).await?;
        match answer(&mut stream, by).await? {
            BulkAnswer::Kept => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn open(&self, address: SocketAddr, expected: Option<&Expected>, by: Instant) -> Result<Outgoing, CallError> {
        let unreachable = |why: String| CallError::Unreachable { to: address.to_string(), why };
        let dialling = async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            self.connector.connect(self.name.clone(), tcp).await
        };
        let mut stream = match timeout_at(by, dialling).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable("no answer in time".to_owned())),
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(public_key_of);
        if let Some(expected) = expected
            && !matches!(shown, Some(Ok(ref key)) if *key == expected.key)
        {
            return Err(CallError::WrongKey { to: address, host: expected.host });
        }
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let greeted = hello::introduce(&mut writer, &mut reader, &self.mine, by).await;
        greeted.map_err(|error| CallError::of_hello(address, error))?;
        Ok(stream)
    }
}

/// A connection to the bulk service of another host, which has let this one in.
pub struct Link {
    stream: Outgoing,
}

impl Link {
    /// Asks for something; returns how many bytes follow, and what they are read from. All of them are to be read before
    /// anything else is asked for. Nothing bounds the time of a read.
    ///
    /// # Errors
    /// The connection is broken, or the host refuses, or has more than `cap` bytes to send.
    pub async fn ask(&mut self, want: &BulkRequest, cap: u64, by: Instant) -> Result<(u64, &mut Outgoing), BulkError> {
        match ask(&mut self.stream, want, by).await? {
            BulkAnswer::Follows(length) if length > cap => Err(BulkError::TooLong { length, cap }),
            BulkAnswer::Follows(length) => Ok((length, &mut self.stream)),
            BulkAnswer::Send | BulkAnswer::Kept => Err(unexpected()),
        }
    }

    /// Fetches something into `sink`; returns its length. At most `cap` bytes are taken.
    ///
    /// # Errors
    /// As of [`Link::ask`]; or it breaks off, or is not what was asked for.
    pub async fn fetch<W: AsyncWrite + Unpin>(
        &mut self,
        want: &BulkRequest,
        cap: u64,
        sink: &mut W,
        by: Instant,
    ) -> Result<u64, BulkError> {
        let (length, stream) = self.ask(want, cap, by).await?;
        let found = pump(stream, sink, length, by).await?;
        match want {
            BulkRequest::Blob(wanted) | BulkRequest::Manifest(wanted) if *wanted != found => {
                Err(BulkError::Digest { wanted: *wanted, found })
            }
            _ => Ok(length),
        }
    }
}

/// TLS settings of the bulk service; a client certificate is needed.
pub fn acceptor(identity: &Identity) -> Result<TlsAcceptor, IdentityError> {
    Ok(TlsAcceptor::from(Arc::new(tls::server(identity, &[Service::Blob], false)?)))
}

/// A connection to the bulk service of another host.
pub type Outgoing = client::TlsStream<TcpStream>;

/// A connection the bulk service has taken.
pub type Incoming = server::TlsStream<TcpStream>;

/// The server's side: reads the request.
pub async fn take<R: AsyncRead + Unpin>(reader: &mut R, by: Instant) -> Result<BulkRequest, FrameError> {
    let (payload, _) = call::take_request(reader, SMALL_CAP, Service::Blob.longest(), by).await?;
    match codec::decode_wire(&payload, SMALL_CAP) {
        Ok(BulkRequest::Evidence { path, .. }) if path.len() > PATH_MAX => {
            Err(FrameError::TooLong { len: path.len() as u64, cap: PATH_MAX })
        }
        Ok(request) => Ok(request),
        Err(error) => Err(FrameError::Io(io::Error::new(io::ErrorKind::InvalidData, error))),
    }
}

/// The server's side: answers.
pub async fn put_answer<W: AsyncWrite + Unpin>(writer: &mut W, answer: BulkAnswer) -> Result<(), FrameError> {
    let bytes = codec::encode_wire(&answer, SMALL_CAP).unwrap_or_default();
    call::put_reply(writer, &bytes).await
}

/// Moves exactly `length` bytes, and says what digest they have.
pub async fn pump<R, W>(source: &mut R, sink: &mut W, length: u64, by: Instant) -> Result<Digest, BulkError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut hasher = blake3::Hasher::new();
    // What comes after them is not ours to take.
    let mut source = BufReader::with_capacity(BUFFER, source.take(length));
    pour(&mut source, sink, length, by, |bytes| {
        hasher.update(bytes);
    })
    .await?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Moves exactly `length` bytes, which the other side compares with what it wants.
pub async fn relay<R, W>(source: &mut R, sink: &mut W, length: u64, by: Instant) -> Result<(), BulkError>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    pour(source, sink, length, by, |_| {}).await
}

async fn pour<R, W>(
    source: &mut R,
    sink: &mut W,
    length: u64,
    by: Instant,
    mut seen: impl FnMut(&[u8]),
) -> Result<(), BulkError>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut done = 0;
    while done < length {
        let most = BUFFER.min(usize::try_from(length - done).unwrap_or(usize::MAX));
        let step = async {
            let bytes = source.fill_buf().await?;
            let bytes = &bytes[..bytes.len().min(most)];
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            sink.write_all(bytes).await?;
            seen(bytes);
            let count = bytes.len();
            source.consume(count);
            Ok(count)
        };
        let patience = STALL.min(by.saturating_duration_since(Instant::now()));
        match timeout(patience, step).await {
            Ok(Ok(count)) => done += count as u64,
            Ok(Err(source)) => return Err(BulkError::Broken { done, length, source }),
            Err(_) => return Err(BulkError::Stalled { done, length }),
        }
    }
    match timeout(STALL, sink.flush()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(BulkError::Broken { done, length, source }),
        Err(_) => Err(BulkError::Stalled { done, length }),
    }
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &BulkRequest,
    by: Instant,
) -> Result<BulkAnswer, CallError> {
    call::send_request(stream, &call::encode(request, SMALL_CAP)?, SMALL_CAP, by).await?;
    answer(stream, by).await
}

async fn answer<S: AsyncRead + Unpin>(stream: &mut S, by: Instant) -> Result<BulkAnswer, CallError> {
    match call::next_reply(stream, SMALL_CAP, by).await? {
        Some(reply) => Ok(codec::decode_wire(&reply, SMALL_CAP)?),
        None => Err(CallError::Broken { sent: true, source: FrameError::Closed }),
    }
}

fn unexpected() -> BulkError {
    let report = Report::new(ErrorCode::WireVersion, "the bulk service answered what was not asked");
    CallError::Failed(Box::new(report)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn exactly_the_announced_bytes_move() {
        let by = Instant::now() + Duration::from_secs(20);
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let mut sink = Vec::new();
        let digest = pump(&mut bytes.as_slice(), &mut sink, 150_000, by).await.unwrap();
        assert_eq!(sink, bytes[..150_000]);
        assert_eq!(digest, Digest::of(&bytes[..150_000]));
        let short = pump(&mut &bytes[..10], &mut sink, 11, by).await.unwrap_err();
        assert!(matches!(short, BulkError::Broken { done: 10, length: 11, .. }), "{short}");
        let mut source = bytes.as_slice();
        pump(&mut source, &mut sink, 100_000, by).await.unwrap();
        assert_eq!(source.len(), 100_000, "what comes after them is left");
        sink.clear();
        relay(&mut source, &mut sink, 70_000, by).await.unwrap();
        assert!(sink == bytes[100_000..170_000] && source.len() == 30_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_that_stands_still_is_dropped() {
        let (mut near, _far) = tokio::io::duplex(64);
        let by = Instant::now() + Duration::from_secs(3600);
        let mut sink = Vec::new();
        let stalled = pump(&mut near, &mut sink, 5, by).await.unwrap_err();
        assert!(matches!(stalled, BulkError::Stalled { done: 0, length: 5 }), "{stalled}");
    }
}
