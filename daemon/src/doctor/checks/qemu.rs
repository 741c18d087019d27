//! QEMU and libvirt.

use super::{super::seen::Seen, Said};

/// Without these no VM is moved.
const NEEDED: &[&str] = &["late-block-activate", "pause-before-switchover", "events"];
/// Without these some ways of moving are skipped.
const USED: &[&str] =
    &["multifd", "postcopy-ram", "postcopy-preempt", "xbzrle", "auto-converge", "mapped-ram", "return-path"];
/// Fewer free ports than this are soon used up.
const PORTS_FEW: usize = 8;

pub(super) fn installed(seen: &Seen) -> Option<Said> {
    Some(match &seen.qemu {
        Ok(qemu) => Said::ok(format!("{} at {}", qemu.facts.version, qemu.facts.path)),
        Err(_) if seen.member.as_ref().is_some_and(|member| member.witness) => return None,
        Err(why) => {
            Said::fail(why).fix("apt-get install qemu-system-x86").fix("or binary under [qemu] in the settings")
        }
    })
}

fn lacking(seen: &Seen, wanted: &[&'static str]) -> Option<Vec<&'static str>> {
    let has = &seen.qemu.as_ref().ok()?.capabilities;
    Some(wanted.iter().filter(|name| !has.iter().any(|capability| capability == *name)).copied().collect())
}

pub(super) fn capabilities(seen: &Seen) -> Option<Said> {
    let lacking = lacking(seen, NEEDED)?;
    Some(match lacking[..] {
        [] => Said::ok("all are there"),
        _ => Said::fail(format!("this QEMU lacks {}: no VM can be moved", lacking.join(", ")))
            .fix("QEMU 6.0 or newer: apt-get install qemu-system-x86, or binary under [qemu] in the settings"),
    })
}

pub(super) fn more_capabilities(seen: &Seen) -> Option<Said> {
    let lacking = lacking(seen, USED)?;
    Some(match lacking[..] {
        [] => Said::ok("all are there"),
        _ => Said::note(format!("this QEMU lacks {}: what needs them is skipped", lacking.join(", ")))
            .fix("QEMU 9.0 or newer has all of them"),
    })
}

pub(super) fn machine_type(seen: &Seen) -> Option<Said> {
    let machines = &seen.qemu.as_ref().ok()?.machines;
    let q35 = machines.iter().find(|(_, alias)| alias.as_deref() == Some("q35"));
    Some(match q35 {
        Some((name, _)) => Said::ok(format!("{name}, one of {}", machines.len())),
        None => Said::fail(format!("none of its {} machine types is q35", machines.len()))
            .fix("a QEMU for x86_64: binary under [qemu] in the settings"),
    })
}

pub(super) fn ports(seen: &Seen) -> Option<Said> {
    let (free, all) = seen.network.free_ports;
    let found = format!("{free} of {all} are free");
    let fix = "ss -lntp 'sport >= 49152 and sport <= 49215'   (who has them)";
    Some(match free {
        0 => Said::fail(found).fix(fix),
        1..PORTS_FEW if free < all => Said::warn(found).fix(fix),
        _ => Said::ok(found),
    })
}

pub(super) fn tls(seen: &Seen) -> Option<Said> {
    let qemu = seen.qemu.as_ref().ok()?;
    Some(match &seen.certificates {
        _ if !qemu.tls => {
            Said::note("this QEMU was built without TLS: mig_protocol=tls is skipped, mesh is encrypted without it")
                .fix("a QEMU with gnutls: apt-get install qemu-system-x86, or binary under [qemu] in the settings")
        }
        Some((folder, false)) => {
            Said::fail(format!("{}, where libvirt's QEMUs find certificates, is not there", folder.display())).fix(
                format!(
                    "mkdir -p -m 0755 {}; the same folder as migrate_tls_x509_cert_dir in qemu.conf",
                    folder.display()
                ),
            )
        }
        _ => Said::ok("each move gets certificates of its own, by the cluster's authority"),
    })
}

pub(super) fn libvirt(seen: &Seen) -> Option<Said> {
    Some(match seen.libvirt.as_ref()? {
        Ok(said) => Said::ok(said),
        Err(why) => Said::fail(format!("libvirt of the settings does not answer: {why}"))
            .fix("systemctl start virtqemud.socket   (or libvirtd)")
            .fix("uri under [libvirt] in the settings"),
    })
}
