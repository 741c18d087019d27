//! What vtd and its helper process vt-libvirt say to each other: one JSON object a line, calls one way, answers the
//! other, in any order.
//!
//! libvirt's calls block, and its library has taken processes with it; so it is linked by vt-libvirt alone. What may not
//! happen here: a decision. The helper does what it is told and says what libvirt said.

use serde::{Deserialize, Serialize};

use crate::vm::Copying;

/// The helper binary, beside vtd.
pub const PROGRAM: &str = "vt-libvirt";
/// The parameter of a VM with a domain of its user's, as text.
pub const DOMAIN_PARAM: &str = "libvirt_domain_xml";
/// Longest such text, bytes.
pub const DOMAIN_MAX: usize = 64 << 10;
/// Longest line either way, bytes. A domain's description is a few thousand.
pub const LINE_MAX: usize = 1 << 20;
/// Most calls at a time; a further one is refused.
pub const CALLS_MAX: usize = 32;

/// A call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The answer has the same.
    pub id: u64,
    /// What is wanted.
    pub request: Request,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the call.
    pub id: u64,
    /// What came of it.
    pub result: Result<Reply, Refusal>,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Connect, and say to what.
    Hello,
    /// Start a transient domain, its CPUs stopped.
    Start {
        /// Its description.
        xml: String,
    },
    /// How a domain is.
    State {
        /// Its name.
        domain: String,
    },
    /// Move it; answered when it is over.
    Migrate(Box<Migrate>),
    /// Give the move up that is under way.
    Abort {
        /// Its name.
        domain: String,
    },
    /// Go over to post-copy, in a move that may ([`Modes::postcopy`]).
    StartPostcopy {
        /// Its name.
        domain: String,
    },
}

/// A move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrate {
    /// The domain's name.
    pub domain: String,
    /// libvirt of the destination, as libvirt of the source reaches it.
    pub to: String,
    /// Where the destination's QEMU listens: `tcp://ADDRESS`.
    pub uri: String,
    /// The domain as the destination is to have it.
    pub xml: String,
    /// The name that the certificate of the destination has, where it goes with TLS.
    pub tls: Option<String>,
    /// How.
    pub modes: Modes,
}

/// How a domain moves: peer to peer unless [`Modes::managed`], live unless [`Modes::offline`], and paused at the destination
/// but for a post-copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// The helper speaks with the libvirts of both sides, instead of one of them with the other.
    pub managed: bool,
    /// With its CPUs stopped from the beginning.
    pub offline: bool,
    /// Give up when a disk fails meanwhile.
    pub abort_on_error: bool,
    /// MiB/s.
    pub bandwidth: Option<u64>,
    /// Milliseconds that the guest may stand still.
    pub downtime: Option<u64>,
    /// Through how many connections beside the first.
    pub parallel: Option<u32>,
    /// Those without copies of what they send.
    pub zero_copy: bool,
    /// Slow the guest down until it converges; where it begins and by how much, percent.
    pub auto_converge: Option<Throttle>,
    /// How its memory is compressed.
    pub compression: Option<Compression>,
    /// Through the connection of the two libvirts instead of one between the QEMUs.
    pub tunnelled: bool,
    /// With its own disks.
    pub copying: Option<Copying>,
    /// It can go over to post-copy. libvirt lets it run at the destination by itself then.
    pub postcopy: Option<Postcopy>,
}

/// How the pages that a post-copy left behind are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postcopy {
    /// MiB/s; no bound where there is none.
    pub bandwidth: Option<u64>,
}

/// How memory is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Pages that were sent before, by what changed in them.
    Xbzrle {
        /// The size of its cache, bytes.
        cache: u64,
    },
    /// Each connection of [`Modes::parallel`], by zlib.
    Zlib {
        /// 0 to 9; the library's own where there is none.
        level: Option<u32>,
    },
    /// The same by zstd.
    Zstd {
        /// 0 to 20.
        level: Option<u32>,
    },
    /// By several threads, through one connection.
    Mt {
        /// 0 to 9; QEMU's own where there is none, as of the others.
        level: Option<u32>,
        /// How many compress.
        threads: Option<u32>,
        /// How many at the destination undo it.
        decompress: Option<u32>,
    },
}

/// How much a guest is slowed down. Percent of its CPU time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// At first.
    pub initial: Option<u32>,
    /// Each time.
    pub increment: Option<u32>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// To what the helper is connected.
    Hello(Hello),
    /// How the domain is; `None`: it is not there.
    State(Option<DomainState>),
}

/// To what the helper is connected. Versions as `major.minor.release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The library.
    pub library: String,
    /// The daemon.
    pub daemon: String,
    /// The hypervisor that it would start.
    pub hypervisor: String,
    /// The name of its host, which is not that of another.
    pub host: String,
}

/// A domain that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainState {
    /// Its CPUs.
    pub cpus: Running,
    /// Whether libvirt is at work on it, as it is while it moves it.
    pub busy: bool,
}

/// What a domain's CPUs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Running {
    /// Its CPUs run.
    Yes,
    /// They do not.
    Paused,
    /// There are none: it has ended and is still known.
    Ended,
}

/// Why something was not done, in libvirt's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// libvirt's number of it (`virErrorNumber`); 0 where it is the helper that refuses.
    pub code: u32,
    /// What it said.
    pub message: String,
    /// The connection to it broke meanwhile: it may have been done all the same.
    #[serde(default)]
    pub lost: bool,
}

impl Refusal {
    /// There is no such domain (`VIR_ERR_NO_DOMAIN`).
    pub const NO_DOMAIN: u32 = 42;

    /// Of the helper itself.
    pub fn ours(message: impl Into<String>) -> Self {
        Self { code: 0, message: message.into(), lost: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_golden() {
        let call = Call { id: 7, request: Request::State { domain: "vm1".to_owned() } };
        assert_eq!(serde_json::to_string(&call).unwrap(), r#"{"id":7,"request":{"state":{"domain":"vm1"}}}"#);
        let answer =
            Answer { id: 7, result: Ok(Reply::State(Some(DomainState { cpus: Running::Paused, busy: true }))) };
        let line = r#"{"id":7,"result":{"Ok":{"state":{"cpus":"paused","busy":true}}}}"#;
        assert_eq!(serde_json::to_string(&answer).unwrap(), line);
        let refused = Answer { id: 8, result: Err(Refusal::ours("no")) };
        assert_eq!(
            serde_json::to_string(&refused).unwrap(),
            r#"{"id":8,"result":{"Err":{"code":0,"message":"no","lost":false}}}"#
        );
    }
}
