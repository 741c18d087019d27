//! A move that libvirt makes: what is different at both ends.
//!
//! At the source one call does it all, and its answer counts: libvirt's word that the domain has moved is the source's
//! completion, or the end of a QEMU that had sent everything, which comes before it; its refusal is the failure, and what QEMU
//! says meanwhile is told and decides nothing. At the destination
//! libvirt starts the QEMU; it is found by its run folder and then watched as any other.
//!
//! A post-copy is decided while QEMU transfers, with the guest paused, and libvirt goes over to it then; see [`crate::libvirt`]
//! for what is narrower. What follows is in [`super::postcopy`].
//!
//! What may not happen here: a vote of the source while libvirt may still let it run.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Epoch, MigrationId, VmId},
    libvirt::{DomainState, Hello, Migrate, Running},
    party::{Failure, Move},
    peer::IncomingState,
    verdict::Consequence,
    vm::{Copying, How, MigrationSpec, Transport},
};
use vt_sync::{command::AbortMigration, state};

use super::{credentials::Side, destination, receive::Incoming, receiver::Receiver, send::Ready, source::Phase};
use crate::{
    libvirt::{Libvirt, certificates::Held, domain, laid::Laid, modes::modes, not_there, process::HelperError},
    party::{
        attempt::{DECIDES, LocalAttempt},
        disk::DiskPlace,
        failure::caused,
        local_vm::LocalVm,
    },
    qemu::{
        Found, Vm, VmError, VmPlaces, VmSetup,
        command_line::QMP_SOCKET,
        process::resolve_program,
        qmp::{MigrationInfo, MigrationStatus},
        remains,
        site::Site,
    },
};

/// The description of a domain, in the evidence.
const DOMAIN_FILE: &str = "domain.xml";
/// What libvirt may need beyond the time of the transfer.
const BESIDES: Duration = Duration::from_secs(60);
/// Between two looks for what nobody tells.
const LOOKS: Duration = Duration::from_millis(20);
/// Between two questions after an answer that was lost.
const ASKS: Duration = Duration::from_millis(500);
/// How often in a row libvirt has to be found idle, with the guest running: it may not have begun when it is first asked.
const LOOKS_IDLE: u32 = 4;
/// How long libvirt may be away before its move is ended without it. One that is started again ends it by itself.
const AWAY: Duration = Duration::from_secs(30);
/// How long libvirt may take to begin to give a move up, and then to answer that it did. It waits for the other side, which
/// may be cut off, until its own signs of life have failed: half a minute.
pub(super) const GIVES_UP: Duration = Duration::from_secs(5);
/// How long QEMU may take to end a transfer.
const ENDS: Duration = Duration::from_secs(20);
/// And one that is in post-copy besides; whoever waits for it has a bound of its own.
const POSTCOPY_ENDS: Duration = Duration::from_secs(3600);
/// How often it is asked whether it has let go of a domain whose QEMU has ended.
const LOOKS_GONE: Duration = Duration::from_millis(100);

/// A move that libvirt of the source makes.
#[derive(Debug)]
pub(super) struct DomainMove {
    domain: String,
    libvirt: Arc<Libvirt>,
    /// Until it is given.
    answer: Option<oneshot::Receiver<Result<(), Report>>>,
    /// The certificates of this side, where it goes with TLS: nobody else has them meanwhile.
    _certificates: Option<Held>,
    /// Whether QEMU has said that the transfer had completed: libvirt ends it soon after.
    completed: bool,
    /// What it said of it then.
    pub(super) last: Option<MigrationInfo>,
}

