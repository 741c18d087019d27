//! What most scenarios share: a guest is booted on host1 with its probes on, goes from host to host, and is checked after
//! every move.
//!
//! Around each move the owner of that moment reads the probes, gives the reading to the others at a barrier, and the new
//! owner compares. Readings are never compared by clocks of two hosts: elapsed time is counted by the new owner alone.
//!
//! All parties make the same calls in the same order, those included that have nothing to do: they count barriers and
//! moves alike. What only the host with the guest does stands behind [`Journey::is_here`].

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    params::{ParamError, Params},
    party::{Failure, Migrated, VmStarted},
    probe::{ClockReport, DISK_DATA_OFFSET, DiskStart, DiskStarted, Empty, Hello, MemStart, NetStarted, Request},
    verdict::{Blame, Cause},
    vm::MigrationSpec,
};

use super::{
    checks::{Allowed, Checked, judge, read},
    settings::Settings,
    transfer,
};
use crate::{
    guest::checks::Snapshot,
    party::{Guest, Party, failure::caused, our_fault},
};

/// Port of the echo in the guest.
pub(super) const ECHO_PORT: u16 = 7007;
/// How long one question to the guest may take.
pub(super) const ASK: Duration = Duration::from_secs(120);
/// The part of a barrier's deadline that covers our own work.
pub(super) const SLACK: Duration = Duration::from_secs(120);

/// Reads the parameters of a scenario that has begun: they were checked before it did.
pub(super) fn taken<T>(params: &Params, read: impl FnOnce(&Params) -> Result<T, ParamError>) -> Result<T, Failure> {
    read(params).map_err(|error| our_fault(Report::new(ErrorCode::BadParameter, error.to_string())))
}

/// Blames the product under test.
pub(super) fn product(report: Report) -> Failure {
    Failure::Caused(Cause { blame: Blame::Product, report })
}

/// A guest on its way.
pub(super) struct Journey<'a> {
    pub(super) party: &'a Party,
    pub(super) vm: Name,
    pub(super) settings: Settings,
    address: Option<std::net::Ipv4Addr>,
    /// Place of the host that has the guest.
    at: usize,
    figures: Figures,
}

/// What host1 tells the others of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Booted {
    address: Option<std::net::Ipv4Addr>,
}

impl<'a> Journey<'a> {
    /// Boots the guest on host1 and turns its probes on.
    pub(super) async fn begin(party: &'a Party, settings: Settings) -> Result<Self, Failure> {
        let journey = Self::start(party, settings, true).await?;
        if journey.is_here() {
            journey.awaken().await?;
        }
        party.barrier("awake", journey.settings.vm.login_timeout + SLACK).await?;
        Ok(journey)
    }

    /// Starts the VM on host1. Without `wait` its guest has only begun to boot afterwards.
    pub(super) async fn start(party: &'a Party, settings: Settings, wait: bool) -> Result<Self, Failure> {
        let vm: Name = "vm1".parse().map_err(|_| our_fault(Report::new(ErrorCode::Internal, "vm1 is no name")))?;
        let mut journey = Self { party, vm, settings, address: None, at: 0, figures: Figures::default() };
        let mut booted = None;
        if journey.is_here() {
            let step = party.step(if wait { "boot" } else { "start" }).await?;
            let mut wanted = journey.settings.vm.start();
            wanted.no_wait = !wait;
            let started = party.vm(journey.vm.clone()).start(wanted).await?;
            if wait {
                party.metric("boot_ms", started.boot_ms);
            }
            step.done(described(&started)).await?;
            booted = Some(Booted { address: started.address });
        }
        let told = party.exchange("booted", &booted, journey.settings.vm.login_timeout + SLACK).await?;
        journey.address = told.into_iter().find_map(|(_, booted)| booted).and_then(|booted| booted.address);
        Ok(journey)
    }

    /// Whether the guest is on this party's host.
    pub(super) fn is_here(&self) -> bool {
        self.party.me() == self.here()
    }

    /// The host that has the guest.
    pub(super) fn here(&self) -> &Name {
        &self.party.hosts()[self.at]
    }

    /// The host it goes to next.
    pub(super) fn next(&self) -> &Name {
        let hosts = self.party.hosts();
        &hosts[(self.at + 1) % hosts.len()]
    }

