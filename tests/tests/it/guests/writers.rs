//! An image has one writer, whatever pool it lies in: a share of what `make writers` plays with guests.

use vt_tests::{
    faults::cell::Phase,
    writers::{
        Margin, Trouble,
        given::{by_claim, by_move, ground},
    },
};

#[test]
fn a_guest_in_a_volume_of_gluster_whose_host_is_cut_off_in_a_move_is_no_second_writer_of_its_disk() {
    let mut ground = ground("gluster", Trouble::CutOff, Margin::Kept).unwrap();
    let moved = by_move(&mut ground, 1, Phase::Moved).unwrap();
    assert!(moved.is_green(), "{moved:#?}");
}

#[test]
fn a_lun_is_another_guests_only_when_a_host_that_hears_of_nothing_has_ended_its_own() {
    let ground = ground("iscsi", Trouble::Unaware, Margin::Kept).unwrap();
    let given = by_claim(&ground, 1, Trouble::Unaware).unwrap();
    assert!(given.is_green(), "{given:?}");
}

/// Its QEMU has ended, and its kernel would go on.
#[test]
fn what_a_host_that_was_cut_off_had_on_its_way_to_a_lun_never_comes() {
    let ground = ground("iscsi", Trouble::CutOff, Margin::Kept).unwrap();
    let given = by_claim(&ground, 1, Trouble::CutOff).unwrap();
    assert!(given.is_green(), "{given:?}");
}

#[test]
fn what_comes_to_a_lun_too_late_would_be_seen() {
    let ground = ground("iscsi", Trouble::CutOff, Margin::TakenOut).unwrap();
    let given = by_claim(&ground, 1, Trouble::CutOff).unwrap();
    assert!(!given.late.is_empty(), "nothing came late: {given:?}");
}
