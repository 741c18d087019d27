//! One request and its reply, or its many replies, on one pair of streams.
//!
//! The time that is left travels with the request, as a span, not as a point in time: no clock is compared with
//! another. A failure says whether the request may have been done, because a caller that repeats must know.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::codec::{self, CodecError};
use crate::error::{ErrorCode, Report};
use crate::frame::{self, FrameError, Kind, MESSAGE_CAP};
use crate::hello::{HelloError, Refusal};
use crate::ids::HostId;

/// Bytes in front of a request's payload: the time left, in milliseconds.
const LEFT_LEN: usize = 4;
/// How long a frame of a reply may take once nothing else bounds it.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Why a call has no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The membership names no such host, or no address of it.
    #[error("no address is known of host {0}")]
    UnknownHost(HostId),
    /// No connection came up; nothing was sent.
    #[error("{to} cannot be reached: {why}")]
    Unreachable {
        /// Address or socket.
        to: String,
        /// What the system or the peer said.
        why: String,
    },
    /// One side does not trust the authority of the other's certificate; nothing was sent.
    #[error("{}", other_authority(*.ours))]
    OtherAuthority {
        /// The address.
        to: SocketAddr,
        /// Whether it is this side's certificate that is not trusted.
        ours: bool,
    },
    /// The other side refused the connection.
    #[error("{to} refused the connection: {refusal}")]
    Refused {
        /// Address or socket.
        to: String,
        /// Why.
        refusal: Refusal,
    },
    /// The other side answers with another key than the membership admits.
    #[error("{to} does not hold the key of {host}")]
    WrongKey {
        /// The address.
        to: SocketAddr,
        /// Whose key was wanted.
        host: HostId,
    },
    /// The request reached the other side and failed there.
    #[error("{0}")]
    Failed(Box<Report>),
    /// The time ran out. When `sent`, the request may have been done.
    #[error("no answer came in time")]
    Deadline {
        /// Whether the request was on its way.
        sent: bool,
    },
    /// The connection broke. When `sent`, the request may have been done.
    #[error("the connection broke")]
    Broken {
        /// Whether the request was on its way.
        sent: bool,
        /// How.
        #[source]
        source: FrameError,
    },
    /// A message could not be encoded, or the reply not be decoded.
    #[error("a message is not usable")]
    Codec(#[from] CodecError),
}

fn other_authority(ours: bool) -> &'static str {
    if ours {
        "the daemon does not trust the authority of this side's certificate"
    } else {
        "the daemon's certificate is of an authority that this side does not know"
    }
}

impl CallError {
    /// Whether the request may have been done although no reply came.
    pub fn may_be_done(&self) -> bool {
        matches!(self, CallError::Deadline { sent: true } | CallError::Broken { sent: true, .. } | CallError::Codec(_))
    }

    /// What a hello's failure means for a call to `to`.
    pub fn of_hello(to: impl ToString, error: HelloError) -> Self {
        match error {
            HelloError::Refused(refusal) => CallError::Refused { to: to.to_string(), refusal },
            HelloError::Frame(FrameError::Deadline) => CallError::Deadline { sent: false },
            HelloError::Frame(source) => CallError::Broken { sent: false, source },
            HelloError::Codec(error) => CallError::Codec(error),
        }
    }

    /// As a user meets it.
    pub fn report(&self) -> Report {
        let report = match self {
            CallError::Failed(report) => return (**report).clone(),
            CallError::UnknownHost(host) => {
                Report::new(ErrorCode::UnknownHost, "no host of the cluster has this id").with("host", host.to_string())
            }
            CallError::Unreachable { to, why } => Report::new(ErrorCode::Unreachable, "no daemon answered")
                .with("address", to.clone())
                .with("reason", why.clone())
                .retryable(),
            CallError::OtherAuthority { to, .. } => Report::new(ErrorCode::OtherAuthority, self.to_string())
                .with("address", to.to_string())
                .help("vtctl cluster ca show   (on a host of the cluster: whether the authority was changed)")
                .help("vtctl cluster token create --role client-runner   (an admin: for a new certificate)")
                .help("vtctl config use-context --join TOKEN   (here)"),
            CallError::Refused { to, refusal } => {
                let code = match refusal {
                    Refusal::OtherCluster { .. } => ErrorCode::OtherCluster,
                    Refusal::Version { .. } => ErrorCode::WireVersion,
                    Refusal::Unclaimed => ErrorCode::Unclaimed,
                    Refusal::NotAdmitted => ErrorCode::HostRemoved,
                    Refusal::Generation { .. } => ErrorCode::OldGeneration,
                    Refusal::Garbled | Refusal::Busy => ErrorCode::Unreachable,
                    Refusal::NoCertificate(_) | Refusal::WrongKind(_) => ErrorCode::Denied,
                    Refusal::Expired => ErrorCode::CertificateExpired,
                    Refusal::Revoked => ErrorCode::ClientRevoked,
                };
                let report = Report::new(code, refusal.to_string()).with("address", to.clone());
                match refusal {
                    Refusal::Expired | Refusal::Revoked => new_certificate(report),
                    _ => report,
                }
            }
            CallError::WrongKey { to, host } => {
                Report::new(ErrorCode::Denied, "the host that answered does not hold the admitted key")
                    .with("address", to.to_string())
                    .with("host", host.to_string())
            }
            CallError::Deadline { sent } => Report::new(ErrorCode::DeadlinePassed, "no answer came in time")
                .with("sent", if *sent { "yes: it may still happen" } else { "no" })
                .retryable(),
            CallError::Broken { source, .. } => Report::new(ErrorCode::Unreachable, "the connection broke")
                .with("reason", source.to_string())
                .retryable(),
            CallError::Codec(error) => {
                Report::new(ErrorCode::WireVersion, "a message was not understood").with("reason", error.to_string())
            }
        };
        report.caused_by(self)
    }
}

