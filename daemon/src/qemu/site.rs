//! What is made for a VM before its QEMU: its run folder, its record, its taps, its control group.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    cable::Way,
    command_line::{AGENT_SOCKET, CONSOLE_SOCKET, CommandLine, GUARD_QMP_SOCKET, PROBE_SOCKET, QMP_SOCKET},
    record::VmRecord,
    remains,
    tap::{Tap, TapError, forget_neighbour},
    vm::{MEMORY_FILE, SERIAL_FILE, SOCKET_PATH_MAX, VmError, VmPlaces, VmSetup},
};
use crate::cgroup::{Cgroup, Cgroups};

/// The place of a VM on this host. Dropped without [`Site::keep`], everything of it is removed but the evidence.
#[derive(Debug)]
pub(crate) struct Site {
    /// As it is on disk.
    pub(crate) record: VmRecord,
    /// The run folder.
    pub(crate) run_dir: PathBuf,
    /// For QEMU, where the host lets us have one.
    pub(super) cgroup: Option<Cgroup>,
    serial_log: PathBuf,
    memory_file: Option<PathBuf>,
    kept: bool,
}

impl Site {
    /// Makes it.
    pub(crate) fn make(setup: &VmSetup, places: &VmPlaces) -> Result<Self, VmError> {
        let VmPlaces { run_dir, evidence, cgroups, .. } = places;
        check_socket_paths(run_dir)?;
        if run_dir.exists() {
            return Err(VmError::InUse(run_dir.clone()));
        }
        fs::create_dir_all(evidence).map_err(VmError::io("make", evidence))?;
        let taps = (0..setup.spec.nics.len()).map(|number| Tap::name_for(run_dir, number)).collect();
        let record = VmRecord {
            version: VmRecord::VERSION,
            spec: setup.spec.clone(),
            machine: setup.resolved.machine.clone(),
            accelerator: setup.resolved.accelerator,
            cpu_model: setup.resolved.cpu_model.clone(),
            incoming: setup.incoming,
            process: None,
            cgroup: cgroups.as_ref().map(|all| all.get(&remains::cgroup_name(run_dir)).path().to_owned()),
            taps,
            evidence: evidence.clone(),
        };
        let mut site = Self {
            record,
            run_dir: run_dir.clone(),
            cgroup: None,
            serial_log: evidence.join(SERIAL_FILE),
            memory_file: setup.memory_in_file.then(|| run_dir.join(MEMORY_FILE)),
            kept: false,
        };
        create_private_dir(run_dir).map_err(VmError::io("make", run_dir))?;
        site.write()?;
        // The record names them: whatever is made from here on is removed with the run folder.
        site.cgroup = make_cgroup(cgroups.as_ref(), run_dir);
        let bridge = setup.bridge.as_deref();
        for (number, (tap, nic)) in site.record.taps.iter().zip(&site.record.spec.nics).enumerate() {
            match setup.cables.get(number).copied().unwrap_or_default().way {
                Way::Tap => Tap::create(tap, bridge.ok_or(TapError::NoBridge)?)?.keep(),
                Way::Macvtap(mode) => {
                    let uplink = setup.uplink.as_deref().ok_or(TapError::NoUplink)?;
                    Tap::create_macvtap(tap, uplink, mode, nic.mac)?.keep()
                }
            };
            if let Some((address, bridge)) = nic.address.zip(bridge) {
                forget_neighbour(address, bridge)?;
            }
        }
        Ok(site)
    }

    /// What its QEMU is made of.
    pub(crate) fn command_line<'a>(&'a self, setup: &'a VmSetup) -> CommandLine<'a> {
        CommandLine {
            spec: &self.record.spec,
            resolved: &setup.resolved,
            boot: setup.boot.as_ref(),
            disk: setup.disk.as_ref(),
            drives: &setup.drives,
            taps: &self.record.taps,
            cables: &setup.cables,
            run_dir: &self.run_dir,
            serial_log: &self.serial_log,
            memory_file: self.memory_file.as_deref(),
            incoming: setup.incoming,
        }
    }

    /// Its macvtaps, by name.
    pub(super) fn macvtaps(&self, setup: &VmSetup) -> Vec<String> {
        let taps = self.record.taps.iter().zip(&setup.cables);
        taps.filter(|(_, cable)| matches!(cable.way, Way::Macvtap(_))).map(|(tap, _)| tap.clone()).collect()
    }

    /// Writes the record again.
    pub(super) fn write(&self) -> Result<(), VmError> {
        self.record.write(&self.run_dir).map_err(VmError::io("write record in", &self.run_dir))
    }

    /// It stays: a VM lives there now, or is to.
    pub(crate) fn keep(mut self) -> (VmRecord, PathBuf) {
        self.kept = true;
        (self.record.clone(), self.run_dir.clone())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !self.kept {
            for left in remains::clear(&self.run_dir) {
                tracing::warn!(left, "left by a VM that did not start");
            }
        }
    }
}

fn check_socket_paths(run_dir: &Path) -> Result<(), VmError> {
    let longest = [QMP_SOCKET, GUARD_QMP_SOCKET, CONSOLE_SOCKET, AGENT_SOCKET, PROBE_SOCKET, crate::guard::SOCKET]
        .into_iter()
        .map(|name| run_dir.join(name).as_os_str().len())
        .max();
    if longest > Some(SOCKET_PATH_MAX) { Err(VmError::PathTooLong(run_dir.to_owned())) } else { Ok(()) }
}

fn create_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::DirBuilder::new().mode(0o700).create(path)
}

fn make_cgroup(cgroups: Option<&Cgroups>, run_dir: &Path) -> Option<Cgroup> {
    let name = remains::cgroup_name(run_dir);
    match cgroups?.create(&name) {
        Ok(group) => Some(group),
        Err(error) => {
            tracing::warn!(%error, name, "QEMU runs without a control group of its own");
            None
        }
    }
}
