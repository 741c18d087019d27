//! The destination of a migration up to the transfer: preflight, a QEMU that listens, and what a party of this side
//! waits for. The transfer itself is [`super::receiver`]'s.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::UnixStream,
    sync::watch,
    time::{Instant, timeout},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Epoch, MigrationId, Name},
    party::{Failure, Migrated, Move},
    peer::{IncomingDomain, IncomingState, Preflight, PrepareIncoming, Prepared},
    verdict::Consequence,
    vm::{Backend, How, MigrationSpec, Moment, Transport, VmSpec},
};
use vt_sync::{
    command::{AbortMigration, MigrationPrepared},
    state,
};

use super::{
    credentials::{Side, no_folder},
    destination::{Event, Phase},
    domain_move::has_let_go,
    inlet::{Listen, ipv6_beside, no_ipv6},
    outlet::StateFile,
    preflight::{Difference, Here, differences, report},
    receiver::Receiver,
};
use crate::{
    guard::GuardHandle,
    libvirt::{certificates::Held, not_there},
    party::{
        attempt::{DECIDES, LocalAttempt},
        disk::DiskPlace,
        failure::caused,
        local_vm::LocalVm,
    },
    qemu::{
        Disk, Resolved,
        command_line::{CommandLine, Extra, Medium, seen_by_guest},
    },
};

/// How long a move that is over may take to end here.
const ENDS: Duration = Duration::from_secs(30);
/// A pause before a proposal is made again.
const AGAIN: Duration = Duration::from_millis(200);

/// How a move ended here; `None`: cancelled, as its spec wanted.
pub type Arrival = Result<Option<Arrived>, Failure>;

/// What a VM that moved here waited for, standing still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// For the hosts to decide: from everything loaded until QEMU could be told to let it run, as far as this daemon saw it.
    pub held: Duration,
    /// From seeing the decision to RESUME.
    pub resumed: Duration,
}

/// One migration that comes in here.
#[derive(Debug)]
pub struct Incoming {
    /// Which.
    pub id: MigrationId,
    pub(super) state: watch::Sender<IncomingState>,
    prepared: watch::Sender<Option<Result<Prepared, Report>>>,
    pub(super) arrival: watch::Sender<Option<Arrival>>,
    vm: Mutex<Option<Arc<LocalVm>>>,
    /// The guard of its QEMU while that does not answer this daemon.
    unheard: Mutex<Option<GuardHandle>>,
    /// Our end of a descriptor that QEMU reads from, until a connection is carried to it.
    held: Mutex<Option<UnixStream>>,
    /// The file that QEMU reads from, as long as it does.
    state_file: Mutex<Option<StateFile>>,
    /// The certificates of libvirt's QEMU.
    certificates: Mutex<Option<Held>>,
}

impl Incoming {
    pub(super) fn new(id: MigrationId) -> Arc<Self> {
        Arc::new(Self {
            id,
            state: watch::Sender::new(IncomingState::Receiving),
            prepared: watch::Sender::new(None),
            arrival: watch::Sender::new(None),
            vm: Mutex::default(),
            unheard: Mutex::default(),
            held: Mutex::default(),
            state_file: Mutex::default(),
            certificates: Mutex::default(),
        })
    }

