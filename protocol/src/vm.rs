//! What a VM is made of, and how one is moved: the values that both hosts of a migration must agree on.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::{
    catalogue::ImageFormat,
    ids::{MigrationId, Name, VmId},
};

/// How a guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// The host's hardware, through /dev/kvm.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

/// A VM as a scenario asks for it. Everything that the guest can see must be the same on both sides of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Which VM of which attempt.
    pub id: VmId,
    /// The image it boots from, by name in the pool.
    pub image: Name,
    /// RAM in MiB, 32 to 1 048 576.
    pub memory_mib: u32,
    /// Virtual CPUs, 1 to 255.
    pub cpus: u16,
    /// QEMU machine type; `None`: the versioned type that `pc-q35` or `q35` resolves to on the source.
    pub machine: Option<String>,
    /// QEMU CPU model; `None`: what fits the accelerator.
    pub cpu_model: Option<String>,
    /// `None`: KVM where a functional probe passes on every host of the case, else TCG.
    pub accelerator: Option<Accelerator>,
    /// Network cards, in order.
    pub nics: Vec<Nic>,
    /// Words appended to QEMU's command line, the same on both sides.
    pub extra_args: Vec<String>,
    /// Disks beside the one it boots from, and CDs.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// Whether its disks are looked into before it starts and after it has ended.
    #[serde(default)]
    pub check_images: bool,
    /// Who starts and moves it.
    #[serde(default)]
    pub backend: Backend,
    /// Whether a thread of its own serves the disk it boots from.
    #[serde(default)]
    pub io_thread: bool,
}

/// A disk beside the one that a VM boots from, or a CD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Its name, unique in the VM; a guest sees it as the serial number of a disk.
    pub name: Name,
    /// What is in it at first.
    pub content: DriveContent,
    /// Format of its file, where one is made for it.
    pub format: ImageFormat,
    /// What the guest sees of an empty disk, of a folder or of noise, bytes.
    pub bytes: u64,
    /// A digest that its image must have.
    #[serde(default)]
    pub sum: Option<DriveSum>,
    /// Digest of the record of its image, as the source of a move has it.
    #[serde(default)]
    pub image_digest: Option<String>,
}

/// What is in a drive at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriveContent {
    /// Nothing: an empty disk.
    Blank,
    /// An image; what the guest writes goes into an overlay.
    Clone(Name),
    /// An image, as a CD.
    Cd(Name),
    /// A folder below `media` of the host's pool, as a CD.
    Folder(String),
    /// A floppy disk: an empty one, or one of a folder below `media` of the host's pool.
    Floppy(Option<String>),
    /// An image, as a floppy disk; what the guest writes goes into an overlay.
    FloppyImage(Name),
    /// The one disk of a pool, as it is: what the guest writes stays.
    Device(Name),
    /// Noise that is made for the case, as a CD.
    Noise,
}

impl DriveContent {
    /// The image that it needs.
    pub fn image(&self) -> Option<&Name> {
        match self {
            Self::Clone(image) | Self::Cd(image) | Self::FloppyImage(image) => Some(image),
            Self::Blank | Self::Folder(_) | Self::Floppy(_) | Self::Device(_) | Self::Noise => None,
        }
    }

    /// The pool whose one disk it is.
    pub fn device(&self) -> Option<&Name> {
        match self {
            Self::Device(pool) => Some(pool),
            _ => None,
        }
    }

    /// Whether the guest gets it as a CD.
    pub fn is_cd(&self) -> bool {
        matches!(self, Self::Cd(_) | Self::Folder(_) | Self::Noise)
    }

    /// Whether the guest gets it as a floppy disk.
    pub fn is_floppy(&self) -> bool {
        matches!(self, Self::Floppy(_) | Self::FloppyImage(_))
    }
}

/// A digest that configurations state for a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveSum {
    /// `md5` or `sha1`.
    pub kind: String,
    /// Hexadecimal digits.
    pub digits: String,
    /// Of how many bytes of its beginning; `None`: of all.
    pub first_bytes: Option<u64>,
}

/// A network card. Its MAC and address are the same on every host, so a guest keeps them when it moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// MAC address.
    pub mac: [u8; 6],
    /// The guest's static address, given on its kernel command line; `None`: no address.
    pub address: Option<Ipv4Addr>,
    /// Length of the network prefix of `address`, 0 to 32.
    pub prefix: u8,
    /// What the guest sees.
    #[serde(default)]
    pub model: NicModel,
}

/// Most network cards of a VM.
pub const NICS_MAX: usize = 8;

