//! Parameters of the built-in scenarios: names, defaults, bounds. Old spellings of Avocado-VT are taken.

use std::time::Duration;

use vt_protocol::{
    ids::Name,
    libvirt::DOMAIN_PARAM,
    params::{ParamError, Params},
    party::StartVm,
    vm::{Accelerator, Backend, Drive, MigrationSpec, NICS_MAX, NicModel},
};

use super::{Documented, Limit, drives, goals::Goal, transfer};
use crate::{
    guest::console,
    libvirt::given::{Given, refused},
    qemu::{
        cable::{self, Cable},
        command_line::Medium,
    },
};

const MIB: u64 = 1 << 20;

/// What every scenario with a VM takes.
pub(super) const VM_PARAMS: &[Documented] = &[
    ("image", "tiny", "image the VM boots from"),
    ("mem", "256M", "RAM of the VM; a number alone is MiB"),
    ("smp", "1", "virtual CPUs"),
    ("machine", "", "QEMU machine type; default: the newest q35 of the source"),
    ("cpu_model", "", "QEMU CPU model; default: what fits the accelerator"),
    ("accelerator", "", "kvm or tcg; default: kvm where it works on every host of the case"),
    (
        "disk_pool",
        "",
        "pool of kind nfs, gluster, iscsi or rbd that the VM's disk lies in; default: the hosts' own folders of disks",
    ),
    (
        "nics",
        "nic1",
        "names of the VM's network cards, at most 8; the first has the address, all are on the hosts' bridge",
    ),
    (
        "nettype",
        "bridge",
        "macvtap: each card is a macvtap on its host's uplink ([network] uplink in the settings); every other word: a tap on its \
         bridge; nettype_nic2 of that one",
    ),
    ("macvtap_mode", "bridge", "of a macvtap: bridge, vepa, private, passthru"),
    (
        "vhost",
        "off",
        "on: the kernel of the host carries the packets (skipped where it cannot); vhost_host2 on that host; also written \
         netdev_extra_params = ,vhost=on",
    ),
    ("nic_model", "virtio", "what each is: virtio, e1000, e1000e, rtl8139, vmxnet3; nic_model_nic2 of that one"),
    (
        "qemu_binary",
        "",
        "which QEMU of its host runs the VM: a name or path of those in the host's settings ([qemu.binaries]); default: [qemu] \
         binary",
    ),
    ("qemu_dst_binary", "", "the same on the hosts behind host1, where it is another one there"),
    ("vm_type", "qemu", "who starts and moves the VM: qemu (the daemon, over QMP), or libvirt; --backend sets it"),
    (
        DOMAIN_PARAM,
        "",
        "by libvirt: the VM's domain, in a file that vtctl reads; mem, smp, machine, cpu_model, nics and qemu_binary are its where \
         they are not said, its disks and cards lead where the VM's do, and what cannot move or is a path of a host is refused",
    ),
    ("login_timeout", "360", "seconds until the guest is up and lets in"),
    ("username", "root", "who logs in on the console"),
    ("password", "", "with which password, where the guest asks for one"),
    (
        "shell_prompt",
        "",
        "what the last line of a shell that waits looks like, as a regular expression; one that ends in #, $, > or % is known",
    ),
];

