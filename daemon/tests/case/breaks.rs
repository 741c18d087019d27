//! What goes wrong: each with one cause, the right verdict, and nothing left.
//!
//! Cases that need a guest run its party in the test, so that things can be broken at a chosen moment.

use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use vt_daemon::{
    guard::{GuardState, clock::BootTime},
    party::{Party, attempt::LocalAttempt},
    qemu::{binaries::Binaries, qmp::RunState},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, MigrationId, Name, VmId},
    party::{Failure, Migrated, StartVm},
    verdict::{Blame, Consequence, Outcome, Verdict},
    vm::{Backend, MigrationSpec},
};
use vt_sync::{
    State,
    command::{ExpireSession, VoteDestLoaded, VoteSourceCompleted},
    state::Phase,
};

use crate::in_process::{LONG, World, real, shell};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn small(boot_timeout: Duration) -> StartVm {
    StartVm {
        vm: name("vm1"),
        image: name("tiny"),
        memory_mib: 128,
        cpus: 1,
        machine: None,
        cpu_model: None,
        accelerator: None,
        extra_args: Vec::new(),
        backend: Backend::Qmp,
        io_thread: false,
        boot_timeout_ms: boot_timeout.as_millis() as u64,
        no_wait: false,
        drives: Vec::new(),
        check_images: false,
        nics: Vec::new(),
    }
}

/// So slow that a transfer is under way for as long as a test wants.
fn slow(timeout: Duration) -> MigrationSpec {
    let mut spec = MigrationSpec { timeout_ms: timeout.as_millis() as u64, ..MigrationSpec::default() };
    spec.parameters.insert("max-bandwidth".into(), 1 << 20);
    spec
}

fn cause(failure: &Failure) -> (Blame, &Report) {
    match failure {
        Failure::Caused(cause) => (cause.blame, &cause.report),
        Failure::Followed(consequence) => panic!("a consequence: {consequence:?}"),
    }
}

/// Two hosts, a guest on the first, and the parties in the test's hands.
struct Pair {
    world: World,
    attempt: AttemptId,
    one: Arc<Party>,
    two: Arc<Party>,
}

type Move = Result<Option<Migrated>, Failure>;

impl Pair {
    async fn new() -> Self {
        Self::on(World::new(2, shell("exec sleep 10000")).await).await
    }

    async fn on(world: World) -> Self {
        let attempt = world.begin("idle", 2, &[], Duration::from_secs(1800));
        let (one, two) = tokio::join!(world.act(0, attempt), world.act(1, attempt));
        one.vm(name("vm1")).start(small(Duration::from_secs(300))).await.unwrap();
        Self { world, attempt, one: Arc::new(one), two: Arc::new(two) }
    }

    fn local(&self, place: usize) -> Arc<LocalAttempt> {
        self.world.hosts[place].supervisor.attempt(self.attempt).unwrap()
    }

    fn id(&self, number: u32) -> MigrationId {
        MigrationId { vm: VmId { attempt: self.attempt, name: name("vm1") }, number }
    }

    /// Both parties call the move; their answers when both have one.
    fn go(&self, spec: MigrationSpec) -> tokio::task::JoinHandle<(Move, Move)> {
        let (one, two) = (self.one.clone(), self.two.clone());
        tokio::spawn(async move {
            let (vm, from, to) = (name("vm1"), name("host1"), name("host2"));
            tokio::join!(one.migrate(&vm, &from, &to, &spec), two.migrate(&vm, &from, &to, &spec))
        })
    }

