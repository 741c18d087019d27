//! VM owners and migrations: who may run a VM while it moves.

use vt_protocol::{
    error::ErrorCode::{BadParameter, CaseClosed, HostInUse, MigrationRefused, NotOwner, SessionOver, TooLarge},
    ids::Epoch,
};
use vt_sync::{
    bounds,
    command::{MigrationPrepared, OpenSession, RemoveHost},
    state::{Phase, VmState},
};

use crate::world::{World, aborts, attempt, destination_votes, finishes, h, mig, passed, source_votes, vm};

fn phase(world: &World) -> Phase {
    world.state.migration(&mig(1)).unwrap().phase.clone()
}

fn aborted(world: &World) -> bool {
    matches!(phase(world), Phase::Aborted { .. })
}

#[test]
fn a_host_that_may_run_a_vm_is_not_removed_before_its_guards_are_sure_to_have_stopped_it() {
    let mut world = World::running();
    world.claim(1);
    assert_eq!(world.no(RemoveHost { host: h(1) }), HostInUse);
    // Its silence is noticed: that frees nothing yet.
    world.suspect(1);
    assert_eq!(world.no(RemoveHost { host: h(1) }), HostInUse);
    assert_eq!(world.state.vms[&vm()].state, VmState::Owned);
    world.expire(1);
    world.ok(RemoveHost { host: h(1) });
}

#[test]
fn only_a_running_party_claims_and_only_the_owner_releases() {
    let mut world = World::running();
    assert_eq!(world.no(world.claiming(3)), BadParameter);
    let mut old = world.claiming(1);
    old.epoch = Epoch(1);
    assert_eq!(world.no(old), CaseClosed);
    let epoch = world.claim(1);
    assert_eq!(world.claim(1), epoch, "claiming again is claiming once");
    assert_eq!(world.no(world.claiming(2)), NotOwner);
    assert_eq!(world.no(world.releasing(2)), NotOwner);
    let mut stale = world.releasing(1);
    stale.epoch.0 -= 1;
    assert_eq!(world.no(stale), NotOwner);
    world.ok(world.releasing(1));
    assert!(world.state.vms.is_empty());
    assert!(world.claim(2) > epoch);
}

#[test]
fn vms_of_an_attempt_are_bounded() {
    let mut world = World::running();
    for i in 0..bounds::VMS_PER_ATTEMPT {
        let mut claim = world.claiming(1);
        claim.vm.name = format!("vm{i}").parse().unwrap();
        world.ok(claim);
    }
    let mut claim = world.claiming(1);
    claim.vm.name = "more".parse().unwrap();
    assert_eq!(world.no(claim), TooLarge);
}

#[test]
fn a_lost_session_loses_its_vms() {
    let mut world = World::running();
    world.claim(1);
    world.expire(1);
    assert_eq!(world.vm().state, VmState::Lost);
    assert_eq!(world.no(world.releasing(1)), SessionOver);
    world.ok(OpenSession { host: h(1), incarnation: 9, resume: false });
    assert_eq!(world.no(world.releasing(1)), SessionOver, "a new session does not own what the old one lost");
    world.end(2, passed());
    assert!(world.state.vms.is_empty(), "the attempt took its records along");
}

#[test]
fn both_votes_move_owner_and_writer_in_the_entry_of_the_second() {
    for source_first in [true, false] {
        let mut world = World::migrating();
        let before = world.vm();
        let first = if source_first { world.moved(source_votes(1)) } else { world.moved(destination_votes(2)) };
        assert_eq!(first, None);
        assert_eq!((world.vm().owner, world.vm().epoch), (h(1), before.epoch), "one vote moves nothing");
        let second = if source_first { world.moved(destination_votes(2)) } else { world.moved(source_votes(1)) };
        assert_eq!(second, Some(Epoch(world.index)));
        let after = world.vm();
        assert_eq!((after.owner, after.epoch, after.writer_epoch), (h(2), Epoch(world.index), Epoch(world.index)));
        // Repetitions of either vote learn of the decision.
        assert_eq!(world.moved(source_votes(1)), second);
        assert_eq!(world.moved(destination_votes(2)), second);
        assert_eq!(world.no(aborts(1)), MigrationRefused);
        assert_eq!(world.no(aborts(2)), MigrationRefused);
    }
}

#[test]
fn votes_of_the_wrong_side_or_too_early_are_refused() {
    let mut world = World::running();
    world.claim(1);
    world.begin(1, 1, 2);
    assert_eq!(world.no(source_votes(1)), MigrationRefused, "the destination is not prepared");
    let prepared = |host, address: &str| MigrationPrepared {
        migration: mig(1),
        host: h(host),
        address: address.into(),
        detail: vec![],
    };
    assert_eq!(world.no(prepared(1, "a")), MigrationRefused);
    assert_eq!(world.no(prepared(2, &"a".repeat(bounds::PREPARED_BYTES + 1))), TooLarge);
    world.ok(prepared(2, "a"));
    world.ok(prepared(2, "a"));
    assert_eq!(world.no(prepared(2, "b")), MigrationRefused, "it is prepared once");
    assert_eq!(world.no(source_votes(2)), MigrationRefused);
    assert_eq!(world.no(destination_votes(1)), MigrationRefused);
    assert_eq!(world.no(destination_votes(3)), MigrationRefused);
    assert_eq!(world.moved(source_votes(1)), None);
    assert_eq!(world.moved(source_votes(1)), None, "voting twice is voting once");
}

