//! What was seen of a host: plain values. Nothing is judged here, and nothing is read.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use vt_protocol::{doctor::Fit, facts::QemuFacts, ids::Name};

/// One look at a host.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The machine and its kernel.
    pub machine: Machine,
    /// Programs of [`super::checks::PROGRAMS`] that are there.
    pub programs: BTreeSet<&'static str>,
    /// QEMU, or why there is none.
    pub qemu: Result<Qemu, String>,
    /// What libvirt said, where the settings name one.
    pub libvirt: Option<Result<String, String>>,
    /// The folder that its QEMUs find their certificates in, and whether there is one, where the settings name one.
    pub certificates: Option<(PathBuf, bool)>,
    /// What the settings say of the network, and what there is of it.
    pub network: Network,
    /// The directories of the settings.
    pub folders: Vec<Folder>,
    /// How long writes to the log's disk took until they were safe; `None` where it could not be tried.
    pub fsync: Option<Writes>,
    /// Whether the image that scenarios use where they are told no other is in the pool.
    pub builtin_image: bool,
    /// The cluster, as the daemon sees it; `None` where no daemon was asked.
    pub member: Option<Member>,
    /// What is compared with other hosts.
    pub fit: Fit,
}

/// Some writes, each of which was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writes {
    /// The one in the middle.
    pub median: Duration,
    /// The one that 99 of 100 are not slower than; of few, the slowest.
    pub p99: Duration,
}

impl Writes {
    /// Of what each took.
    pub fn of(mut took: Vec<Duration>) -> Option<Self> {
        took.sort_unstable();
        let at = |hundredths: usize| took.get((took.len() * hundredths / 100).min(took.len().saturating_sub(1)));
        Some(Self { median: *at(50)?, p99: *at(99)? })
    }
}

/// The machine and its kernel.
#[derive(Debug, Clone)]
pub struct Machine {
    /// `vendor_id` of /proc/cpuinfo.
    pub vendor: String,
    /// The first CPU has `vmx` or `svm`.
    pub virtualisation: bool,
    /// It is itself a VM: the `hypervisor` flag.
    pub is_vm: bool,
    /// `/dev/kvm` is there.
    pub dev_kvm: bool,
    /// Parameter `nested` of the kvm module; `None` where the module is not loaded.
    pub nested: Option<String>,
    /// `/dev/net/tun` is there.
    pub dev_tun: bool,
    /// `/dev/vhost-net` is there.
    pub dev_vhost_net: bool,
    /// The process runs as root.
    pub root: bool,
    /// Where control groups can be made, or why not.
    pub cgroups: Result<String, String>,
    /// Most open files.
    pub open_files: u64,
    /// Whether a page fault can be handled in user space, which post-copy needs.
    pub userfaultfd: bool,
    /// Memory in all, and that can be had, bytes.
    pub memory: (u64, u64),
    /// Memory that is reserved as huge pages which nobody uses, bytes.
    pub huge_pages_idle: u64,
    /// Groups of devices that an IOMMU keeps apart.
    pub iommu_groups: usize,
    /// The label under which SELinux or AppArmor confines the daemon; `None`: nobody confines it.
    pub confined: Option<String>,
    /// What the kernel reads the time from: `tsc`, `kvm-clock`, `hpet`, …; empty where it does not tell.
    pub clocksource: String,
    /// The program that keeps the clock on time.
    pub clock_keeper: Option<String>,
    /// Directories with data of the test suite that people come from.
    pub old_data: Vec<PathBuf>,
}

/// QEMU.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// Binary, version, accelerator.
    pub facts: QemuFacts,
    /// Migration capabilities.
    pub capabilities: Vec<String>,
    /// Whether it can encrypt migrations by itself.
    pub tls: bool,
    /// Machine types, versioned, and the alias where there is one.
    pub machines: Vec<(String, Option<String>)>,
}

