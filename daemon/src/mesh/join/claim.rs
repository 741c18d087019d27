//! A host's claim to a cluster, on disk: its key, its certificates, and what it was told when it joined.
//!
//! The directory is made beside its place and renamed, so that a host is claimed or is not. A join keeps its key in
//! the directory beside while its outcome is unknown, so that it can be resumed; refused, it removes it.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use vt_protocol::codec::{self, CodecError, Versioned};
use vt_protocol::error::{ErrorCode, Report};
use vt_protocol::identity::{ClusterCa, Identity, IdentityError, PrivateKey, store};
use vt_protocol::ids::{ClusterId, HostId, Name, TokenId};
use vt_protocol::join::{Member, host_id_of};

const RECORD: &str = "claim";
const TOKEN: &str = "token";
const PENDING_KEY: &str = "pending.key";
const RECORD_MAX: usize = 1 << 20;

/// What a host keeps about the cluster it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: Name,
    /// This host's id.
    pub host: HostId,
    /// This host's name when it joined.
    pub name: Name,
    /// Where others reach it, as of then.
    pub advertise: SocketAddr,
    /// The hosts it was told of: the membership until the log has reached it.
    pub members: Vec<Member>,
    /// The generation the cluster was in then.
    pub generation: u64,
}

/// The layout of the first builds, which knew one generation.
#[derive(Serialize, Deserialize)]
struct RecordV1 {
    cluster: ClusterId,
    cluster_name: Name,
    host: HostId,
    name: Name,
    advertise: SocketAddr,
    members: Vec<Member>,
}

impl Versioned for Record {
    const VERSION: u8 = 2;

    fn decode_older(version: u8, body: &[u8]) -> Result<Self, CodecError> {
        if version != 1 {
            return Err(CodecError::UnknownVersion { found: version, newest: Self::VERSION });
        }
        let RecordV1 { cluster, cluster_name, host, name, advertise, members } = codec::body_from(body)?;
        Ok(Self { cluster, cluster_name, host, name, advertise, members, generation: 1 })
    }
}

/// A claimed host's identity and record.
#[derive(Debug)]
pub struct Claim {
    /// Key and certificates.
    pub identity: Identity,
    /// What it was told.
    pub record: Record,
}

/// Why a claim could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The host belongs to a cluster already.
    #[error("{0} exists: this host belongs to a cluster already")]
    Claimed(PathBuf),
    /// A file could not be used.
    #[error("{path} cannot be used")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The record is damaged.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        #[source]
        source: CodecError,
    },
    /// A key or certificate could not be made, read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl ClaimError {
    /// As a user meets it.
    pub fn report(&self) -> Report {
        let code = match self {
            ClaimError::Claimed(_) => ErrorCode::AlreadyClaimed,
            ClaimError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorCode::DiskFull,
            ClaimError::Damaged { .. } => ErrorCode::StoreDamaged,
            _ => ErrorCode::StorageFailed,
        };
        Report::new(code, self.to_string()).caused_by(self)
    }
}