#[test]
fn a_migration_is_begun_by_the_owner_to_another_running_party() {
    let mut world = World::running();
    world.claim(1);
    assert_eq!(world.no(world.beginning(1, 2, 1)), NotOwner);
    let mut stale = world.beginning(1, 1, 2);
    stale.epoch.0 -= 1;
    assert_eq!(world.no(stale), NotOwner);
    assert_eq!(world.no(world.beginning(1, 1, 1)), MigrationRefused);
    assert_eq!(world.no(world.beginning(1, 1, 3)), MigrationRefused, "host 3 is no party");
    world.begin(1, 1, 2);
    world.begin(1, 1, 2);
    assert_eq!(world.no(world.beginning(2, 1, 2)), MigrationRefused, "one at a time");
    assert_eq!(world.no(world.releasing(1)), MigrationRefused);
    world.end(2, passed());
    assert!(aborted(&world), "the destination's party ended");
    world.ok(finishes(1));
    assert_eq!(world.no(world.beginning(2, 1, 2)), MigrationRefused, "nobody is there to receive it");
}

#[test]
fn before_its_vote_a_side_aborts_alone_and_after_it_never() {
    for (voter, other) in [(1, 2), (2, 1)] {
        let mut world = World::migrating();
        let before = world.vm();
        if voter == 1 {
            world.moved(source_votes(1));
        } else {
            world.moved(destination_votes(2));
        }
        assert_eq!(world.no(aborts(voter)), MigrationRefused, "it has voted");
        assert_eq!(world.no(aborts(3)), MigrationRefused, "no side of it");
        world.ok(aborts(other));
        world.ok(aborts(other));
        assert!(aborted(&world));
        assert_eq!((world.vm().owner, world.vm().epoch), (h(1), before.epoch), "the source keeps it");
        assert_eq!(world.no(source_votes(1)), MigrationRefused);
        assert_eq!(world.no(destination_votes(2)), MigrationRefused);
    }
}

#[test]
fn a_finished_migration_is_history_and_the_vm_may_move_back() {
    let mut world = World::migrating();
    assert_eq!(world.no(finishes(1)), MigrationRefused, "it is not decided");
    world.moved(source_votes(1));
    world.moved(destination_votes(2));
    assert_eq!(world.no(finishes(1)), NotOwner);
    world.ok(finishes(2));
    world.ok(finishes(2));
    assert!(world.vm().migration.is_none());
    assert!(matches!(phase(&world), Phase::Moved { .. }), "the history remembers");
    world.begin(2, 2, 1);
    assert_eq!(world.vm().migrations, 2);
}

#[test]
fn a_lost_destination_gives_the_vm_back_to_the_source_whoever_voted() {
    for (source, destination) in [(false, false), (true, false), (false, true)] {
        let mut world = World::migrating();
        if source {
            world.moved(source_votes(1));
        }
        if destination {
            world.moved(destination_votes(2));
        }
        world.expire(2);
        assert!(aborted(&world), "{source} {destination}");
        assert_eq!((world.vm().owner, world.vm().state), (h(1), VmState::Owned));
    }
}

#[test]
fn a_source_lost_before_its_vote_takes_the_vm_along() {
    for destination in [false, true] {
        let mut world = World::migrating();
        if destination {
            world.moved(destination_votes(2));
        }
        world.expire(1);
        assert!(aborted(&world));
        assert_eq!(world.vm().state, VmState::Lost);
        assert_eq!(world.no(destination_votes(2)), MigrationRefused, "half a memory is no VM");
    }
}

#[test]
fn a_source_lost_after_its_vote_leaves_the_vm_to_a_destination_that_loaded_it() {
    let mut world = World::migrating();
    world.moved(source_votes(1));
    world.expire(1);
    assert!(!aborted(&world));
    assert_eq!(world.vm().state, VmState::Lost);
    assert!(world.moved(destination_votes(2)).is_some());
    assert_eq!((world.vm().owner, world.vm().state), (h(2), VmState::Owned));
}

#[test]
fn both_lost_before_the_decision_lose_the_vm() {
    let mut world = World::migrating();
    world.moved(source_votes(1));
    world.expire(1);
    world.expire(2);
    assert!(world.state.vms.is_empty(), "nobody is left and the case is judged");
    assert!(matches!(world.state.ended[&attempt(1)].history[0].phase, Phase::Aborted { .. }));
}

#[test]
fn a_party_that_ends_before_its_vote_aborts_and_after_it_does_not() {
    let mut world = World::migrating();
    world.moved(source_votes(1));
    world.end(1, passed());
    assert!(!aborted(&world), "the source has voted: only the decision counts");
    world.end(2, passed());
    assert!(!world.state.vms.contains_key(&vm()));
    assert!(matches!(world.state.ended[&attempt(1)].history[0].phase, Phase::Aborted { .. }));
}

#[test]
fn a_number_is_used_once_also_by_a_vm_that_was_started_anew() {
    let mut world = World::migrating();
    world.ok(aborts(2));
    world.ok(finishes(1));
    world.ok(world.releasing(1));
    world.claim(1);
    assert_eq!(world.no(world.beginning(1, 1, 2)), MigrationRefused);
    world.begin(3, 1, 2);
    assert_eq!(world.no(source_votes(1)), MigrationRefused, "a late vote counts for its own movement only");
    assert_eq!(world.vm().migrations, 3);
}

#[test]
fn a_vm_that_was_paused_goes_on_where_it_is_owned_and_not_while_it_moves() {
    let mut world = World::running();
    let epoch = world.claim(1);
    assert!(world.vm().may_go_on(h(1), epoch));
    assert!(!world.vm().may_go_on(h(2), epoch) && !world.vm().may_go_on(h(1), Epoch(epoch.0 + 1)));
    world.begin(1, 1, 2);
    assert!(!world.vm().may_go_on(h(1), epoch), "a source that has completed would run beside the destination");
    world.ok(aborts(1));
    assert!(world.vm().may_go_on(h(1), epoch));
    world.expire(1);
    assert!(!world.vm().may_go_on(h(1), epoch));
}
