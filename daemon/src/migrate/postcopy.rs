//! What follows the decision of a post-copy: the source goes on with the switch-over, the guest runs at the destination,
//! and both stay until the last page is there. A broken connection is mended; a lost side loses the guest.
//!
//! Sources: QEMU's `docs/devel/migration/postcopy.rst` (phases, pausing and recovery). Decided before the switch-over,
//! because a source that has sent its devices' state may not run the guest again, whatever happens to the destination.
//!
//! One that libvirt makes is mended by us all the same: libvirt of the destination may itself wait for a page, while its QEMU
//! still hears us. What completes then, libvirt notices and takes for done.
//!
//! What may not happen here: a source that runs the guest again.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::MigrationId,
    party::Failure,
    peer::{PeerReply, PeerRequest},
    verdict::Consequence,
    vm::Transport,
};

use super::{
    domain_move::DomainMove,
    inlet::Listen,
    moments::moment,
    outlet::Outlet,
    receiver::Receiver,
    sender::{AbortOnDrop, Sender},
};
use crate::{
    party::{attempt::LocalAttempt, failure::caused, local_vm::Ended},
    qemu::qmp::{self, EventError, MigrationInfo, MigrationStatus, WaitError},
};

/// How long QEMU may take to leave the switch-over when it is told to.
const LEAVES: Duration = Duration::from_secs(20);
/// How long a destination may take to listen again.
const LISTENS_AGAIN: Duration = Duration::from_secs(30);
/// How long a destination may take to see that the connection is broken, once it is told.
const PAUSES: Duration = Duration::from_secs(10);
/// A pause before a destination that could not be reached is asked again to listen.
const AGAIN: Duration = Duration::from_millis(200);

impl Sender {
    /// Kills a source that runs the guest after the VM was decided to be the destination's: QEMU lets it run by itself
    /// where a switch-over fails.
    pub(super) fn end_what_runs_on(&self) -> AbortOnDrop {
        let (attempt, vm, id) = (self.attempt.clone(), self.vm.clone(), self.ready.id.clone());
        let mut events = vm.qemu.qmp().events();
        AbortOnDrop(tokio::spawn(async move {
            loop {
                let running = match events.next().await {
                    Ok(event) => event.name == "RESUME",
                    Err(EventError::Lagged(_)) => vm.qemu.qmp().query_status().await.is_ok_and(|status| status.running),
                    Err(_) => return,
                };
                if running {
                    attempt.evidence.events.warn(format!("{id}: the source ran again after the decision: killed"));
                    vm.qemu.clone().kill().await;
                    return;
                }
            }
        }))
    }

    /// One that was aborted while it waited before the switch-over waits there still: cancelled, QEMU lets the guest run.
    /// libvirt has gone on with its transfer, and gives it up.
    pub(super) async fn leave_switchover(&mut self) -> Result<(), String> {
        let qmp = self.vm.qemu.qmp();
        if let Some(domain) = self.domain_move.as_mut().filter(|domain| domain.is_open()) {
            // The destination's end may have been enough; the answer says so too.
            let _ = domain.abort(&self.vm).await;
            let answer = timeout(LEAVES, domain.answer()).await;
            return match answer {
                Ok(Err(_)) => Ok(()),
                Ok(Ok(())) => Err("libvirt has moved the VM all the same".to_owned()),
                Err(_) => Err("libvirt does not give the move up".to_owned()),
            };
        }
        let mut events = qmp.events();
        if qmp.query_migrate().await.map_err(|error| error.to_string())?.status != MigrationStatus::PreSwitchover {
            return Ok(());
        }
        qmp.migrate_cancel().await.map_err(|error| error.to_string())?;
        let ended = qmp.wait_migration(&mut events, MigrationStatus::is_final, Instant::now() + LEAVES).await;
        ended.map(drop).map_err(|error| error.to_string())
    }

    /// Decided: QEMU goes on with the switch-over, or libvirt over to post-copy. Done again after a restart of the daemon it
    /// does nothing.
    pub(super) async fn go_on(&self) {
        let qmp = self.vm.qemu.qmp();
        let Ok(MigrationInfo { status, .. }) = qmp.query_migrate().await else { return };
        let gone_on = match (&self.domain_move, status) {
            (None, MigrationStatus::PreSwitchover) => {
                qmp.migrate_continue(&MigrationStatus::PreSwitchover).await.map_err(|error| error.report())
            }
            (Some(domain), MigrationStatus::Active) => domain.start_postcopy().await,
            _ => Ok(()),
        };
        if let Err(report) = gone_on {
            self.attempt.evidence.events.warn(format!("{}: {report}", self.ready.id));
        }
    }

