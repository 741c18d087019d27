//! `multihost_migration`: a guest that is kept busy goes from host to host and back, and is checked after every move.
//!
//! host1 boots it and turns the probes on. One round leads from host1 over every other host back to host1. Around each
//! move the owner of that moment reads the probes, gives the reading to the others at a barrier, and the new owner
//! compares. Readings are never compared by clocks of two hosts: elapsed time is counted by the new owner alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    party::{Failure, Migrated, VmStarted},
    probe::{ClockReport, DISK_DATA_OFFSET, DiskStart, DiskStarted, Empty, MemStart, NetStarted, Request},
    verdict::{Blame, Cause},
    vm::MigrationSpec,
};

use super::{
    Scenario,
    checks::{Allowed, Checked, judge, read},
    settings::{ALIASES, LIMITS, PARAMS, Settings},
    transfer,
};
use crate::{
    guest::checks::Snapshot,
    party::{Party, failure::caused, our_fault},
};

/// Port of the echo in the guest.
const ECHO_PORT: u16 = 7007;
const ASK: Duration = Duration::from_secs(120);
/// The part of a barrier's deadline that covers our own work.
const SLACK: Duration = Duration::from_secs(120);

pub(super) const SCENARIO: Scenario = Scenario {
    name: "multihost_migration",
    summary: "moves a busy VM from host to host and back, and checks it after every move",
    hosts: (2, 64),
    params: PARAMS,
    aliases: ALIASES,
    types: &["migration_multi_host"],
    limits: LIMITS,
    check: |params| Settings::read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

/// What host1 tells the others of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Booted {
    address: Option<std::net::Ipv4Addr>,
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let settings = Settings::read(party.params()).map_err(|error| {
        let report = Report::new(ErrorCode::BadParameter, error.to_string());
        Failure::Caused(Cause { blame: Blame::Infrastructure, report })
    })?;
    let vm: Name = "vm1".parse().map_err(|_| our_fault(Report::new(ErrorCode::Internal, "vm1 is no name")))?;
    let hosts = party.hosts().to_vec();
    let home = party.me() == &hosts[0];

    let mut booted = None;
    if home {
        booted = Some(boot(party, &vm, &settings).await?);
    }
    let told = party.exchange("booted", &booted, settings.vm.login_timeout + SLACK).await?;
    let address = told.into_iter().find_map(|(_, booted)| booted).and_then(|booted: Booted| booted.address);

    let mut figures = Figures::default();
    for round in 1..=settings.rounds {
        for (place, from) in hosts.iter().enumerate() {
            let to = &hosts[(place + 1) % hosts.len()];
            let leg = Leg { party, vm: &vm, from, to, settings: &settings, address };
            leg.run(&format!("round {round}"), &mut figures).await?;
        }
    }

    if home && !party.welcome().keep {
        let step = party.step("stop").await?;
        party.vm(vm.clone()).stop().await?;
        step.done("").await?;
    }
    party.barrier("end", SLACK).await?;
    figures.tell(party);
    Ok(address.is_none().then(|| "the guest has no network card here: its address was not checked".to_owned()))
}

