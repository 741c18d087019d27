//! The built-in image, built from real packages and booted by a real QEMU: it is reproducible, it is reached by every
//! channel, and its probes bite when memory, disk or the guest itself are hurt from outside.
//!
//! No network namespaces and no KVM: QEMU's own emulation and user-mode network.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;
use vt_ctl::image::{BuildOptions, BuiltImage, Event, Recipe, build, current, default_folder};
use vt_daemon::guest::{
    GuestError,
    agent::Agent,
    checks::{Hurt, Limits, Snapshot, compare},
    console::{Console, Credentials},
    probe::Probe,
    reach,
};
use vt_protocol::{
    error::ErrorCode,
    probe::{DISK_DATA_OFFSET, Damage, DiskStart, Exec, MemStart, PAGE_BYTES, page_marker},
};

const PATIENCE: Duration = Duration::from_secs(120);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// A folder that goes away with the test, on the disk of the build.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("image-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn options(images: &Path) -> BuildOptions {
    BuildOptions {
        name: "tiny".into(),
        images: images.into(),
        probe: env!("CARGO_BIN_EXE_vt-probe").into(),
        recipe: Recipe::minimal(),
    }
}

/// Packages that an earlier build of this machine fetched need not be fetched again.
fn share_packages(images: &Path) {
    let cache = images.join(".cache");
    fs::create_dir_all(&cache).unwrap();
    let known = [default_folder().unwrap(), Path::new(env!("CARGO_TARGET_TMPDIR")).join("images")];
    for entry in known.iter().filter_map(|folder| fs::read_dir(folder.join(".cache")).ok()).flatten().flatten() {
        if entry.path().extension().is_some_and(|ending| ending == "deb") {
            fs::copy(entry.path(), cache.join(entry.file_name())).unwrap();
        }
    }
}

/// One image for all tests that boot it.
fn image() -> BuiltImage {
    let images = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
    let options = options(&images);
    current(&options).unwrap_or_else(|| {
        if !images.exists() {
            share_packages(&images);
        }
        build(&options, &mut |_| {}).unwrap_or_else(|error| panic!("{:#?}", error.report()))
    })
}

/// A running guest; QEMU ends with it.
struct Guest {
    qemu: Child,
    monitor: BufReader<UnixStream>,
    folder: tempfile::TempDir,
    started: Instant,
}

impl Guest {
    async fn boot() -> Self {
        let folder = folder();
        fs::File::create(folder.path().join("vdb")).unwrap().set_len(4 << 20).unwrap();
        Self::start(folder, None).await
    }

    /// The destination of a migration of `source`, with the same data disk.
    async fn incoming(source: &Self) -> Self {
        Self::start(folder(), Some(source)).await
    }

