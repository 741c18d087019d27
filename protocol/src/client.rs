//! The client of a daemon's admin service: over its Unix socket, or over QUIC with a client certificate.
//!
//! vtctl uses it, and so do tests. Over the socket every call is a connection of its own: that is cheap, and a stream
//! that is watched holds up nobody. Over QUIC one connection is kept and every call is a stream.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::call::{self, CallError, Replies};
use crate::codec;
use crate::endpoint::{self, CloseCode, EndpointError, MeshEndpoint};
use crate::hello::{self, Hello};
use crate::identity::Identity;
use crate::service::Service;
use crate::token::CaDigest;

const CAP: usize = Service::Admin.cap();

/// A client of one daemon.
#[derive(Debug)]
pub struct Client {
    way: Way,
    mine: Hello,
    theirs: Hello,
}

#[derive(Debug)]
enum Way {
    Socket(PathBuf),
    Quic { endpoint: Box<MeshEndpoint>, connection: quinn::Connection },
}

impl Client {
    /// Reaches the daemon behind a Unix socket, claimed or not.
    pub async fn local(socket: &Path, by: Instant) -> Result<Client, CallError> {
        let mine = Hello::of(None, None, rand::random());
        let (_, theirs) = open(socket, &mine, by).await?;
        Ok(Client { way: Way::Socket(socket.to_owned()), mine, theirs })
    }

    /// Reaches a daemon by address, with a client certificate of its cluster.
    pub async fn remote(address: SocketAddr, identity: Arc<Identity>, by: Instant) -> Result<Client, CallError> {
        let any = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let mine = Hello::of(Some(identity.facts().subject.cluster()), None, rand::random());
        let endpoint = MeshEndpoint::dial_only(any, identity).map_err(|error| match error {
            EndpointError::Bind { source, .. } => {
                CallError::Unreachable { to: address.to_string(), why: source.to_string() }
            }
            other => CallError::Unreachable { to: address.to_string(), why: other.to_string() },
        })?;
        let (connection, welcome) = endpoint.connect(address, Service::Admin, &mine, by).await?;
        Ok(Client { way: Way::Quic { endpoint: Box::new(endpoint), connection }, mine, theirs: welcome.hello })
    }

    /// The digest of the CA that signed for the daemon; none over a socket.
    pub fn authority(&self) -> Option<CaDigest> {
        match &self.way {
            Way::Socket(_) => None,
            Way::Quic { connection, .. } => endpoint::peer_authority(connection),
        }
    }

    /// Who answered.
    pub fn daemon(&self) -> &Hello {
        &self.theirs
    }

    /// One request, one reply.
    pub async fn call<Req, Rep>(&self, request: &Req, by: Instant) -> Result<Rep, CallError>
    where
        Req: Serialize,
        Rep: DeserializeOwned,
    {
        let payload = call::encode(request, CAP)?;
        let reply = match &self.way {
            Way::Socket(socket) => {
                let (mut stream, _) = open(socket, &self.mine, by).await?;
                let (mut reader, mut writer) = stream.split();
                call::ask(&mut writer, &mut reader, &payload, CAP, by).await?
            }
            Way::Quic { connection, .. } => {
                let (mut send, mut receive) = open_stream(connection, by).await?;
                call::ask(&mut send, &mut receive, &payload, CAP, by).await?
            }
        };
        Ok(codec::decode_wire(&reply, CAP)?)
    }

    /// One request, many replies. `by` bounds the sending; each reply has its own bound in [`Replies::next`].
    pub async fn stream<Req, Rep>(&self, request: &Req, by: Instant) -> Result<Replies<Rep>, CallError>
    where
        Req: Serialize,
        Rep: DeserializeOwned,
    {
        let payload = call::encode(request, CAP)?;
        match &self.way {
            Way::Socket(socket) => {
                let (stream, _) = open(socket, &self.mine, by).await?;
                let (reader, mut writer) = stream.into_split();
                call::send_request(&mut writer, &payload, CAP, by).await?;
                Ok(Replies::new(reader, writer, CAP))
            }
            Way::Quic { connection, .. } => {
                let (mut send, receive) = open_stream(connection, by).await?;
                call::send_request(&mut send, &payload, CAP, by).await?;
                Ok(Replies::new(receive, send, CAP))
            }
        }
    }

    /// Says goodbye; the other side need not wait for the idle time.
    pub async fn close(self) {
        if let Way::Quic { endpoint, connection } = self.way {
            connection.close(CloseCode::Done.into(), b"done");
            endpoint.close(std::time::Duration::from_millis(500)).await;
        }
    }
}

async fn open(socket: &Path, mine: &Hello, by: Instant) -> Result<(UnixStream, Hello), CallError> {
    let unreachable = |why: String| CallError::Unreachable { to: socket.display().to_string(), why };
    let mut stream = match timeout_at(by, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable("no answer in time".to_owned())),
    };
    let (mut reader, mut writer) = stream.split();
    let welcome = hello::introduce(&mut writer, &mut reader, mine, by).await;
    let welcome = welcome.map_err(|error| CallError::of_hello(socket.display(), error))?;
    Ok((stream, welcome.hello))
}

/// Opens a stream for one request on a connection that has said hello.
pub async fn open_stream(
    connection: &quinn::Connection,
    by: Instant,
) -> Result<(quinn::SendStream, quinn::RecvStream), CallError> {
    match timeout_at(by, connection.open_bi()).await {
        Ok(Ok(streams)) => Ok(streams),
        Ok(Err(error)) => {
            Err(CallError::Unreachable { to: connection.remote_address().to_string(), why: error.to_string() })
        }
        Err(_) => Err(CallError::Deadline { sent: false }),
    }
}