/// What every scenario that moves a VM takes besides.
pub(super) const MOVE_PARAMS: &[Documented] = &[
    (
        "mig_protocol",
        "tcp",
        "what carries the VM: tcp, tcp6, tls (certificates by the cluster's authority), mesh (the daemons' own encrypted \
         channel, also called unix), fd, exec (both carried by that channel), file (saved, moved, restored), rdma",
    ),
    ("mig_offline", "no", "yes: the guest is paused before the transfer and goes on after it"),
    ("mig_speed", "", "most bandwidth of the transfer, bytes/s (1G, 100M); default: QEMU's own"),
    ("downtime_limit", "", "downtime QEMU may aim at, ms; default: QEMU's own"),
    ("mig_timeout", "300", "seconds a transfer may take before it is cancelled"),
    (
        "mig_suspend_after",
        "",
        "seconds a transfer may take before the guest is paused, to go on where it is afterwards",
    ),
    (
        "virsh_migrate_options",
        "",
        "by libvirt: a move in the words of virsh migrate, e.g. \"--live --p2p --parallel --parallel-connections 4\"; without --p2p one \
         process speaks with both libvirts, without --live the guest is paused; what is the mesh's to say is refused with the rule",
    ),
    (
        "goal",
        "",
        "what a transfer is to be like: min_downtime, min_time, or must_finish:5m; sets what is not set, and tells what that is",
    ),
    ("capabilities", "", "migration capabilities to turn on, by QEMU's names, e.g. \"auto-converge xbzrle\""),
    ("parameters", "", "migration parameters by QEMU's names, e.g. \"multifd-channels=4 multifd-compression=zstd\""),
    (
        "at",
        "",
        "what to do at which moment of a transfer, e.g. \"pass:2 postcopy; postcopy-active break\"; moments: setup, active, \
         pass:N, pre-switchover, device, postcopy-active, and stalled, which may never come; to do: cancel, postcopy, break, stop, NAME=VALUE",
    ),
    (
        "mem_probe",
        "",
        "guest memory under the pattern that is rewritten all the time; default: 16M, at most an eighth of mem",
    ),
    ("mem_rewrite", "8M", "how fast it is rewritten, bytes/s; 0: not at all"),
    ("disk_probe", "1M", "bytes of the disk that checksummed records go round in"),
    ("clock_tolerance", "5000", "how far the guest's clock may be off after a move, ms"),
    (
        "beacon",
        "",
        "UDP port that the guest sends a datagram to, to everyone on its network, every 10 ms; default: one of its own",
    ),
    ("max_standstill", "10000", "how long the guest may stand still in a move, ms"),
];

/// Old spellings.
pub(super) const ALIASES: &[&str] =
    &["capabilitys", "capabilitys_state", "host_mig_offline", "mig_downtime", "machine_type"];

/// What no scenario does.
pub(super) const LIMITS: &[Limit] =
    &[CARDS, Limit { key: "vms", takes: |value| value.split_whitespace().count() <= 1, does: "has one VM" }];

/// The same of a scenario with several VMs.
pub(super) const SEVERAL: &[Limit] = &[CARDS];

const CARDS: Limit =
    Limit { key: "netdev_extra_params", takes: cable::takes, does: "gives network cards no more than vhost" };

/// What is not done where nothing is done to the VM's devices, nor to the guest before it moves.
pub(super) const UNCHANGED: &[Limit] = &[
    Limit { key: "migration_sync_vms", takes: is_no, does: "moves VMs whose devices stay as they are" },
    Limit { key: "pre_sub_test", takes: str::is_empty, does: "has no tests inside" },
];

/// What is not done where a guest is up when it moves, and is only looked at afterwards.
pub(super) const PLAIN: &[Limit] = &[
    Limit { key: "paused_after_start_vm", takes: is_no, does: "moves VMs that are up" },
    Limit { key: "migration_sync_vms", takes: is_no, does: "moves VMs whose devices stay as they are" },
    Limit { key: "pre_sub_test", takes: str::is_empty, does: "has no tests inside" },
    Limit { key: "post_sub_test", takes: str::is_empty, does: "has no tests inside" },
];

fn is_no(value: &str) -> bool {
    matches!(value, "no" | "off" | "")
}

/// A VM, as the parameters want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VmSettings {
    pub(super) image: Name,
    pub(super) memory_mib: u32,
    pub(super) cpus: u16,
    pub(super) machine: Option<String>,
    pub(super) cpu_model: Option<String>,
    pub(super) accelerator: Option<Accelerator>,
    pub(super) login_timeout: Duration,
    pub(super) backend: Backend,
    /// Words appended to QEMU's command line, by a scenario that needs them.
    pub(super) extra_args: Vec<String>,
    /// Whether a thread of its own serves its first disk, which a scenario needs.
    pub(super) io_thread: bool,
    /// Disks beside the first and CDs.
    pub(super) drives: Vec<Drive>,
    /// Whether its disks are looked into.
    pub(super) check_images: bool,
    pub(super) nics: Vec<NicModel>,
    /// The domain that its user gave.
    pub(super) domain: Option<Given>,
}

