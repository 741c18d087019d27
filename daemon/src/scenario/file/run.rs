//! A file's acts as one party does them. All parties go through the same acts in the same order; what concerns one host is
//! done by that host alone, and the others go on to where all meet.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vt_protocol::{
    error::{ErrorCode, Report},
    party::{Failure, Migrated},
    verdict::Cause,
    vm::MigrationSpec,
};

use super::{
    act::{Act, Block, Ends, Expected, What, told_cut},
    unfold::{Program, host_name},
};
use crate::{
    party::{Party, our_fault},
    scenario::{
        cut::{cut_off, interrupt},
        journey::{ASK, Journey, Part, SLACK, product},
        settings::Settings,
    },
};

/// Most characters of a command in the name of a step.
const SHOWN: usize = 60;
/// Most characters of a guest's file that are kept in the evidence.
const KEPT: usize = 8192;

/// Runs a party to its end.
pub(super) async fn run(party: &Party, file: &str, program: Program) -> Result<Option<String>, Failure> {
    let mut running = Running { party, vms: program.vms, journeys: BTreeMap::new(), remark: None };
    for act in &program.acts {
        running.act(act).await.map_err(|failure| at_line(failure, file, act.line))?;
    }
    let remark = Journey::end_all(running.journeys.into_values().collect()).await?;
    Ok(running.remark.or(remark))
}

/// A cause of ours knows the line it came from.
fn at_line(failure: Failure, file: &str, line: u32) -> Failure {
    match failure {
        Failure::Caused(Cause { blame, report }) => {
            Failure::Caused(Cause { blame, report: report.with("step", format!("{file}:{line}")) })
        }
        followed => followed,
    }
}

struct Running<'a> {
    party: &'a Party,
    vms: Vec<(vt_protocol::ids::Name, Settings)>,
    journeys: BTreeMap<usize, Journey<'a>>,
    remark: Option<String>,
}

impl<'a> Running<'a> {
    async fn act(&mut self, act: &Act) -> Result<(), Failure> {
        let party = self.party;
        match &act.what {
            What::Start { vm, at, wait } => {
                let (name, settings) = self.vms.get(*vm).cloned().ok_or_else(|| missing(*vm))?;
                let journey = if *wait {
                    Journey::begin_at(party, name, *at, settings).await?
                } else {
                    Journey::start_at(party, name, *at, settings, false).await?
                };
                self.journeys.insert(*vm, journey);
            }
            What::Stop { vm } => {
                let journey = self.journeys.get_mut(vm).ok_or_else(|| missing(*vm))?;
                self.remark = self.remark.take().or(journey.stop().await?);
            }
            What::Migrate { vm, .. } => {
                let journey = self.journeys.get_mut(vm).ok_or_else(|| missing(*vm))?;
                migrate(journey, act).await?;
            }
            What::Meet { tag, places, deadline } => {
                let hosts: Vec<_> = places.iter().filter_map(|place| party.hosts().get(*place)).cloned().collect();
                if hosts.contains(party.me()) {
                    party.barrier_of(tag, hosts, *deadline).await?;
                }
            }
            What::Wait { places, time } if self.is_one_of(places) => {
                let step = party.step(&format!("wait {time:?}")).await?;
                tokio::time::sleep(*time).await;
                step.done("").await?;
            }
            What::Net { places, cut } if self.is_one_of(places) => {
                let step = party.step(&told_cut(cut)).await?;
                party.cut(cut).await?;
                step.done("").await?;
            }
            What::Log { places, text } if self.is_one_of(places) => party.log(text.clone()).await?,
            What::Wait { .. } | What::Net { .. } | What::Log { .. } => {}
            What::Ready { vm, .. }
            | What::Reset { vm, .. }
            | What::Guest { vm, .. }
            | What::Put { vm, .. }
            | What::Get { vm, .. }
            | What::Qmp { vm, .. }
            | What::Check { vm, .. }
            | What::LoadOn { vm, .. }
            | What::LoadGoesOn { vm, .. }
            | What::LoadOff { vm, .. } => {
                let journey = self.journeys.get(vm).ok_or_else(|| missing(*vm))?;
                if journey.is_here() {
                    in_guest(journey, act).await?;
                }
            }
        }
        Ok(())
    }

    fn is_one_of(&self, places: &[usize]) -> bool {
        let me = self.party.hosts().iter().position(|host| host == self.party.me());
        me.is_some_and(|me| places.contains(&me))
    }
}

/// The file was checked: every VM is started before it is used.
fn missing(vm: usize) -> Failure {
    our_fault(Report::new(ErrorCode::Internal, format!("VM {} of the file was not started", vm + 1)))
}

