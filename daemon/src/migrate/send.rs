//! The source of a migration up to the transfer: preflight, the entry in the log, the destination asked, QEMU told. The
//! transfer itself is [`super::sender`]'s.
//!
//! Nothing here waits for time to pass: events are subscribed to before the command that causes them, the vote follows
//! the event at once, and the decision is read from the state this host applies or from the answer to its own vote.

use std::{
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use nix::sys::resource::{Resource, getrlimit};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{HostId, MigrationId},
    party::{Failure, Migrated, Move},
    peer::{IncomingDomain, PeerReply, PeerRequest, Preflight, PrepareIncoming, Prepared},
    verdict::Consequence,
    vm::{Backend, How, MigrationResult, MigrationSpec, Transport},
};
use vt_sync::{
    command::{AbortMigration, BeginMigration, FinishMigration},
    state,
};

use super::{
    credentials::Side,
    figures::result_file,
    moments::Interventions,
    outlet::Outlet,
    receive::{self, no_rdma},
    rules,
    sender::{Sender, Times},
    source::Phase,
};
use crate::{
    cluster::AskError,
    libvirt::modes::modes,
    party::{
        attempt::{DECIDES, LocalAttempt},
        failure::caused,
        local_vm::LocalVm,
    },
    qemu::{
        Sampler,
        qmp::{MigrationStatus, RunState},
    },
};

/// How long the destination may take to start a QEMU that listens.
const PREPARES: Duration = Duration::from_secs(90);

/// A migration that is ready to begin.
#[derive(Debug, Clone)]
pub struct Ready {
    pub(super) id: MigrationId,
    pub(super) uri: String,
    /// Of the destination's QEMU; where libvirt starts it, known when it runs.
    pub(super) pid: u32,
    /// Of the same; known when it runs.
    pub(super) qemu_version: String,
    /// Where the destination takes the disk, where it is copied.
    pub(super) disk: Option<String>,
    /// What libvirt has to know, where it moves the VM.
    pub(super) domain: Option<IncomingDomain>,
}

impl Ready {
    fn new(id: MigrationId, prepared: Prepared) -> Self {
        let Prepared { uri, pid, disk, domain, .. } = prepared;
        Self { id, uri, pid, qemu_version: String::new(), disk, domain }
    }
}

impl LocalAttempt {
    /// A call to prepare a move, from either side.
    ///
    /// # Errors
    /// As a party is told.
    pub async fn prepare_move(self: &Arc<Self>, call: Move) -> Result<(), Failure> {
        let (from, to) = self.sides(&call)?;
        if to == self.me() {
            return self.await_prepared(&call).await;
        }
        self.ready(&call, from, to).await.map(drop)
    }

    /// A call to move, from either side.
    ///
    /// # Errors
    /// As a party is told.
    pub async fn migrate(self: &Arc<Self>, call: Move) -> Result<Migrated, Failure> {
        let called = Clock::now();
        let (from, to) = self.sides(&call)?;
        if to == self.me() {
            return self.receive(&call).await;
        }
        self.send(&call, from, to, called).await
    }

    fn sides(&self, call: &Move) -> Result<(HostId, HostId), Failure> {
        let (from, to) = (self.host_id(&call.from)?, self.host_id(&call.to)?);
        if from == to || (from != self.me() && to != self.me()) {
            let title = format!("{} is no side of a move from {} to {}", self.name_of(self.me()), call.from, call.to);
            return Err(caused(Report::new(ErrorCode::BadParameter, title)));
        }
        Ok((from, to))
    }

