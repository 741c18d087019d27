//! From one host to another, and whether two hosts fit each other.

use std::time::Duration;

use vt_protocol::doctor::Fit;

use super::{
    super::{
        links::SENT,
        seen::{Echo, Link, Loss},
    },
    Said,
};
use crate::{api::views::natural, migrate::inlet::PORTS};

/// A round trip that takes longer delays every decision: a heartbeat is 400 ms, and a renewal a few of them.
const ROUND_TRIP_SLOW: Duration = Duration::from_millis(250);
/// [`SENT`] bytes there and back that take longer are a guest's memory that takes minutes.
const ECHO_SLOW: Duration = Duration::from_secs(2);
/// Losses up to so many may be a busy host's.
const LOST_FEW: u64 = 3;
/// TCP is a small part of as fast where more get lost.
const LOST_PERCENT: u64 = 2;
/// Counters that differ by more are another frequency, not a measurement's error.
const TSC_PPM: u64 = 500;
/// Clocks that differ by more are told: logs and reports are hard to read then. Nothing is decided by them.
const CLOCK_S: u64 = 5;

pub(super) fn control(link: &Link) -> Option<Said> {
    Some(match &link.control {
        Ok(took) => Said::ok(format!("{:.1} ms there and back", took.as_secs_f64() * 1000.0)),
        Err(why) => Said::fail(format!("no answer: {why}"))
            .fix(format!("on {}: open the port of [host] listen for UDP (7465); nft list ruleset", link.to))
            .fix(format!("on {}: systemctl status vtd", link.to)),
    })
}

pub(super) fn round_trip(link: &Link) -> Option<Said> {
    let took = link.control.as_ref().ok()?.as_millis();
    Some(match *link.control.as_ref().ok()? > ROUND_TRIP_SLOW {
        false => Said::ok(format!("{took} ms")),
        true => Said::warn(format!("{took} ms: every decision waits for it, and a session may be taken for lost"))
            .fix(format!(
                "ping -i 0.2 -c 100 ADDRESS of {}   (times and loss); who loads the way, or the host",
                link.to
            ))
            .fix("where it is as long as that: longer times under [session] and [raft], the same on all hosts"),
    })
}

pub(super) fn loss(link: &Link) -> Option<Said> {
    let Loss { sent, lost } = link.loss?;
    let found = format!("{lost} of {sent} got lost");
    Some(match lost > LOST_FEW && lost * 100 > sent * LOST_PERCENT {
        false => Said::ok(found),
        true => Said::warn(format!("{found}: decisions wait until they are sent again, and migrations crawl")).fix(format!(
            "ping -i 0.2 -c 100 ADDRESS of {}; ethtool -S the card on both sides (errors, drops), then cable and switch",
            link.to
        )),
    })
}

pub(super) fn speed(link: &Link) -> Option<Said> {
    let Some(Ok(Echo::Whole(took))) = link.migration else { return None };
    let rate = (2 * SENT) as f64 / 1024.0 / took.as_secs_f64().max(0.001);
    Some(match took > ECHO_SLOW {
        false => Said::ok(format!("at least {rate:.0} KiB/s")),
        true => Said::warn(format!("{rate:.0} KiB/s: the memory of a guest takes minutes")).fix(format!(
            "ethtool the card on both sides (speed, errors), iperf3 -c ADDRESS of {}; tc qdisc (who shapes it)",
            link.to
        )),
    })
}

pub(super) fn bulk(link: &Link) -> Option<Said> {
    Some(match &link.bulk {
        Ok(took) => Said::ok(format!("an answer after {:.1} ms", took.as_secs_f64() * 1000.0)),
        Err(why) => Said::fail(format!("no answer: {why}; images and carried migrations do not come through"))
            .fix(format!("on {}: open the port of [host] listen for TCP, too (7465); nft list ruleset", link.to)),
    })
}

pub(super) fn migration(link: &Link) -> Option<Said> {
    let ports = format!("{}-{}", PORTS.start(), PORTS.end());
    Some(match link.migration.as_ref()? {
        Ok(Echo::Whole(took)) => {
            Said::ok(format!("{} KiB there and back in {:.1} ms", SENT >> 10, took.as_secs_f64() * 1000.0))
        }
        Ok(Echo::Stuck(came)) => Said::fail(format!(
            "the connection came up, and {came} of {SENT} bytes came back: large packets are lost on the way"
        ))
        .fix(format!(
            "ping -M do -s 1472 ADDRESS of {}   (and 8972): set the same MTU on both hosts and what is between",
            link.to
        )),
        Err(why) => Said::fail(format!("{why}; nothing can be moved there over TCP"))
            .fix(format!("on {}: open TCP {ports} where migrations come in; nft list ruleset", link.to)),
    })
}

pub(super) fn machine_types((a, b): &(Fit, Fit)) -> Option<Said> {
    if a.machines.is_empty() || b.machines.is_empty() {
        return None;
    }
    let common: Vec<&String> = a.machines.iter().filter(|machine| b.machines.contains(machine)).collect();
    let newest = common.iter().filter(|machine| machine.starts_with("pc-q35-")).max_by(|a, b| natural(a, b));
    Some(match newest {
        Some(newest) => Said::ok(format!("{} in common, {newest} is the newest of q35", common.len())),
        None => Said::fail(format!("QEMU {} and {} have no q35 machine type in common", a.qemu, b.qemu))
            .fix("the same version of QEMU on both"),
    })
}

