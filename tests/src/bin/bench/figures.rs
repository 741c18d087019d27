//! A figure: what was measured, its values, and the floor it has to keep.

/// One figure of the bench.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// What was measured, with its unit.
    pub(crate) name: String,
    /// What it is compared with, as a ratio where there is a peer.
    pub(crate) peer: Option<(String, f64)>,
    /// Measured values.
    pub(crate) values: Vec<f64>,
    /// The most that the median may be.
    pub(crate) floor: Option<f64>,
}

impl Figure {
    /// A figure without values yet.
    pub(crate) fn new(name: impl Into<String>, floor: Option<f64>) -> Self {
        Self { name: name.into(), peer: None, values: Vec::new(), floor }
    }

    /// The value below which `percent` of the values lie: always a measured one.
    pub(crate) fn percentile(&self, percent: f64) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
    }

    /// Whether the median keeps the floor. A floor that was not measured is missed.
    pub(crate) fn kept(&self) -> bool {
        match (self.floor, self.percentile(50.0)) {
            (None, _) => true,
            (Some(floor), Some(median)) => median <= floor,
            (Some(_), None) => false,
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let shown = |value: Option<f64>| value.map_or_else(|| "not measured".to_owned(), |v| format!("{v:.2}"));
        let mut line = format!(
            "{:<58} median {:>8}  p95 {:>8}  p99 {:>8}  n {}",
            self.name,
            shown(self.percentile(50.0)),
            shown(self.percentile(95.0)),
            shown(self.percentile(99.0)),
            self.values.len()
        );
        if let (Some((peer, value)), Some(median)) = (&self.peer, self.percentile(50.0))
            && *value > 0.0
        {
            line += &format!("  {:.2} × {peer}", median / value);
        }
        if let Some(floor) = self.floor {
            line += &format!("  floor {floor:.2} {}", if self.kept() { "kept" } else { "MISSED" });
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_95th_percentile_are_measured_values() {
        let figure = Figure { values: (1..=20).map(f64::from).collect(), ..Figure::new("x", Some(10.0)) };
        assert_eq!(figure.percentile(50.0), Some(10.0));
        assert_eq!(figure.percentile(95.0), Some(19.0));
        assert!(figure.kept());
    }

    #[test]
    fn a_floor_that_was_not_measured_is_missed() {
        assert!(!Figure::new("x", Some(1.0)).kept());
        assert!(Figure::new("x", None).kept());
    }
}
