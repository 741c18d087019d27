//! The checks: a table of what is looked at, and the decision of each. Pure: from what was seen to what is said.
//!
//! A healthy host has nothing worse than a note. What cannot be judged, because it was not seen or does not apply, gives no
//! finding.

mod cluster;
mod network;
mod pairs;
mod platform;
mod qemu;
mod storage;

use vt_protocol::{
    doctor::{Checks, Finding, Fit, Group, Severity},
    ids::Name,
};

pub(super) use self::platform::PROGRAMS;
use super::{
    repair::Repair,
    seen::{Link, Seen},
};

/// What a check says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    severity: Severity,
    found: String,
    fix: Vec<String>,
    pub(super) repairs: Vec<Repair>,
}

impl Said {
    fn new(severity: Severity, found: impl Into<String>) -> Self {
        Self { severity, found: found.into(), fix: Vec::new(), repairs: Vec::new() }
    }

    fn ok(found: impl Into<String>) -> Self {
        Self::new(Severity::Ok, found)
    }

    fn note(found: impl Into<String>) -> Self {
        Self::new(Severity::Note, found)
    }

    fn warn(found: impl Into<String>) -> Self {
        Self::new(Severity::Warn, found)
    }

    fn fail(found: impl Into<String>) -> Self {
        Self::new(Severity::Fail, found)
    }

    /// What to do about it.
    fn fix(mut self, line: impl Into<String>) -> Self {
        self.fix.push(line.into());
        self
    }

    /// What `--fix` does about it.
    fn repair(mut self, repair: Repair) -> Self {
        self.fix.push(repair.command());
        self.repairs.push(repair);
        self
    }
}

/// A check of what `S` holds.
struct Check<S: ?Sized> {
    id: &'static str,
    group: Group,
    /// What is looked at.
    title: &'static str,
    judge: fn(&S) -> Option<Said>,
}

const fn check<S: ?Sized>(
    id: &'static str,
    group: Group,
    title: &'static str,
    judge: fn(&S) -> Option<Said>,
) -> Check<S> {
    Check { id, group, title, judge }
}

/// What is looked at on one host.
#[rustfmt::skip]
const OF_A_HOST: &[Check<Seen>] = &[
    check("D-PLT-01", Group::Platform, "acceleration", platform::acceleration),
    check("D-PLT-02", Group::Platform, "VMs inside VMs", platform::nested),
    check("D-PLT-03", Group::Platform, "programs that are needed", platform::programs_needed),
    check("D-PLT-04", Group::Platform, "programs that are useful", platform::programs_useful),
    check("D-PLT-05", Group::Platform, "kernel devices", platform::devices),
    check("D-PLT-06", Group::Platform, "control groups", platform::control_groups),
    check("D-PLT-07", Group::Platform, "rights of the daemon", platform::rights),
    check("D-PLT-08", Group::Platform, "limits", platform::limits),
    check("D-PLT-09", Group::Platform, "page faults for post-copy", platform::page_faults),
    check("D-PLT-10", Group::Platform, "memory", platform::memory),
    check("D-PLT-11", Group::Platform, "bridge of the guests", platform::bridge),
    check("D-PLT-12", Group::Platform, "address of migrations", platform::migration_address),
    check("D-PLT-13", Group::Platform, "uplink of the guests", platform::uplink),
    check("D-PLT-14", Group::Platform, "huge pages", platform::huge_pages),
    check("D-PLT-15", Group::Platform, "IOMMU", platform::iommu),
    check("D-PLT-16", Group::Platform, "SELinux and AppArmor", platform::confinement),
    check("D-PLT-17", Group::Platform, "clock", platform::clock),
    check("D-PLT-18", Group::Platform, "what the time is read from", platform::clocksource),
    check("D-QEM-01", Group::Qemu, "QEMU", qemu::installed),
    check("D-QEM-02", Group::Qemu, "capabilities that moves need", qemu::capabilities),
    check("D-QEM-03", Group::Qemu, "capabilities of some ways", qemu::more_capabilities),
    check("D-QEM-04", Group::Qemu, "machine type q35", qemu::machine_type),
    check("D-QEM-05", Group::Qemu, "ports of migrations", qemu::ports),
    check("D-QEM-06", Group::Qemu, "libvirt", qemu::libvirt),
    check("D-QEM-07", Group::Qemu, "TLS of migrations", qemu::tls),
    check("D-CLU-01", Group::Cluster, "quorum", cluster::quorum),
    check("D-CLU-02", Group::Cluster, "hosts that answer", cluster::hosts),
    check("D-CLU-03", Group::Cluster, "voters", cluster::voters),
    check("D-CLU-04", Group::Cluster, "versions", cluster::versions),
    check("D-CLU-05", Group::Cluster, "authority", cluster::authority),
    check("D-CLU-08", Group::Cluster, "replicas", cluster::replicas),
    check("D-NET-06", Group::Network, "cards of decisions and migrations", network::planes),
    check("D-NET-07", Group::Network, "ways back", network::ways_back),
    check("D-NET-09", Group::Network, "firewall", network::firewall),
    check("D-NET-10", Group::Network, "packets in one go (GSO, GRO)", network::offloads),
    check("D-STO-01", Group::Storage, "directories", storage::there),
    check("D-STO-02", Group::Storage, "permissions", storage::permissions),
    check("D-STO-03", Group::Storage, "reading and writing", storage::trials),
    check("D-STO-04", Group::Storage, "free space", storage::space),
    check("D-STO-05", Group::Storage, "disk of the log", storage::fsync),
    check("D-STO-06", Group::Storage, "guest image", storage::image),
    check("D-STO-07", Group::Storage, "pools", storage::pools),
    check("D-STO-08", Group::Storage, "blocks of copies", storage::shared_blocks),
    check("D-STO-09", Group::Storage, "slowest writes of the log", storage::slowest_writes),
    check("D-HYG-01", Group::Hygiene, "things nobody owns", cluster::left_behind),
    check("D-HYG-04", Group::Hygiene, "images of another suite", cluster::old_data),
];