    async fn start(folder: tempfile::TempDir, source: Option<&Self>) -> Self {
        let image = image();
        let at = |name: &str| folder.path().join(name);
        let data = source.map_or_else(|| at("vdb"), |source| source.path("vdb"));
        let socket = |name: &str| format!("socket,id={name},path={},server=on,wait=off", at(name).display());
        let file = |name: &str| image.folder.join(name).display().to_string();
        let line = image.record.cmdline_for(Some(([10, 0, 2, 15].into(), 24)), None);
        let disk = format!("if=none,id=vda,snapshot=on,file={}", file(&image.record.disk.name));
        let data = format!("if=none,id=vdb,format=raw,file={}", data.display());
        let memory = format!("memory-backend-file,id=mem,size=256M,share=on,mem-path={}", at("ram").display());
        let started = Instant::now();
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "qemu64"])
            .args(["-machine", "q35,memory-backend=mem", "-m", "256M", "-object", &memory])
            .args(["-kernel", &file("kernel"), "-initrd", &file("initrd"), "-append", &line])
            .args(["-chardev", &socket("console"), "-serial", "chardev:console"])
            .args(["-device", "virtio-serial-pci", "-chardev", &socket("agent"), "-chardev", &socket("probe")])
            .args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"])
            .args(["-device", "virtserialport,chardev=probe,name=org.vtmesh.probe.0"])
            .args(["-drive", &disk, "-device", "virtio-blk-pci,drive=vda"])
            .args(["-drive", &data, "-device", "virtio-blk-pci,drive=vdb"])
            .args(["-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:0-:7"])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-chardev", &socket("qmp"), "-mon", "chardev=qmp,mode=control"])
            .args(source.iter().flat_map(|_| ["-incoming", "defer"]))
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = soon();
        let monitor = loop {
            match UnixStream::connect(at("qmp")) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "no monitor of QEMU: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        monitor.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Self { qemu, monitor: BufReader::new(monitor), folder, started };
        guest.monitor(r#"{"execute":"qmp_capabilities"}"#);
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn probe(&self) -> Probe {
        Probe::new(self.path("probe"))
    }

    async fn console(&self) -> Console {
        Console::connect(&self.path("console"), Credentials::default(), soon()).await.unwrap()
    }

    fn monitor(&mut self, command: &str) -> serde_json::Value {
        self.monitor.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            self.monitor.read_line(&mut line).unwrap();
            let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(returned) = answer.get("return") {
                return returned.clone();
            }
        }
    }

    /// Where QEMU forwards a port of the guest from.
    fn forwarded(&mut self, port: u16) -> u16 {
        let command = r#"{"execute":"human-monitor-command","arguments":{"command-line":"info usernet"}}"#;
        let table = self.monitor(command);
        let lines = table.as_str().unwrap().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut found =
            lines.filter(|words| words.len() > 5 && words[5] == port.to_string()).map(|words| words[3].parse());
        found.next_back().unwrap_or_else(|| panic!("no port {port} in {table}")).unwrap()
    }

    /// Seconds of processor time that QEMU has used: not stretched by whatever else runs here.
    fn processor_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.qemu.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

async fn snapshot(probe: &mut Probe) -> Snapshot {
    Snapshot {
        hello: probe.hello(soon()).await.unwrap(),
        clock: probe.clock(false, soon()).await.unwrap(),
        memory: probe.mem_check(soon()).await.ok(),
        disk: probe.disk_check(soon()).await.ok(),
    }
}

fn limits() -> Limits {
    Limits { clock: Duration::from_secs(30), standstill: Duration::from_secs(30), address: Some("10.0.2.15".into()) }
}

#[test]
fn the_same_packages_give_the_same_bytes_and_nothing_else_is_left() {
    let first = image();
    let images = folder();
    share_packages(images.path());
    let mut events = Vec::new();
    let options = options(images.path());
    let second = build(&options, &mut |event| events.push(event)).unwrap();
    assert_eq!(second.record.digest, first.record.digest);
    assert_eq!(second.record.packages, first.record.packages);
    for file in second.record.files() {
        let bytes = fs::read(second.folder.join(&file.name)).unwrap();
        assert!(file.check(&bytes), "{}", file.name);
        assert!(bytes == fs::read(first.folder.join(&file.name)).unwrap(), "{} differs", file.name);
    }
    assert!(events.iter().any(|event| matches!(event, Event::Step { index: 5, count: 5, .. })));

    let key = fs::read(second.folder.join("ssh_key")).unwrap();
    let third = build(&options, &mut |_| {}).unwrap();
    assert_eq!(third.replaced.as_deref(), Some(second.record.digest.as_str()));
    assert_eq!(fs::read(third.folder.join("ssh_key")).unwrap(), key, "guests that run keep their key");
    let names = |path: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(images.path()), [".cache", "tiny"]);
    assert_eq!(names(&third.folder), ["disk.qcow2", "image.json", "initrd", "kernel", "ssh_key", "ssh_key.pub"]);
    let left = names(&images.path().join(".cache"));
    assert!(left.iter().all(|name| name.ends_with(".deb") || name == "lock" || name == "apt-index.bin"), "{left:?}");
}

#[test]
fn an_image_of_another_probe_or_with_a_damaged_file_is_not_current() {
    let images = folder();
    share_packages(images.path());
    let mut options = options(images.path());
    assert!(current(&options).is_none());
    let built = build(&options, &mut |_| {}).unwrap();
    assert!(current(&options).is_some());
    let initrd = fs::read(built.folder.join("initrd")).unwrap();
    fs::write(built.folder.join("initrd"), [b"x", &initrd[1..]].concat()).unwrap();
    assert!(current(&options).is_none(), "a damaged initrd");
    fs::write(built.folder.join("initrd"), initrd).unwrap();
    assert!(current(&options).is_some());
    options.probe = env!("CARGO_BIN_EXE_vtctl").into();
    assert!(current(&options).is_none(), "another probe");
}