impl Claim {
    /// Reads the claim in `dir`; none for an unclaimed host.
    ///
    /// # Errors
    /// Something is there and cannot be read whole.
    pub fn load(dir: &Path) -> Result<Option<Claim>, ClaimError> {
        let path = dir.join(RECORD);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(None),
            Err(source) => return Err(ClaimError::Io { path, source }),
        };
        let record = codec::decode(&bytes, RECORD_MAX).map_err(|source| ClaimError::Damaged { path, source })?;
        Ok(Some(Claim { identity: store::load(dir)?, record }))
    }

    /// Makes a new cluster with this host as its first: a CA, a key and a certificate, written at once.
    ///
    /// # Errors
    /// The host is claimed already, or the disk refuses; nothing is left behind then.
    pub fn found(dir: &Path, cluster_name: Name, name: Name, advertise: SocketAddr) -> Result<Claim, ClaimError> {
        let cluster = ClusterId(rand::random_range(1..=u64::MAX));
        let (staging, claim) = Self::staged(dir, cluster, cluster_name, name, advertise)?;
        staging.keep(claim)
    }

    /// The claim of a first host of this cluster, with an authority of its own: not in its place yet.
    ///
    /// # Errors
    /// The host is claimed already, or the disk refuses; nothing is left behind then.
    pub fn staged(
        dir: &Path,
        cluster: ClusterId,
        cluster_name: Name,
        name: Name,
        advertise: SocketAddr,
    ) -> Result<(Staging, Claim), ClaimError> {
        let staging = Staging::fresh(dir)?;
        let ca = ClusterCa::generate(cluster)?;
        let key = PrivateKey::generate()?;
        let host = host_id_of(&key.public());
        let certificate = ca.issue_host(&key.signing_request()?, host, &name)?;
        let me = Member { host, name: name.clone(), key: key.public(), addresses: vec![advertise] };
        let identity = Identity::new(key, certificate, ca.certificate().clone())?;
        let record = Record { cluster, cluster_name, host, name, advertise, members: vec![me], generation: 1 };
        store::save_ca(&staging.dir, &ca)?;
        Ok((staging, Claim { identity, record }))
    }
}

/// The directory beside a claim's place while the claim is being made. Removed when dropped, unless it was kept, or is
/// held because the cluster may know its key.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    place: PathBuf,
    held: AtomicBool,
    resumed: bool,
}