    pub(super) fn hold(&self, stream: UnixStream) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }

    pub(super) fn take_held(&self) -> Option<UnixStream> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn keep_state(&self, file: StateFile) {
        *self.state_file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }

    fn keep_certificates(&self, held: Held) {
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// Lets go of what the stream came in by.
    pub(super) fn close_inlet(&self) {
        self.take_held();
        self.state_file.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Its QEMU, until it is torn down or becomes a VM of this host.
    pub fn vm(&self) -> Option<Arc<LocalVm>> {
        self.vm.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_vm(&self, vm: Option<Arc<LocalVm>>) -> Option<Arc<LocalVm>> {
        std::mem::replace(&mut *self.vm.lock().unwrap_or_else(PoisonError::into_inner), vm)
    }

    /// The guard of its QEMU, as long as that does not answer this daemon.
    pub(crate) fn unheard(&self) -> Option<GuardHandle> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_unheard(&self, guard: Option<GuardHandle>) -> Option<GuardHandle> {
        std::mem::replace(&mut *self.unheard.lock().unwrap_or_else(PoisonError::into_inner), guard)
    }

    /// Its QEMU, which the caller ends.
    pub(crate) fn take_vm(&self) -> Option<Arc<LocalVm>> {
        self.set_vm(None)
    }

    /// Waits until it is over here, and its place free or the VM's.
    async fn over(&self) {
        let (mut prepared, mut arrival) = (self.prepared.subscribe(), self.arrival.subscribe());
        tokio::select! {
            _ = prepared.wait_for(|prepared| matches!(prepared, Some(Err(_)))) => {}
            _ = arrival.wait_for(Option::is_some) => {}
        }
    }

    /// How it is; waits up to `wait` while nothing is decided.
    pub async fn state(&self, wait: Duration) -> IncomingState {
        let mut watch = self.state.subscribe();
        let settled = |state: &IncomingState| !matches!(state, IncomingState::Receiving | IncomingState::Loaded);
        let _ = timeout(wait, watch.wait_for(settled)).await;
        watch.borrow().clone()
    }
}

/// Waits for a value that is set once. The sender lives as long as the caller holds its owner.
async fn once<T: Clone>(sender: &watch::Sender<Option<T>>) -> Option<T> {
    let mut watch = sender.subscribe();
    watch.wait_for(Option::is_some).await.ok()?.clone()
}

impl LocalAttempt {
    /// Makes ready to receive; asked by the source. Asked again it answers alike.
    ///
    /// # Errors
    /// The sides do not fit, or QEMU cannot be prepared; nothing is left then.
    pub async fn prepare_incoming(self: &Arc<Self>, asked: PrepareIncoming) -> Result<Prepared, Report> {
        let id = asked.migration.clone();
        let (incoming, made) = self.incoming_or(&id, || Incoming::new(id.clone()));
        if made {
            let attempt = self.clone();
            let task_incoming = incoming.clone();
            tokio::spawn(async move {
                let result = attempt.make_ready(&task_incoming, asked).await;
                if let Err(report) = &result {
                    attempt.evidence.events.warn(format!("{}: not prepared: {}", task_incoming.id, report.title));
                    if let Some(vm) = task_incoming.take_vm() {
                        vm.qemu.clone().kill().await;
                    }
                    task_incoming.close_inlet();
                    attempt.forget_copy(&task_incoming.id.vm.name).await;
                    task_incoming.state.send_replace(IncomingState::Failed(report.clone()));
                }
                task_incoming.prepared.send_replace(Some(result));
            });
        }
        once(&incoming.prepared).await.unwrap_or_else(|| Err(Report::new(ErrorCode::Internal, "not prepared")))
    }

    async fn make_ready(
        self: &Arc<Self>,
        incoming: &Arc<Incoming>,
        asked: PrepareIncoming,
    ) -> Result<Prepared, Report> {
        let id = &asked.migration;
        let refused = |text: String| Report::new(ErrorCode::MigrationRefused, text);
        // The source has seen its entry applied; this host may be a moment behind.
        let record = timeout(DECIDES, self.wait_state(|state| state.migration(id).cloned())).await;
        let record = record
            .map_err(|_| refused(format!("{id} is not on record here")))?
            .map_err(|_| refused(format!("the party of this host in {} has ended", self.id)))?;
        if record.to != self.me() || !record.is_under_way() {
            return Err(refused(format!("{id} is not under way to this host")));
        }
        // The source says that a move is over as soon as it knows. What was begun here for it may still be ending.
        let before = |other: &Arc<Incoming>| other.id.vm == id.vm && other.id.number < id.number;
        for other in self.all_incoming().into_iter().filter(before) {
            let _ = timeout(ENDS, other.over()).await;
        }
        let (from, me) = (self.name_of(record.from), self.name_of(self.me()));
        let qemu = self.qemu(&id.vm.name)?;
        let features = self.features.of(qemu.path).await?;
        let (accelerator, _) = self.accelerator_of(qemu.name).await;
        let resolved = Resolved {
            machine: asked.preflight.machine.clone(),
            accelerator: asked.preflight.accelerator,
            cpu_model: asked.preflight.cpu_model.clone(),
        };
        self.check_cables(&id.vm.name).await?;
        let shows = seen_by_guest(&self.would_run(&asked.vm, &resolved)?);
        let mut found =
            differences(&asked.preflight, Here { features: &features, accelerator, shows: &shows }, &asked.spec);
        if asked.vm.backend == Backend::Libvirt {
            if asked.copies_upon.is_some() {
                found.extend(copies_by_libvirt(&asked.vm, &asked.spec));
            }
            match &self.places.libvirt {
                None => found.push(Difference::Lacks(not_there(&me).title)),
                Some(libvirt) if libvirt.certificates.is_none() && asked.spec.transport == Transport::Tls => {
                    found.push(Difference::Lacks(no_folder(&me).title));
                }
                Some(_) => {}
            }
        }
        let image = self.image(&asked.vm.image)?;
        found.extend(self.disk_fits(&asked, &image));
        found.extend(self.drives_fit(&asked.vm, asked.copies_upon.is_some()));
        if asked.spec.transport == Transport::Tcp6 && ipv6_beside(self.places.migration).is_none() {
            found.push(Difference::Lacks(no_ipv6(self.places.migration).title));
        }
        if asked.spec.transport == Transport::Rdma
            && let Some(why) = no_rdma()
        {
            found.push(Difference::Lacks(format!("{why} on the destination")));
        }
        if let Some(report) = report(&found, &from, &me) {
            return Err(report);
        }
        let place = self.disk_place(&id.vm)?;
        if let (Some(_), DiskPlace::File(disk)) = (&asked.copies_upon, &place) {
            image.overlay(disk).await?;
            self.make_room_for_drives(&asked.vm).await?;
        }
        let disk = place.for_qemu(&image, &self.places.vm(&id.vm), None);
        let boot = image.boot(&asked.vm.nics);
        let incarnation = format!("in-{}", id.number);
        let (setup, places) = self.setup(asked.vm, resolved, boot, disk, &incarnation)?;
        if setup.spec.backend == Backend::Libvirt {
            let libvirt = self.libvirt()?;
            has_let_go(&libvirt, &id.vm).await;
            if asked.spec.transport == Transport::Tls {
                let (_, held) = self.libvirt_with_tls(id, Side::Destination).await?;
                incoming.keep_certificates(held);
            }
            let prepared = Prepared {
                uri: libvirt.peer.clone(),
                preflight: Preflight {
                    qemu_version: features.version.clone(),
                    capabilities: features.capabilities.clone(),
                    ..asked.preflight
                },
                pid: 0,
                disk: None,
                domain: Some(IncomingDomain {
                    xml: self.expect_domain(&setup, places)?,
                    listens: format!("tcp://{}", url_host(self.places.migration)),
                }),
            };
            self.put_prepared(id, &prepared, &asked.spec).await?;
            tokio::spawn(self.clone().await_domain(incoming.clone(), asked.spec, place));
            return Ok(prepared);
        }
        let qemu = self.launch(setup, places).await?;
        let vm = LocalVm::new(qemu, place, Epoch::default());
        self.watch_disk(&vm);
        incoming.set_vm(Some(vm.clone()));
        let qmp = vm.qemu.qmp();
        let transport = asked.spec.transport;
        let with_tls = match transport {
            Transport::Tls => Some(self.with_tls(&vm, id, Side::Destination, &asked.spec).await?),
            _ => None,
        };
        let set = vm.set_migration(with_tls.as_ref().unwrap_or(&asked.spec)).await;
        let set = set.map_err(|error| error.report())?;
        // Started here, where nobody waits for it, and not when the guest stands still.
        self.guard(&vm).await?;
        let events = qmp.events();
        let uri = self.open_inlet(incoming, transport, Listen::First(qmp)).await?;
        let disk = match asked.copies_upon {
            Some(_) => Some(self.open_disks(&vm).await?),
            None => None,
        };
        let prepared = Prepared {
            uri,
            preflight: Preflight {
                qemu_version: features.version.clone(),
                machine: vm.qemu.record().machine.clone(),
                cpu_model: vm.qemu.record().cpu_model.clone(),
                accelerator: vm.qemu.record().accelerator,
                capabilities: set.into_keys().collect(),
                shows,
            },
            pid: vm.qemu.pid(),
            disk,
            domain: None,
        };
        self.put_prepared(id, &prepared, &asked.spec).await?;
        let (phase, postcopy, loaded) = (Phase::Receiving, asked.spec.is_postcopy(), None);
        let receiver = Receiver {
            attempt: self.clone(),
            incoming: incoming.clone(),
            vm,
            events,
            phase,
            postcopy,
            replay: None,
            loaded,
        };
        tokio::spawn(receiver.run());
        Ok(prepared)
    }

    /// The words of a QEMU for this VM on this host, with no more of what the guest cannot see than it takes.
    fn would_run(&self, spec: &VmSpec, resolved: &Resolved) -> Result<Vec<String>, Report> {
        let disk = Disk { path: String::new(), format: "qcow2".to_owned(), below: None, served: None };
        // Without a network there is no tap, and without a tap no card.
        let cables = self.cables(&spec.id.name)?;
        let taps = if self.has_network(&cables) { vec![String::new(); spec.nics.len()] } else { Vec::new() };
        let nowhere = std::path::Path::new("");
        let drives: Vec<Extra> = spec.drives.iter().map(|drive| Extra::of(drive, String::new())).collect();
        let line = CommandLine {
            spec,
            resolved,
            boot: None,
            disk: Some(&disk),
            drives: &drives,
            taps: &taps,
            cables: &cables,
            run_dir: nowhere,
            serial_log: nowhere,
            memory_file: None,
            incoming: true,
        };
        Ok(line.words())
    }

    /// Puts into the log that this side is ready.
    async fn put_prepared(&self, id: &MigrationId, prepared: &Prepared, spec: &MigrationSpec) -> Result<(), Report> {
        let (address, detail) = (prepared.uri.clone(), detail(prepared));
        let command = MigrationPrepared { migration: id.clone(), host: self.me(), address, detail };
        self.propose("prepared", &id.to_string(), command, DECIDES).await.map_err(|failure| {
            let title = format!("{id} could not be prepared: {failure:?}");
            Report::new(ErrorCode::MigrationRefused, title)
        })?;
        let how = How::of(spec);
        let qemu = &prepared.preflight.qemu_version;
        self.evidence
            .events
            .say(format!("{id}: how: {how}; at {} (QEMU {qemu}, process {})", prepared.uri, prepared.pid));
        Ok(())
    }

    /// Takes up again what came in here when the daemon ended.
    pub(crate) async fn resume_incoming(self: &Arc<Self>, record: &state::Migration, vm: Arc<LocalVm>) {
        let (incoming, made) = self.incoming_or(&record.id, || Incoming::new(record.id.clone()));
        if made {
            self.resume_receiving(incoming, record.dest_loaded, vm).await;
        }
    }

    pub(super) async fn resume_receiving(self: &Arc<Self>, incoming: Arc<Incoming>, voted: bool, vm: Arc<LocalVm>) {
        let events = vm.qemu.qmp().events();
        incoming.set_vm(Some(vm.clone()));
        let status = vm.qemu.qmp().query_migrate().await.map(|info| info.status);
        let phase = if voted { Phase::Voted } else { Phase::Receiving };
        let replay = status.ok().map(Event::Qemu);
        let capabilities = vm.qemu.qmp().query_migrate_capabilities().await;
        let postcopy = capabilities.is_ok_and(|all| all.get("postcopy-ram").is_some_and(|on| *on));
        // When it was is not on record.
        let loaded = voted.then(Instant::now);
        let receiver = Receiver { attempt: self.clone(), incoming, vm, events, phase, postcopy, replay, loaded };
        tokio::spawn(receiver.run());
    }

    /// Gives up what was to come in here and has lost its QEMU while no daemon watched it. The source may have completed:
    /// then nobody but this host can say that it is to go on.
    pub(crate) fn give_up_incoming(self: &Arc<Self>, id: MigrationId) {
        // Its guard may have ended it, for want of renewals: the host is to blame, not QEMU.
        let title = "the destination's daemon was away, and the QEMU there has ended; the VM goes on at the source";
        let (attempt, why) = (self.clone(), Report::new(ErrorCode::DestinationUnreachable, title));
        tokio::spawn(async move {
            let open = |state: &vt_sync::State| state.migration(&id).is_some_and(state::Migration::is_under_way);
            while !attempt.closing.is_cancelled() && open(&attempt.cluster.state()) {
                let abort = AbortMigration { migration: id.clone(), host: attempt.me(), why: why.clone() };
                if attempt.propose("abort", &id.to_string(), abort, DECIDES).await.is_ok() {
                    attempt.evidence.events.warn(format!("{id}: {}", why.title));
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// A party of the destination waits until its side is prepared.
    ///
    /// # Errors
    /// The source gave up: a consequence.
    pub(crate) async fn await_prepared(&self, call: &Move) -> Result<(), Failure> {
        let id = MigrationId { vm: self.vm_id(&call.vm), number: call.number };
        let from = self.host_id(&call.from)?;
        let gone = || Failure::Followed(Consequence::PeerGone(call.from.to_string()));
        self.wait_state(|state| {
            if let Some(record) = state.migration(&id) {
                return match &record.phase {
                    state::Phase::Begun => None,
                    state::Phase::Prepared { .. } | state::Phase::Moved { .. } => Some(Ok(())),
                    state::Phase::Aborted { why } => {
                        Some(Err(Failure::Followed(Consequence::PeerGone(format!("{}: {}", call.from, why.title)))))
                    }
                };
            }
            let runs = state.attempts.get(&self.id).is_some_and(|attempt| attempt.runs_on(from));
            (!runs).then(|| Err(gone()))
        })
        .await?
    }

    /// A party of the destination takes part in a move.
    ///
    /// # Errors
    /// The VM did not arrive, or does not run.
    pub(crate) async fn receive(&self, call: &Move) -> Result<Migrated, Failure> {
        self.await_prepared(call).await?;
        let id = MigrationId { vm: self.vm_id(&call.vm), number: call.number };
        let Some(incoming) = self.incoming(&id) else {
            // It was decided and finished before this daemon was started.
            return match self.vm(&call.vm) {
                Some(_) => Ok(Migrated::default()),
                None if self.cluster.state().vms.get(&id.vm).is_some_and(|vm| vm.owner == self.me()) => {
                    Err(caused(gone_unseen(&call.spec, &call.vm)))
                }
                None => Err(Failure::Followed(Consequence::PeerGone(call.from.to_string()))),
            };
        };
        let arrival = tokio::select! {
            arrival = once(&incoming.arrival) => arrival,
            () = self.closing.cancelled() => None,
        };
        let arrived = arrival.unwrap_or(Err(Failure::Followed(Consequence::Closed)))?;
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        Ok(Migrated {
            cancelled: arrived.is_none(),
            resume_ms: arrived.map(|arrived| ms(arrived.resumed)),
            held_ms: arrived.map(|arrived| ms(arrived.held)),
            result: None,
        })
    }
}

/// What is told of a VM that had moved here and ended while no daemon watched it. Its guard may have ended it, for want of
/// renewals: the host is to blame, not QEMU.
fn gone_unseen(spec: &MigrationSpec, vm: &Name) -> Report {
    let title = match spec.is_postcopy() {
        true => format!(
            "LOST: the destination QEMU ended while pages of {vm} may have been missing, and no daemon watched it"
        ),
        false => format!("QEMU of {vm}, which had moved here, ended while no daemon watched it"),
    };
    Report::new(ErrorCode::VmFenced, title)
}

/// An address as a URI has it.
fn url_host(address: std::net::IpAddr) -> String {
    match address {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// What libvirt does not copy with a VM, which QEMU does when it is asked itself.
fn copies_by_libvirt(vm: &VmSpec, spec: &MigrationSpec) -> Option<Difference> {
    let own_cd = vm.drives.iter().any(|drive| Medium::of(&drive.content) == Medium::OwnCd);
    let lacks = match spec.transport {
        Transport::Mesh => "libvirt copies no disk through its tunnel",
        _ if own_cd => "libvirt copies no CD",
        // It would be decided before they are there.
        _ if spec.is_postcopy() => "libvirt copies no disk in a post-copy",
        _ => return None,
    };
    Some(Difference::Lacks(format!("{lacks}, and the pool is not shared; --backend qmp does")))
}

/// Why this host has no RDMA; `None` where a device is there.
pub(super) fn no_rdma() -> Option<&'static str> {
    let devices = std::fs::read_dir("/sys/class/infiniband").into_iter().flatten().count();
    (devices == 0).then_some("there is no RDMA device (/sys/class/infiniband has none)")
}

/// What the log carries of a destination beside where it listens: its QEMU's process, and where it takes the disk.
fn detail(prepared: &Prepared) -> Vec<u8> {
    let disk = prepared.disk.as_deref().unwrap_or_default();
    [&prepared.pid.to_le_bytes()[..], disk.as_bytes()].concat()
}

/// Reads [`detail`].
pub(super) fn read_detail(detail: &[u8]) -> (u32, Option<String>) {
    let Some((pid, disk)) = detail.split_first_chunk() else { return (0, None) };
    let disk = std::str::from_utf8(disk).ok().filter(|disk| !disk.is_empty());
    (u32::from_le_bytes(*pid), disk.map(str::to_owned))
}

/// The destination takes the locks of the disk when it runs, and not before the decision.
pub(crate) const LATE_BLOCK_ACTIVATE: &str = "late-block-activate";

/// Capabilities as both sides set them: what was asked for, what the interventions need, and what the order of a move
/// needs.
pub(crate) fn capabilities(spec: &MigrationSpec) -> BTreeMap<String, bool> {
    let mut all = spec.capabilities.clone();
    let mut on = |name: &str| all.insert(name.to_owned(), true);
    on("events");
    on(LATE_BLOCK_ACTIVATE);
    let at_switchover = spec.interventions.iter().any(|(moment, _)| *moment == Moment::PreSwitchover);
    if spec.is_postcopy() || at_switchover {
        on("pause-before-switchover");
    }
    if spec.is_postcopy() {
        on("postcopy-ram");
    }
    all
}
