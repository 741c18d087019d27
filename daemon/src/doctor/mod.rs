//! What is wrong on a host, and what to do about it: `vtd doctor`, and the daemon's part of `vtctl doctor`.
//!
//! | file | noun |
//! |---|---|
//! | [`seen`] | what was seen, plain values |
//! | `look` | looking: the machine, QEMU, directories |
//! | `links` | trying the way to another host |
//! | `firewall` | what nftables would do to what others send |
//! | `checks` | the table of checks and their decisions, pure |
//! | `repair` | what `--fix` does |
//! | [`program`] | `vtd doctor` |
//!
//! Accelerator, QEMU, pools and libvirt are tried by what the daemon itself uses for them. Nothing here changes the host
//! but `repair`, and trial files that are gone again.

mod checks;
mod firewall;
pub(crate) mod links;
mod look;
pub mod program;
mod repair;
pub mod seen;

use vt_protocol::{
    doctor::{Checks, Examine, Examined, Finding, Fit},
    error::{ErrorCode, Report},
    ids::Name,
};

use self::{
    checks::Judged,
    seen::{Link, Member},
};
use crate::{images::blocking, settings::Settings};

/// Examines this host. `member`: the cluster as its daemon sees it, where one was asked.
///
/// # Errors
/// What should be repaired cannot be.
pub async fn examine(settings: &Settings, member: Option<Member>, examine: &Examine) -> Result<Examined, Report> {
    let mut seen = look::look(settings, member).await;
    let mut judged = checks::of_a_host(&seen, &examine.checks);
    if examine.repair && repair(&judged).await? {
        seen = look::look(settings, seen.member).await;
        judged = checks::of_a_host(&seen, &examine.checks);
    }
    let findings = judged.into_iter().map(|(finding, _)| finding).collect();
    Ok(Examined { findings, fit: seen.fit })
}

/// Does what is safe to do; whether there was anything.
async fn repair(judged: &[Judged]) -> Result<bool, Report> {
    let repairs: Vec<_> = judged.iter().flat_map(|(_, repairs)| repairs.clone()).collect();
    let any = !repairs.is_empty();
    let done: Result<(), Report> = blocking(move || {
        for repair in repairs {
            tracing::info!(command = repair.command(), "doctor repairs");
            repair.apply().map_err(|error| {
                Report::new(ErrorCode::StorageFailed, "what was found cannot be repaired")
                    .with("command", repair.command())
                    .caused_by(&error)
            })?;
        }
        Ok(())
    })
    .await;
    done.map(|()| any)
}

/// A report in one line.
pub(crate) fn said(report: &Report) -> String {
    let more = report.causes.first().or_else(|| report.evidence.last().map(|(_, value)| value));
    more.map_or_else(|| report.title.clone(), |more| format!("{}: {more}", report.title))
}

/// What is found on the way from one host to another.
pub fn of_a_link(from: &Name, link: &Link, wanted: &Checks) -> Vec<Finding> {
    checks::of_a_link(from, link, wanted)
}

/// What is found where every two hosts are compared.
pub fn of_pairs(hosts: &[(Name, Fit)], wanted: &Checks) -> Vec<Finding> {
    let mut found = Vec::new();
    for (place, (a, fit)) in hosts.iter().enumerate() {
        for (b, other) in &hosts[place + 1..] {
            found.extend(checks::of_a_pair((a, fit), (b, other), wanted));
        }
    }
    found
}

/// What is found where all hosts are looked at together.
pub fn of_all(hosts: &[(Name, Fit)], wanted: &Checks) -> Vec<Finding> {
    let fits: Vec<Fit> = hosts.iter().map(|(_, fit)| fit.clone()).collect();
    checks::of_all(&fits, wanted)
}

/// What is found where a host gave no answer.
pub fn silent(host: &Name, why: &str) -> Finding {
    checks::silent(host, why)
}
