//! A VM and its places on this host, as QEMU's command line. Pure.
//!
//! What the guest can see (machine, CPU, memory, devices and their order) comes from the spec alone, so that source and
//! destination agree; what differs (sockets, files, taps) the guest cannot see.
//!
//! | device | for |
//! |---|---|
//! | ISA serial 0 | console: kernel messages and login, socket `con`, log `serial.log` |
//! | virtio-serial `org.qemu.guest_agent.0` | QEMU's guest agent, socket `ga` |
//! | virtio-serial `org.vtmesh.probe.0` | our probe, socket `probe` |
//! | virtio-blk 0 (`vda`) | the overlay of the image |
//! | virtio-blk 1… (`vdb`…) | other disks, in order |
//! | scsi-cd 0… | CDs, in order |
//! | floppy 0, 1 | floppy disks, in order |
//! | virtio-net 0…, or another model | one a NIC of the spec, on a tap or a macvtap |
//! | virtio-rng | entropy, so that ssh keys do not keep a boot waiting |

use std::path::{Path, PathBuf};

use super::{
    cable::{Cable, Way},
    vhost,
};
use crate::pools::export::Served;
use vt_protocol::{
    probe,
    vm::{Accelerator, Drive, DriveContent, VmSpec},
};

/// The name of the monitor that is the daemon's, in the VM's run folder.
pub const QMP_SOCKET: &str = "qmp";
/// The name of the monitor that is the guard's.
pub const GUARD_QMP_SOCKET: &str = "gqmp";
/// The name of the console's socket.
pub const CONSOLE_SOCKET: &str = "con";
/// The name of the guest agent's socket.
pub const AGENT_SOCKET: &str = "ga";
/// The name of the probe's socket.
pub const PROBE_SOCKET: &str = "probe";
/// The name of QEMU's pid file.
pub const PID_FILE: &str = "pid";
/// The thread that serves the first disk, where it has one.
const IO_THREAD: &str = "iothread0";
/// The guest agent's virtio-serial port.
pub const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// A file, or a URI that QEMU knows.
    pub path: String,
    /// QEMU's format name: `qcow2`, `raw`.
    pub format: String,
    /// What lies below it, whatever it says itself; `None`: as it says.
    pub below: Option<Below>,
    /// An export of ours gives it to QEMU, and is started first.
    pub served: Option<Served>,
}

/// The image below an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    /// A file.
    pub path: String,
    /// QEMU's format name.
    pub format: String,
}

/// A disk beside the first, or a CD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Its file.
    pub disk: Disk,
    /// What the guest sees as its serial number.
    pub serial: String,
    /// How the guest gets it.
    pub medium: Medium,
}

impl Extra {
    /// A drive whose content lies in that file.
    pub fn of(drive: &Drive, path: String) -> Self {
        let disk = Disk { path, format: drive.format.name().to_owned(), below: None, served: None };
        Self { disk, serial: drive.name.to_string(), medium: Medium::of(&drive.content) }
    }
}

/// How a guest gets a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// As a disk.
    Disk,
    /// As a disk that every host sees.
    SeenDisk,
    /// As a CD whose file every host has: nothing is written to it.
    Cd,
    /// As a CD whose file is the VM's own: it may have to be written before the guest is here.
    OwnCd,
    /// As a floppy disk.
    Floppy,
}

impl Medium {
    /// Of a drive with that content.
    pub fn of(content: &DriveContent) -> Self {
        match content {
            DriveContent::Blank | DriveContent::Clone(_) => Self::Disk,
            DriveContent::Device(_) => Self::SeenDisk,
            DriveContent::Cd(_) => Self::Cd,
            DriveContent::Folder(_) | DriveContent::Noise => Self::OwnCd,
            DriveContent::Floppy(_) | DriveContent::FloppyImage(_) => Self::Floppy,
        }
    }
}

