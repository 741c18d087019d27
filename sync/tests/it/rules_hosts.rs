//! Cluster, tokens, hosts, settings, sessions, and the memory of requests.

use vt_protocol::{
    admin::AccessRole,
    error::ErrorCode::{
        AlreadyClaimed, BadParameter, HostRemoved, HostReserved, NameTaken, RequestConflict, SessionOver, TokenExpired,
        TokenForOther, TokenRevoked, TokenUnknown, TokenUsed, TooLarge, Unclaimed, UnknownClient, UnknownHost,
    },
    ids::{ClusterId, Digest, RequestId, TokenId},
    membership::Reserved,
};
use vt_sync::{
    Answer, Request, bounds,
    command::{
        AdmitClient, CreateClientToken, ExpireSession, ExpireToken, InitCluster, OpenSession, ReleaseHost,
        RemoveClient, RemoveHost, RenewSessions, ReserveHost, RevokeToken, SetRole, SetSetting,
    },
    state::{ClientGrant, Role, SessionStatus},
};

use crate::world::{World, admit, h, new_host, secret, token};

#[test]
fn a_cluster_is_made_once_and_nothing_happens_before() {
    let mut world = World::empty();
    assert_eq!(world.no(token(2)), Unclaimed);
    let init = InitCluster { id: ClusterId(1), name: "c".parse().unwrap(), ca: Digest::of(b"ca"), host: new_host(1) };
    world.ok(init.clone());
    assert_eq!(world.no(init), AlreadyClaimed);
}

#[test]
fn a_token_admits_one_host_once() {
    let mut world = World::of(1);
    assert_eq!(world.no(admit(2)), TokenUnknown);
    world.ok(token(2));
    let mut wrong = admit(2);
    wrong.secret_hash = Digest::of(b"guess");
    assert_eq!(world.no(wrong), TokenUnknown, "a wrong secret looks like an unknown token");
    let first = world.ok(admit(2));
    assert_eq!(world.ok(admit(2)).answer, first.answer, "the same host with the same key is answered alike");
    let mut other = admit(2);
    other.host = new_host(3);
    assert_eq!(world.no(other), TokenUsed);
    let mut forged = admit(2);
    forged.host.public_key = vec![9; 44];
    assert_eq!(world.no(forged), TokenUsed, "the same id with another key is another host");
}

#[test]
fn ended_tokens_are_told_apart_and_a_refused_join_leaves_the_token() {
    let mut world = World::of(1);
    for id in 2..=5 {
        world.ok(token(id));
    }
    world.ok(RevokeToken { token: TokenId(2) });
    world.ok(RevokeToken { token: TokenId(2) });
    assert_eq!(world.no(admit(2)), TokenRevoked);
    world.ok(ExpireToken { token: TokenId(3) });
    assert_eq!(world.no(admit(3)), TokenExpired);
    assert_eq!(world.no(RevokeToken { token: TokenId(3) }), TokenExpired);
    let mut taken = admit(4);
    taken.host.name = "host1".parse().unwrap();
    assert_eq!(world.no(taken), NameTaken);
    let mut zero = admit(4);
    zero.host.id = h(0);
    assert_eq!(world.no(zero), BadParameter);
    let mut nowhere = admit(4);
    nowhere.host.addresses.clear();
    assert_eq!(world.no(nowhere), BadParameter);
    world.ok(admit(4));
    let mut same_key = admit(5);
    same_key.host.public_key = new_host(4).public_key;
    assert_eq!(world.no(same_key), NameTaken);
}

#[test]
fn a_removed_host_never_comes_back_as_it_was() {
    let mut world = World::of(2);
    world.ok(RemoveHost { host: h(2) });
    assert_eq!(world.no(RemoveHost { host: h(1) }), BadParameter, "the last host stays");
    assert_eq!(world.no(OpenSession { host: h(2), incarnation: 5, resume: false }), HostRemoved);
    world.ok(token(9));
    let mut again = admit(9);
    again.host = new_host(2);
    assert_eq!(world.no(again.clone()), HostRemoved);
    again.host.id = h(12);
    assert_eq!(world.no(again.clone()), HostRemoved, "nor with its old key");
    again.host.public_key = vec![12; 44];
    world.ok(again);
    assert_eq!(world.no(SetRole { host: h(77), role: Role::Learner }), UnknownHost);
}

#[test]
fn tokens_make_room_only_where_they_have_ended() {
    let mut world = World::of(1);
    let room = bounds::TOKENS as u64;
    for id in 0..room {
        world.ok(token(100 + id));
    }
    assert_eq!(world.no(token(1)), TooLarge);
    world.ok(RevokeToken { token: TokenId(105) });
    world.ok(token(1));
    assert!(!world.state.tokens.contains_key(&TokenId(105)));
}

