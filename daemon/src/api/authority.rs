//! The cluster's authority on demand: what it is, another one, the end of the one before, and certificates of it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use vt_protocol::{
    admin::{AuthorityView, Rotate},
    error::{ErrorCode, Report},
    identity::{ClusterCa, Validity, authority::key_of_request, store},
    ids::{ClusterId, Digest, HostId, RequestId},
    join::{Enrolled, JoinRefusal},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    State, bounds,
    command::{Certified, DropAuthority, RotateAuthority},
    state::Uncertified,
};

use super::{DECIDES, blocking, left};
use crate::{cluster::Cluster, host::Host, mesh::Caller};

/// How long hosts that are there may take to get a certificate, before it is said who did not.
const FOLLOWS: Duration = Duration::from_secs(20);

impl Host {
    /// The authority, and who has no certificate of it yet.
    pub(super) fn authority_view(&self) -> Result<AuthorityView, Report> {
        let state = self.state();
        let Some(cluster) = &state.cluster else {
            return Err(Report::new(ErrorCode::NoQuorum, "this host has not heard from its cluster yet").retryable());
        };
        let Uncertified { hosts, clients } = state.uncertified();
        let previous = state.authority.as_ref().and_then(|authority| authority.previous.as_ref());
        Ok(AuthorityView {
            fingerprint: cluster.ca.to_string(),
            previous: previous.map(|previous| Digest::of(&previous.certificate).to_string()),
            hosts,
            clients,
        })
    }

    /// Has another authority follow, or drops the one before; gives what was done, for people.
    pub(super) async fn rotate(self: &Arc<Self>, rotate: Rotate, by: Instant) -> Result<Vec<String>, Report> {
        if rotate.finish {
            return self.finish_rotation(rotate.anyway, by).await;
        }
        let before = self.authority_view()?.fingerprint;
        self.begin_rotation(by).await?;
        let mut watch = self.watch();
        let until = by.min(Instant::now() + FOLLOWS);
        let follow =
            watch.wait_for(|state| fingerprint(state).is_some_and(|now| now != before) && waits(state).is_empty());
        // Who takes longer is named in what is told.
        let _ = timeout_at(until, follow).await.is_ok();
        let view = self.authority_view()?;
        let mut steps = vec![
            format!("authority {} follows {before}", view.fingerprint),
            "both are trusted until: vtctl cluster ca rotate --finish".to_owned(),
            "open join tokens are revoked: make new ones".to_owned(),
        ];
        if !view.hosts.is_empty() {
            let names = listed(view.hosts.iter());
            steps.push(format!("without a new certificate yet: {names}; each gets one as soon as it is there"));
        }
        if !view.clients.is_empty() {
            let names = listed(view.clients.iter());
            steps.push(format!("clients that get theirs when they are used the next time: {names}"));
        }
        Ok(steps)
    }

    async fn begin_rotation(self: &Arc<Self>, by: Instant) -> Result<(), Report> {
        let nobody = || Report::new(ErrorCode::NoQuorum, "no host leads the cluster").retryable();
        let leader = self.leadership().borrow().leader.ok_or_else(nobody)?;
        match self.ask(leader, PeerRequest::RotateAuthority, left(by)).await? {
            PeerReply::Done => Ok(()),
            _ => Err(nobody()),
        }
    }

    /// Makes another authority, where this host leads. Its key is on disk here before the log names it.
    pub(crate) async fn rotate_here(&self) -> PeerReply {
        if !crate::control::leads(&self.leadership().borrow()) {
            return PeerReply::NotLeader(self.leadership().borrow().leader);
        }
        match self.try_rotate().await {
            Ok(()) => PeerReply::Done,
            Err(report) => PeerReply::Refused(report),
        }
    }

    async fn try_rotate(&self) -> Result<(), Report> {
        let old = self.authority().await.map_err(|refusal| refusal.report())?;
        let (directory, cluster) = (self.data().cluster(), self.record().cluster);
        let command = blocking(move || stage(&directory, cluster, &old)).await.map_err(|error| {
            Report::new(ErrorCode::StorageFailed, "another authority cannot be made").caused_by(&error)
        })?;
        self.propose(RequestId::random(), command.into(), DECIDES).await?;
        Ok(())
    }