/// What QEMU calls the drives of a VM after `vda`: in the order of the drives.
pub fn drive_ids(media: impl IntoIterator<Item = Medium>) -> Vec<String> {
    let (mut disks, mut cds, mut floppies) = (b'a', 0, 0);
    let mut id = |medium| match medium {
        Medium::Disk | Medium::SeenDisk => {
            disks += 1;
            format!("vd{}", char::from(disks))
        }
        Medium::Cd | Medium::OwnCd => {
            cds += 1;
            format!("cd{}", cds - 1)
        }
        Medium::Floppy => {
            floppies += 1;
            format!("fd{}", floppies - 1)
        }
    };
    media.into_iter().map(&mut id).collect()
}

/// What is booted without a boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, whole.
    pub append: String,
}

/// What is decided about a VM beyond its spec; the same on source and destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Versioned machine type, e.g. `pc-q35-10.0`.
    pub machine: String,
    /// How instructions are run.
    pub accelerator: Accelerator,
    /// CPU model.
    pub cpu_model: String,
}

/// Everything the command line is made of.
#[derive(Debug, Clone)]
pub struct CommandLine<'a> {
    /// The VM.
    pub spec: &'a VmSpec,
    /// What was decided about it.
    pub resolved: &'a Resolved,
    /// What to boot; `None`: the firmware looks for something on the disks.
    pub boot: Option<&'a Boot>,
    /// `vda`.
    pub disk: Option<&'a Disk>,
    /// Disks beside it, and CDs.
    pub drives: &'a [Extra],
    /// The tap of each NIC of the spec, by name, in order.
    pub taps: &'a [String],
    /// What each of them is; a tap where it says nothing.
    pub cables: &'a [Cable],
    /// The VM's run folder, for sockets.
    pub run_dir: &'a Path,
    /// Where the console is logged.
    pub serial_log: &'a Path,
    /// Keep RAM in this file, so that it can be read and written from outside; `None`: in a memfd.
    pub memory_file: Option<&'a Path>,
    /// Wait for a migration.
    pub incoming: bool,
}

/// The CPU model where the spec names none: what runs everywhere under emulation, the host's own under KVM.
pub fn default_cpu_model(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Tcg => "qemu64",
        Accelerator::Kvm => "host",
    }
}