impl DomainMove {
    /// Has libvirt begin it.
    pub(super) async fn begin(
        attempt: &Arc<LocalAttempt>,
        vm: &Arc<LocalVm>,
        ready: &Ready,
        call: &Move,
    ) -> Result<Self, Report> {
        let libvirt = attempt.libvirt()?;
        let domain = domain::name(&vm.id);
        let Some(incoming) = ready.domain.clone() else {
            return Err(Report::new(ErrorCode::Internal, "the destination did not say how libvirt is to have the VM"));
        };
        let mut modes = modes(&call.spec).map_err(|rule| Report::new(ErrorCode::BadParameter, rule))?;
        modes.copying = (!attempt.disks_are_seen()).then(|| call.spec.by_libvirt.copying.unwrap_or(Copying::Own));
        let (tls, certificates) = match call.spec.transport {
            Transport::Tls => {
                let (name, held) = attempt.libvirt_with_tls(&ready.id, Side::Source).await?;
                (Some(name), Some(held))
            }
            _ => (None, None),
        };
        let (to, uri, xml) = (ready.uri.clone(), incoming.listens, incoming.xml);
        let migrate = Migrate { domain, to, uri, xml, tls, modes };
        let within = Duration::from_millis(call.spec.timeout_ms) + BESIDES;
        let asked = Arc::clone(&libvirt);
        let managed = call.spec.by_libvirt.managed;
        let begun = Self::follow(attempt, vm, managed, async move { asked.migrate(migrate, within).await })?;
        Ok(Self { _certificates: certificates, ..begun })
    }

    /// Follows one that a daemon before this one had libvirt begin.
    pub(super) fn resume(attempt: &Arc<LocalAttempt>, vm: &Arc<LocalVm>, call: &Move) -> Result<Self, Failure> {
        let managed = call.spec.by_libvirt.managed;
        Self::follow(attempt, vm, managed, async { Err(HelperError::Gone) }).map_err(caused)
    }

    /// Has libvirt go over to post-copy.
    pub(super) async fn start_postcopy(&self) -> Result<(), Report> {
        self.libvirt.start_postcopy(&self.domain).await
    }

    /// Keeps what QEMU says of a transfer that has completed.
    pub(super) async fn note(&mut self, vm: &LocalVm, status: &MigrationStatus) {
        if *status == MigrationStatus::Completed {
            self.completed = true;
            self.last = vm.qemu.qmp().query_migrate().await.ok();
        }
    }

    fn follow(
        attempt: &Arc<LocalAttempt>,
        vm: &Arc<LocalVm>,
        managed: bool,
        asked: impl Future<Output = Result<(), HelperError>> + Send + 'static,
    ) -> Result<Self, Report> {
        let libvirt = attempt.libvirt()?;
        let (tell, answer) = oneshot::channel();
        let domain = domain::name(&vm.id);
        let (asking, vm, attempt) = (Arc::clone(&libvirt), Arc::clone(vm), Arc::clone(attempt));
        tokio::spawn(async move {
            let said = match asked.await {
                Ok(()) => Ok(()),
                Err(error) if error.is_verdict() => Err(refused(&asking, &error)),
                Err(error) => {
                    tracing::warn!(vm = %vm.id, %error, "libvirt's answer to a move is not known");
                    tokio::select! {
                        found = find_out(&asking, &vm, managed, &error) => found,
                        () = attempt.closing.cancelled() => return,
                    }
                }
            };
            // Nobody waits once the attempt is over.
            let _ = tell.send(said);
        });
        Ok(Self { domain, libvirt, answer: Some(answer), _certificates: None, completed: false, last: None })
    }

    /// Whether libvirt has not answered yet.
    pub(super) fn is_open(&self) -> bool {
        self.answer.is_some()
    }

    /// Waits for libvirt's answer, or for the end of a QEMU that had sent everything: libvirt ends what has moved, and takes a
    /// second or two more to say so. What has ended does not run again.
    pub(super) async fn outcome(&mut self, vm: &LocalVm) -> Result<(), Report> {
        let completed = self.completed;
        let ended = async {
            if !completed {
                std::future::pending::<()>().await;
            }
            vm.qemu.process().ended().await;
        };
        tokio::select! {
            biased;
            answer = self.answer() => answer,
            () = ended => Ok(()),
        }
    }

    /// Waits until libvirt has let go of a domain that has moved: before, it takes none of that name back.
    pub(super) async fn let_go(&mut self, vm: &LocalVm) {
        if self.is_open() && timeout(ENDS, self.answer()).await.is_err() {
            tracing::warn!(vm = %vm.id, "libvirt does not say that the move is over");
        }
    }

