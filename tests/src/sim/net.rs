//! Calls between simulated hosts: one connection, one request, one answer.

use std::{io, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use turmoil::net::TcpStream;
use vt_protocol::{
    codec,
    ids::HostId,
    peer::{PeerReply, Renew},
};
use vt_sync::{Applied, ProposeError, RaftTransport, Rejected, Request, Unreachable};

/// The port of every host.
pub const PORT: u16 = 7465;
const CAP: usize = 16 << 20;

/// Asked of a host.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// A message between replicas.
    Raft(HostId, Vec<u8>),
    /// A client's request.
    Propose(Box<Request>),
    /// A client's read of a setting, which must be current.
    Read(String),
    /// A session is to be renewed.
    Renew(Renew),
}

/// Said in answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// To a message between replicas.
    Raft(Vec<u8>),
    /// The request took effect.
    Applied(Applied),
    /// The state refused it.
    Rejected(Rejected),
    /// The setting, as it is.
    Value(Option<String>),
    /// To what a daemon asked.
    Peer(PeerReply),
    /// Try elsewhere, or again.
    Elsewhere(Option<HostId>),
}

impl From<ProposeError> for Said {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Rejected(rejected) => Self::Rejected(rejected),
            ProposeError::NotLeader { leader } => Self::Elsewhere(leader),
            _ => Self::Elsewhere(None),
        }
    }
}

/// The name of a host in the simulated network.
pub fn name(host: HostId) -> String {
    format!("host{}", host.0)
}

/// Writes one message.
///
/// # Errors
/// The connection broke.
pub async fn send<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let bytes = codec::encode_wire(message, CAP).map_err(io::Error::other)?;
    stream.write_u32(u32::try_from(bytes.len()).map_err(io::Error::other)?).await?;
    stream.write_all(&bytes).await
}

/// Reads one message.
///
/// # Errors
/// The connection broke, or what came is no message.
pub async fn receive<T: for<'d> Deserialize<'d>>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let len = stream.read_u32().await? as usize;
    if len > CAP {
        return Err(io::Error::other("the message is too long"));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await?;
    codec::decode_wire(&bytes, CAP).map_err(io::Error::other)
}

/// Asks a host.
///
/// # Errors
/// No answer within the deadline.
pub async fn ask(host: HostId, ask: &Ask, deadline: Duration) -> io::Result<Said> {
    let call = async {
        let mut stream = TcpStream::connect((name(host), PORT)).await?;
        send(&mut stream, ask).await?;
        receive(&mut stream).await
    };
    tokio::time::timeout(deadline, call).await.map_err(io::Error::other)?
}

/// The transport of a replica.
pub struct Link {
    /// This host.
    pub me: HostId,
}

#[async_trait]
impl RaftTransport for Link {
    async fn call(&self, target: HostId, request: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, Unreachable> {
        match ask(target, &Ask::Raft(self.me, request), deadline).await {
            Ok(Said::Raft(answer)) => Ok(answer),
            Ok(other) => Err(Unreachable(format!("an answer to something else: {other:?}"))),
            Err(error) => Err(Unreachable(error.to_string())),
        }
    }
}
