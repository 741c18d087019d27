//! The daemon of a lab's host: its settings, its start inside the namespace, and whether it answers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use vt_protocol::error::{ErrorCode, Report};

use super::{
    UpOptions, libvirtd, network,
    record::{HostRecord, LabRecord, UPLINK, trouble},
};

/// How long a daemon may take until it answers on its socket.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// The program of the daemon.
pub(crate) fn find_vtd(wanted: Option<&Path>) -> Result<PathBuf, Report> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("vtd")));
    let candidates = match wanted {
        Some(path) => vec![path.to_owned()],
        None => beside.into_iter().chain(network::find_in_path("vtd")).collect(),
    };
    match candidates.iter().find(|path| path.is_file()) {
        // Daemons are started with another working directory.
        Some(path) => std::path::absolute(path).map_err(|e| trouble("find", path, &e)),
        None => {
            let tried: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
            Err(Report::new(ErrorCode::LabPrecondition, "the daemon's program vtd is not there")
                .with("tried", tried.join(", "))
                .help("put vtd beside vtctl, or name it: vtctl lab up --vtd PATH"))
        }
    }
}

/// Writes the settings of a host's daemon, and makes its directories.
pub(super) fn write_settings(lab: &LabRecord, host: &HostRecord, options: &UpOptions) -> Result<(), Report> {
    let (images, disks) = match lab.separate_pools {
        true => (host.own_images(), host.own_disks()),
        false => (lab.images.clone(), lab.disks.clone()),
    };
    // The directory that hosts share is whoever names it's.
    let own = lab.separate_pools.then_some(&images);
    for directory in [&host.data, &host.run, &disks].into_iter().chain(own) {
        fs::create_dir_all(directory).map_err(|e| trouble("make", directory, &e))?;
    }
    let quoted = |path: &Path| toml_string(&path.to_string_lossy());
    let mut text = format!(
        "[host]\nname = \"{name}\"\nlisten = \"{listen}\"\nadvertise = \"{listen}\"\nkind = \"namespace\"\n\n\
         [paths]\ndata = {data}\nrun = {run}\nimages = {images}\ndisks = {disks}\n\
         cgroup = \"vtmesh/lab-{lab}/{name}\"\n\n\
         [pool]\nshared = {shared}\n\n\
         [network]\nbridge = \"br0\"\nguests = \"10.77.0.100-10.77.0.249/24\"\n{uplink}\n\
         [log]\nfilter = {log}\n",
        lab = lab.name,
        name = host.name,
        listen = host.listen(),
        data = quoted(&host.data.join("data")),
        run = quoted(&host.run),
        images = quoted(&images),
        disks = quoted(&disks),
        shared = !lab.separate_pools,
        uplink = if lab.uplinks { format!("uplink = \"{UPLINK}\"\n") } else { String::new() },
        log = toml_string(&options.log),
    );
    if !options.qemus.is_empty() {
        text += "\n[qemu.binaries]\n";
        text.extend(options.qemus.iter().map(|(name, file)| format!("\"{name}\" = {}\n", quoted(file))));
    }
    if lab.libvirt {
        let (uri, peer) = (toml_string(&libvirtd::uri(host)), toml_string(&libvirtd::peer(host)));
        let certificates = quoted(&libvirtd::certificates(host));
        text += &format!("\n[libvirt]\nuri = {uri}\npeer = {peer}\ncertificates = {certificates}\n");
    }
    let path = host.data.join("vtd.toml");
    fs::write(&path, text).map_err(|e| trouble("write", &path, &e))
}

fn toml_string(text: &str) -> String {
    // JSON's escapes are a subset of TOML's basic strings.
    serde_json::to_string(text).expect("a string is always JSON")
}

/// Starts a host's daemon in a session of its own, so that it outlives this program and its terminal.
pub(super) fn start(lab: &LabRecord, host: &HostRecord) -> Result<(), Report> {
    fs::create_dir_all(&host.run).map_err(|e| trouble("make", &host.run, &e))?;
    let path = log_path(host);
    let log = fs::File::options().create(true).append(true).open(&path).map_err(|e| trouble("open", &path, &e))?;
    let errors = log.try_clone().map_err(|e| trouble("open", &path, &e))?;
    Command::new("setsid")
        .args(network::enter(&host.namespace))
        .arg(&lab.vtd)
        .arg("--config")
        .arg(host.data.join("vtd.toml"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map(drop)
        .map_err(|error| {
            Report::new(ErrorCode::LabPrecondition, format!("the daemon of {} cannot be started", host.name))
                .caused_by(&error)
        })
}

/// Where a host's daemon writes its log.
pub(super) fn log_path(host: &HostRecord) -> PathBuf {
    host.data.join("vtd.log")
}

/// Whether a daemon listens on a host's socket.
pub(super) async fn answers(host: &HostRecord) -> bool {
    let connect = tokio::net::UnixStream::connect(host.socket());
    matches!(tokio::time::timeout(Duration::from_secs(2), connect).await, Ok(Ok(_)))
}

/// Waits until a host's daemon answers; quotes its log where it does not.
pub(super) async fn wait_until_it_answers(host: &HostRecord) -> Result<(), Report> {
    let begun = tokio::time::Instant::now();
    while !answers(host).await {
        let gone = network::processes(&host.namespace).is_empty() && begun.elapsed() > Duration::from_secs(1);
        if gone || begun.elapsed() > START_DEADLINE {
            let how = if gone { "ended at once" } else { "does not answer" };
            return Err(Report::new(ErrorCode::LabPrecondition, format!("the daemon of {} {how}", host.name))
                .with("waited", format!("{:.1} s", begun.elapsed().as_secs_f64()))
                .with("socket", host.socket().display().to_string())
                .with("its log", last_lines(&log_path(host))));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The end of a log, for a report.
pub(super) fn last_lines(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(1200)..]).into_owned();
    if tail.trim().is_empty() { "(empty)".into() } else { tail.trim().to_owned() }
}

/// A machine that lost power has no sockets when it comes back.
pub(super) fn clear_run_dir(host: &HostRecord) {
    // Best effort: a daemon replaces a stale socket by itself.
    let _ = fs::remove_dir_all(&host.run);
}