    /// Waits for libvirt's answer; pending for ever once that was given.
    pub(super) async fn answer(&mut self) -> Result<(), Report> {
        let Some(answer) = &mut self.answer else { return std::future::pending().await };
        let Ok(said) = answer.await else { return std::future::pending().await };
        self.answer = None;
        said
    }

    /// Has libvirt give it up, and QEMU where libvirt is gone or waits for something else. The answer says whether that was
    /// in time.
    pub(super) async fn abort(&self, vm: &LocalVm) -> Result<(), Report> {
        let told = timeout(GIVES_UP, self.libvirt.abort(&self.domain)).await;
        match told {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(report)) if matches!(timeout(GIVES_UP, self.libvirt.hello()).await, Ok(Ok(_))) => {
                return Err(report);
            }
            _ => {}
        }
        vm.qemu.qmp().migrate_cancel().await.map_err(|error| error.report())
    }

    /// Whether QEMU has ended a transfer that was given up while libvirt still waits for the other side. Then there is nothing
    /// more to be heard: libvirt's answer can only be that it did not move.
    pub(super) async fn is_given_up(&mut self, vm: &LocalVm) -> bool {
        let ended = matches!(
            vm.qemu.qmp().query_migrate().await.map(|info| info.status),
            Ok(MigrationStatus::Cancelled | MigrationStatus::Failed)
        );
        if ended {
            tracing::info!(vm = %vm.id, "libvirt does not say yet that the move was given up, as QEMU does");
            self.answer = None;
        }
        ended
    }
}

fn refused(libvirt: &Libvirt, error: &HelperError) -> Report {
    let said = libvirt.report(error);
    let title = "libvirt did not move the VM; it goes on at the source";
    said.evidence.iter().fold(Report::new(ErrorCode::MigrationFailed, title), |report, (key, value)| {
        report.with(key.clone(), value.clone())
    })
}