pub(super) fn qemu_versions((a, b): &(Fit, Fit)) -> Option<Said> {
    if a.qemu.is_empty() || b.qemu.is_empty() {
        return None;
    }
    Some(match a.qemu == b.qemu {
        true => Said::ok(&a.qemu),
        false => Said::note(format!(
            "{} and {}: a VM that started on the newer one may not go to the older one",
            a.qemu, b.qemu
        ))
        .fix("-p machine_type=… with a type of the older one, see D-PAI-01"),
    })
}

pub(super) fn accelerators((a, b): &(Fit, Fit)) -> Option<Said> {
    let name = |fit: &Fit| if fit.kvm { "KVM" } else { "emulation" };
    Some(match a.kvm == b.kvm {
        true => Said::ok(format!("both have {}", name(a))),
        false => {
            Said::warn(format!("{} here, {} there: a VM under KVM cannot go on under emulation", name(a), name(b)))
                .fix("see D-PLT-01 of the host that emulates")
        }
    })
}

pub(super) fn cpus((a, b): &(Fit, Fit)) -> Option<Said> {
    Some(match a.cpu == b.cpu {
        true => Said::ok(&a.cpu),
        false => Said::note(format!("{} and {}", a.cpu, b.cpu))
            .fix("a named -p cpu_model=… that both have; with cpu_model=host a VM fits only one of them"),
    })
}

pub(super) fn storage((a, b): &(Fit, Fit)) -> Option<Said> {
    let name = |fit: &Fit| if fit.shared { "shared" } else { "its own" };
    Some(match a.shared == b.shared {
        true => Said::ok(format!("both say {}", name(a))),
        false => Said::fail(format!("the pool is {} here and {} there", name(a), name(b)))
            .fix("the same shared under [pool] in the settings of all hosts"),
    })
}

pub(super) fn times((a, b): &(Fit, Fit)) -> Option<Said> {
    let differ: Vec<String> = a
        .times_ms
        .iter()
        .filter_map(|(key, here)| {
            let there = b.times_ms.iter().find(|(other, _)| other == key).map(|(_, there)| there)?;
            (here != there).then(|| format!("{key} {here} and {there} ms"))
        })
        .collect();
    Some(match differ[..] {
        [] => Said::ok("the same on both"),
        _ => Said::fail(format!("they differ: {}", differ.join(", ")))
            .fix("the same [session] and [raft] in the settings of all hosts, then restart vtd one host at a time"),
    })
}

pub(super) fn clocks((a, b): &(Fit, Fit)) -> Option<Said> {
    let apart = a.unix_s.abs_diff(b.unix_s);
    Some(match apart > CLOCK_S {
        false => Said::ok("they agree within some seconds"),
        true => Said::warn(format!("they are {apart} s apart: nothing is decided by them, and logs are hard to read"))
            .fix("apt-get install chrony; chronyc tracking"),
    })
}

pub(super) fn microcode((a, b): &(Fit, Fit)) -> Option<Said> {
    if a.cpu != b.cpu || a.microcode.is_empty() || b.microcode.is_empty() {
        return None;
    }
    Some(match a.microcode == b.microcode {
        true => Said::ok(&a.microcode),
        false => Said::note(format!(
            "{} and {} on the same CPU: features may differ that a guest with cpu_model=host has seen",
            a.microcode, b.microcode
        ))
        .fix("the same on both: apt-get install intel-microcode or amd64-microcode, then a reboot"),
    })
}

pub(super) fn firmware((a, b): &(Fit, Fit)) -> Option<Said> {
    if a.firmware.is_empty() || b.firmware.is_empty() {
        return None;
    }
    let short = |fit: &Fit| fit.firmware.chars().take(12).collect::<String>();
    Some(match a.firmware == b.firmware {
        true => Said::ok(short(a)),
        false => Said::note(format!(
            "{} and {}: a guest that reboots after its move starts with another one",
            short(a),
            short(b)
        ))
        .fix("the same version of the package seabios on both"),
    })
}

pub(super) fn capabilities((a, b): &(Fit, Fit)) -> Option<Said> {
    if a.capabilities.is_empty() || b.capabilities.is_empty() {
        return None;
    }
    let alone = |one: &Fit, other: &Fit| -> Vec<String> {
        one.capabilities.iter().filter(|name| !other.capabilities.contains(name)).cloned().collect()
    };
    let differ = [alone(a, b), alone(b, a)].concat();
    Some(match differ[..] {
        [] => Said::ok(format!("{} in common", a.capabilities.len())),
        _ => Said::note(format!("one side alone has {}: moves that need it are skipped", differ.join(", ")))
            .fix("the same version of QEMU on both, or ways without it: vtctl scenario show migration_matrix"),
    })
}

pub(super) fn time_stamps((a, b): &(Fit, Fit)) -> Option<Said> {
    let (here, there) = (u64::from(a.tsc_khz), u64::from(b.tsc_khz));
    if here == 0 || there == 0 {
        return None;
    }
    Some(match here.abs_diff(there) * 1_000_000 > TSC_PPM * here.max(there) {
        false => Said::ok(format!("{here} kHz")),
        true => Said::note(format!(
            "{here} and {there} kHz: a guest that reads its time from the counter goes wrong where the CPU cannot scale it"
        ))
        .fix("guests with kvm-clock; with an invariant counter (-p cpu_model=…,+invtsc) a VM fits one of them alone"),
    })
}
