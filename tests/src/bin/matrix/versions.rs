//! The table across versions: who moves the guest, over QMP or by libvirt, and which QEMU is at which side.
//!
//! Each transport as it is and each mode over tcp is a row; a column is a backend with an ordered pair of QEMUs. Every job
//! is kept, so that `vtctl results coverage` shows the same table.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, bail};
use serde_json::Value;
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

/// Plays the table, or these ways of it, and keeps it below `results`. Whether every cell is as it may be.
pub(super) fn play(ways: &str, results: &Path) -> anyhow::Result<bool> {
    let Some(old) = older_qemu() else { bail!("there is no older QEMU to compare with") };
    if results.exists() {
        fs::remove_dir_all(results).context("the results of the last run")?;
    }
    let lab = Lab::up_as(2, &["--libvirt", "--qemu", &format!("old={}", old.display())]);
    let (mut cells, mut good) = (Vec::new(), true);
    for backend in BACKENDS {
        for [first, second] in PAIRS {
            let bundle = results.join(format!("{backend}-{first}-{second}"));
            let both = if first == second { "no" } else { "yes" };
            let params = [
                format!("ways={ways}"),
                format!("both_ways={both}"),
                format!("qemu_binary={first}"),
                format!("qemu_dst_binary={second}"),
            ];
            println!("{backend}: {first} and {second}");
            let (found, passed) = Walk { lab: &lab, hosts: 2, backend, params: &params, bundle: &bundle }.go()?;
            cells.extend(found);
            good &= passed;
        }
    }
    drop(lab);
    good &= judge(&cells, ways == "modes");
    let (page, document) = (results.join("coverage.html"), results.join("coverage.json"));
    let words = ["results", "coverage", &results.display().to_string(), "--html", &page.display().to_string()];
    println!("{}", vtctl(&words).expect(0).stdout);
    fs::write(&document, vtctl(&[&words[..], &["-o", "json"]].concat()).expect(0).stdout).context("coverage.json")?;
    println!("{} and {}", page.display(), document.display());
    Ok(good)
}

/// Whether no row has a hole, nothing was skipped without a good reason, and enough passed of the whole.
fn judge(cells: &[Value], whole: bool) -> bool {
    let text = |cell: &Value, key: &str| cell[key].as_str().unwrap_or_default().to_owned();
    let column = |cell: &Value| ["backend", "source_qemu", "destination_qemu"].map(|key| text(cell, key));
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
    for cell in cells.iter().filter(|cell| cell["fate"] == "SKIP" && !is_good_skip(cell)) {
        println!("skipped for a reason that does not count: {cell}");
        good = false;
    }
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
        cells[0]["fate"] = "SKIP".into();
        assert!(!judge(&cells, false), "nobody said why");
    }
}
