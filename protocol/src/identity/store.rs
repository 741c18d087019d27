//! Identity files: `host.key`, `host.crt`, `ca.crt`, and `ca.key` on voters; `client.key` and `client.crt` of a client.
//!
//! A file is written under another name, synced, and renamed, so that it is there whole or not at all. Keys are 0600
//! from their first byte.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{ClusterCa, Identity, IdentityError, PrivateKey, Subject};
use crate::ids::ClusterId;

const KEY: &str = "host.key";
const CERTIFICATE: &str = "host.crt";
const CLIENT_KEY: &str = "client.key";
const CLIENT_CERTIFICATE: &str = "client.crt";
const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
/// The key of an authority that was made here and that the log may name soon.
const STAGED_CA_KEY: &str = "ca.next.key";

/// Writes key and certificates of a host or client into `dir`.
pub fn save(dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let (key, certificate) = match identity.facts().subject {
        Subject::Host { .. } => (KEY, CERTIFICATE),
        Subject::Client { .. } => (CLIENT_KEY, CLIENT_CERTIFICATE),
    };
    write(dir, key, identity.key().to_pem().as_bytes(), 0o600)?;
    // The CA's comes last: where it is the new one, all of it is new.
    write(dir, certificate, to_pem(identity.certificate()).as_bytes(), 0o644)?;
    write(dir, CA_CERTIFICATE, to_pem(identity.ca()).as_bytes(), 0o644)?;
    sync(dir)
}

/// Reads what [`save`] wrote of a host.
pub fn load(dir: &Path) -> Result<Identity, IdentityError> {
    load_as(dir, KEY, CERTIFICATE)
}

/// Reads what [`save`] wrote of a client.
pub fn load_client(dir: &Path) -> Result<Identity, IdentityError> {
    load_as(dir, CLIENT_KEY, CLIENT_CERTIFICATE)
}

fn load_as(dir: &Path, key: &str, certificate: &str) -> Result<Identity, IdentityError> {
    let key = read_key(&dir.join(key))?;
    Identity::new(key, read_certificate(&dir.join(certificate))?, read_certificate(&dir.join(CA_CERTIFICATE))?)
}

/// Writes the CA's key with its certificate: on voters only.
pub fn save_ca(dir: &Path, ca: &ClusterCa) -> Result<(), IdentityError> {
    write_ca(dir, CA_KEY, ca)
}

/// Writes the key of an authority that is not the cluster's yet, beside the present one's.
pub fn stage_ca(dir: &Path, ca: &ClusterCa) -> Result<(), IdentityError> {
    write_ca(dir, STAGED_CA_KEY, ca)
}

/// Puts what [`stage_ca`] wrote in the place of the present authority's key.
pub fn take_staged_ca(dir: &Path) -> Result<(), IdentityError> {
    let path = dir.join(CA_KEY);
    fs::rename(dir.join(STAGED_CA_KEY), &path).map_err(|source| IdentityError::File {
        path,
        what: "cannot be replaced",
        source,
    })?;
    sync(dir)
}

fn write_ca(dir: &Path, name: &str, ca: &ClusterCa) -> Result<(), IdentityError> {
    let text = ca.key().to_pem() + &to_pem(ca.certificate());
    write(dir, name, text.as_bytes(), 0o600)?;
    sync(dir)
}

/// Reads the CA with its key; none where this host holds no CA key.
pub fn load_ca(dir: &Path, cluster: ClusterId) -> Result<Option<ClusterCa>, IdentityError> {
    read_ca(dir, CA_KEY, cluster)
}

/// Reads what [`stage_ca`] wrote.
pub fn staged_ca(dir: &Path, cluster: ClusterId) -> Result<Option<ClusterCa>, IdentityError> {
    read_ca(dir, STAGED_CA_KEY, cluster)
}

