//! Ends join tokens whose time is over, by the leader's clock: the state compares no times.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
pub use vt_protocol::rehearsal::unix_s;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{RequestId, TokenId},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{State, command::ExpireToken, raft::Leadership, state::TokenStatus};

use super::leads;
use crate::{cluster::Cluster, host::Host};

const DECIDES: Duration = Duration::from_secs(5);
/// Longest sleep: a clock that is set forward is noticed after this.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Ends tokens while this host leads, until `stop`.
pub async fn run(cluster: Arc<dyn Cluster>, mut leadership: watch::Receiver<Leadership>, stop: CancellationToken) {
    let mut watch = cluster.watch();
    loop {
        let mut wake = None;
        if leads(&leadership.borrow_and_update()) {
            let state = watch.borrow_and_update().clone();
            let (over, next) = over(&state, unix_s());
            wake = next.map(|seconds| Instant::now() + Duration::from_secs(seconds).min(LOOK_AGAIN));
            for token in over {
                if let Err(error) = cluster.propose(RequestId::random(), ExpireToken { token }.into(), DECIDES).await {
                    tracing::debug!(%error, %token, "a token was not ended");
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

/// Open tokens whose time is over at `now`, and in how many seconds the next one's will be.
fn over(state: &State, now: u64) -> (Vec<TokenId>, Option<u64>) {
    let open = || state.tokens.values().filter(|token| token.status == TokenStatus::Open);
    let over = open().filter(|token| token.expires_unix_s <= now).map(|token| token.id).collect();
    let next = open().map(|token| token.expires_unix_s).filter(|at| *at > now).min();
    (over, next.map(|at| at - now))
}
