//! A VM as libvirt describes one: the devices of [`CommandLine`], in the same order. Pure.
//!
//! libvirt keeps a guest agent's channel for itself where it sees one, and knows no second monitor. Both are therefore
//! given as words of QEMU, which libvirt hands on as they are (`qemu:commandline`) and calls the domain tainted for.

use std::{fmt::Write as _, path::Path};

use serde_json::json;
use vt_protocol::{ids::VmId, probe, vm::Accelerator};

use super::element::escaped;
use crate::qemu::command_line::{
    AGENT_PORT, AGENT_SOCKET, CONSOLE_SOCKET, CommandLine, GUARD_QMP_SOCKET, Medium, PROBE_SOCKET, QMP_SOCKET, uuid,
};

/// The name of a VM's domain.
pub fn name(vm: &VmId) -> String {
    format!("vtmesh-{vm}")
}

/// The domain of a VM, whose QEMU is the file `emulator`.
pub fn xml(vm: &CommandLine<'_>, emulator: &Path) -> String {
    let spec = vm.spec;
    let mut out = String::new();
    let kind = match vm.resolved.accelerator {
        Accelerator::Tcg => "qemu",
        Accelerator::Kvm => "kvm",
    };
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"));
    line(format!("<name>{}</name>", escaped(&name(&spec.id))));
    line(format!("<uuid>{}</uuid>", uuid(spec)));
    line(format!("<memory unit='MiB'>{}</memory><vcpu>{}</vcpu>", spec.memory_mib, spec.cpus));
    if spec.io_thread {
        line("<iothreads>1</iothreads>".to_owned());
    }
    line("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>".to_owned());
    line(format!("<os><type arch='x86_64' machine='{}'>hvm</type>", escaped(&vm.resolved.machine)));
    if let Some(boot) = vm.boot {
        line(format!("<kernel>{}</kernel>", path(&boot.kernel)));
        if let Some(initrd) = &boot.initrd {
            line(format!("<initrd>{}</initrd>", path(initrd)));
        }
        line(format!("<cmdline>{}</cmdline>", escaped(&boot.append)));
    }
    line("</os><features><acpi/></features>".to_owned());
    line(cpu(&vm.resolved.cpu_model));
    line("<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>".to_owned());
    line(format!("<devices><emulator>{}</emulator>", path(emulator)));
    let first = vm.disk.map(|disk| (disk, "vda", Medium::Disk));
    let others = vm.drives.iter().map(|drive| (&drive.disk, drive.serial.as_str(), drive.medium));
    let (mut disks, mut cds, mut floppies) = ('a'..='z', 'a'..='z', 'a'..='b');
    for (disk, serial, medium) in first.into_iter().chain(others) {
        // No VM has as many drives as there are letters.
        let (device, bus, target, read_only) = match medium {
            Medium::Disk | Medium::SeenDisk => ("disk", "virtio", format!("vd{}", disks.next().unwrap_or('z')), ""),
            Medium::Cd | Medium::OwnCd => ("cdrom", "scsi", format!("sd{}", cds.next().unwrap_or('z')), "<readonly/>"),
            Medium::Floppy => ("floppy", "fdc", format!("fd{}", floppies.next().unwrap_or('b')), ""),
        };
        // The first of the disks, that which it boots from.
        let thread = if spec.io_thread && target == "vda" { " iothread='1'" } else { "" };
        let serial = match medium {
            Medium::Floppy => String::new(),
            _ => format!("<serial>{}</serial>", escaped(serial)),
        };
        line(format!(
            "<disk type='file' device='{device}'><driver name='qemu' type='{}' cache='writeback' discard='unmap'{thread}/>\
             <source file='{}'/><target dev='{target}' bus='{bus}'/>{serial}{read_only}</disk>",
            escaped(&disk.format),
            escaped(&disk.path)
        ));
    }
    line("<controller type='scsi' index='0' model='virtio-scsi'/>".to_owned());
    for (number, (nic, tap)) in spec.nics.iter().zip(vm.taps).enumerate() {
        let [a, b, c, d, e, f] = nic.mac;
        let vhost = vm.cables.get(number).is_some_and(|cable| cable.vhost);
        let driver = if vhost { "<driver name='vhost'/>" } else { "" };
        line(format!(
            "<interface type='ethernet'><mac address='{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}'/>\
             <target dev='{}' managed='no'/><model type='{}'/>{driver}<rom enabled='no'/></interface>",
            escaped(tap),
            nic.model.name()
        ));
    }
    line(format!(
        "<serial type='unix'><source mode='bind' path='{}'/><log file='{}' append='on'/>\
         <target type='isa-serial' port='0'/></serial>",
        path(&vm.run_dir.join(CONSOLE_SOCKET)),
        path(vm.serial_log)
    ));
    line("<controller type='virtio-serial' index='0'/><controller type='usb' model='none'/>".to_owned());
    line("<rng model='virtio'><backend model='builtin'/></rng>".to_owned());
    line("<memballoon model='none'/><audio id='1' type='none'/></devices>".to_owned());
    line("<qemu:commandline>".to_owned());
    for word in words(vm) {
        line(format!("<qemu:arg value='{}'/>", escaped(&word)));
    }
    line("</qemu:commandline></domain>".to_owned());
    out
}

