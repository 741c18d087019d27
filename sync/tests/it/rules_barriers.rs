//! Barriers: released or broken once, whichever comes first in the log.

use vt_protocol::{
    error::ErrorCode::{
        BadParameter, BarrierBroken, BarrierTimeout, CaseClosed, RequestConflict, SessionOver, TooLarge,
    },
    verdict::{Consequence, Outcome, Verdict},
};
use vt_sync::{
    Answer, Effect, bounds,
    state::{BarrierState, CaseState},
};

use crate::world::{World, attempt, h, key, passed};

fn broken(state: &BarrierState) -> bool {
    matches!(state, BarrierState::Broken { .. })
}

#[test]
fn the_last_arrival_releases_and_payloads_are_there() {
    let mut world = World::running();
    world.ok(world.arrive(1, "go", b"one"));
    assert_eq!(world.barrier("go"), BarrierState::Open);
    let last = world.ok(world.arrive(2, "go", b"two"));
    assert_eq!(last.answer, Answer::Barrier(BarrierState::Released));
    assert_eq!(last.effects, [Effect::Barrier(attempt(1), key("go", 1))]);
    let barrier = world.state.attempts[&attempt(1)].barrier("go", 1).unwrap().clone();
    assert_eq!(barrier.arrived[&h(1)].as_slice(), b"one");
    assert_eq!(barrier.arrived[&h(2)].as_slice(), b"two");
}

#[test]
fn arriving_again_is_arriving_once() {
    let mut world = World::running();
    world.ok(world.arrive(1, "go", b"one"));
    world.ok(world.arrive(1, "go", b"one"));
    assert_eq!(world.no(world.arrive(1, "go", b"other")), RequestConflict);
    world.arrives(2, "go");
    assert_eq!(world.ok(world.arrive(1, "go", b"one")).answer, Answer::Barrier(BarrierState::Released));
}

#[test]
fn a_barrier_may_want_some_parties_and_all_must_want_the_same() {
    let mut world = World::running();
    let mut alone = world.arrive(1, "self", b"");
    alone.parties = vec![h(1)];
    assert_eq!(world.ok(alone).answer, Answer::Barrier(BarrierState::Released));
    let mut not_me = world.arrive(1, "x", b"");
    not_me.parties = vec![h(2)];
    assert_eq!(world.no(not_me), BadParameter);
    let mut stranger = world.arrive(1, "x", b"");
    stranger.parties = vec![h(1), h(3)];
    assert_eq!(world.no(stranger), BadParameter);
    world.arrives(1, "y");
    let mut fewer = world.arrive(2, "y", b"");
    fewer.parties = vec![h(2)];
    assert_eq!(world.no(fewer), RequestConflict);
}

#[test]
fn a_party_that_ends_breaks_what_still_needs_it_and_nothing_else() {
    let mut world = World::running();
    world.arrives(1, "waits");
    world.arrives(1, "done");
    world.arrives(2, "done");
    world.end(2, passed());
    assert!(broken(&world.barrier("waits")));
    assert_eq!(world.barrier("done"), BarrierState::Released, "what was released stays so");
    assert_eq!(world.no(world.arrive(2, "waits", b"")), CaseClosed, "an ended party arrives nowhere");
    assert_eq!(world.no(world.arrive(1, "waits", b"")), BarrierBroken);
    assert!(broken(&world.arrives(1, "later")), "what needs an ended party is broken from the start");
    let BarrierState::Broken { missing, .. } = world.barrier("later") else { panic!() };
    assert_eq!(missing, [h(2)]);
}

#[test]
fn a_party_may_end_after_it_arrived_and_the_others_still_pass() {
    let mut world = World::running();
    world.arrives(1, "go");
    world.end(1, passed());
    assert_eq!(world.arrives(2, "go"), BarrierState::Released);
}

#[test]
fn a_deadline_breaks_and_names_the_missing() {
    let mut world = World::running();
    world.arrives(1, "go");
    let answer = world.ok(world.give_up(1, "go")).answer;
    let Answer::Barrier(BarrierState::Broken { missing, why }) = answer else { panic!("{answer:?}") };
    assert_eq!(missing, [h(2)]);
    assert!(why.contains("host2"), "{why}");
    assert_eq!(world.no(world.arrive(2, "go", b"")), BarrierBroken, "late is late");
    world.end(1, Outcome::Followed(Consequence::BarrierBroken("go".into())));
    world.end(2, Outcome::Followed(Consequence::BarrierBroken("go".into())));
    let case = world.state.case(attempt(1).case).unwrap();
    let CaseState::Done { verdict, cause } = &case.state else { panic!() };
    assert_eq!((*verdict, cause.as_ref().unwrap().code), (Verdict::Error, BarrierTimeout));
}

#[test]
fn a_deadline_after_the_release_learns_of_the_release() {
    let mut world = World::running();
    world.arrives(1, "go");
    world.arrives(2, "go");
    assert_eq!(world.ok(world.give_up(1, "go")).answer, Answer::Barrier(BarrierState::Released));
}

#[test]
fn a_fenced_party_and_an_older_epoch_arrive_nowhere() {
    let mut world = World::running();
    let mut old = world.arrive(1, "go", b"");
    old.epoch.0 -= 1;
    assert_eq!(world.no(old), CaseClosed);
    assert_eq!(world.no(world.arrive(3, "go", b"")), BadParameter);
    world.expire(2);
    assert_eq!(world.no(world.arrive(2, "go", b"")), SessionOver);
}

#[test]
fn payloads_tags_and_barriers_are_bounded() {
    let mut world = World::running();
    assert_eq!(world.no(world.arrive(1, "go", &vec![0; bounds::PAYLOAD_BYTES + 1])), TooLarge);
    assert_eq!(world.no(world.arrive(1, &"t".repeat(bounds::TEXT_BYTES + 1), b"")), TooLarge);
    let mut zero = world.arrive(1, "go", b"");
    zero.barrier.generation = 0;
    assert_eq!(world.no(zero), BadParameter);
    let full = vec![0; bounds::PAYLOAD_BYTES];
    let fits = bounds::PAYLOAD_BYTES_PER_ATTEMPT / bounds::PAYLOAD_BYTES;
    for i in 0..fits {
        world.ok(world.arrive(1, &format!("p{i}"), &full));
    }
    assert_eq!(world.no(world.arrive(1, "p", &full)), TooLarge);
    for i in fits..bounds::BARRIERS_PER_ATTEMPT {
        world.arrives(1, &format!("p{i}"));
    }
    assert_eq!(world.no(world.arrive(1, "p", b"")), TooLarge);
}

#[test]
fn generations_may_go_on_for_ever_and_what_all_left_behind_is_forgotten() {
    let mut world = World::running();
    // Together more than an attempt may hold.
    let payload = vec![7; 16 << 10];
    for generation in 1..=280 {
        for host in [1, 2] {
            let mut arrive = world.arrive(host, "round", &payload);
            arrive.barrier.generation = generation;
            world.ok(arrive);
        }
    }
    assert_eq!(world.state.attempts[&attempt(1)].barriers.len(), 1);
    assert_eq!(world.no(world.arrive(1, "round", b"")), CaseClosed, "one that was left behind is not begun anew");
}
