//! Images from host to host against what people use for that today: scp, rsync and a plain TLS socket, in the same
//! namespaces and in the same run; what a second version costs; one image to many hosts over slow links; and an NFS server.
//!
//! Three kinds of image go: all noise, half of it holes, and nearly all of it holes, as a disk is on which a system was
//! just installed. Peers are charged for `sync` of their file, for a copy of ours is on disk when it has its name.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use serde_json::Value;
use vt_tests::lab::{Lab, lab_root};

use crate::{figures::Figure, idle::daemons, nfs};

const MIB: u64 = 1 << 20;
/// Blocks in which copies are compared, bytes.
const BLOCK: u64 = 64 << 10;
/// Speed of a shaped link, Mbit/s.
const LINK: u64 = 200;
const SSH_PORT: &str = "2222";
const TLS_PORT: &str = "9999";

/// How much is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The images that are compared with peers, MiB.
    pub(crate) large_mib: u64,
    /// How often each goes.
    pub(crate) rounds: usize,
    /// The image that goes to many hosts, MiB.
    pub(crate) small_mib: u64,
    /// To how many.
    pub(crate) hosts: u32,
}

/// An image that is compared with peers.
struct Kind {
    name: &'static str,
    about: &'static str,
    /// Noise in each of so many MiB; the rest are holes.
    step: usize,
    /// The most that a copy may take: of scp's time, and of the time of a plain TLS socket.
    floors: (Option<f64>, Option<f64>),
}

/// A socket that carries everything and compares nothing is the measure for what cannot be left out; nine tenths of its
/// speed is 1.11 of its time.
const KINDS: [Kind; 3] = [
    Kind { name: "noise", about: "all noise", step: 1, floors: (Some(0.5), Some(1.11)) },
    Kind { name: "half", about: "half of it holes", step: 2, floors: (Some(0.5), Some(1.11)) },
    Kind { name: "sparse", about: "fifteen of sixteen parts holes", step: 16, floors: (Some(0.25), None) },
];

/// Measures everything.
pub(crate) fn measure(extent: Extent) -> anyhow::Result<Vec<Figure>> {
    let mut figures = host_to_host(extent)?;
    figures.extend(to_many(extent)?);
    figures.extend(nfs::measure(extent.small_mib)?);
    Ok(figures)
}

/// A folder that goes with this value.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with this value.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn host_to_host(extent: Extent) -> anyhow::Result<Vec<Figure>> {
    let lab = Lab::up_separate(2);
    let work = Work(Path::new(&lab_root()).join(format!("{}-bench", lab.name())));
    fs::create_dir_all(&work.0)?;
    let peers = Peers::make(&lab, &work.0)?;
    let mut rng = StdRng::seed_from_u64(1);
    let mut figures = Vec::new();
    for kind in &KINDS {
        let source = work.0.join(format!("{}.raw", kind.name));
        write(&source, extent.large_mib, kind.step, &mut rng)?;
        figures.extend(compared(&lab, &peers, kind, &source, extent)?);
        if kind.name != SECOND {
            fs::remove_file(&source)?;
        }
    }
    figures.push(second_version(&lab, &work.0.join(format!("{SECOND}.raw")), extent, &mut rng)?);
    figures.push(memory(&lab)?);
    Ok(figures)
}

/// The kind of which a second version is made.
const SECOND: &str = "half";

/// One kind of image, by us and by the others, in turn.
fn compared(lab: &Lab, peers: &Peers, kind: &Kind, source: &Path, extent: Extent) -> anyhow::Result<Vec<Figure>> {
    let size = format!("{} MiB, {}", extent.large_mib, kind.about);
    let titles = ["of scp's time", "of rsync --inplace --sparse", "of a plain TLS socket (socat)"];
    let mut imports = Figure::new(format!("import of {size}, s"), None);
    let mut copies = Figure::new("  its copy to another host, s", None);
    let floors = [kind.floors.0, None, kind.floors.1];
    let mut ratios: Vec<Figure> =
        titles.iter().zip(floors).map(|(title, floor)| Figure::new(format!("  {title}"), floor)).collect();
    for round in 1..=extent.rounds {
        // Each round has an image of its own: no copy finds blocks of an older one.
        let name = if round == 1 { kind.name.to_owned() } else { format!("{}{round}", kind.name) };
        let import = ["image", "import", text(source)?, "--name", &name, "--host", "host1"];
        imports.values.push(timed(|| checked(lab, &import))?);
        let copy = timed(|| checked(lab, &["image", "sync", &name, "-m", "host2"]))?;
        verify(lab, &name)?;
        copies.values.push(copy);
        for (figure, took) in ratios.iter_mut().zip([peers.scp(source)?, peers.rsync(source)?, peers.tls(source)?]) {
            figure.values.push(copy / took);
        }
        if name != SECOND {
            checked(lab, &["image", "delete", &name])?;
        }
    }
    Ok([imports, copies].into_iter().chain(ratios).collect())
}

