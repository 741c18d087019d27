//! The ground on which faults are made: a lab of three hosts whose daemons can be held, cut off, stopped, killed and run out
//! of disk, and the watcher on its switch.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    cell::{Fault, Part},
    landing::{self, Marks, marks},
    pool::{POOL, Pool},
    watch::Watcher,
};
use crate::{
    lab::{Lab, lab_root},
    program,
};

/// Hosts of the lab: two sides, and a third so that the others keep a majority.
pub const HOSTS: u32 = 3;
/// Size of the file system of a host whose disk is to be filled.
const SMALL: &str = "size=192m";
/// Ports of migrations.
const MIGRATION_PORTS: &str = "49152-49215";
/// The program of the daemon.
const VTD: &str = "vtd";
/// Until a daemon that is to end has ended: it promises three seconds, and shares its cores.
const STOPS: Duration = Duration::from_secs(30);
/// Until nothing is left behind.
const CLEAN: Duration = Duration::from_secs(60);

/// Which host plays which part in a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cast {
    /// The source.
    pub source: String,
    /// The destination.
    pub destination: String,
    /// The leader, which may be one of the two.
    pub leader: String,
}

impl Cast {
    /// Gives the leader that part beside; [`Part::Leader`]: none.
    pub fn new(leader: &str, leads: Part) -> Self {
        let others: Vec<String> = (1..=HOSTS).map(|n| format!("host{n}")).filter(|host| host != leader).collect();
        let leader = leader.to_owned();
        let (source, destination) = match leads {
            Part::Source => (leader.clone(), others[0].clone()),
            Part::Destination => (others[0].clone(), leader.clone()),
            Part::Leader => (others[0].clone(), others[1].clone()),
        };
        Self { source, destination, leader }
    }

    /// The host of that part.
    pub fn host(&self, part: Part) -> &str {
        match part {
            Part::Source => &self.source,
            Part::Destination => &self.destination,
            Part::Leader => &self.leader,
        }
    }
}

/// A kind of process of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Daemon,
    Party,
    Guard,
    Qemu,
}

fn kind(words: &[String]) -> Option<Kind> {
    let program = Path::new(words.first()?).file_name()?.to_string_lossy().into_owned();
    let second = words.get(1).map(String::as_str);
    match (program.as_str(), second) {
        (name, _) if name.starts_with("qemu-system") => Some(Kind::Qemu),
        (_, Some("guard")) => Some(Kind::Guard),
        (_, Some("party")) => Some(Kind::Party),
        (_, Some("--config")) => Some(Kind::Daemon),
        _ => None,
    }
}

/// A lab under fire.
#[derive(Debug)]
pub struct Ground {
    /// Watches its switch.
    pub watcher: Watcher,
    small: Vec<PathBuf>,
    holds: tempfile::TempDir,
    /// The daemon's program, where it is the lab's own.
    installed: Option<tempfile::TempDir>,
    pool: Option<Pool>,
    // Last: the lab goes when nothing is mounted in it any more.
    lab: Lab,
}

impl Ground {
    /// Makes the lab. `images`: another directory of images; `mutation`: the rule that its daemons break.
    ///
    /// # Errors
    /// The watcher cannot stand on its switch.
    ///
    /// # Panics
    /// The lab cannot be made.
    pub fn new(images: Option<&str>, mutation: Option<&str>) -> anyhow::Result<Self> {
        let words: Vec<&str> = images.iter().flat_map(|images| ["--images", images]).collect();
        Self::made(broken(mutation), &words, None)
    }

    /// The same, whose daemons have that variable in their environment.
    ///
    /// # Errors
    /// The watcher cannot stand on its switch.
    ///
    /// # Panics
    /// The lab cannot be made.
    pub fn with_variable(name: &str, value: &str) -> anyhow::Result<Self> {
        Self::made(Some((name.to_owned(), value.to_owned())), &[], None)
    }

    /// The same, whose hosts share no disks: there QEMU's own lock of an image keeps no second copy from running.
    ///
    /// # Errors
    /// The watcher cannot stand on its switch.
    ///
    /// # Panics
    /// The lab cannot be made.
    pub fn separate(mutation: Option<&str>) -> anyhow::Result<Self> {
        Self::made(broken(mutation), &["--separate-pools"], None)
    }