/// What to type where a client's certificate is of no use any more.
pub fn new_certificate(report: Report) -> Report {
    report
        .help("vtctl cluster token create --role client-runner   (an admin, on a host of the cluster)")
        .help("vtctl config use-context --join TOKEN   (here)")
}

/// Sends a request and waits for its one reply.
pub async fn ask<W, R>(
    writer: &mut W,
    reader: &mut R,
    payload: &[u8],
    cap: usize,
    by: Instant,
) -> Result<Vec<u8>, CallError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    send_request(writer, payload, cap, by).await?;
    match next_reply(reader, cap, by).await? {
        Some(reply) => Ok(reply),
        None => Err(CallError::Broken { sent: true, source: FrameError::Unexpected(Kind::End) }),
    }
}

/// Sends a request; its replies are read with [`next_reply`].
pub async fn send_request<W: AsyncWrite + Unpin>(
    writer: &mut W,
    payload: &[u8],
    cap: usize,
    by: Instant,
) -> Result<(), CallError> {
    if payload.len() + LEFT_LEN > cap {
        return Err(CodecError::TooLong { len: payload.len(), cap: cap.saturating_sub(LEFT_LEN) }.into());
    }
    let left = by.saturating_duration_since(Instant::now()).as_millis();
    if left == 0 {
        return Err(CallError::Deadline { sent: false });
    }
    let mut body = Vec::with_capacity(LEFT_LEN + payload.len());
    body.extend_from_slice(&u32::try_from(left).unwrap_or(u32::MAX).to_le_bytes());
    body.extend_from_slice(payload);
    frame::write(writer, Kind::Request, &body, by).await.map_err(sent)
}

/// Reads the next reply; none after the last.
pub async fn next_reply<R: AsyncRead + Unpin>(
    reader: &mut R,
    cap: usize,
    by: Instant,
) -> Result<Option<Vec<u8>>, CallError> {
    let frame = frame::read(reader, cap, by).await.map_err(sent)?;
    match frame.kind {
        Kind::Reply => Ok(Some(frame.body)),
        Kind::End => Ok(None),
        Kind::Failure => Err(CallError::Failed(Box::new(codec::decode_wire(&frame.body, cap)?))),
        other => Err(CallError::Broken { sent: true, source: FrameError::Unexpected(other) }),
    }
}

fn sent(error: FrameError) -> CallError {
    match error {
        FrameError::Deadline => CallError::Deadline { sent: true },
        source => CallError::Broken { sent: true, source },
    }
}

/// The server's side: reads a request and the time its caller waits, cut to `longest`.
pub async fn take_request<R: AsyncRead + Unpin>(
    reader: &mut R,
    cap: usize,
    longest: Duration,
    by: Instant,
) -> Result<(Vec<u8>, Instant), FrameError> {
    let mut body = frame::read_kind(reader, Kind::Request, cap, by).await?;
    let Some(left) = body.first_chunk::<LEFT_LEN>().copied() else { return Err(FrameError::Truncated) };
    body.drain(..LEFT_LEN);
    let left = Duration::from_millis(u32::from_le_bytes(left).into()).min(longest);
    Ok((body, Instant::now() + left))
}

/// The server's side: one reply.
pub async fn put_reply<W: AsyncWrite + Unpin>(writer: &mut W, reply: &[u8]) -> Result<(), FrameError> {
    frame::write(writer, Kind::Reply, reply, Instant::now() + WRITE_TIME).await
}

/// The server's side: there are no more replies.
pub async fn put_end<W: AsyncWrite + Unpin>(writer: &mut W) -> Result<(), FrameError> {
    frame::write(writer, Kind::End, &[], Instant::now() + WRITE_TIME).await
}

