//! What is written down of a lab: its record, written before anything is made, and which lab is in use.

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
};

use super::UpOptions;

/// Port of every daemon, QUIC and bulk.
pub(super) const PORT: u16 = 7465;
/// A host's end of its second link to the switch.
pub(super) const UPLINK: &str = "up1";
/// Where labs keep data. `VTMESH_LAB_ROOT` moves it, so that tests do not meet a developer's labs.
const DATA_ROOT: &str = "/var/lib/vtmesh/labs";
/// Where labs keep sockets: short, because a Unix socket's path has 107 bytes.
const RUN_ROOT: &str = "/run/vtmesh/labs";

fn data_root() -> PathBuf {
    std::env::var_os("VTMESH_LAB_ROOT").map_or_else(|| PathBuf::from(DATA_ROOT), PathBuf::from)
}

/// Directories of one lab.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) data: PathBuf,
    pub(super) run: PathBuf,
}

impl Paths {
    pub(super) fn of(name: &Name) -> Self {
        Self { data: data_root().join(name.as_str()), run: Path::new(RUN_ROOT).join(name.as_str()) }
    }

    fn record(&self) -> PathBuf {
        self.data.join("lab.json")
    }
}

/// A lab as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabRecord {
    /// `vtmesh/v1/lab`.
    pub schema: String,
    /// Its name.
    pub name: Name,
    /// Whether it was made to the end.
    pub ready: bool,
    /// Namespace of the switch.
    pub switch: String,
    /// Its hosts, in order.
    pub hosts: Vec<HostRecord>,
    /// The images all hosts share.
    pub images: PathBuf,
    /// The directory of overlay disks all hosts share.
    pub disks: PathBuf,
    /// Each host has images and disks in its own data directory instead.
    #[serde(default)]
    pub separate_pools: bool,
    /// Each host has a libvirtd.
    #[serde(default)]
    pub libvirt: bool,
    /// Each host has a second link to the switch, [`UPLINK`].
    #[serde(default)]
    pub uplinks: bool,
    /// The daemon's program.
    pub vtd: PathBuf,
    /// How its hosts run, where they are VMs.
    #[serde(default)]
    pub nested: Option<NestedRecord>,
}

/// How hosts that are VMs run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NestedRecord {
    /// Under KVM; else emulated.
    pub kvm: bool,
    /// Memory of each, MiB.
    pub memory_mib: u32,
}

/// A host of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRecord {
    /// host1, host2, …
    pub name: Name,
    /// Its network namespace.
    pub namespace: String,
    /// Its port on the switch.
    pub port: String,
    /// Its address; daemons listen on [`PORT`] of it.
    pub address: Ipv4Addr,
    /// Its data directory.
    pub data: PathBuf,
    /// Its directory of sockets.
    pub run: PathBuf,
}

impl HostRecord {
    /// Its daemon's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("vtd.sock")
    }

    /// The port of its second link on the switch, where it has one.
    pub(super) fn uplink_port(&self) -> String {
        format!("{}u", self.port)
    }

    /// Its images, where it shares none.
    pub fn own_images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Its overlay disks, where it shares none.
    pub fn own_disks(&self) -> PathBuf {
        self.data.join("disks")
    }

    /// Where its daemon listens.
    pub fn listen(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, PORT)
    }

    /// The address of its namespace, where the host itself is a VM in there.
    pub(super) fn seat(&self) -> Ipv4Addr {
        let [a, b, c, last] = self.address.octets();
        Ipv4Addr::new(a, b, c, last + 50)
    }

    /// Its address of the other kind, on the same link, for what is wanted over IPv6.
    pub fn ipv6(&self) -> Ipv6Addr {
        let [.., last] = self.address.octets();
        Ipv6Addr::new(0xfd76, 0x746d, 0, 0, 0, 0, 0, u16::from(last))
    }
}

impl LabRecord {
    /// What a lab of this name will consist of; makes nothing.
    pub(super) fn plan(options: &UpOptions, vtd: PathBuf) -> Self {
        let name = &options.name;
        let paths = Paths::of(name);
        let host = |number: u32| HostRecord {
            name: format!("host{number}").parse().expect("host and a number is a name"),
            namespace: format!("vt-{name}-host{number}"),
            port: format!("port{number}"),
            address: Ipv4Addr::new(10, 77, 0, 10 + number as u8),
            data: paths.data.join(format!("host{number}")),
            run: paths.run.join(format!("host{number}")),
        };
        Self {
            schema: "vtmesh/v1/lab".into(),
            name: name.clone(),
            ready: false,
            switch: format!("vt-{name}-sw"),
            hosts: (1..=options.hosts).map(host).collect(),
            images: options.images.clone(),
            disks: paths.data.join("disks"),
            separate_pools: options.separate_pools,
            libvirt: options.libvirt,
            uplinks: options.uplinks,
            vtd,
            nested: None,
        }
    }

