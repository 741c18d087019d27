//! This host's own session: opened when the daemon starts, renewed every second, opened anew after it was lost.
//!
//! A renewal counts from before it was sent, on CLOCK_BOOTTIME, and only once its commit is acknowledged: then every
//! guard of this host is extended from that time. A session that is refused is over: what it held is given up before a
//! new one is opened.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    error::ErrorCode,
    ids::{Epoch, HostId, RequestId},
    peer::{PeerReply, PeerRequest, Renew},
};
use vt_sync::{Answer, Command, command::OpenSession, raft::Leadership};

use super::keeper::Renewals;
use crate::{
    cluster::Cluster,
    guard::clock::{BootTime, Clock},
    settings::SessionTimes,
};

/// How long an entry may take to be applied before it is asked for again.
const DECIDES: Duration = Duration::from_secs(5);
/// Pause after a renewal that did not get through.
const AGAIN: Duration = Duration::from_millis(200);

/// The session as this host holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its epoch.
    pub epoch: Epoch,
    /// From when it counts.
    pub since: BootTime,
    /// The entry that opened or resumed it. A state that is older may still show what was given up since.
    pub opened: u64,
}

/// What hangs from a session.
#[async_trait]
pub trait Holdings: Send + Sync + 'static {
    /// The session is over: stop every VM and party of this host, and return when they are gone.
    async fn lost(&self);
}

/// Keeps the session until `stop`.
pub struct Session {
    /// The cluster.
    pub cluster: Arc<dyn Cluster>,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// The way to renew where this host leads.
    pub local: Renewals,
    /// What hangs from it.
    pub holdings: Arc<dyn Holdings>,
    /// This start of the daemon.
    pub incarnation: u64,
    /// Times.
    pub times: SessionTimes,
    /// This host's clock.
    pub clock: Clock,
    /// Told to renew at once.
    pub now: Arc<Notify>,
    /// Told at every renewal. Who extends guards follows it, and holds up no renewal.
    pub held: watch::Sender<Option<Held>>,
}

/// What became of a renewal.
enum Renewal {
    Done,
    Over,
    /// It is not known, or nobody decides at the moment.
    Unheard(String),
}

impl Session {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(self) {
        let mut resume = true;
        loop {
            let Held { epoch, mut since, opened } = self.open(resume).await;
            // It may have taken a while to hear of it: what is as old as that is no ground to let anything run.
            let took = (self.clock)().since(since);
            let mut fresh = took <= self.times.renew;
            // The leader counts from when the session was opened, which may be long before this host was told.
            let mut rest = self.times.renew.saturating_sub(took);
            tracing::info!(%epoch, resume, "this host has its session");
            let mut unheard: u32 = 0;
            loop {
                if fresh {
                    self.held.send_replace(Some(Held { epoch, since, opened }));
                    tokio::select! {
                        biased;
                        () = sleep(rest) => {}
                        () = self.now.notified() => {}
                    }
                }
                // Whoever is answered together renews together: one entry for all.
                rest = self.times.renew;
                let renewed = loop {
                    let noted = (self.clock)();
                    match self.renew(epoch).await {
                        Renewal::Done => break Some(noted),
                        Renewal::Over => break None,
                        Renewal::Unheard(why) => {
                            unheard += 1;
                            if unheard == 3 {
                                tracing::warn!(why, "the session of this host is not renewed");
                            }
                            sleep(AGAIN).await;
                        }
                    }
                };
                match renewed {
                    Some(noted) => {
                        if unheard >= 3 {
                            tracing::info!(tries = unheard, "the session of this host is renewed again");
                        }
                        unheard = 0;
                        (since, fresh) = (noted, true);
                    }
                    None => break,
                }
            }
            tracing::warn!(%epoch, "the session of this host is over: what it held is given up");
            self.held.send_replace(None);
            self.holdings.lost().await;
            resume = false;
        }
    }

