//! The mesh's own description of a VM, laid over the domain that a user gave for it. Pure.
//!
//! What names the VM, where its disks and cards lead, its console and the daemon's ways into it are the mesh's; what else
//! the user's domain has is kept, devices at their places. What the mesh adds of itself (entropy, no balloon, no USB) gives
//! way to what the user has of that kind.

use super::{
    element::Element,
    given::{CPU_KEPT, DEVICES_OURS, DISK_KEPT, Given, KEPT, LEFT_OUT, NIC_KEPT, OS_KEPT, Objection, disk_kind},
};

/// Elements of ours that a user's takes the place of.
const YIELDS: [&str; 2] = ["features", "memoryBacking"];
/// Devices of ours that one of the user's takes the place of.
const DEVICES_YIELD: [&str; 3] = ["rng", "memballoon", "audio"];

/// The two as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    /// The domain.
    pub xml: String,
    /// What of the user's is not as it was, with its lines.
    pub changed: Vec<String>,
}

impl Given {
    /// Lays the mesh's description over it.
    ///
    /// # Errors
    /// A disk or card of it is none of the VM's.
    pub fn laid_under(&self, ours: &str) -> Result<Laid, Objection> {
        let ours = Element::read(ours)?;
        let mut changed = Vec::new();
        let mut laid = Element { name: ours.name, attributes: ours.attributes, ..Element::default() };
        for own in ours.children {
            let theirs = self.domain.child(&own.name);
            laid.children.push(match theirs {
                None => own,
                Some(theirs) => match own.name.as_str() {
                    "devices" => devices(theirs, own, &mut changed)?,
                    "os" => with_kept(theirs, own, &OS_KEPT, &mut changed),
                    "cpu" => with_kept(theirs, own, &CPU_KEPT, &mut changed),
                    name if YIELDS.contains(&name) => theirs.clone(),
                    "memory" if self.memory_mib.map(|mib| mib.to_string()).as_deref() == Some(&own.text) => own,
                    _ => {
                        note(theirs, &own, &mut changed);
                        own
                    }
                },
            });
        }
        for theirs in &self.domain.children {
            if KEPT.contains(&theirs.name.as_str()) && laid.child(&theirs.name).is_none() {
                laid.children.push(theirs.clone());
            } else if LEFT_OUT.contains(&theirs.name.as_str()) {
                changed.push(format!("{} (line {}) left out", theirs.name, theirs.line));
            }
        }
        Ok(Laid { xml: laid.write(), changed })
    }
}

/// Tells of an element that is another one now.
fn note(theirs: &Element, ours: &Element, changed: &mut Vec<String>) {
    let other = |key: &str| theirs.attribute(key).is_some_and(|said| ours.attribute(key) != Some(said));
    if theirs.text.trim() != ours.text.trim() || ["machine", "cpuset", "current"].into_iter().any(other) {
        changed.push(format!("{} (line {})", theirs.name, theirs.line));
    }
}

/// Ours, with what of theirs is kept in it.
fn with_kept(theirs: &Element, mut ours: Element, kept: &[&str], changed: &mut Vec<String>) -> Element {
    for child in &theirs.children {
        if kept.contains(&child.name.as_str()) {
            ours.children.retain(|own| own.name != child.name);
        } else {
            match ours.child(&child.name) {
                Some(own) => note(child, own, changed),
                None => changed.push(format!("{} (line {}) left out", child.name, child.line)),
            }
        }
    }
    ours.children.extend(theirs.children.iter().filter(|child| kept.contains(&child.name.as_str())).cloned());
    ours
}

/// The devices of the user, each with what is ours of it, and behind them those that only we have.
fn devices(theirs: &Element, ours: Element, changed: &mut Vec<String>) -> Result<Element, Objection> {
    let mut own = ours.children;
    let mut laid = Vec::new();
    for device in &theirs.children {
        let name = device.name.as_str();
        let place = own.iter().position(|other| match name {
            "disk" => other.name == name && disk_kind(other) == disk_kind(device),
            _ => other.name == name,
        });
        match (name, place) {
            // An empty drive for CDs or floppy disks.
            ("disk", _) if device.child("source").is_none() && disk_kind(device) != "disk" => laid.push(device.clone()),
            ("disk", Some(place)) => laid.push(disk(device, own.remove(place), changed)),
            ("interface", Some(place)) => laid.push(card(device, own.remove(place), changed)),
            ("disk" | "interface", None) => return Err(device.objection("the VM has none that stands for it")),
            (name, _) if DEVICES_OURS.contains(&name) => {
                let same = place.is_some_and(|place| own[place].text == device.text.trim() && name == "emulator");
                if !same {
                    changed.push(format!("{name} (line {})", device.line));
                }
            }
            _ => laid.push(device.clone()),
        }
    }
    for mut device in own {
        if gives_way(&device, &laid) {
            continue;
        }
        if device.name == "disk" {
            free_place(&mut device, &laid);
        }
        laid.push(device);
    }
    laid.iter_mut().for_each(forget_alias);
    give_ports(&mut laid);
    Ok(Element { name: ours.name, children: laid, ..Element::default() })
}

