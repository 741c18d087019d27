//! VMs with a real QEMU and no guest: started, moved, found again, and the ways in which a start fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod places;

use std::{fs, time::Duration};

use places::{Places, setup};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use vt_daemon::qemu::{
    Channel, Found, Sampler, Vm, VmError,
    cable::{Cable, MacvtapMode, Way},
    process::Exit,
    qmp::{MigrationStatus, Qmp, QmpError, RunState, Transcript},
    remains,
    tap::Tap,
};
use vt_protocol::{
    error::ErrorCode,
    vm::{Nic, NicModel},
};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_vm_starts_stopped_and_its_teardown_leaves_only_evidence() {
    let places = Places::new();
    let before = places.inventory();
    // As the daemon's unit has it, where this process may.
    let spared = fs::write("/proc/self/oom_score_adj", "-100").is_ok();
    let vm = Vm::start(setup("vm1"), places.vm("vm1")).await.unwrap();
    let status = vm.qmp().query_status().await.unwrap();
    assert_eq!((status.running, status.state), (false, RunState::Prelaunch));
    assert!(!vm.qmp().query_kvm().await.unwrap());
    assert_eq!(vm.qmp().query_version().await.unwrap(), vm.qmp().greeting().version);
    assert!(vm.qmp().query_machines().await.unwrap().iter().any(|m| m.alias.as_deref() == Some("q35")));
    assert_eq!(vm.qmp().query_cpu_threads().await.unwrap().len(), 1);
    for channel in [Channel::Console, Channel::Agent, Channel::Probe] {
        tokio::net::UnixStream::connect(vm.socket(channel)).await.unwrap();
    }
    // A session of its own, so that a signal to the daemon's terminal does not reach it.
    let stat = fs::read_to_string(format!("/proc/{}/stat", vm.pid())).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, vm.pid().to_string());
    if spared {
        let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", vm.pid())).unwrap();
        assert_eq!(score.trim(), "0", "the daemon is spared where memory is short, and QEMU is not");
    }
    if let Some(group) = &vm.record().cgroup {
        let group = vt_daemon::cgroup::Cgroup::at(group.clone());
        assert_eq!(group.processes(), [vm.pid()]);
    }
    assert_ne!(places.inventory(), before);

    let mut events = vm.qmp().events();
    vm.qmp().cont().await.unwrap();
    events.wait_for(|e| e.name == "RESUME", Instant::now() + LONG).await.unwrap();
    vm.qmp().stop().await.unwrap();
    events.wait_for(|e| e.name == "STOP", Instant::now() + LONG).await.unwrap();

    let evidence = vm.evidence().to_owned();
    let ending = vm.teardown().await;
    assert_eq!((ending.exit, &ending.left), (Exit::Code(0), &vec![]));
    assert_eq!(places.inventory(), before);
    assert!(!places.run_dir("vm1").exists());
    let transcript = fs::read_to_string(evidence.join("qmp.jsonl")).unwrap();
    let rows: Vec<Value> = transcript.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.iter().any(|row| row["msg"]["event"] == "RESUME"));
    assert!(rows.iter().any(|row| row["msg"]["execute"] == "quit"));
    let command = fs::read_to_string(evidence.join("qemu.command")).unwrap();
    assert!(command.starts_with('/') && command.contains("\n-nodefaults\n"), "{command}");
}