/// What is done on the host that has the guest.
async fn in_guest(journey: &Journey<'_>, act: &Act) -> Result<(), Failure> {
    let (party, line) = (journey.party, act.line);
    match &act.what {
        What::Ready { .. } => journey.awaken().await,
        What::Reset { .. } => journey.reset().await,
        What::LoadOn { load, .. } => load.start(journey).await,
        What::LoadGoesOn { load, .. } => load.check(journey).await,
        What::LoadOff { load, .. } => load.stop(journey).await,
        What::Guest { agent, command, timeout, expect, .. } => {
            let shown: String = command.chars().take(SHOWN).collect();
            let step = party.step(&format!("guest {shown}")).await?;
            let guest = journey.guest();
            let (status, output) = if *agent {
                guest.run_by_agent(command, *timeout).await?
            } else {
                guest.run(command, *timeout).await?
            };
            let told = json!({"status": status, "output": output.trim()});
            met(expect, &told, || {
                Report::new(ErrorCode::Unmet, format!("{shown:?} in the guest did not do what was expected"))
            })?;
            step.done(output.trim().lines().next().unwrap_or_default()).await
        }
        What::Put { path, text, .. } => {
            let step = party.step(&format!("put {path}")).await?;
            journey.guest().put(path, text.as_bytes(), ASK).await?;
            step.done(format!("{} bytes", text.len())).await
        }
        What::Get { path, expect, .. } => {
            let step = party.step(&format!("get {path}")).await?;
            let bytes = journey.guest().get(path, ASK).await?;
            let text: String = String::from_utf8_lossy(&bytes).chars().take(KEPT).collect();
            let found = json!({"path": path, "bytes": bytes.len(), "text": text});
            if let Ok(name) = format!("{}-line-{line}", journey.vm).parse() {
                party.keep(name, &found).await?;
            }
            met(expect, &found, || {
                Report::new(ErrorCode::Unmet, format!("the guest's file {path} is not what was expected"))
            })?;
            step.done(format!("{} bytes", bytes.len())).await
        }
        What::Qmp { command, arguments, expect, .. } => {
            let step = party.step(&format!("qmp {command}")).await?;
            let told = journey.monitor(command, arguments.clone()).await?;
            met(expect, &told, || {
                Report::new(ErrorCode::Unmet, format!("QEMU answered {command} otherwise than expected"))
            })?;
            step.done("").await
        }
        _ => answers(journey).await,
    }
}

/// The guest runs and answers on every way in.
async fn answers(journey: &Journey<'_>) -> Result<(), Failure> {
    let step = journey.party.step("the guest answers").await?;
    journey.answers().await?;
    step.done("").await
}

/// Everything expected was found.
fn met(expect: &[Expected], found: &Value, report: impl Fn() -> Report) -> Result<(), Failure> {
    for expected in expect {
        let value = expected.key.split('.').fold(found, |value, part| &value[part]);
        if let Some(instead) = expected.unmet(value) {
            let mut report = report().with("expected", expected.to_string()).with("found", instead);
            if let Some(output) = found["output"].as_str() {
                report = report.with("output", output);
            }
            return Err(product(report));
        }
    }
    Ok(())
}

async fn migrate(journey: &mut Journey<'_>, act: &Act) -> Result<(), Failure> {
    let What::Migrate { to, spec, boots, ends, block, expect, .. } = &act.what else { return Ok(()) };
    let round = format!("line {}", act.line);
    let (party, vm, part) = (journey.party, journey.vm.clone(), journey.part(*to));
    if *ends == Ends::Failed {
        return fail(journey, *to, spec, block.is_some()).await;
    }
    let meddle = async {
        match block {
            Some(Block::For(time)) => interrupt(party, &vm, part, spec, Some(*time)).await,
            Some(Block::ToTheEnd) | None => Ok(()),
        }
    };
    let moving = async {
        if *boots { journey.carry_to(*to, &round, spec).await } else { journey.go_to(*to, &round, spec).await }
    };
    let (meddled, migrated) = tokio::join!(meddle, moving);
    // Why the move failed comes before why it could not be meddled with.
    let migrated = migrated?;
    meddled?;
    let found = figures(migrated.as_ref(), journey.is_here().then(|| journey.standstill_ms()).flatten());
    // Each side knows its own part.
    let known: Vec<Expected> = expect.iter().filter(|expected| !found[&expected.key].is_null()).cloned().collect();
    met(&known, &found, || {
        Report::new(ErrorCode::Unmet, format!("the move to {} was not what was expected", host_name(Some(*to))))
    })
}

/// What a party knows of a move.
fn figures(migrated: Option<&Migrated>, standstill_ms: Option<u64>) -> Value {
    let mut found = json!({"standstill_ms": standstill_ms});
    if let Some(result) = migrated.and_then(|migrated| migrated.result.as_ref()) {
        found["qemu_downtime_ms"] = json!(result.qemu_downtime_ms);
        found["total_ms"] = json!(result.total_ms);
        found["wall_ms"] = json!(result.wall_ms);
        found["transferred_bytes"] = json!(result.ram_transferred_bytes);
        found["passes"] = json!(result.dirty_sync_count);
    }
    found
}

/// A move that has to fail: the guest goes on at its source and answers there.
async fn fail(journey: &Journey<'_>, to: usize, spec: &MigrationSpec, block: bool) -> Result<(), Failure> {
    cut_off(journey, to, spec, block).await?;
    let party = journey.party;
    match journey.part(to) {
        Part::Source => answers(journey).await?,
        Part::Destination if block => party.cut(&[]).await?,
        Part::Destination | Part::Neither => {}
    }
    party.barrier("goes on", ASK * 3 + SLACK).await
}