    /// Waits until every page is at the destination, where the guest runs already.
    pub(super) async fn await_pages(&mut self) -> Result<(), Failure> {
        let (attempt, id, to) = (self.attempt.clone(), self.ready.id.clone(), self.to);
        tokio::select! {
            biased;
            pages = self.follow_pages() => pages,
            gone = attempt.party_ends(to) => {
                gone?;
                // It tells what it knows of the guest, which was its own.
                Err(Failure::Followed(Consequence::PeerGone(format!("{id}: the party of the destination"))))
            }
        }
    }

    async fn follow_pages(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + Duration::from_millis(self.call.spec.timeout_ms);
        let mut status = self.vm.qemu.qmp().query_migrate().await.ok().map(|info| info.status);
        let mut listening = true;
        // libvirt ends what has completed, and answers then. Where its part ended with a cut it has answered before.
        let mut completed = false;
        loop {
            let by_libvirt = self.domain_move.as_ref().is_some_and(DomainMove::is_open);
            match status.take() {
                Some(MigrationStatus::Completed) => completed = true,
                Some(MigrationStatus::PostcopyPaused) => self.recover(until).await?,
                Some(MigrationStatus::Failed | MigrationStatus::Cancelled) => {
                    return Err(lost(&self.ready.id, "the source QEMU reports that the post-copy failed"));
                }
                _ => {}
            }
            if completed && !by_libvirt {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = self.attempt.closing.cancelled() => return Err(Failure::Followed(Consequence::Closed)),
                event = self.events.next(), if listening => match event {
                    Ok(event) => {
                        for (moment, what) in moment(&event).map(|now| self.interventions.due(now)).unwrap_or_default() {
                            self.intervene(moment, what).await.map_err(caused)?;
                        }
                        if event.name == "MIGRATION" {
                            let now: MigrationStatus = event.text("status").unwrap_or_default().into();
                            if let Some(domain) = &mut self.domain_move {
                                domain.note(&self.vm, &now).await;
                            }
                            status = Some(now);
                        }
                    }
                    Err(EventError::Lagged(_)) => {
                        status = self.vm.qemu.qmp().query_migrate().await.ok().map(|info| info.status);
                    }
                    // It has ended, which is told below.
                    Err(_) => listening = false,
                },
                answer = libvirts_answer(&mut self.domain_move) => match answer {
                    Ok(()) => return Ok(()),
                    Err(why) => {
                        let said = why.evidence.iter().map(|(name, words)| format!("; {name}: {words}")).collect::<String>();
                        self.attempt.evidence.events.say(format!("{}: libvirt has left the post-copy{said}", self.ready.id));
                    }
                },
                ended = self.vm.ended(), if !by_libvirt => {
                    return Err(caused(lost_with(&self.ready.id, &ended, "the source QEMU ended")));
                }
                () = sleep_until(until) => {
                    let seconds = self.call.spec.timeout_ms / 1000;
                    let title = format!("the post-copy did not complete within {seconds} s");
                    return Err(caused(Report::new(ErrorCode::MigrationTimeout, title)));
                }
            }
        }
    }

    /// Mends a broken connection: the destination listens anew, and the source goes on from where both know they were.
    async fn recover(&mut self, until: Instant) -> Result<(), Failure> {
        self.attempt.place("source-recovers").await;
        let (attempt, vm) = (self.attempt.clone(), self.vm.clone());
        let (qmp, events) = (vm.qemu.qmp(), &attempt.evidence.events);
        let transport = self.call.spec.transport;
        while Instant::now() < until {
            let status = qmp.query_migrate().await.map(|info| info.status);
            if !matches!(status, Ok(MigrationStatus::PostcopyPaused)) {
                return Ok(());
            }
            let ask = PeerRequest::RecoverIncoming { migration: self.ready.id.clone(), transport };
            let asked = tokio::select! {
                asked = attempt.cluster.ask(self.to, ask, LISTENS_AGAIN) => asked,
                () = attempt.closing.cancelled() => return Err(Failure::Followed(Consequence::Closed)),
            };
            attempt.open_in(&attempt.cluster.state())?;
            let why = match asked {
                Ok(PeerReply::Recovering(there)) => {
                    self.outlet.close();
                    let way = Outlet::open(&attempt, &vm, (&self.ready.id, self.to), transport, &there).await;
                    let resumed = match way {
                        Ok(outlet) => {
                            self.outlet = outlet;
                            qmp.migrate_resume(self.outlet.address.clone()).await.map_err(|error| error.to_string())
                        }
                        Err(report) => Err(report.title),
                    };
                    match resumed {
                        Ok(()) => {
                            events.say(format!("{}: recovers over {there}", self.ready.id));
                            return Ok(());
                        }
                        Err(why) => why,
                    }
                }
                Ok(PeerReply::Refused(report)) if report.code == ErrorCode::PostcopyLost => {
                    return Err(Failure::Followed(Consequence::PeerGone(report.title)));
                }
                Ok(PeerReply::Refused(report)) => report.title,
                Ok(other) => format!("{} answered with {other:?}", self.call.to),
                Err(error) => error.to_string(),
            };
            tracing::info!(id = %self.ready.id, why, "the post-copy is not recovered yet");
            sleep(AGAIN).await;
        }
        Err(lost(&self.ready.id, "the connection was broken and could not be mended in time"))
    }
}

