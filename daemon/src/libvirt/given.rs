//! A domain that a user gives for a VM: read, checked, and what it says of the VM. Pure.
//!
//! Who runs a case does not choose what a host runs or opens as root, and what stays at a host does not move with a VM. So
//! an element is taken only if it is known: some are kept as they are, some are the mesh's to say ([`super::laid`]), and
//! every other one is refused with its line. A path in what is kept is refused wherever it stands.

use vt_protocol::{
    libvirt::{DOMAIN_MAX, DOMAIN_PARAM},
    params::{ParamError, Params},
    probe,
    vm::NicModel,
};

use super::element::Element;
pub use super::element::Objection;
use crate::qemu::command_line::{AGENT_PORT, Medium};

/// Elements that are kept.
pub(super) const KEPT: [&str; 9] =
    ["features", "clock", "pm", "iothreads", "iothreadids", "cputune", "numatune", "memtune", "memoryBacking"];
/// Elements that are the mesh's to say.
pub(super) const OURS: [&str; 10] =
    ["name", "uuid", "memory", "vcpu", "os", "cpu", "on_poweroff", "on_reboot", "on_crash", "devices"];
/// Elements that say nothing of what the guest sees, and are left out.
pub(super) const LEFT_OUT: [&str; 6] = ["currentMemory", "title", "description", "metadata", "resource", "seclabel"];
/// Of `os`.
pub(super) const OS_KEPT: [&str; 4] = ["boot", "bootmenu", "smbios", "bios"];
const OS_OURS: [&str; 4] = ["type", "kernel", "initrd", "cmdline"];
/// Of `cpu`; the rest of it is the CPU model.
pub(super) const CPU_KEPT: [&str; 2] = ["topology", "numa"];
const CPU_OURS: [&str; 3] = ["model", "feature", "vendor"];
/// Of a disk.
pub(super) const DISK_KEPT: [&str; 9] =
    ["driver", "target", "address", "boot", "iotune", "blockio", "geometry", "vendor", "product"];
const DISK_OURS: [&str; 6] = ["source", "backingStore", "serial", "wwn", "readonly", "alias"];
/// Of a network card.
pub(super) const NIC_KEPT: [&str; 4] = ["address", "boot", "link", "mtu"];
const NIC_OURS: [&str; 9] = ["mac", "source", "target", "model", "driver", "rom", "alias", "virtualport", "bandwidth"];
/// Devices that are kept as they are.
const DEVICES_KEPT: [&str; 6] = ["controller", "video", "sound", "watchdog", "panic", "memballoon"];
/// Devices that are the mesh's.
pub(super) const DEVICES_OURS: [&str; 4] = ["emulator", "serial", "console", "channel"];
/// Where the kernel gives random bytes to everybody.
const RANDOM: [&str; 2] = ["/dev/urandom", "/dev/random"];

/// A domain that can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub(super) domain: Element,
    /// MiB.
    pub memory_mib: Option<u32>,
    /// How many CPUs.
    pub cpus: Option<u16>,
    /// The machine type.
    pub machine: Option<String>,
    /// The CPU model, as QEMU writes it.
    pub cpu_model: Option<String>,
    /// The QEMU that it names.
    pub emulator: Option<String>,
    /// What its network cards are.
    pub nics: Vec<NicModel>,
}

impl Given {
    /// What the parameters of a VM have.
    ///
    /// # Errors
    /// It cannot be taken.
    pub fn of(params: &Params) -> Result<Option<Self>, ParamError> {
        let Some(text) = params.text(DOMAIN_PARAM).filter(|text| !text.trim().is_empty()) else { return Ok(None) };
        Self::read(text).map(Some).map_err(|objection| refused(params, &objection))
    }