fn read_ca(dir: &Path, name: &str, cluster: ClusterId) -> Result<Option<ClusterCa>, IdentityError> {
    let path = dir.join(name);
    match path.try_exists() {
        Ok(false) => return Ok(None),
        Ok(true) => {}
        Err(source) => return Err(IdentityError::File { path, what: "cannot be looked at", source }),
    }
    // The first builds kept the certificate in its own file alone.
    let certificate = read_certificate(&path).or_else(|_| read_certificate(&dir.join(CA_CERTIFICATE)))?;
    Ok(Some(ClusterCa::from_parts(cluster, read_key(&path)?, certificate)?))
}

/// Whether the CA's key is here.
pub fn holds_ca_key(dir: &Path) -> bool {
    dir.join(CA_KEY).exists()
}

/// Removes the CA's key: a voter that is demoted.
pub fn remove_ca_key(dir: &Path) -> Result<(), IdentityError> {
    for name in [CA_KEY, STAGED_CA_KEY] {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(IdentityError::File { path, what: "cannot be removed", source });
            }
            _ => {}
        }
    }
    sync(dir)
}

/// A certificate as PEM text.
pub fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let block = pem::Pem::new("CERTIFICATE", certificate.as_ref());
    pem::encode_config(&block, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

fn read_key(path: &Path) -> Result<PrivateKey, IdentityError> {
    let pem = fs::read_to_string(path).map_err(|source| IdentityError::File {
        path: path.to_owned(),
        what: "cannot be read",
        source,
    })?;
    PrivateKey::from_pem(&pem).map_err(|_| IdentityError::Pem { path: path.to_owned(), want: "private key" })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    let pem = fs::read(path).map_err(|source| IdentityError::File {
        path: path.to_owned(),
        what: "cannot be read",
        source,
    })?;
    CertificateDer::from_pem_slice(&pem).map_err(|_| IdentityError::Pem { path: path.to_owned(), want: "certificate" })
}

fn write(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let path = dir.join(name);
    let part = dir.join(format!(".{name}.part"));
    let written = (|| {
        let _ = fs::remove_file(&part);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, &path)
    })();
    written.map_err(|source| IdentityError::File { path, what: "cannot be written", source })
}

fn sync(dir: &Path) -> Result<(), IdentityError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| IdentityError::File {
        path: dir.to_owned(),
        what: "cannot be synced",
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ids::HostId;

    #[test]
    fn files_come_back_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::generate(ClusterId(7)).unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = key.signing_request().unwrap();
        let certificate = ca.issue_host(&request, HostId(1), &"host1".parse().unwrap()).unwrap();
        let identity = Identity::new(key, certificate, ca.certificate().clone()).unwrap();
        save(dir.path(), &identity).unwrap();
        assert!(load_ca(dir.path(), ClusterId(7)).unwrap().is_none(), "a learner holds no CA key");
        save_ca(dir.path(), &ca).unwrap();

        let again = load(dir.path()).unwrap();
        assert_eq!(again.certificate(), identity.certificate());
        assert_eq!(again.ca_digest(), ca.digest());
        assert_eq!(load_ca(dir.path(), ClusterId(7)).unwrap().unwrap().digest(), ca.digest());
        for name in [KEY, CA_KEY] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let next = ClusterCa::generate(ClusterId(7)).unwrap();
        stage_ca(dir.path(), &next).unwrap();
        assert_eq!(load_ca(dir.path(), ClusterId(7)).unwrap().unwrap().digest(), ca.digest(), "it waits");
        assert_eq!(staged_ca(dir.path(), ClusterId(7)).unwrap().unwrap().digest(), next.digest());
        take_staged_ca(dir.path()).unwrap();
        assert_eq!(load_ca(dir.path(), ClusterId(7)).unwrap().unwrap().digest(), next.digest());
        assert!(staged_ca(dir.path(), ClusterId(7)).unwrap().is_none());
        remove_ca_key(dir.path()).unwrap();
        remove_ca_key(dir.path()).unwrap();
        assert!(load_ca(dir.path(), ClusterId(7)).unwrap().is_none());
    }

    #[test]
    fn damaged_and_missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("host.key"), "{error}");
        fs::write(dir.path().join(KEY), "nonsense").unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("host.key holds no private key"), "{error}");
    }
}
