//! VMs of an attempt on this host: claimed, started, waited for, ended.
//!
//! Order of a start: everything that can be refused without a trace first (image, QEMU, accelerator), then the claim in
//! the log, the overlay disk, QEMU with its CPUs stopped, the guard, `cont`, and the guest's first word. A start that
//! fails gives back what it made. What may not happen here: `cont` before the claim is in the log.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    process::Command,
    time::{Instant, timeout, timeout_at},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    facts::QemuFacts,
    ids::{Digest, Epoch, MigrationId, Name, VmId},
    image::{ImageRecord, RECORD_FILE},
    party::{Answer, Failure, StartVm, VmStarted},
    peer::{PeerReply, PeerRequest},
    verdict::{Blame, Cause},
    vm::{Accelerator, Nic, VmSpec},
};
use vt_sync::{
    command::{ClaimVm, ReleaseVm},
    state::VmState,
};

use super::{
    attempt::{DECIDES, LocalAttempt},
    failure::caused,
    guests::Lines,
};
use crate::{
    evidence::files::tail,
    guard::{GuardHandle, GuardSetup, GuardState, clock::BootTime},
    qemu::{
        Boot, Disk, Resolved, Vm, VmError, VmPlaces, VmSetup, command_line::default_cpu_model, qmp::QmpError,
        vm::SERIAL_FILE,
    },
};

/// How long another host may take to say what it can do.
const FACTS: Duration = Duration::from_secs(10);
/// How much of the serial log is quoted, bytes.
const QUOTE: u64 = 1200;

/// A VM whose QEMU is on this host.
#[derive(Debug)]
pub struct LocalVm {
    /// Which.
    pub id: VmId,
    /// Its QEMU.
    pub qemu: Vm,
    /// Its overlay disk.
    pub disk: PathBuf,
    /// Ways into its guest.
    pub lines: Lines,
    guard: Mutex<Option<GuardHandle>>,
    /// What QEMU's migration settings were before the first move changed them.
    before_moves: Mutex<MigrationSettings>,
    /// The move that was prepared by this daemon and not begun.
    prepared: Mutex<Option<MigrationId>>,
    epoch: Mutex<Epoch>,
}

impl LocalVm {
    /// A VM of which this host is, or is to become, the owner under `epoch`.
    pub fn new(qemu: Vm, disk: PathBuf, epoch: Epoch) -> Arc<Self> {
        let id = qemu.id().clone();
        let lines = Lines::new(&qemu);
        Arc::new(Self {
            id,
            qemu,
            disk,
            lines,
            guard: Mutex::default(),
            before_moves: Mutex::default(),
            prepared: Mutex::default(),
            epoch: Mutex::new(epoch),
        })
    }

    /// The epoch of the owner record as this host knows it.
    pub fn epoch(&self) -> Epoch {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_epoch(&self, epoch: Epoch) {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = epoch;
    }

    /// Its guard, once one was started or found.
    pub fn guard(&self) -> Option<GuardHandle> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_guard(&self, guard: GuardHandle) {
        *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }

    /// Sets what a move wants, and sets back what an earlier one had set and this one does not name. Returns all
    /// capabilities that QEMU has.
    pub(crate) async fn set_migration(
        &self,
        capabilities: &BTreeMap<String, bool>,
        parameters: &BTreeMap<String, u64>,
    ) -> Result<BTreeMap<String, bool>, QmpError> {
        let qmp = self.qemu.qmp();
        let now = qmp.query_migrate_capabilities().await?;
        let all = qmp.migrate_set_parameters(&BTreeMap::new()).await?;
        let (capabilities, parameters) = {
            let mut before = self.before_moves.lock().unwrap_or_else(PoisonError::into_inner);
            for name in capabilities.keys() {
                if let Some(on) = now.get(name) {
                    before.capabilities.entry(name.clone()).or_insert(*on);
                }
            }
            for name in parameters.keys() {
                if let Some(value) = all.get(name).and_then(serde_json::Value::as_u64) {
                    before.parameters.entry(name.clone()).or_insert(value);
                }
            }
            let mut wanted = before.clone();
            wanted.capabilities.extend(capabilities.clone());
            wanted.parameters.extend(parameters.clone());
            (wanted.capabilities, wanted.parameters)
        };
        let set = qmp.migrate_set_capabilities(&capabilities).await?;
        qmp.migrate_set_parameters(&parameters).await?;
        Ok(set)
    }

    /// Notes that a move is ready to begin.
    pub(crate) fn set_prepared(&self, id: MigrationId) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    /// Whether this daemon made that move ready, and it was not begun yet. Says so once.
    pub(crate) fn take_prepared(&self, id: &MigrationId) -> bool {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take().is_some_and(|ready| ready == *id)
    }

    /// Why its QEMU is gone, where it should have run: fenced by its guard, or by itself.
    pub(crate) fn lost(&self, died: &VmError) -> Failure {
        let fenced = self.guard().is_some_and(|guard| guard.state() == GuardState::Killed);
        let (blame, report) = if fenced {
            let title = format!("the guard of {} ended it, for its host could not renew its session", self.id.name);
            (Blame::Infrastructure, Report::new(ErrorCode::VmFenced, title))
        } else {
            let title = format!("QEMU of {} ended while it should have run", self.id.name);
            (Blame::Product, Report::new(ErrorCode::VmLost, title))
        };
        let report = died.report().evidence.into_iter().fold(report, |report, (key, value)| report.with(key, value));
        Failure::Caused(Cause { blame, report: report.caused_by(died) })
    }

    /// The guest's address.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.qemu.record().spec.nics.first().and_then(|nic| nic.address)
    }
}

