//! The leader's keeping of sessions: renewals of all hosts go into one entry, and silence has its consequences.
//!
//! Renewals that arrive within a short window, or until every live host has asked, are one entry of the log; each is
//! answered when that entry is applied, because only then may its holder count on it. On a host that does not lead
//! the loop answers who does.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::RequestId,
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
        let mut closes: Option<Instant> = None;
        loop {
            let now = leadership.borrow_and_update().clone();
            if !leads(&now) {
                term = None;
                closes = None;
                for pending in batch.drain(..) {
                    let _ = pending.answer.send(PeerReply::NotLeader(now.leader));
                }
            } else if term.as_ref().is_none_or(|(term, _)| *term != now.term) {
                term = Some((now.term, Silence::new(times, now_std(), cluster.heard_leader())));
            }
            let mut look = None;
            if let Some((_, silence)) = &mut term {
                let current = state.borrow_and_update().clone();
                if closes.is_some_and(|at| at <= Instant::now()) || (closes.is_some() && complete(&batch, &current)) {
                    closes = None;
                    renew(&*cluster, std::mem::take(&mut batch), silence).await;
                    continue;
                }
                let (verdicts, next) = silence.decide(sessions(&current), now_std());
                look = next.map(Instant::from_std);
                for verdict in verdicts {
                    // Whatever comes of it is looked at again soon: the state may be ahead of what was decided on.
                    enact(&*cluster, verdict, &current).await;
                    look = Some(Instant::now() + Duration::from_millis(200));
                }
            }
            let wake = [look, closes].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                pending = self.queue.recv() => {
                    let Some(pending) = pending else { return };
                    if let Some(report) = lives_too_long(pending.renew, &times) {
                        let _ = pending.answer.send(PeerReply::Refused(report));
                        continue;
                    }
                    if term.is_some() {
                        closes.get_or_insert_with(|| Instant::now() + WINDOW);
                        batch.push(pending);
                    } else {
                        let _ = pending.answer.send(PeerReply::NotLeader(leadership.borrow().leader));
                    }
                }
                changed = leadership.changed() => if changed.is_err() { return },
                changed = state.changed(), if term.is_some() => if changed.is_err() { return },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }
}

/// Why a session cannot be kept: its host would let VMs run past the moment at which this leader gives them to others.
fn lives_too_long(renew: Renew, times: &SessionTimes) -> Option<Report> {
    let kill = Duration::from_millis(renew.kill_ms);
    (kill + 2 * times.renew > times.expire).then(|| {
        let title = format!(
            "the host kills its VMs after {} ms, too late for the leader, which expires sessions after {} ms",
            renew.kill_ms,
            times.expire.as_millis()
        );
        Report::new(ErrorCode::BadConfig, title).help("give every host of the cluster the same [session] times")
    })
}

/// The runtime's clock, which tests can stop.
fn now_std() -> std::time::Instant {
    Instant::now().into_std()
}

