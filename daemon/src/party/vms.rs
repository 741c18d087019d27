//! VMs of an attempt on this host: claimed, started, waited for, ended.
//!
//! Order of a start: everything that can be refused without a trace first (image, QEMU, accelerator), then the claim in
//! the log, the overlay disk, QEMU with its CPUs stopped, the guard, `cont`, and the guest's first word. A start that
//! fails gives back what it made. What may not happen here: `cont` before the claim is in the log.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Digest, Epoch, Name},
    party::{Answer, Failure, StartVm, VmStarted},
    verdict::{Blame, Cause, Consequence},
    vm::{Backend, Nic, NicModel, VmSpec},
};
use vt_sync::command::{ClaimVm, ReleaseVm};

use super::{
    attempt::{DECIDES, LocalAttempt},
    failure::caused,
    image::Image,
    local_vm::LocalVm,
    qemu::Common,
};
use crate::{
    evidence::files::tail,
    guest::GuestError,
    qemu::{
        Boot, Disk, Resolved, Vm, VmPlaces, VmSetup, command_line::default_cpu_model, qmp::RunState, vm::SERIAL_FILE,
    },
};

/// How much of the serial log is quoted, bytes.
const QUOTE: u64 = 1200;

impl LocalAttempt {
    /// Starts a VM on this host and waits for its guest. Answered from what runs where it was started before.
    ///
    /// # Errors
    /// It does not run; nothing is left of it.
    pub async fn start_vm(self: &Arc<Self>, call: StartVm) -> Result<Answer, Failure> {
        let begun = Instant::now();
        if let Some(vm) = self.vm(&call.vm) {
            // A daemon that ended between its start and here never let it run.
            let state = vm.qemu.qmp().query_status().await.map(|status| status.state);
            if matches!(state, Ok(RunState::Prelaunch)) {
                self.let_run(&vm).await.map_err(caused)?;
            }
            if !call.no_wait {
                let probe = self.image(&call.image).map_err(caused)?.has_probe();
                self.await_guest(&vm, &call, probe, begun).await?;
            }
            return self.started(&vm, "as before".to_owned(), BTreeMap::new(), begun).await;
        }
        if call.backend == Backend::Libvirt {
            self.libvirt().map_err(caused)?;
        }
        let image = self.image(&call.image).map_err(caused)?;
        let place = self.disk_place(&self.vm_id(&call.vm)).map_err(caused)?;
        place.suits(&call).map_err(caused)?;
        let qemu = self.qemu(&call.vm).map_err(caused)?;
        let features = self.features.of(qemu.path).await.map_err(caused)?;
        let Common { machine, older, accelerator, reason, versions } =
            self.common(&call.vm, call.machine.as_deref(), call.accelerator).await?;
        let word = format!("{accelerator:?}").to_lowercase();
        self.evidence.events.say(format!("accelerator {word}: {reason}"));
        self.evidence.events.say(format!("QEMU {qemu}, version {}", features.version));
        if let Some(older) = older {
            self.evidence.events.say(format!("machine type {machine}: {older}"));
        }
        let cpu_model = call.cpu_model.clone().unwrap_or_else(|| default_cpu_model(accelerator).to_owned());
        if !features.cpus.is_empty() && !features.has_cpu(&cpu_model) {
            let title = format!("QEMU {} has no CPU model {cpu_model}", features.version);
            return Err(caused(Report::new(ErrorCode::BadParameter, title).with("parameter", "cpu_model")));
        }
        let resolved = Resolved { machine, accelerator, cpu_model: cpu_model.clone() };

        let mut drives = call.drives.clone();
        if call.check_images {
            image.look_inside().await.map_err(caused)?;
        }
        self.survey_drives(&mut drives, call.check_images).await.map_err(caused)?;

        let (epoch, slot) = self.claim(&call, &image).await?;
        let nics = self.nics(&call.vm, slot, &call.nics).map_err(caused)?;
        let spec = VmSpec {
            id: self.vm_id(&call.vm),
            image: call.image.clone(),
            memory_mib: call.memory_mib,
            cpus: call.cpus,
            machine: Some(resolved.machine.clone()),
            cpu_model: Some(cpu_model),
            accelerator: Some(accelerator),
            nics,
            extra_args: call.extra_args.clone(),
            drives,
            check_images: call.check_images,
            backend: call.backend,
            io_thread: call.io_thread,
        };
        let vm = match self.run_qemu(spec, resolved, &image, epoch).await {
            Ok(vm) => vm,
            Err(report) => {
                self.remove_disks(&self.vm_id(&call.vm)).await;
                self.release(&call.vm, epoch).await;
                return Err(Failure::Caused(Cause { blame: Blame::Infrastructure, report }));
            }
        };
        // From here on the end of the attempt gives it back.
        self.put_vm(vm.clone());
        if !call.no_wait {
            self.await_guest(&vm, &call, image.has_probe(), begun).await?;
        }
        self.started(&vm, reason, versions, begun).await
    }

