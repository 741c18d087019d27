//! The cluster as a host sees it, and what belongs to nobody.

use vt_protocol::doctor::Fit;

use super::{super::seen::Seen, Said};

/// A replica that lags further behind has been away, or cannot keep up.
const LAG_LARGE: u64 = 5000;
/// A saved state that is older is told.
const SAVED_DAYS: u64 = 30;
const DAY_S: u64 = 24 * 3600;
/// Most things whose removal is told.
const REMOVALS: usize = 8;

pub(super) fn quorum(seen: &Seen) -> Option<Said> {
    let member = seen.member.as_ref()?;
    Some(match member.quorum {
        true => Said::ok("the cluster can decide"),
        false => Said::fail("most voters do not answer: nothing can be decided")
            .fix("bring voters back: vtctl cluster status names them")
            .fix("where they are gone for good: vtctl cluster recover"),
    })
}

pub(super) fn hosts(seen: &Seen) -> Option<Said> {
    let member = seen.member.as_ref()?;
    let silent: Vec<&str> = member.hosts.iter().filter(|(_, live, _)| !live).map(|(name, ..)| name.as_str()).collect();
    Some(match silent[..] {
        [] => Said::ok(format!("all {} answer", member.hosts.len())),
        [first, ..] => {
            Said::fail(format!("{} of {} do not answer: {}", silent.len(), member.hosts.len(), silent.join(" ")))
                .fix("on them: systemctl status vtd; from here: the findings under network")
                .fix(format!("gone for good: vtctl host remove {first}"))
        }
    })
}

pub(super) fn voters(seen: &Seen) -> Option<Said> {
    let member = seen.member.as_ref()?;
    let (voters, hosts) = (member.voters, member.hosts.len());
    let survives = voters.saturating_sub(1) / 2;
    Some(match (hosts, voters) {
        (0 | 1, _) => Said::ok("one host decides alone"),
        (2, _) => Said::note("two hosts cannot both vote safely: losing the voter stops everything")
            .fix("a third host, or a witness that runs nothing: vtctl cluster token create --role witness"),
        (_, 0 | 1) if member.willing > 2 => {
            Said::warn(format!("one of {hosts} hosts votes: losing it stops everything"))
                .fix("vtctl cluster status   (why the others do not vote)")
        }
        (_, 0 | 1) => {
            Said::warn(format!("one of {hosts} hosts votes: losing it stops everything")).fix("vtctl host promote HOST")
        }
        _ => Said::ok(format!("{voters} vote; {survives} of them may fail")),
    })
}

pub(super) fn versions(seen: &Seen) -> Option<Said> {
    let member = seen.member.as_ref()?;
    let mut builds: Vec<&str> = member.hosts.iter().map(|(_, _, build)| build.as_str()).collect();
    builds.sort_unstable();
    builds.dedup();
    Some(match builds[..] {
        [] | [_] => Said::ok(format!("{} on all", builds.first().copied().unwrap_or("none"))),
        _ => {
            let each: Vec<String> = member.hosts.iter().map(|(name, _, build)| format!("{name} {build}")).collect();
            Said::warn(format!("an upgrade is half done: {}", each.join(", ")))
                .fix("ansible-playbook vtmesh.lab.upgrade")
        }
    })
}

pub(super) fn replicas(seen: &Seen) -> Option<Said> {
    let member = seen.member.as_ref()?;
    let behind: Vec<_> = member.lag.iter().filter(|(_, lag)| *lag > LAG_LARGE).collect();
    Some(match behind[..] {
        [] if member.lag.is_empty() => Said::ok("known to the leader alone"),
        [] => Said::ok(format!("none lags {LAG_LARGE} entries behind")),
        [(first, _), ..] => {
            let each: Vec<String> = behind.iter().map(|(name, lag)| format!("{name} by {lag} entries")).collect();
            Said::warn(format!("they lag behind: {}", each.join(", "))).fix(format!(
                "on {first}: vtctl doctor --check D-STO-05 (its disk), D-NET-01 (its network); vtctl cluster status shows it catch up"
            ))
        }
    })
}

pub(super) fn saved(all: &[Fit]) -> Option<Said> {
    let now = all.iter().map(|fit| fit.unix_s).max()?;
    let last = all.iter().map(|fit| fit.saved_unix_s).max().unwrap_or(0);
    let fix = "vtctl cluster snapshot save FILE, kept elsewhere; or ansible-playbook vtmesh.lab.backup";
    let days = now.saturating_sub(last) / DAY_S;
    Some(match last {
        0 => Said::note("the state of the cluster was never saved: when all hosts are lost, so is what it knows")
            .fix(fix),
        _ if days > SAVED_DAYS => {
            Said::note(format!("the state of the cluster was last saved {days} days ago")).fix(fix)
        }
        _ => Said::ok(format!("{days} days old")),
    })
}

pub(super) fn old_data(seen: &Seen) -> Option<Said> {
    let old = &seen.machine.old_data;
    Some(match &old[..] {
        [] => Said::ok("none"),
        [first, ..] => {
            let all: Vec<String> = old.iter().map(|path| path.display().to_string()).collect();
            Said::note(format!("images of avocado-vt are still in {}", all.join(", "))).fix(format!(
                "what is wanted of it: vtctl image import {}/images/FILE; then it can go",
                first.display()
            ))
        }
    })
}

pub(super) fn authority(seen: &Seen) -> Option<Said> {
    Some(match seen.member.as_ref()?.two_authorities {
        false => Said::ok("one is trusted"),
        true => Said::note("two are trusted: a change of the authority is half done")
            .fix("vtctl cluster ca show   (who has no certificate yet), then vtctl cluster ca rotate --finish"),
    })
}

pub(super) fn left_behind(seen: &Seen) -> Option<Said> {
    let left = &seen.member.as_ref()?.left_behind;
    Some(match left[..] {
        [] => Said::ok("nothing"),
        _ => left.iter().take(REMOVALS).map(|thing| removal(thing)).fold(Said::warn(left.join("; ")), Said::fix),
    })
}

/// How a thing is removed, which nobody does by itself: a person may know whose it is.
fn removal(thing: &str) -> String {
    match thing.rsplit_once(' ') {
        Some(("disk", path)) => format!("rm {path}"),
        Some(("tap", name)) => format!("ip link delete {name}"),
        Some(("run folder", path)) => format!("fuser -v {path}   (whether a process has it), then rm -r {path}"),
        Some((kind, name)) => format!("rmdir the {kind} {name}, in the folder that D-PLT-06 names"),
        None => thing.to_owned(),
    }
}
