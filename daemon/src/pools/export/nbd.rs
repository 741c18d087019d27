//! The server's side of NBD on one connection, as far as QEMU's client uses it: one export, requests answered in
//! whatever order they are done.
//!
//! Source: the NBD project's `doc/proto.md` ("fixed newstyle negotiation", "simple replies"). What a client offers
//! beyond that is declined, and it does without.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Fixed newstyle, and no zeros behind the old answer.
const HANDSHAKE: u16 = 0b11;
/// The export has flags, takes flushes, and writes that are on disk when they are answered.
const EXPORT_FLAGS: u16 = 0b1101;
const FUA: u16 = 1;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const INFO: u32 = 6;
const GO: u32 = 7;

const ACK: u32 = 1;
const REP_INFO: u32 = 3;
const UNSUPPORTED: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCKS: u16 = 3;

/// Longest data of an option: a name and a list of wishes.
const OPTION_MAX: u32 = 8 << 10;
/// Most options before a client is sent away.
const OPTIONS_MAX: usize = 64;
/// Longest request, bytes. QEMU splits what is longer.
pub(super) const REQUEST_MAX: u32 = 32 << 20;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Bytes of the disk.
    Read { offset: u64, length: u32 },
    /// Write them. `safe`: they are on disk when it is answered.
    Write { offset: u64, bytes: Vec<u8>, safe: bool },
    /// All that was written is on disk when it is answered.
    Flush,
    /// It ends.
    Bye,
    /// Nothing that this server does.
    Other,
}

impl Request {
    /// How many bytes it carries, or is answered with.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Read { length, .. } => *length as usize,
            Self::Write { bytes, .. } => bytes.len(),
            Self::Flush | Self::Bye | Self::Other => 0,
        }
    }
}

/// Why a request failed, as the protocol can say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Errno {
    NotAllowed = 1,
    Io = 5,
    Invalid = 22,
    Full = 28,
}

/// Greets a client and agrees on the one export. `false`: it has left, as one does that only looked.
pub(super) async fn agree(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), length: u64) -> io::Result<bool> {
    let mut greeting = Vec::new();
    greeting.extend(MAGIC.to_be_bytes());
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend(HANDSHAKE.to_be_bytes());
    stream.write_all(&greeting).await?;
    stream.read_u32().await?;
    for _ in 0..OPTIONS_MAX {
        if stream.read_u64().await? != OPTION_MAGIC {
            return Err(strange("an option does not begin as one"));
        }
        let (option, size) = (stream.read_u32().await?, stream.read_u32().await?);
        if size > OPTION_MAX {
            return Err(strange("an option is too long"));
        }
        let mut data = vec![0; size as usize];
        stream.read_exact(&mut data).await?;
        match option {
            EXPORT_NAME => {
                let mut answer = length.to_be_bytes().to_vec();
                answer.extend(EXPORT_FLAGS.to_be_bytes());
                stream.write_all(&answer).await?;
                return Ok(true);
            }
            ABORT => {
                reply(stream, option, ACK, &[]).await?;
                return Ok(false);
            }
            INFO | GO if data.len() < 6 => reply(stream, option, INVALID, &[]).await?,
            INFO | GO => {
                let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                info.extend(length.to_be_bytes());
                info.extend(EXPORT_FLAGS.to_be_bytes());
                reply(stream, option, REP_INFO, &info).await?;
                let mut blocks = INFO_BLOCKS.to_be_bytes().to_vec();
                // Any byte may be asked for; whole pages are best.
                for size in [1, 4096, REQUEST_MAX] {
                    blocks.extend(size.to_be_bytes());
                }
                reply(stream, option, REP_INFO, &blocks).await?;
                reply(stream, option, ACK, &[]).await?;
                if option == GO {
                    return Ok(true);
                }
            }
            _ => reply(stream, option, UNSUPPORTED, &[]).await?,
        }
    }
    Err(strange("it cannot decide"))
}

async fn reply(stream: &mut (impl AsyncWrite + Unpin), option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut answer = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    answer.extend(option.to_be_bytes());
    answer.extend(kind.to_be_bytes());
    answer.extend((data.len() as u32).to_be_bytes());
    answer.extend(data);
    stream.write_all(&answer).await
}