/// The server's side: the request failed.
pub async fn put_failure<W: AsyncWrite + Unpin>(writer: &mut W, report: &Report) -> Result<(), FrameError> {
    // A report is bounded far below the cap, so encoding it cannot fail on length; nothing else can fail.
    let body = codec::encode_wire(report, MESSAGE_CAP).unwrap_or_default();
    frame::write(writer, Kind::Failure, &body, Instant::now() + WRITE_TIME).await
}

/// A stream of replies, as its caller reads it. Dropping it tells the other side to stop.
pub struct Replies<T> {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Kept open: its end would tell the other side that we are gone.
    _writer: Box<dyn Send>,
    cap: usize,
    ended: bool,
    item: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Replies<T> {
    /// Replies that arrive on `reader`; `keep` lives as long as they are wanted.
    pub fn new(reader: impl AsyncRead + Send + Unpin + 'static, keep: impl Send + 'static, cap: usize) -> Self {
        let item = std::marker::PhantomData;
        Self { reader: Box::new(reader), _writer: Box::new(keep), cap, ended: false, item }
    }

    /// The next reply; none after the last. Must not be dropped half-way: a reply could be lost.
    pub async fn next(&mut self, by: Instant) -> Result<Option<T>, CallError> {
        if self.ended {
            return Ok(None);
        }
        match next_reply(&mut self.reader, self.cap, by).await {
            Ok(Some(reply)) => Ok(Some(codec::decode_wire(&reply, self.cap)?)),
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Err(error) => {
                self.ended = true;
                Err(error)
            }
        }
    }
}

/// Encodes a message for a payload.
pub fn encode<T: Serialize>(message: &T, cap: usize) -> Result<Vec<u8>, CallError> {
    Ok(codec::encode_wire(message, cap)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_left_travels_and_is_cut() {
        let (mut near, mut far) = tokio::io::duplex(4096);
        let start = Instant::now();
        send_request(&mut near, b"do", 64, start + Duration::from_millis(2500)).await.unwrap();
        let (payload, until) = take_request(&mut far, 64, Duration::from_secs(60), by()).await.unwrap();
        assert_eq!((payload.as_slice(), until - start), (b"do".as_slice(), Duration::from_millis(2500)));
        send_request(&mut near, b"do", 64, start + Duration::from_secs(9)).await.unwrap();
        let (_, until) = take_request(&mut far, 64, Duration::from_secs(3), by()).await.unwrap();
        assert_eq!(until - start, Duration::from_secs(3));
    }

    #[tokio::test]
    async fn a_failure_reaches_the_caller_as_it_was_written() {
        let (near, mut far) = tokio::io::duplex(4096);
        let (mut reader, mut writer) = tokio::io::split(near);
        let report = Report::new(ErrorCode::HostBusy, "host h2 serves another attempt").with("attempt", "a.1.1");
        let serving = async {
            take_request(&mut far, 64, Duration::from_secs(3), by()).await.unwrap();
            put_failure(&mut far, &report).await.unwrap();
        };
        let (asked, ()) = tokio::join!(ask(&mut writer, &mut reader, b"x", 4096, by()), serving);
        let error = asked.unwrap_err();
        assert!(!error.may_be_done(), "a failure is an answer");
        assert_eq!(error.report(), report);
    }

    #[tokio::test]
    async fn a_broken_call_says_whether_it_may_be_done() {
        let (near, far) = tokio::io::duplex(4096);
        let (mut reader, mut writer) = tokio::io::split(near);
        let hanging_up = async {
            let mut far = far;
            take_request(&mut far, 64, Duration::from_secs(3), by()).await.unwrap();
        };
        let (asked, ()) = tokio::join!(ask(&mut writer, &mut reader, b"x", 4096, by()), hanging_up);
        assert!(asked.unwrap_err().may_be_done());
        let late = send_request(&mut writer, b"x", 64, Instant::now()).await.unwrap_err();
        assert!(!late.may_be_done(), "nothing was sent");
        let long = send_request(&mut writer, &[0; 61], 64, by()).await.unwrap_err();
        assert!(matches!(long, CallError::Codec(CodecError::TooLong { .. })));
    }

    #[tokio::test]
    async fn a_stream_ends_once_and_for_all() {
        let (near, mut far) = tokio::io::duplex(4096);
        put_reply(&mut far, &encode(&7u32, 64).unwrap()).await.unwrap();
        put_reply(&mut far, &encode(&8u32, 64).unwrap()).await.unwrap();
        put_end(&mut far).await.unwrap();
        let mut replies = Replies::<u32>::new(near, (), 64);
        assert_eq!(replies.next(by()).await.unwrap(), Some(7));
        assert_eq!(replies.next(by()).await.unwrap(), Some(8));
        assert_eq!(replies.next(by()).await.unwrap(), None);
        assert_eq!(replies.next(by()).await.unwrap(), None);
    }
}
