//! A cluster on one box: each host a network namespace with its own address, data directory and `vtd`.
//!
//! ```text
//!   switch namespace  vt-LAB-sw      bridge sw0 ── port1 ── port2 ── port3
//!                                                    │        │        │      veth pairs
//!   host namespaces   vt-LAB-host1 …            up0 ─ br0   up0 ─ br0  …      br0 carries 10.77.0.1N/24 and the taps
//! ```
//!
//! With [`Driver::Nested`] each host is a VM in its namespace (`nested`).
//!
//! With [`UpOptions::uplinks`] each host has a second port on the switch, whose end `up1` is on no bridge: for macvtaps.
//!
//! Guests sit on taps of the same layer 2 network, so one keeps its address when it moves. Everything a lab makes can
//! be found again by its name alone (namespaces, directories, processes inside the namespaces), also when `vtctl` was
//! killed while making it; [`down`] removes it all. Nothing is ever made in the namespace of the machine itself.

mod cluster;
mod daemon;
mod leftovers;
mod libvirtd;
mod machine;
mod nested;
mod network;
mod playbook;
mod record;

use std::{path::PathBuf, time::Duration};

pub(crate) use daemon::find_vtd;
pub use machine::Machine;
pub(crate) use network::find_in_path;
pub use record::{HostRecord, LabRecord, NestedRecord, current_sockets};
use record::{Lock, Paths};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
};

/// Most hosts of one lab: addresses .11 to .99 are hosts', .100 and up are guests'.
pub const HOSTS_MAX: u32 = 32;

/// What the hosts of a lab are.
#[derive(Debug, Clone)]
pub enum Driver {
    /// Network namespaces of this machine, with its kernel.
    Namespaces,
    /// VMs of this machine, each with a kernel of its own.
    Nested(NestedOptions),
}

/// What is to be known of hosts that are VMs.
#[derive(Debug, Clone)]
pub struct NestedOptions {
    /// The folder of the packages that they are installed from, of this program's version.
    pub packages: PathBuf,
    /// Memory of each, MiB.
    pub memory_mib: u32,
    /// The folder of the [`Machine`] that they start from; made where it is not there.
    pub machine: PathBuf,
}

/// What [`up`] is asked to make.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The lab's name, at most 8 characters, because interfaces and sockets carry it.
    pub name: Name,
    /// How many hosts: host1 … hostN, 1 to [`HOSTS_MAX`].
    pub hosts: u32,
    /// What they are.
    pub driver: Driver,
    /// The `vtd` to run; `None`: the one beside this program, else the one in PATH.
    pub vtd: Option<PathBuf>,
    /// The directory of images that all hosts share; of which VMs have the built-in guest.
    pub images: PathBuf,
    /// Each host has images and disks of its own instead.
    pub separate_pools: bool,
    /// Each host has a libvirtd.
    pub libvirt: bool,
    /// Each host has a second link to the switch, for macvtaps.
    pub uplinks: bool,
    /// Further QEMUs of each host: name and file.
    pub qemus: Vec<(Name, PathBuf)>,
    /// Log filter of the daemons.
    pub log: String,
}

/// How a host of a lab is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStatus {
    /// Its record.
    pub host: HostRecord,
    /// Process ids inside its namespace, the daemon's and others.
    pub processes: Vec<i32>,
    /// Whether a daemon answers on its socket.
    pub answers: bool,
    /// Whether its port on the switch forwards; `false` while it is partitioned.
    pub connected: bool,
}

/// Makes a lab, starts its daemons and joins them to one cluster. `say` gets a line for each step.
///
/// # Errors
/// A name in use, a machine that cannot make one, a daemon that dies at start or does not join. What was made until
/// then is removed again.
pub async fn up(options: UpOptions, say: &mut (dyn FnMut(String) + Send)) -> Result<LabRecord, Report> {
    check(&options)?;
    let paths = Paths::of(&options.name);
    let lock = Lock::take(&options.name)?;
    if let Some(record) = record::read(&paths)? {
        return Err(if record.ready {
            Report::new(ErrorCode::LabExists, format!("there is a lab called {:?} already", options.name.as_str()))
                .with("hosts", record.hosts.len().to_string())
                .help(format!("vtctl lab status --lab {}", options.name))
                .help(format!("vtctl lab down --lab {}", options.name))
        } else {
            half_made(&options.name)
        });
    }
    if !leftovers::find(&options.name)?.is_empty() {
        return Err(half_made(&options.name));
    }
    let vtd = find_vtd(options.vtd.as_deref())?;
    if options.libvirt {
        libvirtd::check()?;
    }
    let mut lab = LabRecord::plan(&options, vtd);
    if let Driver::Nested(wanted) = &options.driver {
        let (nested, found) = nested::plan(&lab.vtd, wanted.memory_mib)?;
        say(format!("hosts      {} by {}: {found}", if nested.kvm { "KVM" } else { "emulation" }, lab.vtd.display()));
        lab.nested = Some(nested);
    }
    record::write(&paths, &lab)?;
    let made = make(&mut lab, &paths, &options, say).await;
    if let Err(report) = made {
        // The reason matters more than a trouble with clearing up; that one is shown by the next `lab up`.
        let cleared = leftovers::remove(&options.name, &mut |_| {});
        let report = match cleared {
            Ok(_) => report.with("left", "nothing: what was made is removed again"),
            Err(trouble) => report.with("left", trouble.title).help(format!("vtctl lab down --lab {}", options.name)),
        };
        return Err(report);
    }
    drop(lock);
    Ok(lab)
}

