//! How a host has something decided: it proposes where it leads, and forwards to whoever leads elsewhere.
//!
//! A request carries an id, so that trying again never applies it twice. Every try and the whole are bounded in time.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use vt_protocol::{
    codec,
    error::{ErrorCode, Report},
    frame::MESSAGE_CAP,
    ids::HostId,
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{Applied, Rejected, Request, raft};

use super::Host;
use crate::cluster::{Cluster, ProposeError};

/// Longest single try to have another host propose.
const FORWARD: Duration = Duration::from_secs(5);
/// Pauses between tries of a proposal.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(400);

impl Host {
    /// Has whoever leads apply `request`, asking again as leadership moves, until it is decided or `deadline` has passed.
    pub(super) async fn propose_until_decided(
        &self,
        request: Request,
        deadline: Duration,
    ) -> Result<Applied, ProposeError> {
        let until = Instant::now() + deadline;
        let mut leadership = self.leadership.clone();
        let mut pause = RETRY_MIN;
        let mut asked = false;
        loop {
            if self.stop.is_cancelled() {
                return Err(ProposeError::Stopping);
            }
            let leader = leadership.borrow_and_update().leader;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let late = asked && self.consensus().quorum;
                return Err(if late { ProposeError::TimedOut(deadline) } else { ProposeError::NoQuorum });
            }
            if let Some(leader) = leader {
                let moved = async {
                    while leadership.changed().await.is_ok() {
                        if leadership.borrow_and_update().leader != Some(leader) {
                            return;
                        }
                    }
                    std::future::pending::<()>().await;
                };
                let outcome = tokio::select! {
                    biased;
                    outcome = self.propose_once(leader, &request, left) => outcome,
                    () = moved => None,
                    () = self.stop.cancelled() => Some(Err(ProposeError::Stopping)),
                };
                match outcome {
                    Some(Ok(applied)) => {
                        // A caller reads its own writes. That it took effect is true even where this takes too long.
                        let left = until.saturating_duration_since(Instant::now());
                        if let Err(error) = self.replica.wait_applied(applied.index, left).await {
                            tracing::debug!(%error, "this host has not applied yet what it proposed");
                        }
                        return Ok(applied);
                    }
                    Some(Err(error)) => return Err(error),
                    None => asked = true,
                }
            }
            // Somebody else may lead any moment; without news there is a pause.
            let wait = timeout_at(until.min(Instant::now() + pause), leadership.changed()).await;
            if matches!(wait, Ok(Err(_))) {
                return Err(ProposeError::Stopping);
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Proposes for another host, where this one leads.
    pub(crate) async fn propose_for(&self, from: HostId, bytes: &[u8], by: Instant) -> PeerReply {
        let request: Request = match codec::decode_wire(bytes, MESSAGE_CAP) {
            Ok(request) => request,
            Err(error) => {
                let report = Report::new(ErrorCode::WireVersion, "the proposal was not understood");
                return PeerReply::Refused(report.with("from", from.to_string()).caused_by(&error));
            }
        };
        let left = by.saturating_duration_since(Instant::now()).min(FORWARD);
        let outcome: Result<Applied, Rejected> = match self.replica.propose(request, left).await {
            Ok(applied) => Ok(applied),
            Err(raft::ProposeError::Rejected(rejected)) => Err(rejected),
            Err(raft::ProposeError::NotLeader { leader }) => return PeerReply::NotLeader(leader),
            Err(error @ raft::ProposeError::TooLarge { .. }) => {
                Err(Rejected::new(ErrorCode::TooLarge, error.to_string()))
            }
            Err(error) => {
                return PeerReply::Refused(Report::new(ErrorCode::DeadlinePassed, error.to_string()).retryable());
            }
        };
        match codec::encode_wire(&outcome, MESSAGE_CAP) {
            Ok(bytes) => PeerReply::Proposed(bytes),
            Err(error) => {
                PeerReply::Refused(Report::new(ErrorCode::Internal, "the outcome cannot be sent").caused_by(&error))
            }
        }
    }

    /// One try to have `request` applied; `None`: try again.
    async fn propose_once(
        &self,
        leader: HostId,
        request: &Request,
        left: Duration,
    ) -> Option<Result<Applied, ProposeError>> {
        if leader == self.me() {
            return match self.replica.propose(request.clone(), left).await {
                Ok(applied) => Some(Ok(applied)),
                Err(raft::ProposeError::Rejected(rejected)) => Some(Err(rejected.into())),
                Err(error @ raft::ProposeError::TooLarge { .. }) => {
                    Some(Err(Rejected::new(ErrorCode::TooLarge, error.to_string()).into()))
                }
                Err(raft::ProposeError::Stopped(_)) => Some(Err(ProposeError::Stopping)),
                Err(error) => {
                    tracing::debug!(%error, "a proposal is tried again");
                    None
                }
            };
        }
        let bytes = match codec::encode_wire(request, MESSAGE_CAP) {
            Ok(bytes) => bytes,
            Err(error) => return Some(Err(Rejected::new(ErrorCode::TooLarge, error.to_string()).into())),
        };
        let by = Instant::now() + left.min(FORWARD);
        match self.peers.peer(leader, &PeerRequest::Propose(bytes), by).await {
            Ok(PeerReply::Proposed(bytes)) => {
                match codec::decode_wire::<Result<Applied, Rejected>>(&bytes, MESSAGE_CAP) {
                    Ok(outcome) => Some(outcome.map_err(Into::into)),
                    Err(error) => Some(Err(Rejected::new(ErrorCode::WireVersion, error.to_string()).into())),
                }
            }
            Ok(other) => {
                tracing::debug!(?other, "a forwarded proposal is tried again");
                None
            }
            Err(error) => {
                tracing::debug!(%error, "a forwarded proposal is tried again");
                None
            }
        }
    }
}