    /// Waits until the transfer is under way.
    async fn sending(&self) {
        let qmp = self.local(0).vm(&name("vm1")).unwrap().qemu.qmp().clone();
        let deadline = Instant::now() + LONG;
        while qmp.query_migrate().await.unwrap().ram.is_none_or(|ram| ram.transferred < 1 << 20) {
            assert!(Instant::now() < deadline, "no transfer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The guest runs on the host at `place`, and is the guest it was.
    async fn runs_on(&self, place: usize) {
        let vm = self.local(place).vm(&name("vm1")).unwrap();
        assert_eq!(vm.qemu.qmp().query_status().await.unwrap().state, RunState::Running);
        let party = if place == 0 { &self.one } else { &self.two };
        let (status, output) = party.guest(&name("vm1")).run("echo alive", 2 * LONG).await.unwrap();
        assert!(status == 0 && output.contains("alive"), "{output}");
        let owner = self.world.shared.now().vms[vm.qemu.id()].owner;
        assert_eq!(owner, self.world.hosts[place].id);
    }

    async fn finish(self, expected: Verdict) {
        for party in [&self.one, &self.two] {
            party.finish(Outcome::Passed { remark: None }).await.unwrap();
        }
        assert_eq!(self.world.verdict().await.0, expected);
        self.world.assert_clean().await;
    }
}

/// Renews the session of a host while it is wanted.
struct Renewals {
    wanted: tokio::sync::watch::Sender<bool>,
    _renewing: AbortOnDropHandle<()>,
}

impl Renewals {
    fn of(world: &World, place: usize) -> Self {
        let (renew, mut wanted) = tokio::sync::watch::channel(true);
        let supervisor = world.hosts[place].supervisor.clone();
        let renewing = tokio::spawn(async move {
            loop {
                if *wanted.borrow_and_update() {
                    supervisor.session_opened(0);
                    supervisor.renewed(BootTime::now());
                }
                let _ = tokio::time::timeout(Duration::from_millis(300), wanted.changed()).await;
            }
        });
        Self { wanted: renew, _renewing: AbortOnDropHandle::new(renewing) }
    }

    fn stop(&self) {
        self.wanted.send_replace(false);
    }

    fn go_on(&self) {
        self.wanted.send_replace(true);
    }
}

fn phase(state: &State, id: &MigrationId) -> Option<Phase> {
    state.migration(id).map(|migration| migration.phase.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_dies_in_the_transfer_is_told_and_the_guest_goes_on_and_moves_later() {
    let pair = Pair::new().await;
    let moving = pair.go(slow(LONG * 10));
    pair.sending().await;
    pair.local(1).incoming(&pair.id(1)).unwrap().vm().unwrap().qemu.process().kill().unwrap();
    let (source, destination) = moving.await.unwrap();
    let failure = source.unwrap_err();
    let (blame, report) = cause(&failure);
    assert_eq!((blame, report.code), (Blame::Product, ErrorCode::DestinationLeft), "{report:?}");
    let followed = destination.unwrap_err();
    assert!(matches!(followed, Failure::Followed(Consequence::PeerGone(_))), "{followed:?}");
    pair.runs_on(0).await;
    // The next one is another movement, and completes.
    let (source, destination) = pair.go(MigrationSpec::default()).await.unwrap();
    let result = source.unwrap().unwrap().result.unwrap();
    // The bandwidth of the first one is not that of the second: at 1 MiB/s it would take much longer.
    assert!(result.total_ms < 60_000, "{} ms", result.total_ms);
    assert!(destination.unwrap().unwrap().resume_ms.is_some());
    pair.runs_on(1).await;
    pair.finish(Verdict::Pass).await;
}

/// A transfer in which the guard of one side ends its QEMU. The source says why, and it is our side's fault; the
/// destination follows.
async fn guard_ends_its_qemu_in_the_transfer(side: usize) -> (Pair, Report) {
    let mut world = World::new(2, shell("exec sleep 10000")).await;
    world.guard_soon(side).await;
    let renewals = Renewals::of(&world, side);
    let pair = Pair::on(world).await;
    let moving = pair.go(slow(LONG * 10));
    pair.sending().await;
    renewals.stop();
    let (source, destination) = tokio::time::timeout(2 * LONG, moving).await.unwrap().unwrap();
    let failure = source.unwrap_err();
    let (blame, report) = cause(&failure);
    assert_eq!((blame, report.code), (Blame::Infrastructure, ErrorCode::VmFenced), "{report:?}");
    let report = report.clone();
    assert!(matches!(destination.unwrap_err(), Failure::Followed(Consequence::PeerGone(_))));
    (pair, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_its_guard_ends_in_the_transfer_is_our_sides_fault_and_the_guest_goes_on() {
    let (pair, report) = guard_ends_its_qemu_in_the_transfer(1).await;
    assert!(report.title.contains("destination") && report.title.contains("guard"), "{report:?}");
    pair.runs_on(0).await;
    pair.finish(Verdict::Pass).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_its_guard_ends_in_the_transfer_is_our_sides_fault() {
    let (pair, _) = guard_ends_its_qemu_in_the_transfer(0).await;
    pair.finish(Verdict::Pass).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_takes_too_long_is_cancelled_and_the_guest_goes_on() {
    let pair = Pair::new().await;
    let (source, destination) = pair.go(slow(Duration::from_secs(2))).await.unwrap();
    let failure = source.unwrap_err();
    let (blame, report) = cause(&failure);
    assert_eq!((blame, report.code), (Blame::Product, ErrorCode::MigrationTimeout), "{report:?}");
    assert!(matches!(destination.unwrap_err(), Failure::Followed(Consequence::PeerGone(_))));
    pair.runs_on(0).await;
    pair.finish(Verdict::Pass).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_in_the_transfer_is_the_products_fault_and_both_learn_it() {
    let pair = Pair::new().await;
    let moving = pair.go(slow(LONG * 10));
    pair.sending().await;
    pair.local(0).vm(&name("vm1")).unwrap().qemu.process().kill().unwrap();
    let (source, destination) = moving.await.unwrap();
    let failure = source.unwrap_err();
    let (blame, report) = cause(&failure);
    assert_eq!((blame, report.code), (Blame::Product, ErrorCode::VmLost), "{report:?}");
    assert!(matches!(destination.unwrap_err(), Failure::Followed(Consequence::PeerGone(_))));
    pair.finish(Verdict::Pass).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_cannot_be_asked_is_our_sides_fault_and_the_guest_goes_on() {
    let pair = Pair::new().await;
    pair.world.shared.faults.lock().unwrap().unreachable.insert(pair.world.hosts[1].id);
    let (source, destination) = pair.go(MigrationSpec::default()).await.unwrap();
    let failure = source.unwrap_err();
    let (blame, report) = cause(&failure);
    assert_eq!((blame, report.code), (Blame::Infrastructure, ErrorCode::DestinationUnreachable), "{report:?}");
    assert!(matches!(destination.unwrap_err(), Failure::Followed(Consequence::PeerGone(_))));
    pair.world.shared.faults.lock().unwrap().unreachable.clear();
    pair.runs_on(0).await;
    pair.finish(Verdict::Pass).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_side_lacks_starts_nothing_and_is_no_fault_of_the_product() {
    let pair = Pair::new().await;
    let mut spec = MigrationSpec::default();
    spec.capabilities.insert("no-such-capability".into(), true);
    let (source, destination) = pair.go(spec).await.unwrap();
    let failure = source.unwrap_err();
    let (blame, report) = cause(&failure);
    assert_eq!((blame, report.code), (Blame::NotApplicable, ErrorCode::CannotRunHere), "{report:?}");
    assert!(format!("{report:?}").contains("no-such-capability"), "{report:?}");
    assert!(matches!(destination.unwrap_err(), Failure::Followed(Consequence::PeerGone(_))));
    assert!(pair.local(1).incoming(&pair.id(1)).unwrap().vm().is_none(), "a QEMU was started");
    pair.runs_on(0).await;
    pair.finish(Verdict::Pass).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_party_of_the_source_that_ends_in_the_transfer_frees_the_destination() {
    let Pair { world, attempt, one, two } = Pair::new().await;
    let pair = Pair { world, attempt, one: one.clone(), two: two.clone() };
    let moving = pair.go(slow(LONG * 10));
    pair.sending().await;
    let pid = pair.world.party_pid(0, attempt).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    let (_, destination) = moving.await.unwrap();
    let failure = destination.unwrap_err();
    assert!(matches!(failure, Failure::Followed(_)), "{failure:?}");
    two.finish(failure.into()).await.unwrap();
    let (verdict, cause) = pair.world.verdict().await;
    assert_eq!((verdict, cause.unwrap().code), (Verdict::Error, ErrorCode::PartyCrashed));
    pair.world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_in_the_transfer_leaves_nothing() {
    let pair = Pair::new().await;
    let moving = pair.go(slow(LONG * 10));
    pair.sending().await;
    pair.world.cancel();
    let (verdict, cause) = pair.world.verdict().await;
    assert_eq!((verdict, cause.unwrap().code), (Verdict::Cancelled, ErrorCode::Cancelled));
    let (source, destination) = moving.await.unwrap();
    assert!(matches!(source.unwrap_err(), Failure::Followed(_)));
    assert!(matches!(destination.unwrap_err(), Failure::Followed(_)));
    pair.world.assert_clean().await;
}

/// A daemon that restarts while the guest moves: what was begun is taken up and completes.
async fn restart_in_the_transfer(place: usize) {
    let mut pair = Pair::new().await;
    let mut spec = slow(LONG * 10);
    // Some seconds: long enough for a restart in the middle.
    spec.parameters.insert("max-bandwidth".into(), 12 << 20);
    let moving = pair.go(spec);
    pair.sending().await;
    pair.world.stop_daemon(place).await;
    pair.world.start_daemon(place);
    let (source, destination) = tokio::time::timeout(5 * LONG, moving).await.unwrap().unwrap();
    assert!(source.unwrap().is_some());
    assert!(destination.unwrap().is_some());
    pair.runs_on(1).await;
    pair.finish(Verdict::Pass).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_daemon_restarts_in_the_transfer() {
    restart_in_the_transfer(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_daemon_restarts_in_the_transfer() {
    restart_in_the_transfer(1).await;
}

/// The VM had moved, and its new owner was lost before it said that it runs there: the source does not wait for its word.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_does_not_wait_for_a_new_owner_whose_session_is_over() {
    let mut pair = Pair::new().await;
    let (one, two) = (pair.one.clone(), pair.two.clone());
    let vm = name("vm1");
    let call = |party: Arc<Party>| {
        let (vm, spec) = (vm.clone(), slow(LONG * 10));
        tokio::spawn(async move { party.migrate(&vm, &name("host1"), &name("host2"), &spec).await })
    };
    let (sends, _receives) = (call(one), AbortOnDropHandle::new(call(two)));
    pair.sending().await;
    pair.world.stop_daemon(1).await;
    let (source, destination) = (pair.world.hosts[0].id, pair.world.hosts[1].id);
    let shared = &pair.world.shared;
    shared.propose(VoteSourceCompleted { migration: pair.id(1), host: source });
    shared.propose(VoteDestLoaded { migration: pair.id(1), host: destination });
    assert!(matches!(phase(&shared.now(), &pair.id(1)), Some(Phase::Moved { .. })));
    let session = shared.now().hosts[&destination].session.clone().unwrap();
    shared.propose(ExpireSession { host: destination, epoch: session.epoch, renewed: session.renewed });
    let failure = tokio::time::timeout(LONG, sends).await.expect("it is waited for").unwrap().unwrap_err();
    let Failure::Followed(Consequence::PeerGone(why)) = &failure else { panic!("{failure:?}") };
    assert!(why.contains("host2 lost its session"), "{why}");
    pair.world.start_daemon(1);
    pair.one.finish(Outcome::Followed(Consequence::PeerGone(why.clone()))).await.unwrap();
    let (verdict, cause) = pair.world.verdict().await;
    assert_eq!((verdict, cause.unwrap().code), (Verdict::Error, ErrorCode::HostLost));
    pair.world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nobody_runs_and_afterwards_the_destination_does() {
    let pair = Pair::new().await;
    let mut spec = slow(LONG * 10);
    spec.parameters.insert("max-bandwidth".into(), 16 << 20);
    let moving = pair.go(spec);
    pair.sending().await;
    pair.world.shared.faults.lock().unwrap().no_quorum = true;
    let source = pair.local(0).vm(&name("vm1")).unwrap().qemu.qmp().clone();
    let arriving = pair.local(1).incoming(&pair.id(1)).unwrap().vm().unwrap().qemu.qmp().clone();
    let deadline = Instant::now() + 2 * LONG;
    loop {
        // At no instant do both run.
        let (here, there) = (source.query_status().await.unwrap(), arriving.query_status().await.unwrap());
        assert!(!there.running, "the destination runs without a decision");
        if here.state == RunState::PostMigrate {
            break;
        }
        assert!(Instant::now() < deadline, "the transfer does not complete: {here:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!source.query_status().await.unwrap().running && !arriving.query_status().await.unwrap().running);
    assert!(matches!(phase(&pair.world.shared.now(), &pair.id(1)), Some(Phase::Prepared { .. })), "undecided");
    pair.world.shared.faults.lock().unwrap().no_quorum = false;
    let (one, two) = moving.await.unwrap();
    assert!(one.unwrap().is_some());
    // The time in which it stood for want of a decision is told.
    assert!(two.unwrap().unwrap().held_ms.unwrap() >= 500.0);
    assert!(matches!(phase(&pair.world.shared.now(), &pair.id(1)), Some(Phase::Moved { .. })));
    pair.runs_on(1).await;
    pair.finish(Verdict::Pass).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_stood_for_want_of_a_decision_is_no_fault_of_the_product() {
    let world = World::new(2, real()).await;
    let params = [
        ("mem", "128M"),
        ("mem_probe", "4M"),
        ("mig_speed", "16M"),
        ("clock_tolerance", "1500"),
        ("max_standstill", "2000"),
    ];
    let attempt = world.begin("multihost_migration", 2, &params, Duration::from_secs(1800));
    let id = MigrationId { vm: VmId { attempt, name: name("vm1") }, number: 1 };
    let prepared = |state: &State| matches!(phase(state, &id), Some(Phase::Prepared { .. })).then_some(());
    world.shared.wait("a migration", prepared).await;
    let qmp = world.hosts[0].supervisor.attempt(attempt).unwrap().vm(&name("vm1")).unwrap().qemu.qmp().clone();
    let deadline = Instant::now() + LONG;
    loop {
        let now = qmp.query_migrate().await.unwrap();
        // Both parties are done with everything that is decided before the end of the transfer.
        if now.ram.is_some_and(|ram| ram.transferred > 1 << 20) {
            world.shared.faults.lock().unwrap().no_quorum = true;
        }
        if qmp.query_status().await.unwrap().state == RunState::PostMigrate {
            break;
        }
        assert!(Instant::now() < deadline, "the transfer does not complete: {now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The fault lasts: longer than the guest may stand, and than its clock may be off.
    tokio::time::sleep(Duration::from_secs(8)).await;
    world.shared.faults.lock().unwrap().no_quorum = false;
    let (verdict, cause) = world.verdict().await;
    let cause = cause.unwrap();
    assert_eq!((verdict, cause.code), (Verdict::Error, ErrorCode::DecisionLate), "{cause:?}");
    world.assert_clean().await;
}

/// One host, a scenario that cannot start its VM: one cause, nothing left.
async fn cannot_start(change: impl FnOnce(&mut vt_daemon::party::Places), image: &str) -> (Verdict, Report) {
    let mut world = World::new(1, real()).await;
    world.stop_daemon(0).await;
    change(&mut world.hosts[0].places);
    world.start_daemon(0);
    world.begin("uptime", 1, &[("image", image), ("mem", "64M"), ("login_timeout", "2")], Duration::from_secs(600));
    let (verdict, cause) = world.verdict().await;
    world.assert_clean().await;
    (verdict, cause.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_missing_is_named() {
    let (verdict, report) = cannot_start(|_| {}, "no-such-image").await;
    assert_eq!((verdict, report.code), (Verdict::Error, ErrorCode::ImageMissing), "{report:?}");
    assert!(report.title.contains("no-such-image"));
}

/// A file system that is gone at the end of the test.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = ["-t", "tmpfs", "-o", "size=64k", "vtmesh-test"];
        let mounted = std::process::Command::new("mount").args(options).arg(dir.path()).status().unwrap();
        assert!(mounted.success(), "mount needs root");
        Self(dir)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_nothing_is_left_on_it() {
    let tiny = Tiny::new();
    let (verdict, report) = cannot_start(|places| places.disks = tiny.0.path().to_owned(), "tiny").await;
    assert_eq!((verdict, report.code), (Verdict::Error, ErrorCode::DiskFull), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_paused_without_renewals_goes_on_with_them_and_is_fenced_in_the_end() {
    let mut world = World::new(1, shell("exec sleep 10000")).await;
    world.guard_soon(0).await;
    let renewals = Renewals::of(&world, 0);
    let attempt = world.begin("idle", 1, &[], Duration::from_secs(1800));
    let one = world.act(0, attempt).await;
    one.vm(name("vm1")).start(small(Duration::from_secs(300))).await.unwrap();
    let vm = world.hosts[0].supervisor.attempt(attempt).unwrap().vm(&name("vm1")).unwrap();
    let mut states = vm.guard().unwrap().states();

    renewals.stop();
    tokio::time::timeout(LONG, states.wait_for(|state| *state == GuardState::Paused)).await.unwrap().unwrap();
    assert!(!vm.qemu.qmp().query_status().await.unwrap().running);
    renewals.go_on();
    let (status, output) = one.guest(&name("vm1")).run("echo alive", LONG).await.unwrap();
    assert!(status == 0 && output.contains("alive"), "{output}");
    assert!(vm.qemu.qmp().query_status().await.unwrap().running);

    renewals.stop();
    let failure = one.guest(&name("vm1")).run("sleep 1000", 10 * LONG).await.unwrap_err();
    let (blame, report) = cause(&failure);
    assert_eq!((blame, report.code), (Blame::Infrastructure, ErrorCode::VmFenced), "{report:?}");
    one.finish(failure.into()).await.unwrap();
    assert_eq!(world.verdict().await.0, Verdict::Error);
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_missing_or_dies_is_named_and_quoted() {
    let (verdict, report) = cannot_start(|places| places.qemus = Binaries::only("/no/such/qemu"), "tiny").await;
    assert_eq!((verdict, report.code), (Verdict::Error, ErrorCode::QemuMissing), "{report:?}");

    // Answers what it can do, and dies when it is to run something.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qemu");
    let script = "#!/bin/sh\ncase \"$*\" in *'-machine none'*) exec qemu-system-x86_64 \"$@\";; esac\n\
                  echo 'out of luck' >&2; exit 1\n";
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (verdict, report) =
        cannot_start(|places| places.qemus = Binaries::only(&path.display().to_string()), "tiny").await;
    assert_eq!((verdict, report.code), (Verdict::Error, ErrorCode::QemuDied), "{report:?}");
    assert!(format!("{report:?}").contains("out of luck"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_come_up_is_the_products_fault_and_its_console_is_quoted() {
    // Two seconds are too short for any guest here.
    let (verdict, report) = cannot_start(|_| {}, "tiny").await;
    assert_eq!((verdict, report.code), (Verdict::Fail, ErrorCode::GuestNotBooted), "{report:?}");
    assert!(report.evidence.iter().any(|(key, _)| key.contains("serial console")), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_ends_under_its_guest_is_the_products_fault() {
    let pair = Pair::new().await;
    let asking = tokio::spawn({
        let one = pair.one.clone();
        async move { one.guest(&name("vm1")).run("sleep 1000", 10 * LONG).await }
    });
    let vm = pair.local(0).vm(&name("vm1")).unwrap();
    vm.qemu.process().kill().unwrap();
    let failure = asking.await.unwrap().unwrap_err();
    let (blame, report) = cause(&failure);
    assert_eq!((blame, report.code), (Blame::Product, ErrorCode::VmLost), "{report:?}");
    pair.finish(Verdict::Pass).await;
}
