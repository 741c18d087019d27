//! Whom a certificate names: a host of a cluster, or a client with a role.
//!
//! It is one URI among the certificate's alternative names, set by the CA alone; a request's own wishes are dropped.
//! Reading it proves nothing: the chain is verified elsewhere.

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::IdentityError;
use super::keys::PublicKey;
use crate::admin::AccessRole;
use crate::ids::{ClusterId, Digest, HostId, MigrationId, Name};

const ROLES: [(AccessRole, &str); 3] =
    [(AccessRole::Viewer, "viewer"), (AccessRole::Runner, "runner"), (AccessRole::Admin, "admin")];

/// A role as users type it and certificates carry it.
pub fn role_name(role: AccessRole) -> &'static str {
    match role {
        AccessRole::Viewer => "viewer",
        AccessRole::Runner => "runner",
        AccessRole::Admin => "admin",
    }
}

/// The role of this name.
pub fn role_of_name(name: &str) -> Option<AccessRole> {
    ROLES.iter().find(|(_, known)| *known == name).map(|(role, _)| *role)
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A host.
    Host {
        /// Its cluster.
        cluster: ClusterId,
        /// Its id.
        host: HostId,
    },
    /// A client.
    Client {
        /// The cluster that made the certificate.
        cluster: ClusterId,
        /// What it may do.
        role: AccessRole,
        /// Whose it is, for logs.
        name: Name,
    },
}

impl Subject {
    /// The cluster named.
    pub fn cluster(&self) -> ClusterId {
        match self {
            Subject::Host { cluster, .. } | Subject::Client { cluster, .. } => *cluster,
        }
    }

    /// The URI that stands in the certificate.
    pub fn uri(&self) -> String {
        match self {
            Subject::Host { cluster, host } => format!("vtmesh:{:016x}/host/{:016x}", cluster.0, host.0),
            Subject::Client { cluster, role, name } => {
                format!("vtmesh:{:016x}/client/{}/{name}", cluster.0, role_name(*role))
            }
        }
    }

    fn from_uri(uri: &str) -> Option<Subject> {
        let mut parts = uri.strip_prefix("vtmesh:")?.split('/');
        let hex = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
        let cluster = ClusterId(hex(parts.next()?)?);
        let subject = match parts.next()? {
            "host" => Subject::Host { cluster, host: HostId(hex(parts.next()?)?) },
            "client" => {
                Subject::Client { cluster, role: role_of_name(parts.next()?)?, name: parts.next()?.parse().ok()? }
            }
            _ => return None,
        };
        parts.next().is_none().then_some(subject)
    }
}

/// The name a host's certificate has as a TLS server: the cluster's, so that a host of another cluster does not fit.
pub fn server_name(cluster: ClusterId) -> String {
    format!("c{:016x}.vtmesh", cluster.0)
}

/// The name that one side of a migration has in its certificate. A certificate with it names no host and no client of the
/// mesh: it opens nothing but this migration's own connections.
pub fn migration_name(cluster: ClusterId, migration: &MigrationId, side: HostId) -> String {
    let digest = Digest::of(migration.to_string().as_bytes()).to_string();
    format!("h{:016x}.m{}.c{:016x}.vtmesh", side.0, &digest[..16], cluster.0)
}

/// What is read from a certificate.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Whom it names.
    pub subject: Subject,
    /// The key it carries.
    pub key: PublicKey,
    /// Its first second, in unix seconds.
    pub not_before: u64,
    /// Its last second, in unix seconds.
    pub not_after: u64,
}

impl Facts {
    /// Reads a certificate of this mesh.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Facts, IdentityError> {
        let parsed = parse(certificate)?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| IdentityError::Certificate("its alternative names are unreadable"))?
            .ok_or(IdentityError::Certificate("it has no alternative names"))?;
        let mut subjects = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Subject::from_uri(uri),
            _ => None,
        });
        let subject = subjects.next().ok_or(IdentityError::Certificate("it names no host and no client"))?;
        if subjects.next().is_some() {
            return Err(IdentityError::Certificate("it names more than one holder"));
        }
        let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
        Ok(Facts {
            subject,
            key: PublicKey(parsed.public_key().raw.to_vec()),
            not_before: seconds(parsed.validity().not_before.timestamp()),
            not_after: seconds(parsed.validity().not_after.timestamp()),
        })
    }

    /// Whether the dates bind and do not hold at `now` (unix seconds). A host's never bind.
    pub fn out_of_date(&self, now: u64) -> bool {
        matches!(self.subject, Subject::Client { .. }) && !(self.not_before..=self.not_after).contains(&now)
    }
}

/// The public key of any certificate, whoever signed it.
pub fn public_key_of(certificate: &CertificateDer<'_>) -> Result<PublicKey, IdentityError> {
    Ok(PublicKey(parse(certificate)?.public_key().raw.to_vec()))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(IdentityError::Certificate("it is not X.509 in DER")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subjects_come_back_from_their_uri() {
        let host = Subject::Host { cluster: ClusterId(0x9f41), host: HostId(u64::MAX) };
        assert_eq!(Subject::from_uri(&host.uri()), Some(host));
        let client =
            Subject::Client { cluster: ClusterId(1), role: AccessRole::Runner, name: "alice".parse().unwrap() };
        assert_eq!(client.uri(), "vtmesh:0000000000000001/client/runner/alice");
        assert_eq!(Subject::from_uri(&client.uri()), Some(client));
    }

    #[test]
    fn roles_have_one_name_each() {
        for (role, name) in ROLES {
            assert_eq!((role_name(role), role_of_name(name)), (name, Some(role)));
        }
        assert_eq!(role_of_name("root"), None);
    }

    proptest! {
        #[test]
        fn random_names_and_certificates_never_panic(text in ".{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Subject::from_uri(&text);
            let _ = Subject::from_uri(&format!("vtmesh:{text}"));
            let _ = Facts::read(&CertificateDer::from(bytes));
        }
    }
}