#[test]
fn settings_are_bounded_and_cleared() {
    let mut world = World::of(1);
    let set = |key: String, value: &str| SetSetting { key, value: Some(value.into()) };
    for i in 0..bounds::SETTINGS {
        world.ok(set(format!("k{i}"), "v"));
    }
    assert_eq!(world.no(set("one.more".into(), "v")), TooLarge);
    world.ok(set("k0".into(), "w"));
    assert_eq!(world.no(set("k0".into(), &"x".repeat(bounds::TEXT_BYTES + 1))), TooLarge);
    world.ok(SetSetting { key: "k1".into(), value: None });
    world.ok(set("one.more".into(), "v"));
}

#[test]
fn a_verdict_that_a_renewal_has_overtaken_is_void() {
    let mut world = World::of(2);
    let (suspecting, late) = (world.suspecting(1), world.expiring(1));
    world.ok(RenewSessions { sessions: vec![(h(1), world.session(1))] });
    assert_eq!((world.no(suspecting), world.no(late)), (SessionOver, SessionOver));
    assert!(world.state.hosts[&h(1)].is_live(), "what a leader that was cut off had thought costs no barrier");
    // A daemon that was started again and resumes its session counts on it as well.
    let later = world.expiring(1);
    world.ok(OpenSession { host: h(1), incarnation: 9, resume: true });
    assert_eq!(world.no(later), SessionOver);
    world.expire(1);
}

#[test]
fn a_session_goes_on_over_a_restart_that_resumes_and_never_after_it_expired() {
    let mut world = World::of(2);
    let epoch = world.session(1);
    world.suspect(1);
    world.ok(OpenSession { host: h(1), incarnation: 2, resume: true });
    assert_eq!(world.session(1), epoch, "it carries on");
    assert!(world.state.hosts[&h(1)].is_live());
    world.ok(OpenSession { host: h(1), incarnation: 3, resume: false });
    assert_ne!(world.session(1), epoch, "it begins anew");
    let old = ExpireSession { host: h(1), epoch, renewed: epoch };
    assert_eq!(world.no(old), SessionOver, "the old one cannot expire the new one");
    let epoch = world.session(1);
    let expiring = world.expiring(1);
    world.ok(expiring);
    world.ok(OpenSession { host: h(1), incarnation: 4, resume: true });
    assert!(world.session(1) > epoch, "nothing is left to carry on");
}

#[test]
fn renewals_are_refused_host_by_host() {
    let mut world = World::of(3);
    let (one, two, three) = (world.session(1), world.session(2), world.session(3));
    world.suspect(1);
    let (suspecting, expiring) = (world.suspecting(2), world.expiring(2));
    world.ok(expiring);
    let sessions = vec![(h(1), one), (h(2), two), (h(3), vt_protocol::ids::Epoch(three.0 + 1)), (h(9), one)];
    let refused = vec![h(2), h(3), h(9)];
    assert_eq!(world.ok(RenewSessions { sessions }).answer, Answer::Renewed { refused });
    assert!(world.state.hosts[&h(1)].is_live(), "a renewal ends the suspicion");
    assert_eq!(world.state.hosts[&h(2)].session.as_ref().unwrap().status, SessionStatus::Expired);
    assert_eq!(world.no(suspecting), SessionOver);
}

#[test]
fn the_same_request_takes_effect_once_and_another_content_is_a_conflict() {
    let mut world = World::of(1);
    let id = RequestId(42);
    let request = Request::with_id(id, SetSetting { key: "a".into(), value: Some("1".into()) });
    let first = world.apply(&request).unwrap();
    assert_eq!(first.effects.len(), 1);
    world.ok(SetSetting { key: "a".into(), value: Some("2".into()) });
    let again = world.apply(&request).unwrap();
    assert_eq!((again.index, again.answer), (first.index, first.answer));
    assert!(again.effects.is_empty());
    assert_eq!(world.state.settings["a"], "2", "it was not applied again");
    let other = Request::with_id(id, SetSetting { key: "a".into(), value: Some("3".into()) });
    assert_eq!(world.apply(&other).unwrap_err().code, RequestConflict);
    // A refusal is remembered as well.
    let request = Request::new(RevokeToken { token: TokenId(77) });
    assert_eq!(world.apply(&request).unwrap_err().code, TokenUnknown);
    world.ok(token(77));
    assert_eq!(world.apply(&request).unwrap_err().code, TokenUnknown);
}

