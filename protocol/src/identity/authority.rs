//! The cluster's CA: it names hosts and clients.
//!
//! Its key is a file on voters, never in the log, a snapshot or a blob. It takes the key from a signing request and
//! nothing else: names and uses are the CA's own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::IdentityError;
use super::keys::{PrivateKey, PublicKey};
use super::subject::{Subject, public_key_of, server_name};
use crate::admin::AccessRole;
use crate::ids::{ClusterId, HostId, Name};
use crate::token::CaDigest;

/// From when to when a certificate is valid, in unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub from: u64,
    /// Last second.
    pub until: u64,
}

impl Validity {
    /// From five minutes ago (clocks differ) for `length`.
    pub fn from_now(length: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { from: now.saturating_sub(300), until: now.saturating_add(length.as_secs()) }
    }
}

/// The dates of CA and host certificates: read by nobody here, long for the eyes of other tools.
const UNBOUNDED: Validity = Validity { from: 0, until: 7_258_118_400 };
/// Longest time that fits a certificate's date without overflow: the end of 9999.
const LAST_SECOND: u64 = 253_402_300_799;
/// Largest signing request read, in bytes.
const REQUEST_MAX: usize = 4096;

/// A cluster's CA with its key.
#[derive(Debug)]
pub struct ClusterCa {
    cluster: ClusterId,
    key: PrivateKey,
    certificate: CertificateDer<'static>,
}

impl ClusterCa {
    /// A new CA for a new cluster.
    pub fn generate(cluster: ClusterId) -> Result<Self, IdentityError> {
        let key = PrivateKey::generate()?;
        let certificate = params_of_ca(cluster).self_signed(&key.0)?.der().clone();
        Ok(Self { cluster, key, certificate })
    }

    /// A certificate of this authority for the key of the one that follows it: who trusts this one alone finds the way to
    /// what the other signed.
    pub fn vouch_for(&self, next: &ClusterCa) -> Result<CertificateDer<'static>, IdentityError> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key.0)?;
        Ok(params_of_ca(next.cluster).signed_by(&next.key.0, &issuer)?.der().clone())
    }

    /// Puts key and certificate together again; refuses a certificate of another key.
    pub fn from_parts(
        cluster: ClusterId,
        key: PrivateKey,
        certificate: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        if public_key_of(&certificate)? != key.public() {
            return Err(IdentityError::Certificate("the CA's certificate carries another key"));
        }
        Ok(Self { cluster, key, certificate })
    }

    /// The CA's certificate, in DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The key, for the file on voters.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The digest that tokens carry.
    pub fn digest(&self) -> CaDigest {
        CaDigest::of(&self.certificate)
    }

    /// A host's certificate for the key in `request` (a signing request in DER).
    pub fn issue_host(
        &self,
        request: &[u8],
        host: HostId,
        name: &Name,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        self.issue_host_with_dates(request, host, name, UNBOUNDED)
    }

    /// Like [`ClusterCa::issue_host`] with dates; they bind nobody in this mesh.
    pub fn issue_host_with_dates(
        &self,
        request: &[u8],
        host: HostId,
        name: &Name,
        dates: Validity,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let subject = Subject::Host { cluster: self.cluster, host };
        let uses = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(request, &subject, name, dates, &uses)
    }

    /// A client's certificate for the key in `request`; its dates bind.
    pub fn issue_client(
        &self,
        request: &[u8],
        role: AccessRole,
        name: &Name,
        dates: Validity,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let subject = Subject::Client { cluster: self.cluster, role, name: name.clone() };
        self.issue(request, &subject, name, dates, &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(
        &self,
        request: &[u8],
        subject: &Subject,
        name: &Name,
        dates: Validity,
        uses: &[ExtendedKeyUsagePurpose],
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let mut names = vec![SanType::URI(ia5(&subject.uri())?)];
        if matches!(subject, Subject::Host { .. }) {
            names.push(SanType::DnsName(ia5(&server_name(self.cluster))?));
        }
        self.sign(request, name.as_str(), names, dates, (&[KeyUsagePurpose::DigitalSignature], uses))
    }

    /// A certificate for the key in `request` and one side of one migration, under [`migration_name`]. QEMU reads its
    /// dates; they are wide enough for clocks that differ.
    ///
    /// [`migration_name`]: super::subject::migration_name
    pub fn issue_migration(&self, request: &[u8], name: &str) -> Result<CertificateDer<'static>, IdentityError> {
        const DAY: u64 = 86_400;
        let now = Validity::from_now(Duration::from_secs(7 * DAY));
        let dates = Validity { from: now.from.saturating_sub(DAY), until: now.until };
        let uses = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        // QEMU wants the second one too, though TLS 1.3 has no use for it.
        let keys = [KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        self.sign(request, name, vec![SanType::DnsName(ia5(name)?)], dates, (&keys, &uses))
    }

    fn sign(
        &self,
        request: &[u8],
        common_name: &str,
        names: Vec<SanType>,
        dates: Validity,
        (keys, uses): (&[KeyUsagePurpose], &[ExtendedKeyUsagePurpose]),
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let requested = read_request(request)?;
        let mut params = params_of(common_name, dates);
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = keys.to_vec();
        params.extended_key_usages = uses.to_vec();
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key.0)?;
        Ok(params.signed_by(&requested.public_key, &issuer)?.der().clone())
    }
}

/// The public key of a signing request whose signature proves possession of it.
pub fn key_of_request(request: &[u8]) -> Result<PublicKey, IdentityError> {
    Ok(PublicKey(read_request(request)?.public_key.subject_public_key_info()))
}

