//! Ends join tokens and holds on hosts whose time is over, by the leader's clock: the state compares no times.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
pub use vt_protocol::rehearsal::unix_s;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::RequestId,
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    Command, State,
    command::{ExpireToken, ReleaseHost},
    raft::Leadership,
    state::TokenStatus,
};

use super::leads;
use crate::{cluster::Cluster, host::Host};

const DECIDES: Duration = Duration::from_secs(5);
/// Longest sleep: a clock that is set forward is noticed after this.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Ends them while this host leads, until `stop`.
pub async fn run(cluster: Arc<dyn Cluster>, mut leadership: watch::Receiver<Leadership>, stop: CancellationToken) {
    let mut watch = cluster.watch();
    loop {
        let mut wake = None;
        if leads(&leadership.borrow_and_update()) {
            let state = watch.borrow_and_update().clone();
            let (over, next) = over(&state, unix_s());
            wake = next.map(|seconds| Instant::now() + Duration::from_secs(seconds).min(LOOK_AGAIN));
            for command in over {
                let name = command.name();
                if let Err(error) = cluster.propose(RequestId::random(), command, DECIDES).await {
                    tracing::debug!(%error, name, "what is over was not ended");
                    wake = Some(Instant::now() + Duration::from_secs(1));
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() { return },
            changed = watch.changed() => if changed.is_err() { return },
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
}

/// How long the leader may take to tell the time.
const TELLS: Duration = Duration::from_secs(3);

impl Host {
    /// Seconds since 1970 by the clock that ends tokens: the leader's. Clocks of other hosts may be wrong by any time.
    pub(crate) async fn cluster_clock(&self) -> Result<u64, Report> {
        let leader = self.leadership().borrow().leader;
        let Some(leader) = leader.filter(|leader| *leader != self.me()) else { return Ok(unix_s()) };
        match self.ask(leader, PeerRequest::Clock, TELLS).await? {
            PeerReply::Clock(unix_s) => Ok(unix_s),
            _ => Err(Report::new(ErrorCode::Internal, "another kind of answer than was asked for")),
        }
    }
}

/// Ends what is over at `now`, and tells in how many seconds the next one will be.
fn over(state: &State, now: u64) -> (Vec<Command>, Option<u64>) {
    let open = state.tokens.values().filter(|token| token.status == TokenStatus::Open);
    let tokens = open.map(|token| (token.expires_unix_s, Command::from(ExpireToken { token: token.id })));
    let holds = state.reservations.iter().map(|(host, hold)| {
        let until = hold.until_unix_s;
        (until, Command::from(ReleaseHost { host: *host, until_unix_s: Some(until) }))
    });
    let (over, to_come): (Vec<(u64, Command)>, Vec<_>) = tokens.chain(holds).partition(|(at, _)| *at <= now);
    let next = to_come.iter().map(|(at, _)| at - now).min();
    (over.into_iter().map(|(_, command)| command).collect(), next)
}

#[cfg(test)]
mod tests {
    use vt_protocol::{ids::HostId, membership::Reserved};
    use vt_sync::command::ReserveHost;

    use super::*;
    use crate::control::fake::Fake;

    #[test]
    fn a_hold_ends_when_its_time_is_over_and_not_when_it_was_prolonged() {
        let fake = Fake::new(1);
        let hold = |until_unix_s| {
            let hold = Reserved { by: "alice".into(), reason: "bisecting".into(), until_unix_s };
            ReserveHost { host: HostId(1), hold }
        };
        fake.apply(hold(100));
        assert_eq!(over(&fake.state(), 40), (vec![], Some(60)));
        let (ends, next) = over(&fake.state(), 100);
        assert_eq!((ends.len(), next), (1, None));
        fake.apply(hold(200));
        fake.apply(ends[0].clone());
        assert_eq!(fake.state().reservations.len(), 1, "prolonged before its end was applied");
        fake.apply(over(&fake.state(), 200).0.remove(0));
        assert!(fake.state().reservations.is_empty());
    }
}