    /// The same, with a copy of the daemon's program that is the lab's own: [`Ground::install`] puts another in its place.
    ///
    /// # Errors
    /// It cannot be copied, or the watcher cannot stand.
    ///
    /// # Panics
    /// The lab cannot be made.
    pub fn to_upgrade() -> anyhow::Result<Self> {
        let installed = tempfile::tempdir()?;
        let file = installed.path().join(VTD);
        fs::copy(program(VTD), &file).context("a copy of the daemon")?;
        Self::made(None, &["--vtd", &file.display().to_string()], Some(installed))
    }

    fn made(
        variable: Option<(String, String)>,
        words: &[&str],
        installed: Option<tempfile::TempDir>,
    ) -> anyhow::Result<Self> {
        let holds = tempfile::tempdir()?;
        let mut variables = vec![("VTMESH_HOLD_DIR".to_owned(), holds.path().display().to_string())];
        variables.extend(variable);
        let lab = Lab::up_with(HOSTS, variables, words);
        let watcher = Watcher::start(lab.name(), HOSTS)?;
        Ok(Self { watcher, small: Vec::new(), holds, installed, pool: None, lab })
    }

    /// Puts that program in the place of the lab's own, as a package does: whole, and what runs goes on with the old one.
    ///
    /// # Errors
    /// It cannot be copied, or the lab has none of its own.
    pub fn install(&self, next: &Path) -> anyhow::Result<()> {
        let folder = self.installed.as_ref().context("the lab runs the program of all")?.path();
        let part = folder.join("part");
        fs::copy(next, &part).with_context(|| next.display().to_string())?;
        Ok(fs::rename(part, folder.join(VTD))?)
    }

    /// The same, with the disks of its guests at a server of that kind.
    ///
    /// # Errors
    /// There is no such kind.
    ///
    /// # Panics
    /// The server cannot be started.
    pub fn with_pool(mut self, kind: &str) -> anyhow::Result<Self> {
        self.pool = Some(Pool::on(&self.lab, kind).with_context(|| format!("no pools of kind {kind}"))?);
        Ok(self)
    }

    /// The folders or the file that disks of its guests lie in, seen from outside.
    pub fn disk_places(&self) -> Vec<PathBuf> {
        match &self.pool {
            Some(pool) => pool.place().into_iter().collect(),
            // Those of all hosts, and those of each.
            None => {
                let own = (1..=HOSTS).map(|number| self.host_dir(&format!("host{number}")).join("disks"));
                own.chain([Path::new(&lab_root()).join(self.lab.name()).join("disks")]).collect()
            }
        }
    }

    /// Cuts a host off from all but the server of the pool, which takes what it writes.
    ///
    /// # Errors
    /// There is no such server, or it cannot be done.
    pub fn leave_alone_with_its_disk(&self, host: &str) -> anyhow::Result<()> {
        let server = self.pool.as_ref().context("no server")?.address();
        let chain = |hook: &str, link: &str, end: &str| {
            format!(
                "chain {hook} {{ type filter hook {hook} priority 0; {link} lo accept; ip {end} {server} accept; drop; }}"
            )
        };
        let rules = format!(
            "table inet alone {{\n {}\n {}\n}}\n",
            chain("input", "iif", "saddr"),
            chain("output", "oif", "daddr")
        );
        self.nft(host, &rules)
    }

    /// Ends that.
    ///
    /// # Errors
    /// It cannot be done.
    pub fn let_be_heard(&self, host: &str) -> anyhow::Result<()> {
        self.nft(host, "delete table inet alone\n")
    }

    /// The parameter that puts disks into the pool, if there is one.
    pub fn pool_param(&self) -> Option<String> {
        self.pool.as_ref().map(|_| format!("disk_pool={POOL}"))
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The host that leads.
    ///
    /// # Errors
    /// Nobody does.
    pub fn leader(&self) -> anyhow::Result<String> {
        let status = self.lab.wait_for_live(HOSTS as usize);
        Ok(status["leader"].as_str().with_context(|| format!("no leader in {status}"))?.to_owned())
    }

    /// Daemons of that host will wait at that place.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn hold(&self, host: &str, place: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.holds.path().join(format!("{host}.{place}.hold")), "")?)
    }