/// What became of a move whose answer was lost. A QEMU that has ended will not run again, and so the source has no more to
/// say: whether everything arrived is for the destination to know. `managed`: the helper was the one that asked both sides.
async fn find_out(libvirt: &Libvirt, vm: &LocalVm, managed: bool, lost: &HelperError) -> Result<(), Report> {
    let mut ticks = interval(ASKS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle = 0;
    let mut answered = Instant::now();
    while idle < LOOKS_IDLE {
        tokio::select! {
            _ = vm.qemu.process().ended() => break,
            _ = ticks.tick() => {}
        }
        let state = libvirt.state(&domain::name(&vm.id)).await;
        match state {
            Ok(_) => answered = Instant::now(),
            Err(_) if answered.elapsed() < AWAY => {}
            Err(_) => return end_without(libvirt, vm, lost).await,
        }
        let over = match state {
            Ok(Some(DomainState { cpus: Running::Yes, busy: false })) => true,
            // Whoever was to tell libvirt how it went at the other side is gone, and nobody else will.
            Ok(Some(DomainState { cpus: Running::Paused, busy: false })) => managed,
            _ => false,
        };
        idle = if over { idle + 1 } else { 0 };
    }
    if idle == LOOKS_IDLE {
        return Err(refused(libvirt, lost));
    }
    has_let_go(libvirt, &vm.id).await;
    Ok(())
}

/// Waits until libvirt of this host has let go of a VM that was here, which it does a moment after its QEMU has ended:
/// before, it takes none of that name back. What it says when it is asked to is then the answer.
pub(super) async fn has_let_go(libvirt: &Libvirt, vm: &VmId) {
    let domain = domain::name(vm);
    let gone = async {
        let mut ticks = interval(LOOKS_GONE);
        while !matches!(libvirt.state(&domain).await, Ok(None)) {
            ticks.tick().await;
        }
    };
    if timeout(ENDS, gone).await.is_err() {
        tracing::warn!(%vm, "libvirt does not let go of a domain that has moved");
    }
}

/// Ends a move whose libvirt is gone: what has completed is for the destination to know, everything else is given up. A
/// post-copy cannot be, and ends without libvirt.
async fn end_without(libvirt: &Libvirt, vm: &LocalVm, lost: &HelperError) -> Result<(), Report> {
    let (qmp, until) = (vm.qemu.qmp(), Instant::now() + ENDS);
    let said = |why: String| refused(libvirt, lost).with("QEMU", why);
    let mut events = qmp.events();
    let mut status = qmp.query_migrate().await.map_err(|error| said(error.to_string()))?.status;
    if !status.is_final() {
        let until = if status.is_postcopy() {
            until + POSTCOPY_ENDS
        } else {
            qmp.migrate_cancel().await.map_err(|error| said(error.to_string()))?;
            until
        };
        let ended = qmp.wait_migration(&mut events, MigrationStatus::is_final, until).await;
        status = ended.map_err(|error| said(error.to_string()))?;
    }
    if status == MigrationStatus::Completed { Ok(()) } else { Err(refused(libvirt, lost)) }
}

impl LocalAttempt {
    /// libvirt of this host.
    ///
    /// # Errors
    /// The settings name none.
    pub(crate) fn libvirt(&self) -> Result<Arc<Libvirt>, Report> {
        self.places.libvirt.clone().ok_or_else(|| not_there(&self.name_of(self.me())))
    }

    /// Has libvirt begin a move, or finds out where one that this daemon did not begin is.
    pub(super) async fn begin_domain_move(
        self: &Arc<Self>,
        vm: &Arc<LocalVm>,
        ready: &Ready,
        call: &Move,
    ) -> Result<(Phase, Option<DomainMove>), Failure> {
        let state = self.cluster.state();
        let decided = |record: &state::Migration| !record.is_under_way() || record.source_completed;
        if state.migration(&ready.id).is_some_and(decided) {
            // What is left of a post-copy is libvirt's.
            let left = if call.spec.is_postcopy() { Some(DomainMove::resume(self, vm, call)?) } else { None };
            return Ok((Phase::Voted, left));
        }
        if vm.take_prepared(&ready.id) {
            self.place("source-sends").await;
            self.evidence.events.say(format!("{}: how: {}, by libvirt", ready.id, How::of(&call.spec)));
            return match DomainMove::begin(self, vm, ready, call).await {
                Ok(begun) => Ok((Phase::Sending, Some(begun))),
                Err(report) => {
                    self.abort_move(&ready.id, report.clone()).await;
                    Err(caused(report))
                }
            };
        }
        Ok((Phase::Sending, Some(DomainMove::resume(self, vm, call)?)))
    }

    /// Has libvirt start a VM with its CPUs stopped.
    pub(crate) async fn start_domain(&self, setup: &VmSetup, places: VmPlaces) -> Result<Vm, Report> {
        let libvirt = self.libvirt()?;
        let Hello { library, daemon, hypervisor, .. } = libvirt.hello().await?;
        self.evidence.events.say(format!("libvirt {daemon} (library {library}) with QEMU {hypervisor}"));
        let (site, xml, changed) = self.site(setup, places)?;
        if !changed.is_empty() {
            self.evidence.events.say(format!("set over the domain of {}: {}", setup.spec.id.name, changed.join(", ")));
        }
        libvirt.start(xml).await?;
        let found = Vm::find(&site.run_dir).await.map_err(|error| error.report())?;
        let Found::Running(vm) = found else {
            let title = format!("QEMU of {}, which libvirt had started, ended at once", setup.spec.id);
            return Err(Report::new(ErrorCode::QemuDied, title));
        };
        site.keep();
        Ok(*vm)
    }

    /// The place of a VM, how libvirt is to have it, and what of its user's domain that changed. libvirt puts the QEMU into
    /// a control group of its own choice: the one that is made here stays empty, and on record says where the guard's is.
    fn site(&self, setup: &VmSetup, places: VmPlaces) -> Result<(Site, String, Vec<String>), Report> {
        let emulator = resolve_program(&setup.qemu).ok_or_else(|| VmError::Missing(setup.qemu.clone()).report())?;
        let given = self.given_domain(&setup.spec.id.name)?;
        let site = Site::make(setup, &places).map_err(|error| error.report())?;
        let ours = domain::xml(&site.command_line(setup), &emulator);
        let Laid { xml, changed } = match given {
            Some(given) => given.laid_under(&ours).map_err(|objection| {
                Report::new(ErrorCode::BadParameter, format!("the domain cannot be taken: {objection}"))
            })?,
            None => Laid { xml: ours, changed: Vec::new() },
        };
        let file = places.evidence.join(DOMAIN_FILE);
        std::fs::write(&file, &xml).map_err(|error| VmError::io("write", &file)(error).report())?;
        Ok((site, xml, changed))
    }

    /// Makes the place of a VM that libvirt is to start here, and says how libvirt is to have it.
    pub(super) fn expect_domain(&self, setup: &VmSetup, places: VmPlaces) -> Result<String, Report> {
        let (site, xml, _) = self.site(setup, places)?;
        site.keep();
        Ok(xml)
    }

    /// Waits until libvirt has started the QEMU that a VM comes in by, and then sees it through.
    pub(super) async fn await_domain(self: Arc<Self>, incoming: Arc<Incoming>, spec: MigrationSpec, disk: DiskPlace) {
        let id = incoming.id.clone();
        let run_dir = self.places.vm(&id.vm);
        let qemu = tokio::select! {
            qemu = appears(&run_dir) => qemu,
            why = self.is_aborted(&id) => {
                incoming.state.send_replace(IncomingState::Failed(why.clone()));
                let gone = Err(Failure::Followed(Consequence::PeerGone(why.title)));
                self.clear(&incoming, run_dir).await;
                incoming.arrival.send_replace(Some(gone));
                return;
            }
            () = self.closing.cancelled() => return self.clear(&incoming, run_dir).await,
        };
        let ready = match qemu {
            Ok(qemu) => {
                let vm = LocalVm::new(qemu, disk, Epoch::default());
                incoming.set_vm(Some(Arc::clone(&vm)));
                self.guard(&vm).await.map(|()| vm)
            }
            Err(error) => Err(error.report()),
        };
        let vm = match ready {
            Ok(vm) => vm,
            Err(why) => {
                self.evidence.events.warn(format!("{id}: {}", why.title));
                self.clear(&incoming, run_dir).await;
                let abort = AbortMigration { migration: id.clone(), host: self.me(), why };
                // Not known to be in the log: the source learns from libvirt that its QEMU here is gone.
                let _ = self.propose("abort", &id.to_string(), abort, DECIDES).await;
                return;
            }
        };
        let events = vm.qemu.qmp().events();
        let replay = vm.qemu.qmp().query_migrate().await.ok().map(|info| destination::Event::Qemu(info.status));
        let (phase, postcopy, loaded) = (destination::Phase::Receiving, spec.is_postcopy(), None);
        Receiver { attempt: self, incoming, vm, events, phase, postcopy, replay, loaded }.run().await;
    }

    /// Waits for the entry that aborts a move; the reason.
    async fn is_aborted(&self, id: &MigrationId) -> Report {
        let aborted = |state: &vt_sync::State| match &state.migration(id)?.phase {
            state::Phase::Aborted { why } => Some(why.clone()),
            _ => None,
        };
        match self.wait_state(aborted).await {
            Ok(why) => why,
            // The party has ended; so does the attempt.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives back the place of a VM that does not come, and the disks that were made for it.
    async fn clear(&self, incoming: &Incoming, run_dir: PathBuf) {
        let cleared = tokio::task::spawn_blocking(move || remains::clear(&run_dir)).await;
        for left in cleared.unwrap_or_default() {
            self.evidence.events.warn(format!("left behind: {left}"));
        }
        incoming.close_inlet();
        self.forget_copy(&incoming.id.vm.name).await;
    }
}

/// Waits until there is a QEMU in a run folder. libvirt says nothing before everything has arrived.
async fn appears(run_dir: &std::path::Path) -> Result<Vm, VmError> {
    let socket = run_dir.join(QMP_SOCKET);
    let begun = Instant::now();
    let mut ticks = interval(LOOKS);
    loop {
        ticks.tick().await;
        if !socket.exists() {
            continue;
        }
        match Vm::find(run_dir).await? {
            Found::Running(vm) => {
                tracing::debug!(waited = ?begun.elapsed(), "libvirt has started a QEMU");
                return Ok(*vm);
            }
            // Between its socket and its monitor it has no process on record.
            Found::Ended | Found::Nothing => {}
        }
    }
}
