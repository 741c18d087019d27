//! The matrix of ways in which a VM moves, on labs of its own, as a table.
//!
//! ```text
//! matrix [--hosts N] [--rounds N] [--json FILE] [WAY…]
//! matrix --versions DIR [WAY…]
//! ```
//!
//! A WAY is a name of `vtctl run migration_matrix -p ways=…`, or `all`, `modes`, `sample` or `cancels`. None: all of them,
//! and some between hosts that share no storage, where the disk is copied with the VM. With `--versions` it is the table of
//! [`versions`], kept in DIR; none: `modes`. Needs root, QEMU and the programs beside it.
//! Exit code 1: a cell is FAIL or ERROR or was skipped without a good reason, or too few passed.

mod versions;

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode, time::Instant};

use anyhow::Context as _;
use serde_json::Value;
use vt_tests::lab::{Lab, vtctl};

const USAGE: &str = "usage: matrix [--hosts N] [--rounds N] [--json FILE] | [--versions DIR]  [WAY…]";
/// Ways in which the disk is copied as well.
const WITH_DISK: &str = "tcp tcp-offline tls mesh multifd xbzrle auto-converge";
/// The image that was built, for hosts that share none.
const TINY: &str = "/var/lib/vtmesh/images/tiny";
/// As many cells of the whole matrix pass.
const FLOOR: usize = 40;
const HEADERS: [&str; 9] = ["WAY", "FATE", "TOTAL", "QEMU", "+BEYOND", "GUEST", "NETWORK", "MB/S", "WHY"];

#[derive(Debug, PartialEq, Eq)]
struct Words {
    hosts: u32,
    rounds: u32,
    json: Option<String>,
    versions: Option<String>,
    ways: Vec<String>,
}

fn parse(arguments: &[String]) -> Result<Words, String> {
    let mut words = Words { hosts: 2, rounds: 1, json: None, versions: None, ways: Vec::new() };
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        let mut value = || rest.next().cloned().ok_or_else(|| format!("{word} wants a value"));
        let number = |text: String| text.parse::<u32>().map_err(|_| format!("{word} wants a number, not {text:?}"));
        match word.as_str() {
            "--hosts" => words.hosts = number(value()?)?.clamp(2, 9),
            "--rounds" => words.rounds = number(value()?)?.clamp(1, 1000),
            "--json" => words.json = Some(value()?),
            "--versions" => words.versions = Some(value()?),
            word if word.starts_with('-') => return Err(USAGE.to_owned()),
            way => words.ways.push(way.to_owned()),
        }
    }
    Ok(words)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words = match parse(&arguments) {
        Ok(words) => words,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match play(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("matrix: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Whether every cell is as it may be.
fn play(words: &Words) -> anyhow::Result<bool> {
    vtctl(&["image", "build", "--if-missing"]).expect(0);
    if let Some(results) = &words.versions {
        let ways = if words.ways.is_empty() { "modes".to_owned() } else { words.ways.join(" ") };
        return versions::play(&ways, Path::new(results));
    }
    let begun = Instant::now();
    let all = words.ways.is_empty() || words.ways == ["all"];
    let ways = if all { "all".to_owned() } else { words.ways.join(" ") };
    let (mut cells, mut good) = walk(&Lab::up(words.hosts), words, &ways)?;
    if all {
        let lab = Lab::up_separate(words.hosts);
        lab.vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
        let (copied, went) = walk(&lab, words, WITH_DISK)?;
        cells.extend(copied.into_iter().map(|mut cell| {
            cell["way"] = format!("{} + disk", cell["way"].as_str().unwrap_or_default()).into();
            cell
        }));
        good &= went;
    }
    table(&cells);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for cell in &cells {
        *counts.entry(cell["fate"].as_str().unwrap_or("?")).or_default() += 1;
    }
    let said: Vec<String> = counts.iter().map(|(fate, count)| format!("{count} {fate}")).collect();
    println!("{} cells in {:.0} s: {}", cells.len(), begun.elapsed().as_secs_f64(), said.join(", "));
    if let Some(file) = &words.json {
        fs::write(file, serde_json::to_vec_pretty(&cells)?).with_context(|| file.clone())?;
    }
    let passed = counts.get("PASS").copied().unwrap_or(0);
    for cell in cells.iter().filter(|cell| cell["fate"] == "SKIP" && !is_good_skip(cell)) {
        println!("skipped for a reason that does not count: {cell}");
        good = false;
    }
    if all && passed < FLOOR {
        println!("{passed} cells passed, fewer than {FLOOR}");
        good = false;
    }
    Ok(good && !cells.is_empty())
}

/// One guest through these ways, in a lab of shared or separate pools.
fn walk(lab: &Lab, words: &Words, ways: &str) -> anyhow::Result<(Vec<Value>, bool)> {
    let results = tempfile::tempdir().context("a folder for the results")?;
    let bundle = results.path().join("job");
    let params = [format!("ways={ways}"), format!("migrate_count={}", words.rounds)];
    Walk { lab, hosts: words.hosts, backend: "qmp", params: &params, bundle: &bundle }.go()
}

/// A guest that is sent through ways.
struct Walk<'a> {
    lab: &'a Lab,
    hosts: u32,
    backend: &'a str,
    params: &'a [String],
    /// Where the evidence of its job goes.
    bundle: &'a Path,
}

impl Walk<'_> {
    /// What each cell kept, and whether none was FAIL or ERROR.
    fn go(self) -> anyhow::Result<(Vec<Value>, bool)> {
        let hosts: Vec<String> = (1..=self.hosts).map(|number| format!("host{number}")).collect();
        let (hosts, bundle) = (hosts.join(","), self.bundle.display().to_string());
        let mut typed = vec!["run", "migration_matrix", "-m", &hosts, "-r", &bundle, "--backend", self.backend];
        typed.extend(["--case-timeout", "6h", "-p", "mem=128M"]);
        typed.extend(self.params.iter().flat_map(|param| ["-p", param.as_str()]));
        let ran = self.lab.vtctl(&typed);
        let text = fs::read_to_string(self.bundle.join("job.json"))
            .with_context(|| format!("no results; vtctl said\n{}{}", ran.stdout, ran.stderr))?;
        let job: Value = serde_json::from_str(&text).context("job.json")?;
        let case = &job["cases"][0];
        let checks = case["checks"].as_object().cloned().unwrap_or_default();
        let mut cells: Vec<Value> = checks.into_values().filter(|check| check["cell"].is_u64()).collect();
        cells.sort_by_key(|cell| cell["cell"].as_u64());
        let passed = case["verdict"] == "pass";
        if !passed {
            println!("{}{}", ran.stdout, ran.stderr);
        }
        Ok((cells, passed))
    }
}

/// Whether a cell was skipped for want of RDMA, of a QEMU that knows files, or of a capability that is not in the list which that side's QEMU gave.
fn is_good_skip(cell: &Value) -> bool {
    let why = cell["why"].as_str().unwrap_or_default();
    // Of a host that lacks it, or a QEMU whose version says it.
    let known = ["there is no RDMA device", "cannot migrate by a file", "libvirt may lock"];
    if known.iter().any(|words| why.contains(words)) {
        return true;
    }
    let Some(name) = why.strip_prefix("migration capability ").and_then(|rest| rest.split(' ').next()) else {
        return false;
    };
    let Some(side) = why.rsplit(' ').next() else { return false };
    let quoted = format!("query-migrate-capabilities of the {side}");
    let evidence = cell["evidence"].as_array().into_iter().flatten();
    let mut list = evidence.filter(|pair| pair[0] == quoted.as_str()).filter_map(|pair| pair[1].as_str());
    list.next().is_some_and(|list| !list.split(' ').any(|known| known == name))
}

fn table(cells: &[Value]) {
    let rows: Vec<[String; 9]> = std::iter::once(HEADERS.map(str::to_owned)).chain(cells.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADERS.len()).map(width).collect();
    for row in &rows {
        let words: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (word, width))| match column {
                2..=7 => format!("{word:>width$}"),
                _ => format!("{word:<width$}"),
            })
            .collect();
        println!("{}", words.join("  ").trim_end());
    }
}

