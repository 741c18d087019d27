//! The multi-host tests of Avocado-VT's provider, run as they are on a lab of its own, as a table.
//!
//! ```text
//! suite [--hosts N] [--json FILE] CFG [FILTER…]
//! ```
//!
//! CFG is `multi_host.cfg` of the provider; it is read between `tests/suite/guest.cfg` and `tests/suite/online-tcp.cfg`. A
//! FILTER keeps the variants that match it. With four hosts each runs on two pairs of them at once. Needs root, QEMU and the programs
//! beside it. Exit code 1: a variant is FAIL or ERROR, one was skipped without a reason, or, where there is no filter, too few
//! passed.

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use vt_tests::lab::{Lab, vtctl};

const USAGE: &str = "usage: suite [--hosts N] [--json FILE] CFG [FILTER…]";
/// Read before the tests, and behind them.
const AROUND: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/suite/guest.cfg"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/suite/online-tcp.cfg"),
];
/// As many variants of the whole selection pass.
const FLOOR: usize = 36;
/// Verdicts that are no reproach to the product or to us.
const GOOD: [&str; 3] = ["pass", "warn", "skip"];

#[derive(Debug, PartialEq, Eq)]
struct Words {
    hosts: u32,
    json: Option<String>,
    cfg: String,
    filters: Vec<String>,
}

impl Words {
    fn read(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut words = Self { hosts: 2, json: None, cfg: String::new(), filters: Vec::new() };
        while let Some(word) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{word} wants a value"));
            match word.as_str() {
                "--hosts" => words.hosts = value()?.parse::<u32>().context("--hosts wants a number")?.clamp(2, 8),
                "--json" => words.json = Some(value()?),
                _ if word.starts_with('-') => anyhow::bail!(USAGE),
                _ if words.cfg.is_empty() => words.cfg = word,
                _ => words.filters.push(word),
            }
        }
        ensure!(!words.cfg.is_empty(), USAGE);
        Ok(words)
    }

    /// The flags that choose the variants.
    fn selection(&self) -> Vec<&str> {
        let files = [AROUND[0], &self.cfg, AROUND[1]].map(|file| ["-c", file]).concat();
        files.into_iter().chain(self.filters.iter().flat_map(|filter| ["--only", filter])).collect()
    }
}

/// What became of a variant.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    /// What tells it from the others.
    name: String,
    variant: String,
    scenario: String,
    verdict: String,
    /// Why it did not pass, or what a reader should know although it did.
    why: String,
    elapsed_ms: u64,
}

impl Row {
    fn of(case: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let outcomes = case["outcomes"].as_object().into_iter().flatten();
        let mut remarks = outcomes.filter_map(|(_, told)| told["outcome"]["Passed"]["remark"].as_str());
        let why = case["cause"]["title"].as_str().or_else(|| remarks.next()).unwrap_or_default().to_owned();
        Self {
            name: text(&case["name"]),
            variant: text(&case["variant"]),
            scenario: text(&case["scenario"]),
            verdict: text(&case["verdict"]),
            why,
            elapsed_ms: case["elapsed_ms"].as_u64().unwrap_or_default(),
        }
    }

    fn good(&self) -> bool {
        GOOD.contains(&self.verdict.as_str()) && (self.verdict != "skip" || !self.why.is_empty())
    }

