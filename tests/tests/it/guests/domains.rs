//! A VM whose user gave a domain for it: it has what the domain says, and moves as any other; what cannot move is refused.

use std::fs;

use vt_tests::lab::Lab;

use super::moves::{files, json, said};

/// What people keep from `virsh dumpxml`, with a disk and a network that no lab has.
const MINE: &str = "<domain type='kvm'>
  <name>mine</name>
  <memory unit='KiB'>163840</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact'><model>qemu64</model><feature policy='require' name='cx16'/></cpu>
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>
      <source file='/var/lib/libvirt/images/mine.img'/><target dev='vda' bus='virtio'/></disk>
    <controller type='usb' index='0' model='qemu-xhci'/>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
    <interface type='network'><source network='default'/><model type='e1000'/></interface>
    <input type='tablet' bus='usb'/>
    <watchdog model='i6300esb' action='reset'/>
    <graphics type='vnc' port='-1' autoport='yes'/>
    <video><model type='vga'/></video>
  </devices>
</domain>
";

#[test]
fn a_guest_of_its_users_own_domain_moves_and_one_that_cannot_is_refused_with_its_line() {
    let lab = Lab::up_libvirt(2);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = results.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let mine = write("mine.xml", MINE);
    let run = |name: &str, more: &[&str]| {
        let bundle = results.path().join(name);
        let words = ["run", "multihost_migration", "-m", "host1,host2", "-r", bundle.to_str().unwrap()];
        (lab.vtctl(&[&words[..], more].concat()), bundle)
    };
    let domain = |file: &str| format!("libvirt_domain_xml={file}");

    let (ran, bundle) = run("moved", &["--backend", "libvirt", "-p", &domain(&mine)]);
    assert!(ran.expect(0).stdout.contains("PASS"));
    assert_eq!(json(&bundle.join("job.json"))["cases"][0]["migrations"].as_array().unwrap().len(), 2);
    let described = files(&bundle, "domain.xml");
    assert_eq!(described.len(), 3, "a domain was started once and came in twice: {described:?}");
    for text in described.iter().map(|path| fs::read_to_string(path).unwrap()) {
        for kept in
            ["<input type='tablet'", "<watchdog model='i6300esb'", "cache='none'", "<model type='e1000'>", "hpet"]
        {
            assert!(text.contains(kept), "{kept} in {text}");
        }
        assert!(text.contains("<memory unit='MiB'>160<") && !text.contains("mine"), "{text}");
    }
    let said = said(&bundle);
    for line in ["name (line 2)", "type (line 5)", "source, format and serial of vda (line 10)"] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert_eq!(lab.inventory(2), before, "something was left behind");

    let with =
        |name: &str, device: &str| domain(&write(name, &MINE.replace("    <watchdog", &format!("{device}<watchdog"))));
    let hostdev = with("hostdev.xml", "<hostdev mode='subsystem' type='usb'/>");
    let elsewhere = format!("libvirt_domain_xml_host2={}", write("other.xml", &MINE.replace("i6300esb", "ib700")));
    for (name, words, says) in [
        (
            "hostdev",
            vec!["--backend", "libvirt", "-p", &hostdev],
            "line 16: <hostdev>: a device of its host does not move",
        ),
        ("qmp", vec!["-p", &domain(&mine)], "libvirt_domain_xml is for libvirt"),
        (
            "no-file",
            vec!["--backend", "libvirt", "-p", "libvirt_domain_xml=/none.xml"],
            "the domain /none.xml cannot be read",
        ),
        ("other", vec!["--backend", "libvirt", "-p", &domain(&mine), "-p", &elsewhere], "do not fit each other"),
    ] {
        let (ran, _) = run(name, &words);
        assert!(ran.code != 0 && format!("{}{}", ran.stdout, ran.stderr).contains(says), "{name}: {ran:?}");
    }
    // Which QEMUs there are is for each host to say.
    let stranger = with("stranger.xml", "<emulator>/bin/sh</emulator>");
    let (ran, _) = run("stranger", &["--backend", "libvirt", "-p", &stranger]);
    let shown = ran.expect(0).stdout;
    assert!(shown.contains("SKIP") && shown.contains("the emulator of the domain = /bin/sh is no QEMU"), "{shown}");
}