#[test]
fn a_recipe_adds_programs_of_packages_that_are_on_record() {
    let images = folder();
    share_packages(images.path());
    let file = images.path().join("net.toml");
    fs::write(&file, "name = 'net'\npackages = ['iperf3']\nprograms = ['usr/bin/iperf3']\nmodules = ['loop']\n")
        .unwrap();
    let recipe = Recipe::find(file.to_str().unwrap()).unwrap();
    let options = BuildOptions { name: recipe.name.clone(), recipe, ..options(images.path()) };
    let built = build(&options, &mut |_| {}).unwrap();
    let package = built.record.packages.iter().find(|package| package.name == "iperf3").unwrap();
    assert_eq!(package.sha256.len(), 64, "{package:?}");
    let initrd = fs::read(built.folder.join("initrd")).unwrap();
    let has = |name: &str| initrd.windows(name.len()).any(|window| window == name.as_bytes());
    assert!(has("bin/iperf3") && has("libiperf.so.0") && has("lib/modules/loop.ko"));
    assert!(current(&options).is_some());
    let other = BuildOptions { recipe: Recipe::minimal(), ..options.clone() };
    assert!(current(&other).is_none(), "by another recipe it would be another image");
    let absent = Recipe { packages: vec!["no-such-package-9".into()], ..options.recipe.clone() };
    let report = build(&BuildOptions { recipe: absent, ..options }, &mut |_| {}).unwrap_err().report();
    assert!(report.title.contains("no-such-package-9"), "{report:?}");
}

#[test]
fn what_goes_wrong_is_told_and_leaves_what_was_there() {
    let images = folder();
    let good = options(images.path());
    let missing = BuildOptions { probe: images.path().join("no-probe"), ..good.clone() };
    let script = images.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    share_packages(images.path());
    for (options, code, says) in [
        (BuildOptions { name: "../x".into(), ..good.clone() }, ErrorCode::Usage, "../x"),
        (BuildOptions { name: String::new(), ..good.clone() }, ErrorCode::Usage, "name"),
        (missing, ErrorCode::StorageFailed, "no-probe"),
        (BuildOptions { probe: script.clone(), ..good.clone() }, ErrorCode::ImageBuild, "script"),
        (BuildOptions { images: script.join("below"), ..good.clone() }, ErrorCode::StorageFailed, "script"),
        (BuildOptions { images: "/proc/vtmesh".into(), ..good.clone() }, ErrorCode::StorageFailed, "/proc"),
    ] {
        let report = build(&options, &mut |_| {}).unwrap_err().report();
        assert_eq!(report.code, code, "{report:#?}");
        let told = format!("{} {:?}", report.title, report.evidence);
        assert!(told.contains(says), "{says:?} is not in {told}");
    }
    let left: Vec<_> = fs::read_dir(images.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == ".cache" || name == "script"), "{left:?}");
    let cache = fs::read_dir(images.path().join(".cache")).unwrap();
    assert!(cache.flatten().all(|entry| entry.path().is_file()), "a work folder was left");
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    // A file system of its own that is too small; mounting needs root, as running these tests does.
    let place = folder();
    let mount = Mounted::tmpfs(place.path(), "size=120m");
    share_packages(place.path());
    let report = build(&options(place.path()), &mut |_| {}).unwrap_err().report();
    assert_eq!(report.code, ErrorCode::DiskFull, "{report:#?}");
    assert!(!place.path().join("tiny").exists());
    let left: Vec<_> = fs::read_dir(place.path().join(".cache")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.iter().all(|path| path.is_file()), "{left:?}");
    drop(mount);
}