/// The sessions that can fall silent, as the state has them.
pub fn sessions(state: &State) -> Vec<SessionNow> {
    let live = state.hosts.values().filter_map(|host| {
        let session = host.session.as_ref().filter(|session| session.status != SessionStatus::Expired)?;
        let suspect = session.status == SessionStatus::Suspect;
        Some(SessionNow { host: host.id, epoch: session.epoch, incarnation: session.incarnation, suspect })
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
    if batch.is_empty() {
        return;
    }
    let asked = RenewSessions::of(batch.iter().map(|pending| (pending.renew.host, pending.renew.epoch)));
    match cluster.propose(RequestId::random(), asked.clone().into(), DECIDES).await {
        Ok(applied) => {
            let refused = match applied.answer {
                Answer::Renewed { refused } => refused,
                _ => Vec::new(),
            };
            let now = now_std();
            let renewed = asked.renewed(&refused);
            for (host, epoch) in &renewed {
                silence.heard(*host, *epoch, now);
            }
            for pending in batch {
                let reply = if renewed.contains(&(pending.renew.host, pending.renew.epoch)) {
                    PeerReply::Done
                } else {
                    PeerReply::Refused(Report::new(ErrorCode::SessionOver, "the session is over"))
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

async fn enact(cluster: &dyn Cluster, verdict: Verdict, state: &State) {
    // A leader that is cut off reaches its verdicts again and again, and nothing comes of them.
    if let Err(error) = cluster.propose(RequestId::random(), command(verdict, state), DECIDES).await {
        tracing::debug!(%error, ?verdict, "a verdict about a session was not decided");
        return;
    }
    match verdict {
        Verdict::Suspect(host, _) => tracing::warn!(host = state.host_name(host), "a host does not answer"),
        Verdict::Expire(host, _) => {
            tracing::warn!(host = state.host_name(host), "the session of a host ends: what it held is given up");
        }
    }
}

/// What a verdict asks the log for; `state` is the one that it was reached on. A renewal that comes into the log before
/// the verdict makes it void, however the two overtook each other.
pub fn command(verdict: Verdict, state: &State) -> Command {
    let (Verdict::Suspect(host, epoch) | Verdict::Expire(host, epoch)) = verdict;
    let session = state.hosts.get(&host).and_then(|host| host.session.as_ref());
    let renewed = session.map_or(epoch, |session| session.renewed);
    match verdict {
        Verdict::Suspect(..) => SuspectHost { host, epoch, renewed }.into(),
        Verdict::Expire(..) => ExpireSession { host, epoch, renewed }.into(),
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::ids::{Epoch, HostId};
    use vt_sync::command::OpenSession;

    use super::*;
    use crate::{
        control::fake::{Fake, leadership},
        settings::Settings,
    };

    struct Running {
        fake: Arc<Fake>,
        renewals: Renewals,
        leadership: watch::Sender<Leadership>,
        _stop: tokio_util::sync::DropGuard,
    }

    fn run(hosts: u64, leads: bool) -> Running {
        let fake = Fake::new(hosts);
        let (renewals, keeper) = renewals();
        let (leadership, led) = watch::channel(leadership(leads, 1));
        let stop = CancellationToken::new();
        tokio::spawn(keeper.run(fake.clone(), led, Settings::default().session, stop.clone()));
        Running { fake, renewals, leadership, _stop: stop.drop_guard() }
    }

    impl Running {
        async fn renew(&self, host: u64) -> PeerReply {
            let renew = Renew { host: HostId(host), epoch: self.fake.epoch(host), kill_ms: 8000 };
            self.renewals.renew(renew).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn renewals_of_all_hosts_are_one_entry() {
        let running = run(3, true);
        let began = Instant::now();
        let (a, b, c) = tokio::join!(running.renew(1), running.renew(2), running.renew(3));
        assert_eq!([a, b, c], [PeerReply::Done, PeerReply::Done, PeerReply::Done]);
        assert_eq!(running.fake.count("RenewSessions"), 1);
        assert!(began.elapsed() < WINDOW, "all had asked: nobody was waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_does_not_ask_holds_up_the_others_for_a_window_at_most() {
        let running = run(3, true);
        let began = Instant::now();
        let (a, b) = tokio::join!(running.renew(1), running.renew(2));
        assert_eq!([a, b], [PeerReply::Done, PeerReply::Done]);
        assert_eq!((running.fake.count("RenewSessions"), began.elapsed()), (1, WINDOW));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_of_another_epoch_is_refused_and_the_others_are_renewed() {
        let running = run(2, true);
        let old = Renew { host: HostId(2), epoch: Epoch(1), kill_ms: 8000 };
        let (good, refused) = tokio::join!(running.renew(1), running.renewals.renew(old));
        assert_eq!(good, PeerReply::Done);
        assert!(matches!(&refused, PeerReply::Refused(report) if report.code == ErrorCode::SessionOver), "{refused:?}");
    }

    /// Its daemon before may have asked as well, and be dead by now.
    #[tokio::test(start_paused = true)]
    async fn a_host_that_asks_under_two_epochs_keeps_the_later_session() {
        let running = run(2, true);
        let old = Renew { host: HostId(2), epoch: running.fake.epoch(2), kill_ms: 8000 };
        let again = OpenSession { host: HostId(2), incarnation: 77, resume: false };
        running.fake.apply(again);
        let (refused, good) = tokio::join!(running.renewals.renew(old), running.renew(2));
        assert_eq!(good, PeerReply::Done);
        assert!(matches!(&refused, PeerReply::Refused(report) if report.code == ErrorCode::SessionOver), "{refused:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_does_not_lead_says_who_does() {
        let running = run(2, false);
        assert_eq!(running.renew(1).await, PeerReply::NotLeader(Some(HostId(2))));
        // A leader that loses its place answers what waits.
        running.leadership.send_replace(leadership(true, 2));
        running.fake.decides.send_replace(false);
        // The clock of this test stands still until the loop has nothing more to do.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let waiting = running.renew(1);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(WINDOW / 2, &mut waiting).await.is_err());
        running.leadership.send_replace(leadership(false, 3));
        assert_eq!(waiting.await, PeerReply::NotLeader(Some(HostId(2))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_whose_guards_would_kill_too_late_is_not_renewed() {
        let running = run(1, true);
        let renew = |kill_ms| Renew { host: HostId(1), epoch: running.fake.epoch(1), kill_ms };
        assert_eq!(running.renewals.renew(renew(10_000)).await, PeerReply::Done);
        let refused = running.renewals.renew(renew(10_001)).await;
        assert!(matches!(&refused, PeerReply::Refused(report) if report.code == ErrorCode::BadConfig), "{refused:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_is_not_decided_is_not_acknowledged() {
        let running = run(1, true);
        running.fake.decides.send_replace(false);
        let refused = running.renew(1).await;
        assert!(matches!(&refused, PeerReply::Refused(report) if report.retryable), "{refused:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_makes_a_host_suspect_then_ends_its_session_and_a_word_in_time_takes_it_back() {
        let running = run(2, true);
        let mut watch = running.fake.watch();
        let speaking = async {
            loop {
                running.renew(1).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let began = Instant::now();
        let watching = async {
            let is = |status: SessionStatus| {
                let fake = running.fake.clone();
                move |_: &Arc<State>| fake.status(2) == status
            };
            watch.wait_for(is(SessionStatus::Suspect)).await.unwrap();
            assert!(began.elapsed() >= Duration::from_secs(4), "a new leader gives time to find it");
            running.renew(2).await;
            watch.wait_for(is(SessionStatus::Live)).await.unwrap();
            let heard = Instant::now();
            watch.wait_for(is(SessionStatus::Suspect)).await.unwrap();
            assert!(heard.elapsed() >= Duration::from_secs(2));
            watch.wait_for(is(SessionStatus::Expired)).await.unwrap();
            assert!(heard.elapsed() >= Duration::from_secs(12), "{:?}", heard.elapsed());
        };
        tokio::select! {
            () = speaking => unreachable!("it speaks for ever"),
            () = watching => {}
        }
        assert_eq!(running.fake.status(1), SessionStatus::Live);
        assert_eq!(running.fake.count("ExpireSession"), 1);
    }
}