    /// Reads and checks one.
    ///
    /// # Errors
    /// What cannot be taken first, with its line.
    pub fn read(text: &str) -> Result<Self, Objection> {
        if !text.trim_start().starts_with('<') {
            let cause = "it is no XML; vtctl run reads a file that -p names, in no configuration".to_owned();
            return Err(Objection { line: 1, cause });
        }
        let domain = Element::read(text)?;
        if domain.name != "domain" || !matches!(domain.attribute("type"), Some("kvm" | "qemu")) {
            return Err(domain.objection("it is no domain of type kvm or qemu"));
        }
        for (number, element) in domain.children.iter().enumerate() {
            let name = element.name.as_str();
            if domain.children[..number].iter().any(|before| before.name == name) && name != "seclabel" {
                return Err(element.objection("it is there twice"));
            }
            match name {
                "os" => within(element, &OS_KEPT, &OS_OURS)?,
                "cpu" => within(element, &CPU_KEPT, &CPU_OURS)?,
                "devices" => element.children.iter().try_for_each(device)?,
                name if KEPT.contains(&name) => plain(element)?,
                name if OURS.contains(&name) || LEFT_OUT.contains(&name) => {}
                _ => return Err(strange(element)),
            }
        }
        let devices = domain.child("devices").map(|devices| devices.children.as_slice()).unwrap_or_default();
        Ok(Self {
            memory_mib: domain.child("memory").map(memory).transpose()?,
            cpus: domain.child("vcpu").map(cpus).transpose()?,
            machine: domain.child("os").and_then(|os| os.attribute_of("type", "machine")).map(str::to_owned),
            cpu_model: domain.child("cpu").map(cpu_model).transpose()?.flatten(),
            emulator: devices.iter().find(|device| device.name == "emulator").map(|said| said.text.trim().to_owned()),
            nics: devices.iter().filter(|device| device.name == "interface").map(nic).collect::<Result<_, _>>()?,
            domain,
        })
    }

    /// Whether each of its disks, CDs and cards has one of the VM's to stand for it. `media` are those of the VM's drives,
    /// its first disk among them.
    ///
    /// # Errors
    /// The first that has none.
    pub fn fits(&self, media: &[Medium], nics: usize) -> Result<(), Objection> {
        let devices = self.domain.child("devices").map(|devices| devices.children.as_slice()).unwrap_or_default();
        for (name, kind, has, which) in [
            ("disk", "disk", media, "images"),
            ("disk", "cdrom", media, "cdroms"),
            ("disk", "floppy", media, "floppies"),
        ] {
            let has = has.iter().filter(|medium| kind_of(**medium) == kind).count();
            let of_kind = devices.iter().filter(|device| device.name == name && disk_kind(device) == kind);
            if let Some(surplus) = of_kind.filter(|disk| disk.child("source").is_some()).nth(has) {
                return Err(surplus.objection(format!("the VM has no such {kind}; {which} names those that it has")));
            }
        }
        match devices.iter().filter(|device| device.name == "interface").nth(nics) {
            Some(surplus) => Err(surplus.objection(format!("the VM has {nics} network cards; nics names them"))),
            None => Ok(()),
        }
    }
}

/// An objection as an error of the parameter.
pub fn refused(params: &Params, objection: &Objection) -> ParamError {
    let value = format!("a text of {} bytes", params.text(DOMAIN_PARAM).unwrap_or_default().len().min(DOMAIN_MAX + 1));
    ParamError { value, ..params.error(DOMAIN_PARAM, format!("a domain that can be taken: {objection}")) }
}

/// What libvirt calls a disk by.
pub(super) fn disk_kind(disk: &Element) -> &str {
    disk.attribute("device").unwrap_or("disk")
}

/// The same of a drive.
fn kind_of(medium: Medium) -> &'static str {
    match medium {
        Medium::Disk | Medium::SeenDisk => "disk",
        Medium::Cd | Medium::OwnCd => "cdrom",
        Medium::Floppy => "floppy",
    }
}

fn strange(element: &Element) -> Objection {
    element.objection(match element.name.as_str() {
        "hostdev" => "a device of its host does not move with a VM",
        "filesystem" => "a folder of its host does not move with a VM",
        "shmem" | "vsock" | "redirdev" | "smartcard" => "what it shares with its host does not move with a VM",
        "tpm" | "nvram" | "loader" | "varstore" => "what it remembers lies at its host, outside the pools",
        name if name.starts_with("qemu:") => "who runs a case does not choose words of QEMU",
        _ => "it is not known to be the same on every host",
    })
}

