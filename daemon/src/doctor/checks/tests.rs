//! A healthy host has nothing worse than a note, and each thing that is broken on it is found by its check, with its fix.

use std::time::Duration;

use vt_protocol::{facts::QemuFacts, vm::Accelerator};

use super::{
    super::seen::{Echo, Folder, Loss, Machine, Member, Network, Qemu, Use, Writes},
    *,
};

const GIB: u64 = 1 << 30;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn folder(purpose: Use, path: &str, mode: u32) -> Folder {
    let trial = (purpose == Use::Disks).then(|| Ok(vec!["creates, writes, syncs and reads back".to_owned()]));
    Folder {
        purpose,
        path: path.into(),
        mode: Some(mode),
        free: Some(40 * GIB),
        trial,
        shares_blocks: (purpose == Use::Images).then_some(true),
    }
}

fn fit() -> Fit {
    Fit {
        cpu: "EPYC".into(),
        kvm: true,
        qemu: "10.0.2".into(),
        machines: vec!["pc-q35-9.2".into(), "pc-q35-10.0".into()],
        shared: true,
        times_ms: vec![("renew".into(), 1000), ("suspect".into(), 2000)],
        unix_s: 1_000_000,
        microcode: "0x1000065".into(),
        firmware: "5f1c0e".repeat(10),
        capabilities: vec!["multifd".into(), "postcopy-ram".into()],
        tsc_khz: 2_250_000,
        saved_unix_s: 1_000_000 - 3600,
    }
}

fn healthy() -> Seen {
    let capabilities = ["late-block-activate", "pause-before-switchover", "events", "multifd", "postcopy-ram"];
    let more = ["postcopy-preempt", "xbzrle", "auto-converge", "mapped-ram", "return-path"];
    Seen {
        machine: Machine {
            vendor: "AuthenticAMD".into(),
            virtualisation: true,
            is_vm: false,
            dev_kvm: true,
            nested: Some("1".into()),
            dev_tun: true,
            dev_vhost_net: true,
            root: true,
            cgroups: Ok("/sys/fs/cgroup/vtmesh".into()),
            open_files: 1 << 20,
            userfaultfd: true,
            memory: (16 * GIB, 8 * GIB),
            huge_pages_idle: 0,
            iommu_groups: 12,
            confined: None,
            clocksource: "tsc".into(),
            clock_keeper: Some("chronyd".into()),
            old_data: Vec::new(),
        },
        programs: PROGRAMS.iter().map(|program| program.name).collect(),
        qemu: Ok(Qemu {
            facts: QemuFacts {
                name: "default".into(),
                path: "/usr/bin/qemu-system-x86_64".into(),
                version: "10.0.2".into(),
                accelerator: Accelerator::Kvm,
                accelerator_reason: "a guest ran under KVM".into(),
            },
            capabilities: capabilities.iter().chain(&more).map(|it| (*it).to_owned()).collect(),
            tls: true,
            machines: vec![("pc-q35-10.0".into(), Some("q35".into()))],
        }),
        libvirt: Some(Ok("11.3".into())),
        certificates: Some(("/etc/pki/vtmesh".into(), true)),
        network: Network {
            bridge: Some(("br0".into(), true)),
            uplink: Some(("eth1".into(), true)),
            control: Some("eth0".into()),
            migration: Some(("10.77.0.11".parse().unwrap(), Some("eth1".into()))),
            strict: Vec::new(),
            not_offloaded: Some(Vec::new()),
            closed: Some(Vec::new()),
            free_ports: (64, 64),
        },
        folders: vec![
            folder(Use::Data, "/var/lib/vtmesh", 0o700),
            folder(Use::Images, "/srv/images", 0o755),
            folder(Use::Disks, "/srv/disks", 0o755),
        ],
        fsync: Some(Writes { median: Duration::from_millis(2), p99: Duration::from_millis(9) }),
        builtin_image: true,
        member: Some(Member {
            me: Some(name("host1")),
            witness: false,
            quorum: true,
            voters: 3,
            willing: 3,
            hosts: ["host1", "host2", "host3"].map(|host| (name(host), true, "0.1.0".to_owned())).to_vec(),
            lag: vec![(name("host2"), 3)],
            two_authorities: false,
            pools: vec![(name("nas"), Ok(vec!["reads back".to_owned()]))],
            left_behind: Vec::new(),
        }),
        fit: fit(),
    }
}