fn second_version(lab: &Lab, source: &Path, extent: Extent, rng: &mut StdRng) -> anyhow::Result<Figure> {
    change_one_percent(source, extent.large_mib, rng)?;
    checked(lab, &["image", "import", text(source)?, "--host", "host1"])?;
    let told = lab.json(&["image", "sync", SECOND, "-m", "host2"])["hosts"][0]["told"][0].as_str().map(str::to_owned);
    let moved = told.as_deref().and_then(|told| told.split(' ').next()?.parse::<f64>().ok()).context("bytes moved")?;
    verify(lab, SECOND)?;
    let percent = moved / (extent.large_mib * MIB) as f64 * 100.0;
    let second = Figure::new("a second version with 1 % changed: bytes that move, %", Some(3.0));
    Ok(Figure { values: vec![percent], ..second })
}

fn to_many(extent: Extent) -> anyhow::Result<Vec<Figure>> {
    let lab = Lab::up_separate(extent.hosts + 1);
    let work = Work(Path::new(&lab_root()).join(format!("{}-bench", lab.name())));
    fs::create_dir_all(&work.0)?;
    let mut rng = StdRng::seed_from_u64(2);
    for name in ["one", "all"] {
        let file = work.0.join(format!("{name}.raw"));
        write(&file, extent.small_mib, 1, &mut rng)?;
        checked(&lab, &["image", "import", text(&file)?, "--host", "host1"])?;
    }
    for host in 1..=extent.hosts + 1 {
        let rate = format!("{LINK}mbit");
        let shape =
            ["tc", "qdisc", "add", "dev", "up0", "root", "tbf", "rate", &rate, "burst", "256kb", "latency", "50ms"];
        run(inside(&lab, host).args(shape))?;
    }
    let single = timed(|| checked(&lab, &["image", "sync", "one", "-m", "host2"]))?;
    let receivers: Vec<String> = (2..=extent.hosts + 1).map(|host| format!("host{host}")).collect();
    let all = timed(|| checked(&lab, &["image", "sync", "all", "-m", &receivers.join(",")]))?;
    let title = format!("{} MiB over a link of {LINK} Mbit/s to one host, s", extent.small_mib);
    let many = Figure::new(format!("to {} hosts at once, until the last has it: times that", extent.hosts), Some(1.5));
    Ok(vec![
        Figure { values: vec![single], ..Figure::new(title, None) },
        Figure { values: vec![all / single], ..many },
        memory(&lab)?,
    ])
}

/// What people copy with.
struct Peers {
    work: PathBuf,
    from: String,
    to: String,
    address: String,
    _sshd: Peer,
}

impl Peers {
    fn make(lab: &Lab, work: &Path) -> anyhow::Result<Self> {
        for key in ["host_key", "key"] {
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(work.join(key)))?;
        }
        run(Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=bench", "-keyout"])
            .arg(work.join("tls.pem"))
            .arg("-out")
            .arg(work.join("tls.crt")))?;
        let both = [fs::read(work.join("tls.pem"))?, fs::read(work.join("tls.crt"))?].concat();
        fs::write(work.join("tls.pem"), both)?;
        fs::create_dir_all("/run/sshd")?;
        let hosts = lab.json(&["host", "list"]);
        let advertised = hosts["hosts"].as_array().into_iter().flatten().find(|host| host["name"] == "host2");
        let address = advertised.and_then(|host| host["addresses"][0].as_str()).context("host2 has an address")?;
        let address = address.rsplit_once(':').context("with a port")?.0.to_owned();
        let keys = format!("AuthorizedKeysFile={}", work.join("key.pub").display());
        let sshd = inside(lab, 2)
            .args(["/usr/sbin/sshd", "-D", "-p", SSH_PORT, "-o", "UsePAM=no", "-o", "StrictModes=no"])
            .args(["-o", "PermitRootLogin=yes", "-o", "PidFile=none", "-o", &keys, "-h"])
            .arg(work.join("host_key"))
            .stderr(Stdio::null())
            .spawn()
            .context("sshd (package openssh-server)")?;
        let namespace = |host| format!("--net=/run/netns/{}", namespace(lab, host));
        let peers = Self { work: work.to_owned(), from: namespace(1), to: namespace(2), address, _sshd: Peer(sshd) };
        peers.until_there(SSH_PORT)?;
        Ok(peers)
    }

    fn until_there(&self, port: &str) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            let looked =
                Command::new("nsenter").arg(&self.to).args(["ss", "-Hltn", &format!("sport = :{port}")]).output()?;
            if !looked.stdout.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("nobody listens on port {port}")
    }

    fn ssh_options(&self) -> Vec<String> {
        let key = self.work.join("key").display().to_string();
        let quiet = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"];
        ["-i".to_owned(), key]
            .into_iter()
            .chain(quiet.iter().flat_map(|o| ["-o".to_owned(), (*o).to_owned()]))
            .collect()
    }

    /// How long a copy takes until it is on disk, s. The copy is removed.
    fn copy(&self, source: &Path, name: &str, copy: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
        let to = self.work.join(name);
        let took = timed(|| {
            copy()?;
            run(Command::new("sync").arg(&to))
        })?;
        let length = fs::metadata(&to)?.len();
        ensure!(length == fs::metadata(source)?.len(), "{name} made {length} bytes");
        fs::remove_file(&to)?;
        Ok(took)
    }

    fn scp(&self, source: &Path) -> anyhow::Result<f64> {
        let mut command = Command::new("nsenter");
        command.arg(&self.from).args(["scp", "-q", "-P", SSH_PORT]).args(self.ssh_options()).arg(source);
        command.arg(self.over_there("by-scp"));
        self.copy(source, "by-scp", || run(&mut command))
    }

    fn rsync(&self, source: &Path) -> anyhow::Result<f64> {
        let ssh = format!("ssh -p {SSH_PORT} {}", self.ssh_options().join(" "));
        let mut command = Command::new("nsenter");
        command.arg(&self.from).args(["rsync", "--inplace", "--sparse", "-e", &ssh]).arg(source);
        command.arg(self.over_there("by-rsync"));
        self.copy(source, "by-rsync", || run(&mut command))
    }

    fn over_there(&self, name: &str) -> String {
        format!("root@{}:{}", self.address, self.work.join(name).display())
    }

    fn tls(&self, source: &Path) -> anyhow::Result<f64> {
        let to = self.work.join("by-tls");
        let certificate = self.work.join("tls.pem");
        let listen = format!("OPENSSL-LISTEN:{TLS_PORT},cert={},verify=0,reuseaddr", certificate.display());
        let socat = |namespace: &str| {
            let mut command = Command::new("nsenter");
            command.arg(namespace).args(["socat", "-u", "-b", "1048576"]);
            command
        };
        let receiver = socat(&self.to).arg(&listen).arg(format!("CREATE:{}", to.display())).spawn();
        let mut receiver = Peer(receiver.context("socat")?);
        self.until_there(TLS_PORT)?;
        let connect = format!("OPENSSL:{}:{TLS_PORT},verify=0", self.address);
        self.copy(source, "by-tls", || {
            run(socat(&self.from).arg(format!("FILE:{}", source.display())).arg(&connect))?;
            // Who sends is done before who receives.
            let ended = receiver.0.wait()?;
            ensure!(ended.success(), "socat received nothing: {ended}");
            Ok(())
        })
    }
}