    /// Everything before the transfer. Called again for the same move it answers from the log.
    async fn ready(self: &Arc<Self>, call: &Move, from: HostId, to: HostId) -> Result<Ready, Failure> {
        let id = MigrationId { vm: self.vm_id(&call.vm), number: call.number };
        let Some(vm) = self.vm(&call.vm) else {
            let title = format!("{} is not on {}", call.vm, call.from);
            return Err(caused(Report::new(ErrorCode::NotOwner, title)));
        };
        let backend = vm.qemu.record().spec.backend;
        if let Some(record) = self.cluster.state().migration(&id) {
            match &record.phase {
                // What libvirt has to know is not in the log: the destination is asked again, and answers alike.
                state::Phase::Prepared { .. } if backend == Backend::Libvirt => {
                    let preflight = self.source_preflight(&vm).await.map_err(caused)?;
                    let prepared =
                        self.ask_destination(&id, &vm, call, &call.spec, to, preflight).await.map_err(caused)?;
                    return Ok(Ready::new(id, prepared));
                }
                state::Phase::Prepared { address, detail } => {
                    let (pid, disk) = receive::read_detail(detail);
                    let (uri, qemu_version) = (address.clone(), String::new());
                    return Ok(Ready { id, uri, pid, qemu_version, disk, domain: None });
                }
                state::Phase::Aborted { why } => return Err(aborted(why.clone())),
                state::Phase::Moved { .. } => {
                    let (uri, qemu_version) = (String::new(), String::new());
                    return Ok(Ready { id, uri, pid: 0, qemu_version, disk: None, domain: None });
                }
                state::Phase::Begun => {}
            }
        }
        if backend == Backend::Libvirt
            && let Err(rule) = modes(&call.spec)
        {
            return Err(caused(Report::new(ErrorCode::BadParameter, rule.clone()).with("rule", rule)));
        }
        if call.spec.by_libvirt.copying.is_some() && self.disks_are_seen() {
            let rule = "both hosts see the disks of the VM, and a copy of one onto itself destroys it";
            return Err(caused(Report::new(ErrorCode::BadParameter, rule).with("rule", rule)));
        }
        if let Some(rule) = rules::broken(&call.spec) {
            return Err(caused(Report::new(ErrorCode::BadParameter, rule.clone()).with("rule", rule)));
        }
        if call.spec.transport == Transport::Rdma
            && let Some(why) = no_rdma()
        {
            let title = format!("{why} on the source");
            return Err(caused(Report::new(ErrorCode::CannotRunHere, title).with("source", call.from.as_str())));
        }
        if backend == Backend::Libvirt
            && call.spec.wants("zero-copy-send")
            && let Some(why) = locks_less_than(vm.spec().memory_mib)
        {
            let title = format!("{why} on the source");
            return Err(caused(Report::new(ErrorCode::CannotRunHere, title).with("source", call.from.as_str())));
        }
        let preflight = self.source_preflight(&vm).await.map_err(caused)?;
        let begin = BeginMigration { migration: id.clone(), from, epoch: vm.epoch(), to };
        self.propose("begin", &id.to_string(), begin, DECIDES).await?;
        let spec = self.with_disk(&call.spec);
        let prepared = match self.ask_destination(&id, &vm, call, &spec, to, preflight).await {
            Ok(prepared) => prepared,
            Err(report) => {
                self.abort_move(&id, report.clone()).await;
                return Err(caused(report));
            }
        };
        // libvirt sets what its call names, and resets it.
        if backend == Backend::Qmp
            && let Err(report) = self.set_source(&vm, &id, &spec).await
        {
            self.abort_move(&id, report.clone()).await;
            return Err(caused(report));
        }
        vm.set_prepared(id.clone());
        Ok(Ready::new(id, prepared))
    }

    async fn set_source(&self, vm: &LocalVm, id: &MigrationId, spec: &MigrationSpec) -> Result<(), Report> {
        let with_tls = match spec.transport {
            Transport::Tls => Some(self.with_tls(vm, id, Side::Source, spec).await?),
            _ => None,
        };
        vm.set_migration(with_tls.as_ref().unwrap_or(spec)).await.map(drop).map_err(|error| error.report())
    }

    async fn source_preflight(&self, vm: &LocalVm) -> Result<Preflight, Report> {
        let qmp = vm.qemu.qmp();
        let capabilities = qmp.query_migrate_capabilities().await.map_err(|error| error.report())?;
        let record = vm.qemu.record();
        Ok(Preflight {
            qemu_version: vm.qemu.version(),
            machine: record.machine.clone(),
            cpu_model: record.cpu_model.clone(),
            accelerator: record.accelerator,
            capabilities: capabilities.into_keys().collect(),
            shows: vm.shows(),
        })
    }

