//! A VM whose QEMU is on this host, with its guard and the ways into its guest.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Epoch, MigrationId, VmId},
    vm::{Backend, Intervention, MigrationSpec, VmSpec},
};

use super::{
    attempt::{DECIDES, LocalAttempt},
    disk::DiskPlace,
    guests::Lines,
};
use crate::{
    guard::{GuardHandle, GuardSetup, GuardState, clock::BootTime},
    migrate::receive::capabilities,
    qemu::{Vm, VmError, VmProcess, command_line::seen_by_guest, qmp::QmpError},
};

/// Before a guard is asked again to let a VM run.
const AGAIN: Duration = Duration::from_millis(200);

/// A VM whose QEMU is on this host.
#[derive(Debug)]
pub struct LocalVm {
    /// Which.
    pub id: VmId,
    /// Its QEMU.
    pub qemu: Vm,
    /// Its overlay disk.
    pub(crate) disk: DiskPlace,
    /// Why its disk failed under it, once it has.
    disk_failed: OnceLock<(ErrorCode, String)>,
    /// Ways into its guest.
    pub lines: Lines,
    guard: Mutex<Option<GuardHandle>>,
    /// Whether the guard has been asked to let the VM go on and has not answered yet.
    permitting: AtomicBool,
    /// What QEMU's migration settings were before the first move changed them.
    before_moves: Mutex<MigrationSettings>,
    /// The move that was prepared by this daemon and not begun.
    prepared: Mutex<Option<MigrationId>>,
    epoch: Mutex<Epoch>,
    /// The last words of QEMU's command line as they would be now, where its devices were changed.
    reshaped: Mutex<Option<Vec<String>>>,
}