fn namespace(lab: &Lab, host: u32) -> String {
    format!("vt-{}-host{host}", lab.name())
}

fn inside(lab: &Lab, host: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", namespace(lab, host)));
    command
}

pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let ran = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

fn checked(lab: &Lab, arguments: &[&str]) -> anyhow::Result<()> {
    let ran = lab.vtctl(arguments);
    ensure!(ran.code == 0, "vtctl {}: {}{}", arguments.join(" "), ran.stdout, ran.stderr);
    Ok(())
}

fn verify(lab: &Lab, image: &str) -> anyhow::Result<()> {
    let verified = lab.json(&["image", "verify", image]);
    let ok = |host: &Value| host["ok"] == true;
    ensure!(verified["hosts"].as_array().is_some_and(|hosts| hosts.iter().all(ok)), "copies differ: {verified}");
    Ok(())
}

pub(crate) fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path is text")
}

/// A file of noise.
pub(crate) fn noise(path: &Path, mib: u64) -> anyhow::Result<()> {
    write(path, mib, 1, &mut StdRng::seed_from_u64(3))
}

/// Noise in each `step`-th MiB; the rest are holes.
fn write(path: &Path, mib: u64, step: usize, rng: &mut StdRng) -> anyhow::Result<()> {
    let file = File::create(path)?;
    file.set_len(mib * MIB)?;
    let mut noise = vec![0; MIB as usize];
    for at in (0..mib).step_by(step) {
        rng.fill_bytes(&mut noise);
        file.write_all_at(&noise, at * MIB)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Writes noise into one block of a hundred, anywhere.
fn change_one_percent(path: &Path, mib: u64, rng: &mut StdRng) -> anyhow::Result<()> {
    let file = File::options().write(true).open(path)?;
    let blocks = mib * MIB / BLOCK;
    let mut noise = vec![0; BLOCK as usize];
    for _ in 0..blocks / 100 {
        rng.fill_bytes(&mut noise);
        file.write_all_at(&noise, rng.random_range(0..blocks) * BLOCK)?;
    }
    file.sync_all()?;
    Ok(())
}

/// The most memory that any daemon has had.
fn memory(lab: &Lab) -> anyhow::Result<Figure> {
    let mut most: f64 = 0.0;
    for pid in daemons(lab)? {
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).context("a daemon ended while it was measured")?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("status has VmHWM")?;
        let kib: f64 = line.split_whitespace().nth(1).context("VmHWM has a value")?.parse()?;
        most = most.max(kib / 1000.0 * 1.024);
    }
    Ok(Figure { values: vec![most], ..Figure::new("most memory of a daemon throughout, MB", Some(64.0)) })
}