/// The next request, with the number that its answer carries.
pub(super) async fn request(stream: &mut (impl AsyncRead + Unpin), disk: u64) -> io::Result<(u64, Request)> {
    if stream.read_u32().await? != REQUEST_MAGIC {
        return Err(strange("a request does not begin as one"));
    }
    let (flags, kind) = (stream.read_u16().await?, stream.read_u16().await?);
    let (cookie, offset, length) = (stream.read_u64().await?, stream.read_u64().await?, stream.read_u32().await?);
    let inside = length <= REQUEST_MAX && offset.checked_add(u64::from(length)).is_some_and(|end| end <= disk);
    let request = match kind {
        0 if inside => Request::Read { offset, length },
        1 if length > REQUEST_MAX => return Err(strange("a write is too long")),
        1 => {
            let mut bytes = vec![0; length as usize];
            stream.read_exact(&mut bytes).await?;
            if inside { Request::Write { offset, bytes, safe: flags & FUA != 0 } } else { Request::Other }
        }
        2 => Request::Bye,
        3 => Request::Flush,
        _ => Request::Other,
    };
    Ok((cookie, request))
}

/// Answers a request; `bytes` for a read that went well.
pub(super) async fn answer(
    stream: &mut (impl AsyncWrite + Unpin),
    cookie: u64,
    result: Result<Vec<u8>, Errno>,
) -> io::Result<()> {
    let error = result.as_ref().err().map_or(0, |errno| *errno as u32);
    let bytes = result.unwrap_or_default();
    let mut answer = Vec::with_capacity(16 + bytes.len());
    answer.extend(REPLY_MAGIC.to_be_bytes());
    answer.extend(error.to_be_bytes());
    answer.extend(cookie.to_be_bytes());
    answer.extend(bytes);
    stream.write_all(&answer).await
}

fn strange(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client sends after the greeting, and what it is then told.
    async fn talk(sent: &[u8]) -> (io::Result<bool>, Vec<u8>) {
        let (mut server, mut client) = tokio::io::duplex(1 << 16);
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let agreed = agree(&mut server, 1 << 20).await;
        drop(server);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        (agreed, heard)
    }

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[tokio::test]
    async fn a_client_that_wants_more_is_told_no_and_goes_on() {
        let structured = option(8, &[]);
        let go = option(GO, &[0; 6]);
        let sent = [&[0, 0, 0, 3][..], &structured, &go].concat();
        let (agreed, heard) = talk(&sent).await;
        assert!(agreed.unwrap());
        assert_eq!(heard[..8], *b"NBDMAGIC");
        assert_eq!(heard[18 + 12..18 + 16], UNSUPPORTED.to_be_bytes());
        let (agreed, _) = talk(&[&[0, 0, 0, 3][..], &option(ABORT, &[])].concat()).await;
        assert!(!agreed.unwrap());
    }

    #[tokio::test]
    async fn rubbish_is_sent_away() {
        assert!(talk(b"GET / HTTP/1.1\r\n\r\n").await.0.is_err());
        let mut long = option(GO, &[]);
        long[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(talk(&[&[0; 4][..], &long].concat()).await.0.is_err());
        assert!(talk(&[0, 0]).await.0.is_err(), "cut");
    }

    #[tokio::test]
    async fn requests_are_bounded_by_the_disk() {
        let words = |kind: u16, offset: u64, length: u32| {
            let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
            bytes.extend([0, 1]);
            bytes.extend(kind.to_be_bytes());
            bytes.extend(7u64.to_be_bytes());
            bytes.extend(offset.to_be_bytes());
            bytes.extend(length.to_be_bytes());
            bytes
        };
        let read = |bytes: Vec<u8>| async move { request(&mut &bytes[..], 1 << 20).await };
        let (cookie, got) = read(words(0, 4096, 512)).await.unwrap();
        assert_eq!((cookie, got), (7, Request::Read { offset: 4096, length: 512 }));
        assert_eq!(read(words(0, 1 << 20, 1)).await.unwrap().1, Request::Other);
        assert_eq!(read(words(0, u64::MAX, 2)).await.unwrap().1, Request::Other);
        assert!(read(words(1, 0, u32::MAX)).await.is_err());
        let write = [words(1, 0, 2), b"ab".to_vec()].concat();
        assert_eq!(read(write).await.unwrap().1, Request::Write { offset: 0, bytes: b"ab".to_vec(), safe: true });
        let outside = [words(1, (1 << 20) - 1, 2), b"ab".to_vec()].concat();
        assert_eq!(read(outside).await.unwrap().1, Request::Other, "its bytes are taken off the wire all the same");
        assert!(read(b"rubbish rubbish rubbish".to_vec()).await.is_err());
    }
}