    async fn claim(&self, call: &StartVm, image: &Image) -> Result<(Epoch, u16), Failure> {
        let id = self.vm_id(&call.vm);
        let words = serde_json::to_vec(call).unwrap_or_default();
        let claim = ClaimVm {
            vm: id.clone(),
            host: self.me(),
            epoch: self.epoch,
            image: call.image.clone(),
            also: call.drives.iter().filter_map(|drive| drive.content.image().cloned()).collect(),
            alone: self.wanted_alone(&call.drives).map_err(caused)?,
            spec: Some(Digest::of(&[&words[..], image.record.digest.as_bytes()].concat())),
        };
        let applied = self.propose("claim", call.vm.as_str(), claim, DECIDES).await?;
        let state = self.applied(applied.index).await;
        match (applied.epoch(), state.vms.get(&id)) {
            (Some(epoch), Some(record)) if record.owner == self.me() && record.epoch == epoch => {
                Ok((epoch, record.slot))
            }
            _ => {
                let title = format!("{id} was claimed and given up before");
                Err(caused(Report::new(ErrorCode::NotOwner, title)))
            }
        }
    }

    fn nics(&self, vm: &Name, slot: u16, models: &[NicModel]) -> Result<Vec<Nic>, Report> {
        if !self.has_network(&self.cables(vm)?) {
            return Ok(Vec::new());
        }
        let mut address = None;
        if let Some(range) = self.places.guests {
            let Some(free) = range.at(u32::from(slot)) else {
                return Err(Report::new(ErrorCode::NetworkSetup, "every address for guests is taken")
                    .with("addresses", format!("{} to {}", range.first, range.last))
                    .help("set a wider network.guests in the daemon's settings"));
            };
            address = Some(free);
        }
        let prefix = self.places.guests.map_or(0, |range| range.prefix);
        // Unique in the cluster by its slot, and on a wire that clusters share by the attempt.
        let of_attempt = blake3::hash(self.id.to_string().as_bytes());
        let [c, d] = slot.to_be_bytes();
        let models = if models.is_empty() { &[NicModel::Virtio] } else { models };
        let of_nics = models.iter().zip(of_attempt.as_bytes().as_chunks().0);
        let mut nics: Vec<_> = of_nics
            .map(|(model, [a, b])| Nic { mac: [0x52, 0x54, *a, *b, c, d], address: None, prefix, model: *model })
            .collect();
        // The kernel command line names one address, and the card that has it.
        nics[0].address = address;
        Ok(nics)
    }

    async fn run_qemu(
        self: &Arc<Self>,
        mut spec: VmSpec,
        resolved: Resolved,
        image: &Image,
        epoch: Epoch,
    ) -> Result<Arc<LocalVm>, Report> {
        let place = self.disk_place(&spec.id)?;
        self.make_disk(&place, image, epoch).await?;
        self.make_drives(&mut spec).await?;
        let boot = image.boot(&spec.nics);
        let disk = place.for_qemu(image, &self.places.vm(&spec.id), Some(epoch));
        let (setup, places) = self.setup(spec, resolved, boot, disk, "start")?;
        let vm = self.launch(setup, places).await?;
        let vm = LocalVm::new(vm, place, epoch);
        self.watch_disk(&vm);
        self.place("vm-runs").await;
        if let Err(report) = self.let_run(&vm).await {
            vm.qemu.clone().kill().await;
            return Err(report);
        }
        Ok(vm)
    }

    /// Starts QEMU with its CPUs stopped.
    pub(crate) async fn launch(&self, setup: VmSetup, places: VmPlaces) -> Result<Vm, Report> {
        match setup.spec.backend {
            Backend::Qmp => Vm::start(setup, places).await.map_err(|error| error.report()),
            Backend::Libvirt => self.start_domain(&setup, places).await,
        }
    }

    /// What a VM is started with on this host, and where; `incarnation` names the folder of its evidence.
    pub(crate) fn setup(
        &self,
        spec: VmSpec,
        resolved: Resolved,
        boot: Option<Boot>,
        disk: Disk,
        incarnation: &str,
    ) -> Result<(VmSetup, VmPlaces), Report> {
        let places = VmPlaces {
            run_dir: self.places.vm(&spec.id),
            evidence: self.evidence.dir().join(spec.id.name.as_str()).join(incarnation),
            vtd: self.places.vtd.clone(),
            cgroups: self.places.cgroups.clone(),
            in_flight: self.places.in_flight,
        };
        let setup = VmSetup {
            qemu: self.qemu(&spec.id.name)?.path.to_owned(),
            boot,
            disk: Some(disk),
            drives: self.drives(&spec)?,
            cables: self.cables(&spec.id.name)?,
            bridge: self.places.bridge.clone(),
            uplink: self.places.uplink.clone(),
            memory_in_file: false,
            incoming: incarnation != "start",
            spec,
            resolved,
        };
        Ok((setup, places))
    }

