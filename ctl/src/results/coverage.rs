//! Which ways of moving were tried between which QEMUs, by whom, and how that went last: from stored results.
//!
//! A way of `migration_matrix` is a flag of its own. Of other cases each migration counts for its transport and for every
//! capability that it had, with the verdict of its case.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use vt_protocol::error::{ErrorCode, Report};

use super::{junit::escape, trouble};

/// Most jobs that are read.
const JOBS_MAX: usize = 10_000;
/// Longest `job.json` that is read, bytes.
const JOB_MAX: u64 = 256 << 20;
/// The document of a job, in its folder.
const JOB_FILE: &str = "job.json";

/// The last verdicts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    rows: BTreeMap<String, BTreeMap<Pair, Cell>>,
    /// How many jobs were read.
    pub jobs: usize,
}

/// Who moved, and between which QEMUs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    backend: String,
    from: Version,
    to: Version,
}

/// `10.0.2`, which is behind `7.2.22`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Version(Vec<u32>);

impl Version {
    fn read(value: &Value) -> Option<Self> {
        let parts: Result<Vec<u32>, _> = value.as_str()?.split('.').map(str::parse::<u32>).collect();
        parts.ok().map(Self)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("."))
    }
}

/// How it went last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    verdict: String,
    why: Option<String>,
    job: String,
    unix_ms: u64,
}

/// The stored jobs below these folders, and in them, oldest first.
///
/// # Errors
/// A folder cannot be read, or holds no result.
pub fn read(folders: &[PathBuf]) -> Result<Coverage, Report> {
    let mut found = Vec::new();
    for folder in folders {
        let entries = fs::read_dir(folder).map_err(|error| trouble("read", folder, &error))?;
        let below = entries.flatten().map(|entry| entry.path().join(JOB_FILE));
        let files = std::iter::once(folder.join(JOB_FILE)).chain(below).filter(|file| file.is_file());
        found.extend(files.take(JOBS_MAX.saturating_sub(found.len())));
    }
    let mut jobs = found.iter().map(|file| job(file)).collect::<Result<Vec<Value>, Report>>()?;
    if jobs.is_empty() {
        let report = Report::new(ErrorCode::ResultsMissing, format!("no {JOB_FILE} is in these folders"));
        return Err(folders
            .iter()
            .fold(report, |report, folder| report.with("looked in", folder.display().to_string()))
            .help("vtctl run … -r DIR, or vtctl job fetch JOB -r DIR"));
    }
    jobs.sort_by_key(|job| job["submitted_unix_ms"].as_u64());
    Ok(Coverage::of(&jobs))
}

fn job(file: &Path) -> Result<Value, Report> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|open| open.take(JOB_MAX).read_to_end(&mut bytes));
    read.map_err(|error| trouble("read", file, &error))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Report::new(ErrorCode::ResultsMissing, format!("{} is no document of a job", file.display())).caused_by(&error)
    })
}

impl Coverage {
    /// Of these documents, of which a later one counts.
    fn of(jobs: &[Value]) -> Self {
        let mut all = Self { jobs: jobs.len(), ..Self::default() };
        for job in jobs {
            for case in job["cases"].as_array().into_iter().flatten() {
                all.case(job, case);
            }
        }
        all
    }

    fn case(&mut self, job: &Value, case: &Value) {
        let checks = case["checks"].as_object().into_iter().flatten().map(|(_, check)| check);
        let mut cells: Vec<&Value> = checks.filter(|check| check["cell"].is_u64()).collect();
        cells.sort_by_key(|cell| cell["cell"].as_u64());
        for cell in &cells {
            let why = cell["why"].as_str().map(str::to_owned);
            self.put(job, cell, cell["way"].as_str(), cell["fate"].as_str(), why);
        }
        if !cells.is_empty() {
            return;
        }
        let verdict = case["verdict"].as_str().map(str::to_uppercase);
        let why = case["cause"]["title"].as_str().map(str::to_owned);
        for moved in case["migrations"].as_array().into_iter().flatten() {
            let transport = moved["how"]["transport"].as_str();
            let offline = if moved["how"]["offline"] == true { "-offline" } else { "" };
            let transport = transport.map(|transport| format!("{transport}{offline}"));
            let capabilities = moved["capabilities"].as_array().into_iter().flatten();
            for flag in transport.as_deref().into_iter().chain(capabilities.filter_map(Value::as_str)) {
                self.put(job, moved, Some(flag), verdict.as_deref(), why.clone());
            }
        }
    }

