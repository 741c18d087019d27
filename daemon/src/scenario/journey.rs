//! What most scenarios share: a guest is booted on host1 with its probes on, goes from host to host, and is checked after
//! every move.
//!
//! Around each move the owner of that moment reads the probes, gives the reading to the others at a barrier, and the new
//! owner compares. Readings are never compared by clocks of two hosts: elapsed time is counted by the new owner alone.
//!
//! All parties make the same calls in the same order, those included that have nothing to do: they count barriers and
//! moves alike. What only the host with the guest does stands behind [`Journey::is_here`].

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    params::{ParamError, Params},
    party::{Failure, Migrated, VmStarted},
    probe::{ClockReport, DISK_DATA_OFFSET, DiskStart, DiskStarted, Empty, Hello, MemStart, NetStarted, Request},
    verdict::{Blame, Cause},
    vm::{Accelerator, MigrationResult, MigrationSpec},
};

use super::{
    checks::{Allowed, Checked, judge, read},
    downtime::Downtime,
    drives::Contents,
    figures::Figures,
    hearing::{self, Heard, Hearing},
    settings::Settings,
    transfer,
};
use crate::{
    guest::checks::Snapshot,
    party::{Guest, Party, failure::caused, our_fault},
    qemu::flaws::{KNOWN_FAULT, unseen_writes},
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
    /// Whether its instructions are emulated.
    emulated: bool,
    /// Versions of the QEMUs that hosts run it with.
    qemus: BTreeMap<Name, String>,
    /// Place of the host that has the guest.
    at: usize,
    hearing: Option<Hearing>,
    /// What the shell of a session by ssh said of itself when that began, where one did: on the host that had the guest then.
    session: Option<String>,
    figures: Figures,
    /// What the guest showed after its last move, where that was seen here.
    last: Option<Checked>,
    /// What is known of a QEMU that it has left while it ran.
    flaw: Option<String>,
    /// Its VM was stopped.
    over: bool,
}

/// What a party is to a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Source,
    Destination,
    Neither,
}

/// A guest that is about to leave, as every party knows it.
pub(super) struct Departure {
    before: Snapshot,
    begun: Instant,
}

/// What host1 tells the others of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Booted {
    address: Option<std::net::Ipv4Addr>,
    emulated: bool,
    qemus: BTreeMap<Name, String>,
}

/// The VM of a scenario that has one.
const ONLY: &str = "vm1";

impl<'a> Journey<'a> {
    /// Boots the guest on host1 and turns its probes on.
    pub(super) async fn begin(party: &'a Party, settings: Settings) -> Result<Self, Failure> {
        Self::start(party, settings, true).await?.awake().await
    }

    /// Boots one of several guests on the host of that place and turns its probes on.
    pub(super) async fn begin_at(party: &'a Party, vm: Name, at: usize, settings: Settings) -> Result<Self, Failure> {
        Self::start_at(party, vm, at, settings, true).await?.awake().await
    }

    async fn awake(self) -> Result<Self, Failure> {
        if self.is_here() {
            self.awaken().await?;
        }
        self.party.barrier(&self.named("awake"), self.settings.vm.login_timeout + SLACK).await?;
        Ok(self)
    }

    /// Starts the VM on host1. Without `wait` its guest has only begun to boot afterwards.
    pub(super) async fn start(party: &'a Party, settings: Settings, wait: bool) -> Result<Self, Failure> {
        let vm = ONLY.parse().map_err(|_| our_fault(Report::new(ErrorCode::Internal, "vm1 is no name")))?;
        Self::start_at(party, vm, 0, settings, wait).await
    }

    /// Starts one of several VMs on the host of that place.
    pub(super) async fn start_at(
        party: &'a Party,
        vm: Name,
        at: usize,
        settings: Settings,
        wait: bool,
    ) -> Result<Self, Failure> {
        // A port that was asked for is somebody else's to listen to.
        let hearing = match settings.beacon {
            Some(_) => None,
            None => Hearing::on(hearing::port(&format!("{} {vm}", party.welcome().attempt))).await,
        };
        let mut journey = Self {
            party,
            vm,
            settings,
            address: None,
            emulated: false,
            qemus: BTreeMap::new(),
            at,
            hearing,
            session: None,
            figures: Figures::default(),
            last: None,
            flaw: None,
            over: false,
        };
        let mut booted = None;
        if journey.is_here() {
            if let Some((goal, set)) = &journey.settings.goal {
                party.log(format!("{}: {set}", journey.named(&format!("goal {goal}")))).await?;
            }
            let step = party.step(&journey.named(if wait { "boot" } else { "start" })).await?;
            let mut wanted = journey.settings.vm.start();
            wanted.no_wait = !wait;
            let started = party.vm(journey.vm.clone()).start(wanted).await?;
            if wait {
                party.metric("boot_ms", started.boot_ms);
            }
            step.done(described(&started)).await?;
            let VmStarted { address, accelerator, qemus, .. } = started;
            booted = Some(Booted { address, emulated: accelerator == Accelerator::Tcg, qemus });
        }
        let told = party.exchange(&journey.named("booted"), &booted, journey.settings.vm.login_timeout + SLACK).await?;
        if let Some(booted) = told.into_iter().find_map(|(_, booted)| booted) {
            (journey.address, journey.emulated, journey.qemus) = (booted.address, booted.emulated, booted.qemus);
        }
        Ok(journey)
    }