#[test]
fn a_killed_build_leaves_its_cache_and_the_next_one_works() {
    let images = folder();
    share_packages(images.path());
    let vtctl = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtctl"));
        command.args(["image", "build", "--probe", env!("CARGO_BIN_EXE_vt-probe"), "--images"]).arg(images.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let works = || {
        let entries = fs::read_dir(images.path().join(".cache")).unwrap().flatten();
        entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut build = vtctl().spawn().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !works().iter().any(|work| work.join("programs").exists()) {
        assert!(
            std::time::Instant::now() < deadline && build.try_wait().unwrap().is_none(),
            "the build did not unpack"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    build.kill().unwrap();
    build.wait().unwrap();
    assert!(!images.path().join("tiny").exists());
    assert_eq!(works().len(), 1, "what was half done");
    assert!(vtctl().status().unwrap().success());
    assert_eq!(works(), Vec::<PathBuf>::new());
    assert!(images.path().join("tiny/image.json").exists());
    assert!(vtctl().arg("--if-missing").status().unwrap().success());
}

struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(place: &'a Path, option: &str) -> Self {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some(option)).unwrap();
        Self(place)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_guest_is_reached_by_every_channel() {
    let mut guest = Guest::boot().await;
    let mut console = guest.console().await;
    console.login(soon()).await.unwrap();
    let (wall, processor) = (guest.started.elapsed(), guest.processor_seconds());
    println!("login after {:.2} s, {processor:.2} s of processor time", wall.as_secs_f64());
    assert!(processor < 10.0, "{processor} s of processor time until the login");
    let output = console.run("uname -s; exit 4", soon()).await.unwrap();
    assert_eq!((output.status, output.text.as_str()), (4, "Linux\n"));
    let late = console.run("sleep 600", Instant::now() + Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(late, GuestError::Deadline { .. }), "{late}");
    assert_eq!(console.run("echo again", soon()).await.unwrap().text, "again\n", "after a command without end");
    drop(console);
    let mut console = guest.console().await;
    assert_eq!(console.run("echo who is there", soon()).await.unwrap().text, "who is there\n", "a second connection");

    let mut agent = Agent::connect(&guest.path("agent"), soon()).await.unwrap();
    agent.ping(soon()).await.unwrap();
    assert!(agent.info(soon()).await.unwrap().commands.iter().any(|name| name == "guest-exec"));
    let ended = agent.exec(&["/bin/sh", "-c", "echo out; echo err >&2; exit 5"], soon()).await.unwrap();
    assert_eq!((ended.exit, ended.stdout, ended.stderr), (Some(5), b"out\n".to_vec(), b"err\n".to_vec()));

    let mut probe = guest.probe();
    let hello = probe.hello(soon()).await.unwrap();
    assert_eq!(hello.addresses, ["10.0.2.15/24"]);
    let command = ["sh", "-c", "cat /proc/sys/kernel/random/boot_id"].map(String::from).to_vec();
    let ran = probe.exec(Exec { argv: command, timeout_ms: 60_000 }, soon()).await.unwrap();
    assert_eq!((ran.exit, ran.stdout.trim()), (Some(0), hello.boot_id.as_str()));
    drop(probe);
    let mut other = UnixStream::connect(guest.path("probe")).unwrap();
    other.write_all(b"\x00\xff{\"id\":1,\n[]\n{\"id\": 3, \"request\": {\"op\": \"hel").unwrap();
    drop(other);
    assert_eq!(guest.probe().hello(soon()).await.unwrap().probe_pid, hello.probe_pid, "garbage does no harm");

    let (ssh, echo) = (guest.forwarded(22), guest.forwarded(7));
    let here = std::net::IpAddr::from([127, 0, 0, 1]);
    assert!(reach::ssh_greeting(here, ssh, soon()).await.unwrap().starts_with("SSH-2.0-dropbear"));
    guest.probe().net_start(7, soon()).await.unwrap();
    reach::tcp_echo(here, echo, soon()).await.unwrap();
    let login = Command::new("ssh")
        .args(["-p", &ssh.to_string(), "-i"])
        .arg(image().folder.join("ssh_key"))
        .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args(["-o", "ConnectTimeout=60", "root@127.0.0.1", "hostname"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&login.stdout).trim(), "vtmesh-guest", "{login:?}");
}

/// One byte in the guest's RAM is flipped from outside, in one page after the other: found 20 times of 20.
#[tokio::test]
async fn a_byte_flipped_in_memory_is_found_every_time() {
    let guest = Guest::boot().await;
    let mut probe = guest.probe();
    let (pages, seed) = (2048, 0x5eed_0123_4567_89ab);
    let wanted = MemStart { pages, seed, rewrite_bytes_per_second: 8_000_000 };
    probe.mem_start(wanted, soon()).await.unwrap();
    let deadline = soon();
    let before = loop {
        let now = snapshot(&mut probe).await;
        if now.memory.as_ref().is_some_and(|memory| memory.pages_rewritten > u64::from(pages)) {
            break now;
        }
        assert!(Instant::now() < deadline, "{now:?}");
    };
    let passed = Duration::from_secs(1);
    assert_eq!(compare(&before, &before, Duration::ZERO, &limits()), [], "unhurt");
    let ram = fs::OpenOptions::new().read(true).write(true).open(guest.path("ram")).unwrap();
    let places = find_pages(&ram, seed, pages);
    for round in 0..20_u32 {
        let page = round * 97 % pages;
        // In the marker, in the filling, in the last byte, somewhere else every time.
        let offset = [0, 15, 24, 4095, 512 + round as usize * 64][round as usize % 5];
        let at = places[page as usize] + offset as u64;
        let mut byte = [0];
        ram.read_exact_at(&mut byte, at).unwrap();
        ram.write_all_at(&[byte[0] ^ (1 << (round % 8))], at).unwrap();
        let after = snapshot(&mut probe).await;
        let report = after.memory.clone().unwrap();
        assert_eq!(report.bad_pages, round + 1, "round {round}: {report:?}");
        assert!(report.findings.iter().any(|finding| finding.index == page), "round {round}: {report:?}");
        let hurt = compare(&before, &after, passed, &limits());
        assert!(matches!(hurt[..], [Hurt::Memory { bad, .. }] if bad == round + 1), "round {round}: {hurt:?}");
    }
}

/// Where in the guest's RAM each page of the probe is.
fn find_pages(ram: &fs::File, seed: u64, pages: u32) -> Vec<u64> {
    let mut places = vec![None; pages as usize];
    let known: std::collections::HashMap<[u8; 16], u32> =
        (0..pages).map(|page| (page_marker(seed, page), page)).collect();
    let mut bytes = vec![0; PAGE_BYTES];
    for at in (0..ram.metadata().unwrap().len()).step_by(PAGE_BYTES) {
        ram.read_exact_at(&mut bytes, at).unwrap();
        let marker: [u8; 16] = bytes[..16].try_into().unwrap();
        if let Some(page) = known.get(&marker) {
            assert_eq!(places[*page as usize].replace(at), None, "page {page} is there twice");
        }
    }
    places.into_iter().enumerate().map(|(page, at)| at.unwrap_or_else(|| panic!("page {page} is not in RAM"))).collect()
}

/// Acknowledged writes vanish behind the guest's back, one after the other: found 20 times of 20.
#[tokio::test]
async fn a_lost_disk_write_is_found_every_time() {
    let mut guest = Guest::boot().await;
    let mut probe = guest.probe();
    let slots = 64_u64;
    let wanted = DiskStart {
        device: "/dev/vdb".into(),
        offset: DISK_DATA_OFFSET,
        bytes: slots * PAGE_BYTES as u64,
        seed: 3,
        interval_ms: 1,
    };
    assert_eq!(u64::from(probe.disk_start(wanted, soon()).await.unwrap().slots), slots);
    let disk = fs::OpenOptions::new().read(true).write(true).open(guest.path("vdb")).unwrap();
    let block = |slot: u64| DISK_DATA_OFFSET + slot * PAGE_BYTES as u64;
    let read = |slot: u64| {
        let mut bytes = vec![0; PAGE_BYTES];
        disk.read_exact_at(&mut bytes, block(slot)).unwrap();
        let number = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
        (number, bytes)
    };
    let newest = || (0..slots).map(|slot| read(slot).0).max().unwrap();
    let mut before = None;
    let mut lost = std::collections::BTreeSet::new();
    for round in 0..20_u64 {
        more_writes(newest, slots).await;
        guest.monitor(r#"{"execute":"stop"}"#);
        let old: Vec<_> = (0..slots).map(&read).collect();
        guest.monitor(r#"{"execute":"cont"}"#);
        more_writes(newest, 2 * slots).await;
        if before.is_none() {
            before = Some(snapshot(&mut probe).await);
        }
        // Stopped, the guest has no write under way, but may be about to write the next place.
        guest.monitor(r#"{"execute":"stop"}"#);
        let newest = newest();
        let ahead = |slot: &u64| (8..slots - 8).contains(&((slot + slots - newest % slots) % slots));
        let slot = (0..slots).filter(ahead).find(|slot| !lost.contains(slot)).unwrap();
        let (number, bytes) = &old[slot as usize];
        assert!(*number < read(slot).0, "round {round}: place {slot} was not written again");
        disk.write_all_at(bytes, block(slot)).unwrap();
        lost.insert(slot);
        guest.monitor(r#"{"execute":"cont"}"#);
        let after = snapshot(&mut probe).await;
        let report = after.disk.clone().unwrap();
        assert_eq!(report.bad_records as usize, lost.len(), "round {round}, place {slot}: {report:?}");
        let found = report.findings.iter().find(|finding| u64::from(finding.index) == slot);
        assert_eq!(found.map(|finding| finding.damage), Some(Damage::Stale), "round {round}: {report:?}");
        let hurt = compare(before.as_ref().unwrap(), &after, Duration::from_secs(1), &limits());
        assert!(hurt.iter().any(|hurt| matches!(hurt, Hurt::Disk { .. })), "round {round}: {hurt:?}");
    }
}

/// Waits for writes, as the disk shows them.
async fn more_writes(newest: impl Fn() -> u64, count: u64) {
    let (deadline, first) = (soon(), newest());
    while newest() < first + count {
        assert!(Instant::now() < deadline, "{count} more writes did not reach the disk");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The guest moves to another QEMU while its memory and disk are written: unhurt, and a byte flipped there is found.
#[tokio::test]
async fn the_probes_live_through_a_migration_and_bite_behind_it() {
    let mut source = Guest::boot().await;
    let mut probe = source.probe();
    let (pages, seed) = (2048, 77);
    probe.mem_start(MemStart { pages, seed, rewrite_bytes_per_second: 8_000_000 }, soon()).await.unwrap();
    let (device, bytes) = ("/dev/vdb".into(), 64 * PAGE_BYTES as u64);
    let disk = DiskStart { device, offset: DISK_DATA_OFFSET, bytes, seed, interval_ms: 2 };
    probe.disk_start(disk, soon()).await.unwrap();
    let mut console = source.console().await;
    console.login(soon()).await.unwrap();
    let (before, began) = (snapshot(&mut probe).await, Instant::now());

    let mut destination = Guest::incoming(&source).await;
    let uri = format!("unix:{}", destination.path("migration").display());
    destination.monitor(&format!(r#"{{"execute":"migrate-incoming","arguments":{{"uri":"{uri}"}}}}"#));
    source.monitor(r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":1000000000}}"#);
    source.monitor(&format!(r#"{{"execute":"migrate","arguments":{{"uri":"{uri}"}}}}"#));
    let deadline = soon();
    loop {
        let state = source.monitor(r#"{"execute":"query-migrate"}"#);
        match state["status"].as_str() {
            Some("completed") => break,
            Some("failed" | "cancelled") => panic!("{state}"),
            _ => assert!(Instant::now() < deadline, "{state}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(source.qemu.kill());

    let mut probe = destination.probe();
    let after = snapshot(&mut probe).await;
    assert_eq!(compare(&before, &after, began.elapsed(), &limits()), []);
    let (then, now) = (before.memory.as_ref().unwrap(), after.memory.as_ref().unwrap());
    assert!(now.pages_rewritten > then.pages_rewritten && now.pages_checked == pages);
    assert!(after.disk.unwrap().acknowledged > before.disk.as_ref().unwrap().acknowledged);
    let mut console = destination.console().await;
    assert_eq!(
        console.run("cat /proc/sys/kernel/random/boot_id", soon()).await.unwrap().text.trim(),
        before.hello.boot_id
    );
    Agent::connect(&destination.path("agent"), soon()).await.unwrap().ping(soon()).await.unwrap();

    let ram = fs::OpenOptions::new().read(true).write(true).open(destination.path("ram")).unwrap();
    let at = find_pages(&ram, seed, pages)[1234] + 2000;
    let mut byte = [0];
    ram.read_exact_at(&mut byte, at).unwrap();
    ram.write_all_at(&[!byte[0]], at).unwrap();
    let hurt = compare(&before, &snapshot(&mut probe).await, began.elapsed(), &limits());
    assert!(matches!(&hurt[..], [Hurt::Memory { bad: 1, first: Some(first), .. }] if first.index == 1234), "{hurt:?}");
}

/// `VTMESH_REBOOTS` is how often: 3, and 20 in `make proofs`.
#[tokio::test]
async fn a_reboot_is_found() {
    let reboots: u32 = std::env::var("VTMESH_REBOOTS").map_or(3, |number| number.parse().unwrap());
    let mut guest = Guest::boot().await;
    let mut before = snapshot(&mut guest.probe()).await;
    for round in 0..reboots {
        let began = Instant::now();
        guest.monitor(r#"{"execute":"system_reset"}"#);
        let deadline = soon();
        let after = loop {
            let now = snapshot(&mut guest.probe()).await;
            if now.hello.boot_id != before.hello.boot_id {
                break now;
            }
            assert!(Instant::now() < deadline, "round {round}: the guest did not come up again");
        };
        let hurt = compare(&before, &after, began.elapsed(), &limits());
        assert!(matches!(hurt[..], [Hurt::Rebooted { .. }]), "round {round}: {hurt:?}");
        before = after;
    }
    println!("{reboots} reboots of {reboots} found");
}
