//! What the source of a migration does next: pure, by phase and event.
//!
//! ```text
//! Sending ──completed──▶ Voting ──▶ Voted ──Moved──▶ Gone        (the destination runs the VM: quit)
//!   │  └─given up─▶ Cancelling ─┐     └────Aborted──▶ Staying     (run here again)
//!   └──────failed, cancelled────┴─▶ Aborting ─Aborted─▶ Staying
//! ```
//!
//! A migration that has completed cannot be taken back by the source alone: from `Voting` on only the decision in the
//! log counts. Before it, QEMU has already let the guest run on by itself, or will when it is told to.
//!
//! A post-copy is decided earlier: QEMU waits before the switch-over, where the guest stands still and nothing but our
//! word goes on. What follows the decision there is in [`super::postcopy`].

use vt_protocol::error::{ErrorCode, Report};
use vt_sync::mutation::Mutation;

use crate::qemu::qmp::MigrationStatus;

/// Where the source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// QEMU transfers.
    Sending,
    /// QEMU was told to cancel; the reason is kept.
    Cancelling(Box<Report>),
    /// The transfer has completed; the vote is proposed.
    Voting,
    /// The vote is in the log.
    Voted,
    /// The transfer has ended without completing; the abort is proposed.
    Aborting(Box<Report>),
    /// Decided: the VM is the destination's.
    Gone,
    /// Decided: the VM stays.
    Staying(Box<Report>),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// QEMU's migration changed its status.
    Qemu(MigrationStatus),
    /// QEMU ended, and how it says so.
    QemuEnded(Box<Report>),
    /// A post-copy waits before the switch-over: nothing goes on without us.
    PostcopyReady,
    /// QEMU has completed a file, and the file did not reach the destination.
    Undelivered(Box<Report>),
    /// It is to be given up: it has taken as long as it may, or the scenario wants it.
    GiveUp(Box<Report>),
    /// Our vote is in the log, without a decision yet.
    VoteCounted,
    /// Read from committed state: the VM has moved.
    Moved,
    /// Read from committed state: it was aborted, and why.
    Aborted(Box<Report>),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `migrate-continue`: QEMU waits before the switch-over.
    Continue,
    /// `migrate_cancel`.
    Cancel,
    /// Propose our vote.
    Vote,
    /// Propose the abort; QEMU's own words are to be asked for.
    Abort(Box<Report>),
    /// See that the guest runs here.
    RunHere,
    /// Wait until the destination runs it, then quit.
    LetGo,
}

