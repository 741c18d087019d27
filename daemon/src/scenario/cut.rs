//! A transfer whose packets are dropped at its destination, for a while or to its end.

use std::{collections::btree_map::Entry, time::Duration};

use serde_json::Value;
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    party::{Failure, Plane},
    vm::{Intervention, MigrationSpec, Moment, Transport},
};

use super::journey::{ASK, Journey, Part, SLACK};
use crate::party::{Party, our_fault};

/// Most bandwidth of such a transfer at first, and then, bytes/s.
const SLOW: u64 = 4 << 20;
const FAST: u64 = 10 << 30;
/// Bytes that have been sent when the packets begin to be dropped.
const UNDER_WAY: u64 = 4 << 20;
/// How long the transfer may take until it is under way.
const BEGINS: Duration = Duration::from_secs(60);
/// How often QEMU is asked how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// The plane that a transfer goes over, where it is one connection after another between the two hosts.
pub(super) fn plane_of(transport: Transport) -> Option<Plane> {
    match transport {
        Transport::Tcp | Transport::Tcp6 | Transport::Tls => Some(Plane::Migration),
        Transport::Mesh | Transport::Fd | Transport::Exec => Some(Plane::Bulk),
        Transport::File | Transport::Rdma => None,
    }
}

/// Slows a transfer down that is to be cut, where nothing else is said.
pub(super) fn slowly(spec: &mut MigrationSpec) {
    // Slow enough that it is still under way when the packets are dropped…
    if let Entry::Vacant(speed) = spec.parameters.entry("max-bandwidth".into()) {
        speed.insert(SLOW);
        // … and then as fast as it goes: the guest writes more than that.
        let fast = Intervention::Set([("max-bandwidth".to_owned(), FAST)].into());
        spec.interventions.push((Moment::Pass(2), fast));
    }
}

/// A transfer that has to fail: it ends without having moved the guest. With `block` its packets are dropped once it is
/// under way, until its destination lets them pass again.
pub(super) async fn cut_off(
    journey: &Journey<'_>,
    to: usize,
    spec: &MigrationSpec,
    block: bool,
) -> Result<(), Failure> {
    let (party, vm) = (journey.party, journey.vm.clone());
    let part = journey.part(to);
    let (from, to) = (journey.here().clone(), party.hosts()[to].clone());
    party.prepare_migration(&vm, &from, &to, spec).await?;
    party.barrier("ready", ASK + SLACK).await?;
    let step = party.step(&format!("migrate {from} → {to}, has to fail")).await?;
    let meddle = async { if block { interrupt(party, &vm, part, spec, None).await } else { Ok(()) } };
    let (meddled, ended) = tokio::join!(meddle, party.migrate(&vm, &from, &to, spec));
    meddled?;
    let why = match ended {
        Ok(None) => "between others".to_owned(),
        Ok(Some(migrated)) if migrated.cancelled => "it was cancelled where it got nowhere".to_owned(),
        Ok(Some(_)) => {
            let title = "the transfer completed, which it could not";
            return Err(our_fault(Report::new(ErrorCode::MigrationRefused, title)));
        }
        // What the source says decides; the other side learns of it.
        Err(Failure::Caused(cause)) if is_cut_off(cause.report.code) => cause.report.title,
        Err(Failure::Followed(_)) if part == Part::Destination => "the source gave it up".to_owned(),
        Err(failure) => return Err(failure),
    };
    step.done(why).await?;
    party.barrier("given up", ASK + SLACK).await
}

/// How a transfer ends that is cut off.
fn is_cut_off(code: ErrorCode) -> bool {
    use ErrorCode::{DestinationLeft, DestinationUnreachable, MigrationFailed, MigrationTimeout};
    matches!(code, MigrationTimeout | MigrationFailed | DestinationUnreachable | DestinationLeft)
}

/// Once the transfer is under way, the destination drops its packets, for a while or until told otherwise.
pub(super) async fn interrupt(
    party: &Party,
    vm: &Name,
    part: Part,
    spec: &MigrationSpec,
    pause: Option<Duration>,
) -> Result<(), Failure> {
    if part == Part::Source {
        let until = Instant::now() + BEGINS;
        loop {
            let info = party.vm(vm.clone()).monitor("query-migrate", Value::Null).await?;
            if info["ram"]["transferred"].as_u64().unwrap_or(0) >= UNDER_WAY {
                break;
            }
            if Instant::now() >= until {
                let title = format!("the transfer was not under way within {} s", BEGINS.as_secs());
                return Err(our_fault(Report::new(ErrorCode::MigrationRefused, title)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    party.barrier("under way", BEGINS + SLACK).await?;
    if part == Part::Destination {
        party.cut(plane_of(spec.transport).as_slice()).await?;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
            party.cut(&[]).await?;
        }
    }
    Ok(())
}