/// Every element in it is known, and those that are kept are [`plain`].
fn within(element: &Element, kept: &[&str], ours: &[&str]) -> Result<(), Objection> {
    no_paths(element)?;
    for child in &element.children {
        match child.name.as_str() {
            name if kept.contains(&name) => plain(child)?,
            name if ours.contains(&name) => {}
            _ => return Err(strange(child)),
        }
    }
    if element.attribute("firmware").is_some() {
        return Err(element.objection("what its firmware remembers lies at its host, outside the pools"));
    }
    Ok(())
}

/// Nothing in it is a path, and nothing is handed on to QEMU.
fn plain(element: &Element) -> Result<(), Objection> {
    no_paths(element)?;
    if element.name.contains(':') {
        return Err(strange(element));
    }
    element.children.iter().try_for_each(plain)
}

fn no_paths(element: &Element) -> Result<(), Objection> {
    let mut values = element.attributes.iter().map(|(_, value)| value.as_str()).chain([element.text.as_str()]);
    match values.find(|value| value.trim_start().starts_with('/')) {
        Some(path) => Err(element.objection(format!("{} lies outside the pools", path.trim()))),
        None => Ok(()),
    }
}

fn device(device: &Element) -> Result<(), Objection> {
    let kind = device.attribute("type").unwrap_or_default();
    let only = |known: &[&str], why: &str| if known.contains(&kind) { Ok(()) } else { Err(device.objection(why)) };
    match device.name.as_str() {
        "channel" => {
            let port = device.attribute_of("target", "name").unwrap_or_default();
            let known = [AGENT_PORT, probe::PORT_NAME].contains(&port);
            if known { Ok(()) } else { Err(device.objection("its other end is at its host, and stays there")) }
        }
        name if DEVICES_OURS.contains(&name) => Ok(()),
        "disk" => {
            if !["disk", "cdrom", "floppy"].contains(&disk_kind(device)) {
                return Err(device.objection("it is a device of its host"));
            }
            only(&["file"], "it is no file: what its VM has comes from images, cdroms and disk_pool")?;
            within(device, &DISK_KEPT, &DISK_OURS)
        }
        "interface" => {
            let known = ["network", "bridge", "direct", "ethernet", "user"];
            only(&known, "it is a device of its host, or ends in another process there")?;
            within(device, &NIC_KEPT, &NIC_OURS)
        }
        "input" => only(&["mouse", "tablet", "keyboard"], "it is a device of its host").and_then(|()| plain(device)),
        "audio" => only(&["none"], "it plays at its host").and_then(|()| plain(device)),
        "graphics" => {
            only(&["vnc"], "of screens vtmesh knows vnc alone")?;
            let listens = device.children.iter().filter(|child| child.name == "listen");
            let mut addresses =
                listens.filter_map(|listen| listen.attribute("address")).chain(device.attribute("listen"));
            if let Some(address) = addresses.find(|address| !["127.0.0.1", "::1", "localhost"].contains(address)) {
                return Err(device.objection(format!("{address} is open to others than its host")));
            }
            plain(device)
        }
        "rng" => match device.child("backend") {
            Some(backend) if backend.attribute("model") == Some("random") => {
                let own = backend.text.trim();
                let known = own.is_empty() || RANDOM.contains(&own);
                if known { Ok(()) } else { Err(backend.objection(format!("{own} lies outside the pools"))) }
            }
            Some(backend) if backend.attribute("model") == Some("builtin") => plain(device),
            _ => Err(device.objection("it takes its bytes from another process of its host")),
        },
        name if DEVICES_KEPT.contains(&name) => plain(device),
        _ => Err(strange(device)),
    }
}

fn memory(element: &Element) -> Result<u32, Objection> {
    let unit: u64 = match element.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        other => return Err(element.objection(format!("{other} is no unit that is known"))),
    };
    let bytes = element.text.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let mib = bytes.and_then(|bytes| u32::try_from(bytes.div_ceil(1 << 20)).ok());
    mib.filter(|mib| (32..=1 << 20).contains(mib)).ok_or_else(|| element.objection("32 MiB to 1 TiB can be had"))
}

fn cpus(element: &Element) -> Result<u16, Objection> {
    let cpus = element.text.trim().parse().ok().filter(|cpus| (1..=255).contains(cpus));
    cpus.ok_or_else(|| element.objection("1 to 255 can be had"))
}