    /// The name of a step or barrier of this guest: guests that go at the same time meet each at its own.
    pub(super) fn named(&self, what: &str) -> String {
        if self.vm.as_str() == ONLY { what.to_owned() } else { format!("{what} ({})", self.vm) }
    }

    /// The version of the QEMU that a host runs the guest with, where it said so.
    pub(super) fn qemu_of(&self, host: &Name) -> Option<&str> {
        self.qemus.get(host).map(String::as_str)
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
        &self.party.hosts()[self.next_place()]
    }

    /// The place of that host.
    pub(super) fn next_place(&self) -> usize {
        (self.at + 1) % self.party.hosts().len()
    }

    /// What this party is to a move to the host at a place.
    pub(super) fn part(&self, to: usize) -> Part {
        match self.party.hosts().get(to) {
            _ if self.is_here() => Part::Source,
            Some(to) if to == self.party.me() => Part::Destination,
            _ => Part::Neither,
        }
    }

    /// What the guest's standstill in its last move was, ms, where that was seen here.
    pub(super) fn standstill_ms(&self) -> Option<u64> {
        self.last.as_ref().map(Checked::stood_ms)
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
        let step = party.step(&self.named("login")).await?;
        let hello: Hello = guest.probe(Request::Hello, settings.vm.login_timeout).await?;
        guest.login(settings.vm.login_timeout).await?;
        step.done(format!("up for {:.1} s, boot id {}", hello.clock.boottime_ns as f64 / 1e9, hello.boot_id.trim()))
            .await?;

        let step = party.step(&self.named("probes on")).await?;
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
        let heard = self.address.and(self.hearing.as_ref()).map(Hearing::port);
        if let Some(port) = settings.beacon.or(heard) {
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

    /// Begins a session by ssh from the host that has the guest now. It has to live as long as the journey: it is asked again
    /// after every move, from the same host.
    pub(super) async fn hold_session(&mut self) -> Result<(), Failure> {
        if self.is_here() {
            let step = self.party.step(&self.named("ssh session")).await?;
            let said = self.ask_session().await?;
            step.done(format!("shell {}", said.split_whitespace().next().unwrap_or_default())).await?;
            self.session = Some(said);
        }
        Ok(())
    }

    /// Which process of which boot the shell of the session is.
    async fn ask_session(&self) -> Result<String, Failure> {
        let (status, said) = self.guest().shell("echo $$ $(cat /proc/sys/kernel/random/boot_id)", ASK).await?;
        self.party.expect(status == 0, || {
            Report::new(ErrorCode::GuestUnreachable, "the shell of the ssh session does not work").with("output", &said)
        })?;
        Ok(said.trim().to_owned())
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
        self.go_to(self.next_place(), round, spec).await
    }

    /// The same to the host at a place.
    pub(super) async fn go_to(
        &mut self,
        place: usize,
        round: &str,
        spec: &MigrationSpec,
    ) -> Result<Option<Migrated>, Failure> {
        let migrated = self.try_to(place, round, spec).await?;
        if migrated.as_ref().is_some_and(|migrated| migrated.cancelled) && !transfer::is_cancelled(spec) {
            let title = "the transfer got nowhere, and was given up as its goal wants";
            return Err(product(Report::new(ErrorCode::MigrationTimeout, title).with("move", round)));
        }
        let arrived = migrated.as_ref().is_some_and(|migrated| !migrated.cancelled);
        if arrived && transfer::is_cancelled(spec) {
            let title = "the migration had completed before the moment at which it was to be cancelled";
            return Err(our_fault(Report::new(ErrorCode::MigrationRefused, title).with("move", round)));
        }
        Ok(migrated)
    }

    /// The same, where one that is to be cancelled may have been faster: then the guest is at the next host. For two hosts,
    /// of which each is a side.
    pub(super) async fn go_or_stay(&mut self, round: &str, spec: &MigrationSpec) -> Result<Option<Migrated>, Failure> {
        self.try_to(self.next_place(), round, spec).await
    }

    async fn try_to(&mut self, place: usize, round: &str, spec: &MigrationSpec) -> Result<Option<Migrated>, Failure> {
        let (party, vm) = (self.party, self.vm.clone());
        let (from, to) = (self.here().clone(), party.hosts()[place].clone());
        let way = self.named(&format!("{from} → {to}, {round}"));
        self.figures.moves += 1;

        let contents = Contents::before(self).await?;
        party.prepare_migration(&vm, &from, &to, spec).await?;
        let before = if self.is_here() { Some(self.reading().await?) } else { None };
        let told = party.exchange(&self.named("before"), &before, ASK + SLACK).await?;
        let before = told.into_iter().find_map(|(_, reading)| reading);
        let before = before.ok_or_else(|| {
            our_fault(Report::new(ErrorCode::Internal, "the source gave no reading").with("move", &way))
        })?;
        let departure = self.departs(before, spec);
        let migrated = self.transfer(&way, place, spec).await?;
        let step = if self.is_here() { Some(party.step(&format!("check {way}")).await?) } else { None };
        let held_ms = migrated.as_ref().and_then(|migrated| migrated.held_ms).unwrap_or(0.0);
        let result = migrated.as_ref().and_then(|migrated| migrated.result.as_ref());
        let (checked, downtime) = self.inspect(&departure, held_ms, result).await?;
        self.figures.downtime(&downtime);
        self.last = checked.clone();
        if let Some((step, checked)) = step.zip(checked) {
            self.figures.checked(&checked);
            if let Ok(name) = format!("{vm}-{}", self.figures.moves).parse() {
                let found = serde_json::json!({
                    "move": self.figures.moves, "from": from, "to": to, "found": checked, "downtime": downtime
                });
                party.keep(name, &found).await?;
            }
            step.done(format!("{checked} · {downtime}")).await?;
        }
        contents.after(self).await?;
        Ok(migrated)
    }

    /// Reads the probes of a guest that is about to leave. For the party whose host has it.
    pub(super) async fn reading(&self) -> Result<Snapshot, Failure> {
        let _: ClockReport = self.guest().probe(Request::ClockReset, ASK).await?;
        read(self.party, &self.vm, None).await.map_err(|failure| self.explained(failure))
    }

    /// From here on counts what the guest does until it is inspected.
    pub(super) fn departs(&mut self, before: Snapshot, spec: &MigrationSpec) -> Departure {
        if let Some(hearing) = &self.hearing {
            hearing.begin();
        }
        if self.emulated && !spec.offline && self.flaw.is_none() {
            self.flaw = self.qemu_of(self.here()).and_then(unseen_writes);
        }
        Departure { before, begun: Instant::now() }
    }

    /// The guest is at the next host now.
    pub(super) fn moved_on(&mut self) {
        self.at = (self.at + 1) % self.party.hosts().len();
    }

    /// Checks the guest where it is, and puts together how long it stood still. Every party calls it; what was found in the
    /// guest only its host knows. `held_ms`: for how long it stood still for our sake.
    pub(super) async fn inspect(
        &self,
        departure: &Departure,
        held_ms: f64,
        result: Option<&MigrationResult>,
    ) -> Result<(Option<Checked>, Downtime), Failure> {
        let heard = match &self.hearing {
            Some(hearing) => hearing.heard().await,
            None => None,
        };
        if let Some(again) = heard.as_ref().and_then(Heard::doubled) {
            let title = format!("two copies of the guest ran: {again} of its beacons came again");
            return Err(product(
                Report::new(ErrorCode::GuestDoubled, title).with("heard on", self.party.me().as_str()),
            ));
        }
        let silence = heard.map(|heard| u64::try_from(heard.longest.as_millis()).unwrap_or(u64::MAX));
        let checked = if self.is_here() {
            Some(self.check(departure, held_ms).await.map_err(|failure| self.explained(failure))?)
        } else {
            None
        };
        if let Some(before) = &self.session {
            let now = self.ask_session().await?;
            self.party.expect(now == *before, || {
                Report::new(ErrorCode::GuestUnreachable, "the ssh session leads to another shell than before the move")
                    .with("before", before)
                    .with("now", &now)
            })?;
        }
        let mine = Downtime::of(result, checked.as_ref().map(Checked::stood_ms), silence);
        let told = self.party.exchange(&self.named("checked"), &mine, ASK + SLACK).await?;
        let downtime = told.into_iter().fold(Downtime::default(), |all, (_, one)| all.with(one));
        Ok((checked, downtime.compared(self.emulated)))
    }

    /// What the product is blamed for, with what is known of the QEMUs that the guest has left.
    fn explained(&self, failure: Failure) -> Failure {
        match (&self.flaw, failure) {
            (Some(flaw), Failure::Caused(Cause { blame: Blame::Product, report })) => product(
                report
                    .with(KNOWN_FAULT, flaw)
                    .help("-p mig_offline=yes   (a paused guest is not hurt by it), or a newer QEMU at the source"),
            ),
            (_, failure) => failure,
        }
    }

    /// Moves the guest without asking it for anything: one that boots, or begins anew, has nothing to say.
    pub(super) async fn carry(&mut self, round: &str, spec: &MigrationSpec) -> Result<Option<Migrated>, Failure> {
        self.carry_to(self.next_place(), round, spec).await
    }

    /// The same to the host at a place.
    pub(super) async fn carry_to(
        &mut self,
        place: usize,
        round: &str,
        spec: &MigrationSpec,
    ) -> Result<Option<Migrated>, Failure> {
        let (from, to) = (self.here().clone(), self.party.hosts()[place].clone());
        self.figures.moves += 1;
        self.party.prepare_migration(&self.vm, &from, &to, spec).await?;
        self.party.barrier("before", ASK + SLACK).await?;
        let migrated = self.transfer(&format!("{from} → {to}, {round}"), place, spec).await?;
        self.party.barrier("carried", ASK + SLACK).await?;
        Ok(migrated)
    }

    /// The transfer itself, after which it is known where the guest is.
    async fn transfer(&mut self, way: &str, place: usize, spec: &MigrationSpec) -> Result<Option<Migrated>, Failure> {
        let party = self.party;
        let (from, to) = (&party.hosts()[self.at], &party.hosts()[place]);
        let takes_part = party.me() == from || party.me() == to;
        let step = if takes_part { Some(party.step(&format!("migrate {way}")).await?) } else { None };
        let migrated = party.migrate(&self.vm, from, to, spec).await?;
        if let (Some(step), Some(migrated)) = (step, &migrated) {
            step.done(self.figures.moved(migrated)).await?;
        }
        let stays = migrated.as_ref().map_or_else(|| transfer::is_cancelled(spec), |migrated| migrated.cancelled);
        if !stays {
            self.at = place;
        }
        Ok(migrated)
    }

    /// The guest runs where it is and answers on every way in. For the party whose host has it.
    pub(super) async fn answers(&self) -> Result<(), Failure> {
        let status = self.monitor("query-status", serde_json::Value::Null).await?;
        if status["running"] != true {
            let title = format!("the guest does not run on {}, where it should", self.here());
            return Err(product(Report::new(ErrorCode::GuestStopped, title).with("status", status.to_string())));
        }
        let guest = self.guest();
        let _: Hello = guest.probe(Request::Hello, ASK).await?;
        guest.login(ASK).await?;
        guest.agent_ping(ASK).await?;
        if self.address.is_some() {
            guest.ssh_greeting(ASK).await?;
        }
        Ok(())
    }

    async fn check(&self, departure: &Departure, held_ms: f64) -> Result<Checked, Failure> {
        let Self { party, vm, settings, .. } = self;
        let Departure { before, begun } = departure;
        let guest = self.guest();
        let after = read(party, vm, Some(&before.hello)).await?;
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
    pub(super) async fn end(mut self, remark: Option<String>) -> Result<Option<String>, Failure> {
        let unreached = self.stop().await?;
        self.figures.tell(self.party);
        Ok(remark.or(unreached))
    }

    /// Ends all of them; the worst figures are told.
    pub(super) async fn end_all(mut journeys: Vec<Self>) -> Result<Option<String>, Failure> {
        let (mut remark, mut figures) = (None, Figures::default());
        for journey in &mut journeys {
            remark = remark.or(journey.stop().await?);
            figures.add(&journey.figures);
        }
        if let Some(journey) = journeys.first() {
            figures.tell(journey.party);
        }
        Ok(remark)
    }

    /// Stops the VM where it is; once is enough. Returns what a reader should know.
    pub(super) async fn stop(&mut self) -> Result<Option<String>, Failure> {
        if std::mem::replace(&mut self.over, true) {
            return Ok(None);
        }
        let party = self.party;
        if self.is_here() && !party.welcome().keep {
            let step = party.step(&self.named("stop")).await?;
            party.vm(self.vm.clone()).stop().await?;
            step.done("").await?;
        }
        party.barrier(&self.named("end"), SLACK).await?;
        let unreached = || "the guest has no network card here: its address was not checked".to_owned();
        Ok(self.address.is_none().then(unreached))
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
