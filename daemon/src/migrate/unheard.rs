//! A VM that has moved here and whose QEMU does not answer the daemon that was started since.
//!
//! While pages of a post-copy are missing QEMU's main loop may wait for one, and takes no new connection to its monitor
//! meanwhile. Is the connection to the source broken as well, that page never comes by itself: the VM's guard, which was
//! connected before, has QEMU listen anew, out of band. What may not happen here: waiting for QEMU before its guard is told of
//! renewals.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use vt_protocol::{
    error::{ErrorCode, Report},
    vm::Transport,
};
use vt_sync::state::Migration;

use super::{inlet::Listen, receive::Incoming};
use crate::{
    guard::GuardHandle,
    party::{
        attempt::LocalAttempt,
        failure::caused,
        local_vm::{Ended, LocalVm},
    },
    qemu::{Vm, VmProcess},
};

/// A pause before something is tried again.
const AGAIN: Duration = Duration::from_millis(500);

impl LocalAttempt {
    /// Takes up again what has moved here when the daemon ended; nobody waits for its QEMU to answer.
    pub(crate) fn resume_moved(self: &Arc<Self>, migration: &Migration, qemu: VmProcess) {
        let (incoming, made) = self.incoming_or(&migration.id, || Incoming::new(migration.id.clone()));
        if !made {
            return;
        }
        let (attempt, voted) = (self.clone(), migration.dest_loaded);
        tokio::spawn(async move {
            let answers = tokio::select! {
                answers = attempt.await_answer(&qemu) => answers,
                () = attempt.closing.cancelled() => return,
                () = attempt.await_guard(&incoming, &qemu) => return,
            };
            let guard = incoming.set_unheard(None);
            let Some(vm) = answers else {
                let fenced = match guard {
                    Some(guard) => guard.has_fenced().await,
                    None => false,
                };
                let title = format!(
                    "QEMU of {}, which had moved here, ended before it answered the daemon that was started since",
                    incoming.id.vm.name
                );
                let report = Ended::new(fenced, qemu.died().await).report(ErrorCode::VmFenced, title);
                incoming.arrival.send_replace(Some(Err(caused(report))));
                return;
            };
            let epoch = attempt.cluster.state().vms.get(vm.id()).map(|record| record.epoch);
            let disk = attempt.disk_found(vm.id());
            let vm = LocalVm::new(vm, disk, epoch.unwrap_or_default());
            attempt.watch_disk(&vm);
            match guard {
                Some(guard) => vm.set_guard(guard),
                None => attempt.guard_again(vm.clone()),
            }
            attempt.resume_receiving(incoming, voted, vm).await;
        });
    }

    /// Waits until QEMU answers this daemon; `None`: it has ended.
    async fn await_answer(&self, qemu: &VmProcess) -> Option<Vm> {
        loop {
            match qemu.clone().connect().await {
                Ok(found) => return found,
                Err(error) => tracing::info!(vm = %qemu.id(), %error, "QEMU does not answer yet"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Finds the guard of such a QEMU and keeps it where renewals are told; never ends.
    async fn await_guard(&self, incoming: &Incoming, qemu: &VmProcess) {
        loop {
            match self.guard_of(qemu).await {
                Ok(guard) => {
                    incoming.set_unheard(Some(guard));
                    return std::future::pending().await;
                }
                Err(report) => tracing::warn!(vm = %qemu.id(), %report, "no guard yet"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Has a QEMU that does not answer listen anew for its post-copy; see [`LocalAttempt::recover_incoming`].
    pub(super) async fn recover_unheard(
        &self,
        incoming: &Incoming,
        transport: Transport,
        guard: &GuardHandle,
    ) -> Result<String, Report> {
        let opened = self.open_inlet(incoming, transport, Listen::AgainByGuard(guard)).await;
        match &opened {
            Ok(there) => {
                let id = &incoming.id;
                self.evidence.events.say(format!("{id}: QEMU does not answer; its guard has it listen at {there}"));
            }
            // It may not have seen yet that its connection is broken: it is told, and asked again by the source.
            Err(_) => drop(guard.break_off().await),
        }
        opened.map_err(Report::retryable)
    }
}