    fn json(&self) -> Value {
        let Self { name, variant, scenario, verdict, why, elapsed_ms } = self;
        json!({
            "name": name, "variant": variant, "scenario": scenario, "verdict": verdict, "why": why, "elapsed_ms": elapsed_ms
        })
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let words = Words::read(std::env::args().skip(1))?;
    if !Path::new(&words.cfg).is_file() {
        println!(
            "SKIP: the suite is not here ({} is no file): SUITE=…/multi_host_migration/tests/cfg/multi_host.cfg",
            words.cfg
        );
        return Ok(ExitCode::SUCCESS);
    }
    let good = play(&words)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether everything is as it may be.
fn play(words: &Words) -> anyhow::Result<bool> {
    for recipe in ["minimal", "devices"] {
        vtctl(&["image", "build", "--recipe", recipe, "--if-missing"]).expect(0);
    }
    let begun = Instant::now();
    let lab = Lab::up(words.hosts);
    let results = tempfile::tempdir().context("a folder for the results")?;
    let bundle = results.path().join("job");
    let hosts: Vec<String> = (1..=words.hosts).map(|number| format!("host{number}")).collect();
    let (hosts, folder) = (hosts.join(","), bundle.display().to_string());
    let selection = words.selection();
    let typed = [&["run", "multihost_migration", "-m", &hosts, "-r", &folder][..], &selection].concat();
    println!("vtctl {}", typed.join(" "));
    let ran = lab.vtctl(&typed);
    let text = fs::read_to_string(bundle.join("job.json"))
        .with_context(|| format!("no results; vtctl said\n{}{}", ran.stdout, ran.stderr))?;
    let job: Value = serde_json::from_str(&text).context("job.json")?;
    let mut rows: Vec<Row> = job["cases"].as_array().into_iter().flatten().map(Row::of).collect();
    shorten(&mut rows);
    table(&rows);

    let counts = tally(rows.iter().map(|row| row.verdict.to_uppercase()));
    println!("{} variants in {:.0} s: {}", rows.len(), begun.elapsed().as_secs_f64(), said(&counts));
    // Under its old name rdma would be there twice.
    let all = ["scenario", "parity", "-c", AROUND[0], "-c", &words.cfg, "--no", "x-rdma"];
    let all = lab.json(&all)["counts"].clone();
    let fates: BTreeMap<String, usize> = serde_json::from_value(all).context("counts of the parity")?;
    println!("of all variants of the suite: {}", said(&fates));
    if let Some(file) = &words.json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let document = json!({"schema": "vtmesh/v1/suite", "variants": rows, "counts": counts, "all": fates});
        fs::write(file, format!("{document:#}\n")).with_context(|| file.clone())?;
    }
    let mut good = !rows.is_empty();
    for row in rows.iter().filter(|row| !row.good()) {
        println!("{}: {} {}", row.verdict.to_uppercase(), row.name, row.why);
        good = false;
    }
    if !good {
        println!("{}{}", ran.stdout, ran.stderr);
    }
    let passed = rows.iter().filter(|row| matches!(row.verdict.as_str(), "pass" | "warn")).count();
    if words.filters.is_empty() && passed < FLOOR {
        println!("{passed} variants passed, fewer than {FLOOR}");
        good = false;
    }
    Ok(good)
}

/// Leaves out of the names what all of them have.
fn shorten(rows: &mut [Row]) {
    let parts = |row: &Row| row.name.split('.').map(str::to_owned).collect::<Vec<_>>();
    let Some(first) = rows.first().map(parts) else { return };
    let in_all: Vec<String> =
        first.into_iter().filter(|part| rows.len() > 1 && rows.iter().all(|row| parts(row).contains(part))).collect();
    for row in rows {
        let own: Vec<String> = parts(row).into_iter().filter(|part| !in_all.contains(part)).collect();
        row.name = own.join(".");
    }
}

fn table(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    println!("{:<width$}  VERDICT    TOOK  SCENARIO             WHY", "VARIANT");
    for Row { name, scenario, verdict, why, elapsed_ms, .. } in rows {
        let took = *elapsed_ms as f64 / 1000.0;
        let line = format!("{name:<width$}  {:<8}  {took:>4.0} s  {scenario:<20} {why}", verdict.to_uppercase());
        println!("{}", line.trim_end());
    }
}

fn tally(words: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    words.for_each(|word| *counts.entry(word).or_default() += 1);
    counts
}

fn said(counts: &BTreeMap<String, usize>) -> String {
    counts.iter().map(|(word, count)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, verdict: &str, cause: Value, remark: Value) -> Value {
        json!({
            "name": name, "variant": name, "scenario": "s", "verdict": verdict, "cause": cause, "elapsed_ms": 1500,
            "outcomes": {"host1": {"outcome": {"Passed": {"remark": remark}}}},
        })
    }

    #[test]
    fn words_are_read_and_mistakes_are_named() {
        let read = |text: &str| Words::read(text.split_whitespace().map(str::to_owned));
        let words = read("--hosts 2 a.cfg suspend").unwrap();
        assert_eq!((words.hosts, words.selection()[4..].to_vec()), (2, vec!["-c", AROUND[1], "--only", "suspend"]));
        for text in ["", "--hosts", "--fast a.cfg"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_skip_without_a_reason_and_whatever_failed_is_not_good() {
        let why = json!({"title": "no driver"});
        for (verdict, cause, good) in [
            ("pass", Value::Null, true),
            ("warn", Value::Null, true),
            ("skip", why.clone(), true),
            ("skip", Value::Null, false),
            ("fail", why.clone(), false),
            ("error", why, false),
        ] {
            assert_eq!(Row::of(&case("a", verdict, cause, Value::Null)).good(), good, "{verdict}");
        }
        assert_eq!(Row::of(&case("a", "warn", Value::Null, json!("slow"))).why, "slow");
    }

    #[test]
    fn names_are_as_short_as_they_differ() {
        let rows = ["top.suspend.s3.tcp", "top.cancel.tcp"].map(|name| case(name, "pass", Value::Null, Value::Null));
        let mut rows: Vec<Row> = rows.iter().map(Row::of).collect();
        shorten(&mut rows);
        assert_eq!((rows[0].name.as_str(), rows[1].name.as_str()), ("suspend.s3", "cancel"));
    }
}
