//! The machine and its kernel.

use vt_protocol::vm::Accelerator;

use super::{
    super::seen::{Machine, Seen},
    Said,
};

/// Memory below which no guest of use starts.
const MEMORY_LITTLE: u64 = 512 << 20;
/// Fewer files cannot be open at once for a few VMs with their monitors and streams.
const FILES_FEW: u64 = 1024;

/// A program that is run, or that people need.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    package: &'static str,
    what_for: &'static str,
    needed: bool,
}

const fn program(name: &'static str, package: &'static str, what_for: &'static str, needed: bool) -> Program {
    Program { name, package, what_for, needed }
}

/// The programs; QEMU is looked at on its own.
#[rustfmt::skip]
pub(crate) const PROGRAMS: &[Program] = &[
    program("qemu-img", "qemu-utils", "disks of VMs", true),
    program("ip", "iproute2", "network cards of guests", true),
    program("prlimit", "util-linux", "bounds of programs that read images", true),
    program("flock", "util-linux", "trials of locks", false),
    program("nft", "nftables", "scenario firewall_block, and labs", false),
    program("curl", "curl", "image fetch", false),
    program("setsid", "util-linux", "labs", false),
    program("nsenter", "util-linux", "labs", false),
    program("git", "git", "provider sync", false),
];

pub(super) fn acceleration(seen: &Seen) -> Option<Said> {
    let facts = &seen.qemu.as_ref().ok()?.facts;
    if facts.accelerator == Accelerator::Kvm {
        return Some(Said::ok(&facts.accelerator_reason));
    }
    let said = Said::note(format!("guests are emulated, which is slow and right: {}", facts.accelerator_reason));
    Some(what_kvm_needs(&seen.machine).into_iter().fold(said, Said::fix))
}

/// What this machine lacks for acceleration, in the order to be done.
fn what_kvm_needs(machine: &Machine) -> Vec<String> {
    let Some(maker) = Maker::of(&machine.vendor) else {
        return vec![format!("KVM needs a CPU of Intel or AMD with virtualisation; this one is {:?}", machine.vendor)];
    };
    let Maker { module, flag, .. } = maker;
    match (machine.virtualisation, machine.is_vm) {
        (false, true) => vec![
            format!("this machine is a VM whose CPU has no {flag}: nesting is switched on by the machine that runs it"),
            format!("there: echo 'options {module} nested=1' > /etc/modprobe.d/kvm-nested.conf"),
            format!(
                "there, without VMs: modprobe -r {module} && modprobe {module}; cat /sys/module/{module}/parameters/nested says Y or 1"
            ),
            format!("there: give this VM the CPU with {flag}: QEMU -cpu host, libvirt <cpu mode='host-passthrough'/>"),
        ],
        (false, false) => vec![format!(
            "switch virtualisation on in the firmware ({}); /proc/cpuinfo then has {flag}",
            maker.firmware
        )],
        (true, _) if !machine.dev_kvm => vec![format!("modprobe {module}")],
        (true, true) => vec![
            format!("{flag} and /dev/kvm are here and a guest does not run: the machine that runs this VM filters it"),
            format!("there: {module} with nested=1, a kernel of today, and -cpu host for this VM"),
        ],
        (true, false) => vec![format!("dmesg | grep -i kvm   (why {module} does not run guests)")],
    }
}

/// What a maker of CPUs calls things.
struct Maker {
    module: &'static str,
    flag: &'static str,
    firmware: &'static str,
}

impl Maker {
    fn of(vendor: &str) -> Option<Self> {
        match vendor {
            "GenuineIntel" => Some(Self { module: "kvm_intel", flag: "vmx", firmware: "Intel VT-x" }),
            "AuthenticAMD" | "HygonGenuine" => {
                Some(Self { module: "kvm_amd", flag: "svm", firmware: "AMD-V, SVM mode" })
            }
            _ => None,
        }
    }
}