    async fn ask_destination(
        &self,
        id: &MigrationId,
        vm: &LocalVm,
        call: &Move,
        spec: &MigrationSpec,
        to: HostId,
        preflight: Preflight,
    ) -> Result<Prepared, Report> {
        let request = PrepareIncoming {
            migration: id.clone(),
            epoch: vm.epoch(),
            vm: vm.spec(),
            disk: vm.disk.to_string(),
            image: self.image(&vm.qemu.record().spec.image)?.record.digest,
            copies_upon: self.image_to_compare(&vm.qemu.record().spec.image)?,
            spec: spec.clone(),
            preflight,
        };
        match self.cluster.ask(to, PeerRequest::PrepareIncoming(Box::new(request)), PREPARES).await {
            Ok(PeerReply::Prepared(prepared)) => {
                let here = vm.qemu.version();
                if prepared.preflight.qemu_version != here {
                    let there = &prepared.preflight.qemu_version;
                    self.evidence.events.say(format!("{id}: QEMU {here} moves the VM to QEMU {there}"));
                }
                Ok(prepared)
            }
            Ok(PeerReply::Refused(report)) => Err(report),
            Err(AskError::Refused(report)) => Err(*report),
            Ok(other) => Err(Report::new(ErrorCode::WireVersion, format!("{} answered with {other:?}", call.to))),
            Err(error) => Err(unreachable(&call.to.to_string(), &error)),
        }
    }

    pub(super) async fn abort_move(&self, id: &MigrationId, why: Report) {
        let abort = AbortMigration { migration: id.clone(), host: self.me(), why };
        if let Err(failure) = self.propose("abort", &id.to_string(), abort, DECIDES).await {
            tracing::warn!(%id, ?failure, "the abort is not known to be in the log; the end of the attempt decides");
            return;
        }
        // The owner says that it is over, so that the next one may begin.
        let finish = FinishMigration { migration: id.clone(), host: self.me() };
        let _ = self.propose("finish", &id.to_string(), finish, DECIDES).await;
    }

    async fn send(self: &Arc<Self>, call: &Move, from: HostId, to: HostId, called: Clock) -> Result<Migrated, Failure> {
        let id = MigrationId { vm: self.vm_id(&call.vm), number: call.number };
        if self.vm(&call.vm).is_none()
            && let Some(result) = self.stored_result(&id)
        {
            // Asked again after it was done.
            return Ok(Migrated { result: Some(result), ..Migrated::default() });
        }
        let ready = self.ready(call, from, to).await?;
        let Some(vm) = self.vm(&call.vm) else { return Err(Failure::Followed(Consequence::Closed)) };
        let backend = vm.qemu.record().spec.backend;
        let prepared = called.elapsed();
        let events = vm.qemu.qmp().events();
        let way = match backend {
            Backend::Qmp => Outlet::open(self, &vm, (&ready.id, to), call.spec.transport, &ready.uri).await,
            Backend::Libvirt => Ok(Outlet::none(&ready.uri)),
        };
        let outlet = match way {
            Ok(outlet) => outlet,
            Err(report) => {
                self.abort_move(&ready.id, report.clone()).await;
                return Err(caused(report));
            }
        };
        let lane = tokio::select! {
            lane = self.places.lanes.enter(to) => lane,
            () = self.closing.cancelled() => return Err(Failure::Followed(Consequence::Closed)),
        };
        let mut domain_move = None;
        let phase = match backend {
            Backend::Qmp => self.begin_or_resume(&vm, &ready, call, &outlet).await?,
            Backend::Libvirt => {
                let (phase, begun) = self.begin_domain_move(&vm, &ready, call).await?;
                domain_move = begun;
                phase
            }
        };
        let started = called.elapsed();
        let sender = Sender {
            attempt: self.clone(),
            vm: vm.clone(),
            ready,
            call: call.clone(),
            to,
            called,
            events,
            outlet,
            domain_move,
            sampler: Some(Sampler::start(vm.qemu.qmp().clone(), called.into())),
            interventions: Interventions::new(&call.spec.interventions),
            times: Times { prepared, started, ..Times::default() },
        };
        let done = sender.run(phase).await;
        drop(lane);
        done
    }