#[tokio::test]
async fn a_qemu_that_is_not_there_or_dies_is_one_clear_error_and_leaves_nothing() {
    let places = Places::new();
    let before = places.inventory();

    let missing = setup_with(|setup| setup.qemu = "qemu-system-of-nowhere".into());
    let report = Vm::start(missing, places.vm("vm1")).await.unwrap_err().report();
    assert_eq!(report.code, ErrorCode::QemuMissing);
    assert!(report.title.contains("qemu-system-of-nowhere"), "{report:?}");

    // A file that is executable and cannot be run.
    let broken = places.root().join("broken-qemu");
    fs::write(&broken, b"#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let broken = setup_with(|setup| setup.qemu = broken.to_string_lossy().into_owned());
    let report = Vm::start(broken, places.vm("vm1")).await.unwrap_err().report();
    assert_eq!(report.code, ErrorCode::QemuMissing, "{report:?}");

    let dies = setup_with(|setup| setup.spec.extra_args = vec!["-device".into(), "flux-capacitor".into()]);
    let report = Vm::start(dies, places.vm("vm1")).await.unwrap_err().report();
    assert_eq!(report.code, ErrorCode::QemuDied);
    assert!(report.evidence.iter().any(|(_, text)| text.contains("flux-capacitor")), "{report:?}");

    let no_image = setup_with(|setup| {
        setup.disk = Some(vt_daemon::qemu::Disk {
            path: "/no/such.qcow2".into(),
            format: "qcow2".into(),
            below: None,
            served: None,
        });
    });
    let report = Vm::start(no_image, places.vm("vm1")).await.unwrap_err().report();
    assert!(report.evidence.iter().any(|(_, text)| text.contains("/no/such.qcow2")), "{report:?}");

    let no_bridge = setup_with(|setup| {
        setup.spec.nics = vec![Nic { mac: [2, 0, 0, 0, 0, 1], address: None, prefix: 24, model: NicModel::Virtio }];
    });
    let report = Vm::start(no_bridge, places.vm("vm1")).await.unwrap_err().report();
    assert_eq!(report.code, ErrorCode::NetworkSetup);

    let long = places.root().join("x".repeat(90)).join("vm");
    let mut places_long = places.vm("vm1");
    places_long.run_dir = long;
    assert!(matches!(Vm::start(setup("vm1"), places_long).await, Err(VmError::PathTooLong(_))));
    assert_eq!(places.inventory(), before);
}

#[tokio::test]
async fn a_start_given_up_half_way_leaves_nothing() {
    let places = Places::new();
    let before = places.inventory();
    for after_ms in [0, 1, 5, 20, 40, 80] {
        let start = Vm::start(setup("vm1"), places.vm("vm1"));
        if let Ok(vm) = timeout(Duration::from_millis(after_ms), start).await {
            assert_eq!(vm.unwrap().teardown().await.left, Vec::<String>::new());
        }
        assert_eq!(places.inventory(), before, "given up after {after_ms} ms");
    }
}

#[tokio::test]
async fn a_vm_outlives_its_daemon_and_is_found_again() {
    let places = Places::new();
    let before = places.inventory();
    let vm = Vm::start(setup("vm1"), places.vm("vm1")).await.unwrap();
    let (pid, run_dir) = (vm.pid(), vm.run_dir().to_owned());
    vm.qmp().cont().await.unwrap();
    vm.qmp().close();
    drop(vm);

    let Found::Running(vm) = Vm::find(&run_dir).await.unwrap() else { panic!("not found") };
    assert_eq!((vm.pid(), vm.id().name.as_str()), (pid, "vm1"));
    assert!(vm.qmp().query_status().await.unwrap().running);

    // The daemon was killed between the start and the record of the process: it is found by its words.
    let mut record = vm.record().clone();
    record.process = None;
    record.write(&run_dir).unwrap();
    vm.qmp().close();
    drop(vm);
    let Found::Running(vm) = Vm::find(&run_dir).await.unwrap() else { panic!("not found without its process id") };
    assert_eq!(vm.pid(), pid);
    assert!(matches!(Vm::start(setup("vm1"), places.vm("vm1")).await, Err(VmError::InUse(_))));

    // QEMU ends while nobody looks.
    vm.process().kill().unwrap();
    timeout(LONG, vm.process().ended()).await.unwrap();
    assert!(matches!(vm.died().await, VmError::Died { .. }));
    drop(vm);
    assert!(matches!(Vm::find(&run_dir).await.unwrap(), Found::Ended));
    assert_eq!(remains::clear(&run_dir), Vec::<String>::new());
    assert!(matches!(Vm::find(&run_dir).await.unwrap(), Found::Nothing));
    assert_eq!(places.inventory(), before);
}

#[tokio::test]
async fn what_a_killed_daemon_left_is_cleared_without_its_memory() {
    let places = Places::new();
    let before = places.inventory();
    let vm = Vm::start(setup("vm1"), places.vm("vm1")).await.unwrap();
    let run_dir = vm.run_dir().to_owned();
    let process = vm.process().clone();
    let group = vm.record().cgroup.clone();
    fs::write(run_dir.join("vm.json"), b"{ torn").unwrap();
    drop(vm);
    assert!(matches!(Vm::find(&run_dir).await, Err(VmError::Io { .. })));
    assert_eq!(remains::clear(&run_dir), Vec::<String>::new());
    timeout(LONG, process.ended()).await.unwrap();
    assert!(group.is_none_or(|group| !group.exists()));
    assert_eq!(places.inventory(), before);
}

#[tokio::test]
async fn a_vm_moves_between_two_qemus() {
    let places = Places::new();
    let source = Vm::start(setup("vm1"), places.vm("source")).await.unwrap();
    let destination = Vm::start(setup_with(|setup| setup.incoming = true), places.vm("destination")).await.unwrap();
    let capabilities = [("events".to_owned(), true), ("late-block-activate".to_owned(), true)].into();
    let parameters = [("downtime-limit".to_owned(), 200.into())].into();
    for vm in [&source, &destination] {
        let set = vm.qmp().migrate_set_capabilities(&capabilities).await.unwrap();
        assert_eq!(set.get("events"), Some(&true));
        vm.qmp().migrate_set_parameters(&parameters).await.unwrap();
    }
    let refused = source.qmp().migrate_set_capabilities(&[("teleport".to_owned(), true)].into()).await.unwrap_err();
    assert!(matches!(&refused, QmpError::Refused { desc, .. } if desc.contains("teleport")), "{refused}");
    assert_eq!(refused.report().code, ErrorCode::QmpFailed);

    source.qmp().cont().await.unwrap();
    let (mut at_source, mut at_destination) = (source.qmp().events(), destination.qmp().events());
    let uri = format!("unix:{}", places.root().join("mig").display());
    destination.qmp().migrate_incoming(&uri).await.unwrap();
    source.qmp().migrate(&uri).await.unwrap();
    let deadline = Instant::now() + LONG;
    let status = source.qmp().wait_migration(&mut at_source, MigrationStatus::is_final, deadline).await.unwrap();
    assert_eq!(status, MigrationStatus::Completed);
    let status =
        destination.qmp().wait_migration(&mut at_destination, MigrationStatus::is_final, deadline).await.unwrap();
    assert_eq!(status, MigrationStatus::Completed);
    // The event comes a moment before the state.
    while source.qmp().query_status().await.unwrap().state != RunState::PostMigrate {
        assert!(Instant::now() < deadline, "the source does not come to postmigrate");
    }
    // `-S`: the destination waits for the decision.
    assert!(!destination.qmp().query_status().await.unwrap().running);
    destination.qmp().cont().await.unwrap();
    at_destination.wait_for(|e| e.name == "RESUME", deadline).await.unwrap();
    let info = source.qmp().query_migrate().await.unwrap();
    assert!(info.total_ms.is_some() && info.downtime_ms.is_some() && info.ram.unwrap().transferred > 0, "{info:?}");
    for vm in [source, destination] {
        assert_eq!(vm.teardown().await.left, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_slow_migration_is_sampled_at_least_eight_times_a_second() {
    let places = Places::new();
    let source = Vm::start(setup_with(|setup| setup.memory_in_file = true), places.vm("source")).await.unwrap();
    let destination = Vm::start(setup_with(|setup| setup.incoming = true), places.vm("destination")).await.unwrap();
    source.qmp().migrate_set_capabilities(&[("events".to_owned(), true)].into()).await.unwrap();
    // Pages that are not zero, and so little bandwidth that it would take half a minute.
    let pages: Vec<u8> = (0..30u32 << 20).map(|i| (i / 4096) as u8 | 1).collect();
    let ram = fs::OpenOptions::new().write(true).open(source.run_dir().join("ram")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&ram, &pages, 1 << 20).unwrap();
    source.qmp().migrate_set_parameters(&[("max-bandwidth".to_owned(), (1 << 20).into())].into()).await.unwrap();
    let uri = format!("unix:{}", places.root().join("mig").display());
    destination.qmp().migrate_incoming(&uri).await.unwrap();
    let mut events = source.qmp().events();
    source.qmp().migrate(&uri).await.unwrap();
    let sampler = Sampler::start(source.qmp().clone(), Instant::now());
    let two_seconds = sampler.latest().wait_for(|sample| sample.t_ms >= 2000).await.unwrap().t_ms;
    source.qmp().migrate_cancel().await.unwrap();
    let deadline = Instant::now() + LONG;
    source.qmp().wait_migration(&mut events, MigrationStatus::is_final, deadline).await.unwrap();
    let samples = sampler.finish().await;
    assert!(samples.len() as u64 >= 8 * two_seconds / 1000, "{} samples in {two_seconds} ms", samples.len());
    assert!(samples.iter().any(|s| s.status == "active" && s.ram_remaining_bytes > 0), "{samples:?}");
    assert_eq!(samples.last().unwrap().status, "cancelled");
    for vm in [source, destination] {
        assert_eq!(vm.teardown().await.left, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_real_monitor_takes_out_of_band_and_a_hundred_commands_at_once() {
    let places = Places::new();
    let vm = Vm::start(setup("vm1"), places.vm("vm1")).await.unwrap();
    assert!(vm.qmp().greeting().out_of_band);
    // `migrate-pause` is allowed out of band and refused without a migration: QEMU itself answers.
    let refused = vm.qmp().migrate_pause().await.unwrap_err();
    assert!(refused.is_refusal(), "{refused}");
    let refused = vm.qmp().execute_oob("query-status", Value::Null, LONG).await.unwrap_err();
    assert!(matches!(&refused, QmpError::Refused { desc, .. } if desc.contains("does not support OOB")), "{refused}");
    // A hundred commands at once, more than QEMU would queue.
    let asked: Vec<_> = (0..100)
        .map(|_| {
            let qmp = vm.qmp().clone();
            tokio::spawn(async move { qmp.query_status().await })
        })
        .collect();
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    let all = vm.qmp().query_commands().await.unwrap();
    assert!(all.iter().any(|name| name == "migrate-recover"));
    let wrong = vm.qmp().execute("query-status", json!({"no": 1}), LONG).await.unwrap_err();
    assert!(wrong.is_refusal(), "{wrong}");
    assert_eq!(vm.teardown().await.left, Vec::<String>::new());
}

#[tokio::test]
async fn ram_in_a_file_can_be_changed_from_outside() {
    use std::os::unix::fs::FileExt;
    let places = Places::new();
    let vm = Vm::start(setup_with(|setup| setup.memory_in_file = true), places.vm("vm1")).await.unwrap();
    let file = fs::OpenOptions::new().write(true).open(vm.run_dir().join("ram")).unwrap();
    file.write_all_at(&[0xa5], 0x100000).unwrap();
    let seen = vm.qmp().execute("human-monitor-command", json!({"command-line": "xp /1xb 0x100000"}), LONG).await;
    assert!(seen.unwrap().as_str().unwrap().contains("0xa5"));
    assert_eq!(vm.teardown().await.left, Vec::<String>::new());
}

/// In a network namespace of the test's own thread.
#[tokio::test]
async fn network_cards_are_on_taps_that_come_and_go_with_the_vm() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let ip = |words: &str| {
        let output = std::process::Command::new("ip").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    // With an address of its own: one that it takes from its ports changes with them, and all neighbours are forgotten.
    ip("link add br0 address 02:00:00:00:00:01 type bridge");
    ip("link set br0 up");
    let places = Places::new();
    let with_cards = |bridge: &str| {
        setup_with(|setup| {
            let address = Some([10, 9, 9, 9].into());
            let nic = |last, model| Nic { mac: [0x52, 0x54, 0, 0, 0, last], address, prefix: 24, model };
            setup.spec.nics = vec![nic(1, NicModel::Virtio), nic(2, NicModel::Vmxnet3)];
            setup.bridge = Some(bridge.to_owned());
        })
    };
    let report = Vm::start(with_cards("br-none"), places.vm("vm1")).await.unwrap_err().report();
    assert_eq!(report.code, ErrorCode::NetworkSetup);
    assert_eq!(Tap::all().unwrap(), Vec::<String>::new());

    // A tap of that name left by a crash is replaced; the card that had the address before is forgotten, and no other.
    Tap::create(&Tap::name_for(&places.run_dir("vm1"), 0), "br0").unwrap().keep();
    ip("address add 10.9.9.1/24 dev br0");
    for number in [8, 9] {
        ip(&format!("neighbour add 10.9.9.{number} lladdr 52:54:00:00:00:f{number} dev br0 nud stale"));
    }
    let vm = Vm::start(with_cards("br0"), places.vm("vm1")).await.unwrap();
    let known = ip("neighbour show dev br0");
    assert!(known.contains("52:54:00:00:00:f8") && !known.contains("52:54:00:00:00:f9"), "{known}");
    let mut taps = vm.record().taps.clone();
    taps.sort();
    assert_eq!((taps.len(), &taps), (2, &Tap::all().unwrap()));
    let on_bridge = ip("-o link show master br0");
    assert!(taps.iter().all(|tap| on_bridge.contains(tap)), "{on_bridge}");
    let seen = vm.qmp().execute("query-pci", Value::Null, LONG).await.unwrap();
    let devices = seen[0]["devices"].as_array().unwrap();
    let vendor = |id: &str| devices.iter().find(|device| device["qdev_id"] == id).map(|device| &device["id"]["vendor"]);
    // Red Hat's and VMware's.
    assert_eq!((vendor("nic0"), vendor("nic1")), (Some(&json!(0x1af4)), Some(&json!(0x15ad))));
    assert!(places.inventory().iter().any(|line| line.starts_with("tap ")));
    let run_dir = vm.run_dir().to_owned();
    // Cleared from this thread, as others are in another namespace; and without a record, by name.
    fs::write(run_dir.join("vm.json"), b"{ torn").unwrap();
    drop(vm);
    assert_eq!(remains::clear(&run_dir), Vec::<String>::new());
    assert_eq!(Tap::all().unwrap(), Vec::<String>::new());
    drop(Tap::create("vmt0123456789ab", "br0").unwrap());
    assert!(!Tap::exists("vmt0123456789ab"));
}

/// In a network namespace of the test's own thread, whose devices the machine's /dev knows nothing of.
#[tokio::test]
async fn a_card_on_a_macvtap_has_its_device_and_sends_by_the_uplink() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let ip = |words: &str| {
        let output = std::process::Command::new("ip").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    ip("link add up0 type veth peer name up1");
    ip("link set up0 up");
    ip("link set up1 up");
    let places = Places::new();
    let mac = [0x52, 0x54, 0, 0, 9, 1];
    let with_uplink = |uplink: Option<&str>| {
        setup_with(|setup| {
            setup.spec.nics = vec![Nic { mac, address: None, prefix: 24, model: NicModel::Virtio }];
            setup.cables = vec![Cable { way: Way::Macvtap(MacvtapMode::Bridge), vhost: false }];
            setup.uplink = uplink.map(str::to_owned);
        })
    };
    for (uplink, says) in [(None, "no uplink"), (Some("up-none"), "up-none")] {
        let report = Vm::start(with_uplink(uplink), places.vm("vm1")).await.unwrap_err().report();
        assert!(report.code == ErrorCode::NetworkSetup && format!("{report:?}").contains(says), "{report:?}");
        assert_eq!(Tap::all().unwrap(), Vec::<String>::new());
    }

    let vm = Vm::start(with_uplink(Some("up1")), places.vm("vm1")).await.unwrap();
    let tap = vm.record().taps[0].clone();
    let shown = ip(&format!("-details -o link show dev {tap}"));
    for part in ["@up1", "macvtap mode bridge", "52:54:00:00:09:01"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let open = fs::read_dir(format!("/proc/{}/fd", vm.pid())).unwrap();
    let open: Vec<_> = open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    let device = open.iter().any(|file| {
        let name = file.to_string_lossy();
        name.starts_with(&format!("/dev/{tap}")) || name.starts_with("/dev/tap")
    });
    assert!(device, "{open:?}");
    assert!(!std::path::Path::new(&format!("/dev/{tap}")).exists(), "a device is left");
    let network = vm.qmp().execute("human-monitor-command", json!({"command-line": "info network"}), LONG).await;
    let network = network.unwrap();
    assert!(network.as_str().unwrap().contains("net0: index=0,type=tap,fd="), "{network}");
    assert!(places.inventory().contains(&format!("tap {tap}")));
    // From this thread, as others are in another namespace.
    let run_dir = vm.run_dir().to_owned();
    drop(vm);
    assert_eq!(remains::clear(&run_dir), Vec::<String>::new());
    assert_eq!(Tap::all().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_monitor_in_use_by_another_waits_its_turn() {
    let places = Places::new();
    let vm = Vm::start(setup("vm1"), places.vm("vm1")).await.unwrap();
    vm.qmp().close();
    let again = Qmp::connect(&vm.run_dir().join("qmp"), Transcript::none()).await.unwrap();
    again.query_status().await.unwrap();
    assert_eq!(vm.teardown().await.left, Vec::<String>::new());
}

fn setup_with(change: impl FnOnce(&mut vt_daemon::qemu::VmSetup)) -> vt_daemon::qemu::VmSetup {
    let mut setup = setup("vm1");
    change(&mut setup);
    setup
}