    async fn open(&self, resume: bool) -> Held {
        let host = self.cluster.me();
        // One id for all tries: a lost answer must not open two sessions.
        let id = RequestId::random();
        let mut refused = None;
        // Before the first try: its entry may have been applied long before a later try is told of it.
        let since = (self.clock)();
        loop {
            let command = Command::from(OpenSession { host, incarnation: self.incarnation, resume });
            match self.cluster.propose(id, command, DECIDES).await {
                Ok(applied) => {
                    if let Answer::Epoch(epoch) = applied.answer {
                        return Held { epoch, since, opened: applied.index };
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    if refused.as_ref() != Some(&text) {
                        tracing::info!(%error, "this host has no session yet");
                        refused = Some(text);
                    }
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn renew(&self, epoch: Epoch) -> Renewal {
        let (host, kill_ms) = (self.cluster.me(), self.times.kill.as_millis() as u64);
        let mut leadership = self.leadership.clone();
        let leader = leadership.borrow_and_update().leader;
        let Some(leader) = leader else {
            // Nobody to ask: wait for one to appear.
            let _ = timeout(self.times.renew, leadership.changed()).await;
            return Renewal::Unheard("no host leads".to_owned());
        };
        let asked = self.ask(leader, Renew { host, epoch, kill_ms });
        let moved = async {
            while leadership.changed().await.is_ok() {
                if leadership.borrow_and_update().leader != Some(leader) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            renewal = asked => renewal,
            // The one who was asked leads no more.
            () = moved => Renewal::Unheard("another host leads".to_owned()),
        }
    }

    async fn ask(&self, leader: HostId, renew: Renew) -> Renewal {
        let patience = 2 * self.times.renew;
        let reply = if leader == self.cluster.me() {
            match timeout(patience, self.local.renew(renew)).await {
                Ok(PeerReply::Refused(report)) => Err(report),
                Ok(reply) => Ok(reply),
                Err(_) => return Renewal::Unheard("no answer".to_owned()),
            }
        } else {
            self.cluster.ask(leader, PeerRequest::Renew(renew), patience).await.map_err(Into::into)
        };
        match reply {
            Ok(PeerReply::Done) => Renewal::Done,
            Ok(PeerReply::NotLeader(_)) => Renewal::Unheard("the host that was asked does not lead".to_owned()),
            Ok(_) => Renewal::Unheard("another kind of answer than was asked for".to_owned()),
            Err(report) if report.code == ErrorCode::SessionOver => Renewal::Over,
            Err(report) => Renewal::Unheard(report.title),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        control::{
            fake::{Fake, leadership},
            keeper::renewals,
        },
        settings::Settings,
    };

    struct Nothing;

    #[async_trait]
    impl Holdings for Nothing {
        async fn lost(&self) {}
    }

    /// The leader has applied it long before: what it waits for is a renewal a second after that, not after it was told.
    #[tokio::test(start_paused = true)]
    async fn a_session_that_was_long_in_opening_is_renewed_as_soon_as_any_other() {
        let (fake, times) = (Fake::new(1), Settings::default().session);
        let (local, keeper) = renewals();
        let (_leads, led) = watch::channel(leadership(true, 1));
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        tokio::spawn(keeper.run(fake.clone(), led.clone(), times, stop.clone()));
        let began = Instant::now();
        let session = Session {
            cluster: fake.clone(),
            leadership: led,
            local,
            holdings: Arc::new(Nothing),
            incarnation: 7,
            times,
            clock: Arc::new(move || BootTime::from_ns(began.elapsed().as_nanos() as u64)),
            now: Arc::default(),
            held: watch::channel(None).0,
        };
        fake.decides.send_replace(false);
        tokio::spawn(session.run(stop));
        sleep(times.renew * 4 / 5).await;
        fake.decides.send_replace(true);
        let mut seen = fake.watch();
        let renewed = async {
            while fake.count("RenewSessions") == 0 {
                seen.changed().await.unwrap();
            }
        };
        timeout(times.suspect, renewed).await.unwrap();
        assert!(began.elapsed() < times.renew * 6 / 5, "{:?}", began.elapsed());
    }
}
