//! The first round trip of a connection: who is there, of which cluster, which build, speaking what.
//!
//! In TLS 1.3 the client's side of a handshake is complete before the server has looked at the client's certificate.
//! So a connection is trusted only after this round trip. The hello says who a side claims to be; what it is allowed
//! to do follows from the key it proved in the handshake, which is not decided here.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::codec::{self, CodecError};
use crate::frame::{self, FrameError, Kind, SMALL_CAP};
use crate::ids::{ClusterId, HostId};
use crate::rehearsal;
use crate::version::VersionRange;

/// The build a side reports, e.g. `0.1.0`.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
/// Longest text in a hello, in bytes; longer ones are refused.
const TEXT_MAX: usize = 200;

/// What one side says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster it belongs to or means; none for a client of the local socket and an unclaimed daemon.
    pub cluster: Option<ClusterId>,
    /// The host it is; none for vtctl and for a host that wants to join.
    pub host: Option<HostId>,
    /// Differs at every start of the process.
    pub incarnation: u64,
    /// Its build.
    pub build: String,
    /// The protocol versions it speaks.
    pub versions: VersionRange,
    /// The generation of its cluster that it is in; 0 for one that is in none. Each recovery begins the next one.
    pub generation: u64,
}

impl Hello {
    /// The hello of this build.
    pub fn of(cluster: Option<ClusterId>, host: Option<HostId>, incarnation: u64) -> Self {
        Self { cluster, host, incarnation, build: BUILD.to_owned(), versions: rehearsal::spoken(), generation: 0 }
    }

    /// The same of a host that is in this generation of its cluster.
    #[must_use]
    pub fn in_generation(self, generation: u64) -> Self {
        Self { generation, ..self }
    }
}

/// The server's answer when it goes on: its own hello and the generation both speak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The server's hello.
    pub hello: Hello,
    /// The generation of every message that follows.
    pub version: u16,
}

/// The server's answer when it does not go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The sides belong to different clusters.
    #[error("that host belongs to cluster {theirs}, not {yours}")]
    OtherCluster {
        /// The cluster of the refusing side.
        theirs: ClusterId,
        /// The cluster the hello named.
        yours: ClusterId,
    },
    /// No generation is spoken by both.
    #[error("that host (build {build}) speaks protocol {theirs}, this one {yours}")]
    Version {
        /// The generations of the refusing side.
        theirs: VersionRange,
        /// The generations the hello named.
        yours: VersionRange,
        /// The build of the refusing side.
        build: String,
    },
    /// The certificate is missing; only `join` is open.
    #[error("the {0} service needs a client certificate")]
    NoCertificate(crate::service::Service),
    /// The key is not, or no longer, in the membership, or belongs to another host than the hello names.
    #[error("the key of this side is not admitted to the cluster")]
    NotAdmitted,
    /// The certificate's kind (host or client) or role does not open this service.
    #[error("this certificate does not open the {0} service")]
    WrongKind(crate::service::Service),
    /// The certificate of a client is outside its dates.
    #[error("the client certificate is outside its dates")]
    Expired,
    /// The daemon belongs to no cluster yet.
    #[error("that daemon belongs to no cluster yet")]
    Unclaimed,
    /// The hello was not understood.
    #[error("the hello was not understood")]
    Garbled,
    /// Too many connections at once.
    #[error("that host serves too many connections")]
    Busy,
    /// The key of a client is not, or no longer, admitted.
    #[error("the key of this client is not, or no longer, admitted to the cluster")]
    Revoked,
    /// The cluster was recovered since, and one of the sides was left behind.
    #[error("that host is in generation {theirs} of the cluster, this one in {yours}")]
    Generation {
        /// The generation of the refusing side.
        theirs: u64,
        /// The generation the hello named.
        yours: u64,
    },
}

/// Why a hello failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The other side said no, and why.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The frame did not come or go.
    #[error("no hello came through")]
    Frame(#[from] FrameError),
    /// The body was not understood.
    #[error("the hello is garbled")]
    Codec(#[from] CodecError),
}

/// The client's side: says hello and waits for the answer.
pub async fn introduce<W, R>(writer: &mut W, reader: &mut R, mine: &Hello, by: Instant) -> Result<Welcome, HelloError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    frame::write(writer, Kind::Hello, &codec::encode_wire(mine, SMALL_CAP)?, by).await?;
    let answer = frame::read(reader, SMALL_CAP, by).await?;
    match answer.kind {
        Kind::Welcome => {
            let welcome: Welcome = codec::decode_wire(&answer.body, SMALL_CAP)?;
            match check(mine, &welcome.hello) {
                Ok(version) if version == welcome.version => Ok(welcome),
                Ok(_) => Err(HelloError::Refused(Refusal::Garbled)),
                Err(refusal) => Err(HelloError::Refused(refusal)),
            }
        }
        Kind::Refused => Err(HelloError::Refused(codec::decode_wire(&answer.body, SMALL_CAP)?)),
        other => Err(FrameError::Unexpected(other).into()),
    }
}

/// The server's first half: reads the client's hello.
pub async fn hear<R: AsyncRead + Unpin>(reader: &mut R, by: Instant) -> Result<Hello, HelloError> {
    let body = frame::read_kind(reader, Kind::Hello, SMALL_CAP, by).await?;
    Ok(codec::decode_wire(&body, SMALL_CAP)?)
}