fn cpu_model(cpu: &Element) -> Result<Option<String>, Objection> {
    if cpu.attribute("match").is_some_and(|matches| matches != "exact") {
        return Err(cpu.objection("it is another CPU on each host; match='exact' is the same"));
    }
    let named = cpu.child("model").map(|model| model.text.trim());
    let name = match (cpu.attribute("mode"), named) {
        (Some("host-passthrough"), _) => "host",
        (Some("maximum"), _) => "max",
        (Some("custom") | None, Some(name)) => name,
        (None, None) => {
            let feature = cpu.child("feature");
            return feature.map_or(Ok(None), |feature| Err(feature.objection("it is of no CPU model")));
        }
        (Some(mode), _) => {
            return Err(cpu.objection(format!("{mode} is another CPU on each host; a model is the same")));
        }
    };
    let mut model = name.to_owned();
    for feature in cpu.children.iter().filter(|child| child.name == "feature") {
        let sign = match feature.attribute("policy").unwrap_or("require") {
            "require" | "force" => '+',
            "disable" | "forbid" => '-',
            other => return Err(feature.objection(format!("{other} is another CPU on each host"))),
        };
        model += &format!(",{sign}{}", feature.attribute("name").unwrap_or_default());
    }
    let odd = |c: char| !(c.is_ascii_alphanumeric() || "-_.+,".contains(c));
    if name.is_empty() || model.contains(odd) {
        return Err(cpu.objection("it names no CPU model"));
    }
    Ok(Some(model))
}