fn read_request(request: &[u8]) -> Result<CertificateSigningRequestParams, IdentityError> {
    if request.len() > REQUEST_MAX {
        return Err(IdentityError::Request("it is too long"));
    }
    let parsed = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
        .map_err(|_| IdentityError::Request("it is unreadable, or its signature does not match its key"))?;
    if parsed.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(IdentityError::Request("its key is not ECDSA P-256"));
    }
    Ok(parsed)
}

fn params_of_ca(cluster: ClusterId) -> CertificateParams {
    let mut params = params_of(&format!("vtmesh cluster {cluster}"), UNBOUNDED);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params_of(common_name: &str, dates: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    let day_zero = date_time_ymd(1970, 1, 1);
    params.not_before = day_zero + Duration::from_secs(dates.from.min(LAST_SECOND));
    params.not_after = day_zero + Duration::from_secs(dates.until.min(LAST_SECOND));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let mut serial: [u8; 16] = rand::random();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn ia5(text: &str) -> Result<rcgen::string::Ia5String, IdentityError> {
    text.try_into().map_err(|_| IdentityError::Name(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::subject::Facts;
    use super::*;

    #[test]
    fn a_host_certificate_names_host_cluster_and_the_requested_key() {
        let ca = ClusterCa::generate(ClusterId(7)).unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = key.signing_request().unwrap();
        let certificate = ca.issue_host(&request, HostId(3), &"host1".parse().unwrap()).unwrap();
        let facts = Facts::read(&certificate).unwrap();
        assert_eq!(facts.subject, Subject::Host { cluster: ClusterId(7), host: HostId(3) });
        assert_eq!(facts.key, key.public());
        assert!(!facts.out_of_date(u64::MAX), "a host's dates never bind");
    }

    #[test]
    fn a_clients_dates_bind() {
        let ca = ClusterCa::generate(ClusterId(7)).unwrap();
        let request = PrivateKey::generate().unwrap().signing_request().unwrap();
        let dates = Validity { from: 1000, until: 2000 };
        let certificate = ca.issue_client(&request, AccessRole::Viewer, &"alice".parse().unwrap(), dates).unwrap();
        let facts = Facts::read(&certificate).unwrap();
        assert!(facts.out_of_date(999) && !facts.out_of_date(1000) && !facts.out_of_date(2000));
        assert!(facts.out_of_date(2001));
    }

    #[test]
    fn a_migrations_certificate_has_its_sides_name_and_is_nobody_in_the_mesh() {
        use super::super::subject::migration_name;
        let ca = ClusterCa::generate(ClusterId(7)).unwrap();
        let key = PrivateKey::generate().unwrap();
        let case = crate::ids::CaseId { job: crate::ids::JobId(1), index: 0 };
        let vm = crate::ids::VmId { attempt: crate::ids::AttemptId { case, number: 1 }, name: "vm1".parse().unwrap() };
        let migration = crate::ids::MigrationId { vm, number: 2 };
        let name = migration_name(ClusterId(7), &migration, HostId(3));
        assert_ne!(name, migration_name(ClusterId(7), &migration, HostId(4)));
        assert!(name.len() <= 64, "the longest common name");
        let issued = ca.issue_migration(&key.signing_request().unwrap(), &name).unwrap();
        let parsed = x509_parser::parse_x509_certificate(&issued).unwrap().1;
        assert_eq!(parsed.subject().to_string(), format!("CN={name}"));
        assert!(!parsed.is_ca() && parsed.validity().is_valid());
        assert_eq!(public_key_of(&issued).unwrap(), key.public());
        assert!(Facts::read(&issued).is_err(), "it must open no door of the mesh");
    }

    #[test]
    fn a_request_whose_signature_is_not_its_keys_is_refused() {
        let key = PrivateKey::generate().unwrap();
        let mut request = key.signing_request().unwrap();
        assert_eq!(key_of_request(&request).unwrap(), key.public());
        let last = request.len() - 1;
        request[last] ^= 1;
        assert!(key_of_request(&request).is_err());
        assert!(key_of_request(&[]).is_err());
        assert!(key_of_request(&[0x30; 5000]).is_err());
    }

    #[test]
    fn a_request_cannot_wish_for_names_or_for_being_a_ca() {
        let ca = ClusterCa::generate(ClusterId(7)).unwrap();
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::new(vec!["somebody.else".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(ia5("vtmesh:0000000000000007/client/admin/mallory").unwrap()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = params.serialize_request(&key.0).unwrap();
        let issued = ca.issue_host(request.der(), HostId(3), &"host1".parse().unwrap()).unwrap();
        assert_eq!(Facts::read(&issued).unwrap().subject, Subject::Host { cluster: ClusterId(7), host: HostId(3) });
        let parsed = x509_parser::parse_x509_certificate(&issued).unwrap().1;
        assert!(!parsed.is_ca());
    }

    #[test]
    fn a_ca_comes_back_from_its_parts_and_not_from_anothers() {
        let ca = ClusterCa::generate(ClusterId(7)).unwrap();
        let key = PrivateKey::from_pem(&ca.key().to_pem()).unwrap();
        let again = ClusterCa::from_parts(ClusterId(7), key, ca.certificate().clone()).unwrap();
        assert_eq!(again.digest(), ca.digest());
        assert!(
            ClusterCa::from_parts(ClusterId(7), PrivateKey::generate().unwrap(), ca.certificate().clone()).is_err()
        );
    }
}