#[derive(Debug, Default, Clone)]
struct MigrationSettings {
    capabilities: BTreeMap<String, bool>,
    parameters: BTreeMap<String, u64>,
}

/// An image of this host, checked as far as it can be without reading it whole.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) record: ImageRecord,
    pub(crate) folder: PathBuf,
}

impl Image {
    /// Whether a program of ours answers in its guest: every image that we built has one.
    pub(crate) fn has_probe(&self) -> bool {
        !self.record.recipe_blake3.is_empty()
    }

    /// What is to be booted from it.
    pub(crate) fn boot(&self, nics: &[Nic]) -> Boot {
        let nic = nics.first();
        let address = nic.and_then(|nic| Some((nic.address?, nic.prefix)));
        Boot {
            kernel: self.folder.join(&self.record.kernel.name),
            initrd: Some(self.folder.join(&self.record.initrd.name)),
            append: self.record.cmdline_for(address, nic.map(|nic| nic.mac)),
        }
    }
}

impl LocalAttempt {
    /// Finds an image in this host's pool.
    pub(crate) fn image(&self, name: &Name) -> Result<Image, Report> {
        let folder = self.places.images.join(name.as_str());
        let missing = |what: String| {
            Report::new(ErrorCode::ImageMissing, format!("image {name} is not on {}", self.name_of(self.me())))
                .with("looked for", what)
                .help("vtctl image build")
        };
        let path = folder.join(RECORD_FILE);
        let json = std::fs::read(&path).map_err(|error| missing(path.display().to_string()).caused_by(&error))?;
        let damaged = |what: String| {
            Report::new(ErrorCode::ImageDamaged, format!("image {name} is damaged: {what}"))
                .with("folder", folder.display().to_string())
                .help("vtctl image build --force")
        };
        let record = ImageRecord::parse(&json).map_err(|error| damaged(error.to_string()))?;
        for file in record.files() {
            let path = folder.join(&file.name);
            match std::fs::metadata(&path) {
                Ok(meta) if meta.len() == file.bytes => {}
                Ok(meta) => return Err(damaged(format!("{} has {} bytes, not {}", file.name, meta.len(), file.bytes))),
                Err(error) => return Err(missing(path.display().to_string()).caused_by(&error)),
            }
        }
        Ok(Image { record, folder })
    }