/// The next phase, and what to do on the way.
pub fn step(phase: Phase, event: Event) -> (Phase, Option<Action>) {
    use MigrationStatus as Status;
    match (phase, event) {
        // The log's word ends it, whatever QEMU does meanwhile.
        (Phase::Gone, _) => (Phase::Gone, None),
        (Phase::Staying(why), _) => (Phase::Staying(why), None),
        (Phase::Voting | Phase::Voted, Event::Moved) if Mutation::RunsTwice.is_on() => {
            (Phase::Gone, Some(Action::RunHere))
        }
        (Phase::Voting | Phase::Voted, Event::Moved) => (Phase::Gone, Some(Action::LetGo)),
        // Cannot be, for we have not voted. If the log says so all the same, the log is right and nothing runs here.
        (Phase::Sending | Phase::Cancelling(_) | Phase::Aborting(_), Event::Moved) => {
            (Phase::Gone, Some(Action::LetGo))
        }
        // The other side gave up while QEMU still transfers: stop it first, the guest runs on.
        (Phase::Sending, Event::Aborted(why)) => (Phase::Cancelling(why), Some(Action::Cancel)),
        (Phase::Cancelling(ours), Event::Aborted(_)) => (Phase::Cancelling(ours), None),
        (Phase::Voting | Phase::Voted, Event::Aborted(why)) => (Phase::Staying(why), Some(Action::RunHere)),
        (Phase::Aborting(ours), Event::Aborted(_)) => (Phase::Staying(ours), Some(Action::RunHere)),

        (Phase::Sending, Event::Qemu(Status::Completed)) => (Phase::Voting, Some(Action::Vote)),
        (Phase::Sending, Event::PostcopyReady) => (Phase::Voting, Some(Action::Vote)),
        (Phase::Sending, Event::Qemu(Status::PreSwitchover)) => (Phase::Sending, Some(Action::Continue)),
        (Phase::Sending, Event::Qemu(Status::Failed)) => abort(Report::new(
            ErrorCode::MigrationFailed,
            "QEMU reports that the migration failed; the VM goes on at the source",
        )),
        (Phase::Sending, Event::Qemu(Status::Cancelled)) => {
            abort(Report::new(ErrorCode::MigrationFailed, "QEMU cancelled the migration; the VM goes on at the source"))
        }
        (Phase::Sending, Event::GiveUp(why)) => (Phase::Cancelling(why), Some(Action::Cancel)),

        // It was faster than the cancel: completed is completed, and the vote finds out whether the log agrees.
        (Phase::Cancelling(_), Event::Qemu(Status::Completed)) => (Phase::Voting, Some(Action::Vote)),
        (Phase::Cancelling(why), Event::Qemu(Status::Failed | Status::Cancelled)) => {
            (Phase::Aborting(why.clone()), Some(Action::Abort(why)))
        }

        // Not voted for yet, and nothing is at the destination: the VM goes on from where it was saved.
        (Phase::Sending | Phase::Cancelling(_), Event::Undelivered(why)) => {
            (Phase::Aborting(why.clone()), Some(Action::Abort(why)))
        }
        (Phase::Sending, Event::QemuEnded(why)) => (Phase::Aborting(why.clone()), Some(Action::Abort(why))),
        (Phase::Cancelling(_), Event::QemuEnded(why)) => (Phase::Aborting(why.clone()), Some(Action::Abort(why))),

        (Phase::Voting | Phase::Voted, Event::GiveUp(why)) if Mutation::SourceResumesOnTimeout.is_on() => {
            (Phase::Staying(why), Some(Action::RunHere))
        }
        (Phase::Voting, Event::VoteCounted) => (Phase::Voted, None),
        (phase, _) => (phase, None),
    }
}