    /// The guest, for the party whose host has it.
    pub(super) fn guest(&self) -> Guest<'a> {
        self.party.guest(&self.vm)
    }

    /// Has the hypervisor do something.
    pub(super) async fn monitor(
        &self,
        command: &str,
        arguments: serde_json::Value,
    ) -> Result<serde_json::Value, Failure> {
        self.party.vm(self.vm.clone()).monitor(command, arguments).await
    }

    /// The guest's address on its network, where it has one.
    pub(super) fn address(&self) -> Option<std::net::Ipv4Addr> {
        self.address
    }

    /// Waits for a guest that boots, logs in and turns the probes on. For the party whose host has it.
    pub(super) async fn awaken(&self) -> Result<(), Failure> {
        let Self { party, settings, .. } = self;
        let guest = self.guest();
        let step = party.step("login").await?;
        let hello: Hello = guest.probe(Request::Hello, settings.vm.login_timeout).await?;
        guest.login(settings.vm.login_timeout).await?;
        step.done(format!("up for {:.1} s", hello.clock.boottime_ns as f64 / 1e9)).await?;

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
        if self.address.is_some() {
            let micros = guest.tcp_echo(ECHO_PORT, ASK).await?;
            note.push_str(&format!(", echo in {micros} µs"));
        }
        step.done(note).await
    }

    /// Resets the machine as its button would, and waits until the guest has booted anew, with its probes on. For the party
    /// whose host has it.
    pub(super) async fn reset(&self) -> Result<(), Failure> {
        let guest = self.guest();
        let before: Hello = guest.probe(Request::Hello, ASK).await?;
        let step = self.party.step("reset").await?;
        self.monitor("system_reset", serde_json::Value::Null).await?;
        let until = Instant::now() + self.settings.vm.login_timeout;
        loop {
            // Asked while it goes down, the old guest may answer once more.
            let now: Hello = guest.probe(Request::Hello, until.saturating_duration_since(Instant::now())).await?;
            if now.boot_id != before.boot_id {
                break;
            }
            if Instant::now() >= until {
                let title = "the guest goes on as if its machine had not been reset";
                return Err(product(Report::new(ErrorCode::GuestNotBooted, title).with("boot id", now.boot_id)));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        step.done("booted anew").await?;
        self.awaken().await
    }

    /// Moves the guest to the next host as `spec` says and checks it there. One that is to be cancelled is checked where it
    /// stays. Returns what this party knows of the move.
    pub(super) async fn go(&mut self, round: &str, spec: &MigrationSpec) -> Result<Option<Migrated>, Failure> {
        let (from, to) = (self.here().clone(), self.next().clone());
        let (party, vm) = (self.party, self.vm.clone());
        let way = format!("{from} → {to}, {round}");
        self.figures.moves += 1;

        party.prepare_migration(&vm, &from, &to, spec).await?;
        let mut before = None;
        if self.is_here() {
            let _: ClockReport = party.guest(&vm).probe(Request::ClockReset, ASK).await?;
            before = Some(read(party, &vm).await?);
        }
        let told = party.exchange("before", &before, ASK + SLACK).await?;
        let begun = Instant::now();
        let before = told.into_iter().find_map(|(_, reading)| reading);
        let before = before.ok_or_else(|| {
            our_fault(Report::new(ErrorCode::Internal, "the source gave no reading").with("move", &way))
        })?;

        let migrated = self.transfer(&way, &from, &to, spec).await?;
        if self.is_here() {
            let step = party.step(&format!("check {way}")).await?;
            let held_ms = migrated.as_ref().and_then(|migrated| migrated.held_ms).unwrap_or(0.0);
            let checked = self.check(&before, begun, held_ms).await?;
            let note = checked.to_string();
            self.figures.checked(&checked);
            let name = format!("{vm}-{}", self.figures.moves).parse();
            if let Ok(name) = name {
                let found = serde_json::json!({
                    "move": self.figures.moves, "from": from, "to": to, "found": checked
                });
                party.keep(name, &found).await?;
            }
            step.done(note).await?;
        }
        party.barrier("checked", ASK + SLACK).await?;
        Ok(migrated)
    }

    /// Moves the guest without asking it for anything: one that boots, or begins anew, has nothing to say.
    pub(super) async fn carry(&mut self, round: &str, spec: &MigrationSpec) -> Result<Option<Migrated>, Failure> {
        let (from, to) = (self.here().clone(), self.next().clone());
        self.figures.moves += 1;
        self.party.prepare_migration(&self.vm, &from, &to, spec).await?;
        self.party.barrier("before", ASK + SLACK).await?;
        let migrated = self.transfer(&format!("{from} → {to}, {round}"), &from, &to, spec).await?;
        self.party.barrier("carried", ASK + SLACK).await?;
        Ok(migrated)
    }

    /// The transfer itself, after which it is known where the guest is.
    async fn transfer(
        &mut self,
        way: &str,
        from: &Name,
        to: &Name,
        spec: &MigrationSpec,
    ) -> Result<Option<Migrated>, Failure> {
        let party = self.party;
        let cancels = transfer::is_cancelled(spec);
        let takes_part = party.me() == from || party.me() == to;
        let step = if takes_part { Some(party.step(&format!("migrate {way}")).await?) } else { None };
        let migrated = party.migrate(&self.vm, from, to, spec).await?;
        if let (Some(step), Some(migrated)) = (step, &migrated) {
            if migrated.cancelled != cancels {
                let title = "the migration had completed before the moment at which it was to be cancelled";
                return Err(our_fault(Report::new(ErrorCode::MigrationRefused, title).with("move", way)));
            }
            step.done(self.figures.moved(migrated)).await?;
        }
        if !cancels {
            self.at = (self.at + 1) % party.hosts().len();
        }
        Ok(migrated)
    }

    /// `held_ms`: for how long the guest stood still for our sake.
    async fn check(&self, before: &Snapshot, begun: Instant, held_ms: f64) -> Result<Checked, Failure> {
        let Self { party, vm, settings, .. } = self;
        let guest = self.guest();
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

    /// Ends it: the VM is stopped where it is, the figures are told. `remark`: what a reader should know although it passed.
    pub(super) async fn end(self, remark: Option<String>) -> Result<Option<String>, Failure> {
        let party = self.party;
        if self.is_here() && !party.welcome().keep {
            let step = party.step("stop").await?;
            party.vm(self.vm.clone()).stop().await?;
            step.done("").await?;
        }
        party.barrier("end", SLACK).await?;
        self.figures.tell(party);
        let unreached = || "the guest has no network card here: its address was not checked".to_owned();
        Ok(remark.or_else(|| self.address.is_none().then(unreached)))
    }
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
