//! What a tester wants of a transfer, as the settings that serve it: `goal = min_downtime`, `min_time`, `must_finish:5m`.
//!
//! A goal sets only what was not set by itself; what it sets is written down with the case. Nothing else happens: a goal
//! does not watch, it is a spec.

use vt_protocol::vm::{Intervention, MigrationSpec, Moment, Transport};

/// Faster than the links there are, bytes/s: QEMU's own bound is made for shared ones.
const FAST: u64 = 10 << 30;

/// A goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The guest stands still as briefly as can be, however long the transfer takes.
    MinDowntime,
    /// The transfer is over as soon as can be.
    MinTime,
    /// It is over within so many seconds, whatever the guest pays for it; else it is cancelled.
    MustFinish(u64),
}

impl std::str::FromStr for Goal {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "min_downtime" => Ok(Self::MinDowntime),
            "min_time" => Ok(Self::MinTime),
            _ => {
                let time = text.strip_prefix("must_finish:").ok_or(())?;
                let (number, unit) = match time.as_bytes().last() {
                    Some(b's') => (&time[..time.len() - 1], 1),
                    Some(b'm') => (&time[..time.len() - 1], 60),
                    Some(b'h') => (&time[..time.len() - 1], 3600),
                    _ => (time, 1),
                };
                let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
                seconds.filter(|seconds| (10..=86_400).contains(seconds)).map(Self::MustFinish).ok_or(())
            }
        }
    }
}

impl Goal {
    /// Sets what serves it, where nothing is set yet, and tells what that was.
    pub(super) fn apply(self, spec: &mut MigrationSpec) -> String {
        let several = matches!(spec.transport, Transport::Tcp | Transport::Tcp6 | Transport::Tls | Transport::Mesh);
        let (capabilities, parameters): (&[&str], &[(&str, u64)]) = match self {
            Self::MinDowntime => (
                &["auto-converge"],
                &[
                    ("max-bandwidth", FAST),
                    ("downtime-limit", 30),
                    ("cpu-throttle-initial", 20),
                    ("cpu-throttle-increment", 10),
                ],
            ),
            Self::MinTime if several && !spec.is_postcopy() => {
                (&["multifd"], &[("max-bandwidth", FAST), ("downtime-limit", 2000), ("multifd-channels", 4)])
            }
            Self::MinTime => (&[], &[("max-bandwidth", FAST), ("downtime-limit", 2000)]),
            Self::MustFinish(_) => (
                &["auto-converge"],
                &[
                    ("max-bandwidth", FAST),
                    ("downtime-limit", 500),
                    ("cpu-throttle-initial", 30),
                    ("cpu-throttle-increment", 20),
                ],
            ),
        };
        let mut set = Vec::new();
        for name in capabilities {
            spec.capabilities.entry((*name).to_owned()).or_insert_with(|| {
                set.push((*name).to_owned());
                true
            });
        }
        for (name, value) in parameters {
            spec.parameters.entry((*name).to_owned()).or_insert_with(|| {
                set.push(format!("{name}={value}"));
                *value
            });
        }
        if let Self::MustFinish(seconds) = self {
            spec.timeout_ms = seconds * 1000;
            set.push(format!("mig_timeout={seconds}"));
            // Passes that do not end it make the guest pay more.
            for (pass, downtime_ms) in [(8, 2000), (16, 10_000)] {
                let more = Intervention::Set([("downtime-limit".to_owned(), downtime_ms)].into());
                spec.interventions.push((Moment::Pass(pass), more));
                set.push(format!("at pass:{pass} downtime-limit={downtime_ms}"));
            }
        }
        set.join(" ")
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MinDowntime => f.write_str("min_downtime"),
            Self::MinTime => f.write_str("min_time"),
            Self::MustFinish(seconds) => write!(f, "must_finish:{seconds}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_settings_and_gives_way_to_what_was_set() {
        let mut spec = MigrationSpec::default();
        spec.parameters.insert("downtime-limit".into(), 7);
        let said = Goal::MinDowntime.apply(&mut spec);
        assert_eq!((spec.parameters["downtime-limit"], spec.wants("auto-converge")), (7, true));
        let fast = format!("auto-converge max-bandwidth={FAST} cpu-throttle-initial=20 cpu-throttle-increment=10");
        assert_eq!(said, fast);

        let mut spec = MigrationSpec { transport: Transport::Exec, ..MigrationSpec::default() };
        Goal::MinTime.apply(&mut spec);
        assert!(!spec.wants("multifd"), "there is one connection");

        let mut spec = MigrationSpec::default();
        let said = Goal::MustFinish(300).apply(&mut spec);
        assert_eq!((spec.timeout_ms, spec.interventions.len()), (300_000, 2));
        assert!(said.ends_with("at pass:16 downtime-limit=10000"), "{said}");
    }

    #[test]
    fn goals_are_read_and_others_refused() {
        for (text, goal) in [
            ("min_time", Goal::MinTime),
            ("must_finish:5m", Goal::MustFinish(300)),
            ("must_finish:90s", Goal::MustFinish(90)),
            ("must_finish:600", Goal::MustFinish(600)),
        ] {
            assert_eq!(text.parse(), Ok(goal), "{text}");
        }
        for text in ["", "fast", "must_finish", "must_finish:", "must_finish:0", "must_finish:5d", "must_finish:99h"] {
            assert_eq!(text.parse::<Goal>(), Err(()), "{text}");
        }
    }
}
