//! How errors of this daemon become what a party is told: a cause with its blame, or a consequence.

use vt_protocol::{
    error::{ErrorCode, Exit, Report},
    party::Failure,
    verdict::{Blame, Cause, Consequence},
};

use crate::cluster::ProposeError;

/// Who is to blame for what a code says: the product where the code's exit is that of a failed case.
pub fn blame(code: ErrorCode) -> Blame {
    if code == ErrorCode::CannotRunHere {
        return Blame::NotApplicable;
    }
    match code.exit() {
        Exit::Failed => Blame::Product,
        Exit::Cancelled => Blame::User,
        Exit::TimedOut => Blame::Deadline,
        _ => Blame::Infrastructure,
    }
}

/// A cause, blamed by its code.
pub fn caused(report: Report) -> Failure {
    Failure::Caused(Cause { blame: blame(report.code), report })
}

/// What a party is told when a proposal did not take effect.
pub fn not_proposed(error: ProposeError) -> Failure {
    match error {
        ProposeError::Rejected(rejected) => match rejected.code {
            // The attempt is over for this host: somebody else knows why.
            ErrorCode::CaseClosed | ErrorCode::SessionOver | ErrorCode::Cancelled => {
                Failure::Followed(Consequence::Closed)
            }
            ErrorCode::BarrierBroken => Failure::Followed(Consequence::BarrierBroken(rejected.text)),
            _ => caused(rejected.into()),
        },
        other => caused(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_blamed_for_its_own_faults_only() {
        for (code, wanted) in [
            (ErrorCode::MigrationFailed, Blame::Product),
            (ErrorCode::GuestNotBooted, Blame::Product),
            (ErrorCode::Preflight, Blame::Product),
            (ErrorCode::ImageMissing, Blame::Infrastructure),
            (ErrorCode::DiskFull, Blame::Infrastructure),
            (ErrorCode::QemuMissing, Blame::Infrastructure),
            (ErrorCode::QemuDied, Blame::Infrastructure),
            (ErrorCode::DestinationUnreachable, Blame::Infrastructure),
            (ErrorCode::NoQuorum, Blame::Infrastructure),
            (ErrorCode::PartyCrashed, Blame::Infrastructure),
            (ErrorCode::CaseTimeout, Blame::Deadline),
            (ErrorCode::Cancelled, Blame::User),
            (ErrorCode::CannotRunHere, Blame::NotApplicable),
        ] {
            assert_eq!(blame(code), wanted, "{code}");
        }
    }
}
