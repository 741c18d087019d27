//! libvirtd of a lab's host: in its network namespace, with mount and host-name namespaces of its own, because a machine
//! has one set of its folders and two libvirts with one host name take each other for the same host.
//!
//! Open to the lab's hosts without a password, over plain TCP: nobody else reaches that network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use vt_protocol::error::{ErrorCode, Report};

use super::{
    network,
    record::{HostRecord, LabRecord, trouble},
};

/// How long it may take until its socket is there.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Folders of libvirt's that each host has for itself: where they are, and what is bound over them.
const FOLDERS: [(&str, &str); 5] = [
    ("/run/libvirt", "run"),
    ("/var/lib/libvirt", "lib"),
    ("/var/log/libvirt", "log"),
    ("/var/cache/libvirt", "cache"),
    ("/etc/libvirt", "etc"),
];
/// QEMU runs as root, without the confinements that need the whole machine; the file of its console is opened by libvirtd
/// itself, so that no virtlogd is needed.
const QEMU_CONF: &str = "security_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\nremember_owner = 0\n\
                         stdio_handler = \"file\"\nuser = \"root\"\ngroup = \"root\"\n";

/// The program, where it is installed.
///
/// # Errors
/// It is not.
pub(super) fn check() -> Result<(), Report> {
    let there = ["libvirtd", "unshare"].iter().all(|program| network::find_in_path(program).is_some());
    if there {
        return Ok(());
    }
    Err(Report::new(ErrorCode::LabPrecondition, "libvirtd is not installed")
        .help("apt-get install libvirt-daemon libvirt-daemon-driver-qemu util-linux"))
}

fn folder(host: &HostRecord) -> PathBuf {
    host.run.join("libvirt")
}

fn socket(host: &HostRecord) -> PathBuf {
    folder(host).join("run/libvirt-sock")
}

/// Where its QEMUs find their certificates.
pub(super) fn certificates(host: &HostRecord) -> PathBuf {
    folder(host).join("etc/pki")
}

/// How the host's daemon reaches it.
pub(super) fn uri(host: &HostRecord) -> String {
    format!("qemu+unix:///system?socket={}", socket(host).display())
}

/// How the other hosts' libvirts reach it.
pub(super) fn peer(host: &HostRecord) -> String {
    format!("qemu+tcp://{}/system", host.address)
}

/// Whether it can be reached.
pub(super) fn answers(host: &HostRecord) -> bool {
    std::os::unix::net::UnixStream::connect(socket(host)).is_ok()
}

/// Starts it, and waits until it can be reached. It ends with its host's namespace.
pub(super) fn start(lab: &LabRecord, host: &HostRecord) -> Result<(), Report> {
    let own = folder(host);
    let write = |path: PathBuf, text: &str| fs::write(&path, text).map_err(|e| trouble("write", &path, &e));
    let mut script = String::from("set -e\n");
    for (there, name) in FOLDERS {
        let here = own.join(name);
        for folder in [&here, &PathBuf::from(there)] {
            fs::create_dir_all(folder).map_err(|e| trouble("make", folder, &e))?;
        }
        script += &format!("mount --bind '{}' {there}\n", here.display());
    }
    let certificates = certificates(host);
    fs::create_dir_all(&certificates).map_err(|e| trouble("make", &certificates, &e))?;
    write(own.join("etc/qemu.conf"), &qemu_conf(&certificates))?;
    write(own.join("etc/libvirtd.conf"), &libvirtd_conf(host, &own))?;
    // A host name that cannot be looked up costs seconds in every move.
    write(own.join("hosts"), &hosts_file(lab))?;
    script += &format!("mount --bind '{}' /etc/hosts\n", own.join("hosts").display());
    script += &format!("hostname {}\nexec libvirtd --listen -p '{}'\n", host.name, own.join("libvirtd.pid").display());
    let log = own.join("log/start.log");
    let output = fs::File::create(&log).map_err(|e| trouble("open", &log, &e))?;
    let errors = output.try_clone().map_err(|e| trouble("open", &log, &e))?;
    Command::new("setsid")
        .args(network::enter(&host.namespace))
        .args(["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", &script])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| failed(host, &log).caused_by(&error))?;
    let begun = Instant::now();
    while !answers(host) {
        if begun.elapsed() > START_DEADLINE {
            return Err(failed(host, &log).with("waited", format!("{} s", START_DEADLINE.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn failed(host: &HostRecord, log: &Path) -> Report {
    let words = fs::read_to_string(log).unwrap_or_default();
    let words = if words.trim().is_empty() { "(nothing)" } else { words.trim() };
    Report::new(ErrorCode::LabPrecondition, format!("libvirtd of {} cannot be reached", host.name))
        .with("it said", words)
        .with("its log", folder(host).join("log").display().to_string())
}

fn qemu_conf(certificates: &Path) -> String {
    let folder = certificates.display();
    format!("{QEMU_CONF}migrate_tls_x509_cert_dir = \"{folder}\"\nmigrate_tls_x509_verify = 1\n")
}

fn libvirtd_conf(host: &HostRecord, own: &Path) -> String {
    // The same host is the same one when it is started again, and no other.
    let digest = blake3::hash(host.namespace.as_bytes()).to_hex();
    let uuid =
        format!("{}-{}-8{}-8{}-{}", &digest[..8], &digest[8..12], &digest[13..16], &digest[17..20], &digest[20..32]);
    format!(
        "listen_tls = 0\nlisten_tcp = 1\nlisten_addr = \"{}\"\nauth_tcp = \"none\"\nauth_unix_rw = \"none\"\n\
         host_uuid = \"{uuid}\"\nlog_outputs = \"3:file:{}\"\n",
        host.address,
        own.join("log/libvirtd.log").display()
    )
}

fn hosts_file(lab: &LabRecord) -> String {
    let hosts = lab.hosts.iter().map(|host| format!("{} {}\n", host.address, host.name));
    std::iter::once("127.0.0.1 localhost\n".to_owned()).chain(hosts).collect()
}