fn found(seen: &Seen) -> Vec<Finding> {
    of_a_host(seen, &Checks::default()).into_iter().map(|(finding, _)| finding).collect()
}

fn member(seen: &mut Seen) -> &mut Member {
    seen.member.as_mut().unwrap()
}

fn qemu(seen: &mut Seen) -> &mut Qemu {
    seen.qemu.as_mut().unwrap()
}

fn emulates(seen: &mut Seen, vendor: &str, (virtualisation, is_vm, dev_kvm): (bool, bool, bool)) {
    qemu(seen).facts.accelerator = Accelerator::Tcg;
    seen.machine = Machine { vendor: vendor.into(), virtualisation, is_vm, dev_kvm, ..seen.machine.clone() };
}

#[test]
fn a_healthy_host_has_no_finding() {
    let all = found(&healthy());
    let bad: Vec<&Finding> = all.iter().filter(|finding| finding.severity > Severity::Ok).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(all.len(), OF_A_HOST.len(), "every check says something of a whole host");
    assert!(all.iter().all(|finding| finding.host == Some(name("host1")) && !finding.found.is_empty()));
    // Without a daemon there is nothing of the cluster, and nothing else is missing.
    let alone = found(&Seen { member: None, libvirt: None, certificates: None, ..healthy() });
    assert!(alone.iter().all(|finding| finding.severity == Severity::Ok && finding.group != Group::Cluster));
}

#[test]
fn ids_are_unique_and_titles_short() {
    let mut ids: Vec<&str> = OF_A_HOST.iter().map(|check| check.id).collect();
    ids.extend(OF_A_LINK.iter().map(|check| check.id));
    ids.extend(OF_A_PAIR.iter().map(|check| check.id));
    ids.extend(OF_ALL.iter().map(|check| check.id));
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    assert!(all >= 40, "{all}");
}

