//! Looking at a host: /proc, /sys, /dev, directories, and the programs that the daemon itself asks. Nothing is judged here.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        resource::{Resource, getrlimit},
        statvfs::statvfs,
    },
    unistd::geteuid,
};
use vt_protocol::{
    doctor::Fit,
    image::{BUILTIN, RECORD_FILE},
    vm::Accelerator,
};

use super::{
    checks::PROGRAMS,
    said,
    seen::{Folder, Machine, Member, Network, Qemu, Seen, Use},
};
use crate::{
    cgroup::Cgroups,
    facts::{self, field},
    images::{blocking, store::Store, trial},
    libvirt::Libvirt,
    migrate::{
        features::FeatureCache,
        inlet::{PORTS, free_ports},
    },
    qemu::{installed, process::resolve_program, tap::Tap},
    settings::Settings,
};

/// Writes whose times the median is of.
const WRITES: usize = 9;
const WRITE: usize = 4096;

/// Looks at this host. Takes a second or two: QEMU is asked what it can do, and a guest may be run for a moment.
pub(super) async fn look(settings: &Settings, member: Option<Member>) -> Seen {
    let runs_vms = !member.as_ref().is_some_and(|member| member.witness);
    let (qemu, libvirt, local) = tokio::join!(
        qemu(settings),
        libvirt(settings),
        blocking({
            let settings = settings.clone();
            move || Local::look(&settings, runs_vms)
        })
    );
    let facts = facts::gather(settings);
    let known = qemu.as_ref().ok();
    let fit = Fit {
        cpu: facts.cpu_model,
        kvm: known.is_some_and(|qemu| qemu.facts.accelerator == Accelerator::Kvm),
        qemu: known.map(|qemu| qemu.facts.version.clone()).unwrap_or_default(),
        machines: known.map(|qemu| qemu.machines.iter().map(|(name, _)| name.clone()).collect()).unwrap_or_default(),
        shared: settings.pool_shared,
        times_ms: facts.times_ms,
        unix_s: vt_protocol::rehearsal::unix_s(),
    };
    Seen {
        machine: local.machine,
        programs: PROGRAMS
            .iter()
            .map(|program| program.name)
            .filter(|name| resolve_program(name).is_some())
            .collect::<BTreeSet<_>>(),
        qemu,
        libvirt,
        network: local.network,
        folders: local.folders,
        fsync: local.fsync,
        builtin_image: settings.paths.images.join(BUILTIN).join(RECORD_FILE).is_file(),
        member,
        fit,
    }
}

async fn qemu(settings: &Settings) -> Result<Qemu, String> {
    // The accelerator's probe is kept in the daemon's directory, which is not made here.
    let kept = Some(&*settings.paths.data).filter(|data| data.is_dir());
    let facts = installed::examine(settings.qemus.usual(), kept).await.map_err(|error| error.to_string())?;
    let features = FeatureCache::default().of(&facts.path).await.map_err(|report| report.title)?;
    Ok(Qemu { facts, capabilities: features.capabilities.clone(), machines: features.machines.clone() })
}

async fn libvirt(settings: &Settings) -> Option<Result<String, String>> {
    let vtd = std::env::current_exe().unwrap_or_else(|_| "vtd".into());
    let libvirt = Libvirt::new(settings.libvirt.as_ref()?, &vtd);
    Some(match libvirt.hello().await {
        Ok(hello) => Ok(format!("{}: libvirt {}, its daemon {}", hello.hypervisor, hello.library, hello.daemon)),
        Err(report) => Err(report.causes.last().cloned().unwrap_or(report.title)),
    })
}

/// What is read where reading may block.
struct Local {
    machine: Machine,
    network: Network,
    folders: Vec<Folder>,
    fsync: Option<Duration>,
}

