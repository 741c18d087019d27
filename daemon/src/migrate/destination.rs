//! What the destination of a migration does next: pure, by phase and event.
//!
//! ```text
//! Receiving ──loaded──▶ Voting ──▶ Voted ──Moved──▶ Running     (`cont`, once)
//!     │                 │ QEMU ended, nothing proposed yet
//!     └─QEMU ended─▶ Broken ─┐        └───Aborted──▶ Down
//!                            └──Aborted─────────────▶ Down
//! ```
//!
//! The guest is let run on exactly one event: `Moved`, read from committed state.

use vt_protocol::error::Report;
use vt_sync::mutation::Mutation;

use crate::qemu::qmp::MigrationStatus;

/// Where the destination is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// QEMU listens or receives.
    Receiving,
    /// Everything is loaded; the vote is proposed.
    Voting,
    /// The vote is in the log.
    Voted,
    /// QEMU ended before our vote. The source notices too and knows more: it is given time to say why.
    Broken(Box<Report>),
    /// Decided: the VM is ours.
    Running,
    /// Decided: it is not.
    Down(Box<Report>),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// QEMU's migration changed its status.
    Qemu(MigrationStatus),
    /// QEMU ended, and how it says so.
    QemuEnded(Box<Report>),
    /// QEMU ended after it had loaded everything and before anything was proposed, and how it says so.
    EndedUnvoted(Box<Report>),
    /// The source has not aborted in time.
    SourceSilent,
    /// A post-copy, and the source has voted: nothing is loaded here yet, and QEMU is ready for it.
    PostcopyReady,
    /// Our vote is in the log, without a decision yet.
    VoteCounted,
    /// Read from committed state: the VM has moved here.
    Moved,
    /// Read from committed state: it was aborted, and why.
    Aborted(Box<Report>),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Propose our vote.
    Vote,
    /// Give the source time to abort.
    AwaitSource,
    /// Propose the abort.
    Abort(Box<Report>),
    /// `cont`.
    Run,
    /// End QEMU.
    TearDown,
}

/// The next phase, and what to do on the way.
pub fn step(phase: Phase, event: Event) -> (Phase, Option<Action>) {
    use MigrationStatus as Status;
    match (phase, event) {
        (Phase::Running, _) => (Phase::Running, None),
        (Phase::Down(why), _) => (Phase::Down(why), None),
        (Phase::Voting | Phase::Voted, Event::Moved) => (Phase::Running, Some(Action::Run)),
        // Without our vote there is no Moved; if the log says so all the same, there is nothing here to be run.
        (Phase::Receiving | Phase::Broken(_), Event::Moved) => {
            let why = Report::new(vt_protocol::error::ErrorCode::VmLost, "the VM moved here before it was loaded");
            (Phase::Down(Box::new(why)), Some(Action::TearDown))
        }
        (_, Event::Aborted(why)) => (Phase::Down(why), Some(Action::TearDown)),

        (Phase::Receiving, Event::Qemu(Status::Completed)) if Mutation::NoMove.is_on() => {
            (Phase::Running, Some(Action::Run))
        }
        (Phase::Receiving, Event::Qemu(Status::Completed)) => (Phase::Voting, Some(Action::Vote)),
        (Phase::Receiving, Event::PostcopyReady) => (Phase::Voting, Some(Action::Vote)),
        (Phase::Receiving, Event::QemuEnded(why)) => (Phase::Broken(why), Some(Action::AwaitSource)),
        // The source has completed and waits for us: nobody but us can say that it is to go on.
        (Phase::Voting, Event::EndedUnvoted(why)) => (Phase::Broken(why.clone()), Some(Action::Abort(why))),
        (Phase::Broken(why), Event::SourceSilent) => (Phase::Broken(why.clone()), Some(Action::Abort(why))),
        (Phase::Voting, Event::VoteCounted) => (Phase::Voted, None),
        (phase, _) => (phase, None),
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::error::ErrorCode;

    use super::*;

    fn report() -> Box<Report> {
        Box::new(Report::new(ErrorCode::DestinationLeft, "r"))
    }

    #[test]
    fn a_good_move_votes_once_and_runs_once() {
        let events = [
            Event::Qemu(MigrationStatus::Active),
            Event::Qemu(MigrationStatus::Completed),
            Event::Qemu(MigrationStatus::Completed),
            Event::VoteCounted,
            Event::Moved,
            Event::Moved,
        ];
        let mut phase = Phase::Receiving;
        let mut actions = Vec::new();
        for event in events {
            let (next, action) = step(phase, event);
            phase = next;
            actions.extend(action);
        }
        assert_eq!((phase, actions), (Phase::Running, vec![Action::Vote, Action::Run]));
    }

    #[test]
    fn it_runs_on_moved_after_loading_and_on_nothing_else() {
        let phases = || {
            [
                Phase::Receiving,
                Phase::Voting,
                Phase::Voted,
                Phase::Broken(report()),
                Phase::Running,
                Phase::Down(report()),
            ]
        };
        let events = || {
            [
                Event::Qemu(MigrationStatus::Completed),
                Event::Qemu(MigrationStatus::Failed),
                Event::QemuEnded(report()),
                Event::SourceSilent,
                Event::VoteCounted,
                Event::Moved,
                Event::Aborted(report()),
            ]
        };
        for phase in phases() {
            for event in events() {
                let (_, action) = step(phase.clone(), event.clone());
                let loaded = matches!(phase, Phase::Voting | Phase::Voted);
                assert_eq!(action == Some(Action::Run), loaded && event == Event::Moved, "{phase:?} {event:?}");
            }
        }
    }

    #[test]
    fn after_its_vote_it_waits_for_the_decision_whatever_happens() {
        for phase in [Phase::Voting, Phase::Voted] {
            for event in [Event::QemuEnded(report()), Event::SourceSilent, Event::Qemu(MigrationStatus::Failed)] {
                let (next, action) = step(phase.clone(), event);
                assert_eq!((next, action), (phase.clone(), None));
            }
        }
    }

    #[test]
    fn one_that_ended_before_its_vote_was_proposed_aborts_and_one_that_has_voted_does_not() {
        let (phase, action) = step(Phase::Voting, Event::EndedUnvoted(report()));
        assert_eq!((phase.clone(), action), (Phase::Broken(report()), Some(Action::Abort(report()))));
        assert_eq!(step(phase, Event::Aborted(report())).1, Some(Action::TearDown));
        assert_eq!(step(Phase::Voted, Event::EndedUnvoted(report())), (Phase::Voted, None));
    }

    #[test]
    fn a_broken_stream_is_the_sources_to_explain_first() {
        let (phase, action) = step(Phase::Receiving, Event::QemuEnded(report()));
        assert_eq!(action, Some(Action::AwaitSource));
        let (same, action) = step(phase.clone(), Event::SourceSilent);
        assert_eq!((same, action), (phase.clone(), Some(Action::Abort(report()))));
        let (down, action) = step(phase, Event::Aborted(report()));
        assert_eq!((down, action), (Phase::Down(report()), Some(Action::TearDown)));
    }
}
