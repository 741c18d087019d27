//! The table across versions: who moves the guest, over QMP or by libvirt, and which QEMU is at which side.
//!
//! Each transport as it is and each mode over tcp is a row; a column is a backend with an ordered pair of QEMUs. Every job
//! is kept, so that `vtctl results coverage` shows the same table.
//!
//! A guest that is hurt ends its case: another one goes the ways that are left. What a QEMU is known to do to its guests
//! (`known fault of the source`) is FAIL in the table, for it is one, and does not turn the run red.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use vt_daemon::qemu::flaws::KNOWN_FAULT;
use vt_tests::{
    lab::{Lab, vtctl},
    older_qemu,
};

use super::{Walk, is_good_skip};

/// As many cells pass at least.
const FLOOR: usize = 100;
const BACKENDS: [&str; 2] = ["qmp", "libvirt"];
/// What host1 and host2 have; the last goes there and back.
const PAIRS: [[&str; 2]; 3] = [["default", "default"], ["old", "old"], ["old", "default"]];
/// Backends times ordered pairs.
const COLUMNS: usize = 8;
/// How many guests go the ways of one job at most, one after the other.
const GUESTS: usize = 40;

/// Plays the table, or these ways of it, and keeps it below `results`. Whether every cell is as it may be.
pub(super) fn play(ways: &str, results: &Path) -> anyhow::Result<bool> {
    let Some(old) = older_qemu() else { bail!("there is no older QEMU to compare with") };
    if results.exists() {
        fs::remove_dir_all(results).context("the results of the last run")?;
    }
    let lab = Lab::up_as(2, &["--libvirt", "--qemu", &format!("old={}", old.display())]);
    let all = vt_daemon::scenario::ways(ways).context("which ways")?;
    let mut cells = Vec::new();
    for backend in BACKENDS {
        for [first, second] in PAIRS {
            let columns = if first == second { 1 } else { 2 };
            let mut found: Vec<Value> = Vec::new();
            for guest in 1..=GUESTS {
                let left = unfinished(&all, &found, columns).join(" ");
                if left.is_empty() {
                    break;
                }
                let bundle = results.join(format!("{backend}-{first}-{second}-{guest}"));
                let params = [
                    format!("ways={left}"),
                    format!("both_ways={}", if columns == 2 { "yes" } else { "no" }),
                    format!("qemu_binary={first}"),
                    format!("qemu_dst_binary={second}"),
                ];
                println!("{backend}: {first} and {second}: {left}");
                match (Walk { lab: &lab, hosts: 2, backend, params: &params, bundle: &bundle }).go() {
                    Ok((more, _)) => add(&mut found, more),
                    Err(error) => println!("{error:#}"),
                }
            }
            cells.extend(found);
        }
    }
    drop(lab);
    let good = judge(&cells, ways == "modes");
    let (page, document) = (results.join("coverage.html"), results.join("coverage.json"));
    let words = ["results", "coverage", &results.display().to_string(), "--html", &page.display().to_string()];
    println!("{}", vtctl(&words).expect(0).stdout);
    fs::write(&document, vtctl(&[&words[..], &["-o", "json"]].concat()).expect(0).stdout).context("coverage.json")?;
    println!("{} and {}", page.display(), document.display());
    Ok(good)
}

fn text(cell: &Value, key: &str) -> String {
    cell[key].as_str().unwrap_or_default().to_owned()
}

/// Who moved the guest, and between which QEMUs.
fn column(cell: &Value) -> [String; 3] {
    ["backend", "source_qemu", "destination_qemu"].map(|key| text(cell, key))
}

/// Adds what another guest found where nothing was found yet: the second guest does not take a FAIL of the first one back.
fn add(found: &mut Vec<Value>, more: Vec<Value>) {
    for cell in more {
        let is_same = |known: &Value| known["way"] == cell["way"] && column(known) == column(&cell);
        if !found.iter().any(is_same) {
            found.push(cell);
        }
    }
}

