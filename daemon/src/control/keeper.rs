//! The leader's keeping of sessions: renewals of all hosts go into one entry, and silence has its consequences.
//!
//! Renewals that arrive within a short window, or until every live host has asked, are one entry of the log; each is
//! answered when that entry is applied, because only then may its holder count on it. On a host that does not lead
//! the loop answers who does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant as TokioInstant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Epoch, HostId, RequestId},
    peer::{PeerReply, Renew},
};
use vt_sync::{
    Answer, Command, State,
    command::{ExpireSession, RenewSessions, SuspectHost},
    raft::Leadership,
    state::SessionStatus,
};

use super::{
    leads,
    silence::{SessionNow, Silence, Verdict},
};
use crate::{cluster::Cluster, settings::SessionTimes};

/// How long the first renewal of a batch waits for others.
const WINDOW: Duration = Duration::from_millis(300);
/// How long an entry may take to be applied.
const DECIDES: Duration = Duration::from_secs(2);
/// Renewals that wait at the same time.
const QUEUE: usize = 256;

/// Where renewals are handed in.
#[derive(Debug, Clone)]
pub struct Renewals(mpsc::Sender<Pending>);

#[derive(Debug)]
struct Pending {
    renew: Renew,
    answer: oneshot::Sender<PeerReply>,
}

/// The loop's end of [`Renewals`].
#[derive(Debug)]
pub struct Keeper {
    queue: mpsc::Receiver<Pending>,
}

/// Both ends.
pub fn renewals() -> (Renewals, Keeper) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (Renewals(sender), Keeper { queue })
}

impl Renewals {
    /// Renews a session; answered when that is applied, or when it is known not to be.
    pub async fn renew(&self, renew: Renew) -> PeerReply {
        let (answer, answered) = oneshot::channel();
        let stopping = || PeerReply::Refused(Report::new(ErrorCode::Unreachable, "the daemon is stopping").retryable());
        if self.0.send(Pending { renew, answer }).await.is_err() {
            return stopping();
        }
        answered.await.unwrap_or_else(|_| stopping())
    }
}

impl Keeper {
    /// Keeps sessions while this host leads, until `stop`.
    pub async fn run(
        mut self,
        cluster: Arc<dyn Cluster>,
        mut leadership: watch::Receiver<Leadership>,
        times: SessionTimes,
        stop: CancellationToken,
    ) {
        let mut state = cluster.watch();
        let mut term: Option<(u64, Silence)> = None;
        let mut batch: Vec<Pending> = Vec::new();
        let mut closes: Option<TokioInstant> = None;
        loop {
            let now = leadership.borrow_and_update().clone();
            if !leads(&now) {
                term = None;
                closes = None;
                for pending in batch.drain(..) {
                    let _ = pending.answer.send(PeerReply::NotLeader(now.leader));
                }
            } else if term.as_ref().is_none_or(|(term, _)| *term != now.term) {
                term = Some((now.term, Silence::new(times, Instant::now())));
            }
            let mut look = None;
            if let Some((_, silence)) = &mut term {
                let current = state.borrow_and_update().clone();
                if closes.is_some_and(|at| at <= TokioInstant::now())
                    || (closes.is_some() && complete(&batch, &current))
                {
                    closes = None;
                    renew(&*cluster, std::mem::take(&mut batch), silence).await;
                    continue;
                }
                let (verdicts, next) = silence.decide(sessions(&current), Instant::now());
                look = next.map(TokioInstant::from_std);
                for verdict in verdicts {
                    // Whatever comes of it is looked at again soon: the state may be ahead of what was decided on.
                    enact(&*cluster, verdict).await;
                    look = Some(TokioInstant::now() + Duration::from_millis(200));
                }
            }
            let wake = [look, closes].into_iter().flatten().min();
            tokio::select! {
                () = stop.cancelled() => return,
                pending = self.queue.recv() => {
                    let Some(pending) = pending else { return };
                    if term.is_some() {
                        closes.get_or_insert_with(|| TokioInstant::now() + WINDOW);
                        batch.push(pending);
                    } else {
                        let _ = pending.answer.send(PeerReply::NotLeader(leadership.borrow().leader));
                    }
                }
                changed = leadership.changed() => if changed.is_err() { return },
                changed = state.changed(), if term.is_some() => if changed.is_err() { return },
                () = sleep_until(wake.unwrap_or_else(TokioInstant::now)), if wake.is_some() => {}
            }
        }
    }
}

fn sessions(state: &State) -> Vec<SessionNow> {
    let live = state.hosts.values().filter_map(|host| {
        let session = host.session.as_ref().filter(|session| session.status != SessionStatus::Expired)?;
        let suspect = session.status == SessionStatus::Suspect;
        Some(SessionNow { host: host.id, epoch: session.epoch, suspect })
    });
    live.collect()
}

/// Whether every live host has asked.
fn complete(batch: &[Pending], state: &State) -> bool {
    let mut live = sessions(state).into_iter().filter(|session| !session.suspect);
    live.all(|session| batch.iter().any(|pending| pending.renew.host == session.host))
}

async fn renew(cluster: &dyn Cluster, mut batch: Vec<Pending>, silence: &mut Silence) {
    batch.retain(|pending| !pending.answer.is_closed());
    let mut asked: Vec<(HostId, Epoch)> =
        batch.iter().map(|pending| (pending.renew.host, pending.renew.epoch)).collect();
    asked.sort_unstable();
    asked.dedup();
    if asked.is_empty() {
        return;
    }
    let command = Command::from(RenewSessions { sessions: asked.clone() });
    match cluster.propose(RequestId::random(), command, DECIDES).await {
        Ok(applied) => {
            let refused = match applied.answer {
                Answer::Renewed { refused } => refused,
                _ => Vec::new(),
            };
            let now = Instant::now();
            for (host, epoch) in asked.iter().filter(|(host, _)| !refused.contains(host)) {
                silence.heard(*host, *epoch, now);
            }
            for pending in batch {
                let reply = if refused.contains(&pending.renew.host) {
                    PeerReply::Refused(Report::new(ErrorCode::SessionOver, "the session is over"))
                } else {
                    PeerReply::Done
                };
                let _ = pending.answer.send(reply);
            }
        }
        Err(error) => {
            tracing::debug!(%error, "a renewal of sessions was not decided");
            let report = Report::from(error);
            for pending in batch {
                let _ = pending.answer.send(PeerReply::Refused(report.clone().retryable()));
            }
        }
    }
}

async fn enact(cluster: &dyn Cluster, verdict: Verdict) {
    let name = |host| cluster.state().host_name(host);
    let command: Command = match verdict {
        Verdict::Suspect(host, epoch) => {
            tracing::warn!(host = name(host), "a host does not answer");
            SuspectHost { host, epoch }.into()
        }
        Verdict::Expire(host, epoch) => {
            tracing::warn!(host = name(host), "the session of a host ends: what it held is given up");
            ExpireSession { host, epoch }.into()
        }
    };
    if let Err(error) = cluster.propose(RequestId::random(), command, DECIDES).await {
        tracing::debug!(%error, "a verdict about a session was not decided");
    }
}