/// libvirt gives names of its own, and each host's is to give the same.
fn forget_alias(device: &mut Element) {
    device.children.retain(|child| child.name != "alias");
}

fn is_on_usb(device: &Element) -> bool {
    [device.attribute("bus"), device.attribute_of("target", "bus")].contains(&Some("usb"))
}

/// libvirt gives what is on USB a port when it starts a domain, and expects it in the description of one that comes in.
fn give_ports(devices: &mut [Element]) {
    let taken: Vec<String> =
        devices.iter().filter_map(|device| device.attribute_of("address", "port")).map(str::to_owned).collect();
    let mut free = (1..u8::MAX).map(|port| port.to_string()).filter(|port| !taken.contains(port));
    for device in devices.iter_mut().filter(|device| is_on_usb(device) && device.child("address").is_none()) {
        let mut address = Element { name: "address".to_owned(), ..Element::default() };
        for (key, value) in [("type", "usb"), ("bus", "0"), ("port", &free.next().unwrap_or_default())] {
            address.set(key, value);
        }
        device.children.push(address);
    }
}

fn disk(theirs: &Element, mut ours: Element, changed: &mut Vec<String>) -> Element {
    let mut kept: Vec<Element> =
        theirs.children.iter().filter(|child| DISK_KEPT.contains(&child.name.as_str())).cloned().collect();
    if let Some(driver) = kept.iter_mut().find(|child| child.name == "driver") {
        for key in ["name", "type"] {
            driver.set(key, ours.attribute_of("driver", key).unwrap_or_default());
        }
    }
    ours.children.retain(|own| !kept.iter().any(|child| child.name == own.name));
    ours.children.append(&mut kept);
    let target = ours.attribute_of("target", "dev").unwrap_or_default();
    changed.push(format!("source, format and serial of {target} (line {})", theirs.line));
    ours
}

fn card(theirs: &Element, mut ours: Element, changed: &mut Vec<String>) -> Element {
    ours.children.extend(theirs.children.iter().filter(|child| NIC_KEPT.contains(&child.name.as_str())).cloned());
    changed.push(format!("source and address of a network card (line {})", theirs.line));
    ours
}

/// Whether a device that we add of ourselves is there in another form.
fn gives_way(ours: &Element, laid: &[Element]) -> bool {
    let index = |device: &Element| device.attribute("index").unwrap_or("0").to_owned();
    let same = |other: &Element| {
        other.name == ours.name && other.attribute("type") == ours.attribute("type") && index(other) == index(ours)
    };
    match ours.name.as_str() {
        // Ours says that there is none.
        "controller" if ours.attribute("type") == Some("usb") => laid
            .iter()
            .any(|other| is_on_usb(other) || other.name == "controller" && other.attribute("type") == Some("usb")),
        "controller" => laid.iter().any(same),
        name => DEVICES_YIELD.contains(&name) && laid.iter().any(|other| other.name == name),
    }
}