fn nic(interface: &Element) -> Result<NicModel, Objection> {
    match interface.attribute_of("model", "type") {
        None => Ok(NicModel::default()),
        Some(name) => NicModel::named(name).ok_or_else(|| {
            let known = NicModel::ALL.map(NicModel::name).join(", ");
            interface.objection(format!("{name} is no model that is known; {known} are"))
        }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As `virsh dumpxml` writes them, shorter.
    pub(in crate::libvirt) const WORKSTATION: &str = "<domain type='kvm' id='3'>
  <name>workstation</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <metadata><app xmlns='http://example.org'/></metadata>
  <memory unit='KiB'>196608</memory>
  <currentMemory unit='KiB'>196608</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>/boot/vmlinuz</kernel><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='full'><model fallback='forbid'>qemu64</model>
    <topology sockets='1' cores='2' threads='1'/><feature policy='disable' name='svm'/></cpu>
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>
      <source file='/var/lib/libvirt/images/workstation.img'/><target dev='vdb' bus='virtio'/><boot order='1'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
    <controller type='usb' index='0' model='qemu-xhci'/>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/><model type='e1000'/></interface>
    <serial type='pty'><target port='0'/></serial><console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <input type='tablet' bus='usb'/>
    <graphics type='vnc' port='-1' autoport='yes'><listen type='address' address='127.0.0.1'/></graphics>
    <audio id='1' type='none'/><video><model type='vga'/></video>
    <watchdog model='i6300esb' action='reset'/><memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <seclabel type='dynamic' model='dac'/>
</domain>";

    #[test]
    fn what_it_says_of_the_vm_is_known() {
        let given = Given::read(WORKSTATION).unwrap();
        let Given { memory_mib, cpus, machine, cpu_model, emulator, nics, .. } = &given;
        assert_eq!((*memory_mib, *cpus, machine.as_deref()), (Some(192), Some(2), Some("pc-q35-7.2")));
        assert_eq!((cpu_model.as_deref(), nics.as_slice()), (Some("qemu64,-svm"), &[NicModel::E1000][..]));
        assert_eq!(emulator.as_deref(), Some("/usr/bin/qemu-system-x86_64"));
        assert_eq!(given.fits(&[Medium::Disk], 1), Ok(()), "a drive for CDs may be empty");
        let bare = Given::read("<domain type='qemu'><cpu><topology sockets='2'/></cpu></domain>").unwrap();
        assert_eq!((bare.memory_mib, bare.cpu_model.as_deref(), bare.nics.len()), (None, None, 0));
    }

    #[test]
    fn what_cannot_move_or_is_not_for_a_user_to_say_is_refused_with_line_and_cause() {
        let device = |text: &str| format!("<domain type='kvm'>\n<devices>\n{text}</devices></domain>");
        let top = |text: &str| format!("<domain type='kvm'>\n\n{text}</domain>");
        for (text, cause) in [
            (device("<hostdev mode='subsystem' type='pci'/>"), "<hostdev>: a device of its host"),
            (device("<filesystem type='mount'/>"), "<filesystem>: a folder of its host"),
            (device("<shmem name='x'/>"), "shares with its host"),
            (device("<tpm model='tpm-crb'/>"), "outside the pools"),
            (device("<frobnicator/>"), "<frobnicator>: it is not known"),
            (device("<disk type='block'><source dev='/dev/sda'/></disk>"), "it is no file"),
            (device("<disk type='file' device='lun'/>"), "device of its host"),
            (device("<disk type='file'><encryption format='luks'/></disk>"), "<encryption>"),
            (device("<interface type='hostdev'/>"), "device of its host"),
            (device("<interface type='bridge'><script path='/tmp/x'/></interface>"), "<script>"),
            (device("<interface type='bridge'><model type='ne2k_pci'/></interface>"), "ne2k_pci is no model"),
            (device("<channel type='spicevmc'><target name='com.redhat.spice.0'/></channel>"), "other end"),
            (device("<input type='evdev'><source dev='/dev/input/event0'/></input>"), "device of its host"),
            (device("<graphics type='vnc' listen='0.0.0.0'/>"), "0.0.0.0 is open"),
            (device("<graphics type='spice'/>"), "vnc alone"),
            (device("<graphics type='vnc' socket='/tmp/x'/>"), "/tmp/x lies outside the pools"),
            (
                device("<video><model type='virtio'><acceleration rendernode='/dev/dri/card0'/></model></video>"),
                "/dev/dri",
            ),
            (device("<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>"), "/etc/shadow lies"),
            (device("<rng model='virtio'><backend model='egd' type='unix'/></rng>"), "another process"),
            (device("<audio type='alsa'/>"), "plays at its host"),
            (top("<os firmware='efi'/>"), "firmware remembers"),
            (top("<os><loader>/usr/share/x</loader></os>"), "<loader>"),
            (top("<cpu mode='host-model'/>"), "another CPU on each host"),
            (top("<cpu match='minimum'><model>Haswell</model></cpu>"), "another CPU on each host"),
            (top("<cpu><model>a b</model></cpu>"), "no CPU model"),
            (top("<memory unit='furlong'>1</memory>"), "furlong"),
            (top("<memory>99999999999999999999</memory>"), "32 MiB to 1 TiB"),
            (top("<vcpu>0</vcpu>"), "1 to 255"),
            (top("<launchSecurity type='sev'/>"), "<launchSecurity>"),
            (top("<os/><os/>"), "twice"),
            (
                top("<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-s'/></commandline>"),
                "words of QEMU",
            ),
        ] {
            let objection = Given::read(&text).unwrap_err();
            assert!(objection.line == 3 && objection.cause.contains(cause), "{objection}, not {cause}");
        }
        for (text, cause) in [("disk.xml", "no XML"), ("<volume/>", "no domain"), ("<domain type='xen'/>", "no domain")]
        {
            assert!(Given::read(text).unwrap_err().cause.contains(cause));
        }
    }

    #[test]
    fn a_disk_or_card_that_the_vm_does_not_have_is_named() {
        let disk = "<disk type='file'><source file='x'/></disk>\n";
        let two = Given::read(&format!("<domain type='kvm'><devices>{disk}{disk}</devices></domain>")).unwrap();
        assert_eq!(two.fits(&[Medium::Disk, Medium::SeenDisk], 1), Ok(()));
        let objection = two.fits(&[Medium::Disk, Medium::Cd], 1).unwrap_err();
        assert!(objection.line == 2 && objection.cause.contains("no such disk"), "{objection}");
        let objection = Given::read(WORKSTATION).unwrap().fits(&[Medium::Disk], 0).unwrap_err();
        assert!(objection.cause.contains("0 network cards"), "{objection}");
    }
}
