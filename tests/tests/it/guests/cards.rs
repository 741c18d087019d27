//! What network cards are plugged into on each host: macvtaps, and the kernel's vhost where a host has it.

use std::{fs, path::Path, process::Command};

use vt_tests::lab::Lab;

use super::moves::{files, json};

/// Macvtaps of a lab's host, by `ip`.
fn macvtaps(lab: &Lab, host: &str) -> String {
    let namespace = format!("vt-{}-{host}", lab.name());
    let shown = Command::new("ip").args(["-n", &namespace, "-o", "link", "show", "type", "macvtap"]).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    String::from_utf8(shown.stdout).unwrap()
}

#[test]
fn a_guest_on_macvtaps_moves_there_and_back_and_vhost_is_had_or_the_host_says_why_not() {
    let lab = Lab::up_as(2, &["--uplinks"]);
    let before = lab.inventory(2);
    let results = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &[&str]| {
        let bundle = results.path().join(name);
        lab.vtctl(&[&["run"], words, &["-p", "mem=128M", "-r", bundle.to_str().unwrap()]].concat()).expect(0);
        let case = json(&bundle.join("job.json"))["cases"][0].clone();
        (bundle, case)
    };

    // Two cards, of which one has a tap: each is what its own parameters say.
    let cards = ["-p", "nics=nic1 nic2", "-p", "nettype_nic1=macvtap", "-p", "shell_client=ssh"];
    let (bundle, case) = run("macvtap", &[&["multihost_migration", "-m", "host1,host2"][..], &cards].concat());
    // A pass without a remark: the guest was reached at its address from its own host after each move.
    assert_eq!(case["verdict"], "pass", "{case}");
    let events: String = files(&bundle, "events.jsonl").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    assert!(events.contains("echo in"), "{events}");
    // Its shell was the same after each move, or it would have failed.
    assert!(case["steps"].to_string().contains("ssh session"), "{case}");
    let commands = files(&bundle, "qemu.command");
    assert_eq!(commands.len(), 3, "the guest lived in three QEMU processes: {commands:?}");
    for path in commands {
        let words = fs::read_to_string(&path).unwrap();
        assert!(words.contains("tap,id=net0,fd=vmt") && words.contains("tap,id=net1,ifname=vmt"), "{words}");
    }
    let checks: Vec<_> = case["checks"].as_object().unwrap().values().collect();
    assert!(checks.len() == 2 && checks.iter().all(|check| check["downtime"]["network_ms"].is_u64()), "{case}");
    for host in ["host1", "host2"] {
        assert_eq!(macvtaps(&lab, host), "", "{host}");
    }

    // Only where the kernel can: else nothing starts, and the host whose card it is says so.
    let here = Path::new("/dev/vhost-net").exists();
    for (words, host) in [
        (&["uptime", "-m", "host1", "-p", "vhost=on"][..], "host1"),
        (&["multihost_migration", "-m", "host1,host2", "-p", "vhost_host2=on"], "host2"),
    ] {
        let (bundle, case) = run(&format!("vhost-{host}"), words);
        if here {
            assert_eq!(case["verdict"], "pass", "{case}");
            let with = |path: &std::path::PathBuf| fs::read_to_string(path).unwrap().contains("vhost=on,vhostforce=on");
            assert!(files(&bundle, "qemu.command").iter().any(with));
        } else {
            assert_eq!(case["verdict"], "skip", "{case}");
            let why = format!("vhost = on: {host} cannot do it: /dev/vhost-net cannot be opened: ");
            assert!(case["cause"]["title"].as_str().unwrap().starts_with(&why), "{case}");
        }
    }
    assert_eq!(lab.inventory(2), before, "something was left behind");
}
