//! Seven broken rules, each in one place, to show that the checks of the model, the simulator and the real faults catch
//! them. A check that stays green under its mutation proves nothing.
//!
//! `VTMESH_MUTATION=move-on-one-vote vtd …` breaks one rule in a whole process; [`while_broken`] breaks it on one thread,
//! for the model and the simulator, which run on one. A release build has none of it: [`Mutation::is_on`] is `false`
//! there at compile time. In a debug build this is the one thing that `State` takes from outside the log, read once
//! and the same for the life of the process.
//!
//! Every call site reads `Mutation::X.is_on()`; there is exactly one for each, and a test counts them.

use std::fmt;

/// A rule that can be broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A destination lets the guest run when everything is loaded, without Move.
    NoMove,
    /// The first vote moves the owner.
    MoveOnOneVote,
    /// A source that has voted lets the guest run again when its time is over, without Abort.
    SourceResumesOnTimeout,
    /// The leader expires a session as soon as it suspects it: no time is left for guards to stop what runs.
    MarginZero,
    /// A barrier is released when one party is still missing.
    BarrierAtNMinusOne,
    /// A fencing number that is over counts as if it were current.
    StaleEpochAccepted,
    /// A source lets the guest run again once it has read that it has moved.
    RunsTwice,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NoMove,
        Self::MoveOnOneVote,
        Self::SourceResumesOnTimeout,
        Self::MarginZero,
        Self::BarrierAtNMinusOne,
        Self::StaleEpochAccepted,
        Self::RunsTwice,
    ];

    /// Its name, as `VTMESH_MUTATION` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoMove => "no-move",
            Self::MoveOnOneVote => "move-on-one-vote",
            Self::SourceResumesOnTimeout => "source-resumes-on-timeout",
            Self::MarginZero => "margin-zero",
            Self::BarrierAtNMinusOne => "barrier-at-n-minus-one",
            Self::StaleEpochAccepted => "stale-epoch-accepted",
            Self::RunsTwice => "runs-twice",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutation| mutation.name() == name)
    }

    /// Whether the rule is broken here.
    #[inline]
    pub fn is_on(self) -> bool {
        active() == Some(self)
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(not(debug_assertions))]
#[inline]
/// The rule that is broken here: none, in a release build.
pub fn active() -> Option<Mutation> {
    None
}

#[cfg(debug_assertions)]
pub use broken::{active, while_broken};

#[cfg(debug_assertions)]
mod broken {
    use std::{cell::Cell, sync::OnceLock};

    use super::Mutation;

    /// The variable that breaks a rule in a whole process.
    const VARIABLE: &str = "VTMESH_MUTATION";

    thread_local! {
        static HERE: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// The rule that is broken on this thread, or in this process.
    ///
    /// # Panics
    /// `VTMESH_MUTATION` names none: a check must not pass for a spelling mistake.
    pub fn active() -> Option<Mutation> {
        static PROCESS: OnceLock<Option<Mutation>> = OnceLock::new();
        let process = || {
            let name = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty())?;
            let known = Mutation::ALL.map(Mutation::name).join(", ");
            Some(Mutation::named(&name).unwrap_or_else(|| panic!("{VARIABLE}={name} is none of {known}")))
        };
        HERE.get().or_else(|| *PROCESS.get_or_init(process))
    }

    /// Breaks a rule on this thread while `what` runs.
    pub fn while_broken<T>(mutation: Mutation, what: impl FnOnce() -> T) -> T {
        /// Also where `what` panics.
        struct Mend(Option<Mutation>);
        impl Drop for Mend {
            fn drop(&mut self) {
                HERE.set(self.0);
            }
        }
        let _mend = Mend(HERE.replace(Some(mutation)));
        what()
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_broken_on_one_thread_and_only_meanwhile() {
        assert_eq!(active(), None);
        while_broken(Mutation::NoMove, || {
            assert!(Mutation::NoMove.is_on() && !Mutation::MarginZero.is_on());
            std::thread::scope(|scope| scope.spawn(|| assert_eq!(active(), None)).join().unwrap());
        });
        let caught = std::panic::catch_unwind(|| while_broken(Mutation::NoMove, || panic!("within")));
        assert!(caught.is_err());
        assert_eq!(active(), None);
    }

    #[test]
    fn names_lead_back() {
        for mutation in Mutation::ALL {
            assert_eq!(Mutation::named(mutation.name()), Some(mutation));
        }
    }
}
