//! Exit codes: their names, and which one the verdicts of a job make. Pure.

use serde_json::{Value, json};
use vt_protocol::{
    error::Exit,
    job::{CaseStateView, JobView},
    verdict::Verdict,
};

/// The name of an exit code.
pub fn name(exit: Exit) -> &'static str {
    match exit {
        Exit::Ok => "ok",
        Exit::Internal => "internal",
        Exit::Usage => "usage",
        Exit::Config => "config",
        Exit::NoneSelected => "none_selected",
        Exit::Unreachable => "unreachable",
        Exit::NoQuorum => "no_quorum",
        Exit::Denied => "denied",
        Exit::NotFound => "not_found",
        Exit::Conflict => "conflict",
        Exit::Precondition => "precondition",
        Exit::Partial => "partial",
        Exit::Failed => "failed",
        Exit::Infra => "infra",
        Exit::Cancelled => "cancelled",
        Exit::TimedOut => "timed_out",
        Exit::Setup => "setup",
        Exit::WaitTimeout => "wait_timeout",
        Exit::Interrupted => "interrupted",
    }
}

/// An exit code in JSON: number and name.
pub fn json(exit: Exit) -> Value {
    json!({"code": exit.code(), "name": name(exit)})
}

/// What one verdict means for the exit code.
fn of_verdict(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Pass | Verdict::Warn | Verdict::Skip => Exit::Ok,
        Verdict::Fail => Exit::Failed,
        Verdict::Error => Exit::Infra,
        Verdict::Timeout => Exit::TimedOut,
        Verdict::Cancelled => Exit::Cancelled,
    }
}

/// Of several, the one that tells most: FAIL over ERROR over TIMEOUT over CANCELLED. None at all: nothing was selected.
pub fn of_verdicts(verdicts: impl IntoIterator<Item = Verdict>) -> Exit {
    let rank = |exit: &Exit| match exit {
        Exit::Failed => 4,
        Exit::Infra => 3,
        Exit::TimedOut => 2,
        Exit::Cancelled => 1,
        _ => 0,
    };
    verdicts.into_iter().map(of_verdict).max_by_key(rank).unwrap_or(Exit::NoneSelected)
}

/// The exit code of a job that is done. A case without a verdict then is our own mistake, and counts as ERROR.
pub fn of_job(job: &JobView) -> Exit {
    of_verdicts(job.cases.iter().map(|case| match case.state {
        CaseStateView::Done { verdict, .. } => verdict,
        CaseStateView::Pending { .. } | CaseStateView::Running { .. } => Verdict::Error,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_is_that_of_the_contract() {
        use Verdict::{Cancelled, Error, Fail, Pass, Skip, Timeout, Warn};
        for (verdicts, exit) in [
            (&[][..], Exit::NoneSelected),
            (&[Pass, Warn, Skip], Exit::Ok),
            (&[Skip], Exit::Ok),
            (&[Pass, Cancelled], Exit::Cancelled),
            (&[Cancelled, Timeout, Pass], Exit::TimedOut),
            (&[Timeout, Error, Cancelled], Exit::Infra),
            (&[Error, Fail, Timeout, Pass, Cancelled], Exit::Failed),
        ] {
            assert_eq!(of_verdicts(verdicts.iter().copied()), exit, "{verdicts:?}");
            assert_eq!(of_verdicts(verdicts.iter().rev().copied()), exit, "{verdicts:?} reversed");
        }
    }

    #[test]
    fn every_exit_code_has_number_and_name_in_json() {
        assert_eq!(json(Exit::NoQuorum), serde_json::json!({"code": 21, "name": "no_quorum"}));
    }
}
