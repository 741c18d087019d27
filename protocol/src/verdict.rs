//! Verdicts of cases, and how parties' outcomes become one.
//!
//! Causes and consequences are different types: a party that ends because its peer was gone did not cause anything, so
//! it can never be the reason of a verdict while a cause is known.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, Report};

/// The result of a case. FAIL blames the product under test, ERROR our side, the lab or a host; they are never merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything asked for happened.
    Pass,
    /// Passed, with a remark.
    Warn,
    /// Not run, with a reason.
    Skip,
    /// A user cancelled it.
    Cancelled,
    /// A deadline passed.
    Timeout,
    /// Our side, the lab, or a host.
    Error,
    /// The product under test misbehaved.
    Fail,
}

impl Verdict {
    /// Every verdict, the best first.
    pub const ALL: [Self; 7] =
        [Self::Pass, Self::Warn, Self::Skip, Self::Cancelled, Self::Timeout, Self::Error, Self::Fail];
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Skip => "SKIP",
            Self::Cancelled => "CANCELLED",
            Self::Timeout => "TIMEOUT",
            Self::Error => "ERROR",
            Self::Fail => "FAIL",
        })
    }
}

/// What kind of cause ended a party early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The product under test: QEMU, libvirt, the guest.
    Product,
    /// Our side, the lab, a host.
    Infrastructure,
    /// Cannot run here; not a fault.
    NotApplicable,
    /// A user's wish.
    User,
    /// A deadline of the case or job.
    Deadline,
}

impl Blame {
    /// The verdict this cause makes.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Product => Verdict::Fail,
            Self::Infrastructure => Verdict::Error,
            Self::NotApplicable => Verdict::Skip,
            Self::User => Verdict::Cancelled,
            Self::Deadline => Verdict::Timeout,
        }
    }
}

/// Why a case did not pass: the first one in log order decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Whose fault it is.
    pub blame: Blame,
    /// What happened, for the user.
    pub report: Report,
}

/// What happened to a party because something happened elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consequence {
    /// A barrier it waited at was broken; names the barrier.
    BarrierBroken(String),
    /// The other side of a migration ended.
    PeerGone(String),
    /// The attempt was closed while the party ran.
    Closed,
}

/// How one party ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Its program came to the end. A remark makes the case WARN.
    Passed {
        /// What a reader should know although it passed.
        remark: Option<String>,
    },
    /// It met a cause itself.
    Caused(Cause),
    /// It ended because of something elsewhere.
    Followed(Consequence),
}

/// The joint verdict of parties' outcomes, which are given in the order of the log.
///
/// The first cause wins. Where every party ended by a consequence and no cause is known, the verdict is ERROR: a
/// consequence without a cause is our own mistake and must be seen.
pub fn judge<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> (Verdict, Option<Cause>) {
    let mut remark = None;
    let mut followed: Option<&Consequence> = None;
    for outcome in outcomes {
        match outcome {
            Outcome::Caused(cause) => return (cause.blame.verdict(), Some(cause.clone())),
            Outcome::Followed(consequence) => followed = followed.or(Some(consequence)),
            Outcome::Passed { remark: Some(_) } => remark = Some(()),
            Outcome::Passed { remark: None } => {}
        }
    }
    if let Some(consequence) = followed {
        let report = Report::new(ErrorCode::Internal, "a party ended by a consequence whose cause nobody reported")
            .with("consequence", format!("{consequence:?}"));
        return (Verdict::Error, Some(Cause { blame: Blame::Infrastructure, report }));
    }
    (if remark.is_some() { Verdict::Warn } else { Verdict::Pass }, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caused(blame: Blame, title: &str) -> Outcome {
        Outcome::Caused(Cause { blame, report: Report::new(ErrorCode::Internal, title) })
    }

    #[test]
    fn the_first_cause_in_log_order_wins_over_later_causes_and_all_consequences() {
        let outcomes = [
            Outcome::Followed(Consequence::PeerGone("host2".into())),
            caused(Blame::Product, "first"),
            caused(Blame::Infrastructure, "second"),
        ];
        let (verdict, cause) = judge(&outcomes);
        assert_eq!(verdict, Verdict::Fail);
        assert_eq!(cause.unwrap().report.title, "first");
    }

    #[test]
    fn a_consequence_without_a_cause_is_an_error_and_never_a_pass() {
        let outcomes = [Outcome::Passed { remark: None }, Outcome::Followed(Consequence::Closed)];
        assert_eq!(judge(&outcomes).0, Verdict::Error);
    }

    #[test]
    fn a_remark_makes_a_pass_a_warning() {
        assert_eq!(judge(&[Outcome::Passed { remark: None }]).0, Verdict::Pass);
        assert_eq!(judge(&[Outcome::Passed { remark: Some("slow".into()) }]).0, Verdict::Warn);
    }
}