async fn make(
    lab: &mut LabRecord,
    paths: &Paths,
    options: &UpOptions,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<(), Report> {
    network::make(lab)?;
    say(format!("network    {} namespaces on one switch, hosts from {}", lab.hosts.len(), lab.hosts[0].address));
    match &options.driver {
        Driver::Namespaces => make_namespaces(lab, options, say).await?,
        Driver::Nested(nested) => nested::make(lab, options, nested, say).await?,
    }
    say(format!("pool       {}", pool(lab)));
    lab.ready = true;
    record::write(paths, lab)?;
    record::set_current(&lab.name)?;
    Ok(())
}

async fn make_namespaces(
    lab: &LabRecord,
    options: &UpOptions,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<(), Report> {
    for host in &lab.hosts {
        if lab.libvirt {
            libvirtd::start(lab, host)?;
        }
        daemon::write_settings(lab, host, options)?;
        daemon::start(lab, host)?;
    }
    for host in &lab.hosts {
        daemon::wait_until_it_answers(host).await?;
    }
    say(format!("daemons    {} answer", lab.hosts.len()));
    say(cluster::form(lab).await?);
    Ok(())
}

/// Where images and disks of a lab are, for people.
pub fn pool(lab: &LabRecord) -> String {
    if lab.separate_pools {
        return "each host has images and disks of its own, nothing is shared".to_owned();
    }
    format!("images {} · disks {} · shared by all hosts of this lab", lab.images.display(), lab.disks.display())
}

/// Removes a lab, whole or half made. Returns what was removed, a line a thing.
///
/// # Errors
/// There is nothing of this name, or something cannot be removed.
pub fn down(name: &Name, say: &mut (dyn FnMut(String) + Send)) -> Result<Vec<String>, Report> {
    network::check_machine()?;
    let _lock = Lock::take(name)?;
    if leftovers::find(name)?.is_empty() {
        return Err(missing(name));
    }
    let removed = leftovers::remove(name, say)?;
    record::unset_current(name)?;
    let left = leftovers::find(name)?;
    if left.is_empty() {
        return Ok(removed);
    }
    let report = Report::new(ErrorCode::LabBroken, format!("some of lab {:?} could not be removed", name.as_str()));
    Err(left.iter().fold(report, |report, line| report.with("left", line.clone())))
}

/// How the hosts of a lab are.
///
/// # Errors
/// There is no such lab, or its record is damaged.
pub async fn status(name: &Name) -> Result<(LabRecord, Vec<HostStatus>), Report> {
    let lab = existing(name)?;
    let mut hosts = Vec::new();
    for host in &lab.hosts {
        hosts.push(HostStatus {
            processes: network::processes(&host.namespace),
            answers: answers(&lab, host).await,
            connected: network::connected(&lab, host)?,
            host: host.clone(),
        });
    }
    Ok((lab, hosts))
}

/// Cuts the power of a host: every process in its namespace is killed at once. Returns how many there were.
///
/// # Errors
/// There is no such lab or host, or a process stays alive.
pub fn kill(name: &Name, host: &Name) -> Result<usize, Report> {
    let lab = existing(name)?;
    let host = lab.host(host)?;
    let killed = network::kill_all(&host.namespace)?;
    daemon::clear_run_dir(host);
    Ok(killed)
}

async fn answers(lab: &LabRecord, host: &HostRecord) -> bool {
    match lab.nested {
        Some(_) => nested::answers(host, Duration::from_secs(5)).await,
        None => daemon::answers(host).await,
    }
}

/// Starts the daemon of a host that was killed, and its libvirtd; where the host is a VM, the VM.
///
/// # Errors
/// There is no such lab or host, it runs, or the daemon dies at start.
pub async fn start(name: &Name, host: &Name) -> Result<(), Report> {
    let lab = existing(name)?;
    let host = lab.host(host)?;
    if lab.nested.is_some() {
        return nested::start(&lab, host).await;
    }
    let without_libvirt = lab.libvirt && !libvirtd::answers(host);
    if without_libvirt {
        libvirtd::start(&lab, host)?;
    }
    if daemon::answers(host).await {
        return if without_libvirt { Ok(()) } else { Err(runs_already(host)) };
    }
    daemon::start(&lab, host)?;
    daemon::wait_until_it_answers(host).await
}

fn runs_already(host: &HostRecord) -> Report {
    Report::new(ErrorCode::LabExists, format!("the daemon of {} runs already", host.name))
}

/// Cuts a host off: its switch port forwards nothing in either direction, and its own links stay up.
///
/// # Errors
/// There is no such lab or host.
pub fn partition(name: &Name, host: &Name) -> Result<(), Report> {
    let lab = existing(name)?;
    network::set_connected(&lab, lab.host(host)?, false)
}

/// Ends the partition of one host, or of all. Returns the hosts that had been cut off.
///
/// # Errors
/// There is no such lab or host.
pub fn heal(name: &Name, host: Option<&Name>) -> Result<Vec<Name>, Report> {
    let lab = existing(name)?;
    let hosts: Vec<&HostRecord> = match host {
        Some(host) => vec![lab.host(host)?],
        None => lab.hosts.iter().collect(),
    };
    let mut healed = Vec::new();
    for host in hosts {
        if !network::connected(&lab, host)? {
            network::set_connected(&lab, host, true)?;
            healed.push(host.name.clone());
        }
    }
    Ok(healed)
}

/// Runs a command inside a host's namespace, or by ssh on a host that is a VM, with this program's terminal. Returns its
/// exit code.
///
/// # Errors
/// There is no such lab or host, or the command cannot be run.
pub fn exec(name: &Name, host: &Name, argv: &[String]) -> Result<u8, Report> {
    let lab = existing(name)?;
    let host = lab.host(host)?;
    match lab.nested {
        Some(_) => nested::exec(&lab, host, argv),
        None => network::exec(&host.namespace, argv),
    }
}

/// Names of the labs of this machine, with the one in use first.
///
/// # Errors
/// The directory of labs cannot be read.
pub fn list() -> Result<Vec<Name>, Report> {
    record::list()
}

/// Labs of which only a part is there: half made, half removed, or from before the machine was started anew. Name, and what
/// of it there is.
pub(crate) fn left_over() -> Vec<(Name, String)> {
    // Whoever makes or removes one at this moment holds its lock, and may have been done with it since the first look.
    let still = |name: &Name| Lock::take(name).is_ok() && leftovers::names().iter().any(|(left, _)| left == name);
    leftovers::names().into_iter().filter(|(name, _)| still(name)).collect()
}

/// The lab a command means: the one named, else the one in use.
///
/// # Errors
/// There is none.
pub fn chosen(name: Option<&Name>) -> Result<Name, Report> {
    match name {
        Some(name) => Ok(name.clone()),
        None => record::current()
            .ok_or_else(|| Report::new(ErrorCode::LabMissing, "there is no lab").help("vtctl lab up --hosts 3")),
    }
}

fn existing(name: &Name) -> Result<LabRecord, Report> {
    network::check_machine()?;
    match record::read(&Paths::of(name))? {
        Some(lab) => Ok(lab),
        None if leftovers::find(name)?.is_empty() => Err(missing(name)),
        None => Err(half_made(name)),
    }
}

fn check(options: &UpOptions) -> Result<(), Report> {
    let usage = |title: String| Report::new(ErrorCode::Usage, title);
    if options.name.as_str().len() > 8 || options.name.as_str().contains(['.', '_']) {
        return Err(usage(format!("{:?} cannot be a lab's name", options.name.as_str()))
            .with("wanted", "1 to 8 of a-z 0-9 -: namespaces and sockets carry it"));
    }
    if options.hosts == 0 || options.hosts > HOSTS_MAX {
        return Err(
            usage(format!("a lab cannot have {} hosts", options.hosts)).with("wanted", format!("1 to {HOSTS_MAX}"))
        );
    }
    network::check_machine()?;
    match &options.driver {
        Driver::Namespaces => Ok(()),
        Driver::Nested(nested) => nested::check(options, nested),
    }
}

fn half_made(name: &Name) -> Report {
    Report::new(ErrorCode::LabBroken, format!("lab {:?} is half made", name.as_str()))
        .with("because", "whoever made or removed it was stopped in the middle")
        .help(format!("vtctl lab down --lab {name}"))
}

fn missing(name: &Name) -> Report {
    let report = Report::new(ErrorCode::LabMissing, format!("there is no lab called {:?}", name.as_str()));
    let names: Vec<String> = record::list().unwrap_or_default().iter().map(ToString::to_string).collect();
    let report = if names.is_empty() { report } else { report.with("labs", names.join(" ")) };
    report.help("vtctl lab up --hosts 3")
}