/// Times in ms; `≠` where the figures of downtime disagree.
fn row(cell: &Value) -> [String; 9] {
    let number = |value: &Value| value.as_f64().map_or_else(|| "–".to_owned(), |number| format!("{number:.0}"));
    let down = &cell["downtime"];
    let mark = if down["disagree"] == true { "≠" } else { "" };
    let rate = cell["bytes_s"].as_f64().map_or_else(|| "–".to_owned(), |rate| format!("{:.1}", rate / 1e6));
    [
        cell["way"].as_str().unwrap_or_default().to_owned(),
        cell["fate"].as_str().unwrap_or_default().to_owned(),
        number(&cell["total_ms"]),
        number(&down["qemu_ms"]),
        number(&down["beyond_ms"]),
        number(&down["guest_ms"]),
        format!("{}{mark}", number(&down["network_ms"])),
        rate,
        cell["why"].as_str().unwrap_or_default().to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_are_read_and_others_refused() {
        let words = |text: &str| parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(
            words("--hosts 3 tcp tls"),
            Ok(Words { hosts: 3, rounds: 1, json: None, versions: None, ways: vec!["tcp".into(), "tls".into()] })
        );
        assert!(words("--fast").is_err() && words("--rounds many").is_err() && words("--json").is_err());
    }

    #[test]
    fn a_skip_counts_only_where_the_side_itself_says_what_it_has() {
        let cell = |list: &str| {
            json!({
                "why": "migration capability compress is not known to QEMU of the source",
                "evidence": [["difference", "…"], ["query-migrate-capabilities of the source", list]],
            })
        };
        assert!(is_good_skip(&cell("events xbzrle")));
        assert!(!is_good_skip(&cell("compress events")), "it has it");
        assert!(!is_good_skip(&json!({"why": cell("")["why"]})), "nothing is quoted");
        assert!(!is_good_skip(&json!({"why": "the host was busy"})));
        assert!(is_good_skip(
            &json!({"why": "there is no RDMA device (/sys/class/infiniband has none) on the source"})
        ));
    }
}