fn abort(why: Report) -> (Phase, Option<Action>) {
    (Phase::Aborting(Box::new(why.clone())), Some(Action::Abort(Box::new(why))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(code: ErrorCode) -> Box<Report> {
        Box::new(Report::new(code, "r"))
    }

    fn run(phase: Phase, events: impl IntoIterator<Item = Event>) -> (Phase, Vec<Action>) {
        events.into_iter().fold((phase, Vec::new()), |(phase, mut actions), event| {
            let (phase, action) = step(phase, event);
            actions.extend(action);
            (phase, actions)
        })
    }

    fn q(status: MigrationStatus) -> Event {
        Event::Qemu(status)
    }

    #[test]
    fn a_good_move_votes_once_and_lets_go_after_the_decision() {
        use MigrationStatus::*;
        let events = [q(Setup), q(Active), q(PreSwitchover), q(Device), q(Completed), Event::VoteCounted, Event::Moved];
        let (phase, actions) = run(Phase::Sending, events);
        assert_eq!(phase, Phase::Gone);
        assert_eq!(actions, [Action::Continue, Action::Vote, Action::LetGo]);
    }

    #[test]
    fn the_decision_may_come_before_our_own_vote_is_answered() {
        let (phase, actions) = run(Phase::Sending, [q(MigrationStatus::Completed), Event::Moved, Event::VoteCounted]);
        assert_eq!((phase, actions), (Phase::Gone, vec![Action::Vote, Action::LetGo]));
    }

    #[test]
    fn a_failure_before_completion_aborts_and_the_vm_stays() {
        for status in [MigrationStatus::Failed, MigrationStatus::Cancelled] {
            let (phase, actions) = run(Phase::Sending, [q(status), Event::Aborted(report(ErrorCode::MigrationFailed))]);
            assert!(matches!(phase, Phase::Staying(why) if why.code == ErrorCode::MigrationFailed));
            assert!(matches!(&actions[..], [Action::Abort(_), Action::RunHere]), "{actions:?}");
        }
    }

    #[test]
    fn a_transfer_that_takes_too_long_is_cancelled_and_keeps_its_reason() {
        let events = [
            Event::GiveUp(report(ErrorCode::MigrationTimeout)),
            q(MigrationStatus::Cancelling),
            q(MigrationStatus::Cancelled),
            Event::Aborted(report(ErrorCode::DestinationLeft)),
        ];
        let (phase, actions) = run(Phase::Sending, events);
        assert!(matches!(phase, Phase::Staying(why) if why.code == ErrorCode::MigrationTimeout));
        assert!(matches!(&actions[..], [Action::Cancel, Action::Abort(_), Action::RunHere]), "{actions:?}");
    }

    #[test]
    fn a_completion_that_was_faster_than_the_cancel_is_put_to_the_vote() {
        let start = [Event::GiveUp(report(ErrorCode::MigrationTimeout)), q(MigrationStatus::Completed)];
        let (phase, actions) = run(Phase::Sending, start.clone().into_iter().chain([Event::Moved]));
        assert_eq!((phase, actions), (Phase::Gone, vec![Action::Cancel, Action::Vote, Action::LetGo]));
        let (phase, actions) =
            run(Phase::Sending, start.into_iter().chain([Event::Aborted(report(ErrorCode::HostLost))]));
        assert!(matches!(phase, Phase::Staying(_)));
        assert_eq!(actions, [Action::Cancel, Action::Vote, Action::RunHere]);
    }

    #[test]
    fn a_file_that_was_not_delivered_aborts_and_the_vm_stays() {
        let events = [
            Event::Undelivered(report(ErrorCode::MigrationFailed)),
            Event::Aborted(report(ErrorCode::MigrationFailed)),
        ];
        let (phase, actions) = run(Phase::Sending, events);
        assert!(matches!(phase, Phase::Staying(_)));
        assert!(matches!(&actions[..], [Action::Abort(_), Action::RunHere]), "{actions:?}");
        // Once voted for, it is not the source's to say.
        let (phase, actions) = run(Phase::Voting, [Event::Undelivered(report(ErrorCode::MigrationFailed))]);
        assert_eq!((phase, actions), (Phase::Voting, vec![]));
    }

    #[test]
    fn after_completion_only_the_log_decides() {
        // Every event there is, but the two decisions, changes nothing: neither QEMU's end nor time makes it run.
        let others = [
            q(MigrationStatus::Failed),
            q(MigrationStatus::Cancelled),
            q(MigrationStatus::Completed),
            Event::QemuEnded(report(ErrorCode::QemuDied)),
            Event::GiveUp(report(ErrorCode::MigrationTimeout)),
            Event::VoteCounted,
        ];
        let (phase, actions) = run(Phase::Voting, others.clone());
        assert_eq!((phase.clone(), actions), (Phase::Voted, vec![]));
        let (phase, actions) = run(phase, others);
        assert_eq!((phase, actions), (Phase::Voted, vec![]));
    }

    #[test]
    fn nothing_runs_here_before_the_log_says_aborted_or_after_it_says_moved() {
        let phases = || {
            [
                Phase::Sending,
                Phase::Cancelling(report(ErrorCode::MigrationTimeout)),
                Phase::Voting,
                Phase::Voted,
                Phase::Aborting(report(ErrorCode::MigrationFailed)),
                Phase::Gone,
            ]
        };
        let undecided = || {
            [
                q(MigrationStatus::Active),
                q(MigrationStatus::Completed),
                q(MigrationStatus::Failed),
                q(MigrationStatus::Cancelled),
                q(MigrationStatus::Other("new".into())),
                Event::QemuEnded(report(ErrorCode::QemuDied)),
                Event::GiveUp(report(ErrorCode::MigrationTimeout)),
                Event::VoteCounted,
            ]
        };
        for phase in phases() {
            for event in undecided() {
                let (next, action) = step(phase.clone(), event.clone());
                assert_ne!(action, Some(Action::RunHere), "{phase:?} {event:?}");
                assert_ne!(action, Some(Action::LetGo), "{phase:?} {event:?}");
                // Nothing but the log leads to a decided phase.
                let decided = |p: &Phase| matches!(p, Phase::Gone | Phase::Staying(_));
                assert_eq!(decided(&next), decided(&phase), "{phase:?} {event:?}");
            }
            let (after_moved, _) = step(phase.clone(), Event::Moved);
            assert_eq!(after_moved, Phase::Gone);
            for event in undecided().into_iter().chain([Event::Aborted(report(ErrorCode::HostLost))]) {
                assert_eq!(step(after_moved.clone(), event), (Phase::Gone, None));
            }
        }
    }
}
