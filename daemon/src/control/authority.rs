//! This host and the cluster's authority: what the log says is trusted, whose certificate is shown, who holds the key.
//!
//! A host that learns of another authority asks a voter for a certificate and shows it from then on; connections that are
//! open stay. A voter that lacks the authority's key asks the other voters for it. Both are repeated until they are done,
//! so a host that was off does them when it is back.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    error::{ErrorCode, Report},
    identity::{ClusterCa, Identity, PrivateKey, store, tls, verify::check_host_certificate},
    ids::{ClusterId, Digest, HostId, RequestId},
    peer::{AuthorityKey, PeerReply, PeerRequest},
};
use vt_sync::{State, command::Certified, state::Authority};

use crate::{cluster::Cluster, host::Host, images::blocking, mesh::MembershipView};

/// Pause before what did not work is tried again.
const SOON: Duration = Duration::from_secs(1);
/// How long another host may take to answer.
const ANSWERS: Duration = Duration::from_secs(5);
/// How long an entry may take.
const DECIDES: Duration = Duration::from_secs(10);

/// What of the state is looked at here.
#[derive(Debug, PartialEq)]
struct Seen {
    cluster: Option<Digest>,
    authority: Option<Arc<Authority>>,
    hosts: Vec<HostId>,
}

impl Seen {
    fn of(state: &State) -> Self {
        Self {
            cluster: state.cluster.as_ref().map(|cluster| cluster.ca),
            authority: state.authority.clone(),
            hosts: state.hosts.keys().copied().collect(),
        }
    }
}

