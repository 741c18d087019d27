//! A disk behind our own export has one writer: a share of the seeds that `make writers` plays.

use std::time::Duration;

use vt_tests::{
    nfs_server::NfsServer,
    writers::{
        Margin, Trouble,
        fence::{play, server_fills, server_goes},
    },
};

#[test]
fn a_writer_whose_host_is_frozen_or_cut_off_writes_no_more_once_the_disk_is_anothers_and_the_watcher_would_see_it() {
    let server = NfsServer::alone();
    for trouble in Trouble::ALL {
        for seed in 1..=3 {
            let shown = play(&server, seed, trouble, Margin::Kept).unwrap();
            assert_eq!(shown.stale, 0, "{trouble:?}, seed {seed}: {shown:?}");
            assert!(shown.first > 0 && shown.second > 0, "{trouble:?}, seed {seed}: {shown:?}");
        }
        let shown = play(&server, 1, trouble, Margin::TakenOut).unwrap();
        assert!(shown.stale > 0, "{trouble:?}: without the margin the first goes on: {shown:?}");
    }
}

#[test]
fn a_server_that_is_gone_for_30_s_loses_nothing_and_its_writers_only_wait() {
    let (before, after) = server_goes(&mut NfsServer::alone(), Duration::from_secs(30)).unwrap();
    assert!(before > 0 && after > 0, "{before} blocks before, {after} after");
}

#[test]
fn a_server_that_is_full_keeps_all_that_was_acknowledged_and_says_so_to_who_wants_more() {
    const ROOM_MIB: u32 = 8;
    let blocks = server_fills(&NfsServer::alone_with_room(ROOM_MIB)).unwrap();
    let most = u64::from(ROOM_MIB) << 20 >> 12;
    assert!(blocks > most / 2 && blocks <= most, "{blocks} of {most} blocks");
}