/// The ways of `all` that were not gone in each of this many columns, in their order.
fn unfinished(all: &[&'static str], found: &[Value], columns: usize) -> Vec<&'static str> {
    let cells = |way: &str| found.iter().filter(|cell| cell["way"] == way).count();
    all.iter().copied().filter(|way| cells(way) < columns).collect()
}

/// Whether a cell is as it may be; what is not is told.
fn is_good(cell: &Value) -> bool {
    let known =
        |cell: &Value| cell["evidence"].as_array().is_some_and(|all| all.iter().any(|pair| pair[0] == KNOWN_FAULT));
    let good = match cell["fate"].as_str() {
        Some("PASS" | "N/A") => return true,
        Some("SKIP") => is_good_skip(cell),
        Some("FAIL") => known(cell),
        _ => false,
    };
    println!("{}: {cell}", if good { "as it may be" } else { "for a reason that does not count" });
    good
}

/// Whether no row has a hole, no cell ended for a reason that does not count, and enough passed of the whole.
fn judge(cells: &[Value], whole: bool) -> bool {
    let mut rows: BTreeMap<String, Vec<[String; 3]>> = BTreeMap::new();
    for cell in cells {
        rows.entry(text(cell, "way")).or_default().push(column(cell));
    }
    let mut good = !rows.is_empty();
    for (way, columns) in &rows {
        let distinct: BTreeSet<&[String; 3]> = columns.iter().collect();
        if distinct.len() != COLUMNS || columns.len() != COLUMNS {
            println!("{way} has {} cells of {COLUMNS}: {columns:?}", distinct.len());
            good = false;
        }
    }
    good &= cells.iter().filter(|cell| !is_good(cell)).count() == 0;
    let passed = cells.iter().filter(|cell| cell["fate"] == "PASS").count();
    println!("{passed} of {} cells passed", cells.len());
    if whole && passed < FLOOR {
        println!("fewer than {FLOOR}");
        good = false;
    }
    good
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_with_a_hole_or_a_cell_twice_is_no_table() {
        let mut cells = Vec::new();
        for backend in BACKENDS {
            for (from, to) in [("7.2.22", "7.2.22"), ("10.0.2", "10.0.2"), ("7.2.22", "10.0.2"), ("10.0.2", "7.2.22")] {
                cells.push(json!({
                    "way": "tcp", "fate": "PASS", "backend": backend, "source_qemu": from, "destination_qemu": to,
                }));
            }
        }
        assert!(judge(&cells, false) && !judge(&cells, true), "too few of the whole");
        assert!(!judge(&cells[1..], false));
        let twice = [&cells[1..], &cells[1..2]].concat();
        assert!(!judge(&twice, false));
        for fate in ["SKIP", "FAIL", "ERROR"] {
            cells[0]["fate"] = fate.into();
            assert!(!judge(&cells, false), "nobody said why");
        }
        cells[0]["fate"] = "FAIL".into();
        cells[0]["evidence"] = json!([[KNOWN_FAULT, "QEMU 7.2.22 …"]]);
        assert!(judge(&cells, false), "a fault that is known");
    }

    #[test]
    fn another_guest_goes_the_ways_that_are_left_and_takes_nothing_back() {
        let cell = |way: &str, from: &str, fate: &str| json!({"way": way, "source_qemu": from, "fate": fate});
        let all = ["tcp", "tls", "mesh"];
        let mut found = vec![cell("tcp", "7", "PASS"), cell("tcp", "10", "PASS"), cell("tls", "7", "FAIL")];
        assert_eq!(unfinished(&all, &found, 2), ["tls", "mesh"]);
        add(&mut found, vec![cell("tls", "7", "PASS"), cell("tls", "10", "PASS")]);
        assert_eq!((found.len(), &found[2]["fate"]), (4, &json!("FAIL")));
        assert_eq!(unfinished(&all, &found, 2), ["mesh"]);
    }
}
