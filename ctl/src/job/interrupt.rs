//! What Ctrl-C means while a job is watched. Pure: the clock and the keys are handed in.

use std::time::{Duration, Instant};

/// A second Ctrl-C within this time leaves at once.
pub const TWICE: Duration = Duration::from_secs(2);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask: detach, cancel, or go on.
    Ask,
    /// Cancel the job and wait for its end.
    Cancel,
    /// Leave; the job goes on.
    Detach,
    /// Nothing.
    GoOn,
}

/// Remembers what was pressed.
#[derive(Debug)]
pub struct Interrupts {
    interactive: bool,
    last: Option<Instant>,
    asking: bool,
}

impl Interrupts {
    /// `interactive`: there is somebody who can answer a question.
    pub fn new(interactive: bool) -> Self {
        Self { interactive, last: None, asking: false }
    }

    /// Ctrl-C, or SIGTERM, came at `now`.
    pub fn pressed(&mut self, now: Instant) -> Action {
        let again = self.last.is_some_and(|last| now.saturating_duration_since(last) <= TWICE);
        self.last = Some(now);
        if again || self.asking {
            return Action::Detach;
        }
        if self.interactive {
            self.asking = true;
            Action::Ask
        } else {
            Action::Cancel
        }
    }

    /// Whether a question is open.
    pub fn asking(&self) -> bool {
        self.asking
    }

    /// A line was typed as the answer; `None`: the terminal went away.
    pub fn answered(&mut self, line: Option<&str>) -> Action {
        if !std::mem::take(&mut self.asking) {
            return Action::GoOn;
        }
        match line.map(|line| line.trim().to_lowercase()) {
            None => Action::Detach,
            Some(line) if line.starts_with('d') => Action::Detach,
            Some(line) if line.starts_with('c') => Action::Cancel,
            // The safe answer: nothing is ended by a key that was hit by chance.
            Some(_) => Action::GoOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_the_first_cancels_and_a_second_within_two_seconds_detaches() {
        let start = Instant::now();
        let mut keys = Interrupts::new(false);
        assert_eq!(keys.pressed(start), Action::Cancel);
        assert_eq!(keys.pressed(start + TWICE), Action::Detach);
        let mut keys = Interrupts::new(false);
        assert_eq!(keys.pressed(start), Action::Cancel);
        assert_eq!(keys.pressed(start + TWICE + Duration::from_millis(1)), Action::Cancel);
    }

    #[test]
    fn on_a_terminal_the_first_asks_and_the_answer_decides() {
        for (line, action) in [
            (Some("d\n"), Action::Detach),
            (Some("Cancel"), Action::Cancel),
            (Some("g"), Action::GoOn),
            (Some(""), Action::GoOn),
            (Some("x"), Action::GoOn),
            (None, Action::Detach),
        ] {
            let mut keys = Interrupts::new(true);
            assert_eq!(keys.pressed(Instant::now()), Action::Ask);
            assert!(keys.asking());
            assert_eq!(keys.answered(line), action, "{line:?}");
            assert!(!keys.asking());
        }
    }

    #[test]
    fn ctrl_c_at_the_question_detaches_however_long_it_took() {
        let start = Instant::now();
        let mut keys = Interrupts::new(true);
        keys.pressed(start);
        assert_eq!(keys.pressed(start + Duration::from_secs(60)), Action::Detach);
    }

    #[test]
    fn an_answer_that_nobody_asked_for_does_nothing() {
        assert_eq!(Interrupts::new(true).answered(Some("c")), Action::GoOn);
    }
}
