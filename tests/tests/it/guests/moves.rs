//! Migrations that succeed, and what their evidence holds.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use vt_tests::lab::Lab;

/// Every file below `directory` whose name ends with `ending`.
pub(super) fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

pub(super) fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What hosts said of a case or a job, below a folder.
pub(super) fn said(folder: &Path) -> String {
    files(folder, "events.jsonl").iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn a_guest_moves_there_and_back_and_the_evidence_says_so() {
    let lab = Lab::up(3);
    let before = lab.inventory(3);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    // A goal sets what was not set, and tells what that is. 24 MB/s stretch each move to some seconds, so that the readings can be counted.
    let ran = lab
        .vtctl(&[
            "run",
            "multihost_migration",
            "-m",
            "host1,host2",
            "-p",
            "mig_speed=24M",
            "-p",
            "goal=must_finish:5m",
            "-r",
            bundle.to_str().unwrap(),
        ])
        .expect(0);
    assert!(ran.stdout.contains("PASS"), "{}", ran.stdout);

    let job = json(&bundle.join("job.json"));
    assert_eq!(job["cases"][0]["verdict"], "pass", "{job}");
    let migrations = job["cases"][0]["migrations"].as_array().unwrap().clone();
    assert_eq!(migrations.len(), 2, "{job}");
    assert_eq!((migrations[0]["from"].as_str(), migrations[0]["to"].as_str()), (Some("host1"), Some("host2")));
    assert_eq!((migrations[1]["from"].as_str(), migrations[1]["to"].as_str()), (Some("host2"), Some("host1")));
    let pids: BTreeSet<u64> = migrations
        .iter()
        .flat_map(|m| [m["source_pid"].as_u64().unwrap(), m["destination_pid"].as_u64().unwrap()])
        .collect();
    assert_eq!(pids.len(), 3, "the guest lived in three QEMU processes: {migrations:?}");
    for migration in &migrations {
        assert!(migration["normal_pages"].as_u64().unwrap() > 1000, "{migration}");
        let samples = migration["samples"].as_f64().unwrap();
        let seconds = migration["total_ms"].as_f64().unwrap() / 1000.0;
        assert!(seconds > 2.0 && samples / seconds >= 8.0, "{samples} readings in {seconds} s");
    }

    // QEMU itself says so: two transcripts with a completed migration, two with a resumed guest that came in.
    let transcripts: Vec<String> =
        files(&bundle, "qmp.jsonl").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    assert_eq!(transcripts.len(), 3);
    let completed = transcripts.iter().filter(|text| text.contains("migrate-incoming") || text.contains("\"migrate\""));
    assert!(completed.count() >= 3);
    assert_eq!(transcripts.iter().filter(|text| text.contains("\"RESUME\"")).count(), 3);

    // The probes' figures, after either move; and the goal, as it was made of it, as it was told QEMU and as it is on record.
    let events: String = files(&bundle, "events.jsonl").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    assert!(
        events.contains("goal must_finish:300s: auto-converge downtime-limit=500 cpu-throttle-initial=30"),
        "{events}"
    );
    assert!(!events.contains("goal must_finish:300s: max-bandwidth"), "mig_speed was given: {events}");
    assert!(transcripts.iter().any(|text| text.contains("cpu-throttle-increment") && text.contains("auto-converge")));
    for migration in &migrations {
        assert!(migration["capabilities"].to_string().contains("auto-converge"), "{migration}");
    }
    assert_eq!(events.matches("MB/s rewritten").count(), 2, "{events}");

    for name in ["results.json", "results.xml", "summary.md"] {
        assert!(bundle.join(name).is_file(), "{name}");
    }
    assert_eq!(lab.inventory(3), before, "something was left behind");
}

#[test]
fn four_hosts_are_two_pairs_at_once_and_a_fifth_is_left_over() {
    let lab = Lab::up(5);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let hosts = "host1,host2,host3,host4,host5";
    lab.vtctl(&["run", "multihost_migration", "-m", hosts, "-p", "mem=128M", "-r", bundle.to_str().unwrap()]).expect(0);
    let results = json(&bundle.join("results.json"));
    let verdicts: Vec<&str> =
        results["cases"].as_array().unwrap().iter().map(|case| case["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["pass", "pass", "skip"], "{results}");
    // At once: each pair's first event is before the other pair's last.
    let span = |case: usize| {
        let mut times = Vec::new();
        for path in files(&bundle, "events.jsonl") {
            let hosts = if case == 1 { ["host1", "host2"] } else { ["host3", "host4"] };
            if hosts.iter().any(|host| path.to_string_lossy().contains(host)) {
                let text = fs::read_to_string(&path).unwrap();
                times.extend(
                    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["unix_ms"].as_u64().unwrap()),
                );
            }
        }
        (times.iter().min().copied().unwrap(), times.iter().max().copied().unwrap())
    };
    let (first, second) = (span(1), span(2));
    assert!(first.0 < second.1 && second.0 < first.1, "{first:?} and {second:?} did not overlap");
}

#[test]
fn one_host_is_enough_for_a_scenario_of_one() {
    let lab = Lab::up(1);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let ran = lab.vtctl(&["run", "uptime", "-m", "host1", "-r", bundle.to_str().unwrap()]).expect(0);
    assert!(ran.stdout.contains("PASS"), "{}", ran.stdout);
}
