//! Labels, roles and cordons of hosts.

use vt_protocol::error::ErrorCode::{Cordoned, LastVoter, TooLarge, UnknownHost};
use vt_sync::{
    bounds,
    command::{Cordon, RemoveHost, SetLabels, SetRole, StartAttempt},
    state::Role,
};

use crate::world::{World, h, hosts};

fn labels(host: u64, changes: &[(&str, Option<&str>)]) -> SetLabels {
    let labels = changes.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
    SetLabels { host: h(host), labels }
}

#[test]
fn labels_are_set_and_cleared_one_by_one_and_bounded_together() {
    let mut world = World::of(1);
    world.ok(labels(1, &[("nic", Some("100g")), ("rack", Some("a"))]));
    world.ok(labels(1, &[("rack", Some("b"))]));
    world.ok(labels(1, &[("nic", None), ("absent", None)]));
    let left: Vec<_> = world.state.hosts[&h(1)].labels.clone().into_iter().collect();
    assert_eq!(left, [("rack".to_owned(), "b".to_owned())]);
    let names: Vec<String> = (0..bounds::LABELS).map(|i| format!("k{i}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), Some("v"))).collect();
    assert_eq!(world.no(labels(1, &many)), TooLarge, "with the one that is there they are too many");
    assert_eq!(world.state.hosts[&h(1)].labels.len(), 1, "a refused change changes nothing");
    assert_eq!(world.no(labels(9, &[])), UnknownHost);
}

#[test]
fn the_last_host_that_may_vote_keeps_its_vote() {
    let mut world = World::of(3);
    world.ok(SetRole { host: h(1), role: Role::Learner });
    world.ok(SetRole { host: h(2), role: Role::Witness });
    world.ok(SetRole { host: h(3), role: Role::Learner });
    assert_eq!(world.no(SetRole { host: h(2), role: Role::Learner }), LastVoter, "a witness votes too");
    world.ok(SetRole { host: h(2), role: Role::Voter });
    world.ok(SetRole { host: h(1), role: Role::Voter });
    world.ok(RemoveHost { host: h(2) });
    assert_eq!(world.no(SetRole { host: h(1), role: Role::Learner }), LastVoter);
}

#[test]
fn nothing_new_begins_on_a_cordoned_host_and_what_runs_there_goes_on() {
    let mut world = World::of(2);
    world.submit(&[&[1, 2], &[1]]);
    world.start(1, &[1, 2]);
    world.ok(Cordon { host: h(1), cordoned: true });
    assert!(world.state.busy_with(h(1)).is_some(), "its attempt goes on");
    let case = vt_protocol::ids::CaseId { job: crate::world::JOB, index: 2 };
    let begin = StartAttempt { case, number: 1, hosts: hosts(&[1]) };
    assert_eq!(world.no(begin.clone()), Cordoned);
    world.ok(Cordon { host: h(1), cordoned: false });
    assert_ne!(world.no(begin), Cordoned, "only its attempt is in the way now");
    assert_eq!(world.no(Cordon { host: h(9), cordoned: true }), UnknownHost);
}