/// Pending for ever where libvirt was not asked.
async fn libvirts_answer(domain_move: &mut Option<DomainMove>) -> Result<(), Report> {
    match domain_move {
        Some(domain_move) => domain_move.answer().await,
        None => std::future::pending().await,
    }
}

impl Receiver {
    /// Waits until every page is here, while the guest runs.
    pub(super) async fn await_pages(&mut self) -> Result<(), Failure> {
        let qmp = self.vm.qemu.qmp();
        let (attempt, id) = (&self.attempt, &self.incoming.id);
        let source = attempt.cluster.state().migration(id).map(|migration| migration.from);
        let source_gone = async {
            match source {
                Some(source) => attempt.party_ends(source).await,
                // The record goes when the migration is finished: nobody is waited for.
                None => std::future::pending().await,
            }
        };
        // After a restart of the daemon the event may be past. QEMU answers when its main loop has the pages it needs.
        let was_loaded = async {
            if !qmp.query_migrate().await.is_ok_and(|info| info.status == MigrationStatus::Completed) {
                std::future::pending::<()>().await;
            }
        };
        let far = Instant::now() + Duration::from_secs(86_400);
        let ended = qmp.wait_migration(&mut self.events, MigrationStatus::is_final, far);
        let loaded = async {
            match ended.await {
                Ok(MigrationStatus::Completed) => Ok(()),
                Ok(_) => Err(lost(id, "the destination QEMU gave up")),
                // It has ended, which is told below.
                Err(WaitError::Event(EventError::Closed(_))) => std::future::pending().await,
                Err(error) => Err(lost(id, &error.to_string())),
            }
        };
        tokio::select! {
            biased;
            loaded = loaded => loaded,
            () = was_loaded => Ok(()),
            ended = self.vm.ended() => Err(caused(lost_with(id, &ended, "the destination QEMU ended"))),
            gone = source_gone => {
                gone?;
                Err(Failure::Followed(Consequence::PeerGone(format!("{id}: the party of the source"))))
            }
        }
    }
}

impl LocalAttempt {
    /// Listens anew for a post-copy whose connection is broken; asked by the source. Returns where.
    ///
    /// # Errors
    /// Nothing of that kind runs here, or QEMU does not see the connection as broken.
    pub(crate) async fn recover_incoming(&self, id: &MigrationId, transport: Transport) -> Result<String, Report> {
        let missing = || Report::new(ErrorCode::MigrationRefused, format!("{id} is not here")).retryable();
        let incoming = self.incoming(id).ok_or_else(missing)?;
        let Some(vm) = self.vm(&id.vm.name).or_else(|| incoming.vm()) else {
            let guard = incoming.unheard().ok_or_else(missing)?;
            return self.recover_unheard(&incoming, transport, &guard).await;
        };
        let qmp = vm.qemu.qmp();
        // Out of band only: QEMU's main loop may itself be waiting for a page that is missing.
        let mut events = qmp.events();
        let refused = match self.open_inlet(&incoming, transport, Listen::Again(qmp)).await {
            Ok(there) => return Ok(there),
            Err(report) => report,
        };
        // One side sees a cut before the other does: this one is told, and listens once it has seen it too.
        let _ = qmp.migrate_pause().await;
        let paused = |event: &qmp::Event| event.name == "MIGRATION" && event.text("status") == Some("postcopy-paused");
        tokio::select! {
            seen = events.wait_for(paused, Instant::now() + PAUSES) => {
                seen.map_err(|_| refused.retryable())?;
                let again = self.open_inlet(&incoming, transport, Listen::Again(qmp)).await;
                again.map_err(Report::retryable)
            }
            ended = vm.ended() => Err(lost_with(id, &ended, "the destination QEMU ended")),
        }
    }
}

fn title(id: &MigrationId, what: &str) -> String {
    format!("LOST: {what} while pages of {} were missing", id.vm.name)
}

fn lost(id: &MigrationId, what: &str) -> Failure {
    caused(Report::new(ErrorCode::PostcopyLost, title(id, what)))
}

fn lost_with(id: &MigrationId, ended: &Ended, what: &str) -> Report {
    ended.report(ErrorCode::PostcopyLost, title(id, what))
}
