//! What TLS checks about the other side.
//!
//! - [`HostOfCluster`]: a server that is an admitted host, or that a trusted CA signed for this cluster; dates ignored.
//! - [`PinnedCa`]: the same, for one who knows only the CA's digest (a joiner).
//! - [`PinnedKey`]: a server that holds one given key (the probe back to a joiner).
//! - [`ClientOfCluster`]: a client that is an admitted host, or that a trusted CA signed, or none at all; dates ignored.
//!
//! Whether a key is admitted, and whether a client's dates hold, is not decided here: the router does, for every
//! request, and can say why not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::IdentityError;
use super::keys::PublicKey;
use super::subject::{Facts, Subject, public_key_of, server_name};
use super::trust::Trust;
use crate::ids::ClusterId;
use crate::token::CaDigest;

/// Most certificates a side may send.
const CHAIN_MAX: usize = 4;

macro_rules! signatures_by_algorithms {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// Accepts a server that is an admitted host, or whose certificate a trusted authority signed for a host of the cluster;
/// its dates are ignored.
#[derive(Debug)]
pub struct HostOfCluster {
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl HostOfCluster {
    /// For hosts that are let through by `trust`.
    pub fn new(trust: Arc<Trust>, provider: &CryptoProvider) -> Arc<Self> {
        Arc::new(Self { trust, algorithms: provider.signature_verification_algorithms })
    }
}

impl ServerCertVerifier for HostOfCluster {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let trusted = self.trust.now();
        let admitted = Facts::read(end_entity).is_ok_and(|facts| {
            let cluster = facts.subject.cluster();
            is_name_of(name, cluster) && trusted.is_host(&facts, cluster)
        });
        if admitted {
            return Ok(ServerCertVerified::assertion());
        }
        verify_host(end_entity, intermediates, name, &trusted.roots, &self.algorithms)
    }

    signatures_by_algorithms!();
}

/// Whether `certificate` is a host's of `cluster`, signed by `ca`: what a joiner checks of what it was given.
pub fn check_host_certificate(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    cluster: ClusterId,
    provider: &CryptoProvider,
) -> Result<(), IdentityError> {
    let text = server_name(cluster);
    let name = ServerName::try_from(text.clone()).map_err(|_| IdentityError::Name(text))?;
    verify_host(certificate, &[], &name, &roots_of(ca)?, &provider.signature_verification_algorithms)?;
    Ok(())
}

/// What a pinning client saw that it did not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinFailure {
    /// The server showed another CA. The cluster it says it is of is its own claim.
    OtherCa {
        /// The CA's digest, when one was shown.
        shown: Option<CaDigest>,
        /// The cluster the server's certificate names.
        cluster: Option<ClusterId>,
    },
    /// The CA is the pinned one and the server's certificate is not a good one of it.
    BadCertificate,
}

/// Accepts a server whose chain leads to the CA with the pinned digest.
#[derive(Debug)]
pub struct PinnedCa {
    digest: CaDigest,
    algorithms: WebPkiSupportedAlgorithms,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    ca: Option<CertificateDer<'static>>,
    failure: Option<PinFailure>,
}

impl PinnedCa {
    /// For hosts of the CA with this digest.
    pub fn new(digest: CaDigest, provider: &CryptoProvider) -> Arc<Self> {
        let algorithms = provider.signature_verification_algorithms;
        Arc::new(Self { digest, algorithms, seen: Mutex::default() })
    }

    /// The CA's certificate, after a handshake that was accepted.
    pub fn ca(&self) -> Option<CertificateDer<'static>> {
        self.seen().ca.clone()
    }

    /// Why the last handshake was not accepted.
    pub fn failure(&self) -> Option<PinFailure> {
        self.seen().failure.clone()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().take(CHAIN_MAX).find(|ca| CaDigest::of(ca) == self.digest);
        let Some(ca) = pinned else {
            let shown = intermediates.first().map(|ca| CaDigest::of(ca));
            let cluster = Facts::read(end_entity).ok().map(|facts| facts.subject.cluster());
            self.seen().failure = Some(PinFailure::OtherCa { shown, cluster });
            return Err(CertificateError::UnknownIssuer.into());
        };
        let verified = roots_of(ca)
            .map_err(|_| Error::from(CertificateError::BadEncoding))
            .and_then(|roots| verify_host(end_entity, intermediates, name, &roots, &self.algorithms));
        let mut seen = self.seen();
        match &verified {
            Ok(_) => (seen.ca, seen.failure) = (Some(ca.clone().into_owned()), None),
            Err(_) => seen.failure = Some(PinFailure::BadCertificate),
        }
        verified
    }

    signatures_by_algorithms!();
}

/// Accepts a server that holds one given key, whoever signed its certificate.
#[derive(Debug)]
pub struct PinnedKey {
    key: PublicKey,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedKey {
    /// For the holder of `key`.
    pub fn new(key: PublicKey, provider: &CryptoProvider) -> Arc<Self> {
        Arc::new(Self { key, algorithms: provider.signature_verification_algorithms })
    }
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match public_key_of(end_entity) {
            Ok(key) if key == self.key => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    signatures_by_algorithms!();
}

/// Accepts a client that is an admitted host, or that a trusted authority signed, and, where the service allows it, one
/// without a certificate.
#[derive(Debug)]
pub struct ClientOfCluster {
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
    cluster: ClusterId,
    mandatory: bool,
}

impl ClientOfCluster {
    /// For clients of `cluster` that are let through by `trust`.
    pub fn new(cluster: ClusterId, trust: Arc<Trust>, mandatory: bool, provider: &CryptoProvider) -> Arc<Self> {
        Arc::new(Self { trust, algorithms: provider.signature_verification_algorithms, cluster, mandatory })
    }
}

impl ClientCertVerifier for ClientOfCluster {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: whoever dials has one certificate and needs no hint which to show.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_length(intermediates)?;
        let facts = Facts::read(end_entity).map_err(|_| Error::from(CertificateError::BadEncoding))?;
        if facts.subject.cluster() != self.cluster {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        let trusted = self.trust.now();
        if trusted.is_host(&facts, self.cluster) {
            return Ok(ClientCertVerified::assertion());
        }
        let at = UnixTime::since_unix_epoch(Duration::from_secs(facts.not_before));
        trusted.clients.verify_client_cert(end_entity, intermediates, at)
    }

    signatures_by_algorithms!();
}

fn roots_of(ca: &CertificateDer<'_>) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    Ok(roots)
}

fn check_length(intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
    if intermediates.len() > CHAIN_MAX { Err(Error::General("too many certificates".to_owned())) } else { Ok(()) }
}

/// The chain is checked as of the certificate's own first second: that is how its dates are ignored.
fn verify_host(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    roots: &RootCertStore,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<ServerCertVerified, Error> {
    check_length(intermediates)?;
    let facts = Facts::read(end_entity).map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let Subject::Host { cluster, .. } = facts.subject else {
        return Err(CertificateError::InvalidPurpose.into());
    };
    let parsed = ParsedCertificate::try_from(end_entity)?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(facts.not_before));
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, at, algorithms.all)?;
    verify_server_name(&parsed, name)?;
    if is_name_of(name, cluster) {
        Ok(ServerCertVerified::assertion())
    } else {
        Err(CertificateError::NotValidForName.into())
    }
}

/// Whether a server that is dialled as `name` is to be a host of this cluster.
fn is_name_of(name: &ServerName<'_>, cluster: ClusterId) -> bool {
    matches!(name, ServerName::DnsName(dns) if dns.as_ref() == server_name(cluster))
}