/// The server's second half: welcomes or refuses.
pub async fn answer<W: AsyncWrite + Unpin>(
    writer: &mut W,
    answer: &Result<Welcome, Refusal>,
    by: Instant,
) -> Result<(), HelloError> {
    match answer {
        Ok(welcome) => frame::write(writer, Kind::Welcome, &codec::encode_wire(welcome, SMALL_CAP)?, by).await?,
        Err(refusal) => frame::write(writer, Kind::Refused, &codec::encode_wire(refusal, SMALL_CAP)?, by).await?,
    }
    Ok(())
}

/// Whether two hellos fit: the generation both speak, or why not. A side without a cluster fits any.
pub fn check(mine: &Hello, other: &Hello) -> Result<u16, Refusal> {
    if other.build.len() > TEXT_MAX {
        return Err(Refusal::Garbled);
    }
    let version = mine.versions.negotiate(other.versions).ok_or_else(|| Refusal::Version {
        theirs: mine.versions,
        yours: other.versions,
        build: mine.build.clone(),
    })?;
    match (mine.cluster, other.cluster) {
        (Some(theirs), Some(yours)) if theirs != yours => return Err(Refusal::OtherCluster { theirs, yours }),
        _ => {}
    }
    let (theirs, yours) = (mine.generation, other.generation);
    if theirs != yours && theirs != 0 && yours != 0 {
        return Err(Refusal::Generation { theirs, yours });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::version::SPOKEN;

    fn by() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    async fn meet(client: Hello, server: Hello) -> Result<Welcome, HelloError> {
        let (near, far) = tokio::io::duplex(4096);
        let (mut near_read, mut near_write) = tokio::io::split(near);
        let (mut far_read, mut far_write) = tokio::io::split(far);
        let serving = async {
            let heard = hear(&mut far_read, by()).await.unwrap();
            let verdict = check(&server, &heard).map(|version| Welcome { hello: server.clone(), version });
            answer(&mut far_write, &verdict, by()).await.unwrap();
        };
        let (met, ()) = tokio::join!(introduce(&mut near_write, &mut near_read, &client, by()), serving);
        met
    }

    #[test]
    fn a_hello_has_golden_bytes() {
        let hello = Hello {
            cluster: Some(ClusterId(7)),
            host: None,
            incarnation: 300,
            build: "0.1".to_owned(),
            versions: VersionRange { oldest: 1, newest: 2 },
            generation: 3,
        };
        let bytes = codec::encode_wire(&hello, SMALL_CAP).unwrap();
        assert_eq!(bytes, [1, 1, 7, 0, 0xac, 2, 3, b'0', b'.', b'1', 1, 2, 3]);
        let refused = codec::encode_wire(&Refusal::Unclaimed, SMALL_CAP).unwrap();
        assert_eq!(refused, [1, 6], "variants are only ever appended");
    }

    #[tokio::test]
    async fn sides_of_one_cluster_meet() {
        let mine = Hello::of(Some(ClusterId(7)), Some(HostId(1)), 5);
        let theirs = Hello::of(Some(ClusterId(7)), Some(HostId(2)), 6);
        let welcome = meet(mine, theirs.clone()).await.unwrap();
        assert_eq!(welcome, Welcome { hello: theirs, version: SPOKEN.newest });
    }

    #[tokio::test]
    async fn another_cluster_and_an_unknown_generation_are_refused_with_the_reason() {
        let mine = Hello::of(Some(ClusterId(7)), None, 5);
        let theirs = Hello::of(Some(ClusterId(8)), Some(HostId(2)), 6);
        let refused = meet(mine.clone(), theirs).await.unwrap_err();
        assert!(
            matches!(refused, HelloError::Refused(Refusal::OtherCluster { theirs: ClusterId(8), yours: ClusterId(7) })),
            "{refused:?}"
        );

        let newer = Hello { versions: VersionRange { oldest: 40, newest: 41 }, ..mine.clone() };
        let refused = meet(newer, Hello::of(Some(ClusterId(7)), Some(HostId(2)), 6)).await.unwrap_err();
        assert!(matches!(refused, HelloError::Refused(Refusal::Version { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn hosts_of_different_generations_do_not_meet_and_clients_are_of_none() {
        let mine = Hello::of(Some(ClusterId(7)), Some(HostId(1)), 5);
        let server = Hello::of(Some(ClusterId(7)), Some(HostId(2)), 6).in_generation(2);
        let refused = meet(mine.clone().in_generation(1), server.clone()).await.unwrap_err();
        assert!(
            matches!(refused, HelloError::Refused(Refusal::Generation { theirs: 2, yours: 1 })),
            "the one that was left behind is told: {refused:?}"
        );
        meet(mine.clone().in_generation(2), server.clone()).await.unwrap();
        meet(mine, server).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_checks_the_server_as_well() {
        // A server that welcomes although it belongs to another cluster.
        let (near, far) = tokio::io::duplex(4096);
        let (mut near_read, mut near_write) = tokio::io::split(near);
        let (mut far_read, mut far_write) = tokio::io::split(far);
        let mine = Hello::of(Some(ClusterId(7)), None, 5);
        let serving = async {
            hear(&mut far_read, by()).await.unwrap();
            let welcome = Welcome { hello: Hello::of(Some(ClusterId(8)), None, 1), version: 1 };
            answer(&mut far_write, &Ok(welcome), by()).await.unwrap();
        };
        let (met, ()) = tokio::join!(introduce(&mut near_write, &mut near_read, &mine, by()), serving);
        assert!(matches!(met, Err(HelloError::Refused(Refusal::OtherCluster { .. }))), "{met:?}");
    }
}