impl LocalVm {
    /// A VM of which this host is, or is to become, the owner under `epoch`.
    pub(crate) fn new(qemu: Vm, disk: DiskPlace, epoch: Epoch) -> Arc<Self> {
        let id = qemu.id().clone();
        let lines = Lines::new(&qemu);
        Arc::new(Self {
            id,
            qemu,
            disk,
            disk_failed: OnceLock::new(),
            lines,
            guard: Mutex::default(),
            permitting: AtomicBool::default(),
            before_moves: Mutex::default(),
            prepared: Mutex::default(),
            epoch: Mutex::new(epoch),
            reshaped: Mutex::default(),
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

    /// Has the guard let the VM go on. Nobody waits for it; while it has not answered it is not asked again.
    pub(crate) fn permit(self: &Arc<Self>, guard: GuardHandle) {
        if self.permitting.swap(true, Ordering::AcqRel) {
            return;
        }
        let vm = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = guard.permit().await {
                tracing::warn!(vm = %vm.id, %error, "the VM stays paused");
            }
            vm.permitting.store(false, Ordering::Release);
        });
    }

    pub(crate) fn set_guard(&self, guard: GuardHandle) {
        *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }

    /// Sets what a move wants, and sets back what an earlier one had set and this one does not name. Returns all
    /// capabilities that QEMU has.
    pub(crate) async fn set_migration(&self, spec: &MigrationSpec) -> Result<BTreeMap<String, bool>, QmpError> {
        let asked = MigrationSettings::of(spec);
        let later = spec.interventions.iter().filter_map(|(_, what)| match what {
            Intervention::Set(parameters) => Some(parameters.keys()),
            _ => None,
        });
        let qmp = self.qemu.qmp();
        let now = qmp.query_migrate_capabilities().await?;
        let all = qmp.migrate_set_parameters(&BTreeMap::new()).await?;
        let (capabilities, parameters) = {
            let mut before = self.before_moves.lock().unwrap_or_else(PoisonError::into_inner);
            for name in asked.capabilities.keys() {
                if let Some(on) = now.get(name) {
                    before.capabilities.entry(name.clone()).or_insert(*on);
                }
            }
            for name in asked.parameters.keys().chain(later.flatten()) {
                if let Some(value) = all.get(name) {
                    before.parameters.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
            let mut wanted = before.clone();
            wanted.capabilities.extend(asked.capabilities);
            wanted.parameters.extend(asked.parameters);
            (wanted.capabilities, wanted.parameters)
        };
        let set = qmp.migrate_set_capabilities(&capabilities).await?;
        qmp.migrate_set_parameters(&parameters).await?;
        Ok(set)
    }

    /// What a destination of its next move has to be like: as it was started, but for devices changed since.
    pub(crate) fn spec(&self) -> VmSpec {
        let mut spec = self.qemu.record().spec.clone();
        if let Some(words) = &*self.reshaped.lock().unwrap_or_else(PoisonError::into_inner) {
            spec.extra_args.clone_from(words);
        }
        spec
    }

    /// What its guest can see of QEMU's command line, as it would be now; empty where that cannot be read.
    pub(crate) fn shows(&self) -> Vec<String> {
        if self.qemu.record().spec.backend == Backend::Libvirt {
            // Words of libvirt's, which compares the two domains itself.
            return Vec::new();
        }
        let line = std::fs::read(format!("/proc/{}/cmdline", self.qemu.pid())).unwrap_or_default();
        let mut words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        if let Some(now) = &*self.reshaped.lock().unwrap_or_else(PoisonError::into_inner) {
            // They came last when it was started.
            words.retain(|word| !word.is_empty());
            words.truncate(words.len().saturating_sub(self.qemu.record().spec.extra_args.len()));
            words.extend(now.iter().cloned());
        }
        seen_by_guest(&words)
    }

    /// Notes that its devices are those of these words now. A daemon that comes back reads it.
    pub(crate) fn reshape(&self, words: Vec<String>) -> std::io::Result<()> {
        let mut record = self.qemu.record().clone();
        record.spec.extra_args.clone_from(&words);
        record.write(self.qemu.run_dir())?;
        *self.reshaped.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
        Ok(())
    }

    /// Notes that a move is ready to begin.
    pub(crate) fn set_prepared(&self, id: MigrationId) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    /// Whether this daemon made that move ready, and it was not begun yet. Says so once.
    pub(crate) fn take_prepared(&self, id: &MigrationId) -> bool {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take().is_some_and(|ready| ready == *id)
    }

    /// Waits for the end of its QEMU, and finds out whose doing it was.
    pub(crate) async fn ended(&self) -> Ended {
        let died = self.qemu.died().await;
        let fenced = match self.guard() {
            Some(guard) => guard.has_fenced().await,
            None => false,
        };
        let failed = self.disk_failed.get().cloned();
        Ended { fenced, disk_failed: failed.map(|(code, why)| (code, why, self.disk.to_string())), died }
    }

    /// Notes that its disk failed under it: what it ends of.
    pub(crate) fn set_disk_failed(&self, code: ErrorCode, why: String) {
        let _ = self.disk_failed.set((code, why));
    }

    /// The guest's address.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.qemu.record().spec.nics.first().and_then(|nic| nic.address)
    }
}

/// How a QEMU ended that should have run.
#[derive(Debug)]
pub(crate) struct Ended {
    /// By its guard, for its host could not renew its session. That is never the product's fault.
    pub(crate) fenced: bool,
    /// By us, for its disk failed: that is not the product's fault either. With the reason, and which disk it was.
    disk_failed: Option<(ErrorCode, String, String)>,
    died: VmError,
}

impl Ended {
    pub(crate) fn new(fenced: bool, died: VmError) -> Self {
        Self { fenced, disk_failed: None, died }
    }

    /// What a user is told: `title` under `code`, unless its guard ended it. With QEMU's last words.
    pub(crate) fn report(&self, code: ErrorCode, title: impl Into<String>) -> Report {
        let title = title.into();
        let report = match &self.disk_failed {
            _ if self.fenced => {
                let title = format!("{title} (its guard ended it, for its host could not renew its session)");
                Report::new(ErrorCode::VmFenced, title)
            }
            Some((code, why, disk)) => {
                Report::new(*code, format!("{title} (its disk in the pool failed: {why})")).with("disk", disk)
            }
            None => Report::new(code, title),
        };
        let evidence = self.died.report().evidence;
        evidence.into_iter().fold(report, |report, (key, value)| report.with(key, value)).caused_by(&self.died)
    }
}

#[derive(Debug, Default, Clone)]
struct MigrationSettings {
    capabilities: BTreeMap<String, bool>,
    parameters: BTreeMap<String, Value>,
}

impl MigrationSettings {
    fn of(spec: &MigrationSpec) -> Self {
        let numbers = spec.parameters.iter().map(|(name, value)| (name.clone(), Value::from(*value)));
        let value = |word: &str| match word {
            "true" | "on" => Value::from(true),
            "false" | "off" => Value::from(false),
            word => Value::from(word),
        };
        let words = spec.words.iter().map(|(name, word)| (name.clone(), value(word)));
        Self { capabilities: capabilities(spec), parameters: numbers.chain(words).collect() }
    }
}

impl LocalAttempt {
    /// Sees that a VM has its guard.
    pub(crate) async fn guard(&self, vm: &LocalVm) -> Result<(), Report> {
        if vm.guard().is_some() {
            return Ok(());
        }
        vm.set_guard(self.guard_of(vm.qemu.at()).await?);
        Ok(())
    }

    /// The guard of a QEMU of this host, found or started.
    pub(crate) async fn guard_of(&self, qemu: &VmProcess) -> Result<GuardHandle, Report> {
        let mut renewed = self.renewed.clone();
        let held = timeout(DECIDES, renewed.wait_for(Option::is_some)).await;
        let Some(renewed_at) = held.ok().and_then(|held| held.ok().and_then(|held| *held)) else {
            return Err(Report::new(ErrorCode::SessionOver, "this host holds no session: no VM may run on it"));
        };
        let setup =
            GuardSetup { vtd: self.places.vtd.clone(), times: self.places.guard, cgroups: self.places.cgroups.clone() };
        GuardHandle::start(qemu, setup, renewed_at).await.map_err(|error| error.report())
    }

    /// Tells every guard of a renewal and waits for none: one that is slow must not keep the others from their time. A VM
    /// that its guard has paused goes on only where this host owns it as before, by a state that is not older than
    /// `acts_from`: a daemon that was started again may know nothing yet of a VM that has moved. The next renewal looks again.
    pub(crate) fn extend_guards(&self, at: BootTime, acts_from: u64) {
        let state = self.cluster.state();
        let is_current = state.index >= acts_from;
        let incoming = self.all_incoming();
        for guard in incoming.iter().filter_map(|incoming| incoming.unheard()) {
            guard.extend(at);
        }
        let incoming = incoming.into_iter().filter_map(|incoming| incoming.vm());
        for vm in self.vms().into_iter().chain(incoming) {
            let Some(guard) = vm.guard() else { continue };
            guard.extend(at);
            let may = state.vms.get(&vm.id).is_some_and(|record| record.may_go_on(self.me(), vm.epoch()));
            if may && is_current && guard.state() == GuardState::Paused {
                self.evidence.events.warn(format!("{} was paused by its guard and goes on", vm.id.name));
                vm.permit(guard);
            }
        }
    }

    /// Lets a VM's CPUs run, its guard first.
    pub(crate) async fn let_run(&self, vm: &LocalVm) -> Result<(), Report> {
        self.guard_lets_run(vm).await?;
        vm.qemu.qmp().cont().await.map_err(|error| error.report())
    }

    /// Sees that its guard lets a VM run: one that has paused it would pause it again.
    pub(crate) async fn guard_lets_run(&self, vm: &LocalVm) -> Result<(), Report> {
        self.guard(vm).await?;
        if let Some(guard) = vm.guard() {
            let until = Instant::now() + DECIDES;
            while matches!(guard.state(), GuardState::Pausing | GuardState::Paused) {
                match guard.permit().await {
                    Ok(()) => break,
                    Err(error) if Instant::now() >= until => return Err(error.report()),
                    // Its session is about to be renewed, or the `stop` about to return.
                    Err(_) => sleep(AGAIN).await,
                }
            }
        }
        Ok(())
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
                sleep(Duration::from_millis(500)).await;
            }
        });
    }
}