/// How a VM is started, moved and watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) vm: VmSettings,
    pub(super) spec: MigrationSpec,
    /// A goal, and what it set.
    pub(super) goal: Option<(Goal, String)>,
    pub(super) probe_pages: u32,
    pub(super) rewrite_bytes_s: u64,
    pub(super) disk_bytes: u64,
    pub(super) clock_tolerance: Duration,
    pub(super) standstill: Duration,
    pub(super) beacon: Option<u16>,
}

impl VmSettings {
    pub(super) fn read(params: &Params) -> Result<Self, ParamError> {
        let name = params.text("image").unwrap_or("tiny");
        let image = name.trim().parse().map_err(|_| params.error("image", "the name of an image"))?;
        let machine = if params.get("machine").is_some() { "machine" } else { "machine_type" };
        // Avocado-VT writes `core2duo:sse3` where QEMU wants `core2duo,+sse3`.
        let mut cpu = params.subset(&["cpu_model"]);
        if let Some(param) = cpu.get("cpu_model").filter(|param| param.value.contains(':')).cloned() {
            cpu.set("cpu_model", param.value.trim().replace(':', ",+"), param.origin);
        }
        // Who logs in is the daemon's to know: it reads the same parameter.
        word(params, "username", "the name of a user")?;
        if params.text("shell_prompt").is_some_and(|pattern| console::prompt(pattern.trim()).is_err()) {
            return Err(params.error("shell_prompt", "a regular expression, or a very large one"));
        }
        // So is which QEMU of its host that is.
        for key in ["qemu_binary", "qemu_dst_binary"] {
            let said = params.text(key).map(str::trim).unwrap_or_default();
            if said.starts_with('-') || said.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(params.error(key, "the name or path of a QEMU in the host's settings"));
            }
        }
        // Where its disk lies is the daemon's to know, too, and what becomes of one that is damaged.
        for key in ["backup_image_on_check_error", "skip_cluster_leak_warn"] {
            params.flag(key)?;
        }
        let pool = params.text("disk_pool").map(str::trim).filter(|pool| !pool.is_empty());
        if pool.is_some_and(|pool| pool.parse::<Name>().is_err()) {
            return Err(params.error("disk_pool", "the name of a pool"));
        }
        let backend = match params.text("vm_type").map(str::trim) {
            None | Some("" | "qemu") => Backend::Qmp,
            Some("libvirt") => Backend::Libvirt,
            Some(_) => return Err(params.error("vm_type", "qemu or libvirt")),
        };
        let domain = Given::of(params)?;
        if domain.is_some() && backend != Backend::Libvirt {
            return Err(params.error("vm_type", format!("libvirt, and {DOMAIN_PARAM} is for libvirt")));
        }
        let said = domain.as_ref();
        let memory = params.size("mem", MIB, 32 * MIB..=MIB << 20)?;
        let accelerator = match params.text("accelerator").map(str::trim) {
            None | Some("") => None,
            Some("kvm") => Some(Accelerator::Kvm),
            Some("tcg") => Some(Accelerator::Tcg),
            Some(_) => return Err(params.error("accelerator", "kvm or tcg")),
        };
        let cpus = params.number("smp", 1..=255)?.map(fit);
        let machine = word(params, machine, "a machine type of QEMU, e.g. pc-q35-7.2")?;
        let cpu_model = word(&cpu, "cpu_model", "a CPU model of QEMU, e.g. qemu64")?;
        let (drives, nics) = (drives::read(params)?, nics(params, said)?);
        if let Some(domain) = said {
            let others = drives.iter().map(|drive| Medium::of(&drive.content));
            let media: Vec<Medium> = std::iter::once(Medium::Disk).chain(others).collect();
            domain.fits(&media, nics.len()).map_err(|objection| refused(params, &objection))?;
        }
        Ok(Self {
            image,
            memory_mib: memory
                .map(|bytes| fit(bytes / MIB))
                .or_else(|| said.and_then(|said| said.memory_mib))
                .unwrap_or(256),
            cpus: cpus.or_else(|| said.and_then(|said| said.cpus)).unwrap_or(1),
            machine: machine.or_else(|| said.and_then(|said| said.machine.clone())),
            cpu_model: cpu_model.or_else(|| said.and_then(|said| said.cpu_model.clone())),
            accelerator,
            login_timeout: Duration::from_secs(params.number("login_timeout", 1..=86_400)?.unwrap_or(360)),
            backend,
            extra_args: Vec::new(),
            io_thread: false,
            drives,
            check_images: params.flag("check_image")?.unwrap_or(false),
            nics,
            domain,
        })
    }

    /// Whether its machine has slots of PCI Express, as q35 has and pc has not.
    pub(super) fn has_pcie(&self) -> bool {
        self.machine.as_ref().is_none_or(|machine| machine.contains("q35"))
    }

    pub(super) fn start(&self) -> StartVm {
        StartVm {
            // Replaced by the VM's own.
            vm: self.image.clone(),
            image: self.image.clone(),
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            machine: self.machine.clone(),
            cpu_model: self.cpu_model.clone(),
            accelerator: self.accelerator,
            extra_args: self.extra_args.clone(),
            io_thread: self.io_thread,
            backend: self.backend,
            boot_timeout_ms: u64::try_from(self.login_timeout.as_millis()).unwrap_or(u64::MAX),
            no_wait: false,
            drives: self.drives.clone(),
            check_images: self.check_images,
            nics: self.nics.clone(),
        }
    }
}

