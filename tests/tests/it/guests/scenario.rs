//! A scenario in a file: mistakes are shown at their places before anything starts, and a right one runs on real guests.

use std::fs;

use serde_json::Value;
use vt_tests::lab::Lab;

/// `cut.scenario` of this repository.
const CUT: &str = include_str!("../../../scenarios/cut.scenario");

#[test]
fn a_scenario_in_a_file_is_checked_runs_and_tells_the_line_that_was_not_met() {
    let lab = Lab::up(2);
    let before = lab.inventory(2);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();

    // Shown with place and mark; nothing is submitted.
    let bad = path("bad.scenario");
    fs::write(&bad, CUT.replace("to = \"host2\"", "to = \"host3\"").replace("check = \"guest\"", "chekc = \"guest\""))
        .unwrap();
    let line = |text: &str, of: &str| of.lines().position(|line| line.contains(text)).unwrap() + 1;
    for words in [&["scenario", "check", &bad][..], &["run", &bad, "-m", "host1,host2"]] {
        let refused = lab.vtctl(words).expect(3);
        let place = format!("bad.scenario:{}:1", line("chekc", &fs::read_to_string(&bad).unwrap()));
        assert!(refused.stderr.contains(&place) && refused.stderr.contains("did you mean"), "{}", refused.stderr);
    }
    fs::write(&bad, CUT.replace("to = \"host2\"", "to = \"host3\"")).unwrap();
    let refused = lab.vtctl(&["scenario", "check", &bad]).expect(3);
    assert!(
        refused.stderr.contains("there is no host \"host3\"")
            && refused.stderr.contains(&format!("bad.scenario:{}:6", line("to = \"host2\"", CUT))),
        "{}",
        refused.stderr
    );
    assert_eq!(lab.json(&["job", "list"])["jobs"], Value::Array(vec![]), "nothing was submitted");

    let cut = path("cut.scenario");
    fs::write(&cut, CUT).unwrap();
    let shown = lab.json(&["scenario", "show", &cut]);
    assert_eq!((&shown["name"], &shown["hosts"]), (&"cut".into(), &2.into()), "{shown}");
    let ran = lab.vtctl(&["run", &cut, "-m", "host1,host2", "-r", &path("first")]).expect(0);
    let job: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("first/job.json")).unwrap()).unwrap();
    let case = &job["cases"][0];
    assert_eq!((&case["scenario"], &case["verdict"]), (&"cut".into(), &"pass".into()), "{}", ran.stderr);
    let moves = case["migrations"].as_array().unwrap();
    assert_eq!(moves.iter().filter(|moved| moved["how"]["offline"] == true).count(), 1, "{case}");
    let steps = case["steps"].to_string();
    for step in ["cancelled", "has to fail", "the guest answers", "put /tmp/count.sh", "get /tmp/counted"] {
        assert!(steps.contains(step), "{step} is no step: {steps}");
    }
    assert_eq!(job["scenario_file"]["text"], CUT, "the file is with the evidence");

    // What is not met is FAIL and says where; a rerun needs no file.
    fs::write(&cut, CUT.replace("contains load average", "contains no such words")).unwrap();
    let words = ["run", &cut, "-m", "host1,host2", "-p", "stays=yes", "-r", &path("second")];
    lab.vtctl(&words).expect(100);
    fs::remove_file(&cut).unwrap();
    let job: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("second/job.json")).unwrap()).unwrap();
    let cause = &job["cases"][0]["cause"];
    let evidence = cause["evidence"].to_string();
    assert!(evidence.contains(&format!("cut.scenario:{}", line("guest = \"uptime\"", CUT))), "{cause}");
    assert!(evidence.contains("no such words") && evidence.contains("load average"), "{cause}");
    assert_eq!(lab.inventory(2), before, "something was left behind");
}
