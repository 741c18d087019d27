//! openraft's network over a transport that the daemon, or a simulator, provides.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use openraft::{
    BasicNode, OptionalSend,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable as RaftUnreachable},
    network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use vt_protocol::ids::HostId;

use super::{
    types::{Snapshot, SnapshotData, TypeConfig, Vote},
    wire::{self, Ask, PART_BYTES, Part, Reply},
};

/// A host could not be asked, or did not answer in time.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// Carries a message to another replica and its answer back.
#[async_trait]
pub trait RaftTransport: Send + Sync + 'static {
    /// Calls [`super::Replica::handle`] of `target` with `request`.
    ///
    /// # Errors
    /// No answer within `deadline`.
    async fn call(&self, target: HostId, request: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, Unreachable>;
}

/// Makes a client for each peer.
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn RaftTransport>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Peer {
        Peer { transport: Arc::clone(&self.transport), target: HostId(target) }
    }
}

/// A client of one peer.
pub(crate) struct Peer {
    transport: Arc<dyn RaftTransport>,
    target: HostId,
}

/// Heartbeats that sending entries may take.
const ENTRY_BEATS: u32 = 8;

type RpcError = RPCError<TypeConfig>;

impl Peer {
    async fn call(&self, ask: &Ask, deadline: Duration) -> Result<Reply, RpcError> {
        let request = wire::encode(ask).map_err(|error| NetworkError::new(&error))?;
        let answer = tokio::time::timeout(deadline, self.transport.call(self.target, request, deadline)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(RaftUnreachable::new(&error).into()),
            Err(_) => return Err(RaftUnreachable::from_string("no answer in time").into()),
        };
        match wire::decode(&answer).map_err(|error| NetworkError::new(&error))? {
            Reply::Refused(why) => Err(RaftUnreachable::from_string(why).into()),
            reply => Ok(reply),
        }
    }
}

fn odd(reply: &Reply) -> RpcError {
    let text = format!("{reply:?}");
    NetworkError::from_string(format!("an answer to something else: {}", text.chars().take(80).collect::<String>()))
        .into()
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        // openraft allows one heartbeat. Entries may need longer on a slow disk or line, and heartbeats have their own client.
        let beats = if rpc.entries.is_empty() { 1 } else { ENTRY_BEATS };
        match self.call(&Ask::Append(rpc), option.hard_ttl() * beats).await? {
            Reply::Append(reply) => Ok(reply),
            other => Err(odd(&other)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.call(&Ask::Vote(rpc), option.hard_ttl()).await? {
            Reply::Vote(reply) => Ok(reply),
            other => Err(odd(&other)),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.call(&Ask::PreVote(rpc), option.hard_ttl()).await? {
            Reply::Vote(reply) => Ok(reply),
            other => Err(odd(&other)),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        match self.call(&Ask::TransferLeader(rpc), option.hard_ttl()).await? {
            Reply::TransferLeader(reply) => Ok(reply),
            other => Err(odd(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sending = self.send_snapshot(vote, snapshot, option);
        let (sending, cancel) = (std::pin::pin!(sending), std::pin::pin!(cancel));
        match futures_util::future::select(sending, cancel).await {
            futures_util::future::Either::Left((sent, _)) => sent,
            futures_util::future::Either::Right((closed, _)) => Err(closed.into()),
        }
    }
}

impl Peer {
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let bytes = snapshot.snapshot;
        let digest = *blake3::hash(&bytes).as_bytes();
        let total = bytes.len() as u64;
        let mut offset = 0;
        // The receiver may ask from the beginning once more, after a restart; no honest one needs more than this.
        let rounds = 4 * (bytes.len() / PART_BYTES + 2);
        for _ in 0..rounds {
            let end = bytes.len().min(offset + PART_BYTES);
            let part = Part {
                vote,
                meta: snapshot.meta.clone(),
                digest,
                total,
                offset: offset as u64,
                bytes: bytes[offset..end].to_vec(),
            };
            match self.call(&Ask::Snapshot(part), option.hard_ttl()).await? {
                Reply::Snapshot(reply) => return Ok(reply),
                Reply::SnapshotNext(next) => {
                    offset = usize::try_from(next).unwrap_or(usize::MAX).min(bytes.len());
                }
                other => return Err(odd(&other).into()),
            }
        }
        Err(NetworkError::from_string("the receiver never has enough of the snapshot").into())
    }
}