pub(super) fn nested(seen: &Seen) -> Option<Said> {
    let nested = seen.machine.nested.as_deref()?;
    let Maker { module, flag, .. } = Maker::of(&seen.machine.vendor)?;
    if matches!(nested, "Y" | "y" | "1") {
        return Some(Said::ok(format!("{module} has nested={nested}: hosts may be VMs of this one")));
    }
    let said = Said::note(format!("{module} has nested={nested}: hosts that are VMs of this one would emulate"));
    let said = said.fix(format!("echo 'options {module} nested=1' > /etc/modprobe.d/kvm-nested.conf"));
    Some(
        said.fix(format!(
            "without VMs: modprobe -r {module} && modprobe {module}; the VMs then need {flag}: -cpu host"
        )),
    )
}

fn missing(seen: &Seen, needed: bool) -> Vec<&'static Program> {
    let wanted = PROGRAMS.iter().filter(|program| program.needed == needed);
    wanted.filter(|program| !seen.programs.contains(program.name)).collect()
}

fn install(said: Said, missing: &[&Program]) -> Said {
    let mut packages: Vec<&str> = missing.iter().map(|program| program.package).collect();
    packages.sort_unstable();
    packages.dedup();
    said.fix(format!("apt-get install {}", packages.join(" ")))
}

fn listed(missing: &[&Program]) -> String {
    let named: Vec<String> = missing.iter().map(|program| format!("{} ({})", program.name, program.what_for)).collect();
    format!("not in the daemon's PATH: {}", named.join(", "))
}

pub(super) fn programs_needed(seen: &Seen) -> Option<Said> {
    let missing = missing(seen, true);
    Some(match missing[..] {
        [] => Said::ok("all are there"),
        _ => install(Said::fail(listed(&missing)), &missing),
    })
}

pub(super) fn programs_useful(seen: &Seen) -> Option<Said> {
    let missing = missing(seen, false);
    Some(match missing[..] {
        [] => Said::ok("all are there"),
        _ => install(Said::note(listed(&missing)), &missing),
    })
}

pub(super) fn devices(seen: &Seen) -> Option<Said> {
    let machine = &seen.machine;
    Some(match (machine.dev_tun, machine.dev_vhost_net) {
        (false, _) if seen.network.bridge.is_some() => {
            Said::fail("/dev/net/tun is not there: guests get no network card").fix("modprobe tun")
        }
        (false, _) => {
            Said::note("/dev/net/tun is not there; it is needed once the settings name a bridge").fix("modprobe tun")
        }
        (true, false) => {
            Said::note("/dev/vhost-net is not there: QEMU itself carries the guests' packets").fix("modprobe vhost_net")
        }
        (true, true) => Said::ok("/dev/net/tun and /dev/vhost-net are there"),
    })
}

pub(super) fn control_groups(seen: &Seen) -> Option<Said> {
    Some(match &seen.machine.cgroups {
        Ok(path) => Said::ok(format!("v2, groups are made below {path}")),
        Err(why) => Said::warn(format!("{why}: VMs sit in the daemon's own group, and end with its unit"))
            .fix("boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup"),
    })
}

pub(super) fn rights(seen: &Seen) -> Option<Said> {
    Some(match seen.machine.root {
        true => Said::ok("root"),
        false => Said::warn("not root: no taps, no control groups, no VMs of other users")
            .fix("run vtd as root: systemctl start vtd"),
    })
}

pub(super) fn limits(seen: &Seen) -> Option<Said> {
    let files = seen.machine.open_files;
    Some(match files {
        0..FILES_FEW => Said::warn(format!("at most {files} open files, for all VMs of this host"))
            .fix("LimitNOFILE=1048576 in the unit, or ulimit -n 1048576 before vtd starts"),
        _ => Said::ok(format!("{files} open files")),
    })
}

pub(super) fn page_faults(seen: &Seen) -> Option<Said> {
    Some(match seen.machine.userfaultfd {
        true => Said::ok("userfaultfd is allowed"),
        false => Said::warn("userfaultfd is not allowed: post-copy does not work here")
            .fix("sysctl -w vm.unprivileged_userfaultfd=1, and a file in /etc/sysctl.d that says so"),
    })
}