/// What is looked at from one host to another.
const OF_A_LINK: &[Check<Link>] = &[
    check("D-NET-01", Group::Network, "decisions (QUIC, UDP)", pairs::control),
    check("D-NET-02", Group::Network, "bulk (TLS, TCP)", pairs::bulk),
    check("D-NET-03", Group::Network, "migrations (TCP)", pairs::migration),
    check("D-NET-04", Group::Network, "round trips", pairs::round_trip),
    check("D-NET-05", Group::Network, "speed of migrations", pairs::speed),
    check("D-NET-08", Group::Network, "packets that get lost", pairs::loss),
];

/// Whether two hosts fit each other.
const OF_A_PAIR: &[Check<(Fit, Fit)>] = &[
    check("D-PAI-01", Group::Pairing, "machine types in common", pairs::machine_types),
    check("D-PAI-02", Group::Pairing, "versions of QEMU", pairs::qemu_versions),
    check("D-PAI-03", Group::Pairing, "accelerators", pairs::accelerators),
    check("D-PAI-04", Group::Pairing, "CPU models", pairs::cpus),
    check("D-PAI-05", Group::Pairing, "shared storage", pairs::storage),
    check("D-PAI-06", Group::Pairing, "times of sessions", pairs::times),
    check("D-PAI-07", Group::Pairing, "clocks", pairs::clocks),
    check("D-PAI-08", Group::Pairing, "microcode", pairs::microcode),
    check("D-PAI-09", Group::Pairing, "firmware of guests", pairs::firmware),
    check("D-PAI-10", Group::Pairing, "capabilities of QEMU", pairs::capabilities),
    check("D-PAI-11", Group::Pairing, "time stamp counters", pairs::time_stamps),
];

/// What is looked at on all hosts together.
const OF_ALL: &[Check<[Fit]>] = &[check("D-CLU-09", Group::Cluster, "saved state", cluster::saved)];

/// A finding, and what can be done about it here.
pub(super) type Judged = (Finding, Vec<Repair>);

/// What is said of one host.
pub(super) fn of_a_host(seen: &Seen, checks: &Checks) -> Vec<Judged> {
    let host = seen.member.as_ref().and_then(|member| member.me.as_ref());
    judge(OF_A_HOST, seen, checks, host, None)
}

/// What is said of a way from one host to another.
pub(super) fn of_a_link(from: &Name, link: &Link, checks: &Checks) -> Vec<Finding> {
    judge(OF_A_LINK, link, checks, Some(from), Some(&link.to)).into_iter().map(|(finding, _)| finding).collect()
}

/// What is said of two hosts.
pub(super) fn of_a_pair(a: (&Name, &Fit), b: (&Name, &Fit), checks: &Checks) -> Vec<Finding> {
    let pair = (a.1.clone(), b.1.clone());
    judge(OF_A_PAIR, &pair, checks, Some(a.0), Some(b.0)).into_iter().map(|(finding, _)| finding).collect()
}

/// What is said of all hosts together.
pub(super) fn of_all(fits: &[Fit], checks: &Checks) -> Vec<Finding> {
    judge(OF_ALL, fits, checks, None, None).into_iter().map(|(finding, _)| finding).collect()
}

/// What is said of a host that does not answer.
pub(super) fn silent(host: &Name, why: &str) -> Finding {
    Finding {
        check: "D-CLU-06".to_owned(),
        group: Group::Cluster,
        title: "examination of the host".to_owned(),
        host: Some(host.clone()),
        other: None,
        severity: Severity::Fail,
        found: format!("it was not examined: {why}"),
        fix: vec!["on it: systemctl status vtd; then: vtd doctor".to_owned()],
        repairable: false,
    }
}

fn judge<S: ?Sized>(
    table: &[Check<S>],
    seen: &S,
    checks: &Checks,
    host: Option<&Name>,
    other: Option<&Name>,
) -> Vec<Judged> {
    let wanted = table.iter().filter(|check| checks.wants(check.id));
    let said = wanted.filter_map(|check| Some((check, (check.judge)(seen)?)));
    let judged = said.map(|(check, said)| {
        let finding = Finding {
            check: check.id.to_owned(),
            group: check.group,
            title: check.title.to_owned(),
            host: host.cloned(),
            other: other.cloned(),
            severity: said.severity,
            found: said.found,
            fix: said.fix,
            repairable: !said.repairs.is_empty(),
        };
        (finding, said.repairs)
    });
    judged.collect()
}

#[cfg(test)]
mod tests;