/// The network of the settings.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// The bridge for guests, and whether it is there.
    pub bridge: Option<(String, bool)>,
    /// The interface for macvtaps, and whether it is there.
    pub uplink: Option<(String, bool)>,
    /// The interface with the address that decisions come in on; `None` where they come in on any.
    pub control: Option<String>,
    /// Where migrations come in, and the interface that has that address; `None` where it is not set.
    pub migration: Option<(IpAddr, Option<String>)>,
    /// Interfaces that drop what comes in from where they would not send to (`rp_filter` 1).
    pub strict: Vec<String>,
    /// What cards of the settings' addresses leave to the CPU that they, or the kernel in one go, could do: `eth0 gro`. `None`
    /// where it cannot be asked.
    pub not_offloaded: Option<Vec<String>>,
    /// Ports that others need and nftables drops; `None` where it cannot be asked.
    pub closed: Option<Vec<String>>,
    /// Ports for migrations that are free, of all that there are.
    pub free_ports: (usize, usize),
}

/// What a directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Identity and log.
    Data,
    /// Images.
    Images,
    /// Disks of VMs.
    Disks,
}

impl Use {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Images => "images",
            Self::Disks => "disks",
        }
    }
}

/// One directory.
#[derive(Debug, Clone)]
pub struct Folder {
    /// What for.
    pub purpose: Use,
    /// Where.
    pub path: PathBuf,
    /// Its permissions; `None` where it is not there.
    pub mode: Option<u32>,
    /// Bytes that are free on its file system.
    pub free: Option<u64>,
    /// What a trial of it said: of the directories for images and disks.
    pub trial: Option<Result<Vec<String>, String>>,
    /// Whether copies share their blocks there: of the directory for images.
    pub shares_blocks: Option<bool>,
}

/// The cluster as the daemon sees it.
#[derive(Debug, Clone, Default)]
pub struct Member {
    /// This host.
    pub me: Option<Name>,
    /// It votes and runs nothing.
    pub witness: bool,
    /// Whether the cluster can decide.
    pub quorum: bool,
    /// How many vote.
    pub voters: usize,
    /// Hosts that may vote and answer.
    pub willing: usize,
    /// All hosts: name, whether it answers, version of its daemon.
    pub hosts: Vec<(Name, bool, String)>,
    /// Of a leader: hosts and how many entries of the log each lags behind.
    pub lag: Vec<(Name, u64)>,
    /// Two authorities are trusted.
    pub two_authorities: bool,
    /// Pools beside the host's own directories, and what a trial of each said.
    pub pools: Vec<(Name, Result<Vec<String>, String>)>,
    /// What is on this host and belongs to nothing that the cluster knows.
    pub left_behind: Vec<String>,
}

/// How another host was reached.
#[derive(Debug, Clone)]
pub struct Link {
    /// The other host.
    pub to: Name,
    /// Round trip of a request over QUIC.
    pub control: Result<Duration, String>,
    /// Packets that were sent there and got lost; `None` where nothing can be sent.
    pub loss: Option<Loss>,
    /// An answer over the bulk channel.
    pub bulk: Result<Duration, String>,
    /// Bytes there and back where migrations come in.
    /// `None` where the other host could not be asked to listen.
    pub migration: Option<Result<Echo, String>>,
}

/// Packets that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// All of them.
    pub sent: u64,
    /// Those that had to be sent again.
    pub lost: u64,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Echo {
    /// Everything.
    Whole(Duration),
    /// The connection came up, and then this many bytes of [`super::links::SENT`] came back.
    Stuck(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_few_writes_the_slowest_counts_and_of_many_one_may_be_slow() {
        let ms = |times: &[u64]| times.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        let of = |times: &[u64]| Writes::of(ms(times)).map(|it| (it.median.as_millis(), it.p99.as_millis()));
        assert_eq!((of(&[]), of(&[3]), of(&[9, 1, 2])), (None, Some((3, 3)), Some((2, 9))));
        let mut many = vec![2; 199];
        many.push(900);
        assert_eq!(of(&many), Some((2, 2)));
        many.extend([900, 900]);
        assert_eq!(of(&many), Some((2, 900)));
    }
}
