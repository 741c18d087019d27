//! A Unix socket of QEMU with a guest at its other end: connected with patience, read with a deadline and a bound.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, sleep, timeout_at},
};

use super::{GuestError, Place, shown};

/// How often a socket that is not there yet is tried.
const RETRY: Duration = Duration::from_millis(50);
/// Bytes read at once.
const READ_BYTES: usize = 4096;
/// Characters of what arrived that an error quotes.
const QUOTED: usize = 400;

/// A connection to one channel of a guest.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    place: Place,
    /// Read and not yet taken.
    pending: Vec<u8>,
    /// The bound of `pending`.
    most: usize,
}

impl Channel {
    /// Connects, and tries again until the deadline while the socket is not there or not listened to. `most`: most
    /// bytes kept that were read and not taken.
    ///
    /// # Errors
    /// The last reason of the system, when the deadline passes.
    pub async fn connect(path: &Path, place: Place, most: usize, deadline: Instant) -> Result<Self, GuestError> {
        loop {
            match timeout_at(deadline, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => return Ok(Self::over(stream, place, most)),
                Ok(Err(source)) if Instant::now() + RETRY >= deadline || !may_come(&source) => {
                    return Err(GuestError::Io { place, what: "cannot be connected", source });
                }
                Ok(Err(_)) => sleep(RETRY).await,
                Err(_) => {
                    let source = io::ErrorKind::TimedOut.into();
                    return Err(GuestError::Io { place, what: "cannot be connected", source });
                }
            }
        }
    }

    /// Over a stream that is connected.
    pub fn over(stream: UnixStream, place: Place, most: usize) -> Self {
        Self { stream, place, pending: Vec::new(), most }
    }

    /// Where it leads.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The connection broke, or QEMU took nothing until the deadline.
    pub async fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), GuestError> {
        match timeout_at(deadline, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(self.broken(source)),
            Err(_) => Err(self.late("room for what was sent", Duration::ZERO)),
        }
    }

    /// Reads what is there, or waits for something until the deadline. Returns whether anything came.
    ///
    /// # Errors
    /// The connection ended, or more is pending than this channel keeps.
    pub async fn read(&mut self, deadline: Instant) -> Result<bool, GuestError> {
        let mut bytes = [0; READ_BYTES];
        match timeout_at(deadline, self.stream.read(&mut bytes)).await {
            Err(_) => Ok(false),
            Ok(Ok(0)) => Err(GuestError::Closed(self.place.clone())),
            Ok(Err(source)) => Err(self.broken(source)),
            Ok(Ok(length)) => {
                self.pending.extend_from_slice(&bytes[..length]);
                if self.pending.len() <= self.most {
                    return Ok(true);
                }
                let sent = shown(&self.pending[..QUOTED.min(self.pending.len())], QUOTED);
                self.pending = Vec::new();
                let what = format!("more than {} bytes without an end", self.most);
                Err(GuestError::Garbled { place: self.place.clone(), what, sent })
            }
        }
    }

    /// The next line, without its end; `None` when none came until the deadline.
    ///
    /// # Errors
    /// As [`Channel::read`].
    pub async fn line(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, GuestError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.pending[searched..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.pending.drain(..=searched + end).collect();
                line.pop();
                return Ok(Some(line));
            }
            searched = self.pending.len();
            if !self.read(deadline).await? {
                return Ok(None);
            }
        }
    }

    /// What was read and not taken.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Forgets all but the last `keep` bytes of what is pending.
    pub fn forget_but(&mut self, keep: usize) {
        let gone = self.pending.len().saturating_sub(keep);
        self.pending.drain(..gone);
    }

    /// The error of a wait that was in vain.
    pub fn late(&self, awaited: &str, waited: Duration) -> GuestError {
        GuestError::Deadline {
            place: self.place.clone(),
            awaited: awaited.into(),
            waited,
            arrived: shown(&self.pending, QUOTED),
        }
    }

    /// The error of an answer that makes no sense.
    pub fn garbled(&self, what: impl Into<String>, sent: &[u8]) -> GuestError {
        let sent = shown(&sent[..sent.len().min(QUOTED)], QUOTED);
        GuestError::Garbled { place: self.place.clone(), what: what.into(), sent }
    }

    fn broken(&self, source: io::Error) -> GuestError {
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => GuestError::Closed(self.place.clone()),
            _ => GuestError::Io { place: self.place.clone(), what: "broke off", source },
        }
    }
}

/// Whether the socket may yet appear or be listened to.
fn may_come(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted
    )
}
