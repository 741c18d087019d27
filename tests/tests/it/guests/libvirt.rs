//! The same scenarios through libvirt: one libvirtd a host, the daemons' decisions as ever.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use vt_tests::{
    lab::{Lab, lab_root},
    wait,
};

use super::moves::{files, json, said};

fn data(lab: &Lab, host: u32) -> PathBuf {
    Path::new(&lab_root()).join(lab.name()).join(format!("host{host}"))
}

/// Domains that a host's libvirtd knows, running or not.
fn domains(lab: &Lab, host: u32) -> Vec<String> {
    let runs = PathBuf::from(format!("/run/vtmesh/labs/{}/host{host}/libvirt/run/qemu", lab.name()));
    let entries = fs::read_dir(runs).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name.ends_with(".xml")).collect()
}

#[test]
fn a_guest_moves_there_and_back_by_libvirt_and_nothing_is_left() {
    let lab = Lab::up_libvirt(2);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let words = ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt"];
    let ran = lab.vtctl(&[&words[..], &["-r", bundle.to_str().unwrap()]].concat()).expect(0);
    assert!(ran.stdout.contains("PASS"), "{}", ran.stdout);
    let job = json(&bundle.join("job.json"));
    let migrations = job["cases"][0]["migrations"].as_array().unwrap().clone();
    assert_eq!(migrations.len(), 2, "{job}");
    for migration in &migrations {
        assert!(migration["normal_pages"].as_u64().unwrap() > 1000, "QEMU's own words are kept: {migration}");
    }
    assert_eq!(said(&bundle).matches("by libvirt").count(), 2);
    let described = files(&bundle, "domain.xml");
    assert_eq!(described.len(), 3, "a domain was started once and came in twice: {described:?}");
    // libvirt notices the end of a QEMU a moment later.
    wait::until("no domain is left", Duration::from_secs(20), || {
        let left: Vec<String> = (1..=2).flat_map(|host| domains(&lab, host)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(lab.inventory(2), before, "something was left behind");

    let over_qmp = results.path().join("over-qmp");
    let words = ["run", "multihost_migration", "-m", "host1,host2", "-r", over_qmp.to_str().unwrap()];
    lab.vtctl(&words).expect(0);
    assert_eq!(course(&bundle), course(&over_qmp));
}

/// What happened on each host in which order, without names, times and figures; and beside it what each of its QEMUs said.
fn course(bundle: &Path) -> BTreeMap<String, Vec<String>> {
    let lines = |path: &Path| -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let place = |path: &Path| path.strip_prefix(bundle).unwrap().display().to_string();
    let told = files(bundle, "events.jsonl")
        .into_iter()
        .map(|path| (place(&path), lines(&path).iter().filter_map(|line| happening(&line["what"])).collect()));
    let heard = files(bundle, "qmp.jsonl")
        .into_iter()
        .map(|path| (place(&path), lines(&path).iter().filter_map(|line| of_the_machine(&line["msg"])).collect()));
    told.chain(heard).collect()
}

/// Steps, barriers, the end, and what is said of a migration: it is prepared, voted for, decided, and runs.
fn happening(what: &Value) -> Option<String> {
    if let Some(said) = what["log"]["text"].as_str() {
        // The source's vote is told by a task of its own, before or after the decision that it led to.
        let words = ["how", "the vote of the destination", "decided", "runs here"];
        let of_migration = said.strip_prefix("mig_")?.split_once(": ")?.1;
        return words.into_iter().find(|word| of_migration.starts_with(word)).map(str::to_owned);
    }
    if let Some(step) = what["step_ended"]["step"].as_str() {
        return Some(format!("{step} ended"));
    }
    if what["barrier"].is_object() {
        let (tag, how) = (&what["barrier"]["tag"], &what["barrier"]["what"]);
        return Some(format!("{tag} {how}"));
    }
    what.get("step_began").or_else(|| what.get("party_ended")).map(Value::to_string)
}

/// What QEMU says of its machine and of migrations. libvirt has it wait before each switch-over.
fn of_the_machine(message: &Value) -> Option<String> {
    let event = message["event"].as_str()?;
    let status = message["data"]["status"].as_str().unwrap_or_default();
    let counts = ["STOP", "RESUME"].contains(&event) || (event == "MIGRATION" && status != "pre-switchover");
    counts.then(|| format!("{event} {status}"))
}

/// At once, before QEMU goes over; and its connection breaks and is mended, whichever way it goes.
#[test]
fn a_postcopy_by_libvirt_is_decided_before_it_begins_and_is_mended() {
    let lab = Lab::up_libvirt(2);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let words = ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt", "-p", "mem=128M"];
    let at = ["-p", "at=active postcopy; postcopy-active break", "-p", "parameters=max-postcopy-bandwidth=16777216"];
    lab.vtctl(&[&words[..], &at, &["-r", bundle.to_str().unwrap()]].concat()).expect(0);
    let told = |host: &str| said(&bundle.join("cases/0001-multihost_migration").join(host));
    for host in ["host1", "host2"] {
        let told = told(host);
        let order =
            ["the guest is paused for", "decided: the VM is owned", "the connection is broken", ": recovers over"];
        let places: Vec<usize> = order.iter().map(|words| told.find(words).expect(words)).collect();
        assert!(places.is_sorted(), "{told}");
    }
    assert_eq!(lab.inventory(2), before, "something was left behind");
}

#[test]
fn a_move_that_is_cancelled_leaves_the_guest_where_it_is() {
    let lab = Lab::up_libvirt(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    // Slow, so that the cancel meets a transfer; the next move of the case is as slow and is let through.
    let words = ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt", "-p", "mig_speed=24M"];
    let more = ["-p", "at=active cancel", "-r", bundle.to_str().unwrap()];
    lab.vtctl(&[&words[..], &more].concat()).expect(0);
    assert!(said(&bundle).contains("cancelled at active"), "{}", said(&bundle));
}

/// Whether a process is the one that is meant, by the words of its command line.
type IsIt = fn(&[String]) -> bool;

/// What befalls a move that libvirt has begun.
struct Fault {
    name: &'static str,
    /// What is killed, and on which host; nothing: host2 is cut off.
    victim: Option<(&'static str, IsIt)>,
    /// Whether it befalls a post-copy whose pages are on their way.
    postcopy: bool,
    /// How the case may end.
    verdicts: &'static [&'static str],
    /// How many guests may be left.
    left: &'static [usize],
}

impl Fault {
    const fn of(name: &'static str, victim: Option<(&'static str, IsIt)>, verdicts: &'static [&'static str]) -> Self {
        Self { name, victim, postcopy: false, verdicts, left: &[1] }
    }
}

fn is_helper(words: &[String]) -> bool {
    words[0].ends_with("vt-libvirt")
}

fn is_libvirtd(words: &[String]) -> bool {
    words[0].ends_with("libvirtd")
}

fn is_daemon(words: &[String]) -> bool {
    words.get(1).is_some_and(|word| word == "--config")
}

fn is_qemu(words: &[String]) -> bool {
    words[0].contains("qemu-system")
}

fn is_party(words: &[String]) -> bool {
    words.get(1).is_some_and(|word| word == "party")
}

/// What libvirt has begun goes on without the helper that asked for it. Without the libvirt of the source it is given up.
/// Who is a side and its host is away may find it done or given up, and another host's end is nobody's FAIL.
const FAULTS: [Fault; 7] = [
    Fault::of("helper", Some(("host1", is_helper)), &["pass"]),
    Fault::of("libvirtd-source", Some(("host1", is_libvirtd)), &["fail", "error"]),
    Fault::of("vtd-source", Some(("host1", is_daemon)), &["pass", "error"]),
    Fault::of("vtd-destination", Some(("host2", is_daemon)), &["pass", "error"]),
    Fault::of("partition", None, &["error"]),
    Fault { postcopy: true, ..Fault::of("vtd-source-postcopy", Some(("host1", is_daemon)), &["pass", "error"]) },
    // The guest runs on the side that is cut off, and its guards end it there with the pages that are missing.
    Fault { postcopy: true, left: &[0], ..Fault::of("partition-postcopy", None, &["error"]) },
];
/// How many of them a run of all tests plays; `VTMESH_LIBVIRT_FAULTS` says otherwise.
const PLAYED: usize = 2;

impl Fault {
    fn befall(&self, lab: &Lab) {
        let Some((host, is_victim)) = self.victim else {
            lab.vtctl(&["lab", "partition", "host2"]).expect(0);
            return;
        };
        let victim = lab.process(host, is_victim).unwrap_or_else(|| panic!("no {} to kill", self.name));
        assert!(Command::new("kill").args(["-9", &victim]).status().unwrap().success());
        // A helper is started again by its daemon.
        if self.name != "helper" {
            // It may take a moment to end, and runs until then.
            wait::until("the victim is started again", Duration::from_secs(30), || {
                let ran = lab.vtctl(&["lab", "start", host]);
                if ran.code == 0 { Ok(()) } else { Err(ran) }
            });
        }
    }

    /// Plays it in the middle of a move, and then another move without it.
    fn play(&self, lab: &Lab, before: &[String]) {
        let results = tempfile::tempdir().unwrap();
        let bundle = results.path().join("job");
        let words = ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt", "--keep"];
        let more = ["-p", "mig_speed=24M", "-p", "mem=128M", "-r", bundle.to_str().unwrap()];
        let slow_pages = ["-p", "at=active postcopy", "-p", "parameters=max-postcopy-bandwidth=4194304"];
        let (status, how) = if self.postcopy { ("postcopy-active", &slow_pages[..]) } else { ("active", &[][..]) };
        let begun = moves_begun(lab, status);
        let running = lab.spawn(&[&words[..], &more, how].concat());
        wait::until("libvirt moves the guest", Duration::from_secs(120), || {
            // What was said alone is said before libvirt is asked.
            if moves_begun(lab, status) > begun { Ok(()) } else { Err(said(&data(lab, 1))) }
        });
        let befallen = Instant::now();
        self.befall(lab);
        let on_both = |wanted: IsIt| -> Vec<&str> {
            ["host1", "host2"].into_iter().filter(|host| lab.process(host, wanted).is_some()).collect()
        };
        // Whoever is cut off hears of nothing before the network is healed.
        let ended = |hosts: &[&str]| {
            wait::until("the parties have ended", Duration::from_secs(180), || {
                let left = on_both(is_party);
                if left.iter().any(|host| hosts.contains(host)) { Err((left, said(&data(lab, 1)))) } else { Ok(()) }
            });
        };
        ended(&["host1"]);
        let source_knew = befallen.elapsed();
        lab.vtctl(&["lab", "heal"]).expect(0);
        lab.wait_for_live(3);
        ended(&["host1", "host2"]);
        wait::until("as many guests are left as may be", Duration::from_secs(60), || {
            let hosts = on_both(is_qemu);
            if self.left.contains(&hosts.len()) { Ok(()) } else { Err(hosts) }
        });
        // A job that keeps its guest is open until it is told to let it go.
        let jobs = lab.json(&["job", "list"])["jobs"].as_array().unwrap().clone();
        if let Some(open) = jobs.iter().find(|job| job["state"] == "running") {
            lab.vtctl(&["job", "release", open["id"].as_str().unwrap()]).expect(0);
        }
        let output = running.wait_with_output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

        let job = json(&bundle.join("job.json"));
        let case = &job["cases"][0];
        let verdict = case["verdict"].as_str().unwrap();
        assert!(self.verdicts.contains(&verdict), "{}: {verdict}\n{stdout}\n{stderr}", self.name);
        println!(
            "{}: {verdict} {}; the source's party ended after {:.1} s",
            self.name,
            case["cause"]["title"],
            source_knew.as_secs_f64()
        );
        if self.name == "partition" {
            // A host that is silent has lost its session after 12 s, and libvirt's own patience is half a minute.
            assert!(source_knew < Duration::from_secs(28), "{source_knew:?}");
        }
        wait::until("nothing to be left", Duration::from_secs(60), || {
            let now = lab.inventory(3);
            if now == before { Ok(()) } else { Err(now) }
        });
        let next =
            lab.vtctl(&["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt", "-p", "mem=128M"]);
        assert!(next.expect(0).stdout.contains("PASS"), "after {}", self.name);
    }
}

/// Transcripts of host1's monitors that show a move in a status.
fn moves_begun(lab: &Lab, status: &str) -> usize {
    let transcripts = files(&data(lab, 1), "qmp.jsonl");
    let event = format!(r#""status": "{status}""#);
    let begun = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default().contains(&event);
    transcripts.iter().filter(|path| begun(path)).count()
}

#[test]
fn whoever_dies_in_the_middle_leaves_one_guest_and_the_next_move_passes() {
    let played = std::env::var("VTMESH_LIBVIRT_FAULTS").map_or(PLAYED, |count| count.parse().unwrap());
    let lab = Lab::up_libvirt(3);
    let before = lab.inventory(3);
    for fault in &FAULTS[..played] {
        fault.play(&lab, &before);
    }
}

/// What libvirt has words for beside the transports, and disks that it copies because nothing is shared.
#[test]
fn a_guest_moves_compressed_slowly_encrypted_and_with_its_disk() {
    let lab = Lab::up_as(2, &["--libvirt", "--separate-pools"]);
    let tiny = "/var/lib/vtmesh/images/tiny";
    lab.vtctl(&["image", "import", tiny, "--host", "host1"]).expect(0);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let bundle = results.path().join("job");
    let ways = "ways=multifd-zstd multifd-zlib xbzrle auto-converge speed tcp-offline tls managed managed-parallel zero-copy-send \
                stopped-meanwhile";
    let words = ["run", "migration_matrix", "-m", "host1,host2", "--backend", "libvirt", "-p", "mem=128M", "-p", ways];
    lab.vtctl(&[&words[..], &["-r", bundle.to_str().unwrap()]].concat()).expect(0);
    let checks = json(&bundle.join("job.json"))["cases"][0]["checks"].clone();
    let fates: Vec<(String, String)> = checks
        .as_object()
        .unwrap()
        .values()
        .filter(|check| check["cell"].is_u64())
        .map(|cell| (cell["way"].to_string(), cell["fate"].to_string()))
        .collect();
    assert_eq!(fates.len(), 11, "{fates:?}");
    // Where memory may not be locked, as in many containers, nothing is sent without a copy.
    let good = |(way, fate): &(String, String)| fate == "\"PASS\"" || way.contains("zero-copy") && fate == "\"SKIP\"";
    assert!(fates.iter().all(good), "{fates:?}");
    assert_eq!(lab.inventory(2), before, "something was left behind");

    let whole = results.path().join("whole");
    let options = "virsh_migrate_options=--live --p2p --copy-storage-all --abort-on-error --bandwidth 96 --timeout 1 \
                   --timeout-suspend";
    let patient = ["mem=128M", "clock_tolerance=120000", "max_standstill=120000", options];
    let params: Vec<&str> = patient.iter().flat_map(|param| ["-p", param]).collect();
    let words =
        ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt", "-r", whole.to_str().unwrap()];
    lab.vtctl(&[&words[..], &params].concat()).expect(0);
    assert!(said(&whole).contains("it takes long: the guest is paused"));
    assert_eq!(lab.inventory(2), before, "something was left behind");
}

#[test]
fn where_no_libvirt_is_set_and_where_it_has_no_word_the_case_says_which() {
    let without = Lab::up(2);
    let words = ["run", "multihost_migration", "-m", "host1,host2", "--backend", "libvirt"];
    let results = tempfile::tempdir().unwrap();
    let goals = ["none", "no-word"].map(|name| results.path().join(name).display().to_string());
    let ran = without.vtctl(&[&words[..], &["-r", &goals[0]]].concat()).expect(0);
    assert!(ran.stdout.contains("SKIP") && ran.stdout.contains("name no libvirt"), "{}", ran.stdout);
    drop(without);
    let lab = Lab::up_libvirt(2);
    let ran = lab.vtctl(&[&words[..], &["-p", "mig_protocol=fd", "-r", &goals[1]]].concat());
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    assert!((ran.stdout + &ran.stderr).contains("transport fd is not offered through libvirt"));
    for (options, backend, rule) in [
        ("--live --persistent", "libvirt", "starts again whoever owns the VM"),
        ("--live --p2p --copy-storage-inc", "libvirt", "a copy of one onto itself destroys it"),
        ("--live --p2p", "qmp", "for --backend libvirt"),
    ] {
        let options = format!("virsh_migrate_options={options}");
        let goal = results.path().join(backend.to_owned() + &options[22..]).display().to_string();
        let words =
            ["run", "multihost_migration", "-m", "host1,host2", "--backend", backend, "-p", &options, "-r", &goal];
        let ran = lab.vtctl(&words);
        assert!(ran.code != 0 && (ran.stdout.clone() + &ran.stderr).contains(rule), "{options}: {ran:?}");
    }
}