    async fn await_guest(&self, vm: &LocalVm, call: &StartVm, probe: bool, begun: Instant) -> Result<(), Failure> {
        let deadline = begun + Duration::from_millis(call.boot_timeout_ms);
        let who = self.credentials();
        let up = timeout_at(deadline + Duration::from_secs(1), vm.lines.up(probe, &who, deadline));
        let up = tokio::select! {
            biased;
            () = self.closing.cancelled() => {
                return Err(Failure::Followed(Consequence::Closed));
            }
            died = vm.qemu.died() => {
                return Err(Failure::Caused(Cause { blame: Blame::Infrastructure, report: died.report() }));
            }
            up = up => up,
        };
        let late = format!("the guest of {} did not come up within {} s", call.vm, call.boot_timeout_ms / 1000);
        // A guest that stays silent is the product's; one that cannot be asked is not.
        let (blame, title, why) = match up {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error @ GuestError::Deadline { .. })) => (Blame::Product, late, error.to_string()),
            Err(_) => (Blame::Product, late, "no answer".to_owned()),
            Ok(Err(error)) => {
                let title = format!("the guest of {} cannot be asked whether it is up", call.vm);
                (Blame::Infrastructure, title, error.to_string())
            }
        };
        let log = tail(&vm.qemu.evidence().join(SERIAL_FILE), QUOTE);
        let log: String = log.chars().filter(|c| !c.is_control() || *c == '\n').collect();
        let report = Report::new(ErrorCode::GuestNotBooted, title)
            .with("last words on the serial console", if log.trim().is_empty() { "(nothing)" } else { log.trim() })
            .with("waited for", why)
            .help("-p login_timeout=600, where the host is slow");
        Err(Failure::Caused(Cause { blame, report }))
    }

    async fn started(
        &self,
        vm: &LocalVm,
        reason: String,
        qemus: BTreeMap<Name, String>,
        begun: Instant,
    ) -> Result<Answer, Failure> {
        let record = vm.qemu.record();
        Ok(Answer::Vm(Box::new(VmStarted {
            accelerator: record.accelerator,
            accelerator_reason: reason,
            machine: record.machine.clone(),
            cpu_model: record.cpu_model.clone(),
            qemu_version: vm.qemu.version(),
            qemus,
            address: vm.address(),
            boot_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            pid: vm.qemu.pid(),
        })))
    }

    /// Ends a VM that this host owns. One that is not there has ended before.
    ///
    /// # Errors
    /// Another host owns it.
    pub async fn stop_vm(&self, name: &Name) -> Result<Answer, Failure> {
        let state = self.cluster.state();
        if let Some(record) = state.vms.get(&self.vm_id(name))
            && record.owner != self.me()
        {
            let title = format!("{name} is owned by {}", self.name_of(record.owner));
            return Err(caused(Report::new(ErrorCode::NotOwner, title)));
        }
        if let Some(vm) = self.vm(name) {
            let ending = vm.qemu.clone().teardown().await;
            self.take_vm(name);
            for left in ending.left {
                self.evidence.events.warn(format!("left behind by {name}: {left}"));
            }
            let checked = self.check_disks(&vm).await;
            self.remove_disks(&vm.id).await;
            self.release(name, vm.epoch()).await;
            checked?;
        }
        Ok(Answer::Done)
    }

    /// Gives the owner record up. Where that is not possible the end of the attempt does it.
    async fn release(&self, name: &Name, epoch: Epoch) {
        let release = ReleaseVm { vm: self.vm_id(name), host: self.me(), epoch };
        if let Err(failure) = self.propose("release", &format!("{name}.{epoch}"), release, DECIDES).await {
            tracing::info!(vm = %self.vm_id(name), ?failure, "the owner record stays until the attempt ends");
        }
    }

    /// Takes over a QEMU that is found on this host after a restart of the daemon.
    pub(crate) fn adopt(self: &Arc<Self>, qemu: Vm) -> Arc<LocalVm> {
        let disk = self.disk_found(qemu.id());
        let state = self.cluster.state();
        let epoch = state.vms.get(qemu.id()).map(|record| record.epoch).unwrap_or_default();
        let vm = LocalVm::new(qemu, disk, epoch);
        self.watch_disk(&vm);
        self.put_vm(vm.clone());
        vm
    }
}