/// A disk of ours that is beside the user's gets a name that none of them has.
fn free_place(disk: &mut Element, laid: &[Element]) {
    let taken = |dev: &str| laid.iter().any(|other| other.attribute_of("target", "dev") == Some(dev));
    let Some(target) = disk.children.iter_mut().find(|child| child.name == "target") else { return };
    let dev = target.attribute("dev").unwrap_or_default().to_owned();
    let Some(prefix) = dev.get(..2).filter(|_| taken(&dev)) else { return };
    if let Some(free) = ('a'..='z').map(|letter| format!("{prefix}{letter}")).find(|dev| !taken(dev)) {
        target.set("dev", &free);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::given::tests::WORKSTATION, *};

    const OURS: &str = "<domain type='qemu'><name>vtmesh-x-vm1</name><uuid>99999999-2222-3333-4444-555555555555</uuid>\
        <memory unit='MiB'>192</memory><vcpu>2</vcpu>\
        <memoryBacking><source type='memfd'/></memoryBacking>\
        <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>/pool/vmlinuz</kernel></os>\
        <features><acpi/></features><cpu mode='custom'><model>qemu64</model></cpu>\
        <on_reboot>restart</on_reboot><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
        <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='writeback'/><source file='/pool/vm1'/>\
        <target dev='vda' bus='virtio'/><serial>vda</serial></disk>\
        <disk type='file' device='disk'><source file='/pool/vm1-2'/><target dev='vdb' bus='virtio'/></disk>\
        <interface type='ethernet'><mac address='52:54:00:aa:bb:cc'/><target dev='t0'/><model type='e1000'/></interface>\
        <serial type='unix'><source path='/run/con'/></serial>\
        <controller type='virtio-serial' index='0'/><controller type='usb' model='none'/>\
        <rng model='virtio'><backend model='builtin'/></rng><memballoon model='none'/><audio id='1' type='none'/></devices>\
        <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-mon'/>\
        </qemu:commandline></domain>";

    #[test]
    fn what_is_the_meshs_is_set_over_and_the_rest_is_kept() {
        let Laid { xml, changed } = Given::read(WORKSTATION).unwrap().laid_under(OURS).unwrap();
        for kept in [
            "<input type='tablet' bus='usb'><address type='usb' bus='0' port='1'>",
            "<watchdog model='i6300esb'",
            "<controller type='usb' index='0' model='qemu-xhci'>",
            "<target dev='vdb' bus='virtio'>",
            "<driver name='qemu' type='qcow2' cache='none' io='native'>",
            "<boot order='1'>",
            "<topology sockets='1'",
            "<memballoon model='virtio'>",
            "/dev/urandom",
            "<timer name='hpet'",
            "<boot dev='hd'>",
            "<apic>",
            "<disk type='file' device='cdrom'><target dev='sda'",
        ] {
            assert_eq!(xml.matches(kept).count(), 1, "{kept} in {xml}");
        }
        for ours in [
            "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' type='qemu'>",
            "<name>vtmesh-x-vm1</name><uuid>99999999",
            "/pool/vmlinuz",
            "<source file='/pool/vm1'>",
            "<serial>vda</serial>",
            "52:54:00:aa:bb:cc",
            "/run/con",
            "<on_reboot>restart",
            "<qemu:arg value='-mon'>",
            "<controller type='virtio-serial' index='0'>",
            "<memoryBacking><source type='memfd'>",
            // The user's first disk has the name of our second.
            "<source file='/pool/vm1-2'></source><target dev='vda' bus='virtio'>",
        ] {
            assert_eq!(xml.matches(ours).count(), 1, "{ours} in {xml}");
        }
        for gone in [
            "workstation",
            "/boot/",
            "pty",
            "52:54:00:00:00:01",
            "network='default'",
            "seclabel",
            "metadata",
            "model='none'",
        ] {
            assert!(!xml.contains(gone), "{gone} in {xml}");
        }
        for said in [
            "name (line 2)",
            "uuid (line 3)",
            "metadata (line 4) left out",
            "kernel (line 8)",
            "on_reboot (line 13)",
            "source, format and serial of vdb (line 16)",
            "source and address of a network card (line 20)",
            "serial (line 21)",
            "channel (line 22)",
        ] {
            assert!(changed.iter().any(|words| words == said), "{said} in {changed:?}");
        }
        let quiet = ["vcpu", "emulator", "type (", "model ("];
        assert!(!changed.iter().any(|words| quiet.iter().any(|word| words.starts_with(word))), "{changed:?}");
    }

    #[test]
    fn a_domain_that_says_nothing_is_ours() {
        let laid = Given::read("<domain type='kvm'/>").unwrap().laid_under(OURS).unwrap();
        let ours = Element::read(OURS).unwrap().write();
        assert_eq!((laid.xml, laid.changed), (ours, vec![]));
    }

    #[test]
    fn a_card_that_the_vm_does_not_have_is_refused() {
        let bare = OURS.replace("<interface", "<hub").replace("</interface", "</hub");
        assert_eq!(Given::read(WORKSTATION).unwrap().laid_under(&bare).unwrap_err().line, 20);
    }
}
