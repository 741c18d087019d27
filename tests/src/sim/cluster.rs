//! The daemon's seam on a simulated host: the real loops take it for the mesh.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use vt_daemon::{
    cluster::{AskError, Cluster, ProposeError},
    control::leads,
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{HostId, RequestId},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    Applied, Command, Replica, Request, State,
    membership::{AWAY, Step, View, next_step},
};

use super::{
    net::{self, Ask, Said, name},
    oracle::Oracle,
};

/// How long one try may take.
const TRY: Duration = Duration::from_secs(2);
/// Before the next.
const AGAIN: Duration = Duration::from_millis(40);

/// A host's way to the cluster.
pub(super) struct Mesh {
    pub(super) replica: Replica,
    pub(super) oracle: Oracle,
}

#[async_trait]
impl Cluster for Mesh {
    fn me(&self) -> HostId {
        self.replica.host()
    }

    fn state(&self) -> Arc<State> {
        self.replica.state()
    }

    fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.replica.watch()
    }

    fn heard_leader(&self) -> Option<(HostId, Duration)> {
        self.replica.heard()
    }

    async fn propose(&self, id: RequestId, command: Command, deadline: Duration) -> Result<Applied, ProposeError> {
        let until = Instant::now() + deadline;
        let request = Request::with_id(id, command);
        self.oracle.asked(&request);
        let mut leader = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ProposeError::TimedOut(deadline));
            }
            let known = leader.take().or_else(|| self.replica.leadership().borrow().leader);
            let said = match known {
                Some(host) if host == self.me() => {
                    self.replica.propose(request.clone(), left.min(TRY)).await.map_or_else(Said::from, Said::Applied)
                }
                Some(host) => {
                    let asked = net::ask(host, &Ask::Propose(Box::new(request.clone())), left.min(TRY)).await;
                    asked.unwrap_or(Said::Elsewhere(None))
                }
                None => Said::Elsewhere(None),
            };
            match said {
                Said::Applied(applied) => {
                    self.oracle.acknowledged(id, &applied);
                    return Ok(applied);
                }
                Said::Rejected(rejected) => return Err(rejected.into()),
                Said::Elsewhere(other) => leader = other.filter(|other| Some(*other) != known),
                _ => {}
            }
            sleep(AGAIN).await;
        }
    }

    async fn ask(&self, host: HostId, request: PeerRequest, deadline: Duration) -> Result<PeerReply, AskError> {
        let PeerRequest::Renew(renew) = request else {
            let report = Report::new(ErrorCode::Internal, "nothing else is asked of another host here");
            return Err(AskError::Refused(Box::new(report)));
        };
        match net::ask(host, &Ask::Renew(renew), deadline).await {
            Ok(Said::Peer(PeerReply::Refused(report))) => Err(AskError::Refused(Box::new(report))),
            Ok(Said::Peer(reply)) => Ok(reply),
            Ok(other) => Err(AskError::Unreachable(format!("an answer to something else: {other:?}"))),
            Err(error) => Err(AskError::Unreachable(error.to_string())),
        }
    }
}

/// The reconciler of memberships: the real policy, once a second, while this host leads.
pub(super) async fn keep_members(replica: Replica, oracle: Oracle, stop: CancellationToken) {
    let mut leading: Option<(u64, Instant)> = None;
    while !stop.is_cancelled() {
        let now = replica.leadership().borrow().clone();
        if now.settled && now.changing_to.is_none() && !now.voters.is_empty() {
            oracle.voters(&now.voters);
        }
        if leads(&now) {
            let since = match leading {
                Some((term, since)) if term == now.term => since,
                _ => Instant::now(),
            };
            leading = Some((now.term, since));
            let view = View::new(&replica.status(), &replica.state(), since.elapsed(), AWAY);
            // What cannot be done now is tried again at the next look.
            let taken = match next_step(&view) {
                Step::Nothing => Ok(()),
                Step::AddLearner(host) => replica.add_learner(host, &name(host)).await,
                Step::RemoveLearner(host) => replica.remove_learner(host).await,
                Step::ChangeVoters(voters) => replica.change_voters(voters).await,
                Step::TransferLeader(host) => replica.transfer_leader(host).await,
            };
            if let Err(error) = taken {
                oracle.note(format!("{} cannot change members: {error}", name(replica.host())));
            }
        } else {
            leading = None;
        }
        sleep(Duration::from_secs(1)).await;
    }
}