    /// The accelerator of a VM that nobody named one for: KVM where a functional probe passed on every host.
    async fn accelerator(&self, wanted: Option<Accelerator>) -> (Accelerator, String) {
        if let Some(wanted) = wanted {
            return (wanted, "asked for".to_owned());
        }
        for (host, name) in &self.hosts {
            match self.cluster.ask(*host, PeerRequest::Facts, FACTS).await {
                Ok(PeerReply::Facts(facts)) => match facts.qemu {
                    Some(QemuFacts { accelerator: Accelerator::Kvm, .. }) => {}
                    Some(qemu) => return (Accelerator::Tcg, format!("{name}: {}", qemu.accelerator_reason)),
                    None => return (Accelerator::Tcg, format!("{name} knows of no QEMU yet")),
                },
                Ok(_) | Err(_) => return (Accelerator::Tcg, format!("{name} did not say what works on it")),
            }
        }
        (Accelerator::Kvm, "a probe passed on every host of the case".to_owned())
    }

    /// Starts a VM on this host and waits for its guest. Answered from what runs where it was started before.
    ///
    /// # Errors
    /// It does not run; nothing is left of it.
    pub async fn start_vm(self: &Arc<Self>, call: StartVm) -> Result<Answer, Failure> {
        let begun = Instant::now();
        if let Some(vm) = self.vm(&call.vm) {
            let probe = self.image(&call.image).map_err(caused)?.has_probe();
            self.await_guest(&vm, &call, probe, begun).await?;
            return self.started(&vm, "as before".to_owned(), begun).await;
        }
        let image = self.image(&call.image).map_err(caused)?;
        let features = self.features.of(&self.places.qemu).await.map_err(caused)?;
        let (accelerator, reason) = self.accelerator(call.accelerator).await;
        self.evidence.events.say(format!("accelerator {accelerator:?}: {reason}").to_lowercase());
        let wanted = call.machine.as_deref().unwrap_or("q35");
        let Some(machine) = features.machine(wanted) else {
            let title = format!("QEMU {} has no machine type {wanted}", features.version);
            return Err(caused(Report::new(ErrorCode::BadParameter, title).with("parameter", "machine")));
        };
        let cpu_model = call.cpu_model.clone().unwrap_or_else(|| default_cpu_model(accelerator).to_owned());
        if !features.cpus.is_empty() && !features.has_cpu(&cpu_model) {
            let title = format!("QEMU {} has no CPU model {cpu_model}", features.version);
            return Err(caused(Report::new(ErrorCode::BadParameter, title).with("parameter", "cpu_model")));
        }
        let resolved = Resolved { machine: machine.to_owned(), accelerator, cpu_model: cpu_model.clone() };

        let (epoch, slot) = self.claim(&call, &image).await?;
        let nics = self.nics(slot).map_err(caused)?;
        let spec = VmSpec {
            id: self.vm_id(&call.vm),
            image: call.image.clone(),
            memory_mib: call.memory_mib,
            cpus: call.cpus,
            machine: Some(resolved.machine.clone()),
            cpu_model: Some(cpu_model),
            accelerator: Some(accelerator),
            nics,
            qemu_binary: Some(self.places.qemu.clone()),
            extra_args: call.extra_args.clone(),
        };
        let vm = match self.run_qemu(spec, resolved, &image, epoch).await {
            Ok(vm) => vm,
            Err(report) => {
                self.remove_disk(&call.vm).await;
                self.release(&call.vm, epoch).await;
                return Err(Failure::Caused(Cause { blame: Blame::Infrastructure, report }));
            }
        };
        // From here on the end of the attempt gives it back.
        self.put_vm(vm.clone());
        self.await_guest(&vm, &call, image.has_probe(), begun).await?;
        self.started(&vm, reason, begun).await
    }

