//! A disk at a server has one writer: a share of the seeds that `make writers` plays.

use vt_tests::{
    nfs_server::NfsServer,
    writers::{Margin, play},
};

#[test]
fn a_frozen_writer_that_wakes_up_writes_no_more_and_the_watcher_would_see_it() {
    let server = NfsServer::alone();
    for seed in 1..=3 {
        let shown = play(&server, seed, Margin::Kept).unwrap();
        assert_eq!(shown.stale, 0, "seed {seed}: {shown:?}");
        assert!(shown.first > 0 && shown.second > 0, "seed {seed}: {shown:?}");
    }
    let shown = play(&server, 1, Margin::TakenOut).unwrap();
    assert!(shown.stale > 0, "without the margin the first goes on: {shown:?}");
}