impl Staging {
    /// An empty staging directory for the claim that is to be at `place`.
    ///
    /// # Errors
    /// The host is claimed already, or the disk refuses.
    pub fn fresh(place: &Path) -> Result<Self, ClaimError> {
        let dir = Self::check(place)?;
        remove(&dir).map_err(|source| ClaimError::Io { path: dir.clone(), source })?;
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&dir)
            .map_err(|source| ClaimError::Io { path: dir.clone(), source })?;
        Ok(Self { dir, place: place.to_owned(), held: AtomicBool::new(false), resumed: false })
    }

    /// The staging directory of a join with this token, and the key it uses: the one of an earlier try of the same
    /// join, else a new one.
    ///
    /// # Errors
    /// The host is claimed already, or the disk refuses.
    pub fn of_join(place: &Path, token: TokenId) -> Result<(Self, PrivateKey), ClaimError> {
        let dir = Self::check(place)?;
        let earlier = fs::read_to_string(dir.join(TOKEN)).is_ok_and(|found| found == token.to_string());
        if earlier
            && let Some(key) = fs::read_to_string(dir.join(PENDING_KEY)).ok().and_then(|pem| {
                // A key that was cut by a crash was never used.
                PrivateKey::from_pem(&pem).ok()
            })
        {
            return Ok((Self { dir, place: place.to_owned(), held: AtomicBool::new(true), resumed: true }, key));
        }
        let staging = Self::fresh(place)?;
        let key = PrivateKey::generate()?;
        staging.write(PENDING_KEY, key.to_pem().as_bytes())?;
        staging.write(TOKEN, token.to_string().as_bytes())?;
        sync(&staging.dir)?;
        Ok((staging, key))
    }

    /// Puts the claim in its place, at once.
    ///
    /// # Errors
    /// The disk refuses; nothing is claimed then.
    pub fn keep(self, claim: Claim) -> Result<Claim, ClaimError> {
        store::save(&self.dir, &claim.identity)?;
        let path = self.dir.join(RECORD);
        let bytes = codec::encode(&claim.record, RECORD_MAX).map_err(|source| ClaimError::Damaged { path, source })?;
        self.write(RECORD, &bytes)?;
        for name in [TOKEN, PENDING_KEY] {
            let _ = fs::remove_file(self.dir.join(name));
        }
        sync(&self.dir)?;
        fs::rename(&self.dir, &self.place).map_err(|source| ClaimError::Io { path: self.place.clone(), source })?;
        self.hold();
        sync(self.place.parent().unwrap_or_else(|| Path::new("/")))?;
        Ok(claim)
    }

    /// From now on the cluster may know the key: it stays for another try, however this one ends.
    pub fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    /// The cluster does not know the key and will not: nothing is to be left of it.
    pub fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    /// Whether the key is that of an earlier try, whose outcome is unknown.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    fn check(place: &Path) -> Result<PathBuf, ClaimError> {
        if place.exists() {
            return Err(ClaimError::Claimed(place.to_owned()));
        }
        let mut dir = place.as_os_str().to_owned();
        dir.push(".part");
        Ok(PathBuf::from(dir))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ClaimError> {
        let path = self.dir.join(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&path)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
            .map_err(|source| ClaimError::Io { path, source })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.held.load(Ordering::SeqCst)
            && let Err(error) = remove(&self.dir)
        {
            tracing::warn!(%error, path = %self.dir.display(), "what a failed join made could not be removed");
        }
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> Result<(), ClaimError> {
    fs::File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(|source| ClaimError::Io { path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_founded_cluster_is_there_whole_and_only_once() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("cluster");
        assert!(Claim::load(&place).unwrap().is_none());
        let advertise = "10.0.0.1:7465".parse().unwrap();
        let claim = Claim::found(&place, "lab".parse().unwrap(), "host1".parse().unwrap(), advertise).unwrap();
        let again = Claim::load(&place).unwrap().unwrap();
        assert_eq!(again.record, claim.record);
        assert_eq!(entries(&place), ["ca.crt", "ca.key", "claim", "host.crt", "host.key"]);
        assert_eq!(entries(root.path()), ["cluster"]);
        let twice = Claim::found(&place, "lab".parse().unwrap(), "host1".parse().unwrap(), advertise).unwrap_err();
        assert_eq!(twice.report().code, ErrorCode::AlreadyClaimed);
        assert_eq!(entries(root.path()), ["cluster"]);
    }

    #[test]
    fn a_record_of_the_first_layout_is_read() {
        let new = Record {
            cluster: ClusterId(7),
            cluster_name: "lab".parse().unwrap(),
            host: HostId(3),
            name: "host1".parse().unwrap(),
            advertise: "10.0.0.1:7465".parse().unwrap(),
            members: Vec::new(),
            generation: 1,
        };
        let Record { cluster, cluster_name, host, name, advertise, members, .. } = new.clone();
        let old = codec::encode_as(1, &RecordV1 { cluster, cluster_name, host, name, advertise, members }, 1000);
        assert_eq!(codec::decode::<Record>(&old.unwrap(), 1000).unwrap(), new);
    }

    #[test]
    fn a_join_keeps_its_key_only_while_its_outcome_is_unknown() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("cluster");
        drop(Staging::of_join(&place, TokenId(5)).unwrap());
        assert!(entries(root.path()).is_empty(), "before anything was sent, it leaves no trace");
        let (staging, key) = Staging::of_join(&place, TokenId(5)).unwrap();
        staging.hold();
        drop(staging);
        let (staging, again) = Staging::of_join(&place, TokenId(5)).unwrap();
        assert_eq!(again.public(), key.public(), "the same join has the same key");
        staging.hold();
        drop(staging);
        let (staging, other) = Staging::of_join(&place, TokenId(6)).unwrap();
        assert_ne!(other.public(), key.public(), "another token is another join");
        staging.hold();
        staging.release();
        drop(staging);
        assert!(entries(root.path()).is_empty(), "refused, it leaves no trace");
    }

    #[test]
    fn a_damaged_claim_is_an_error_and_not_an_unclaimed_host() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("cluster");
        let advertise = "10.0.0.1:7465".parse().unwrap();
        Claim::found(&place, "lab".parse().unwrap(), "host1".parse().unwrap(), advertise).unwrap();
        fs::write(place.join(RECORD), [1, 2, 3]).unwrap();
        assert_eq!(Claim::load(&place).unwrap_err().report().code, ErrorCode::StoreDamaged);
        fs::remove_file(place.join(RECORD)).unwrap();
        assert!(Claim::load(&place).is_err());
    }
}
