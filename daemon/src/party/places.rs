//! Where things of attempts are on this host, and what this host runs them with. Plain values from the settings.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use vt_protocol::{
    ids::{AttemptId, VmId},
    vm::Drive,
};

use crate::{
    cgroup::Cgroups,
    guard::Times,
    libvirt::Libvirt,
    migrate::lanes::Lanes,
    qemu::{binaries::Binaries, remains},
    settings::{GuestRange, Settings},
};

/// Places and programs of this host.
#[derive(Debug, Clone)]
pub struct Places {
    /// Records of parties and evidence are below it.
    pub data: PathBuf,
    /// Sockets are below it.
    pub run: PathBuf,
    /// Images.
    pub images: PathBuf,
    /// Overlay disks.
    pub disks: PathBuf,
    /// Whether all hosts see the same images and disks.
    pub shared: bool,
    /// The QEMUs of this host.
    pub qemus: Binaries,
    /// The bridge of the taps.
    pub bridge: Option<String>,
    /// The interface of the macvtaps.
    pub uplink: Option<String>,
    /// Addresses for guests.
    pub guests: Option<GuestRange>,
    /// The port that the cluster's daemons speak to each other at.
    pub port: u16,
    /// Where migrations come in.
    pub migration: IpAddr,
    /// How many VMs leave this host at once.
    pub lanes: Arc<Lanes>,
    /// The vtd binary.
    pub vtd: PathBuf,
    /// What is run as a party, before `--socket` and `--attempt`.
    pub party: Vec<String>,
    /// Control groups, where the host lets us have some.
    pub cgroups: Option<Cgroups>,
    /// libvirt, where the settings name one.
    pub libvirt: Option<Arc<Libvirt>>,
    /// When the guards of VMs act.
    pub guard: Times,
    /// How long what a QEMU sent to the server of a disk may be on its way.
    pub in_flight: Duration,
}

impl Places {
    /// From the settings; `migration` is the address that others reach this host at, where the settings name none.
    pub fn new(settings: &Settings, migration: IpAddr) -> Self {
        let vtd = PathBuf::from("/proc/self/exe");
        // The party outlives this binary's name: an upgrade replaces the file while parties run.
        let vtd = std::fs::read_link(&vtd).unwrap_or(vtd);
        let cgroups = match Cgroups::detect(&settings.paths.cgroup) {
            Ok(cgroups) => Some(cgroups),
            Err(error) => {
                tracing::warn!(%error, "VMs and parties run without control groups of their own");
                None
            }
        };
        Self {
            data: settings.paths.data.clone(),
            run: settings.paths.run.clone(),
            images: settings.paths.images.clone(),
            disks: settings.paths.disks.clone(),
            shared: settings.pool_shared,
            qemus: settings.qemus.clone(),
            bridge: settings.network.bridge.clone(),
            uplink: settings.network.uplink.clone(),
            guests: settings.network.guests,
            port: settings.host.listen.port(),
            migration: settings.network.migration.unwrap_or(migration),
            lanes: Lanes::new(settings.moves.at_once, settings.moves.per_link),
            libvirt: settings.libvirt.clone().map(|libvirt| Arc::new(Libvirt::new(&libvirt, &vtd))),
            party: vec![vtd.display().to_string(), "party".to_owned()],
            vtd,
            cgroups,
            guard: Times {
                pause: settings.session.pause,
                kill: settings.session.kill,
                abandon: settings.session.expire,
            },
            // From when a guard has ended a VM until what it had may be another's, and some to spare.
            in_flight: settings.session.expire.saturating_sub(settings.session.kill) / 2,
        }
    }

    /// The socket of the party API.
    pub fn socket(&self) -> PathBuf {
        self.run.join("party.sock")
    }

    /// The folder of VMs' run folders.
    pub fn vms(&self) -> PathBuf {
        self.run.join("vm")
    }

    /// The run folder of a VM.
    pub fn vm(&self, vm: &VmId) -> PathBuf {
        remains::run_dir_for(&self.vms(), vm)
    }

    /// The folder of the sockets by which an attempt's sessions in guests are found again.
    pub fn sessions(&self, attempt: AttemptId) -> PathBuf {
        self.run.join("sessions").join(attempt.to_string())
    }

    /// The overlay disk of a VM: the same on every host where the pool is shared.
    pub fn disk(&self, vm: &VmId) -> PathBuf {
        self.disks.join(format!("{vm}.qcow2"))
    }

    /// The file of a drive that is the VM's own. A name has no `+`, so the VM's name ends there.
    pub fn drive(&self, vm: &VmId, drive: &Drive) -> PathBuf {
        self.disks.join(format!("{vm}+{}.{}", drive.name, drive.format.name()))
    }

    /// The files of all disks of a VM that are here.
    pub fn disks_of(&self, vm: &VmId) -> Vec<PathBuf> {
        let own = format!("{vm}+");
        let entries = std::fs::read_dir(&self.disks).into_iter().flatten().flatten();
        let drives = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&own));
        std::iter::once(self.disk(vm)).chain(drives.map(|entry| entry.path())).collect()
    }

    /// The folder of disks that were found damaged and are kept for who looks into them.
    pub fn damaged_disks(&self) -> PathBuf {
        self.disks.join("damaged")
    }

    /// The folder of files that VMs are moved by.
    pub fn states(&self) -> PathBuf {
        self.data.join("states")
    }

    /// The folder of records of parties.
    pub fn records(&self) -> PathBuf {
        self.data.join("parties")
    }

    /// The record of a party.
    pub fn record(&self, attempt: AttemptId) -> PathBuf {
        self.records().join(format!("{attempt}.json"))
    }
}

/// Where the secret of a party is, by the socket that it is told.
pub fn secret_file(socket: &Path, attempt: AttemptId) -> PathBuf {
    socket.with_file_name("parties").join(attempt.to_string())
}
