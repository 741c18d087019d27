//! A test matrix with real guests: what passes, what is skipped and why, and the same once more.

use std::fs;

use serde_json::Value;
use vt_tests::lab::Lab;

const MATRIX: &str = "\
mem = 128
image_name = images/somebody-elses
variants:
    - @hosts_as_they_are:
        variants:
            - boot:
                type = uptime
                start_vm_host2 = no
            - move: boot
                type = migration_multi_host
                variants mig_protocol:
                    - @tcp:
                    - rdma:
            - floppy:
                type = floppy
            - after_floppy: floppy
                type = uptime
";

fn document(path: &std::path::Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn verdicts(job: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let cases = job["cases"].as_array().unwrap_or_else(|| panic!("{job}"));
    cases.iter().map(|case| (text(&case["name"]), text(&case["verdict"]), text(&case["cause"]["title"]))).collect()
}

#[test]
fn variants_pass_or_are_skipped_and_say_why_and_a_rerun_has_the_same_matrix() {
    let lab = Lab::up(2);
    let before = lab.inventory(2);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("tests.cfg"), MATRIX).unwrap();
    let (first, second) = (path("first"), path("second"));
    let ran = lab.vtctl(&["run", "-m", "host1,host2", "-c", &path("tests.cfg"), "-r", &first]).expect(0);
    assert!(ran.stderr.contains("does not read 1 key of the configuration: start_vm_host2"), "{}", ran.stderr);

    let job = document(&dir.path().join("first/job.json"));
    let rows = verdicts(&job);
    let rows: Vec<(&str, &str, &str)> = rows.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str())).collect();
    assert_eq!(
        rows,
        [
            ("boot", "pass", ""),
            ("boot", "pass", ""),
            ("move", "pass", ""),
            ("move.rdma", "skip", "there is no RDMA device (/sys/class/infiniband has none) on the source"),
            ("floppy", "skip", "type = floppy: of the tests of floppy disks only those that move a VM are there"),
            ("after_floppy", "skip", "parent floppy did not pass"),
            ("after_floppy", "skip", "parent floppy did not pass"),
        ]
    );
    assert_eq!(job["cases"][2]["migrations"].as_array().map(Vec::len), Some(2), "{job}");
    assert_eq!(job["cases"][2]["variant"], "hosts_as_they_are.move.(mig_protocol=tcp)", "{job}");
    assert!(dir.path().join("first/cases/0003-move/host1/params.json").is_file());
    let junit = fs::read_to_string(dir.path().join("first/results.xml")).unwrap();
    assert!(junit.contains("classname=\"multihost_migration\" name=\"move\""), "{junit}");

    // The configuration is gone; what failed or waited for what failed runs again, and is what it was.
    fs::remove_file(path("tests.cfg")).unwrap();
    let id = job["id"].as_str().unwrap();
    let again = lab.vtctl(&["job", "rerun", id, "--failed", "-r", &second]).expect(0);
    let matrix = |job: &str| fs::read(dir.path().join(job).join("matrix.bin")).unwrap();
    assert_eq!(matrix("first"), matrix("second"), "to the byte");
    let rerun = document(&dir.path().join("second/job.json"));
    assert_eq!((&rerun["matrix"]["digest"], &rerun["matrix"]["variants"]), (&job["matrix"]["digest"], &5.into()));
    let rows = verdicts(&rerun);
    let passed = rows.iter().filter(|(name, verdict, _)| name == "after_floppy" && verdict == "pass").count();
    // What it waited for is not in the job, so nothing is waited for.
    assert_eq!((rows.len(), passed), (2, 2), "{rows:?}\n{}", again.stderr);
    assert_eq!(lab.inventory(2), before, "something was left behind");
}