/// What a network card is for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicModel {
    /// virtio-net, for whose guests QEMU is made.
    #[default]
    Virtio,
    /// Intel 82540EM.
    E1000,
    /// Intel 82574L.
    E1000e,
    /// Realtek 8139.
    Rtl8139,
    /// VMware's.
    Vmxnet3,
}

impl NicModel {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Virtio, Self::E1000, Self::E1000e, Self::Rtl8139, Self::Vmxnet3];

    /// Its name, as libvirt and Avocado-VT have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Rtl8139 => "rtl8139",
            Self::Vmxnet3 => "vmxnet3",
        }
    }

    /// The model of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|model| model.name() == name)
    }

    /// QEMU's device.
    pub fn device(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-net-pci",
            other => other.name(),
        }
    }
}

/// Who starts a VM's QEMU and moves it. What runs is a QEMU either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The daemon itself, over QMP.
    #[default]
    Qmp,
    /// The host's libvirt.
    Libvirt,
}

/// What carries a migration's stream from QEMU to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP from QEMU to QEMU, over the address that migrations come in on.
    #[default]
    Tcp,
    /// The same over IPv6.
    Tcp6,
    /// TCP with TLS between the QEMUs; keys and certificates are made for each migration.
    Tls,
    /// Unix sockets of the QEMUs, carried by the daemons' bulk channel.
    Mesh,
    /// A descriptor given to each QEMU, carried by the daemons' bulk channel.
    Fd,
    /// A helper command of each QEMU, carried by the daemons' bulk channel.
    Exec,
    /// Saved into a file at the source; the daemons move the file; restored from it at the destination.
    File,
    /// RDMA from QEMU to QEMU.
    Rdma,
}

/// All transports with their names, in the order of [`Transport`].
pub const TRANSPORTS: [(Transport, &str); 8] = [
    (Transport::Tcp, "tcp"),
    (Transport::Tcp6, "tcp6"),
    (Transport::Tls, "tls"),
    (Transport::Mesh, "mesh"),
    (Transport::Fd, "fd"),
    (Transport::Exec, "exec"),
    (Transport::File, "file"),
    (Transport::Rdma, "rdma"),
];

/// A transport was written in a way that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("tcp, tcp6, tls, mesh (or unix), fd, exec, file or rdma")]
pub struct NoTransport;

impl std::str::FromStr for Transport {
    type Err = NoTransport;

    fn from_str(text: &str) -> Result<Self, NoTransport> {
        let name = match text {
            // Between two hosts a Unix socket needs a carrier, and ours is the mesh.
            "unix" => "mesh",
            // What QEMU called it while it was new.
            "x-rdma" => "rdma",
            name => name,
        };
        TRANSPORTS.iter().find(|(_, known)| *known == name).map(|(transport, _)| *transport).ok_or(NoTransport)
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(TRANSPORTS.iter().find(|(known, _)| known == self).map_or("?", |(_, name)| name))
    }
}

impl Transport {
    /// Whether nobody on the way between the hosts can read the stream.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls) || self.is_carried()
    }

    /// Whether the daemons carry the stream, over their own connections.
    pub fn is_carried(self) -> bool {
        matches!(self, Self::Mesh | Self::Fd | Self::Exec | Self::File)
    }

    /// How the bytes go, for people.
    pub fn way(self) -> &'static str {
        match self {
            Self::Tcp => "TCP over IPv4 from QEMU to QEMU",
            Self::Tcp6 => "TCP over IPv6 from QEMU to QEMU",
            Self::Tls => {
                "TCP with TLS from QEMU to QEMU, certificates by the cluster's authority for this migration alone"
            }
            Self::Mesh => "Unix sockets of the QEMUs, carried by the daemons' bulk channel (TCP with TLS)",
            Self::Fd => "descriptors given to the QEMUs, carried by the daemons' bulk channel (TCP with TLS)",
            Self::Exec => "`vtd pipe` run by the QEMUs, carried by the daemons' bulk channel (TCP with TLS)",
            Self::File => "a file of the source's QEMU, moved by the daemons' bulk channel (TCP with TLS)",
            Self::Rdma => "RDMA from QEMU to QEMU",
        }
    }
}

/// How a VM went: what carried it, and whether anybody could read it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct How {
    /// What carried it.
    pub transport: Transport,
    /// Whether nobody on the way between the hosts could read it.
    pub encrypted: bool,
    /// The way of the bytes, in words.
    pub way: String,
    /// Whether the guest was paused for the whole transfer.
    pub offline: bool,
}

