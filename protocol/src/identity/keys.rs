//! Keys, and a key together with the certificates that carry it.
//!
//! Private keys are made where they are used and never travel. They are not printed.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::IdentityError;
use super::subject::{Facts, server_name};
use super::trust::Trust;
use crate::ids::{ClusterId, Digest};
use crate::token::CaDigest;

/// A public key: its SubjectPublicKeyInfo in DER. This is what membership admits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub Vec<u8>);

impl PublicKey {
    /// A short name for the key.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?})", self.digest())
    }
}

/// A private key (ECDSA P-256).
pub struct PrivateKey(pub(super) KeyPair);

impl PrivateKey {
    /// A fresh key.
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads a key from PKCS#8 in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        Ok(Self(KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256)?))
    }

    /// The key as PKCS#8 in PEM: for a file that only its owner reads.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        use rcgen::PublicKeyData;
        PublicKey(self.0.subject_public_key_info())
    }

    /// A signing request in DER. It proves possession of the key and wishes nothing: names come from the CA.
    pub fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }

    /// A certificate this key signs for itself, for a host that has no other yet. Only the key in it means anything.
    pub fn self_signed(&self, cluster: ClusterId) -> Result<CertificateDer<'static>, IdentityError> {
        let mut params = CertificateParams::new(vec![server_name(cluster)])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "vtmesh host before its admission");
        Ok(params.self_signed(&self.0)?.der().clone())
    }

    /// A secret that follows from the key, for one purpose; the key does not follow from it.
    pub fn secret_for(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(&format!("vtmesh 2026 {purpose}"), self.0.serialized_der())
    }

    pub(super) fn for_tls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {:?})", self.public())
    }
}

/// A key, the certificate that carries it, and the CA that signed it: what a host or client shows in TLS.
#[derive(Debug)]
pub struct Identity {
    key: PrivateKey,
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    /// A certificate of the authority before, for the key of the present one, while that is trusted as well.
    cross: Option<CertificateDer<'static>>,
    trust: Arc<Trust>,
    facts: Facts,
}

impl Identity {
    /// Puts the parts together; refuses a certificate that carries another key.
    pub fn new(
        key: PrivateKey,
        certificate: CertificateDer<'static>,
        ca: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        let facts = Facts::read(&certificate)?;
        if facts.key != key.public() {
            return Err(IdentityError::Certificate("it carries another key"));
        }
        let trust = Trust::of(&ca)?;
        Ok(Self { key, certificate, ca, cross: None, trust, facts })
    }

    /// The same key with another certificate, or another way to it; what is trusted stays.
    ///
    /// # Errors
    /// The certificate carries another key.
    pub fn again(
        old: &Self,
        certificate: CertificateDer<'static>,
        ca: CertificateDer<'static>,
        cross: Option<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        // The key is copied by way of its text: rcgen's key pairs cannot be cloned.
        let key = PrivateKey::from_pem(&old.key.to_pem())?;
        Ok(Self { cross, trust: Arc::clone(&old.trust), ..Self::new(key, certificate, ca)? })
    }

    /// What the certificate says.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The certificate, in DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's certificate, in DER.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The certificate that leads to [`Identity::ca`] from the authority before it, where that is trusted as well.
    pub fn cross(&self) -> Option<&CertificateDer<'static>> {
        self.cross.as_ref()
    }

    /// Whom it lets through; shared with every identity made of this one.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// The CA's digest, as tokens carry it and users compare it.
    pub fn ca_digest(&self) -> CaDigest {
        CaDigest::of(&self.ca)
    }

    /// What is sent in a handshake: the certificate, the CA's for those who know only its digest, and the way there for
    /// those who know only the one before.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        [&self.certificate, &self.ca].into_iter().chain(&self.cross).cloned().collect()
    }
}