impl CommandLine<'_> {
    /// The words after the program. QEMU always starts with its CPUs stopped: who starts the VM says `cont` once its
    /// guard watches and its owner may.
    pub fn words(&self) -> Vec<String> {
        let spec = self.spec;
        let mut line = Words::default();
        line.flags(&["-nodefaults", "-no-user-config", "-S"]);
        line.option("-display", "none");
        line.option("-name", format!("vtmesh-{},debug-threads=on", escaped(&spec.id.to_string())));
        line.option("-uuid", uuid(spec));
        line.option("-machine", format!("{},memory-backend=mem", escaped(&self.resolved.machine)));
        line.option(
            "-accel",
            match self.resolved.accelerator {
                Accelerator::Tcg => "tcg,thread=multi",
                Accelerator::Kvm => "kvm",
            },
        );
        line.option("-cpu", &self.resolved.cpu_model);
        line.option("-smp", spec.cpus.to_string());
        line.option("-m", format!("{}M", spec.memory_mib));
        let size = format!("id=mem,size={}M,share=on", spec.memory_mib);
        line.option(
            "-object",
            match self.memory_file {
                Some(file) => format!("memory-backend-file,{size},mem-path={}", path(file)),
                None => format!("memory-backend-memfd,{size}"),
            },
        );
        line.option("-pidfile", self.run_dir.join(PID_FILE).to_string_lossy());

        for (id, socket) in [("qmp", QMP_SOCKET), ("gqmp", GUARD_QMP_SOCKET)] {
            line.option("-chardev", self.socket(id, socket));
            line.option("-mon", format!("chardev={id},mode=control"));
        }
        let log = format!(",logfile={},logappend=on", path(self.serial_log));
        line.option("-chardev", self.socket("con", CONSOLE_SOCKET) + &log);
        line.option("-serial", "chardev:con");
        line.option("-device", "virtio-serial-pci,id=vser");
        for (number, (id, socket, port)) in
            [("ga", AGENT_SOCKET, AGENT_PORT), ("probe", PROBE_SOCKET, probe::PORT_NAME)].into_iter().enumerate()
        {
            line.option("-chardev", self.socket(id, socket));
            line.option("-device", format!("virtserialport,bus=vser.0,nr={},chardev={id},name={port}", number + 1));
        }
        if spec.io_thread {
            line.option("-object", format!("iothread,id={IO_THREAD}"));
        }
        if let Some(disk) = self.disk {
            line.disk("vda", disk, "vda", spec.io_thread);
        }
        self.drives(&mut line);
        for (number, (nic, tap)) in spec.nics.iter().zip(self.taps).enumerate() {
            let [a, b, c, d, e, f] = nic.mac;
            let cable = self.cables.get(number).copied().unwrap_or_default();
            let to = match cable.way {
                Way::Tap => format!("ifname={},script=no,downscript=no", escaped(tap)),
                // Who starts QEMU puts its descriptor there.
                Way::Macvtap(_) => format!("fd={}", escaped(tap)),
            };
            let vhost = if cable.vhost { format!(",{}", vhost::OPTIONS) } else { String::new() };
            line.option("-netdev", format!("tap,id=net{number},{to}{vhost}"));
            let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
            let device = nic.model.device();
            line.option("-device", format!("{device},netdev=net{number},id=nic{number},mac={mac},romfile="));
        }
        line.option("-object", "rng-builtin,id=rng");
        line.option("-device", "virtio-rng-pci,rng=rng");
        if let Some(boot) = self.boot {
            line.option("-kernel", boot.kernel.to_string_lossy());
            if let Some(initrd) = &boot.initrd {
                line.option("-initrd", initrd.to_string_lossy());
            }
            line.option("-append", &boot.append);
        }
        if self.incoming {
            line.option("-incoming", "defer");
        }
        line.words.extend(spec.extra_args.iter().cloned());
        line.words
    }

    fn drives(&self, line: &mut Words) {
        if self.drives.iter().any(|drive| matches!(drive.medium, Medium::Cd | Medium::OwnCd)) {
            line.option("-device", "virtio-scsi-pci,id=scsi");
        }
        // A pc has a controller for floppy disks, a q35 none.
        let controller = if self.resolved.machine.contains("q35") { "bus=fdc.0," } else { "" };
        if self.drives.iter().any(|drive| drive.medium == Medium::Floppy) && !controller.is_empty() {
            line.option("-device", "isa-fdc,id=fdc");
        }
        for (id, drive) in drive_ids(self.drives.iter().map(|drive| drive.medium)).iter().zip(self.drives) {
            let read_only = match drive.medium {
                Medium::Disk | Medium::SeenDisk => {
                    line.disk(id, &drive.disk, &drive.serial, false);
                    continue;
                }
                Medium::Cd => "on",
                Medium::OwnCd | Medium::Floppy => "off",
            };
            let (format, file) = (escaped(&drive.disk.format), escaped(&drive.disk.path));
            let node = format!("driver={format},node-name={id},read-only={read_only}");
            line.option("-blockdev", format!("{node},file.driver=file,file.filename={file}"));
            if let Some(unit) = id.strip_prefix("fd").filter(|_| drive.medium == Medium::Floppy) {
                line.option("-device", format!("floppy,{controller}unit={unit},drive={id},id=blk-{id}"));
                continue;
            }
            let serial = escaped(&drive.serial);
            line.option("-device", format!("scsi-cd,bus=scsi.0,drive={id},id=blk-{id},serial={serial}"));
        }
    }

    fn socket(&self, id: &str, name: &str) -> String {
        format!("socket,id={id},path={},server=on,wait=off", path(&self.run_dir.join(name)))
    }
}

/// Options whose values a guest sees in its machine.
const SEEN: [&str; 8] = ["-machine", "-cpu", "-smp", "-m", "-uuid", "-device", "-global", "-smbios"];