impl How {
    /// As a spec wants it.
    pub fn of(spec: &MigrationSpec) -> Self {
        let transport = spec.transport;
        Self { transport, encrypted: transport.is_encrypted(), way: transport.way().to_owned(), offline: spec.offline }
    }
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let encrypted = if self.encrypted { "encrypted" } else { "not encrypted" };
        let offline = if self.offline { ", the guest paused" } else { "" };
        write!(f, "{}: {}, {encrypted}{offline}", self.transport, self.way)
    }
}

/// How a VM is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationSpec {
    /// What carries the stream.
    #[serde(default)]
    pub transport: Transport,
    /// Pause the guest at the source before the transfer begins; it goes on where it is afterwards.
    #[serde(default)]
    pub offline: bool,
    /// QEMU migration capabilities, by QEMU's name. Set on both sides and read back.
    pub capabilities: BTreeMap<String, bool>,
    /// QEMU migration parameters with integer values, by QEMU's name (`max-bandwidth` in bytes/s, `downtime-limit` in ms).
    pub parameters: BTreeMap<String, u64>,
    /// Those with words as values (`multifd-compression`: `zstd`).
    #[serde(default)]
    pub words: BTreeMap<String, String>,
    /// What the source does at which moment of the transfer, each once, at most [`INTERVENTIONS_MAX`].
    #[serde(default)]
    pub interventions: Vec<(Moment, Intervention)>,
    /// How long the transfer may take before it is cancelled, in ms.
    pub timeout_ms: u64,
    /// How long it may take before the guest is paused, in ms; it goes on where it is afterwards.
    #[serde(default)]
    pub suspend_after_ms: Option<u64>,
    /// What libvirt alone can be told.
    #[serde(default)]
    pub by_libvirt: ByLibvirt,
}

/// What of a move libvirt alone can be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByLibvirt {
    /// The one that asks speaks with the libvirts of both sides, instead of one of them with the other.
    pub managed: bool,
    /// Give up when a disk of the guest fails meanwhile.
    pub abort_on_error: bool,
    /// Which part of its disks is copied, where it is said; the hosts must not see the same ones.
    pub copying: Option<Copying>,
}

/// What of a disk is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Copying {
    /// All that the guest sees.
    Whole,
    /// What lies in the disk itself: the destination has what it is built upon.
    Own,
}

impl Default for MigrationSpec {
    fn default() -> Self {
        Self {
            transport: Transport::default(),
            offline: false,
            capabilities: BTreeMap::new(),
            parameters: BTreeMap::new(),
            words: BTreeMap::new(),
            interventions: Vec::new(),
            timeout_ms: 300_000,
            suspend_after_ms: None,
            by_libvirt: ByLibvirt::default(),
        }
    }
}

impl MigrationSpec {
    /// Whether a capability is asked for.
    pub fn wants(&self, capability: &str) -> bool {
        self.capabilities.get(capability).is_some_and(|on| *on)
    }

    /// The capabilities that are asked for.
    pub fn asked(&self) -> impl Iterator<Item = &String> {
        self.capabilities.iter().filter(|(_, on)| **on).map(|(name, _)| name)
    }

    /// Whether the transfer may go over to post-copy: then it is decided before the switch-over, not after it.
    pub fn is_postcopy(&self) -> bool {
        self.wants("postcopy-ram") || self.interventions.iter().any(|(_, what)| *what == Intervention::Postcopy)
    }
}

/// Most interventions in one transfer.
pub const INTERVENTIONS_MAX: usize = 16;

/// A moment of a transfer, as an event of the source's QEMU tells it, or the readings that are taken of it. Never a time: a test that acts after so many
/// seconds acts in another phase on another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// QEMU sets up.
    Setup,
    /// RAM is being sent.
    Active,
    /// The dirty pages were gathered for this time, from 1.
    Pass(u32),
    /// QEMU waits before the switch-over; the guest stands still.
    PreSwitchover,
    /// The state of the devices is being sent.
    Device,
    /// The guest runs at the destination and fetches pages.
    PostcopyActive,
    /// The transfer gets nowhere, by readings of what remains. It may never come.
    Stalled,
}

/// What can be done to a transfer under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intervention {
    /// Set migration parameters anew.
    Set(BTreeMap<String, u64>),
    /// Pause the guest at the source; it goes on where it is after the migration.
    Stop,
    /// Go over to post-copy.
    Postcopy,
    /// Break the connection of a post-copy, which is then recovered.
    Break,
    /// Cancel it.
    Cancel,
}

