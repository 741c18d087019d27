//! A fixed share of the table of faults; `make faults` plays all of it.

use std::time::Duration;

use vt_sync::mutation::Mutation;
use vt_tests::faults::{
    cell::{Cell, Fault, Part},
    ground::{Cast, Ground},
    job::Job,
    notice::{Dies, measure},
    play::play,
    restart::{self, Round},
    sighting::doubles,
};

use super::disks::TINY;

fn all_green(cells: &[&str]) {
    let mut ground = Ground::new(None, None).expect("a lab with a watcher");
    for name in cells {
        let cell = Cell::named(name).unwrap_or_else(|| panic!("no cell {name}"));
        let found = play(&mut ground, cell, 1);
        println!("{found:?}");
        assert!(found.green(), "{found:#?}");
    }
}

#[test]
fn a_daemon_that_dies_in_a_move_costs_no_guest() {
    all_green(&[
        "kill-source-vtd/voted-by-one",
        "kill-destination-vtd/resumed",
        "kill-leader-vtd/moved",
        "kill-source-vtd/postcopy-active",
    ]);
}

#[test]
fn what_is_cut_off_dies_or_is_full_is_named_and_leaves_nothing() {
    all_green(&[
        "partition-source/transferring",
        "kill-destination-qemu/source-stopped",
        "kill-destination-qemu/postcopy-active",
        "full-source-disk/barrier",
    ]);
}

/// Its guest is not waited for in vain until its time to boot is over, minutes later.
#[test]
fn a_vm_whose_daemon_died_before_it_let_it_run_runs_when_the_daemon_is_back() {
    let mut ground = Ground::new(None, None).expect("a lab with a watcher");
    let cast = Cast::new(&ground.leader().unwrap(), Part::Leader);
    ground.hold(&cast.source, "vm-runs").unwrap();
    let job = Job::submit(&ground, &cast, &[]).unwrap();
    let soon = Duration::from_secs(120);
    let held = |ground: &Ground| if ground.is_held(&cast.source, "vm-runs") { Ok(()) } else { Err("no".to_owned()) };
    ground.wait("the VM to be started", soon, || held(&ground)).unwrap();
    let fault = Fault::KillDaemon(Part::Source);
    ground.make(fault, &cast).unwrap();
    ground.let_go().unwrap();
    ground.heal(fault, &cast).unwrap();
    let done = job.ends(&ground, soon).unwrap();
    let verdict = &done["cases"][0]["verdict"];
    // A busy machine may take longer over the start of a daemon than until it is called silent: an error of ours, and soon.
    assert!(verdict == "pass" || verdict == "error", "{verdict}");
}

/// The build that breaks this rule lets the guest run at its source again once the move is decided. It is told from outside,
/// and by the parties, who hear the numbers that the guest's own probe counts.
#[test]
fn a_guest_that_is_let_run_on_both_sides_is_caught_every_time() {
    let ground = Ground::separate(Some(Mutation::RunsTwice.name())).expect("a lab with a watcher");
    ground.lab().vtctl(&["image", "import", TINY, "--host", "host1"]).expect(0);
    let soon = Duration::from_secs(240);
    for round in 1..=2 {
        let cast = Cast::new(&ground.leader().unwrap(), Part::Leader);
        ground.watcher.forget();
        ground.hold(&cast.source, "source-lets-go").unwrap();
        let job = Job::submit(&ground, &cast, &[]).unwrap();
        let double = ground.wait("a second copy to be seen", soon, || {
            doubles(&ground.watcher.since(0))
                .first()
                .copied()
                .ok_or_else(|| ground.lab().vtctl(&["job", "show", &job.id]).stdout)
        });
        println!("round {round}: {:?}", double.unwrap());
        ground.let_go().unwrap();
        let case = job.ends(&ground, soon).unwrap()["cases"][0].clone();
        assert_eq!(case["verdict"], "fail", "round {round}: {case}");
        let told = case["cause"]["title"].as_str().unwrap();
        assert!(told.starts_with("two copies of the guest ran"), "round {round}: {case}");
    }
}

/// The figures are `make notice`'s; here it has to be far sooner than the barrier's own deadline, minutes away.
#[test]
fn who_waits_at_a_barrier_is_told_when_a_party_or_its_daemon_dies() {
    let mut ground = Ground::new(None, None).expect("a lab with a watcher");
    for dies in Dies::ALL {
        let ms = measure(&mut ground, dies).expect("the other is told");
        assert!(ms < 20_000, "{}: told after {ms} ms", dies.name());
    }
}

/// `make restarts` goes on, with either side and an upgrade.
#[test]
fn a_daemon_that_is_restarted_while_memory_is_on_its_way_stops_no_guest_twice() {
    let round = Round::all(1, None).next().unwrap();
    let mut ground = round.ground().expect("a lab with a watcher");
    let found = restart::play(&mut ground, &round);
    println!("{found:?}");
    assert!(found.green(), "{found:#?}");
}