    /// Notes how a move went; one that does not say between which QEMUs it was is left out.
    fn put(&mut self, job: &Value, moved: &Value, flag: Option<&str>, verdict: Option<&str>, why: Option<String>) {
        let versions = Version::read(&moved["source_qemu"]).zip(Version::read(&moved["destination_qemu"]));
        let (Some((from, to)), Some(backend)) = (versions, moved["backend"].as_str()) else { return };
        let (Some(flag), Some(verdict)) = (flag, verdict) else { return };
        let cell = Cell {
            verdict: verdict.to_owned(),
            why,
            job: job["id"].as_str().unwrap_or_default().to_owned(),
            unix_ms: job["submitted_unix_ms"].as_u64().unwrap_or_default(),
        };
        self.rows.entry(flag.to_owned()).or_default().insert(Pair { backend: backend.to_owned(), from, to }, cell);
    }

    fn pairs(&self) -> Vec<&Pair> {
        let mut pairs: Vec<&Pair> = self.rows.values().flat_map(BTreeMap::keys).collect();
        pairs.sort();
        pairs.dedup();
        pairs
    }

    /// How many cells there are of each verdict.
    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for cell in self.rows.values().flat_map(BTreeMap::values) {
            *counts.entry(cell.verdict.as_str()).or_default() += 1;
        }
        counts
    }

    /// Each flag with a cell for each pair, in order; `None`: never tried.
    pub fn json(&self) -> Value {
        let pairs = self.pairs();
        let head = |pair: &&Pair| json!({"backend": pair.backend, "source_qemu": pair.from.to_string(), "destination_qemu": pair.to.to_string()});
        let cell = |cell: Option<&Cell>| {
            cell.map(|cell| {
                json!({"verdict": cell.verdict, "why": cell.why, "job": cell.job, "submitted_unix_ms": cell.unix_ms})
            })
        };
        let rows = self.rows.iter().map(|(flag, cells)| {
            json!({"flag": flag, "cells": pairs.iter().map(|pair| cell(cells.get(*pair))).collect::<Vec<_>>()})
        });
        json!({
            "schema": "vtmesh/v1/coverage",
            "jobs": self.jobs,
            "counts": self.counts(),
            "pairs": pairs.iter().map(head).collect::<Vec<_>>(),
            "rows": rows.collect::<Vec<_>>(),
        })
    }

    /// The rows for a table: flag, backend, QEMUs, verdict, job, why.
    pub fn lines(&self) -> impl Iterator<Item = [String; 6]> {
        self.rows.iter().flat_map(|(flag, cells)| {
            cells.iter().map(|(pair, cell)| {
                let qemus = format!("{} → {}", pair.from, pair.to);
                let why = cell.why.clone().unwrap_or_default();
                [flag.clone(), pair.backend.clone(), qemus, cell.verdict.clone(), cell.job.clone(), why]
            })
        })
    }

    /// A page that needs nothing beside itself: a row a flag, a column a pair; what is behind a verdict is its title.
    pub fn html(&self) -> String {
        let pairs = self.pairs();
        let mut page = String::from(HEAD);
        let counts: Vec<String> = self.counts().iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
        let _ = writeln!(page, "<p>{} from {} stored jobs</p>", escape(&counts.join(", ")), self.jobs);
        page.push_str("<table><thead><tr><th>flag</th>");
        for pair in &pairs {
            let _ = write!(page, "<th>{}<br>{} → {}</th>", escape(&pair.backend), pair.from, pair.to);
        }
        page.push_str("</tr></thead><tbody>\n");
        for (flag, cells) in &self.rows {
            let _ = write!(page, "<tr><th>{}</th>", escape(flag));
            for pair in &pairs {
                match cells.get(pair) {
                    None => page.push_str("<td></td>"),
                    Some(cell) => {
                        let class = cell.verdict.replace('/', "").to_lowercase();
                        let title = format!("{} {}", cell.job, cell.why.as_deref().unwrap_or_default());
                        let (class, title, verdict) = (escape(&class), escape(title.trim()), escape(&cell.verdict));
                        let _ = write!(page, "<td class=\"{class}\" title=\"{title}\">{verdict}</td>");
                    }
                }
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</tbody></table></html>\n");
        page
    }
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>vtmesh: coverage</title>
<style>
:root { color-scheme: light dark; font-family: sans-serif }
table { border-collapse: collapse }
th, td { border: 1px solid #8888; padding: .2em .6em; text-align: left }
thead th { position: sticky; top: 0; background: Canvas }
.pass, .warn { background: #2a82 } .fail, .error, .timeout { background: #d228 } .skip, .na { color: GrayText }
</style>
<h1>Coverage: the last verdict of every flag, by backend and QEMUs</h1>
";

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(from: &str, to: &str) -> Value {
        json!({"backend": "qmp", "source_qemu": from, "destination_qemu": to, "capabilities": ["multifd"],
               "how": {"transport": "tls", "offline": true}})
    }

    fn job(id: &str, at: u64, case: Value) -> Value {
        json!({"id": id, "submitted_unix_ms": at, "cases": [case]})
    }

    fn matrix(id: &str, at: u64, fate: &str, why: Value) -> Value {
        let mut cell = moved("10.0.2", "7.2.22");
        for (key, value) in [("cell", json!(3)), ("way", json!("compress")), ("fate", json!(fate)), ("why", why)] {
            cell[key] = value;
        }
        let other = json!({"cell": 1, "way": "tcp", "fate": "PASS"});
        job(id, at, json!({"verdict": "pass", "checks": {"a": other, "b": cell}, "migrations": [moved("1.0", "1.0")]}))
    }

    #[test]
    fn the_last_verdict_of_every_flag_counts_for_its_pair() {
        let plain = job(
            "j3",
            3,
            json!({"verdict": "fail", "cause": {"title": "<lost>"}, "migrations": [moved("7.2.22", "10.0.2")]}),
        );
        let coverage =
            Coverage::of(&[matrix("j1", 1, "FAIL", Value::Null), matrix("j2", 2, "SKIP", json!("no")), plain]);
        let lines: Vec<String> = coverage.lines().map(|line| line.join("|")).collect();
        assert_eq!(
            lines,
            [
                "compress|qmp|10.0.2 → 7.2.22|SKIP|j2|no",
                "multifd|qmp|7.2.22 → 10.0.2|FAIL|j3|<lost>",
                "tls-offline|qmp|7.2.22 → 10.0.2|FAIL|j3|<lost>",
            ],
            "a way that does not say between which QEMUs is left out"
        );
        let document = coverage.json();
        assert_eq!(document["pairs"][0]["source_qemu"], "7.2.22", "versions are ordered as numbers");
        assert_eq!((&document["rows"][0]["cells"][0], document["counts"]["FAIL"].as_u64()), (&Value::Null, Some(2)));
        assert_eq!(document["rows"][0]["cells"][1]["verdict"], "SKIP");
        let page = coverage.html();
        assert!(page.contains("title=\"j3 &lt;lost&gt;\">FAIL</td>") && !page.contains("<lost>"), "{page}");
    }

    #[test]
    fn jobs_are_read_from_their_folders_and_a_folder_without_any_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let report = read(&[folder.path().to_owned()]).unwrap_err();
        assert_eq!(report.code, ErrorCode::ResultsMissing);
        for (name, at, fate) in [("later", 2, "PASS"), ("earlier", 1, "FAIL")] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join(JOB_FILE), matrix(name, at, fate, Value::Null).to_string())
                .unwrap();
        }
        let coverage = read(&[folder.path().to_owned()]).unwrap();
        assert_eq!((coverage.jobs, coverage.counts()), (2, BTreeMap::from([("PASS", 1)])));
        fs::write(folder.path().join(JOB_FILE), "{").unwrap();
        assert!(read(&[folder.path().to_owned()]).unwrap_err().title.contains("is no document of a job"));
    }
}
