//! Looking at a host: /proc, /sys, /dev, directories, and the programs that the daemon itself asks. Nothing is judged here.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    sys::{
        resource::{Resource, getrlimit},
        statvfs::statvfs,
    },
    unistd::geteuid,
};
use vt_protocol::{
    doctor::Fit,
    ids::Digest,
    image::{BUILTIN, RECORD_FILE},
    vm::Accelerator,
};

use super::{
    checks::PROGRAMS,
    firewall, said,
    seen::{Folder, Machine, Member, Network, Qemu, Seen, Use, Writes},
};
use crate::{
    cgroup::Cgroups,
    data,
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

/// Where distributions keep the firmware that guests start with.
const FIRMWARE: &[&str] = &["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin"];
/// Where the test suite that people come from keeps images.
const OLD_DATA: &[&str] =
    &["/var/lib/avocado/data/avocado-vt", "/usr/share/avocado/data/avocado-vt", "/root/avocado/data/avocado-vt"];
/// Programs that keep a clock on time, as the kernel names their processes: with fifteen letters at most.
const CLOCK_KEEPERS: &[&str] = &["chronyd", "ntpd", "ntpd-rs", "openntpd", "ptp4l", "phc2sys", "systemd-timesyn"];
/// Writes that are tried, and for how long at most.
const WRITES: usize = 100;
const WRITES_LAST: Duration = Duration::from_millis(1500);
const WRITE: usize = 4096;
/// Longest message of the kernel, and most of them that are looked at.
const KERNEL_MESSAGE: usize = 8192;
const KERNEL_MESSAGES: usize = 20_000;
/// What makes many packets one, by the two names that ethtool has for each.
const OFFLOADS: [(&str, &str); 3] =
    [("generic-segmentation-offload", "gso"), ("generic-receive-offload", "gro"), ("tcp-segmentation-offload", "tso")];

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
        microcode: local.microcode,
        firmware: local.firmware,
        capabilities: known.map(|qemu| qemu.capabilities.clone()).unwrap_or_default(),
        tsc_khz: local.tsc_khz,
        saved_unix_s: data::saved_unix_s(&settings.paths.data),
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
        certificates: settings
            .libvirt
            .as_ref()
            .and_then(|libvirt| libvirt.certificates.clone())
            .map(|folder| (folder.clone(), folder.is_dir())),
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
    let tls = installed::has_tls(Path::new(&facts.path)).await.map_err(|error| error.to_string())?;
    Ok(Qemu { facts, capabilities: features.capabilities.clone(), tls, machines: features.machines.clone() })
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
    fsync: Option<Writes>,
    tsc_khz: u32,
    microcode: String,
    firmware: String,
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
        let cpuinfo = text("/proc/cpuinfo").unwrap_or_default();
        Self {
            machine: machine(settings, &cpuinfo),
            network: network(settings),
            fsync: fsync(&paths.data),
            folders,
            tsc_khz: tsc_khz().unwrap_or(0),
            microcode: field(&cpuinfo, "microcode", ':').unwrap_or_default().to_owned(),
            firmware: FIRMWARE
                .iter()
                .find_map(|path| fs::read(path).ok())
                .map_or_else(String::new, |bytes| Digest::of(&bytes).to_string()),
        }
    }
}

/// The text of a file of the kernel.
fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn machine(settings: &Settings, cpuinfo: &str) -> Machine {
    let meminfo = text("/proc/meminfo").unwrap_or_default();
    let nested = |module: &str| text(&format!("/sys/module/{module}/parameters/nested"));
    let allowed = text("/proc/sys/vm/unprivileged_userfaultfd");
    let kib = |name: &str| field(&meminfo, name, ':').and_then(facts::kibibytes).unwrap_or(0);
    let pages = |name: &str| field(&meminfo, name, ':').and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    let root = geteuid().is_root();
    Machine {
        vendor: field(cpuinfo, "vendor_id", ':').unwrap_or("unknown").to_owned(),
        virtualisation: facts::cpu_virtualisation(cpuinfo).is_some(),
        is_vm: facts::cpu_has(cpuinfo, "hypervisor"),
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
        memory: (kib("MemTotal"), kib("MemAvailable")),
        huge_pages_idle: pages("HugePages_Free").saturating_mul(kib("Hugepagesize")),
        iommu_groups: entries("/sys/kernel/iommu_groups").count(),
        confined: confined(),
        clocksource: text("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default(),
        clock_keeper: clock_keeper(),
        old_data: OLD_DATA.iter().map(PathBuf::from).filter(|path| path.is_dir()).collect(),
    }
}

fn entries(path: &str) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(path).into_iter().flatten().flatten()
}

/// The label of this process, where SELinux enforces or a profile of AppArmor does.
fn confined() -> Option<String> {
    let label = text("/proc/self/attr/current")?.trim_end_matches('\0').to_owned();
    let enforced = text("/sys/fs/selinux/enforce").as_deref() == Some("1") || label.ends_with("(enforce)");
    (enforced && !label.contains("unconfined")).then_some(label)
}

/// One of [`CLOCK_KEEPERS`] that runs.
fn clock_keeper() -> Option<String> {
    let mut names = entries("/proc").filter_map(|entry| text(&entry.path().join("comm").display().to_string()));
    names.find(|name| CLOCK_KEEPERS.contains(&name.as_str()))
}

/// How fast the CPU's counter goes, as the kernel found it when it started: where its messages still go back so far, and to
/// the unit of the daemon, which may not read them, where the journal has them.
fn tsc_khz() -> Option<u32> {
    kernel_messages().iter().filter_map(|message| khz_in(message)).next_back().or_else(|| {
        let said = says("journalctl", &["--dmesg", "--boot", "--output", "cat", "--no-pager", "--grep", "^tsc: "])?;
        String::from_utf8_lossy(&said).lines().filter_map(khz_in).next_back()
    })
}