/// What of the VM itself differs between two hosts' parameters: key, what one says, what the other. Where its files lie may.
pub(super) fn unequal(one: &Params, other: &Params) -> Vec<(&'static str, String, String)> {
    let read = |params| VmSettings::read(params).ok();
    let Some((one, other)) = read(one).zip(read(other)) else { return Vec::new() };
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "the default".to_owned());
    let accelerator = |vm: &VmSettings| vm.accelerator.map_or_else(|| word(&None), |known| format!("{known:?}"));
    let all = [
        ("mem", format!("{} MiB", one.memory_mib), format!("{} MiB", other.memory_mib)),
        ("smp", one.cpus.to_string(), other.cpus.to_string()),
        ("machine", word(&one.machine), word(&other.machine)),
        ("cpu_model", word(&one.cpu_model), word(&other.cpu_model)),
        ("accelerator", accelerator(&one), accelerator(&other)),
        ("nics", cards(&one.nics), cards(&other.nics)),
    ];
    let mut unequal: Vec<_> = all.into_iter().filter(|(_, here, there)| here != there).collect();
    if one.domain != other.domain {
        unequal.push((DOMAIN_PARAM, "one domain".to_owned(), "another".to_owned()));
    }
    unequal
}

impl Settings {
    pub(super) fn read(params: &Params) -> Result<Self, ParamError> {
        let vm = VmSettings::read(params)?;
        let memory = u64::from(vm.memory_mib) * MIB;
        // What a small guest has is nearly all taken: more than an eighth, and it ends processes for want of memory.
        let probe = params.size("mem_probe", MIB, 4096..=4 << 30)?.unwrap_or_else(|| memory.min(128 * MIB) / 8);
        // The guest needs the other half for itself.
        if probe > memory / 2 {
            return Err(params.error("mem_probe", format!("at most half of mem, {} MiB", vm.memory_mib / 2)));
        }
        let disk_bytes = params.size("disk_probe", MIB, 4096..=256 * MIB)?.unwrap_or(MIB) / 4096 * 4096;
        let millis =
            |key, most, default| params.number(key, 0..=most).map(|ms| Duration::from_millis(ms.unwrap_or(default)));
        let mut spec = transfer::read(params)?;
        let goal = match params.text("goal").map(str::trim).filter(|text| !text.is_empty()) {
            Some(text) => {
                let want = "min_downtime, min_time, or must_finish: and a time, e.g. must_finish:5m";
                let goal: Goal = text.parse().map_err(|()| params.error("goal", want))?;
                Some((goal, goal.apply(&mut spec)))
            }
            None => None,
        };
        Ok(Self {
            spec,
            goal,
            probe_pages: fit(probe / 4096),
            rewrite_bytes_s: params.size("mem_rewrite", 1, 0..=1 << 34)?.unwrap_or(8 * MIB),
            disk_bytes,
            clock_tolerance: millis("clock_tolerance", 3_600_000, 5000)?,
            standstill: millis("max_standstill", 3_600_000, 10_000)?,
            beacon: params.number("beacon", 1..=65_535)?.map(fit),
            vm,
        })
    }
}