/// What libvirt has no element for.
fn words(vm: &CommandLine<'_>) -> Vec<String> {
    let socket = |id: &str, name: &str| {
        let path = vm.run_dir.join(name).to_string_lossy().replace(',', ",,");
        ["-chardev".to_owned(), format!("socket,id={id},path={path},server=on,wait=off")]
    };
    let mut words = Vec::new();
    for (id, name) in [("vtqmp", QMP_SOCKET), ("vtgqmp", GUARD_QMP_SOCKET)] {
        words.extend(socket(id, name));
        words.extend(["-mon".to_owned(), format!("chardev={id},mode=control")]);
    }
    for (number, (id, name, port)) in
        [("vtga", AGENT_SOCKET, AGENT_PORT), ("vtprobe", PROBE_SOCKET, probe::PORT_NAME)].into_iter().enumerate()
    {
        words.extend(socket(id, name));
        // In JSON as libvirt's own devices are: QEMU makes the others first, when the bus is not there yet.
        let (driver, bus, nr) = ("virtserialport", "virtio-serial0.0", number + 1);
        let device = json!({"driver": driver, "bus": bus, "nr": nr, "chardev": id, "id": id, "name": port});
        words.extend(["-device".to_owned(), device.to_string()]);
    }
    words.extend(vm.spec.extra_args.iter().cloned());
    words
}

/// `qemu64,+sse3,-vmx` as libvirt has it.
fn cpu(model: &str) -> String {
    let mut parts = model.split(',');
    let name = parts.next().unwrap_or_default();
    let mut features = String::new();
    for part in parts {
        let (policy, feature) = match part.strip_prefix('-') {
            Some(feature) => ("disable", feature),
            None => ("require", part.trim_start_matches('+')),
        };
        let _ = write!(features, "<feature policy='{policy}' name='{}'/>", escaped(feature));
    }
    match name {
        "host" => format!("<cpu mode='host-passthrough'>{features}</cpu>"),
        "max" => format!("<cpu mode='maximum'>{features}</cpu>"),
        name => format!(
            "<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{}</model>{features}</cpu>",
            escaped(name)
        ),
    }
}

fn path(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_models_are_written_as_libvirt_writes_them() {
        assert!(cpu("qemu64").contains("<model fallback='forbid'>qemu64</model></cpu>"));
        assert!(cpu("core2duo,+sse3,-vmx").contains(
            "core2duo</model><feature policy='require' name='sse3'/><feature policy='disable' name='vmx'/></cpu>"
        ));
        assert_eq!(cpu("host"), "<cpu mode='host-passthrough'></cpu>");
    }

    #[test]
    fn no_value_can_end_its_element() {
        assert_eq!(escaped("a'/><x>&\""), "a&apos;/&gt;&lt;x&gt;&amp;&quot;");
    }
}