    /// What its hosts are.
    pub fn driver(&self) -> &'static str {
        if self.nested.is_some() { "nested" } else { "namespace" }
    }

    /// The host of this name.
    pub(super) fn host(&self, name: &Name) -> Result<&HostRecord, Report> {
        self.hosts.iter().find(|host| host.name == *name).ok_or_else(|| {
            let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
            Report::new(ErrorCode::UnknownHost, format!("no host of lab {} is called {:?}", self.name, name.as_str()))
                .with("hosts", names.join(" "))
        })
    }
}

/// Held by whoever makes or removes a lab. The file stays; the lock ends with its holder.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<fs::File>);

impl Lock {
    pub(super) fn take(name: &Name) -> Result<Self, Report> {
        let root = data_root();
        fs::create_dir_all(&root).map_err(|e| trouble("make", &root, &e))?;
        let path = root.join(format!(".{name}.lock"));
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| trouble("open", &path, &e))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map(Self).map_err(|_| {
            Report::new(ErrorCode::LabExists, format!("lab {:?} is being made or removed right now", name.as_str()))
                .with("lock", path.display().to_string())
                .help("wait for the other vtctl to end, then try again")
                .retryable()
        })
    }
}

/// The record, where there is one.
pub(super) fn read(paths: &Paths) -> Result<Option<LabRecord>, Report> {
    let path = paths.record();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(trouble("read", &path, &error)),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        let name = paths.data.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Report::new(ErrorCode::LabBroken, format!("the record of lab {name:?} is damaged"))
            .with("file", path.display().to_string())
            .with("because", error.to_string())
            .help(format!("vtctl lab down --lab {name}"))
    })
}

/// Writes the record whole or not at all.
pub(super) fn write(paths: &Paths, lab: &LabRecord) -> Result<(), Report> {
    fs::create_dir_all(&paths.data).map_err(|e| trouble("make", &paths.data, &e))?;
    let text = serde_json::to_string_pretty(lab).expect("a record has string keys only");
    replace(&paths.record(), &text)
}

fn replace(path: &Path, text: &str) -> Result<(), Report> {
    let part = path.with_extension("part");
    let written = fs::File::create(&part).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&part, path)).map_err(|e| trouble("write", path, &e))
}

/// Makes `name` the lab that commands mean when none is named.
pub(super) fn set_current(name: &Name) -> Result<(), Report> {
    replace(&data_root().join("current"), name.as_str())
}

/// Another lab becomes the one in use, where there is one.
pub(super) fn unset_current(name: &Name) -> Result<(), Report> {
    if current().as_ref() != Some(name) {
        return Ok(());
    }
    let path = data_root().join("current");
    match list()?.into_iter().find(|other| other != name) {
        Some(other) => set_current(&other),
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(trouble("remove", &path, &error)),
            _ => Ok(()),
        },
    }
}

/// The lab in use.
pub(super) fn current() -> Option<Name> {
    fs::read_to_string(data_root().join("current")).ok()?.trim().parse().ok()
}

/// Labs of this machine that have a record, the one in use first.
pub(super) fn list() -> Result<Vec<Name>, Report> {
    let root = data_root();
    let entries = match fs::read_dir(&root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(trouble("read", &root, &error)),
    };
    let mut names: Vec<Name> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("lab.json").exists())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let current = current();
    names.sort_by_key(|name| (Some(name) != current.as_ref(), name.clone()));
    Ok(names)
}

/// Sockets of the daemons of a lab, in order of hosts: of the one named, else of the one in use. Empty without a lab.
///
/// # Errors
/// The record is damaged, or the lab that was named does not exist.
pub fn current_sockets(name: Option<&Name>) -> Result<Vec<(Name, PathBuf)>, Report> {
    let Some(chosen) = name.cloned().or_else(current) else { return Ok(Vec::new()) };
    match read(&Paths::of(&chosen))? {
        Some(lab) => Ok(lab.hosts.iter().map(|host| (host.name.clone(), host.socket())).collect()),
        None if name.is_some() => Err(super::missing(&chosen)),
        None => Ok(Vec::new()),
    }
}

/// A file or directory that could not be used.
pub(super) fn trouble(what: &str, path: &Path, error: &std::io::Error) -> Report {
    let code =
        if error.kind() == std::io::ErrorKind::StorageFull { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
    Report::new(code, format!("cannot {what} {}", path.display())).with("system said", error.to_string())
}
