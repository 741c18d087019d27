//! The ways into a guest: serial console, guest agent, probe, and the network; and what its probes prove.
//!
//! | file | noun |
//! |---|---|
//! | [`channel`] | a Unix socket of QEMU with a guest at its other end |
//! | [`console`] | log in, run a line of shell |
//! | [`agent`] | QEMU's guest agent |
//! | [`probe`] | the probe of the built-in image |
//! | [`reach`] | greeting of ssh and echo over the network |
//! | [`ssh`] | a shell by ssh |
//! | [`holder`] | the process that holds such a shell, whatever becomes of the daemon |
//! | [`checks`] | what of the guest is hurt, by two snapshots of its probes. Pure |
//!
//! A guest is not trusted: whatever it sends, a call ends by its deadline with an answer or a [`GuestError`] that names
//! the place, and memory stays bounded. What may not happen here: verdicts, and anything that changes the VM.

pub mod agent;
pub mod channel;
pub mod checks;
pub mod console;
pub mod holder;
pub mod probe;
pub mod reach;
pub mod ssh;

use std::{fmt, io, net::SocketAddr, path::PathBuf, time::Duration};

use vt_protocol::error::{ErrorCode, Report};

/// Where a guest was spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The serial console, by the path of its socket.
    Console(PathBuf),
    /// The guest agent, by the path of its socket.
    Agent(PathBuf),
    /// The probe, by the path of its socket.
    Probe(PathBuf),
    /// An address of the guest.
    Network(SocketAddr),
    /// A session that is held, by the path of its socket.
    Session(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Console(path) => write!(f, "serial console {}", path.display()),
            Self::Agent(path) => write!(f, "guest agent {}", path.display()),
            Self::Probe(path) => write!(f, "guest probe {}", path.display()),
            Self::Network(address) => write!(f, "guest address {address}"),
            Self::Session(path) => write!(f, "ssh session {}", path.display()),
        }
    }
}

/// Why a guest gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The socket or the address cannot be used, or broke off.
    #[error("{place}: {what}")]
    Io {
        /// Where.
        place: Place,
        /// What was done.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The other side closed the connection: the VM ended, or someone else took the channel.
    #[error("{0}: the connection was closed")]
    Closed(Place),
    /// The time was over.
    #[error("{place}: no {awaited} within {:.1} s", .waited.as_secs_f64())]
    Deadline {
        /// Where.
        place: Place,
        /// What was waited for.
        awaited: String,
        /// How long.
        waited: Duration,
        /// The end of what did arrive, for people.
        arrived: String,
    },
    /// The guest sent something that makes no sense there.
    #[error("{place}: {what}")]
    Garbled {
        /// Where.
        place: Place,
        /// What is wrong with it.
        what: String,
        /// The beginning of it, for people.
        sent: String,
    },
    /// The guest understood and said no.
    #[error("{place}: refused: {said}")]
    Refused {
        /// Where.
        place: Place,
        /// Its words.
        said: String,
    },
    /// The question itself is wrong; nothing was sent.
    #[error("{0}")]
    Question(String),
}

impl GuestError {
    /// As a user is told.
    pub fn report(&self) -> Report {
        match self {
            Self::Deadline { place: place @ Place::Console(_), arrived, .. } => {
                Report::new(ErrorCode::GuestNotBooted, self.to_string())
                    .with("channel", place.to_string())
                    .with("last seen", if arrived.is_empty() { "nothing at all" } else { arrived })
                    .help("look at the serial log in the evidence of the case")
                    .help("-p login_timeout=600, where the host is slow")
            }
            Self::Question(_) => Report::new(ErrorCode::Usage, self.to_string()),
            Self::Io { place, .. } | Self::Closed(place) | Self::Refused { place, .. } => self.unreachable(place, None),
            Self::Deadline { place, arrived, .. } => self.unreachable(place, Some(("last seen", arrived))),
            Self::Garbled { place, sent, .. } => self.unreachable(place, Some(("guest sent", sent))),
        }
    }

    fn unreachable(&self, place: &Place, seen: Option<(&str, &String)>) -> Report {
        let report = Report::new(ErrorCode::GuestUnreachable, self.to_string()).with("channel", place.to_string());
        match seen {
            Some((key, text)) if !text.is_empty() => report.with(key, text),
            _ => report,
        }
        .caused_by(self)
    }
}

/// Bytes of a guest as text to be shown: no escape sequences, no control characters but newlines, at most `most`
/// characters of the end.
pub(crate) fn shown(bytes: &[u8], most: usize) -> String {
    let text = console::plain(bytes);
    let skip = text.chars().count().saturating_sub(most);
    text.chars().skip(skip).collect()
}
