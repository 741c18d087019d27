//! What carries a VM, compared in one run: what each transport costs beyond QEMU's own work, against a bare QMP exchange;
//! how fast each is, against plain tcp and against a raw connection between the same two hosts; what the readings of a
//! transfer cost.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tempfile::TempDir;
use vt_tests::lab::Lab;

use crate::{
    bare,
    figures::Figure,
    overhead::{self, Move},
    raw,
};

/// Transports whose cost is compared, as `migration_matrix` calls them.
const CARRIED: [&str; 7] = ["tcp", "tcp6", "tls", "mesh", "fd", "exec", "file"];
/// Ways whose throughput is compared.
const FAST: [&str; 6] = ["tcp", "multifd-4", "tls", "multifd-tls", "mesh", "multifd-mesh"];
/// What a raw connection is measured with.
const RAW_BYTES: u64 = 2 << 30;
/// For how long the readings of a transfer are looked at, seconds.
const SAMPLED: u64 = 20;

/// Measures everything, each way `rounds` times.
pub(crate) fn measure(rounds: usize) -> anyhow::Result<Vec<Figure>> {
    let lab = Lab::up(2);
    let carried = Walk::done(&lab, &CARRIED, rounds, &["mem=128M"])?;
    let words = overhead::command(&carried.bundle(), "migration_matrix")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let bare = runtime.block_on(bare::measure(&lab, &words, rounds))?;
    let mut figures = costs(&overhead::moves(&carried.job)?, &carried.job, &bare)?;

    // Much that cannot be made smaller, and a bandwidth that QEMU does not keep down.
    let much = ["mem=768M", "mem_probe=320M", "mem_rewrite=0", "mig_speed=20G", "clock_tolerance=60000"];
    let fast = Walk::done(&lab, &FAST, rounds, &much)?;
    let raw = raw::measure(&lab, RAW_BYTES, rounds)?;
    figures.extend(rates(&fast.job, &raw)?);

    let readings = runtime.block_on(bare::readings(&lab, &words, SAMPLED))?;
    figures.push(Figure { values: vec![readings], ..Figure::new("readings at 10 Hz, % of a core", Some(1.0)) });
    Ok(figures)
}

/// A guest that was moved in some ways.
struct Walk {
    results: TempDir,
    job: Value,
}

impl Walk {
    fn done(lab: &Lab, ways: &[&str], rounds: usize, params: &[&str]) -> anyhow::Result<Self> {
        let results = tempfile::tempdir()?;
        let bundle = results.path().join("job");
        let (ways, count) = (format!("ways={}", ways.join(" ")), format!("migrate_count={rounds}"));
        let mut typed = vec!["run", "migration_matrix", "-m", "host1,host2", "-p", &ways, "-p", &count];
        typed.extend(params.iter().flat_map(|param| ["-p", *param]));
        typed.extend(["-r", bundle.to_str().context("a temporary path is text")?]);
        let ran = lab.vtctl(&typed);
        ensure!(ran.code == 0, "the ways were not all passed:\n{}\n{}", ran.stdout, ran.stderr);
        let job = serde_json::from_slice(&fs::read(bundle.join("job.json")).context("job.json of the run")?)?;
        Ok(Self { results, job })
    }

    fn bundle(&self) -> std::path::PathBuf {
        Path::new(self.results.path()).join("job")
    }
}

/// What each transport costs. Pure.
fn costs(moves: &[Move], job: &Value, bare: &[Move]) -> anyhow::Result<Vec<Figure>> {
    let rows = job["cases"][0]["migrations"].as_array().context("job.json has migrations")?;
    let peer = Figure { values: bare.iter().map(Move::overhead_ms).collect(), ..Figure::new("", None) };
    let peer = peer.percentile(50.0).context("a bare move was made")?;
    let of = |transport: &str| {
        let its = moves.iter().zip(rows).filter(|(_, row)| row["how"]["transport"] == transport);
        its.map(|(moved, _)| moved.overhead_ms()).collect::<Vec<f64>>()
    };
    let figures = CARRIED.map(|transport| Figure {
        values: of(transport),
        peer: Some(("bare QMP".to_owned(), peer)),
        ..Figure::new(format!("a move by {transport} less QEMU's total-time, ms"), None)
    });
    let bare = Figure { values: bare.iter().map(Move::overhead_ms).collect(), ..Figure::new("  bare QMP, ms", None) };
    Ok(figures.into_iter().chain([bare]).collect())
}

/// How fast each way is. Pure.
fn rates(job: &Value, raw: &[f64]) -> anyhow::Result<Vec<Figure>> {
    let cells = job["cases"][0]["checks"].as_object().context("job.json has checks")?;
    let of = |way: &str| -> Vec<f64> {
        let its = cells.values().filter(|cell| cell["way"] == way);
        its.filter_map(|cell| cell["bytes_s"].as_f64()).map(|rate| rate / 1e6).collect()
    };
    let figure = |way: &str, peer: Option<(&str, f64)>| Figure {
        values: of(way),
        peer: peer.map(|(name, value)| (name.to_owned(), value)),
        ..Figure::new(format!("RAM by {way}, MB/s"), None)
    };
    let raw = Figure { values: raw.to_vec(), ..Figure::new("a raw connection between the hosts, MB/s", None) };
    let raw_rate = raw.percentile(50.0).context("a raw connection was made")?;
    let tcp = figure("tcp", Some(("raw", raw_rate)));
    let tcp_rate = tcp.percentile(50.0).context("a move by tcp was made")?;
    let rest = FAST[1..].iter().map(|way| match *way {
        "multifd-4" => figure(way, Some(("raw", raw_rate))),
        way => figure(way, Some(("tcp", tcp_rate))),
    });
    Ok([raw, tcp].into_iter().chain(rest).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn costs_are_told_by_transport_and_rates_by_way() {
        let moved = |wall_ms: f64| Move { wall_ms, total_ms: 1000.0, down_ms: 5.0, parts_ms: Vec::new() };
        let job = json!({"cases": [{"migrations": [{"how": {"transport": "tcp"}}, {"how": {"transport": "mesh"}}]}]});
        let shown = costs(&[moved(1010.0), moved(1030.0)], &job, &[moved(1005.0)]).unwrap();
        assert_eq!((shown[0].percentile(50.0), shown[3].percentile(50.0)), (Some(10.0), Some(30.0)));
        assert!(shown[3].line().contains("6.00 × bare QMP"), "{}", shown[3].line());

        let cells = json!({"a": {"way": "tcp", "bytes_s": 5e8}, "b": {"way": "mesh", "bytes_s": 25e7}, "c": {}});
        let shown = rates(&json!({"cases": [{"checks": cells}]}), &[1000.0]).unwrap();
        assert!(shown[1].line().contains("0.50 × raw"), "{}", shown[1].line());
        let mesh = shown.iter().find(|figure| figure.name == "RAM by mesh, MB/s").unwrap();
        assert!(mesh.line().contains("0.50 × tcp"), "{}", mesh.line());
        assert!(rates(&json!({"cases": [{"checks": {}}]}), &[1000.0]).is_err());
    }
}