impl Local {
    fn look(settings: &Settings, runs_vms: bool) -> Self {
        let paths = &settings.paths;
        let mut folders = vec![folder(Use::Data, &paths.data, None)];
        if runs_vms {
            let shared = settings.pool_shared;
            folders.push(folder(Use::Images, &paths.images, None));
            folders.push(folder(Use::Disks, &paths.disks, Some(shared)));
        }
        Self { machine: machine(settings), network: network(settings), fsync: fsync(&paths.data), folders }
    }
}

fn machine(settings: &Settings) -> Machine {
    let text = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let cpuinfo = text("/proc/cpuinfo").unwrap_or_default();
    let flags: BTreeSet<&str> = field(&cpuinfo, "flags", ':').unwrap_or_default().split_whitespace().collect();
    let meminfo = text("/proc/meminfo").unwrap_or_default();
    let nested = |module: &str| text(&format!("/sys/module/{module}/parameters/nested"));
    let allowed = text("/proc/sys/vm/unprivileged_userfaultfd");
    let root = geteuid().is_root();
    Machine {
        vendor: field(&cpuinfo, "vendor_id", ':').unwrap_or("unknown").to_owned(),
        virtualisation: flags.contains("vmx") || flags.contains("svm"),
        is_vm: flags.contains("hypervisor"),
        dev_kvm: Path::new("/dev/kvm").exists(),
        nested: nested("kvm_intel").or_else(|| nested("kvm_amd")),
        dev_tun: Path::new("/dev/net/tun").exists(),
        dev_vhost_net: Path::new("/dev/vhost-net").exists(),
        root,
        cgroups: match Cgroups::place(&settings.paths.cgroup) {
            Ok(path) => Ok(path.display().to_string()),
            Err(error) => Err(error.to_string()),
        },
        open_files: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        userfaultfd: allowed.is_some_and(|value| root || value == "1") || File::open("/dev/userfaultfd").is_ok(),
        memory_available: field(&meminfo, "MemAvailable", ':').and_then(facts::kibibytes).unwrap_or(0),
    }
}

fn network(settings: &Settings) -> Network {
    let here = |address: IpAddr| {
        let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let mut addresses = interfaces.filter_map(|interface| {
            let address = interface.address?;
            let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
        });
        addresses.any(|found| found == address)
    };
    let network = &settings.network;
    let there = |name: &String| (name.clone(), Tap::exists(name));
    let migration = network.migration.map(|address| (address, here(address)));
    let at = migration.filter(|(_, here)| *here).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |(address, _)| address);
    Network {
        bridge: network.bridge.as_ref().map(there),
        uplink: network.uplink.as_ref().map(there),
        migration,
        free_ports: (free_ports(at).count(), PORTS.count()),
    }
}

/// `trial`: whether the pool that the directory belongs to is shared, where it is to be tried.
fn folder(purpose: Use, path: &Path, trial: Option<bool>) -> Folder {
    let mode = fs::metadata(path).ok().filter(fs::Metadata::is_dir).map(|meta| meta.permissions().mode() & 0o7777);
    let there = mode.is_some();
    let trial = trial.filter(|_| there).map(|shared| {
        let store = Store { path: path.to_owned(), shared };
        trial::run(&store, None).map_err(|report| said(&report))
    });
    let free = statvfs(path).ok().map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size()));
    Folder { purpose, path: path.to_owned(), mode, free: free.filter(|_| there), trial }
}

/// How long a small write to a directory takes until it is safe.
fn fsync(directory: &Path) -> Option<Duration> {
    let path = directory.join(format!(".doctor-{:016x}", rand::random::<u64>()));
    let mut file = File::create_new(&path).ok()?;
    let mut took: Vec<Duration> = (0..WRITES)
        .map_while(|_| {
            let begun = Instant::now();
            file.write_all(&[0; WRITE]).and_then(|()| file.sync_data()).ok()?;
            Some(begun.elapsed())
        })
        .collect();
    let _ = fs::remove_file(&path);
    took.sort_unstable();
    took.get(took.len() / 2).copied()
}
