//! A case has one terminal verdict: once it is there it stays, and it fits how the parties ended.
//!
//! A verdict that changes after somebody has read it is worse than none. The first cause in log order decides (design
//! 6.6), a pass needs every party's pass, and a case is judged exactly when its last party has ended or was fenced.

use vt_protocol::{
    ids::AttemptId,
    verdict::{Outcome, Verdict},
};
use vt_sync::state::{CaseState, JobState, PartyState};

use super::{Invariant, Seen};

/// The rule.
#[derive(Debug)]
pub struct OneVerdict;

impl Invariant for OneVerdict {
    fn rule(&self) -> &'static str {
        "one terminal verdict per case"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Entry { before, after, .. } = seen else { return Ok(()) };
        for (job_id, job) in &after.jobs {
            if (job.state == JobState::Done) != (job.open_cases() == 0) {
                return Err(format!("{job_id} is done and open at once"));
            }
            for (id, case) in job.cases() {
                if let Some(old) = before.case(id)
                    && matches!(old.state, CaseState::Done { .. })
                    && old.state != case.state
                {
                    return Err(format!("{id} was {:?} and is {:?}", old.state, case.state));
                }
                match &case.state {
                    CaseState::Running { attempt } if !after.attempts.contains_key(attempt) => {
                        return Err(format!("{id} runs without an attempt"));
                    }
                    CaseState::Done { verdict: Verdict::Pass | Verdict::Warn, .. } => {
                        let attempt = AttemptId { case: id, number: case.attempts };
                        let all_passed = after.attempt(attempt).is_none_or(|attempt| {
                            attempt.parties.values().all(|p| matches!(p, PartyState::Ended(Outcome::Passed { .. })))
                        });
                        if !all_passed {
                            return Err(format!("{id} passed and a party did not"));
                        }
                    }
                    _ => {}
                }
            }
        }
        for (id, attempt) in &after.attempts {
            if attempt.parties.values().all(|party| *party != PartyState::Running) {
                return Err(format!("every party of {id} has ended and it was not judged"));
            }
            if after.case(id.case).and_then(|case| case.running()) != Some(*id) {
                return Err(format!("the case of {id} does not know of it"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn a_verdict_that_changes_or_does_not_fit_is_noticed() {
        let failed = judged(Verdict::Error);
        assert_eq!(entry(&mut OneVerdict, &owned_by(1), &failed), Ok(()));
        assert!(entry(&mut OneVerdict, &failed, &judged(Verdict::Fail)).unwrap_err().contains("was Done"));
        assert!(entry(&mut OneVerdict, &owned_by(1), &judged(Verdict::Pass)).unwrap_err().contains("did not"));
    }
}