/// What each network card of a VM is: as the parameters have it, else as the domain that its user gave.
fn nics(params: &Params, domain: Option<&Given>) -> Result<Vec<NicModel>, ParamError> {
    let model = |params: &Params| match params.text("nic_model").map(str::trim) {
        None | Some("") => Ok(NicModel::default()),
        Some(name) => {
            NicModel::named(name).ok_or_else(|| params.error("nic_model", NicModel::ALL.map(NicModel::name).join(", ")))
        }
    };
    let names = params.objects("nics");
    if names.len() > NICS_MAX || names.iter().any(|name| name.parse::<Name>().is_err()) {
        return Err(params.error("nics", format!("at most {NICS_MAX} names")));
    }
    // What they hang on is the daemon's to know, too.
    Cable::all(params)?;
    if let Some(given) = domain.filter(|domain| names.is_empty() && !domain.nics.is_empty()) {
        let said = params.text("nic_model").is_some_and(|name| !name.trim().is_empty());
        if given.nics.len() > NICS_MAX {
            return Err(params.error("nics", format!("at most {NICS_MAX} names; the domain has {}", given.nics.len())));
        }
        given.nics.iter().map(|own| if said { model(params) } else { Ok(*own) }).collect()
    } else if names.is_empty() {
        Ok(vec![model(params)?])
    } else {
        names.iter().map(|nic| model(&params.object(nic))).collect()
    }
}

/// The models of network cards, for a reader.
fn cards(nics: &[NicModel]) -> String {
    nics.iter().map(|nic| nic.name()).collect::<Vec<_>>().join(" ")
}

/// A word without blanks; a comma is for the flags of a CPU model, and is escaped everywhere else. `None` where it is empty.
fn word(params: &Params, key: &str, want: &str) -> Result<Option<String>, ParamError> {
    let Some(text) = params.text(key).map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | ',' | '='));
    if plain && !text.starts_with('-') && text.len() <= 200 {
        Ok(Some(text.to_owned()))
    } else {
        Err(params.error(key, want))
    }
}

/// Bounds were checked when the number was read.
pub(super) fn fit<T: TryFrom<u64> + Default>(number: u64) -> T {
    T::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use vt_protocol::params::Origin;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Settings {
        let mut params = Params::new();
        for (key, value) in pairs {
            params.set(*key, *value, Origin { file: "-p".into(), line: 0 });
        }
        Settings::read(&params).unwrap()
    }

    #[test]
    fn parameters_become_what_qemu_is_told() {
        let s = read(&[("mig_speed", "100M"), ("downtime_limit", "150"), ("mig_timeout", "9"), ("mem", "512")]);
        assert_eq!(s.spec.parameters["max-bandwidth"], 100 << 20);
        assert_eq!(s.spec.parameters["downtime-limit"], 150);
        assert_eq!(s.spec.timeout_ms, 9000);
        assert_eq!(s.vm.memory_mib, 512);
        assert!(read(&[]).spec.parameters.is_empty(), "QEMU's own defaults are left alone");
        let s = read(&[("nics", "nic1 nic2"), ("nic_model", "e1000"), ("nic_model_nic2", "vmxnet3")]);
        assert_eq!(s.vm.nics, [NicModel::E1000, NicModel::Vmxnet3]);
        assert_eq!(read(&[]).vm.nics, [NicModel::Virtio]);
        let s = read(&[("goal", "must_finish:5m"), ("downtime_limit", "100")]);
        assert_eq!((s.spec.timeout_ms, s.spec.parameters["downtime-limit"]), (300_000, 100));
        assert!(s.goal.unwrap().1.contains("cpu-throttle-initial=30"));
    }
}
