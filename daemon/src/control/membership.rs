//! Who votes: on the leader, the pure policy's next step is taken, one at a time.
//!
//! A host that is to vote is given the key of the cluster's authority first, over the peer channel, so that every
//! voter can admit others; a host that lost its vote removes its copy.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    error::{ErrorCode, Report},
    identity::store,
    ids::HostId,
    peer::{AuthorityKey, PeerReply, PeerRequest},
};
use vt_sync::{
    membership::{Step, View, next_step},
    raft::ProposeError,
};

use super::leads;
use crate::{cluster::Cluster, host::Host};

/// While hosts are on their way to a vote they are looked at this often.
const SOON: Duration = Duration::from_secs(1);
/// Otherwise: a voter that is away is noticed this late at most, or after a quarter of the time it may be away.
const LATER: Duration = Duration::from_secs(15);
/// How long another host may take to keep the key.
const HANDS_OVER: Duration = Duration::from_secs(5);

/// Drives membership while this host leads, until `stop`.
pub async fn run(host: Arc<Host>, stop: CancellationToken) {
    let mut leadership = host.leadership();
    let mut watch = host.watch();
    let mut leading: Option<(u64, Instant)> = None;
    // A copy of the authority's key from before a restart is one of a host that voted.
    let mut voted = store::holds_ca_key(&host.data().cluster());
    loop {
        let now = leadership.borrow_and_update().clone();
        let votes = now.voters.contains(&host.me());
        // A change that is not settled may be taken back.
        if voted && !votes && now.settled && now.leader.is_some() {
            forget_authority(&host).await;
            voted = false;
        }
        voted |= votes;
        let mut wake = None;
        if leads(&now) {
            let since = match leading {
                Some((term, since)) if term == now.term => since,
                _ => Instant::now(),
            };
            leading = Some((now.term, since));
            let state = watch.borrow_and_update().clone();
            let view = View::new(&host.replica().status(), &state, since.elapsed(), host.settings().voter_away);
            let step = next_step(&view);
            let pause = if view.learners.is_empty() && view.settled { LATER.min(view.away / 4) } else { SOON };
            wake = Some(Instant::now() + pause);
            if step != Step::Nothing {
                match take(&host, &step, &view).await {
                    // At once: the next one may be possible now.
                    Ok(()) => continue,
                    Err(why) => {
                        tracing::info!(?step, why, "a change of membership waits");
                        wake = Some(Instant::now() + SOON);
                    }
                }
            }
        } else {
            leading = None;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() { return },
            changed = hosts_changed(&mut watch), if wake.is_some() => if !changed { return },
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
}

/// Waits until a host came, went, or has another role: renewals of sessions are no news here.
async fn hosts_changed(watch: &mut tokio::sync::watch::Receiver<Arc<vt_sync::State>>) -> bool {
    let roles = |state: &vt_sync::State| -> Vec<_> { state.hosts.values().map(|host| (host.id, host.role)).collect() };
    let before = roles(&watch.borrow_and_update());
    watch.wait_for(|state| roles(state) != before).await.is_ok()
}

async fn take(host: &Arc<Host>, step: &Step, view: &View) -> Result<(), String> {
    let replica = host.replica();
    let state = host.state();
    let done = |what: &str| tracing::info!(what, "membership");
    match step {
        Step::Nothing => Ok(()),
        Step::AddLearner(id) => {
            let address = state.hosts.get(id).and_then(|host| host.addresses.first()).map(ToString::to_string);
            let added = replica.add_learner(*id, &address.unwrap_or_default()).await;
            added.map(|()| done(&format!("{} follows the log", state.host_name(*id)))).map_err(text)
        }
        Step::RemoveLearner(id) => {
            let removed = replica.remove_learner(*id).await;
            removed.map(|()| done(&format!("{id} follows the log no more"))).map_err(text)
        }
        Step::TransferLeader(id) => {
            replica.transfer_leader(*id).await.map_err(text)?;
            done(&format!("{} is to lead", state.host_name(*id)));
            // What comes of it shows in the leadership; until then there is nothing to do.
            Err("leadership is being handed over".to_owned())
        }
        Step::ChangeVoters(voters) => {
            for id in voters.difference(&view.voters).filter(|id| **id != host.me()) {
                hand_over(host, *id).await.map_err(|report| {
                    format!("{} did not take the authority's key: {}", state.host_name(*id), report.title)
                })?;
            }
            replica.change_voters(voters.clone()).await.map_err(text)?;
            done(&format!("voters: {}", names(host, voters)));
            Ok(())
        }
    }
}

fn text(error: ProposeError) -> String {
    error.to_string()
}

fn names(host: &Host, voters: &BTreeSet<HostId>) -> String {
    let state = host.state();
    voters.iter().map(|id| state.host_name(*id)).collect::<Vec<_>>().join(", ")
}

async fn hand_over(host: &Arc<Host>, to: HostId) -> Result<(), Report> {
    let (directory, cluster) = (host.data().cluster(), host.record().cluster);
    let loaded = tokio::task::spawn_blocking(move || store::load_ca(&directory, cluster)).await;
    let unusable = |error: &dyn std::error::Error| {
        Report::new(ErrorCode::StoreDamaged, "the authority's key cannot be read here").caused_by(error)
    };
    let authority = loaded.map_err(|error| unusable(&error))?.map_err(|error| unusable(&error))?;
    let Some(authority) = authority else {
        return Err(Report::new(ErrorCode::StoreDamaged, "this voter holds no key of the authority"));
    };
    let key = AuthorityKey(authority.key().to_pem());
    match host.ask(to, PeerRequest::KeepAuthority(key), HANDS_OVER).await? {
        PeerReply::Done => Ok(()),
        _ => Err(Report::new(ErrorCode::Internal, "another kind of answer than was asked for")),
    }
}

async fn forget_authority(host: &Arc<Host>) {
    let directory = host.data().cluster();
    let removed = tokio::task::spawn_blocking(move || store::remove_ca_key(&directory)).await;
    match removed {
        Ok(Ok(())) => tracing::info!("this host votes no more: its copy of the authority's key is removed"),
        Ok(Err(error)) => tracing::warn!(%error, "the copy of the authority's key was not removed"),
        Err(error) => tracing::warn!(%error, "the copy of the authority's key was not removed"),
    }
}

impl Host {
    /// Takes the key of the cluster's authority from a voter.
    pub(crate) async fn keep_authority(&self, from: HostId, key: AuthorityKey) -> PeerReply {
        if !self.leadership().borrow().voters.contains(&from) {
            return PeerReply::Refused(Report::new(ErrorCode::Denied, "only a voter hands over the authority's key"));
        }
        // Refuses a key that is not that of the authority that this host knows.
        let state = self.state();
        let identity = self.identity();
        let certificate = state.authority.as_ref().map_or(&identity.ca()[..], |authority| &authority.certificate[..]);
        match self.store_authority(key, certificate).await {
            Ok(()) => PeerReply::Done,
            Err(report) => PeerReply::Refused(report),
        }
    }
}