async fn boot(party: &Party, vm: &Name, settings: &Settings) -> Result<Booted, Failure> {
    let step = party.step("boot").await?;
    let started = party.vm(vm.clone()).start(settings.vm.start()).await?;
    party.metric("boot_ms", started.boot_ms);
    step.done(described(&started)).await?;

    let step = party.step("login").await?;
    let guest = party.guest(vm);
    guest.login(settings.vm.login_timeout).await?;
    step.done("").await?;

    let step = party.step("probes on").await?;
    let seed = u64::from(party.welcome().attempt.number) << 32 ^ party.welcome().attempt.case.job.0;
    let memory = MemStart { pages: settings.probe_pages, seed, rewrite_bytes_per_second: settings.rewrite_bytes_s };
    let _: Empty = guest.probe(Request::MemStart(memory), ASK).await?;
    let disk = DiskStart {
        device: "/dev/vda".to_owned(),
        offset: DISK_DATA_OFFSET,
        bytes: settings.disk_bytes,
        seed,
        interval_ms: 20,
    };
    let _: DiskStarted = guest.probe(Request::DiskStart(disk), ASK).await?;
    let _: NetStarted = guest.probe(Request::NetStart { port: ECHO_PORT }, ASK).await?;
    if let Some(port) = settings.beacon {
        let _: NetStarted = guest.probe(Request::BeaconStart { port }, ASK).await?;
    }
    let mut note =
        format!("memory {} pages at {:.1} MB/s", settings.probe_pages, settings.rewrite_bytes_s as f64 / 1e6);
    if started.address.is_some() {
        let micros = guest.tcp_echo(ECHO_PORT, ASK).await?;
        note.push_str(&format!(", echo in {micros} µs"));
    }
    step.done(note).await?;
    Ok(Booted { address: started.address })
}

/// How a VM runs, for people.
pub(super) fn described(started: &VmStarted) -> String {
    let VmStarted { accelerator, accelerator_reason, machine, cpu_model, qemu_version, boot_ms, .. } = started;
    let accelerator = format!("{accelerator:?}").to_uppercase();
    format!(
        "up in {:.1} s · QEMU {qemu_version}, {machine}, {cpu_model}, {accelerator} ({accelerator_reason})",
        *boot_ms as f64 / 1000.0
    )
}

/// One move of the VM.
struct Leg<'a> {
    party: &'a Party,
    vm: &'a Name,
    from: &'a Name,
    to: &'a Name,
    settings: &'a Settings,
    address: Option<std::net::Ipv4Addr>,
}

impl Leg<'_> {
    /// A move that is to be cancelled is followed by one that is not.
    async fn run(&self, round: &str, figures: &mut Figures) -> Result<(), Failure> {
        let spec = &self.settings.spec;
        if transfer::is_cancelled(spec) {
            self.go(&format!("{round}, cancelled"), spec, self.from, figures).await?;
            return self.go(&format!("{round}, again"), &transfer::undisturbed(spec), self.to, figures).await;
        }
        self.go(round, spec, self.to, figures).await
    }

    /// One migration, after which the VM runs at `holder`.
    async fn go(&self, round: &str, spec: &MigrationSpec, holder: &Name, figures: &mut Figures) -> Result<(), Failure> {
        let Self { party, vm, from, to, .. } = self;
        let way = format!("{from} → {to}, {round}");
        let (source, destination) = (party.me() == *from, party.me() == *to);
        figures.moves += 1;

        party.prepare_migration(vm, from, to, spec).await?;
        let mut before = None;
        if source {
            let _: ClockReport = party.guest(vm).probe(Request::ClockReset, ASK).await?;
            before = Some(read(party, vm).await?);
        }
        let told = party.exchange("before", &before, ASK + SLACK).await?;
        let begun = Instant::now();
        let before = told.into_iter().find_map(|(_, reading)| reading);
        let before = before.ok_or_else(|| {
            our_fault(Report::new(ErrorCode::Internal, "the source gave no reading").with("move", &way))
        })?;

        let step = if source || destination { Some(party.step(&format!("migrate {way}")).await?) } else { None };
        let migrated = party.migrate(vm, from, to, spec).await?;
        let held_ms = migrated.as_ref().and_then(|migrated| migrated.held_ms).unwrap_or(0.0);
        if let (Some(step), Some(migrated)) = (step, migrated) {
            if migrated.cancelled != (holder == *from) {
                let title = "the migration had completed before the moment at which it was to be cancelled";
                return Err(our_fault(Report::new(ErrorCode::MigrationRefused, title).with("move", &way)));
            }
            step.done(figures.moved(&migrated)).await?;
        }
        if party.me() == holder {
            let step = party.step(&format!("check {way}")).await?;
            let checked = self.check(&before, begun, held_ms).await?;
            let note = checked.to_string();
            figures.checked(&checked);
            let name = format!("{vm}-{}", figures.moves).parse();
            if let Ok(name) = name {
                party
                    .keep(name, &serde_json::json!({ "move": figures.moves, "from": from, "to": to, "found": checked }))
                    .await?;
            }
            step.done(note).await?;
        }
        party.barrier("checked", ASK + SLACK).await
    }

    /// `held_ms`: for how long the guest stood still for our sake.
    async fn check(&self, before: &Snapshot, begun: Instant, held_ms: f64) -> Result<Checked, Failure> {
        let Self { party, vm, settings, .. } = self;
        let guest = party.guest(vm);
        let after = read(party, vm).await?;
        let elapsed = begun.elapsed();
        let allowed = Allowed {
            clock: settings.clock_tolerance,
            standstill: settings.standstill,
            held: Duration::from_millis(held_ms as u64),
            rewriting: settings.rewrite_bytes_s > 0,
            address: self.address,
        };
        let checked = judge(before, &after, elapsed, &allowed).map_err(caused)?;
        // The same question over another way into the guest.
        let (status, output) = guest.run("cat /proc/sys/kernel/random/boot_id", ASK).await?;
        party.expect(status == 0 && output.contains(before.hello.boot_id.trim()), || {
            Report::new(ErrorCode::GuestRebooted, "the console shows another boot id than before the move")
                .with("boot id before", &before.hello.boot_id)
                .with("console", output)
        })?;
        guest.agent_ping(ASK).await?;
        if self.address.is_some() {
            guest.tcp_echo(ECHO_PORT, ASK).await?;
            guest.ssh_greeting(ASK).await?;
        }
        Ok(checked)
    }
}

