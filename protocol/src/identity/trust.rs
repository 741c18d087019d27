//! Whom TLS lets through: hosts with admitted keys, and whoever a trusted authority signed for.
//!
//! What is trusted changes while connections come and go, so verifiers look here at each handshake. A host is its
//! admitted key: its certificate may be of an authority that is trusted no more, and still it is that host. Anyone else
//! needs a certificate of an authority that is trusted now.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateDer;

use super::IdentityError;
use super::keys::PublicKey;
use super::subject::{Facts, Subject};
use super::tls::provider;
use crate::ids::ClusterId;

/// What is trusted; shared by all verifiers of one identity.
#[derive(Debug)]
pub struct Trust(RwLock<Arc<Trusted>>);

/// What is trusted at one moment.
#[derive(Debug)]
pub(super) struct Trusted {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) clients: Arc<dyn ClientCertVerifier>,
    hosts: HashSet<PublicKey>,
}

impl Trust {
    /// Trusts one authority, and no key without it.
    ///
    /// # Errors
    /// The certificate is not one of an authority.
    pub fn of(authority: &CertificateDer<'_>) -> Result<Arc<Self>, IdentityError> {
        Ok(Arc::new(Self(RwLock::new(Arc::new(Trusted::new(&[authority], HashSet::new())?)))))
    }

    /// From now on these authorities are trusted, and the holders of these keys as hosts.
    ///
    /// # Errors
    /// A certificate is not one of an authority; nothing changes then.
    pub fn set(
        &self,
        authorities: &[&CertificateDer<'_>],
        hosts: impl IntoIterator<Item = PublicKey>,
    ) -> Result<(), IdentityError> {
        let trusted = Arc::new(Trusted::new(authorities, hosts.into_iter().collect())?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = trusted;
        Ok(())
    }

    pub(super) fn now(&self) -> Arc<Trusted> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Trusted {
    fn new(authorities: &[&CertificateDer<'_>], hosts: HashSet<PublicKey>) -> Result<Self, IdentityError> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add((*authority).clone().into_owned())?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(|_| IdentityError::Certificate("the CA cannot verify clients"))?;
        Ok(Self { roots, clients, hosts })
    }

    /// Whether a certificate is that of an admitted host of the cluster. That its holder has the key is what the
    /// handshake proves besides.
    pub(super) fn is_host(&self, facts: &Facts, cluster: ClusterId) -> bool {
        matches!(facts.subject, Subject::Host { cluster: of, .. } if of == cluster) && self.hosts.contains(&facts.key)
    }
}

#[cfg(test)]
mod tests {
    use rustls::client::danger::ServerCertVerifier;
    use rustls_pki_types::{ServerName, UnixTime};

    use super::super::subject::server_name;
    use super::super::verify::{ClientOfCluster, HostOfCluster};
    use super::super::{ClusterCa, PrivateKey, Validity};
    use super::*;
    use crate::admin::AccessRole;
    use crate::ids::HostId;

    const CLUSTER: ClusterId = ClusterId(7);

    /// Whether a dialler that trusts `trust` takes a server that shows `chain`.
    fn takes(trust: &Arc<Trust>, chain: &[&CertificateDer<'_>]) -> bool {
        let verifier = HostOfCluster::new(Arc::clone(trust), &provider());
        let name = ServerName::try_from(server_name(CLUSTER)).unwrap();
        let rest: Vec<_> = chain[1..].iter().map(|certificate| (*certificate).clone()).collect();
        verifier.verify_server_cert(chain[0], &rest, &name, &[], UnixTime::now()).is_ok()
    }

    fn lets_in(trust: &Arc<Trust>, certificate: &CertificateDer<'_>) -> bool {
        let verifier = ClientOfCluster::new(CLUSTER, Arc::clone(trust), true, &provider());
        verifier.verify_client_cert(certificate, &[], UnixTime::now()).is_ok()
    }

    fn host_of(ca: &ClusterCa, key: &PrivateKey) -> CertificateDer<'static> {
        ca.issue_host(&key.signing_request().unwrap(), HostId(1), &"host1".parse().unwrap()).unwrap()
    }

    #[test]
    fn who_trusts_the_old_authority_alone_finds_the_way_to_what_the_new_one_signed() {
        let (old, new) = (ClusterCa::generate(CLUSTER).unwrap(), ClusterCa::generate(CLUSTER).unwrap());
        let cross = old.vouch_for(&new).unwrap();
        let key = PrivateKey::generate().unwrap();
        let (of_old, of_new) = (host_of(&old, &key), host_of(&new, &key));
        let trusts_old = Trust::of(old.certificate()).unwrap();
        assert!(takes(&trusts_old, &[&of_old, old.certificate()]));
        assert!(takes(&trusts_old, &[&of_new, new.certificate(), &cross]));
        assert!(!takes(&trusts_old, &[&of_new, new.certificate()]), "nobody vouches for the new one any more");
        let trusts_new = Trust::of(new.certificate()).unwrap();
        assert!(takes(&trusts_new, &[&of_new, new.certificate(), &cross]));
        assert!(!takes(&trusts_new, &[&of_old, old.certificate()]));
        let stranger = ClusterCa::generate(CLUSTER).unwrap();
        let forged = stranger.vouch_for(&new).unwrap();
        assert!(!takes(&trusts_old, &[&of_new, new.certificate(), &forged]));
        trusts_new.set(&[new.certificate(), old.certificate()], []).unwrap();
        assert!(takes(&trusts_new, &[&of_old, old.certificate()]), "both are trusted");
    }

    #[test]
    fn a_host_is_its_admitted_key_whoever_signed_for_it_and_a_client_is_not() {
        let (ca, gone) = (ClusterCa::generate(CLUSTER).unwrap(), ClusterCa::generate(CLUSTER).unwrap());
        let key = PrivateKey::generate().unwrap();
        let of_gone = host_of(&gone, &key);
        let trust = Trust::of(ca.certificate()).unwrap();
        assert!(!takes(&trust, &[&of_gone]) && !lets_in(&trust, &of_gone));
        trust.set(&[ca.certificate()], [key.public()]).unwrap();
        assert!(takes(&trust, &[&of_gone]) && lets_in(&trust, &of_gone));
        assert!(!takes(&trust, &[&host_of(&gone, &PrivateKey::generate().unwrap())]), "another key");
        let elsewhere = ClusterCa::generate(ClusterId(8)).unwrap();
        assert!(!takes(&trust, &[&host_of(&elsewhere, &key)]), "a certificate for another cluster");

        let dates = Validity { from: 0, until: 4_000_000_000 };
        let request = key.signing_request().unwrap();
        let client =
            |ca: &ClusterCa| ca.issue_client(&request, AccessRole::Admin, &"alice".parse().unwrap(), dates).unwrap();
        assert!(lets_in(&trust, &client(&ca)));
        assert!(!lets_in(&trust, &client(&gone)), "its dates are worth what the authority is worth");
        trust.set(&[ca.certificate()], []).unwrap();
        assert!(!takes(&trust, &[&of_gone]), "a key that was removed");
    }
}
