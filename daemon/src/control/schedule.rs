//! Which cases begin now: a pure decision over committed state.
//!
//! Cases are looked at in the order of their jobs. A case begins when all its hosts are live and free, or not at all.
//! One that waits for a busy host keeps the hosts it needs from later cases, so that small cases cannot starve a large
//! one; one that waits for a host that is down or cordoned keeps nothing, so that such a
//! host does not stop the others.
//!
//! What may not happen here: time, I/O, or memory of what was decided before.

use std::collections::BTreeSet;

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, CaseId, HostId},
    verdict::Verdict,
};

/// A case that has no verdict and no running attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub case: CaseId,
    /// Its hosts, host1 first; empty: it was left without hosts.
    pub hosts: Vec<HostId>,
    /// How often it was begun before.
    pub attempts: u32,
    /// Left without hosts it fails instead of being skipped.
    pub strict: bool,
}

/// How a host is, for a case that wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It answers and has nothing to do.
    Free,
    /// It serves an attempt.
    Busy(AttemptId),
    /// It does not answer.
    Down,
    /// Nothing new is to begin on it.
    Cordoned,
    /// It is a witness, or not in the cluster any more.
    Never(&'static str),
}

/// What is to be done about a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Give all hosts to a new attempt.
    Start {
        /// Which case.
        case: CaseId,
        /// The attempt's number.
        number: u32,
        /// The hosts, host1 first.
        hosts: Vec<HostId>,
    },
    /// End it without an attempt.
    End {
        /// Which case.
        case: CaseId,
        /// With which verdict.
        verdict: Verdict,
        /// Why.
        cause: Report,
    },
}

/// Decides for all waiting cases, given in the order of jobs and indexes; at most `most` decisions.
pub fn decide(
    waiting: impl IntoIterator<Item = Waiting>,
    condition: impl Fn(HostId) -> Condition,
    name: impl Fn(HostId) -> String,
    most: usize,
) -> Vec<Decision> {
    let mut kept = BTreeSet::new();
    let mut decisions = Vec::new();
    for Waiting { case, hosts, attempts, strict } in waiting {
        if decisions.len() >= most {
            break;
        }
        if hosts.is_empty() {
            let verdict = if strict { Verdict::Fail } else { Verdict::Skip };
            let cause = Report::new(ErrorCode::CannotRunHere, "the case was left without enough hosts")
                .help("give a multiple of the hosts that the scenario takes");
            decisions.push(Decision::End { case, verdict, cause });
            continue;
        }
        let conditions: Vec<Condition> = hosts.iter().map(|host| condition(*host)).collect();
        let never = hosts.iter().zip(&conditions).find_map(|(host, condition)| match condition {
            Condition::Never(why) => Some((*host, *why)),
            _ => None,
        });
        if let Some((host, why)) = never {
            let cause = Report::new(ErrorCode::HostDown, format!("{} {why}", name(host)));
            decisions.push(Decision::End { case, verdict: Verdict::Error, cause });
        } else if conditions.iter().any(|condition| matches!(condition, Condition::Down | Condition::Cordoned)) {
            continue;
        } else {
            let free = conditions.iter().all(|condition| *condition == Condition::Free);
            let begins = free && hosts.iter().all(|host| !kept.contains(host));
            kept.extend(hosts.iter().copied());
            if begins {
                decisions.push(Decision::Start { case, number: attempts + 1, hosts });
            }
        }
    }
    decisions
}

/// What a waiting case waits for, for people; `None` where nothing is in its way but its turn.
pub fn why(
    hosts: &[HostId],
    condition: impl Fn(HostId) -> Condition,
    name: impl Fn(HostId) -> String,
) -> Option<String> {
    let mut busy = None;
    for host in hosts {
        match condition(*host) {
            Condition::Down => return Some(format!("{} is down", name(*host))),
            Condition::Cordoned => return Some(format!("{} is cordoned", name(*host))),
            Condition::Never(why) => return Some(format!("{} {why}", name(*host))),
            Condition::Busy(attempt) => {
                busy.get_or_insert_with(|| format!("{} serves {attempt}", name(*host)));
            }
            Condition::Free => {}
        }
    }
    busy
}

#[cfg(test)]
mod tests {
    use super::Condition::{Busy, Cordoned, Down, Free, Never};
    use super::*;
    use vt_protocol::ids::JobId;

    fn case(job: u64, index: u32) -> CaseId {
        CaseId { job: JobId(job), index }
    }

    fn waiting(job: u64, index: u32, hosts: &[u64]) -> Waiting {
        Waiting {
            case: case(job, index),
            hosts: hosts.iter().map(|h| HostId(*h)).collect(),
            attempts: 0,
            strict: false,
        }
    }

    const OTHER: AttemptId = AttemptId { case: CaseId { job: JobId(9), index: 1 }, number: 1 };