/// Figures of all moves as this party saw them.
#[derive(Debug, Default)]
struct Figures {
    /// Moves so far, by whomever.
    moves: u32,
    completed: u64,
    qemu_downtime_ms: u64,
    guest_downtime_ms: Option<u64>,
    total_ms: u64,
    transferred_bytes: u64,
    least_rewritten_bytes_s: Option<u64>,
}

impl Figures {
    fn moved(&mut self, migrated: &Migrated) -> String {
        if migrated.cancelled {
            return "cancelled: the VM stays where it was".to_owned();
        }
        let Some(result) = &migrated.result else {
            let ms = migrated.resume_ms.unwrap_or(0.0);
            return format!("runs here, {ms:.1} ms after the decision");
        };
        self.completed += 1;
        self.qemu_downtime_ms = self.qemu_downtime_ms.max(result.qemu_downtime_ms);
        self.total_ms = self.total_ms.max(result.total_ms);
        self.transferred_bytes += result.ram_transferred_bytes;
        format!(
            "{} ms, downtime {} ms by QEMU, {:.1} MB, {} pages, wall {:.1} ms",
            result.total_ms,
            result.qemu_downtime_ms,
            result.ram_transferred_bytes as f64 / 1e6,
            result.normal_pages + result.duplicate_pages,
            result.wall_ms
        )
    }

    fn checked(&mut self, checked: &Checked) {
        self.guest_downtime_ms = self.guest_downtime_ms.max(Some(checked.standstill_ms));
        let least = self.least_rewritten_bytes_s.unwrap_or(u64::MAX).min(checked.rewritten_bytes_s);
        self.least_rewritten_bytes_s = Some(least);
    }

    /// A party tells only what it saw: the cluster keeps the greatest of each name.
    fn tell(&self, party: &Party) {
        if self.completed > 0 {
            party.metric("qemu_downtime_ms", self.qemu_downtime_ms);
            party.metric("total_ms", self.total_ms);
            party.metric(&format!("transferred_bytes_{}", party.me()), self.transferred_bytes);
        }
        if let Some(ms) = self.guest_downtime_ms {
            party.metric("guest_downtime_ms", ms);
        }
        if let Some(rate) = self.least_rewritten_bytes_s {
            party.metric(&format!("rewritten_bytes_s_{}", party.me()), rate);
        }
    }
}