/// What of a command line the guest can see, as `-option value`. Two QEMUs between which a guest moves have the same.
pub fn seen_by_guest(words: &[String]) -> Vec<String> {
    let pairs = words.windows(2).filter(|pair| SEEN.contains(&pair[0].as_str()));
    pairs.map(|pair| format!("{} {}", pair[0], pair[1])).collect()
}

#[derive(Default)]
struct Words {
    words: Vec<String>,
}

impl Words {
    fn flags(&mut self, flags: &[&str]) {
        self.words.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    fn disk(&mut self, id: &str, disk: &Disk, serial: &str, threaded: bool) {
        let (format, file, serial) = (escaped(&disk.format), escaped(&disk.path), escaped(serial));
        let below = disk.below.as_ref().map_or_else(String::new, |below| {
            let (format, file) = (escaped(&below.format), escaped(&below.path));
            format!(",backing.driver={format},backing.file.driver=file,backing.file.filename={file}")
        });
        let options = "cache=writeback,discard=unmap";
        self.option("-drive", format!("if=none,id={id},format={format},file={file},{options}{below}"));
        let thread = if threaded { format!(",iothread={IO_THREAD}") } else { String::new() };
        self.option("-device", format!("virtio-blk-pci,drive={id},id=blk-{id},serial={serial}{thread}"));
    }

    fn option(&mut self, name: &str, value: impl AsRef<str>) {
        self.words.extend([name.to_owned(), value.as_ref().to_owned()]);
    }
}

/// In QEMU's option lists a comma ends a value, and two commas are one.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

fn path(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

/// The same VM has the same UUID on every host, because guests see it.
pub(crate) fn uuid(spec: &VmSpec) -> String {
    let digest = blake3::hash(spec.id.to_string().as_bytes());
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    // Version 8 (custom), variant of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use vt_protocol::vm::{Backend, Nic, NicModel};

    use super::{super::cable::MacvtapMode, *};

    fn spec() -> VmSpec {
        VmSpec {
            id: vt_protocol::ids::VmId { attempt: "7f3k2a.1.1".parse().unwrap(), name: "vm1".parse().unwrap() },
            image: "tiny".parse().unwrap(),
            memory_mib: 256,
            cpus: 2,
            machine: None,
            cpu_model: None,
            accelerator: None,
            nics: vec![Nic {
                mac: [0x52, 0x54, 0, 0, 1, 0xff],
                address: Some([10, 0, 0, 9].into()),
                prefix: 24,
                model: NicModel::Virtio,
            }],
            extra_args: vec!["-boot".into(), "order=n".into()],
            drives: vec![],
            check_images: false,
            backend: Backend::Qmp,
            io_thread: false,
        }
    }

    fn words(spec: &VmSpec, run_dir: &str, tap: &str, incoming: bool) -> Vec<String> {
        with_cables(spec, run_dir, tap, incoming, &[])
    }

    fn with_cables(spec: &VmSpec, run_dir: &str, tap: &str, incoming: bool, cables: &[Cable]) -> Vec<String> {
        let boot =
            Boot { kernel: "/i/kernel".into(), initrd: Some("/i/initrd".into()), append: "console=ttyS0".into() };
        let below = Below { path: "/i/base".into(), format: "raw".into() };
        let disk = Disk { path: "/pool/a,b.qcow2".into(), format: "qcow2".into(), below: Some(below), served: None };
        let extra = |serial: &str, medium| Extra {
            disk: Disk { path: format!("/pool/{serial}"), format: "raw".into(), below: None, served: None },
            serial: serial.into(),
            medium,
        };
        let drives = [("stg", Medium::Disk), ("iso", Medium::Cd), ("own", Medium::OwnCd), ("fl", Medium::Floppy)]
            .map(|(serial, medium)| extra(serial, medium));
        let resolved = Resolved {
            machine: "pc-q35-10.0".into(),
            accelerator: Accelerator::Tcg,
            cpu_model: default_cpu_model(Accelerator::Tcg).into(),
        };
        CommandLine {
            spec,
            resolved: &resolved,
            boot: Some(&boot),
            disk: Some(&disk),
            drives: &drives,
            taps: &[tap.to_owned()],
            cables,
            run_dir: Path::new(run_dir),
            serial_log: &Path::new(run_dir).join("serial.log"),
            memory_file: None,
            incoming,
        }
        .words()
    }

    #[test]
    fn source_and_destination_differ_only_in_what_the_guest_cannot_see() {
        let spec = spec();
        let source = words(&spec, "/run/a", "tapa", false);
        let destination = words(&spec, "/run/b", "tapb", true);
        assert_eq!(&destination[destination.len() - 4..], ["-incoming", "defer", "-boot", "order=n"]);
        let same: Vec<String> =
            destination.iter().map(|word| word.replace("/run/b", "/run/a").replace("tapb", "tapa")).collect();
        let without_incoming: Vec<String> =
            same.into_iter().filter(|word| word != "-incoming" && word != "defer").collect();
        assert_eq!(source, without_incoming);
        let (source, destination) = (seen_by_guest(&source), seen_by_guest(&words(&spec, "/run/b", "tapb", true)));
        assert_eq!(source, destination);
        assert!(
            source.contains(&"-m 256M".to_owned()) && source.iter().any(|word| word.contains("mac=52:54")),
            "{source:?}"
        );
    }

    #[test]
    fn a_guest_sees_nothing_of_the_cable_of_its_card() {
        let spec = spec();
        let plain = words(&spec, "/run/a", "tap0", false);
        for (cable, netdev) in [
            (Cable { way: Way::Tap, vhost: true }, "ifname=tap0,script=no,downscript=no,vhost=on,vhostforce=on"),
            (Cable { way: Way::Macvtap(MacvtapMode::Vepa), vhost: false }, "fd=tap0"),
        ] {
            let other = with_cables(&spec, "/run/a", "tap0", false, &[cable]);
            assert!(other.contains(&format!("tap,id=net0,{netdev}")), "{other:?}");
            assert_eq!(seen_by_guest(&other), seen_by_guest(&plain));
        }
    }

    #[test]
    fn the_contract_of_the_devices() {
        let line = words(&spec(), "/run/a", "tap0", false).join(" ");
        for part in [
            "-nodefaults -no-user-config -S",
            "-name vtmesh-7f3k2a.1.1.vm1,debug-threads=on",
            "-machine pc-q35-10.0,memory-backend=mem",
            "-accel tcg,thread=multi -cpu qemu64 -smp 2 -m 256M",
            "socket,id=qmp,path=/run/a/qmp,server=on,wait=off",
            "socket,id=gqmp,path=/run/a/gqmp,server=on,wait=off",
            "nr=1,chardev=ga,name=org.qemu.guest_agent.0",
            "nr=2,chardev=probe,name=org.vtmesh.probe.0",
            "file=/pool/a,,b.qcow2",
            "if=none,id=vdb,format=raw,file=/pool/stg",
            "virtio-blk-pci,drive=vdb,id=blk-vdb,serial=stg",
            "driver=raw,node-name=cd0,read-only=on,file.driver=file,file.filename=/pool/iso",
            "scsi-cd,bus=scsi.0,drive=cd1,id=blk-cd1,serial=own",
            "backing.driver=raw,backing.file.driver=file,backing.file.filename=/i/base",
            "-device isa-fdc,id=fdc ",
            "driver=raw,node-name=fd0,read-only=off,file.driver=file,file.filename=/pool/fl",
            "-device floppy,bus=fdc.0,unit=0,drive=fd0,id=blk-fd0",
            "tap,id=net0,ifname=tap0,script=no,downscript=no",
            "mac=52:54:00:00:01:ff",
            "-kernel /i/kernel -initrd /i/initrd -append console=ttyS0",
        ] {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
        assert!(!line.contains("-incoming"));
    }

    #[test]
    fn a_uuid_follows_from_the_vm() {
        let uuid = uuid(&spec());
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "8");
        let mut other = spec();
        other.id.name = "vm2".parse().unwrap();
        assert_ne!(uuid, super::uuid(&other));
    }
}