pub(super) fn memory(seen: &Seen) -> Option<Said> {
    let available = seen.machine.memory.1;
    let free = available >> 20;
    Some(match available {
        0..MEMORY_LITTLE => Said::warn(format!("{free} MiB can be had: the kernel may kill guests"))
            .fix("end what is not needed (vtctl vm list), or run fewer VMs at once"),
        _ => Said::ok(format!("{free} MiB can be had")),
    })
}

pub(super) fn huge_pages(seen: &Seen) -> Option<Said> {
    let (all, idle) = (seen.machine.memory.0, seen.machine.huge_pages_idle);
    let found = format!("{} MiB are reserved as huge pages that nobody uses", idle >> 20);
    Some(match idle > all / 4 {
        true => Said::warn(format!("{found}, of {} MiB: no guest gets them", all >> 20))
            .fix("sysctl -w vm.nr_hugepages=0, and without vm.nr_hugepages in /etc/sysctl.d"),
        false => Said::ok(found),
    })
}

pub(super) fn iommu(seen: &Seen) -> Option<Said> {
    Some(match seen.machine.iommu_groups {
        0 => {
            let said = Said::note("no IOMMU: guests cannot be given devices of this host, such as a network function");
            let intel = seen.machine.vendor == "GenuineIntel";
            said.fix(format!("switch {} on in the firmware", if intel { "VT-d" } else { "AMD-Vi (IOMMU)" })).fix(
                format!(
                    "boot with {}; then there are folders in /sys/kernel/iommu_groups",
                    if intel { "intel_iommu=on iommu=pt" } else { "iommu=pt" }
                ),
            )
        }
        groups => Said::ok(format!("{groups} groups of devices")),
    })
}

pub(super) fn confinement(seen: &Seen) -> Option<Said> {
    Some(match &seen.machine.confined {
        None => Said::ok("neither SELinux nor AppArmor confines vtd"),
        Some(label) => Said::note(format!("vtd is confined as {label}, and so is every QEMU that it starts"))
            .fix("what was refused: ausearch -m avc -ts recent, or journalctl -k | grep apparmor")
            .fix("let it be: semanage permissive -a ITS_DOMAIN, or aa-complain ITS_PROFILE"),
    })
}

pub(super) fn clocksource(seen: &Seen) -> Option<Said> {
    let source = seen.machine.clocksource.as_str();
    Some(match source {
        "" => return None,
        "hpet" | "acpi_pm" | "jiffies" | "refined-jiffies" | "pit" => Said::note(format!(
            "{source}: reading the time is slow, for guests too; the kernel found the CPU's counter unfit"
        ))
        .fix("dmesg | grep -i tsc   (why); firmware and kernel of today; a VM needs kvm-clock from what runs it"),
        _ => Said::ok(source),
    })
}

pub(super) fn clock(seen: &Seen) -> Option<Said> {
    Some(match &seen.machine.clock_keeper {
        Some(keeper) => Said::ok(format!("{keeper} keeps it on time")),
        None => Said::note(
            "no program keeps it on time: logs of hosts are hard to compare, certificates of clients end early or late",
        )
        .fix("apt-get install chrony; chronyc tracking"),
    })
}

pub(super) fn bridge(seen: &Seen) -> Option<Said> {
    let (name, there) = seen.network.bridge.as_ref()?;
    Some(match there {
        true => Said::ok(format!("{name} is there")),
        false => Said::fail(format!("the settings name {name}, and there is no such interface")).fix(format!(
            "ip link add {name} type bridge && ip link set {name} up, or bridge under [network] in the settings"
        )),
    })
}

pub(super) fn uplink(seen: &Seen) -> Option<Said> {
    let (name, there) = seen.network.uplink.as_ref()?;
    Some(match there {
        true => Said::ok(format!("{name} is there")),
        false => Said::fail(format!("the settings name {name} for macvtaps, and there is no such interface"))
            .fix("ip link show, and uplink under [network] in the settings"),
    })
}

pub(super) fn migration_address(seen: &Seen) -> Option<Said> {
    let (address, there) = seen.network.migration.as_ref()?;
    Some(match there {
        Some(interface) => Said::ok(format!("{address} is this host's, at {interface}")),
        None => Said::fail(format!("the settings say that migrations come in on {address}, which no interface has"))
            .fix("ip address add it, or migration under [network] in the settings"),
    })
}
