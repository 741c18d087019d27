//! Real daemons in namespaces, without guests: what a cluster keeps and says when hosts die or are cut off.

use std::time::Duration;

use vt_tests::{lab::Lab, wait};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_restart_of_one_two_and_all_hosts_keeps_everything_that_was_acknowledged() {
    let lab = Lab::up(3);
    let mut tokens = 0;
    let mut more = |lab: &Lab| {
        // A token is the smallest thing that is acknowledged and listed.
        wait::until("a token to be made", SOON, || {
            let ran = lab.vtctl(&["cluster", "token", "create"]);
            if ran.code == 0 { Ok(()) } else { Err(ran) }
        });
        tokens += 1;
        tokens
    };
    more(&lab);
    for killed in [&["host2"][..], &["host1", "host3"], &["host1", "host2", "host3"]] {
        for host in killed {
            lab.vtctl(&["lab", "kill", host]).expect(0);
        }
        for host in killed {
            lab.vtctl(&["lab", "start", host]).expect(0);
        }
        lab.wait_for_live(3);
        let acknowledged = more(&lab);
        let listed = lab.json(&["cluster", "token", "list"])["tokens"].as_array().unwrap().len();
        // A create whose answer was lost may have happened too, so there may be more, never fewer.
        assert!(listed >= acknowledged, "{listed} tokens are left of {acknowledged} after {killed:?} were killed");
    }
}

#[test]
fn without_a_quorum_nothing_is_decided_and_the_exit_code_says_so() {
    let lab = Lab::up(3);
    lab.vtctl(&["lab", "kill", "host1"]).expect(0);
    lab.vtctl(&["lab", "kill", "host3"]).expect(0);
    let status = wait::until("no quorum to be seen", SOON, || {
        let ran = lab.vtctl(&["cluster", "status"]);
        if ran.code == 21 { Ok(ran) } else { Err(ran) }
    });
    assert!(status.stdout.contains("NO QUORUM"), "{}", status.stdout);
    let run = lab.vtctl(&["run", "uptime", "-m", "host2"]);
    assert_eq!(run.code, 21, "{}", run.stderr);
    assert!(run.stderr.contains("E0203"), "{}", run.stderr);
    lab.vtctl(&["lab", "start", "host1"]).expect(0);
    wait::until("a quorum again", SOON, || {
        let ran = lab.vtctl(&["cluster", "status"]);
        if ran.code == 0 { Ok(()) } else { Err(ran) }
    });
}

#[test]
fn a_host_that_is_cut_off_is_suspect_and_the_others_go_on_with_another_leader() {
    let lab = Lab::up(3);
    let leader = lab.json(&["cluster", "status"])["leader"].as_str().unwrap().to_owned();
    lab.vtctl(&["lab", "partition", &leader]).expect(0);
    wait::until("another leader and a suspect", SOON, || {
        let ran = lab.vtctl(&["cluster", "status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
        let other = status["leader"].as_str().is_some_and(|name| name != leader);
        let hosts = status["hosts"].as_array().cloned().unwrap_or_default();
        let noticed = hosts.iter().any(|host| host["name"] == leader.as_str() && host["state"] != "live");
        if other && noticed && status["quorum"] == true { Ok(()) } else { Err((ran.stdout, ran.stderr)) }
    });
    lab.vtctl(&["cluster", "token", "create"]).expect(0);
    lab.vtctl(&["lab", "heal"]).expect(0);
    lab.wait_for_live(3);
}

#[test]
fn two_hosts_have_one_voter_and_are_told_that_it_is_fragile() {
    let lab = Lab::up(2);
    let status = lab.json(&["cluster", "status"]);
    assert_eq!(status["voters"], 1);
    assert_eq!(status["survives"], 0);
    let notes = status["notes"].to_string();
    assert!(notes.contains("stops everything"), "{notes}");
}

#[test]
fn two_labs_stand_side_by_side_and_nothing_is_left_of_either() {
    let (a, b) = (Lab::up(1), Lab::up(1));
    assert_ne!(a.name(), b.name());
    a.vtctl(&["cluster", "status"]).expect(0);
    b.vtctl(&["cluster", "status"]).expect(0);
    let names = [a.name().to_owned(), b.name().to_owned()];
    drop((a, b));
    let namespaces = std::process::Command::new("ip").args(["netns", "list"]).output().unwrap();
    let namespaces = String::from_utf8_lossy(&namespaces.stdout).into_owned();
    for name in names {
        assert!(!namespaces.contains(&format!("vt-{name}-")), "{namespaces}");
    }
}