/// What is broken, the check that finds it, how bad that is, and a part of what is to be done.
type Broken = (&'static str, fn(&mut Seen), &'static str, Severity, &'static str);

#[rustfmt::skip]
const BROKEN: &[Broken] = &[
    ("an AMD host whose firmware switched it off", |s| emulates(s, "AuthenticAMD", (false, false, false)), "D-PLT-01", Severity::Note, "AMD-V, SVM mode"),
    ("an Intel host whose firmware switched it off", |s| emulates(s, "GenuineIntel", (false, false, false)), "D-PLT-01", Severity::Note, "Intel VT-x"),
    ("an Intel VM without vmx", |s| emulates(s, "GenuineIntel", (false, true, true)), "D-PLT-01", Severity::Note, "options kvm_intel nested=1"),
    ("an AMD VM without svm", |s| emulates(s, "AuthenticAMD", (false, true, true)), "D-PLT-01", Severity::Note, "options kvm_amd nested=1"),
    ("a VM gets no CPU with svm", |s| emulates(s, "AuthenticAMD", (false, true, true)), "D-PLT-01", Severity::Note, "host-passthrough"),
    ("the kvm module is not loaded", |s| emulates(s, "AuthenticAMD", (true, false, false)), "D-PLT-01", Severity::Note, "modprobe kvm_amd"),
    ("a VM whose KVM is filtered", |s| emulates(s, "GenuineIntel", (true, true, true)), "D-PLT-01", Severity::Note, "kvm_intel with nested=1"),
    ("KVM that does not run guests", |s| emulates(s, "GenuineIntel", (true, false, true)), "D-PLT-01", Severity::Note, "dmesg"),
    ("a CPU of another maker", |s| emulates(s, "Transmeta", (false, false, false)), "D-PLT-01", Severity::Note, "Intel or AMD"),
    ("no nesting", |s| s.machine.nested = Some("0".into()), "D-PLT-02", Severity::Note, "modprobe -r kvm_amd"),
    ("no qemu-img", |s| _ = s.programs.remove("qemu-img"), "D-PLT-03", Severity::Fail, "apt-get install qemu-utils"),
    ("no ip", |s| _ = s.programs.remove("ip"), "D-PLT-03", Severity::Fail, "iproute2"),
    ("no nft", |s| _ = s.programs.remove("nft"), "D-PLT-04", Severity::Note, "nftables"),
    ("no tun", |s| s.machine.dev_tun = false, "D-PLT-05", Severity::Fail, "modprobe tun"),
    ("no tun, and no bridge", |s| { s.machine.dev_tun = false; s.network.bridge = None }, "D-PLT-05", Severity::Note, "modprobe tun"),
    ("no vhost", |s| s.machine.dev_vhost_net = false, "D-PLT-05", Severity::Note, "modprobe vhost_net"),
    ("no cgroup v2", |s| s.machine.cgroups = Err("no cgroup2 file system is mounted".into()), "D-PLT-06", Severity::Warn, "cgroup2"),
    ("not root", |s| s.machine.root = false, "D-PLT-07", Severity::Warn, "root"),
    ("few files", |s| s.machine.open_files = 256, "D-PLT-08", Severity::Warn, "LimitNOFILE"),
    ("no userfaultfd", |s| s.machine.userfaultfd = false, "D-PLT-09", Severity::Warn, "vm.unprivileged_userfaultfd=1"),
    ("no memory", |s| s.machine.memory.1 = GIB / 4, "D-PLT-10", Severity::Warn, "fewer VMs"),
    ("no bridge", |s| s.network.bridge = Some(("br9".into(), false)), "D-PLT-11", Severity::Fail, "ip link add br9 type bridge"),
    ("no such address", |s| s.network.migration = Some(("10.9.9.9".parse().unwrap(), None)), "D-PLT-12", Severity::Fail, "[network]"),
    ("no uplink", |s| s.network.uplink = Some(("eth9".into(), false)), "D-PLT-13", Severity::Fail, "uplink under [network]"),
    ("huge pages of nobody", |s| s.machine.huge_pages_idle = 6 * GIB, "D-PLT-14", Severity::Warn, "vm.nr_hugepages=0"),
    ("no IOMMU", |s| s.machine.iommu_groups = 0, "D-PLT-15", Severity::Note, "AMD-Vi"),
    ("a profile of AppArmor", |s| s.machine.confined = Some("/usr/bin/vtd (enforce)".into()), "D-PLT-16", Severity::Note, "aa-complain"),
    ("no QEMU", |s| s.qemu = Err("qemu-system-x86_64 is not there".into()), "D-QEM-01", Severity::Fail, "apt-get install qemu-system-x86"),
    ("an old QEMU", |s| qemu(s).capabilities.retain(|it| it != "late-block-activate"), "D-QEM-02", Severity::Fail, "QEMU 6.0"),
    ("a QEMU before mapped-ram", |s| qemu(s).capabilities.retain(|it| it != "mapped-ram"), "D-QEM-03", Severity::Note, "QEMU 9.0"),
    ("a QEMU of another kind", |s| qemu(s).machines.clear(), "D-QEM-04", Severity::Fail, "x86_64"),
    ("no port", |s| s.network.free_ports = (0, 64), "D-QEM-05", Severity::Fail, "ss -lntp"),
    ("few ports", |s| s.network.free_ports = (3, 64), "D-QEM-05", Severity::Warn, "ss -lntp"),
    ("no libvirt", |s| s.libvirt = Some(Err("connection refused".into())), "D-QEM-06", Severity::Fail, "virtqemud"),
    ("no quorum", |s| member(s).quorum = false, "D-CLU-01", Severity::Fail, "cluster recover"),
    ("a dead host", |s| member(s).hosts[2].1 = false, "D-CLU-02", Severity::Fail, "vtctl host remove host3"),
    ("two hosts", |s| { member(s).hosts.pop(); member(s).voters = 1 }, "D-CLU-03", Severity::Note, "witness"),
    ("one voter of three", |s| { member(s).voters = 1; member(s).willing = 1 }, "D-CLU-03", Severity::Warn, "vtctl host promote"),
    ("half an upgrade", |s| member(s).hosts[1].2 = "0.2.0".into(), "D-CLU-04", Severity::Warn, "vtmesh.lab.upgrade"),
    ("half a rotation", |s| member(s).two_authorities = true, "D-CLU-05", Severity::Note, "ca rotate --finish"),
    ("a replica that lags", |s| member(s).lag[0].1 = 20_000, "D-CLU-08", Severity::Warn, "on host2"),
    ("a clock of its own", |s| s.machine.clock_keeper = None, "D-PLT-17", Severity::Note, "chrony"),
    ("one card for all", |s| s.network.control = Some("eth1".into()), "D-NET-06", Severity::Note, "[network]"),
    ("migrations where decisions are", |s| s.network.migration = None, "D-NET-06", Severity::Note, "mig_speed"),
    ("answers by the other card", |s| s.network.strict = vec!["lo".into(), "eth1".into()], "D-NET-07", Severity::Note, "net.ipv4.conf.eth1.rp_filter=2"),
    ("no images", |s| s.folders[1].mode = None, "D-STO-01", Severity::Fail, "mkdir -p -m 0755 /srv/images"),
    ("images for anybody", |s| s.folders[1].mode = Some(0o777), "D-STO-02", Severity::Fail, "chmod 0775 /srv/images"),
    ("a key for anybody", |s| s.folders[0].mode = Some(0o755), "D-STO-02", Severity::Fail, "chmod 0700 /var/lib/vtmesh"),
    ("a read-only pool", |s| s.folders[2].trial = Some(Err("Read-only file system".into())), "D-STO-03", Severity::Fail, "findmnt"),
    ("little space", |s| s.folders[2].free = Some(GIB / 2), "D-STO-04", Severity::Warn, "vtctl image gc"),
    ("no space", |s| s.folders[0].free = Some(1 << 20), "D-STO-04", Severity::Fail, "keep_days"),
    ("a slow disk", |s| s.fsync = Some(Writes { median: Duration::from_millis(400), p99: Duration::from_millis(410) }), "D-STO-05", Severity::Warn, "SSD"),
    ("a disk that stalls", |s| s.fsync = Some(Writes { median: Duration::from_millis(2), p99: Duration::from_millis(900) }), "D-STO-09", Severity::Warn, "iostat"),
    ("a slow clock", |s| s.machine.clocksource = "hpet".into(), "D-PLT-18", Severity::Note, "grep -i tsc"),
    ("a QEMU without TLS", |s| qemu(s).tls = false, "D-QEM-07", Severity::Note, "gnutls"),
    ("no folder for certificates", |s| s.certificates = Some(("/etc/pki/x".into(), false)), "D-QEM-07", Severity::Fail, "mkdir -p -m 0755 /etc/pki/x"),
    ("a firewall", |s| s.network.closed = Some(vec!["UDP 7465".into()]), "D-NET-09", Severity::Warn, "nft list ruleset"),
    ("packets one by one", |s| s.network.not_offloaded = Some(vec!["eth1 gro".into()]), "D-NET-10", Severity::Note, "ethtool -K eth1 gro on"),
    ("no guest image", |s| s.builtin_image = false, "D-STO-06", Severity::Note, "vtctl image build"),
    ("copies that share nothing", |s| s.folders[1].shares_blocks = Some(false), "D-STO-08", Severity::Note, "reflink=1"),
    ("a pool that is away", |s| member(s).pools[0].1 = Err("no route to host".into()), "D-STO-07", Severity::Fail, "vtctl storage check nas"),
    ("a tap of nobody", |s| member(s).left_behind = vec!["tap vt1234".into()], "D-HYG-01", Severity::Warn, "ip link delete vt1234"),
    ("images of avocado-vt", |s| s.machine.old_data = vec!["/var/lib/avocado/data/avocado-vt".into()], "D-HYG-04", Severity::Note, "vtctl image import"),
];

#[test]
fn every_broken_thing_is_found_and_nothing_else() {
    for (what, breaks, check, severity, help) in BROKEN {
        let mut seen = healthy();
        breaks(&mut seen);
        let bad: Vec<Finding> = found(&seen).into_iter().filter(|finding| finding.severity > Severity::Ok).collect();
        let [finding] = &bad[..] else { panic!("{what}: {bad:#?}") };
        assert_eq!((finding.check.as_str(), finding.severity), (*check, *severity), "{what}: {finding}");
        assert!(finding.fix.iter().any(|line| line.contains(help)), "{what}: {finding}");
    }
}

#[test]
fn a_witness_needs_no_qemu() {
    let mut seen = healthy();
    member(&mut seen).witness = true;
    seen.qemu = Err("it is not there".into());
    seen.folders.truncate(1);
    assert!(found(&seen).iter().all(|finding| finding.severity == Severity::Ok));
}

#[test]
fn only_rights_and_directories_are_mended() {
    let mut seen = healthy();
    seen.folders[1].mode = Some(0o777);
    seen.folders[2].mode = None;
    seen.machine.dev_tun = false;
    let mended: Vec<_> =
        of_a_host(&seen, &Checks::default()).into_iter().filter(|(finding, _)| finding.repairable).collect();
    let ids: Vec<&str> = mended.iter().map(|(finding, _)| finding.check.as_str()).collect();
    assert_eq!(ids, ["D-STO-01", "D-STO-02"]);
    assert_eq!(mended[1].1, [Repair::Mode { path: "/srv/images".into(), mode: 0o775 }]);
    // Sticky, as /tmp is, nobody replaces what is another's.
    seen.folders[1].mode = Some(0o1777);
    assert!(found(&seen).iter().all(|finding| finding.check != "D-STO-02" || finding.severity == Severity::Ok));
}

fn link() -> Link {
    let quick = Duration::from_micros(300);
    let loss = Some(Loss { sent: 300, lost: 1 });
    Link { to: name("host2"), control: Ok(quick), loss, bulk: Ok(quick), migration: Some(Ok(Echo::Whole(quick))) }
}

#[test]
fn every_plane_to_another_host_is_told_on_its_own() {
    let found = |link: Link, worst: Severity| -> Vec<String> {
        let all = of_a_link(&name("host1"), &link, &Checks::default());
        assert!(all.iter().all(|finding| finding.other == Some(name("host2"))));
        all.into_iter().filter(|f| f.severity == worst).map(|f| format!("{} {}", f.check, f.fix.join(" "))).collect()
    };
    let bad = |link: Link| found(link, Severity::Fail);
    assert!(bad(link()).is_empty() && found(link(), Severity::Warn).is_empty());
    for (slow, check, help) in [
        (Link { control: Ok(Duration::from_millis(350)), ..link() }, "D-NET-04", "ping"),
        (Link { loss: Some(Loss { sent: 300, lost: 9 }), ..link() }, "D-NET-08", "ethtool -S"),
        (Link { migration: Some(Ok(Echo::Whole(Duration::from_secs(3)))), ..link() }, "D-NET-05", "ethtool"),
    ] {
        let warned = found(slow, Severity::Warn);
        assert!(warned.len() == 1 && warned[0].starts_with(check) && warned[0].contains(help), "{warned:?}");
    }
    let refused = || Err("connection refused".to_owned());
    let broken = bad(Link { control: refused(), migration: None, ..link() });
    assert!(broken.len() == 1 && broken[0].starts_with("D-NET-01") && broken[0].contains("UDP"), "{broken:?}");
    let broken = bad(Link { bulk: refused(), ..link() });
    assert!(broken.len() == 1 && broken[0].starts_with("D-NET-02") && broken[0].contains("TCP"), "{broken:?}");
    let broken = bad(Link { migration: Some(Err("connection refused".into())), ..link() });
    assert!(broken.len() == 1 && broken[0].starts_with("D-NET-03") && broken[0].contains("49152-49215"), "{broken:?}");
    let broken = bad(Link { migration: Some(Ok(Echo::Stuck(1448))), ..link() });
    assert!(broken.len() == 1 && broken[0].contains("MTU"), "{broken:?}");
}

/// The check, what makes hosts differ, how bad that is, and a part of what is to be done.
type Unfit = (&'static str, fn(&mut Fit), Severity, &'static str);

#[test]
fn what_does_not_fit_between_hosts_is_told() {
    #[rustfmt::skip]
    let broken: &[Unfit] = &[
        ("D-PAI-01", |fit| fit.machines = vec!["pc-q35-6.2".into()], Severity::Fail, "the same version of QEMU"),
        ("D-PAI-02", |fit| fit.qemu = "9.2.0".into(), Severity::Note, "-p machine_type="),
        ("D-PAI-03", |fit| fit.kvm = false, Severity::Warn, "D-PLT-01"),
        ("D-PAI-04", |fit| fit.cpu = "Xeon".into(), Severity::Note, "-p cpu_model="),
        ("D-PAI-05", |fit| fit.shared = false, Severity::Fail, "[pool]"),
        ("D-PAI-06", |fit| fit.times_ms[1].1 = 4000, Severity::Fail, "[session]"),
        ("D-PAI-07", |fit| fit.unix_s += 60, Severity::Warn, "chronyc tracking"),
        ("D-PAI-08", |fit| fit.microcode = "0x1000071".into(), Severity::Note, "amd64-microcode"),
        ("D-PAI-09", |fit| fit.firmware = "ab".repeat(30), Severity::Note, "seabios"),
        ("D-PAI-11", |fit| fit.tsc_khz = 2_400_000, Severity::Note, "kvm-clock"),
        ("D-PAI-10", |fit| _ = fit.capabilities.pop(), Severity::Note, "vtctl scenario show migration_matrix"),
    ];
    let said = |other: &Fit| of_a_pair((&name("host1"), &fit()), (&name("host2"), other), &Checks::default());
    assert!(said(&fit()).iter().all(|finding| finding.severity == Severity::Ok));
    assert!(said(&fit())[0].found.contains("pc-q35-10.0 is the newest"), "{:?}", said(&fit())[0]);
    for (check, breaks, severity, help) in broken {
        let mut other = fit();
        breaks(&mut other);
        let bad: Vec<Finding> = said(&other).into_iter().filter(|finding| finding.severity > Severity::Ok).collect();
        assert!(bad.len() == 1 && bad[0].check == *check && bad[0].severity == *severity, "{bad:#?}");
        assert!(bad[0].fix.iter().any(|line| line.contains(help)), "{}", bad[0]);
    }
}

#[test]
fn the_newest_saved_state_of_all_hosts_counts() {
    let said = |ages_days: &[Option<u64>]| {
        let saved = |days: &Option<u64>| days.map_or(0, |days| 100_000_000 - days * 86_400);
        let fits: Vec<Fit> =
            ages_days.iter().map(|days| Fit { unix_s: 100_000_000, saved_unix_s: saved(days), ..fit() }).collect();
        let [finding] = &of_all(&fits, &Checks::default())[..] else { panic!("one finding") };
        (finding.severity, finding.found.clone(), finding.fix.join(" "))
    };
    assert_eq!(said(&[None, Some(3), Some(90)]).0, Severity::Ok);
    let (severity, found, fix) = said(&[None, Some(90)]);
    assert!(severity == Severity::Note && found.contains("90 days ago") && fix.contains("snapshot save"), "{found}");
    assert!(said(&[None, None]).1.contains("never saved"));
}
