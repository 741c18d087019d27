//! The settings of a daemon: what files and flags say, with defaults for all they do not say.
//!
//! `default.toml` is the documentation and is read by the same reader as a user's file. Nothing here looks at the
//! machine except for the defaults that depend on it, which [`Settings::resolve`] fills in.

mod read;
mod rules;
mod sources;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
};

use sources::Layer;

use crate::qemu::binaries::Binaries;

pub use self::{
    read::{Mistake, SettingsError},
    sources::{Flags, Origin},
};

/// The documented default, as `vtd settings --default` prints it.
pub const DEFAULT: &str = include_str!("default.toml");
/// Where settings are read from when no file is named; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/vtmesh/vtd.toml";

/// All settings. `None` stands for a default that depends on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// This host.
    pub host: HostSettings,
    /// Directories.
    pub paths: Paths,
    /// Whether all hosts see the same images and disks.
    pub pool_shared: bool,
    /// The network of guests and migrations.
    pub network: Network,
    /// How many VMs leave this host at once.
    pub moves: Moves,
    /// The QEMUs of this host.
    pub qemus: Binaries,
    /// libvirt of this host; `None`: it is not used.
    pub libvirt: Option<LibvirtSettings>,
    /// Times of the session.
    pub session: SessionTimes,
    /// Times of consensus.
    pub raft: RaftTimes,
    /// A voter that does not answer for so long is replaced.
    pub voter_away: Duration,
    /// How much evidence of jobs that have ended stays.
    pub evidence: EvidenceSettings,
    /// The daemon's own log.
    pub log: Log,
}

/// How libvirt of a host is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LibvirtSettings {
    /// By this host.
    pub uri: String,
    /// By libvirt of another host.
    pub peer: String,
    /// Where its QEMUs find their certificates; `None`: no VM moves with TLS.
    pub certificates: Option<PathBuf>,
}

/// How much evidence of jobs that have ended stays on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvidenceSettings {
    /// What is older is removed.
    pub keep: Duration,
    /// Bytes that all of it may take; the oldest goes first.
    pub most_bytes: u64,
}

/// Who and where this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSettings {
    /// Its name, until the cluster gives it one.
    pub name: Option<Name>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others reach it.
    pub advertise: Option<SocketAddr>,
    /// What kind of host it is.
    pub kind: Kind,
}

/// What kind of host it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A machine.
    Metal,
    /// A virtual machine.
    Vm,
    /// A network namespace of a lab.
    Namespace,
}

impl Kind {
    /// As it is written and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metal => "metal",
            Self::Vm => "vm",
            Self::Namespace => "namespace",
        }
    }
}

/// Directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Identity, log, blobs, attempts, bundles.
    pub data: PathBuf,
    /// Sockets.
    pub run: PathBuf,
    /// Images.
    pub images: PathBuf,
    /// Overlay disks.
    pub disks: PathBuf,
    /// Folder in the cgroup v2 hierarchy, relative to its root.
    pub cgroup: PathBuf,
}

/// The network of guests and migrations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The bridge of the taps; `None`: guests have no network card.
    pub bridge: Option<String>,
    /// The interface of macvtaps; `None`: no guest is on one.
    pub uplink: Option<String>,
    /// Addresses for guests; `None`: guests have no address.
    pub guests: Option<GuestRange>,
    /// Where migrations come in; `None`: the address of `advertise`.
    pub migration: Option<IpAddr>,
}

/// How many VMs leave a host at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moves {
    /// In all.
    pub at_once: usize,
    /// To each other host.
    pub per_link: usize,
}

/// Addresses for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestRange {
    /// The first one.
    pub first: Ipv4Addr,
    /// The last one, not below the first.
    pub last: Ipv4Addr,
    /// Length of their network prefix, 8 to 30.
    pub prefix: u8,
}

impl GuestRange {
    /// How many addresses there are, at least one.
    pub fn count(&self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// The address of a slot, counted from 0; `None` beyond the last one.
    pub fn at(&self, slot: u32) -> Option<Ipv4Addr> {
        (slot < self.count()).then(|| Ipv4Addr::from(u32::from(self.first) + slot))
    }
}

/// Times of the session; each is longer than the one before (design 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionTimes {
    /// How often a holder renews.
    pub renew: Duration,
    /// Silence after which the leader calls a host suspect.
    pub suspect: Duration,
    /// Age of the last acknowledged renewal at which VMs are paused.
    pub pause: Duration,
    /// Age at which they are killed.
    pub kill: Duration,
    /// Silence after which the leader may expire the session.
    pub expire: Duration,
}

impl SessionTimes {
    /// The times by name, in order.
    pub fn named(&self) -> [(&'static str, Duration); 5] {
        [
            ("renew", self.renew),
            ("suspect", self.suspect),
            ("pause", self.pause),
            ("kill", self.kill),
            ("expire", self.expire),
        ]
    }
}

/// Times of consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftTimes {
    /// Between heartbeats, ms.
    pub heartbeat_ms: u64,
    /// Shortest and longest election time, ms.
    pub election_ms: (u64, u64),
}

