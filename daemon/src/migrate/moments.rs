//! What is to be done at which moment of a transfer: pure. The moments come from QEMU's events alone, but for the one at which
//! its readings say that it is stalled.

use serde_json::Value;
use vt_protocol::vm::{Intervention, Moment};

use crate::qemu::qmp::{Event, MigrationStatus};

/// Interventions of one transfer that are still to be made.
#[derive(Debug, Clone, Default)]
pub(super) struct Interventions {
    left: Vec<(Moment, Intervention)>,
}

impl Interventions {
    pub(super) fn new(all: &[(Moment, Intervention)]) -> Self {
        Self { left: all.to_vec() }
    }

    /// What is due now that `moment` is there, in order, each once. A pass that was missed counts as seen with the next.
    pub(super) fn due(&mut self, moment: Moment) -> Vec<(Moment, Intervention)> {
        let is_due = |wanted: Moment| match (wanted, moment) {
            (Moment::Pass(wanted), Moment::Pass(seen)) => seen >= wanted,
            (wanted, seen) => wanted == seen,
        };
        let (due, left) = std::mem::take(&mut self.left).into_iter().partition(|(wanted, _)| is_due(*wanted));
        self.left = left;
        due
    }

    /// Whether something is to be done at a moment.
    pub(super) fn await_moment(&self, moment: Moment) -> bool {
        self.left.iter().any(|(wanted, _)| *wanted == moment)
    }

    /// Those whose moment should have come and did not. A transfer that is never stalled is as it should be.
    pub(super) fn missed(&self) -> impl Iterator<Item = &(Moment, Intervention)> {
        self.left.iter().filter(|(moment, _)| *moment != Moment::Stalled)
    }
}

/// The moment that an event of the monitor is.
pub(super) fn moment(event: &Event) -> Option<Moment> {
    match event.name.as_str() {
        "MIGRATION_PASS" => {
            let pass = event.data.get("pass").and_then(Value::as_u64)?;
            Some(Moment::Pass(u32::try_from(pass).unwrap_or(u32::MAX)))
        }
        "MIGRATION" => match event.text("status").unwrap_or_default().into() {
            MigrationStatus::Setup => Some(Moment::Setup),
            MigrationStatus::Active => Some(Moment::Active),
            MigrationStatus::PreSwitchover => Some(Moment::PreSwitchover),
            MigrationStatus::Device => Some(Moment::Device),
            MigrationStatus::PostcopyActive => Some(Moment::PostcopyActive),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: Value) -> Event {
        Event { name: name.to_owned(), data, timestamp_us: None, received: std::time::Instant::now() }
    }

    #[test]
    fn each_is_due_once_at_its_moment() {
        let all = [
            (Moment::Pass(2), Intervention::Postcopy),
            (Moment::Active, Intervention::Stop),
            (Moment::Pass(4), Intervention::Cancel),
            (Moment::Stalled, Intervention::Postcopy),
        ];
        let mut left = Interventions::new(&all);
        assert_eq!(left.due(Moment::Setup), []);
        assert_eq!(left.due(Moment::Active), [all[1].clone()]);
        assert_eq!(left.due(Moment::Active), [], "once");
        assert_eq!(left.due(Moment::Pass(1)), []);
        assert_eq!(left.due(Moment::Pass(3)), [all[0].clone()], "a missed pass counts as seen");
        assert!(left.await_moment(Moment::Stalled));
        assert_eq!(left.missed().collect::<Vec<_>>(), [&all[2]], "that it never stalled is nothing that was missed");
        assert_eq!(left.due(Moment::Stalled), [all[3].clone()]);
    }

    #[test]
    fn events_are_moments() {
        let status = |word: &str| moment(&event("MIGRATION", json!({ "status": word })));
        assert_eq!(status("setup"), Some(Moment::Setup));
        assert_eq!(status("postcopy-active"), Some(Moment::PostcopyActive));
        assert_eq!(status("completed"), None);
        assert_eq!(status("teleporting"), None);
        assert_eq!(moment(&event("MIGRATION_PASS", json!({ "pass": 3 }))), Some(Moment::Pass(3)));
        assert_eq!(moment(&event("MIGRATION_PASS", json!({ "pass": "x" }))), None);
        assert_eq!(moment(&event("RESUME", Value::Null)), None);
    }
}
