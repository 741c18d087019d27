//! What is to be done at which moment of a transfer: pure. The moments come from QEMU's events alone.

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

    /// Those whose moment never came.
    pub(super) fn missed(&self) -> &[(Moment, Intervention)] {
        &self.left
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
        ];
        let mut left = Interventions::new(&all);
        assert_eq!(left.due(Moment::Setup), []);
        assert_eq!(left.due(Moment::Active), [all[1].clone()]);
        assert_eq!(left.due(Moment::Active), [], "once");
        assert_eq!(left.due(Moment::Pass(1)), []);
        assert_eq!(left.due(Moment::Pass(3)), [all[0].clone()], "a missed pass counts as seen");
        assert_eq!(left.missed(), [all[2].clone()]);
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