    /// Whether a daemon waits at that place.
    pub fn is_held(&self, host: &str, place: &str) -> bool {
        self.holds.path().join(format!("{host}.{place}.here")).exists()
    }

    /// Nobody waits any longer.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn let_go(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.holds.path())? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    fn namespace(&self, host: &str) -> String {
        format!("vt-{}-{host}", self.lab.name())
    }

    fn host_dir(&self, host: &str) -> PathBuf {
        Path::new(&lab_root()).join(self.lab.name()).join(host)
    }

    fn evidence(&self, host: &str, attempt: &str) -> PathBuf {
        self.host_dir(host).join("data/attempts").join(attempt)
    }

    /// What both sides have written down of an attempt so far.
    pub fn marks(&self, cast: &Cast, attempt: &str) -> Marks {
        marks(&self.evidence(&cast.source, attempt), &self.evidence(&cast.destination, attempt))
    }

    /// The event log of an attempt on a host.
    pub fn events(&self, host: &str, attempt: &str) -> Vec<serde_json::Value> {
        landing::events(&self.evidence(host, attempt))
    }

    /// How a party of an attempt has ended, where one has.
    pub fn has_ended(&self, cast: &Cast, attempt: &str) -> Option<String> {
        let ended = |host: &str| {
            let said = self.events(host, attempt).into_iter();
            said.filter_map(|event| event["what"]["log"]["text"].as_str().map(str::to_owned))
                .find(|text| text.starts_with("the party has ended"))
        };
        ended(&cast.source).or_else(|| ended(&cast.destination))
    }

    /// Copies what the hosts have written down, logs and evidence, for whoever reads a red cell.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn keep(&self, to: &Path) -> anyhow::Result<()> {
        for number in 1..=HOSTS {
            let (from, to) = (self.host_dir(&format!("host{number}")), to.join(format!("host{number}")));
            fs::create_dir_all(&to)?;
            // A host that took no part has no evidence.
            for what in [from.join("vtd.log"), from.join("data/attempts")].iter().filter(|what| what.exists()) {
                let copied = Command::new("cp").arg("-a").arg(what).arg(&to).status()?;
                ensure!(copied.success(), "{} cannot be copied", what.display());
            }
        }
        Ok(())
    }

    /// Processes of that kind on a host.
    fn pids(&self, host: &str, wanted: Kind) -> Vec<Pid> {
        let output = Command::new("ip").args(["netns", "pids", &self.namespace(host)]).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let pids = text.lines().filter_map(|line| line.trim().parse::<i32>().ok());
        let words = |pid: i32| -> Vec<String> {
            let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
        };
        pids.filter(|pid| kind(&words(*pid)) == Some(wanted)).map(Pid::from_raw).collect()
    }

    fn signal(&self, host: &str, wanted: Kind, signal: Signal) -> anyhow::Result<()> {
        let pids = self.pids(host, wanted);
        ensure!(!pids.is_empty(), "there is no {wanted:?} on {host}");
        for pid in pids {
            kill(pid, signal).with_context(|| format!("{signal} to {wanted:?} {pid} on {host}"))?;
        }
        Ok(())
    }

    /// Stops the daemon of a host and starts it again, as an admin or a package does it. Gives how long nothing answered there.
    ///
    /// # Errors
    /// There is none, or it does not end.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart(&self, host: &str) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.signal(host, Kind::Daemon, Signal::SIGTERM)?;
        self.wait("the daemon to end", STOPS, || match &self.pids(host, Kind::Daemon)[..] {
            [] => Ok(()),
            pids => Err(format!("{pids:?} run on {host}")),
        })?;
        self.lab.vtctl(&["lab", "start", host]).expect(0);
        let took = begun.elapsed();
        if let Some(folder) = &self.installed {
            let [pid] = self.pids(host, Kind::Daemon)[..] else { bail!("not one daemon on {host}") };
            let runs = fs::read_link(format!("/proc/{pid}/exe"))?;
            ensure!(runs == folder.path().join(VTD), "{host} runs {}", runs.display());
        }
        Ok(took)
    }

    /// Whether there is what a kill would hit.
    pub fn has(&self, fault: Fault, cast: &Cast) -> bool {
        match fault {
            Fault::KillDaemon(part) | Fault::StopDaemon(part) => !self.pids(cast.host(part), Kind::Daemon).is_empty(),
            Fault::KillParty(part) => !self.pids(cast.host(part), Kind::Party).is_empty(),
            Fault::KillQemu(part) => !self.pids(cast.host(part), Kind::Qemu).is_empty(),
            Fault::KillGuards | Fault::CutHost(_) | Fault::CutMigrations | Fault::FillDisk(_) => true,
        }
    }

    /// Makes the fault.
    ///
    /// # Errors
    /// There is nothing to be broken, or it cannot be done.
    pub fn make(&mut self, fault: Fault, cast: &Cast) -> anyhow::Result<()> {
        let host = |part: Part| cast.host(part).to_owned();
        match fault {
            Fault::KillDaemon(part) => self.signal(&host(part), Kind::Daemon, Signal::SIGKILL),
            Fault::KillParty(part) => self.signal(&host(part), Kind::Party, Signal::SIGKILL),
            Fault::KillQemu(part) => self.signal(&host(part), Kind::Qemu, Signal::SIGKILL),
            Fault::KillGuards => {
                let sides = [host(Part::Source), host(Part::Destination)];
                let with: Vec<_> = sides.iter().filter(|host| !self.pids(host, Kind::Guard).is_empty()).collect();
                ensure!(!with.is_empty(), "there is no guard");
                with.into_iter().try_for_each(|host| self.signal(host, Kind::Guard, Signal::SIGKILL))
            }
            Fault::StopDaemon(part) => self.signal(&host(part), Kind::Daemon, Signal::SIGSTOP),
            Fault::CutHost(part) => {
                self.lab.vtctl(&["lab", "partition", &host(part)]).expect(0);
                Ok(())
            }
            Fault::CutMigrations => {
                let rules = format!(
                    "table inet faults {{\n chain in {{ type filter hook input priority 0; tcp dport {MIGRATION_PORTS} drop; \
                     tcp sport {MIGRATION_PORTS} drop; }}\n}}\n"
                );
                [Part::Source, Part::Destination].into_iter().try_for_each(|part| self.nft(&host(part), &rules))
            }
            Fault::FillDisk(part) => fill(&self.host_dir(&host(part)).join("data/fill")),
        }
    }

    /// Ends the fault, and starts again what it ended.
    ///
    /// # Errors
    /// It cannot be done.
    pub fn heal(&mut self, fault: Fault, cast: &Cast) -> anyhow::Result<()> {
        match fault {
            Fault::StopDaemon(part) => self.signal(cast.host(part), Kind::Daemon, Signal::SIGCONT)?,
            Fault::CutHost(_) => drop(self.lab.vtctl(&["lab", "heal"]).expect(0)),
            Fault::CutMigrations => {
                for part in [Part::Source, Part::Destination] {
                    self.nft(cast.host(part), "delete table inet faults\n")?;
                }
            }
            Fault::FillDisk(part) => fs::remove_file(self.host_dir(cast.host(part)).join("data/fill"))?,
            Fault::KillDaemon(_) | Fault::KillParty(_) | Fault::KillQemu(_) | Fault::KillGuards => {}
        }
        // A daemon that could not go on has ended too.
        for number in 1..=HOSTS {
            let host = format!("host{number}");
            if self.pids(&host, Kind::Daemon).is_empty() {
                self.lab.vtctl(&["lab", "start", &host]).expect(0);
            }
        }
        Ok(())
    }

    fn nft(&self, host: &str, rules: &str) -> anyhow::Result<()> {
        let file = self.holds.path().join(format!("{host}.rules.nft"));
        fs::write(&file, rules)?;
        let namespace = format!("--net=/run/netns/{}", self.namespace(host));
        let output = Command::new("nsenter").arg(namespace).args(["nft", "-f"]).arg(&file).output()?;
        fs::remove_file(&file)?;
        ensure!(output.status.success(), "nft on {host}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Puts the data of every host on a file system of its own, small enough to be filled. Once.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn make_small(&mut self) -> anyhow::Result<()> {
        if !self.small.is_empty() {
            return Ok(());
        }
        for number in 1..=HOSTS {
            let host = format!("host{number}");
            self.lab.vtctl(&["lab", "kill", &host]).expect(0);
            let (data, aside) = (self.host_dir(&host).join("data"), self.host_dir(&host).join("data.aside"));
            fs::rename(&data, &aside)?;
            fs::create_dir(&data)?;
            mount(Some("vtmesh-faults"), &data, Some("tmpfs"), MsFlags::empty(), Some(SMALL)).context("tmpfs")?;
            self.small.push(data.clone());
            let moved = Command::new("cp").arg("-a").arg(aside.join(".")).arg(&data).status()?;
            ensure!(moved.success(), "the data of {host} could not be moved");
            fs::remove_dir_all(&aside)?;
            self.lab.vtctl(&["lab", "start", &host]).expect(0);
        }
        self.lab.wait_for_live(HOSTS as usize);
        Ok(())
    }

    /// The epoch of a host's session.
    pub fn session(&self, host: &str) -> u64 {
        self.lab.json(&["host", "show", host])["session_epoch"].as_u64().unwrap_or(0)
    }

    /// What exists on all hosts, where all of them answer, and in the pool.
    pub fn inventory(&self) -> Vec<String> {
        let mut all = self.lab.inventory(HOSTS);
        all.extend(self.pool.iter().flat_map(Pool::files).map(|file| file.display().to_string()));
        all
    }

    /// Waits until the inventory is as it was.
    ///
    /// # Errors
    /// Something is left behind, or was taken.
    pub fn is_as_before(&self, before: &[String]) -> anyhow::Result<()> {
        self.wait("nothing to be left", CLEAN, || {
            let now = self.inventory();
            if now == before { Ok(()) } else { Err(now.join("; ")) }
        })
    }

    /// Waits until that holds.
    ///
    /// # Errors
    /// It does not within `deadline`; what was seen last.
    pub fn wait<T>(
        &self,
        what: &str,
        deadline: Duration,
        holds: impl FnMut() -> Result<T, String>,
    ) -> anyhow::Result<T> {
        self.wait_or(what, deadline, holds, || Ok(()))
    }

    /// The same, unless `vain` says that it is in vain.
    ///
    /// # Errors
    /// It does not within `deadline`, or is in vain.
    pub fn wait_or<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut holds: impl FnMut() -> Result<T, String>,
        vain: impl Fn() -> anyhow::Result<()>,
    ) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            vain().with_context(|| format!("waited for {what}"))?;
            match holds() {
                Ok(found) => return Ok(found),
                Err(last) if begun.elapsed() >= deadline => {
                    bail!("waited {:.0} s for {what}: {last}", deadline.as_secs_f64())
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// The variable that breaks a rule.
fn broken(mutation: Option<&str>) -> Option<(String, String)> {
    mutation.map(|name| ("VTMESH_MUTATION".to_owned(), name.to_owned()))
}

impl Drop for Ground {
    fn drop(&mut self) {
        let ended: BTreeMap<_, _> = (1..=HOSTS)
            .filter(|_| !self.small.is_empty())
            .map(|n| (n, self.lab.vtctl(&["lab", "kill", &format!("host{n}")])))
            .collect();
        for data in &self.small {
            if let Err(error) = umount2(data, MntFlags::MNT_DETACH) {
                eprintln!("{} stays mounted: {error} {ended:?}", data.display());
            }
        }
    }
}

/// Writes until nothing more can be written.
fn fill(path: &Path) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::create(path)?;
    for size in [1 << 20, 4096, 1] {
        let piece = vec![0; size];
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            }
        }
    }
    Ok(())
}