/// Follows the log until `stop`.
pub(crate) async fn run(host: Arc<Host>, stop: CancellationToken) {
    let mut watch = host.watch();
    let mut leadership = host.leadership();
    loop {
        let state = watch.borrow_and_update().clone();
        let votes = leadership.borrow_and_update().voters.contains(&host.me());
        let seen = Seen::of(&state);
        let done = match follow(&host, &state, votes).await {
            Ok(()) => true,
            Err(report) => {
                tracing::info!(%report, "this host does not follow the cluster's authority yet");
                false
            }
        };
        let changed = async {
            let other = watch.wait_for(|state| Seen::of(state) != seen);
            tokio::select! {
                changed = other => changed.is_ok(),
                changed = leadership.wait_for(|now| now.voters.contains(&host.me()) != votes) => changed.is_ok(),
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            goes_on = changed => if !goes_on { return },
            () = sleep(SOON), if !done => {}
        }
    }
}

async fn follow(host: &Arc<Host>, state: &State, votes: bool) -> Result<(), Report> {
    let unusable = |error: &dyn std::error::Error| {
        Report::new(ErrorCode::StoreDamaged, "the certificates of this host cannot be used").caused_by(error)
    };
    // A host that joins knows those it was told of before the log tells it.
    let membership = host.members().membership();
    let keys = membership.hosts.values().map(|member| member.key.clone());
    let identity = host.identity();
    let (Some(cluster), Some(authority)) = (&state.cluster, &state.authority) else {
        return identity.trust().set(&[identity.ca()], keys).map_err(|error| unusable(&error));
    };
    let present = authority.certificate.clone().into();
    let previous = authority.previous.as_ref().map(|previous| previous.certificate.clone().into());
    let trusted: Vec<_> = std::iter::once(&present).chain(&previous).collect();
    identity.trust().set(&trusted, keys).map_err(|error| unusable(&error))?;
    if votes {
        host.hold_authority(authority, cluster.ca).await?;
    }
    let cross = authority.previous.as_ref().map(|previous| previous.cross.clone().into());
    if identity.ca() != &present {
        host.take_certificate(&identity, authority).await?;
    } else if identity.cross() != cross.as_ref() {
        let again = Identity::again(&identity, identity.certificate().clone(), present, cross);
        host.show(again.map_err(|error| unusable(&error))?)?;
    }
    let key = identity.key().public().digest();
    if state.hosts.contains_key(&host.me()) && !authority.certified.contains(&key) {
        let id = RequestId::derived(&[b"certified", &key.0, &cluster.ca.0]);
        host.propose(id, Certified { key, ca: cluster.ca }.into(), DECIDES).await?;
    }
    Ok(())
}

impl Host {
    /// Gets a certificate of the present authority and shows it from now on.
    async fn take_certificate(&self, old: &Identity, authority: &Authority) -> Result<(), Report> {
        let unusable = |error: &dyn std::error::Error| {
            Report::new(ErrorCode::Internal, "the certificate that was given cannot be used").caused_by(error)
        };
        let request = old.key().signing_request().map_err(|error| unusable(&error))?;
        let certificate = self.certificate_of_record(request).await?.into();
        let present = authority.certificate.clone().into();
        check_host_certificate(&certificate, &present, self.record().cluster, &tls::provider())
            .map_err(|error| unusable(&error))?;
        let cross = authority.previous.as_ref().map(|previous| previous.cross.clone().into());
        let identity = Identity::again(old, certificate, present, cross).map_err(|error| unusable(&error))?;
        let directory = self.data().cluster();
        let (saved, identity) = blocking(move || (store::save(&directory, &identity), identity)).await;
        saved.map_err(|error| {
            Report::new(ErrorCode::StorageFailed, "the new certificate cannot be stored").caused_by(&error)
        })?;
        self.show(identity)?;
        tracing::info!(authority = %Digest::of(&authority.certificate), "this host has a certificate of the new authority");
        Ok(())
    }

    fn show(&self, identity: Identity) -> Result<(), Report> {
        self.endpoint()
            .show(Arc::new(identity))
            .map_err(|error| Report::new(ErrorCode::Internal, "the new certificate cannot be shown").caused_by(&error))
    }

    /// Signs for the key of a signing request what the log has on record for it, here or at a voter.
    pub(crate) async fn certificate_of_record(&self, request: Vec<u8>) -> Result<Vec<u8>, Report> {
        let here = self.certify(&request).await;
        let Err(mut last) = here else { return here };
        for voter in self.other_voters() {
            match self.ask(voter, PeerRequest::Certify(request.clone()), ANSWERS).await {
                Ok(PeerReply::Certificate(certificate)) => return Ok(certificate),
                Ok(_) => {}
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// Where this host votes: holds the key of the present authority, or gets it from another voter.
    async fn hold_authority(&self, authority: &Authority, wanted: Digest) -> Result<(), Report> {
        let (directory, cluster) = (self.data().cluster(), self.record().cluster);
        let held = blocking(move || take_up(&directory, cluster, wanted)).await;
        match held {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // It is replaced by a good one.
            Err(error) => tracing::warn!(%error, "the key of the authority cannot be used on this host"),
        }
        let mut last = Report::new(ErrorCode::NoQuorum, "no voter has the key of the cluster's authority").retryable();
        for voter in self.other_voters() {
            match self.ask(voter, PeerRequest::GiveAuthority(wanted), ANSWERS).await {
                Ok(PeerReply::Authority(key)) => return self.store_authority(key, &authority.certificate).await,
                Ok(_) => {}
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    fn other_voters(&self) -> Vec<HostId> {
        let leadership = self.leadership();
        let voters = leadership.borrow().voters.clone();
        voters.into_iter().filter(|voter| *voter != self.me()).collect()
    }

    /// Gives the key of the authority to a voter that lacks it.
    pub(crate) async fn give_authority(&self, to: HostId, wanted: Digest) -> PeerReply {
        if !self.leadership().borrow().voters.contains(&to) {
            return PeerReply::Refused(Report::new(ErrorCode::Denied, "only a voter is given the authority's key"));
        }
        let (directory, cluster) = (self.data().cluster(), self.record().cluster);
        let found = blocking(move || store::load_ca(&directory, cluster)).await;
        match found {
            Ok(Some(ca)) if Digest::of(ca.certificate()) == wanted => {
                PeerReply::Authority(AuthorityKey(ca.key().to_pem()))
            }
            _ => PeerReply::Refused(
                Report::new(ErrorCode::NoQuorum, "this host does not have the key of that authority").retryable(),
            ),
        }
    }

    /// Stores the authority's key. One that is not that of `certificate` is refused.
    pub(crate) async fn store_authority(&self, key: AuthorityKey, certificate: &[u8]) -> Result<(), Report> {
        let unusable = |error: &dyn std::error::Error| {
            Report::new(ErrorCode::Denied, "the authority's key is not usable").caused_by(error)
        };
        let key = PrivateKey::from_pem(&key.0).map_err(|error| unusable(&error))?;
        let authority = ClusterCa::from_parts(self.record().cluster, key, certificate.to_vec().into())
            .map_err(|error| unusable(&error))?;
        let directory = self.data().cluster();
        blocking(move || store::save_ca(&directory, &authority)).await.map_err(|error| {
            Report::new(ErrorCode::StorageFailed, "the authority's key could not be stored").caused_by(&error)
        })
    }
}

/// Whether the key of the wanted authority is here. One that was made here for an authority that the log has by now is
/// put in its place first.
fn take_up(
    directory: &std::path::Path,
    cluster: ClusterId,
    wanted: Digest,
) -> Result<bool, vt_protocol::identity::IdentityError> {
    let is_wanted = |ca: &ClusterCa| Digest::of(ca.certificate()) == wanted;
    if store::load_ca(directory, cluster)?.as_ref().is_some_and(is_wanted) {
        return Ok(true);
    }
    match store::staged_ca(directory, cluster)? {
        Some(staged) if is_wanted(&staged) => store::take_staged_ca(directory).map(|()| true),
        _ => Ok(false),
    }
}