/// The daemon's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// As in RUST_LOG.
    pub filter: String,
    /// Lines of JSON instead of text.
    pub json: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: HostSettings {
                name: None,
                listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7465)),
                advertise: None,
                kind: Kind::Metal,
            },
            paths: Paths {
                data: "/var/lib/vtmesh".into(),
                run: "/run/vtmesh".into(),
                images: "/var/lib/vtmesh/images".into(),
                disks: "/var/lib/vtmesh/disks".into(),
                cgroup: "vtmesh".into(),
            },
            pool_shared: false,
            network: Network { bridge: None, uplink: None, guests: None, migration: None },
            moves: Moves { at_once: 8, per_link: 4 },
            qemus: Binaries::only("qemu-system-x86_64"),
            libvirt: None,
            session: SessionTimes {
                renew: Duration::from_millis(1000),
                suspect: Duration::from_millis(2000),
                pause: Duration::from_millis(6000),
                kill: Duration::from_millis(8000),
                expire: Duration::from_millis(12_000),
            },
            raft: RaftTimes { heartbeat_ms: 300, election_ms: (900, 1300) },
            voter_away: vt_sync::membership::AWAY,
            evidence: EvidenceSettings { keep: Duration::from_secs(30 * 86_400), most_bytes: 10_240 << 20 },
            log: Log { filter: "info,openraft=error".into(), json: false },
        }
    }
}

impl Settings {
    /// Reads a text; `file` is its name in messages.
    ///
    /// # Errors
    /// Every mistake in it, with line and column.
    pub fn parse(file: &str, text: &str) -> Result<Self, SettingsError> {
        read::settings(&[Layer { origin: Origin::File(file.to_owned()), text: text.to_owned() }])
    }

    /// Reads `file`, or [`DEFAULT_FILE`] where none is named and that one exists, then its drop-ins (`FILE.d/*.toml`), then
    /// `flags`.
    ///
    /// # Errors
    /// A file that cannot be read, or every mistake in all of them.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Self, SettingsError> {
        let mut layers = sources::files(file)?;
        layers.extend(flags.layers());
        read::settings(&layers)
    }

    /// The name this host takes where nobody gives it another one.
    ///
    /// # Errors
    /// The machine's host name cannot be made into a name.
    pub fn host_name(&self) -> Result<Name, Report> {
        if let Some(name) = &self.host.name {
            return Ok(name.clone());
        }
        let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let text = text.trim();
        let short = text.split('.').next().unwrap_or_default().to_ascii_lowercase();
        short.parse().map_err(|_| {
            Report::new(ErrorCode::Usage, format!("the machine's host name {text:?} cannot be used as a host's name"))
                .help("give one: --name NAME, or name under [host] in the settings")
        })
    }

    /// Where other hosts reach this one: as set, or the address it listens on, or its first global address.
    ///
    /// # Errors
    /// Nothing is set and the machine has no address that others could reach.
    pub fn advertise(&self) -> Result<SocketAddr, Report> {
        if let Some(address) = self.host.advertise {
            return Ok(address);
        }
        let listen = self.host.listen;
        if !listen.ip().is_unspecified() {
            return Ok(listen);
        }
        first_global_address().map(|ip| SocketAddr::new(ip, listen.port())).ok_or_else(|| {
            Report::new(ErrorCode::Usage, "this machine has no address that other hosts could reach")
                .help("give one: --advertise ADDRESS:PORT, or advertise under [host] in the settings")
        })
    }

    /// Every time that decides about sessions, leaders and votes, by the name of its key.
    pub fn times(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let millis = Duration::from_millis;
        let raft = [
            ("heartbeat", millis(self.raft.heartbeat_ms)),
            ("election_min", millis(self.raft.election_ms.0)),
            ("election_max", millis(self.raft.election_ms.1)),
            ("voter_away", self.voter_away),
        ];
        self.session.named().into_iter().chain(raft)
    }

    /// The daemon's own socket for vtctl.
    pub fn socket(&self) -> PathBuf {
        self.paths.run.join("vtd.sock")
    }
}

/// The first address that is neither loopback nor link-local; IPv4 before IPv6, interfaces in the kernel's order.
fn first_global_address() -> Option<IpAddr> {
    let mut six = None;
    for interface in nix::ifaddrs::getifaddrs().ok()? {
        let Some(address) = interface.address else { continue };
        if let Some(four) = address.as_sockaddr_in() {
            let ip = four.ip();
            if !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified() {
                return Some(ip.into());
            }
        } else if let Some(address) = address.as_sockaddr_in6() {
            let ip = address.ip();
            if !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified() {
                six = six.or(Some(IpAddr::V6(ip)));
            }
        }
    }
    six
}
