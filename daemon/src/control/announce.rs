//! Tells the cluster what changed about this host: where it is reached, its build, the digest of its facts.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    codec,
    facts::HostFacts,
    frame::MESSAGE_CAP,
    hello::BUILD,
    ids::{Digest, RequestId},
};
use vt_sync::{command::UpdateHost, state};

use crate::{cluster::Cluster, host::Host};

const DECIDES: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(5);

/// Announces changes until `stop`.
pub async fn run(host: Arc<Host>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = announce(&host) => {}
    }
}

async fn announce(host: &Arc<Host>) {
    let mut facts = host.facts().watch();
    let mut watch = host.watch();
    loop {
        let digest = digest(&facts.borrow_and_update());
        // Admitted, and the log has come here: before that there is nothing to compare with.
        let me = host.me();
        let Ok(state) = watch.wait_for(|state| state.hosts.contains_key(&me)).await.map(|state| state.clone()) else {
            return;
        };
        let update = state.hosts.get(&me).and_then(|known| update(known, host.settings().host.advertise, digest));
        if let Some(update) = update
            && let Err(error) = host.propose(RequestId::random(), update.into(), DECIDES).await
        {
            tracing::debug!(%error, "the cluster was not told what changed about this host");
            sleep(AGAIN).await;
            continue;
        }
        if facts.changed().await.is_err() {
            return;
        }
    }
}

/// What has to be said, where `known` is not true any more. An address counts only where the settings name one.
fn update(known: &state::Host, advertise: Option<SocketAddr>, facts: Option<Digest>) -> Option<UpdateHost> {
    let addresses = match advertise {
        Some(address) if known.addresses.first() != Some(&address) => vec![address],
        _ => known.addresses.clone(),
    };
    let wanted = UpdateHost { host: known.id, addresses, build: BUILD.to_owned(), facts: facts.or(known.facts) };
    let same = wanted.addresses == known.addresses && wanted.build == known.build && wanted.facts == known.facts;
    (!same).then_some(wanted)
}

/// Of what stays as it is while the daemon runs: images come and go.
fn digest(facts: &HostFacts) -> Option<Digest> {
    let mut facts = facts.clone();
    facts.pool.images.clear();
    codec::encode_wire(&facts, MESSAGE_CAP).ok().map(|bytes| Digest::of(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fake::Fake;

    #[test]
    fn only_what_changed_is_told() {
        let fake = Fake::new(1);
        let known = |build: &str| {
            let state = fake.state();
            let mut host = (**state.hosts.values().next().unwrap()).clone();
            host.build = build.to_owned();
            host
        };
        let (old, new) = (known(BUILD).addresses[0], "10.0.0.9:7465".parse().unwrap());
        // known build, address in the settings, facts, whether it is told
        for (build, advertise, facts, told) in [
            (BUILD, None, None, false),
            (BUILD, Some(old), None, false),
            (BUILD, Some(new), None, true),
            ("0.0.1", None, None, true),
            (BUILD, None, Some(Digest::of(b"facts")), true),
        ] {
            let update = update(&known(build), advertise, facts);
            assert_eq!(update.is_some(), told, "{build} {advertise:?} {facts:?}");
            if let Some(update) = update {
                assert_eq!(update.addresses, [advertise.unwrap_or(old)]);
            }
        }
    }
}