    fn begun(cases: Vec<Waiting>, conditions: &[Condition]) -> Vec<(u64, u32)> {
        let condition = |host: HostId| conditions[host.0 as usize - 1];
        decide(cases, condition, |host| format!("host{}", host.0), 100)
            .into_iter()
            .filter_map(|decision| match decision {
                Decision::Start { case, number, .. } => {
                    assert_eq!(number, 1);
                    Some((case.job.0, case.index))
                }
                Decision::End { .. } => None,
            })
            .collect()
    }

    #[test]
    fn a_case_gets_all_its_hosts_or_none() {
        // cases (job, index, hosts), conditions of host1.., what begins
        let pair = || vec![waiting(1, 1, &[1, 2]), waiting(1, 2, &[3, 4])];
        for (cases, conditions, expected) in [
            (pair(), [Free, Free, Free, Free], vec![(1, 1), (1, 2)]),
            (pair(), [Free, Busy(OTHER), Free, Free], vec![(1, 2)]),
            (pair(), [Free, Down, Free, Free], vec![(1, 2)]),
            (pair(), [Free, Down, Down, Free], vec![]),
            (pair(), [Free, Cordoned, Free, Free], vec![(1, 2)]),
            // One host is one attempt's at a time, in the order of jobs.
            (vec![waiting(1, 1, &[1, 2]), waiting(1, 2, &[1, 2])], [Free; 4], vec![(1, 1)]),
            (vec![waiting(1, 1, &[1]), waiting(2, 1, &[1]), waiting(2, 2, &[2])], [Free; 4], vec![(1, 1), (2, 2)]),
            // What waits for a busy host keeps its other hosts: small cases do not starve it.
            (vec![waiting(1, 1, &[1, 2]), waiting(2, 1, &[1])], [Free, Busy(OTHER), Free, Free], vec![]),
            // What waits for a dead host keeps nothing.
            (vec![waiting(1, 1, &[1, 2]), waiting(2, 1, &[1])], [Free, Down, Free, Free], vec![(2, 1)]),
            (vec![waiting(1, 1, &[1, 2]), waiting(2, 1, &[1])], [Free, Cordoned, Free, Free], vec![(2, 1)]),
            // A case that begins only later also keeps its hosts from those behind it.
            (vec![waiting(1, 1, &[1]), waiting(1, 2, &[1, 2]), waiting(2, 1, &[2])], [Free; 4], vec![(1, 1)]),
        ] {
            assert_eq!(begun(cases.clone(), &conditions), expected, "{cases:?} {conditions:?}");
        }
    }

    #[test]
    fn a_case_without_hosts_is_skipped_or_fails() {
        for (strict, expected) in [(false, Verdict::Skip), (true, Verdict::Fail)] {
            let cases = vec![Waiting { strict, ..waiting(1, 3, &[]) }];
            let decisions = decide(cases, |_| Free, |_| String::new(), 100);
            assert!(
                matches!(&decisions[..], [Decision::End { verdict, .. }] if *verdict == expected),
                "{strict}: {decisions:?}"
            );
        }
    }

    #[test]
    fn a_host_that_never_can_ends_the_case_with_an_error_and_keeps_nothing() {
        let gone = Never("was removed from the cluster");
        let cases = vec![waiting(1, 1, &[1, 2]), waiting(1, 2, &[1])];
        let decisions = decide(cases, |host| if host.0 == 2 { gone } else { Free }, |_| "host2".into(), 100);
        assert!(
            matches!(&decisions[0], Decision::End { verdict: Verdict::Error, cause, .. }
                if cause.title == "host2 was removed from the cluster"),
            "{decisions:?}"
        );
        assert!(matches!(&decisions[1], Decision::Start { hosts, .. } if hosts == &[HostId(1)]), "{decisions:?}");
    }

    #[test]
    fn a_second_attempt_has_the_next_number_and_decisions_are_bounded() {
        let cases = (1..=10).map(|index| Waiting { attempts: 1, ..waiting(1, index, &[u64::from(index)]) });
        let decisions = decide(cases, |_| Free, |_| String::new(), 4);
        assert_eq!(decisions.len(), 4);
        assert!(matches!(decisions[0], Decision::Start { number: 2, .. }));
    }

    #[test]
    fn the_reason_names_the_worst_host() {
        let hosts = [HostId(1), HostId(2)];
        for (conditions, expected) in [
            ([Free, Free], None),
            ([Free, Down], Some("host2 is down")),
            ([Cordoned, Free], Some("host1 is cordoned")),
            ([Busy(OTHER), Free], Some("host1 serves 9.1.1")),
            ([Busy(OTHER), Down], Some("host2 is down")),
        ] {
            let found = why(&hosts, |host| conditions[host.0 as usize - 1], |host| format!("host{}", host.0));
            assert_eq!(found.as_deref(), expected, "{conditions:?}");
        }
    }
}
