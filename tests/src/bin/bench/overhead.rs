//! What a move costs beyond QEMU's own work: from the party's call to the destination's RESUME, less the time QEMU says
//! that it took. The destination listens already, here and at the bare peer.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vt_tests::lab::Lab;

use crate::{bare, figures::Figure};

/// One move.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Move {
    /// Call to RESUME.
    pub(crate) wall_ms: f64,
    /// QEMU's own `total-time`.
    pub(crate) total_ms: f64,
    /// QEMU's own downtime.
    pub(crate) down_ms: f64,
    /// Named parts of `wall_ms`, where they are known.
    pub(crate) parts_ms: Vec<(String, f64)>,
}

impl Move {
    pub(crate) fn overhead_ms(&self) -> f64 {
        self.wall_ms - self.total_ms
    }
}

/// Moves a guest there and back `rounds` times by the scenario, and as often by hand.
pub(crate) fn measure(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Figure>> {
    let results = tempfile::tempdir()?;
    let bundle = results.path().join("job");
    let directory = bundle.to_str().context("a temporary path is text")?;
    let count = format!("migrate_count={rounds}");
    let hosts = "host1,host2";
    let ran = lab.vtctl(&["run", "multihost_migration", "-m", hosts, "-p", &count, "-r", directory]);
    ensure!(ran.code == 0, "the scenario did not pass:\n{}\n{}", ran.stdout, ran.stderr);
    let job = serde_json::from_slice(&fs::read(bundle.join("job.json")).context("job.json of the run")?)?;
    let ours = moves(&job)?;
    let words = command(&bundle, "multihost_migration")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let bare = runtime.block_on(bare::measure(lab, &words, ours.len()))?;
    Ok(figures(&ours, &bare))
}

/// The command line of the first QEMU of the only case: a word a line, the program first.
pub(crate) fn command(bundle: &Path, scenario: &str) -> anyhow::Result<Vec<String>> {
    let path = bundle.join(format!("cases/0001-{scenario}/host1/vm1/start/qemu.command"));
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The moves in a job.json. Pure.
pub(crate) fn moves(job: &Value) -> anyhow::Result<Vec<Move>> {
    let rows = job["cases"][0]["migrations"].as_array().context("job.json has migrations")?;
    ensure!(!rows.is_empty(), "job.json has no migration");
    let number = |row: &Value, key: &str| row[key].as_f64().with_context(|| format!("a migration has {key}: {row}"));
    let read = |row: &Value| {
        let parts = row["parts_ms"].as_array().into_iter().flatten();
        let parts = parts.filter_map(|part| Some((part[0].as_str()?.to_owned(), part[1].as_f64()?)));
        Ok(Move {
            wall_ms: number(row, "wall_ms")?,
            total_ms: number(row, "total_ms")?,
            down_ms: number(row, "qemu_downtime_ms")?,
            parts_ms: parts.collect(),
        })
    };
    rows.iter().map(read).collect()
}

/// What is shown of them. Pure.
fn figures(ours: &[Move], bare: &[Move]) -> Vec<Figure> {
    let all = |moves: &[Move], of: fn(&Move) -> f64| moves.iter().map(of).collect::<Vec<f64>>();
    let compared = |name: &str, floor: Option<f64>, of: fn(&Move) -> f64| {
        let peer = Figure { values: all(bare, of), ..Figure::new("", None) };
        Figure {
            values: all(ours, of),
            peer: peer.percentile(50.0).map(|value| ("bare QMP".to_owned(), value)),
            ..Figure::new(name, floor)
        }
    };
    let mut figures = vec![
        compared("a move, call to RESUME less QEMU's total-time, ms", Some(50.0), Move::overhead_ms),
        Figure { values: all(bare, Move::overhead_ms), ..Figure::new("  the same by a bare QMP exchange, ms", None) },
        compared("a move, call to RESUME, ms", None, |m| m.wall_ms),
        compared("a move, QEMU's total-time, ms", None, |m| m.total_ms),
    ];
    for (place, (name, _)) in ours.first().map_or(&[][..], |first| &first.parts_ms).iter().enumerate() {
        let values = ours.iter().filter_map(|m| m.parts_ms.get(place)).map(|(_, ms)| *ms).collect();
        figures.push(Figure { values, ..Figure::new(format!("  of it: {name}, ms"), None) });
    }
    figures
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moves_are_read_from_job_json_and_overhead_is_what_qemu_did_not_take() {
        let row = json!({"wall_ms": 1030.5, "total_ms": 1000, "qemu_downtime_ms": 7, "parts_ms": [["start", 4.0], ["resume", 2.5]]});
        let found = moves(&json!({"cases": [{"migrations": [row]}]})).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].overhead_ms(), 30.5);
        assert_eq!(found[0].parts_ms[1], ("resume".to_owned(), 2.5));
    }

    #[test]
    fn a_job_without_figures_is_an_error_and_no_zero() {
        assert!(moves(&json!({"cases": []})).is_err());
        assert!(moves(&json!({"cases": [{"migrations": []}]})).is_err());
        assert!(moves(&json!({"cases": [{"migrations": [{"wall_ms": 3.0}]}]})).is_err());
    }

    #[test]
    fn the_floor_is_on_the_overhead_and_the_peer_is_its_median() {
        let moved = |wall_ms: f64| Move {
            wall_ms,
            total_ms: 1000.0,
            down_ms: 5.0,
            parts_ms: vec![("start".into(), wall_ms - 1000.0)],
        };
        let shown = figures(&[moved(1060.0), moved(1040.0), moved(1020.0)], &[moved(1010.0)]);
        assert_eq!(shown[0].percentile(50.0), Some(40.0));
        assert_eq!(shown[0].peer, Some(("bare QMP".to_owned(), 10.0)));
        assert!(shown[0].kept() && shown[0].line().contains("4.00 × bare QMP"), "{}", shown[0].line());
        assert!(!figures(&[moved(1051.0)], &[moved(1010.0)])[0].kept());
        assert_eq!(shown.last().unwrap().percentile(95.0), Some(60.0));
    }
}