    async fn finish_rotation(&self, anyway: bool, by: Instant) -> Result<Vec<String>, Report> {
        let state = self.state();
        let previous = state.authority.as_ref().and_then(|authority| authority.previous.as_ref());
        let Some(previous) = previous else {
            return Err(Report::new(ErrorCode::Rotating, "one authority is trusted: there is nothing to finish")
                .help("vtctl cluster ca show"));
        };
        let old = Digest::of(&previous.certificate);
        let Uncertified { hosts, clients } = state.uncertified();
        let waiting = hosts.len() + clients.len();
        if waiting > 0 && !anyway {
            return Err(Report::new(ErrorCode::Rotating, "some have no certificate of the new authority yet")
                .with("hosts", listed(hosts.iter()))
                .with("they", "get one when they are there, also after the end")
                .with("clients", listed(clients.iter()))
                .with("they", "get one when they are used before the end; after it they need a new token")
                .help("vtctl cluster ca rotate --finish --yes   (drops the old one all the same)"));
        }
        self.propose(RequestId::random(), DropAuthority { old, anyway }.into(), left(by)).await?;
        let mut steps = vec![format!("authority {old} is trusted no more")];
        if !hosts.is_empty() {
            steps.push(format!("hosts that get a new certificate when they are back: {}", listed(hosts.iter())));
        }
        if !clients.is_empty() {
            steps.push(format!(
                "clients that need a new token: {}   (vtctl cluster access revoke NAME, then vtctl cluster token create --role client-runner --for NAME)",
                listed(clients.iter())
            ));
        }
        Ok(steps)
    }

    /// Signs for the key of a signing request what the log has on record for it, where this host has the key of the
    /// present authority.
    pub(crate) async fn certify(&self, request: &[u8]) -> Result<Vec<u8>, Report> {
        let unusable = |error: &dyn std::error::Error| {
            Report::new(ErrorCode::Denied, "the signing request is not acceptable").caused_by(error)
        };
        let key = key_of_request(request).map_err(|error| unusable(&error))?;
        let authority = self.authority().await.map_err(|refusal| match refusal {
            JoinRefusal::NotHere { .. } => {
                Report::new(ErrorCode::NoQuorum, "this host does not have the key of the present authority").retryable()
            }
            other => other.report(),
        })?;
        let state = self.state();
        let issued = if let Some(host) = state.hosts.values().find(|host| host.public_key == key.0) {
            authority.issue_host(request, host.id, &host.name)
        } else if let Some(client) = state.clients.get(&key.digest()) {
            let dates = Validity { from: 0, until: client.until_unix_s };
            authority.issue_client(request, client.role, &client.name, dates)
        } else {
            return Err(Report::new(ErrorCode::Denied, "this key is not admitted to the cluster"));
        };
        issued.map(|certificate| certificate.to_vec()).map_err(|error| unusable(&error))
    }

    /// Gives a client that is connected a certificate of the present authority for its own key.
    pub(super) async fn renew(&self, caller: &Caller, request: Vec<u8>, by: Instant) -> Result<Enrolled, Report> {
        let Caller::Remote { name, .. } = caller else {
            return Err(Report::new(ErrorCode::Usage, "who comes over the socket has no certificate"));
        };
        let key = key_of_request(&request).map(|key| key.digest()).ok();
        let state = self.state();
        let known = key.and_then(|key| Some((key, state.clients.get(&key)?)));
        // A client renews itself and nobody else.
        let Some((key, client)) = known.filter(|(_, client)| client.name == *name) else {
            return Err(Report::new(ErrorCode::Denied, "this is not the key of the client that asks"));
        };
        let (Some(cluster), Some(authority)) = (&state.cluster, &state.authority) else {
            return Err(Report::new(ErrorCode::Rotating, "the cluster has its first authority").help("vtctl status"));
        };
        let certificate = self.certificate_of_record(request).await?;
        let id = RequestId::derived(&[b"certified", &key.0, &cluster.ca.0]);
        self.propose(id, Certified { key, ca: cluster.ca }.into(), left(by)).await?;
        Ok(Enrolled {
            cluster: cluster.id,
            cluster_name: cluster.name.clone(),
            name: client.name.clone(),
            role: client.role,
            certificate,
            ca: authority.certificate.clone(),
            until_unix_s: client.until_unix_s,
            endpoints: self.addresses(bounds::HOSTS),
        })
    }
}

/// Makes another authority and keeps its key beside the present one's.
fn stage(
    directory: &std::path::Path,
    cluster: ClusterId,
    old: &ClusterCa,
) -> Result<RotateAuthority, vt_protocol::identity::IdentityError> {
    // One whose entry may still be on its way into the log is not replaced: its key would be lost.
    let staged = store::staged_ca(directory, cluster)?.filter(|staged| staged.certificate() != old.certificate());
    let new = match staged {
        Some(staged) => staged,
        None => ClusterCa::generate(cluster)?,
    };
    let cross = old.vouch_for(&new)?;
    store::stage_ca(directory, &new)?;
    Ok(RotateAuthority { old: old.certificate().to_vec(), new: new.certificate().to_vec(), cross: cross.to_vec() })
}

fn fingerprint(state: &State) -> Option<String> {
    state.cluster.as_ref().map(|cluster| cluster.ca.to_string())
}

/// The hosts that are there and have no certificate of the present authority.
fn waits(state: &State) -> BTreeSet<HostId> {
    let missing = state.uncertified().hosts;
    state.hosts.values().filter(|host| host.is_live() && missing.contains(&host.name)).map(|host| host.id).collect()
}

fn listed<'a>(names: impl Iterator<Item = &'a vt_protocol::ids::Name>) -> String {
    let names: Vec<String> = names.map(ToString::to_string).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