    async fn claim(&self, call: &StartVm, image: &Image) -> Result<(Epoch, u16), Failure> {
        let id = self.vm_id(&call.vm);
        let words = serde_json::to_vec(call).unwrap_or_default();
        let claim = ClaimVm {
            vm: id.clone(),
            host: self.me(),
            epoch: self.epoch,
            image: call.image.clone(),
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

    fn nics(&self, slot: u16) -> Result<Vec<Nic>, Report> {
        if self.places.bridge.is_none() {
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
        let [a, b, ..] = *blake3::hash(self.id.to_string().as_bytes()).as_bytes();
        let [c, d] = slot.to_be_bytes();
        Ok(vec![Nic { mac: [0x52, 0x54, a, b, c, d], address, prefix }])
    }

    async fn run_qemu(
        &self,
        spec: VmSpec,
        resolved: Resolved,
        image: &Image,
        epoch: Epoch,
    ) -> Result<Arc<LocalVm>, Report> {
        let disk = self.places.disk(&spec.id);
        create_overlay(&image.folder.join(&image.record.disk.name), &disk).await?;
        let boot = image.boot(&spec.nics);
        let vm = self.launch(spec, resolved, boot, &disk, "start").await.map_err(|error| error.report())?;
        let vm = LocalVm::new(vm, disk, epoch);
        if let Err(report) = self.let_run(&vm).await {
            vm.qemu.clone().kill().await;
            return Err(report);
        }
        Ok(vm)
    }

    /// Starts QEMU with its CPUs stopped; `incarnation` names the folder of its evidence.
    pub(crate) async fn launch(
        &self,
        spec: VmSpec,
        resolved: Resolved,
        boot: Boot,
        disk: &std::path::Path,
        incarnation: &str,
    ) -> Result<Vm, VmError> {
        let places = VmPlaces {
            run_dir: self.places.vm(&spec.id),
            evidence: self.evidence.dir().join(spec.id.name.as_str()).join(incarnation),
            vtd: self.places.vtd.clone(),
            cgroups: self.places.cgroups.clone(),
        };
        let setup = VmSetup {
            qemu: self.places.qemu.clone(),
            boot: Some(boot),
            disk: Some(Disk { path: disk.display().to_string(), format: "qcow2".to_owned() }),
            data_disk: None,
            bridge: self.places.bridge.clone(),
            memory_in_file: false,
            incoming: incarnation != "start",
            spec,
            resolved,
        };
        Vm::start(setup, places).await
    }

    /// Sees that a VM has its guard.
    pub(crate) async fn guard(&self, vm: &LocalVm) -> Result<(), Report> {
        if vm.guard().is_some() {
            return Ok(());
        }
        let mut renewed = self.renewed.clone();
        let held = timeout(DECIDES, renewed.wait_for(Option::is_some)).await;
        let Some(renewed_at) = held.ok().and_then(|held| held.ok().and_then(|held| *held)) else {
            return Err(Report::new(ErrorCode::SessionOver, "this host holds no session: no VM may run on it"));
        };
        let setup =
            GuardSetup { vtd: self.places.vtd.clone(), times: self.places.guard, cgroups: self.places.cgroups.clone() };
        let guard = GuardHandle::start(&vm.qemu, setup, renewed_at).await.map_err(|error| error.report())?;
        vm.set_guard(guard);
        Ok(())
    }

    /// Tells every guard of a renewal. A VM that its guard has paused goes on only where this host owns it as before.
    pub(crate) async fn extend_guards(&self, at: BootTime) {
        let state = self.cluster.state();
        let incoming = self.all_incoming().into_iter().filter_map(|incoming| incoming.vm());
        for vm in self.vms().into_iter().chain(incoming) {
            let Some(guard) = vm.guard() else { continue };
            guard.extend(at);
            let owned = state.vms.get(&vm.id).is_some_and(|record| {
                record.owner == self.me() && record.epoch == vm.epoch() && record.state == VmState::Owned
            });
            if owned && guard.state() == GuardState::Paused {
                self.evidence.events.warn(format!("{} was paused by its guard and goes on", vm.id.name));
                if let Err(error) = guard.permit().await {
                    tracing::warn!(vm = %vm.id, %error, "the VM stays paused");
                }
            }
        }
    }

    /// Lets a VM's CPUs run, its guard first.
    pub(crate) async fn let_run(&self, vm: &LocalVm) -> Result<(), Report> {
        self.guard(vm).await?;
        vm.qemu.qmp().cont().await.map_err(|error| error.report())
    }

    async fn await_guest(&self, vm: &LocalVm, call: &StartVm, probe: bool, begun: Instant) -> Result<(), Failure> {
        let deadline = begun + Duration::from_millis(call.boot_timeout_ms);
        let up = timeout_at(deadline + Duration::from_secs(1), vm.lines.up(probe, deadline));
        let why = tokio::select! {
            biased;
            () = self.closing.cancelled() => {
                return Err(Failure::Followed(vt_protocol::verdict::Consequence::Closed));
            }
            died = vm.qemu.died() => {
                return Err(Failure::Caused(Cause { blame: Blame::Infrastructure, report: died.report() }));
            }
            up = up => match up {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            }
        };
        let log = tail(&vm.qemu.evidence().join(SERIAL_FILE), QUOTE);
        let log: String = log.chars().filter(|c| !c.is_control() || *c == '\n').collect();
        let title = format!("the guest of {} did not come up within {} s", call.vm, call.boot_timeout_ms / 1000);
        let report = Report::new(ErrorCode::GuestNotBooted, title)
            .with("last words on the serial console", if log.trim().is_empty() { "(nothing)" } else { log.trim() })
            .with("waited for", why)
            .help("-p login_timeout=600, where the host is slow");
        Err(Failure::Caused(Cause { blame: Blame::Product, report }))
    }

    async fn started(&self, vm: &LocalVm, reason: String, begun: Instant) -> Result<Answer, Failure> {
        let record = vm.qemu.record();
        let (major, minor, micro) = vm.qemu.qmp().greeting().version;
        Ok(Answer::Vm(Box::new(VmStarted {
            accelerator: record.accelerator,
            accelerator_reason: reason,
            machine: record.machine.clone(),
            cpu_model: record.cpu_model.clone(),
            qemu_version: format!("{major}.{minor}.{micro}"),
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
            self.remove_disk(name).await;
            self.release(name, vm.epoch()).await;
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

    pub(crate) async fn remove_disk(&self, name: &Name) {
        let disk = self.places.disk(&self.vm_id(name));
        match tokio::fs::remove_file(&disk).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.evidence.events.warn(format!("disk {} is left behind: {error}", disk.display()));
            }
            _ => {}
        }
    }

    /// Takes over a QEMU that is found on this host after a restart of the daemon.
    pub(crate) fn adopt(&self, qemu: Vm) -> Arc<LocalVm> {
        let disk = self.places.disk(qemu.id());
        let state = self.cluster.state();
        let epoch = state.vms.get(qemu.id()).map(|record| record.epoch).unwrap_or_default();
        let vm = LocalVm::new(qemu, disk, epoch);
        self.put_vm(vm.clone());
        vm
    }

    /// Finds the guard of a VM that was taken over, once this host holds its session again.
    pub(crate) fn guard_again(self: &Arc<Self>, vm: Arc<LocalVm>) {
        let attempt = self.clone();
        tokio::spawn(async move {
            while let Err(report) = attempt.guard(&vm).await {
                tracing::warn!(vm = %vm.id, %report, "no guard yet");
                if attempt.closing.is_cancelled() || vm.qemu.process().exit().is_some() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
}

/// Makes the overlay disk on top of an image. One left from before is replaced: the claim says that it is nobody's.
async fn create_overlay(image: &std::path::Path, disk: &std::path::Path) -> Result<(), Report> {
    let failed = |what: &str, said: String| {
        let full = said.contains("No space left") || said.contains("StorageFull");
        let code = if full { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
        let title = if full { "the disk is full" } else { "the overlay disk could not be made" };
        Report::new(code, format!("{title}: {what}")).with("disk", disk.display().to_string()).with("said", said)
    };
    if let Some(parent) = disk.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(|error| failed("its folder", error.to_string()))?;
    }
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(image)
        .arg(disk)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let made = made.map_err(|error| {
        Report::new(ErrorCode::QemuMissing, "qemu-img is not there or cannot be run")
            .help("apt-get install qemu-utils")
            .caused_by(&error)
    })?;
    if made.status.success() {
        return Ok(());
    }
    let _ = tokio::fs::remove_file(disk).await;
    let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
    Err(failed("qemu-img create", said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_overlay_is_made_over_an_image_and_a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.qcow2");
        let mut make = std::process::Command::new("qemu-img");
        make.args(["create", "-q", "-f", "qcow2"]).arg(&base).arg("1M");
        assert!(make.status().unwrap().success());
        let disk = dir.path().join("sub/vm1.qcow2");
        create_overlay(&base, &disk).await.unwrap();
        assert!(disk.is_file());
        let other = dir.path().join("vm2.qcow2");
        let report = create_overlay(&dir.path().join("absent"), &other).await.unwrap_err();
        assert_eq!(report.code, ErrorCode::StorageFailed);
        assert!(!other.exists());
    }
}