    /// Begins the transfer, or finds out where one that this daemon did not begin is.
    async fn begin_or_resume(
        &self,
        vm: &LocalVm,
        ready: &Ready,
        call: &Move,
        outlet: &Outlet,
    ) -> Result<Phase, Failure> {
        let qmp = vm.qemu.qmp();
        if vm.take_prepared(&ready.id) {
            self.place("source-sends").await;
            return self.begin_transfer(vm, ready, call, outlet).await;
        }
        let state = self.cluster.state();
        match state.migration(&ready.id) {
            Some(record) if !record.is_under_way() || record.source_completed => return Ok(Phase::Voted),
            _ => {}
        }
        match qmp.query_migrate().await.map_err(|error| caused(error.report()))?.status {
            MigrationStatus::Setup
            | MigrationStatus::Active
            | MigrationStatus::PreSwitchover
            | MigrationStatus::Device
            | MigrationStatus::WaitUnplug => return Ok(Phase::Sending),
            // One that completed and was aborted left QEMU so; it runs again, and the next one may begin.
            MigrationStatus::Completed
                if qmp.query_status().await.is_ok_and(|status| status.state == RunState::PostMigrate) =>
            {
                return Ok(Phase::Sending);
            }
            _ => {}
        }
        self.begin_transfer(vm, ready, call, outlet).await
    }

    async fn begin_transfer(
        &self,
        vm: &LocalVm,
        ready: &Ready,
        call: &Move,
        outlet: &Outlet,
    ) -> Result<Phase, Failure> {
        if let Err(report) = self.copy_disk(vm, ready).await {
            self.abort_move(&ready.id, report.clone()).await;
            return Err(caused(report));
        }
        self.evidence.events.say(format!("{}: how: {}", ready.id, How::of(&call.spec)));
        let qmp = vm.qemu.qmp();
        let begun = async {
            if call.spec.offline {
                qmp.stop().await?;
            }
            qmp.migrate(outlet.address.clone()).await
        };
        if let Err(error) = begun.await {
            if call.spec.offline
                && let Err(report) = self.let_run(vm).await
            {
                self.evidence.events.warn(format!("{}: the guest stays paused: {}", ready.id, report.title));
            }
            let report = Report::new(ErrorCode::MigrationFailed, "QEMU refused to begin the migration")
                .with("QEMU", error.to_string());
            self.give_up_disk(vm, ready).await;
            self.abort_move(&ready.id, report.clone()).await;
            return Err(caused(report));
        }
        Ok(Phase::Sending)
    }

    fn stored_result(&self, id: &MigrationId) -> Option<MigrationResult> {
        let path = self.evidence.dir().join(result_file(id));
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}

/// Why libvirt of this host cannot let QEMU lock that much memory, which sending without a copy takes; `None` where it can.
/// It has the rights that this daemon has.
fn locks_less_than(memory_mib: u32) -> Option<String> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let (_, most) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim();
    let may_raise = u64::from_str_radix(rights, 16).ok()? & CAP_SYS_RESOURCE != 0;
    let less = most < u64::from(memory_mib) << 20 && !may_raise;
    less.then(|| format!("libvirt may lock {} KiB of memory and may not raise that (CAP_SYS_RESOURCE)", most >> 10))
}

pub(super) fn unreachable(to: &str, error: &AskError) -> Report {
    Report::new(ErrorCode::DestinationUnreachable, format!("{to} stopped answering; the VM goes on at the source"))
        .with("destination", to)
        .with("last answer", error.to_string())
}

/// What a party of the source is told of an abort that it did not make itself.
pub(super) fn aborted(why: Report) -> Failure {
    match why.code {
        // The destination's own story, which nobody else tells.
        ErrorCode::DestinationLeft
        | ErrorCode::DestinationUnreachable
        | ErrorCode::MigrationFailed
        | ErrorCode::VmFenced => caused(why),
        _ => Failure::Followed(Consequence::PeerGone(why.title)),
    }
}
