//! A fixed share of the table of faults; `make faults` plays all of it.

use vt_tests::faults::{
    cell::Cell,
    ground::Ground,
    notice::{Dies, measure},
    play::play,
};

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

/// The figures are `make notice`'s; here it has to be far sooner than the barrier's own deadline, minutes away.
#[test]
fn who_waits_at_a_barrier_is_told_when_a_party_or_its_daemon_dies() {
    let mut ground = Ground::new(None, None).expect("a lab with a watcher");
    for dies in Dies::ALL {
        let ms = measure(&mut ground, dies).expect("the other is told");
        assert!(ms < 20_000, "{}: told after {ms} ms", dies.name());
    }
}