/// What the kernel has said, as far as it is still known; nothing where that may not be read.
fn kernel_messages() -> Vec<String> {
    let messages = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg");
    let Ok(mut messages) = messages else { return Vec::new() };
    let mut message = [0; KERNEL_MESSAGE];
    // Each read is one message, behind its number and time, until there is none.
    let read = (0..KERNEL_MESSAGES).map_while(|_| {
        let length = messages.read(&mut message).ok()?;
        let text = String::from_utf8_lossy(&message[..length]);
        Some(text.split_once(';').map(|(_, said)| said.to_owned()).unwrap_or_default())
    });
    read.collect()
}

/// `tsc: Refined TSC clocksource calibration: 2249.999 MHz`, or `tsc: Detected 2250.000 MHz processor`.
fn khz_in(message: &str) -> Option<u32> {
    let (before, _) = message.strip_prefix("tsc: ")?.split_once(" MHz")?;
    let mhz: f64 = before.rsplit(' ').next()?.parse().ok()?;
    (mhz > 0.0 && mhz < 100_000.0).then_some((mhz * 1000.0).round() as u32)
}

/// What a program says, where it is there and all went well.
fn says(program: &str, words: &[&str]) -> Option<Vec<u8>> {
    let program = resolve_program(program)?;
    let output =
        std::process::Command::new(program).args(words).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then_some(output.stdout)
}

fn closed(port: u16) -> Option<Vec<String>> {
    let ruleset = serde_json::from_slice(&says("nft", &["-j", "list", "ruleset"])?).ok()?;
    Some(firewall::closed(&ruleset, port, PORTS))
}

/// Which of [`OFFLOADS`] are off on a card, and could be on.
fn not_offloaded(card: &str) -> Option<Vec<String>> {
    let said = says("ethtool", &["-k", card])?;
    let said = String::from_utf8_lossy(&said);
    let off = |long: &str| said.lines().any(|line| line.trim() == format!("{long}: off"));
    Some(OFFLOADS.iter().filter(|(long, _)| off(long)).map(|(_, short)| format!("{card} {short}")).collect())
}

fn network(settings: &Settings) -> Network {
    let interface_of = |wanted: IpAddr| {
        let mut interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let has = |interface: &nix::ifaddrs::InterfaceAddress| {
            let address = interface.address?;
            let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
        };
        interfaces.find(|interface| has(interface) == Some(wanted)).map(|interface| interface.interface_name)
    };
    let network = &settings.network;
    let there = |name: &String| (name.clone(), Tap::exists(name));
    let control = settings.host.advertise.unwrap_or(settings.host.listen).ip();
    let migration = network.migration.map(|address| (address, interface_of(address)));
    let at = migration.as_ref().filter(|(_, interface)| interface.is_some()).map(|(address, _)| *address);
    let at = at.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    // The stricter of what is said of all and of the one counts, and 2 is less strict than 1.
    let filter = |name: &str| text(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).unwrap_or_default();
    let interfaces = entries("/proc/sys/net/ipv4/conf").filter_map(|entry| entry.file_name().into_string().ok());
    let strict = |name: &String| {
        let both = [filter("all"), filter(name)];
        both.iter().any(|filter| filter == "1") && both.iter().all(|filter| filter != "2")
    };
    let control = interface_of(control);
    let cards: BTreeSet<&String> =
        control.iter().chain(migration.iter().filter_map(|(_, interface)| interface.as_ref())).collect();
    let not_offloaded: Vec<Vec<String>> = cards.into_iter().filter_map(|card| not_offloaded(card)).collect();
    Network {
        bridge: network.bridge.as_ref().map(there),
        uplink: network.uplink.as_ref().map(there),
        closed: closed(settings.host.listen.port()),
        not_offloaded: (!not_offloaded.is_empty()).then(|| not_offloaded.concat()),
        control,
        migration,
        strict: interfaces.filter(strict).collect(),
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
    let shares_blocks = (there && purpose == Use::Images).then(|| trial::shares_blocks(path)).flatten();
    let free = statvfs(path).ok().map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size()));
    Folder { purpose, path: path.to_owned(), mode, free: free.filter(|_| there), trial, shares_blocks }
}

/// How long small writes to a directory take until they are safe.
fn fsync(directory: &Path) -> Option<Writes> {
    let path = directory.join(format!(".doctor-{:016x}", rand::random::<u64>()));
    let mut file = File::create_new(&path).ok()?;
    let until = Instant::now() + WRITES_LAST;
    let took: Vec<Duration> = (0..WRITES)
        .map_while(|_| {
            let begun = Instant::now();
            if begun > until {
                return None;
            }
            file.write_all(&[0; WRITE]).and_then(|()| file.sync_data()).ok()?;
            Some(begun.elapsed())
        })
        .collect();
    let _ = fs::remove_file(&path);
    Writes::of(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_s_frequency_is_found_in_messages_of_the_kernel() {
        for (message, wanted) in [
            ("tsc: Detected 2250.000 MHz processor\n", Some(2_250_000)),
            ("tsc: Refined TSC clocksource calibration: 2249.998 MHz", Some(2_249_998)),
            ("clocksource: tsc: mask: 0xffff", None),
            ("tsc: Fast TSC calibration failed", None),
            ("", None),
        ] {
            assert_eq!(khz_in(message), wanted, "{message}");
        }
    }
}