/// A moment was written in a way that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("setup, active, pass:N, pre-switchover, device, postcopy-active or stalled")]
pub struct NoMoment;

impl std::str::FromStr for Moment {
    type Err = NoMoment;

    fn from_str(text: &str) -> Result<Self, NoMoment> {
        Ok(match text {
            "setup" => Self::Setup,
            "active" => Self::Active,
            "pre-switchover" => Self::PreSwitchover,
            "device" => Self::Device,
            "postcopy-active" => Self::PostcopyActive,
            "stalled" => Self::Stalled,
            _ => {
                let number = text.strip_prefix("pass:").and_then(|number| number.parse().ok());
                Self::Pass(number.filter(|number| (1..=100_000).contains(number)).ok_or(NoMoment)?)
            }
        })
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Setup => f.write_str("setup"),
            Self::Active => f.write_str("active"),
            Self::Pass(number) => write!(f, "pass:{number}"),
            Self::PreSwitchover => f.write_str("pre-switchover"),
            Self::Device => f.write_str("device"),
            Self::PostcopyActive => f.write_str("postcopy-active"),
            Self::Stalled => f.write_str("stalled"),
        }
    }
}

/// One reading of a running migration, taken at the source ten times a second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds since the transfer began, on the source's clock.
    pub t_ms: u64,
    /// QEMU's status word.
    pub status: String,
    /// RAM of the guest, bytes.
    pub ram_total_bytes: u64,
    /// RAM sent so far, bytes.
    pub ram_transferred_bytes: u64,
    /// RAM still to send, bytes.
    pub ram_remaining_bytes: u64,
    /// Times all dirty pages were synchronised.
    pub dirty_sync_count: u64,
    /// Rate at which the guest dirties memory, bytes/s.
    pub dirty_rate_bytes_s: u64,
    /// Rate of the transfer, bytes/s.
    pub xfer_bytes_s: u64,
    /// Downtime that QEMU expects, ms.
    pub expected_downtime_ms: Option<u64>,
    /// How far auto-converge slows the guest, percent.
    pub cpu_throttle_pct: u64,
    /// Whether the transfer gets nowhere.
    #[serde(default)]
    pub stalled: bool,
}

/// What a completed migration was like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationResult {
    /// Which movement.
    pub id: MigrationId,
    /// Source host.
    pub from: Name,
    /// Destination host.
    pub to: Name,
    /// How it went.
    #[serde(default)]
    pub how: How,
    /// Who moved it.
    #[serde(default)]
    pub backend: Backend,
    /// Migration capabilities that were asked for, by QEMU's names.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// QEMU's own total time, ms.
    pub total_ms: u64,
    /// QEMU's own downtime, ms: what it knows of, without our decision and the resume.
    pub qemu_downtime_ms: u64,
    /// QEMU's set-up time, ms.
    pub setup_ms: u64,
    /// RAM moved, bytes.
    pub ram_transferred_bytes: u64,
    /// Pages sent as they are.
    pub normal_pages: u64,
    /// Pages that were zero.
    pub duplicate_pages: u64,
    /// Times all dirty pages were synchronised.
    pub dirty_sync_count: u64,
    /// Pages that the destination asked for in post-copy.
    #[serde(default)]
    pub postcopy_requests: u64,
    /// From the party's call at the source to the destination's RESUME, ms, as the source measured it.
    pub wall_ms: f64,
    /// Named parts of the wall time in ms, in order: call → started, transfer, vote and decision, resume.
    pub parts_ms: Vec<(String, f64)>,
    /// Process id of the source QEMU.
    pub source_pid: u32,
    /// Process id of the destination QEMU.
    pub destination_pid: u32,
    /// Version of the source QEMU, `7.2.22`.
    #[serde(default)]
    pub source_qemu: String,
    /// Version of the destination QEMU.
    #[serde(default)]
    pub destination_qemu: String,
    /// What was to be done at a moment that never came, in words.
    #[serde(default)]
    pub missed: Vec<String>,
    /// For how long the transfer got nowhere, ms.
    #[serde(default)]
    pub stalled_ms: u64,
    /// Readings taken meanwhile.
    pub samples: Vec<Sample>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_they_are_read() {
        for text in ["setup", "active", "pass:1", "pass:12", "pre-switchover", "device", "postcopy-active"] {
            assert_eq!(text.parse::<Moment>().unwrap().to_string(), text);
        }
        for text in ["", "pass", "pass:", "pass:0", "pass:-1", "pass:1000000", "soon"] {
            assert_eq!(text.parse::<Moment>(), Err(NoMoment), "{text}");
        }
    }
}
