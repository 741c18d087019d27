//! What `doctor` finds: one finding a check, a host and, between hosts, the other one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{error::Exit, ids::Name};

/// What is to be examined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examine {
    /// Every host, and how the hosts fit each other, instead of the host that answers.
    pub all: bool,
    /// Do what is safe to do about what is found, and look again.
    pub repair: bool,
    /// Which checks.
    pub checks: Checks,
}

/// Which checks, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// Only these; empty: all.
    pub only: Vec<String>,
    /// Not these.
    pub skip: Vec<String>,
}

impl Checks {
    /// Whether the check of this id is wanted.
    pub fn wants(&self, id: &str) -> bool {
        let named = |ids: &[String]| ids.iter().any(|named| named.eq_ignore_ascii_case(id));
        (self.only.is_empty() || named(&self.only)) && !named(&self.skip)
    }
}

/// What checks are about, in the order they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// The machine and its kernel.
    Platform,
    /// QEMU and libvirt.
    Qemu,
    /// The cluster as a host sees it.
    Cluster,
    /// From one host to another.
    Network,
    /// Directories and disks.
    Storage,
    /// Whether hosts fit each other.
    Pairing,
    /// What was left behind.
    Hygiene,
}

impl Group {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Qemu => "qemu",
            Self::Cluster => "cluster",
            Self::Network => "network",
            Self::Storage => "storage",
            Self::Pairing => "pairing",
            Self::Hygiene => "hygiene",
        }
    }
}

/// How bad it is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Works, and will hurt.
    Warn,
    /// Something does not work.
    Fail,
}

impl Severity {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Id of the check, `D-NET-01`.
    pub check: String,
    /// What it is about.
    pub group: Group,
    /// What was looked at, in a few words.
    pub title: String,
    /// The host it was seen on, where it has a name.
    pub host: Option<Name>,
    /// The other host, where it is about two.
    pub other: Option<Name>,
    /// How bad it is.
    pub severity: Severity,
    /// The evidence: what was seen.
    pub found: String,
    /// What to do about it: a command, or one sentence.
    pub fix: Vec<String>,
    /// Whether `--fix` does it.
    pub repairable: bool,
}

/// What a host answers that was examined for another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examined {
    /// What its own checks found.
    pub findings: Vec<Finding>,
    /// What other hosts are compared with.
    pub fit: Fit,
}

/// What has to fit between hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fit {
    /// CPU model, as the kernel names it.
    pub cpu: String,
    /// Whether guests run under KVM.
    pub kvm: bool,
    /// Version of QEMU; empty where there is none.
    pub qemu: String,
    /// Versioned machine types of that QEMU.
    pub machines: Vec<String>,
    /// Whether images and disks are on shared storage.
    pub shared: bool,
    /// Times of sessions, leaders and votes: key and milliseconds.
    pub times_ms: Vec<(String, u64)>,
    /// Seconds since 1970 when it answered.
    pub unix_s: u64,
    /// Version of the CPU's microcode; empty where the kernel tells none.
    pub microcode: String,
    /// Digest of the firmware that guests start with; empty where it was not found.
    pub firmware: String,
    /// Migration capabilities of that QEMU.
    pub capabilities: Vec<String>,
    /// How fast the CPU's time stamp counter goes, kHz; 0 where the kernel did not tell.
    pub tsc_khz: u32,
    /// When the state of the cluster was last saved to a file by way of this host, seconds since 1970; 0: never.
    pub saved_unix_s: u64,
}

impl fmt::Display for Finding {
    /// Plain lines: what was found where, and below it what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, title, found, .. } = self;
        write!(f, "{:<4} {check}", self.severity.as_str())?;
        if let Some(host) = &self.host {
            write!(f, " {host}")?;
        }
        if let Some(other) = &self.other {
            write!(f, " to {other}")?;
        }
        writeln!(f, "  {title}: {found}")?;
        for (number, line) in self.fix.iter().enumerate() {
            writeln!(f, "     {:<3}  {line}", if number == 0 { "fix" } else { "" })?;
        }
        Ok(())
    }
}

/// Findings as they are written for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// `vtmesh/v1/doctor`.
    pub schema: String,
    /// The worst of them.
    pub worst: Severity,
    /// By group, the worst first in each.
    pub findings: Vec<Finding>,
}

impl Document {
    /// Puts findings in order.
    pub fn of(mut findings: Vec<Finding>) -> Self {
        // Hosts and checks stay in the order they came in.
        findings.sort_by_key(|finding| (finding.group, std::cmp::Reverse(finding.severity)));
        let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
        Self { schema: "vtmesh/v1/doctor".to_owned(), worst, findings }
    }

    /// How many are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// `1 fail, 2 warn, 3 note, 20 ok`, without what there is none of.
    pub fn summary(&self) -> String {
        let all =
            [Severity::Fail, Severity::Warn, Severity::Note, Severity::Ok].map(|it| (self.count(it), it.as_str()));
        let some: Vec<String> =
            all.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
        if some.is_empty() { "nothing was examined".to_owned() } else { some.join(", ") }
    }

    /// The exit code: only what does not work is worth one.
    pub fn exit(&self) -> Exit {
        if self.worst == Severity::Fail { Exit::Precondition } else { Exit::Ok }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_chosen_by_id_whatever_its_case() {
        assert!(Checks::default().wants("D-NET-01"));
        let only = Checks { only: vec!["d-net-01".into(), "D-STO-02".into()], skip: vec!["D-STO-02".into()] };
        assert!(only.wants("D-NET-01") && !only.wants("D-STO-02") && !only.wants("D-QEM-01"));
    }

    #[test]
    fn a_failure_is_worse_than_a_warning() {
        assert!(Severity::Fail > Severity::Warn && Severity::Warn > Severity::Note && Severity::Note > Severity::Ok);
        let empty = Document::of(Vec::new());
        assert_eq!(
            (empty.worst, empty.exit(), empty.summary().as_str()),
            (Severity::Ok, Exit::Ok, "nothing was examined")
        );
    }

    #[test]
    fn findings_are_in_order_of_their_groups_the_worst_first() {
        let finding = |check: &str, group, severity| Finding {
            check: check.into(),
            group,
            title: "disks".into(),
            host: Some("host1".parse().unwrap()),
            other: None,
            severity,
            found: "full".into(),
            fix: vec!["rm".into(), "or mount".into()],
            repairable: false,
        };
        let document = Document::of(vec![
            finding("D-NET-01", Group::Network, Severity::Ok),
            finding("D-PLT-01", Group::Platform, Severity::Note),
            finding("D-PLT-02", Group::Platform, Severity::Fail),
        ]);
        let ids: Vec<&str> = document.findings.iter().map(|finding| finding.check.as_str()).collect();
        assert_eq!(ids, ["D-PLT-02", "D-PLT-01", "D-NET-01"]);
        assert_eq!((document.summary().as_str(), document.exit()), ("1 fail, 1 note, 1 ok", Exit::Precondition));
        let text = document.findings[0].to_string();
        assert_eq!(text, "fail D-PLT-02 host1  disks: full\n     fix  rm\n          or mount\n");
    }
}
