//! Ways in which a transfer can go: post-copy with a broken connection, a cancel in a named phase, what a side lacks.

use std::{fs, path::Path};

use serde_json::Value;
use vt_tests::lab::Lab;

/// Runs a move with parameters, and gives job.json and every line of every monitor's transcript.
fn run(lab: &Lab, params: &[&str], code: i32) -> (Value, String) {
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let mut words = vec!["run", "multihost_migration", "-m", "host1,host2", "-r", bundle.to_str().unwrap()];
    words.extend(params.iter().flat_map(|param| ["-p", param]));
    lab.vtctl(&words).expect(code);
    let job = serde_json::from_str(&fs::read_to_string(bundle.join("job.json")).unwrap()).unwrap();
    (job, transcripts(&bundle))
}

fn transcripts(folder: &Path) -> String {
    let mut all = String::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            all.push_str(&transcripts(&path));
        } else if path.ends_with("qmp.jsonl") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    all
}

/// What the cells of a matrix kept.
fn cells(bundle: &Path) -> Vec<Value> {
    let job: Value = serde_json::from_str(&fs::read_to_string(bundle.join("job.json")).unwrap()).unwrap();
    let checks = job["cases"][0]["checks"].as_object().unwrap().values();
    checks.filter(|check| check["way"].is_string()).cloned().collect()
}

#[test]
fn one_guest_is_moved_in_many_ways_and_each_says_what_carried_it() {
    let lab = Lab::up(2);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    // A share of `make matrix` and `make cancels`, with a way that a rule excludes and one that this machine lacks.
    let moved = ["tcp6", "tls", "mesh", "fd", "exec", "file-mapped-ram", "multifd-zstd", "postcopy-recover-mesh"];
    let cancelled = ["cancel-mesh", "cancel-tls"];
    let ways = format!("ways={} {} mapped-ram-tcp compress rdma", moved.join(" "), cancelled.join(" "));
    let words = ["run", "migration_matrix", "-m", "host1,host2", "-p", "mem=128M", "-p", &ways, "-r"];
    let ran = lab.vtctl(&[&words[..], &[bundle.to_str().unwrap()]].concat()).expect(0);
    let cells = cells(&bundle);
    let cell = |way: &str| cells.iter().find(|cell| cell["way"] == way).unwrap_or_else(|| panic!("{way}: {cells:#?}"));
    for way in moved.iter().chain(&cancelled) {
        assert_eq!(cell(way)["fate"], "PASS", "{}\n{}", cell(way), ran.stderr);
        assert!(cell(way)["downtime"]["network_ms"].is_u64(), "{}", cell(way));
    }
    for (way, transport, encrypted) in
        [("tls", "tls", true), ("file-mapped-ram", "file", true), ("tcp6", "tcp6", false)]
    {
        let how = &cell(way)["how"];
        assert_eq!((&how["transport"], &how["encrypted"]), (&transport.into(), &encrypted.into()), "{how}");
    }
    assert_eq!(cell("mapped-ram-tcp")["fate"], "N/A");
    for (way, why) in [("compress", "migration capability compress is not known"), ("rdma", "there is no RDMA device")]
    {
        assert_eq!(cell(way)["fate"], "SKIP");
        assert!(cell(way)["why"].as_str().unwrap().starts_with(why), "{}", cell(way));
    }
    let said = transcripts(&bundle);
    for word in ["tls-creds-x509", "authz-simple", "getfd", "migrate-recover", "\"uri\":\"file:"] {
        assert!(said.contains(word), "{word} is in no transcript");
    }
    assert_eq!(lab.inventory(2), before, "something was left behind");
}

/// Cancels transfers in these phases six times each; `make cancels` does it twenty times.
fn cancel_in(phases: &[&str]) {
    let lab = Lab::up(2);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let ways: Vec<String> = phases.iter().map(|phase| format!("cancel-{phase}")).collect();
    let chosen = format!("ways={}", ways.join(" "));
    let words = ["run", "migration_matrix", "-m", "host1,host2", "-p", "mem=128M", "-p", &chosen];
    let times = ["-p", "migrate_count=6", "-r", bundle.to_str().unwrap()];
    let ran = lab.vtctl(&[&words[..], &times].concat()).expect(0);
    let cells = cells(&bundle);
    for way in &ways {
        let passed = cells.iter().filter(|cell| cell["way"] == way.as_str() && cell["fate"] == "PASS").count();
        assert_eq!(passed, 6, "{way}: {cells:#?}\n{}", ran.stderr);
    }
    assert_eq!(lab.inventory(2), before, "something was left behind");
}

#[test]
fn a_transfer_cancelled_while_it_sends_leaves_one_guest_that_moves_next() {
    cancel_in(&["setup", "active", "pass-2"]);
}

#[test]
fn a_transfer_cancelled_at_its_end_leaves_one_guest_that_moves_next() {
    cancel_in(&["pre-switchover", "device", "postcopy-wait"]);
}

#[test]
fn a_post_copy_whose_connection_breaks_is_recovered() {
    let lab = Lab::up(3);
    let before = lab.inventory(3);
    // Slow enough that pages are missing when the connection breaks.
    let at = "at=active max-postcopy-bandwidth=16777216; pass:1 postcopy; postcopy-active break";
    let (job, said) = run(&lab, &[at, "mem=128M"], 0);
    let case = &job["cases"][0];
    assert_eq!(case["verdict"], "pass", "{job}");
    assert_eq!(case["migrations"].as_array().unwrap().len(), 2, "{job}");
    for word in ["postcopy-active", "postcopy-paused", "postcopy-recover", "migrate-recover"] {
        assert!(said.contains(word), "{word} is in no transcript");
    }
    assert_eq!(lab.inventory(3), before);
}

#[test]
fn a_migration_that_was_cancelled_stays_and_the_next_one_moves() {
    let lab = Lab::up(3);
    let before = lab.inventory(3);
    let (job, said) = run(&lab, &["at=pre-switchover cancel", "mem=128M"], 0);
    assert_eq!(job["cases"][0]["verdict"], "pass", "{job}");
    assert_eq!(job["cases"][0]["migrations"].as_array().unwrap().len(), 2, "those that moved: {job}");
    assert!(said.contains("migrate_cancel") && said.contains(r#""status": "cancelled""#));
    assert_eq!(lab.inventory(3), before);
}

#[test]
fn what_a_side_cannot_do_is_skipped_and_named() {
    let lab = Lab::up(3);
    let (job, _) = run(&lab, &["capabilities=multifd", "parameters=multifd-channels=3", "mem=128M"], 0);
    assert_eq!(job["cases"][0]["verdict"], "pass", "{job}");
    let (job, _) = run(&lab, &["capabilities=teleport", "mem=128M"], 0);
    let case = &job["cases"][0];
    assert_eq!(case["verdict"], "skip", "{job}");
    assert!(case.to_string().contains("teleport is not known to QEMU of the source"), "{case}");
}
