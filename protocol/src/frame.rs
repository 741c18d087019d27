//! Frames on a byte stream: length (u32, little endian), kind, version, body.
//!
//! The same frames run over QUIC streams, Unix sockets, TLS over TCP and the simulator's sockets. The length is checked
//! against a cap before anything is allocated, and memory then grows with what really arrives, so that a peer cannot
//! make us allocate by announcing. What a body means is not decided here.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// Version of the frame header.
pub const FRAME_VERSION: u8 = 1;
/// Bytes of a frame header.
pub const HEADER_LEN: usize = 6;
/// Cap of hello and other small control bodies, in bytes.
pub const SMALL_CAP: usize = 16 << 10;
/// Cap of a request or reply body, in bytes: a plan or a snapshot of 64 MiB and its wrapping.
pub const MESSAGE_CAP: usize = (64 << 20) + (64 << 10);

/// Memory is reserved in steps of this many bytes while a body arrives.
const GROWTH: usize = 256 << 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// First frame of a connection, from its client.
    Hello = 1,
    /// Answer to a hello: go on.
    Welcome = 2,
    /// Answer to a hello: refused, with the reason.
    Refused = 3,
    /// A request with its deadline.
    Request = 4,
    /// A reply; a stream of replies has many.
    Reply = 5,
    /// The request failed; nothing follows.
    Failure = 6,
    /// A stream of replies is complete.
    End = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Hello, Kind::Welcome, Kind::Refused, Kind::Request, Kind::Reply, Kind::Failure, Kind::End]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its body, without header.
    pub body: Vec<u8>,
}

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream ended between frames.
    #[error("the peer closed the stream")]
    Closed,
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The body is longer than allowed; nothing was allocated.
    #[error("a frame of {len} bytes is over the cap of {cap}")]
    TooLong {
        /// Announced length in bytes.
        len: u64,
        /// The cap in bytes.
        cap: usize,
    },
    /// The header names a frame layout this build does not know.
    #[error("frame version {0} is not known here")]
    UnknownVersion(u8),
    /// The header names no known kind.
    #[error("frame kind {0} is not known here")]
    UnknownKind(u8),
    /// A frame of another kind was due.
    #[error("a {0:?} frame came where another was due")]
    Unexpected(Kind),
    /// Nothing came, or nothing could be written, before the deadline.
    #[error("the deadline passed")]
    Deadline,
    /// The stream failed.
    #[error("the stream failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => FrameError::Truncated,
            _ => FrameError::Io(error),
        }
    }
}

/// Reads one frame whose body has at most `cap` bytes, before `deadline`.
pub async fn read<R: AsyncRead + Unpin>(reader: &mut R, cap: usize, deadline: Instant) -> Result<Frame, FrameError> {
    timeout_at(deadline, read_within(reader, cap)).await.map_err(|_| FrameError::Deadline)?
}

/// Reads one frame of the wanted kind.
pub async fn read_kind<R: AsyncRead + Unpin>(
    reader: &mut R,
    kind: Kind,
    cap: usize,
    deadline: Instant,
) -> Result<Vec<u8>, FrameError> {
    let frame = read(reader, cap, deadline).await?;
    if frame.kind == kind { Ok(frame.body) } else { Err(FrameError::Unexpected(frame.kind)) }
}

/// Writes one frame and flushes it, before `deadline`.
pub async fn write<W: AsyncWrite + Unpin>(
    writer: &mut W,
    kind: Kind,
    body: &[u8],
    deadline: Instant,
) -> Result<(), FrameError> {
    let header = header(kind, body.len())?;
    let writing = async {
        // Small frames leave in one write: one packet and one system call instead of two.
        if body.len() <= 16 << 10 {
            let mut whole = Vec::with_capacity(HEADER_LEN + body.len());
            whole.extend_from_slice(&header);
            whole.extend_from_slice(body);
            writer.write_all(&whole).await?;
        } else {
            writer.write_all(&header).await?;
            writer.write_all(body).await?;
        }
        writer.flush().await
    };
    timeout_at(deadline, writing).await.map_err(|_| FrameError::Deadline)??;
    Ok(())
}

fn header(kind: Kind, len: usize) -> Result<[u8; HEADER_LEN], FrameError> {
    let short = u32::try_from(len).map_err(|_| FrameError::TooLong { len: len as u64, cap: u32::MAX as usize })?;
    let [a, b, c, d] = short.to_le_bytes();
    Ok([a, b, c, d, kind as u8, FRAME_VERSION])
}

async fn read_within<R: AsyncRead + Unpin>(reader: &mut R, cap: usize) -> Result<Frame, FrameError> {
    let mut header = [0u8; HEADER_LEN];
    let first = reader.read(&mut header).await?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    reader.read_exact(&mut header[first..]).await?;
    let [a, b, c, d, kind, version] = header;
    if version != FRAME_VERSION {
        return Err(FrameError::UnknownVersion(version));
    }
    let kind = Kind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
    let len = u32::from_le_bytes([a, b, c, d]);
    if len as usize > cap {
        return Err(FrameError::TooLong { len: len.into(), cap });
    }
    let mut body = Vec::new();
    while body.len() < len as usize {
        let step = (len as usize - body.len()).min(GROWTH.max(body.len()));
        let start = body.len();
        body.resize(start + step, 0);
        reader.read_exact(&mut body[start..]).await?;
    }
    Ok(Frame { kind, body })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    async fn parse(bytes: &[u8], cap: usize) -> Result<Frame, FrameError> {
        let mut reader = bytes;
        read(&mut reader, cap, soon()).await
    }

    #[tokio::test]
    async fn frames_have_golden_bytes_and_come_back() {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Request, b"abc", soon()).await.unwrap();
        assert_eq!(bytes, [3, 0, 0, 0, 4, 1, b'a', b'b', b'c']);
        assert_eq!(parse(&bytes, 3).await.unwrap(), Frame { kind: Kind::Request, body: b"abc".to_vec() });
    }

    #[tokio::test]
    async fn a_large_frame_comes_back_whole() {
        let body: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Reply, &body, soon()).await.unwrap();
        assert_eq!(parse(&bytes, body.len()).await.unwrap().body, body);
    }

    #[tokio::test]
    async fn bad_headers_are_told_apart() {
        assert!(matches!(parse(&[], 9).await, Err(FrameError::Closed)));
        assert!(matches!(parse(&[1, 0], 9).await, Err(FrameError::Truncated)));
        assert!(matches!(parse(&[9, 0, 0, 0, 4, 1, 0], 9).await, Err(FrameError::Truncated)));
        assert!(matches!(parse(&[10, 0, 0, 0, 4, 1], 9).await, Err(FrameError::TooLong { len: 10, cap: 9 })));
        assert!(matches!(parse(&[0, 0, 0, 0, 4, 2], 9).await, Err(FrameError::UnknownVersion(2))));
        assert!(matches!(parse(&[0, 0, 0, 0, 99, 1], 9).await, Err(FrameError::UnknownKind(99))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_meets_the_deadline() {
        let (mut near, _far) = tokio::io::duplex(64);
        let deadline = Instant::now() + Duration::from_secs(3);
        assert!(matches!(read(&mut near, 9, deadline).await, Err(FrameError::Deadline)));
        // A reader that never drains stops the writer at the deadline as well.
        let deadline = Instant::now() + Duration::from_secs(3);
        assert!(matches!(write(&mut near, Kind::Reply, &[0; 1000], deadline).await, Err(FrameError::Deadline)));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _ = runtime.block_on(parse(&bytes, 48));
        }
    }
}