#[test]
fn the_memory_of_requests_is_bounded_and_forgets_the_oldest() {
    let mut world = World::of(1);
    let request = |i: u128| Request::with_id(RequestId(i), SetSetting { key: "a".into(), value: Some(i.to_string()) });
    let many = bounds::REQUESTS as u128 + 10;
    for i in 0..many {
        world.apply(&request(i)).unwrap();
    }
    assert!(world.state.requests.len() <= bounds::REQUESTS);
    let index = world.index;
    assert_eq!(world.apply(&request(many - 1)).unwrap().index, index, "the latest is remembered");
    assert!(world.apply(&request(0)).unwrap().index > index, "the first is forgotten");
}

fn client_token(id: u64, name: Option<&str>) -> CreateClientToken {
    let name = name.map(|name| name.parse().unwrap());
    let grant = ClientGrant { role: AccessRole::Runner, name, valid_s: 60 };
    CreateClientToken { token: TokenId(id), secret_hash: secret(), grant, made_by: "admin".into(), expires_unix_s: 1 }
}

fn enroll(id: u64, key: &[u8], name: &str) -> AdmitClient {
    AdmitClient {
        token: TokenId(id),
        secret_hash: secret(),
        key: Digest::of(key),
        name: name.parse().unwrap(),
        until_unix_s: 99,
    }
}

#[test]
fn a_client_token_admits_one_key_under_the_tokens_name() {
    let mut world = World::of(1);
    world.ok(client_token(5, Some("alice")));
    let first = world.ok(enroll(5, b"a", "mallory")).epoch();
    let (key, alice) = world.state.client_named("alice").unwrap();
    assert_eq!((key, alice.role, alice.until_unix_s), (Digest::of(b"a"), AccessRole::Runner, 99));
    assert!(world.state.client_named("mallory").is_none(), "the admin names, not the client");
    assert_eq!(world.ok(enroll(5, b"a", "mallory")).epoch(), first, "the same key again is answered alike");
    assert_eq!(world.no(enroll(5, b"b", "bob")), TokenUsed);
    let mut guess = enroll(5, b"b", "bob");
    guess.secret_hash = Digest::of(b"guess");
    assert_eq!(world.no(guess), TokenUnknown);

    world.ok(client_token(6, None));
    assert_eq!(world.no(enroll(6, b"b", "alice")), NameTaken);
    world.ok(enroll(6, b"b", "bob"));
    world.ok(RemoveClient { key: Digest::of(b"a") });
    assert!(world.state.client_named("alice").is_none());
    assert_eq!(world.no(RemoveClient { key: Digest::of(b"a") }), UnknownClient);
    assert_eq!(world.no(enroll(5, b"a", "alice")), TokenUsed, "a revoked key does not come back by its old token");
}

#[test]
fn a_token_for_a_client_admits_no_host_and_the_other_way_round() {
    let mut world = World::of(1);
    world.ok(client_token(5, None));
    assert_eq!(world.no(admit(5)), TokenForOther);
    world.ok(token(6));
    assert_eq!(world.no(enroll(6, b"a", "alice")), TokenForOther);
    world.ok(enroll(5, b"a", "alice"));
    world.ok(admit(6));
}

#[test]
fn clients_are_bounded() {
    let mut world = World::of(1);
    for id in 0..=bounds::CLIENTS as u64 {
        // Tokens that were used make room for new ones.
        world.ok(client_token(100 + id, None));
        let next = enroll(100 + id, &id.to_le_bytes(), &format!("c{id}"));
        if id < bounds::CLIENTS as u64 {
            world.ok(next);
        } else {
            assert_eq!(world.no(next), TooLarge);
        }
    }
}

#[test]
fn a_host_is_held_by_one_person_and_a_hold_that_was_prolonged_does_not_end_early() {
    let mut world = World::running();
    let hold = |by: &str, until_unix_s| {
        let hold = Reserved { by: by.into(), reason: "bisecting".into(), until_unix_s };
        ReserveHost { host: h(1), hold }
    };
    let release = |until_unix_s| ReleaseHost { host: h(1), until_unix_s };
    world.ok(hold("alice", 100));
    assert_eq!(world.no(hold("bob", 100)), HostReserved);
    assert_eq!(world.state.held_from("bob", &[h(2), h(1)]).unwrap(), "host1 is reserved by alice: bisecting");
    assert_eq!(world.state.held_from("alice", &[h(1)]), None);
    world.ok(hold("alice", 200));
    world.ok(release(Some(100)));
    assert!(world.state.held_from("bob", &[h(1)]).is_some(), "its end is another one now");
    world.ok(release(Some(200)));
    assert_eq!(world.state.held_from("bob", &[h(1)]), None);
    world.ok(hold("bob", 300));
    world.ok(release(None));
    assert!(world.state.reservations.is_empty());
}
