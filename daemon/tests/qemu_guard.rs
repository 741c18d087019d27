//! The guard of a VM, with a real QEMU: what happens when the daemon stops extending, and when the guard itself is hurt.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod places;

use std::{fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use places::{Places, setup};
use tokio::time::{Instant, timeout};
use vt_daemon::{
    cgroup::Cgroups,
    guard::{GuardError, GuardHandle, GuardSetup, GuardState, Times, clock::BootTime},
    qemu::{Vm, process::Exit, qmp::Events, remains},
};

const LONG: Duration = Duration::from_secs(60);

fn times(pause_ms: u64, kill_ms: u64, abandon_ms: u64) -> Times {
    let ms = Duration::from_millis;
    Times { pause: ms(pause_ms), kill: ms(kill_ms), abandon: ms(abandon_ms) }
}

fn guard_setup(times: Times) -> GuardSetup {
    GuardSetup { vtd: env!("CARGO_BIN_EXE_vtd").into(), times, cgroups: Cgroups::detect("vtmesh-tests".as_ref()).ok() }
}

/// A VM that runs, guarded from now on.
async fn guarded(places: &Places, times: Times) -> (Vm, GuardHandle, Events) {
    let (vm, guard, events, _) = guarded_since(places, times).await;
    (vm, guard, events)
}

/// As `guarded`, with the moment from which the deadlines count.
async fn guarded_since(places: &Places, times: Times) -> (Vm, GuardHandle, Events, BootTime) {
    let vm = Vm::start(setup("vm1"), places.vm("vm1")).await.unwrap();
    let events = vm.qmp().events();
    let renewed_at = BootTime::now();
    let guard = GuardHandle::start(vm.at(), guard_setup(times), renewed_at).await.unwrap();
    vm.qmp().cont().await.unwrap();
    (vm, guard, events, renewed_at)
}

async fn wait_event(events: &mut Events, name: &str) {
    let seen = events.wait_for(|event| event.name == name, Instant::now() + LONG).await;
    seen.unwrap_or_else(|error| panic!("no {name}: {error}"));
}

async fn wait_state(guard: &GuardHandle, state: GuardState) {
    let mut states = guard.states();
    let reached = timeout(LONG, states.wait_for(|seen| *seen == state)).await.map(|reached| reached.is_ok());
    assert_eq!(reached, Ok(true), "the guard does not come to {state:?}, it is {:?}", guard.state());
}

async fn wait_guards(guard: &GuardHandle, count: u32) {
    let deadline = Instant::now() + LONG;
    while guard.guards() < count {
        assert!(Instant::now() < deadline, "the guard is not replaced");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn finish(places: &Places, vm: Vm) {
    assert_eq!(vm.teardown().await.left, Vec::<String>::new());
    assert!(places.inventory().is_empty(), "{:?}", places.inventory());
}

/// Process id of the guard, by the folder in its words.
fn guard_pid(vm: &Vm) -> Pid {
    let dir = vm.run_dir().to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut guards = pids.filter(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|b| *b == 0).any(|word| word == dir.as_bytes()) && words.split(|b| *b == 0).any(|w| w == b"guard")
    });
    Pid::from_raw(guards.next().expect("a guard"))
}

#[tokio::test]
async fn a_vm_that_nobody_extends_is_paused_then_killed() {
    let places = Places::new();
    let (vm, guard, mut events, renewed_at) = guarded_since(&places, times(2000, 5000, 5000)).await;
    // The daemon is gone: nothing but the guard is left to act.
    wait_event(&mut events, "STOP").await;
    let paused_after = BootTime::now().since(renewed_at);
    assert!(!vm.qmp().query_status().await.unwrap().running);
    wait_state(&guard, GuardState::Paused).await;
    let exit = timeout(LONG, vm.process().ended()).await.unwrap();
    assert_eq!(exit, Exit::Signal(9));
    let killed_after = BootTime::now().since(renewed_at);
    assert!(paused_after >= Duration::from_millis(2000), "paused too early: {paused_after:?}");
    assert!(killed_after >= Duration::from_millis(5000), "killed too early: {killed_after:?}");
    assert!(matches!(guard.permit().await, Err(GuardError::VmEnded | GuardError::Absent(_))));
    // It writes after it has acted.
    let deadline = Instant::now() + LONG;
    loop {
        let log = fs::read_to_string(vm.evidence().join("guard.log")).unwrap();
        if log.contains("stop") && log.contains("killed") {
            break;
        }
        assert!(Instant::now() < deadline, "the guard does not say what it did: {log}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    finish(&places, vm).await;
}

#[tokio::test]
async fn a_vm_that_is_extended_runs_on() {
    let places = Places::new();
    let (vm, guard, _events) = guarded(&places, times(5000, 7000, 7000)).await;
    let until = Instant::now() + Duration::from_secs(8);
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    while Instant::now() < until {
        ticks.tick().await;
        guard.extend(BootTime::now());
    }
    assert_eq!(guard.state(), GuardState::Watching);
    assert!(vm.qmp().query_status().await.unwrap().running);
    finish(&places, vm).await;
}

#[tokio::test]
async fn what_qemu_is_told_through_its_guard_is_answered_as_qemu_answers() {
    let places = Places::new();
    let (vm, guard, _events) = guarded(&places, times(60_000, 60_000, 60_000)).await;
    // No post-copy is under way, which only QEMU knows.
    for (what, answer) in
        [("migrate-pause", guard.break_off().await), ("migrate-recover", guard.listen("tcp:127.0.0.1:0").await)]
    {
        let why = match answer {
            Err(GuardError::Refused(why)) => why,
            other => panic!("{what}: {other:?}"),
        };
        assert!(why.to_lowercase().contains("postcopy"), "{what}: {why}");
    }
    assert!(vm.qmp().query_status().await.unwrap().running);
    finish(&places, vm).await;
}

#[tokio::test]
async fn a_paused_vm_goes_on_only_by_a_permit() {
    let places = Places::new();
    let (vm, guard, mut events) = guarded(&places, times(1000, 60_000, 60_000)).await;
    wait_event(&mut events, "STOP").await;
    wait_state(&guard, GuardState::Paused).await;
    // Not renewed: no permit.
    assert!(matches!(guard.permit().await, Err(GuardError::Refused(_))));
    // Somebody lets it run all the same: it is stopped again.
    vm.qmp().cont().await.unwrap();
    wait_event(&mut events, "RESUME").await;
    wait_event(&mut events, "STOP").await;
    wait_state(&guard, GuardState::Paused).await;
    // Renewed, but the epoch not yet read: it stays as it is. The answer to an order comes after its effect.
    guard.extend(BootTime::now());
    assert!(!vm.qmp().query_status().await.unwrap().running);
    // Renewed and read. On a loaded machine a second may pass between the two: then again.
    let deadline = Instant::now() + LONG;
    loop {
        guard.extend(BootTime::now());
        match guard.permit().await {
            Ok(()) => break,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
    wait_event(&mut events, "RESUME").await;
    finish(&places, vm).await;
}

#[tokio::test]
async fn a_vm_that_stood_is_not_started_by_its_guard() {
    let places = Places::new();
    let vm = Vm::start(setup("vm1"), places.vm("vm1")).await.unwrap();
    let guard = GuardHandle::start(vm.at(), guard_setup(times(500, 60_000, 60_000)), BootTime::now()).await.unwrap();
    wait_state(&guard, GuardState::Paused).await;
    let deadline = Instant::now() + LONG;
    loop {
        guard.extend(BootTime::now());
        match guard.permit().await {
            Ok(()) => break,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
    assert!(!vm.qmp().query_status().await.unwrap().running);
    finish(&places, vm).await;
}

#[tokio::test]
async fn a_qemu_that_does_not_stop_is_killed() {
    let places = Places::new();
    let (vm, _guard, _events) = guarded(&places, times(1500, 3000, 600_000)).await;
    // Its main loop hangs: `stop` cannot return.
    kill(Pid::from_raw(vm.pid() as i32), Signal::SIGSTOP).unwrap();
    let exit = timeout(LONG, vm.process().ended()).await.expect("it should have been killed");
    assert_eq!(exit, Exit::Signal(9));
    finish(&places, vm).await;
}

#[tokio::test]
async fn a_guard_that_is_killed_is_replaced_and_its_memory_kept() {
    let places = Places::new();
    let (vm, guard, mut events) = guarded(&places, times(3000, 60_000, 60_000)).await;
    let first = guard_pid(&vm);
    kill(first, Signal::SIGKILL).unwrap();
    wait_guards(&guard, 2).await;
    wait_event(&mut events, "STOP").await;
    wait_state(&guard, GuardState::Paused).await;
    let second = guard_pid(&vm);
    assert_ne!(first, second);
    // Killed while the VM stands paused: the next one keeps it so, even though it was just extended.
    let deadline = Instant::now() + LONG;
    while !vm.run_dir().join("guard.json").exists() {
        assert!(Instant::now() < deadline, "the guard does not write down what it did");
        tokio::task::yield_now().await;
    }
    guard.extend(BootTime::now());
    kill(second, Signal::SIGKILL).unwrap();
    wait_guards(&guard, 3).await;
    wait_state(&guard, GuardState::Paused).await;
    vm.qmp().cont().await.unwrap();
    wait_event(&mut events, "RESUME").await;
    wait_event(&mut events, "STOP").await;
    finish(&places, vm).await;
}

#[tokio::test]
async fn a_guard_outlives_its_daemon_and_is_found_again() {
    let places = Places::new();
    let (vm, guard, _events) = guarded(&places, times(60_000, 80_000, 80_000)).await;
    let pid = guard_pid(&vm);
    drop(guard);
    let again = GuardHandle::start(vm.at(), guard_setup(times(60_000, 80_000, 80_000)), BootTime::now()).await.unwrap();
    assert_eq!((guard_pid(&vm), again.state()), (pid, GuardState::Watching));
    // A second guard of the same VM refuses to be one.
    let stat = fs::read_to_string(format!("/proc/{}/stat", vm.pid())).unwrap();
    let start_ticks = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().to_owned();
    let words = vt_daemon::guard::program::Words {
        run_dir: vm.run_dir().to_owned(),
        pid: vm.pid(),
        start_ticks: start_ticks.parse().unwrap(),
        renewed_at: BootTime::now(),
        times: Times::default(),
    };
    let second = tokio::process::Command::new(env!("CARGO_BIN_EXE_vtd")).arg("guard").args(words.to_args()).output();
    let second = timeout(LONG, second).await.unwrap().unwrap();
    assert_eq!(second.status.code(), Some(vt_daemon::guard::program::EXIT_TAKEN), "{second:?}");
    // Released: the VM is left as it is.
    again.release().await.unwrap();
    assert!(vm.qmp().query_status().await.unwrap().running);
    finish(&places, vm).await;
}

/// What shows that it is the guard that acts: while it is frozen, nothing happens; once it wakes, it acts at once.
#[tokio::test]
async fn a_frozen_guard_lets_the_vm_run_and_kills_it_when_it_wakes() {
    let places = Places::new();
    let (vm, guard, _events) = guarded(&places, times(4000, 5000, 5000)).await;
    guard.extend(BootTime::now());
    let frozen = guard_pid(&vm);
    kill(frozen, Signal::SIGSTOP).unwrap();
    let ended = timeout(Duration::from_secs(7), vm.process().ended()).await;
    assert!(ended.is_err(), "somebody else ended the VM");
    assert!(vm.qmp().query_status().await.unwrap().running);
    kill(frozen, Signal::SIGCONT).unwrap();
    assert_eq!(timeout(LONG, vm.process().ended()).await.unwrap(), Exit::Signal(9));
    finish(&places, vm).await;
}

#[tokio::test]
async fn everything_of_a_guarded_vm_is_cleared_by_its_folder_alone() {
    let places = Places::new();
    let (vm, guard, _events) = guarded(&places, times(60_000, 80_000, 80_000)).await;
    let run_dir = vm.run_dir().to_owned();
    drop((vm, guard));
    assert!(places.inventory().iter().any(|line| line.starts_with("process")));
    assert_eq!(remains::clear(&run_dir), Vec::<String>::new());
    assert!(places.inventory().is_empty(), "{:?}", places.inventory());
}
