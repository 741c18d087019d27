//! Another authority follows: both are trusted for a while, and nobody is cut off unasked.

use vt_protocol::{
    admin::AccessRole,
    error::ErrorCode,
    ids::{Digest, TokenId},
};
use vt_sync::{
    Command,
    command::{AdmitClient, Certified, CreateClientToken, DropAuthority, RotateAuthority},
    state::{ClientGrant, TokenStatus, Uncertified},
};

use crate::world::{World, new_host};

const FIRST: &[u8] = b"ca";
const SECOND: &[u8] = b"the second authority";

fn rotate(old: &[u8], new: &[u8]) -> Command {
    RotateAuthority { old: old.to_vec(), new: new.to_vec(), cross: b"cross".to_vec() }.into()
}

fn key_of(host: u64) -> Digest {
    Digest::of(&new_host(host).public_key)
}

fn certified(key: Digest, ca: &[u8]) -> Command {
    Certified { key, ca: Digest::of(ca) }.into()
}

fn drop_old(old: &[u8], anyway: bool) -> Command {
    DropAuthority { old: Digest::of(old), anyway }.into()
}

/// Makes a token for a client and, where wanted, admits it.
fn client(world: &mut World, number: u64, name: &str, admit: bool) -> Digest {
    let secret_hash = Digest::of(name.as_bytes());
    let grant = ClientGrant { role: AccessRole::Viewer, name: None, valid_s: 60 };
    world.ok(CreateClientToken { token: TokenId(number), secret_hash, grant, made_by: "x".into(), expires_unix_s: 9 });
    let key = Digest::of(format!("key of {name}").as_bytes());
    if admit {
        let name = name.parse().unwrap();
        world.ok(AdmitClient { token: TokenId(number), secret_hash, key, name, until_unix_s: 9 });
    }
    key
}

#[test]
fn both_are_trusted_until_everyone_has_a_certificate_of_the_new_one() {
    let mut world = World::of(2);
    let alice = client(&mut world, 100, "alice", true);
    client(&mut world, 101, "bob", false);
    assert_eq!(world.state.uncertified(), Uncertified::default(), "nothing is asked of anyone before");

    world.ok(rotate(FIRST, SECOND));
    let state = &world.state;
    assert_eq!(state.cluster.as_ref().unwrap().ca, Digest::of(SECOND));
    assert_eq!(state.authority.as_ref().unwrap().previous.as_ref().unwrap().certificate, FIRST);
    assert_eq!(state.tokens[&TokenId(101)].status, TokenStatus::Revoked, "it names the old authority");
    assert_eq!((state.uncertified().hosts.len(), state.uncertified().clients.len()), (2, 1));
    assert_eq!(world.no(rotate(SECOND, b"a third")), ErrorCode::Rotating, "one after the other");
    assert_eq!(world.no(drop_old(FIRST, false)), ErrorCode::Rotating, "alice would be cut off");

    for key in [key_of(1), key_of(2), alice] {
        assert_eq!(world.no(certified(key, FIRST)), ErrorCode::Rotating, "late news of the old one");
        world.ok(certified(key, SECOND));
        world.ok(certified(key, SECOND));
    }
    assert_eq!(world.no(certified(Digest::of(b"nobody"), SECOND)), ErrorCode::UnknownHost);
    // Who comes now has a certificate of the new one from the beginning.
    client(&mut world, 102, "carol", true);
    assert_eq!(world.state.uncertified(), Uncertified::default());
    assert_eq!(world.no(drop_old(SECOND, true)), ErrorCode::Rotating, "that is the present one");
    world.ok(drop_old(FIRST, false));
    world.ok(drop_old(FIRST, false));
    assert_eq!(world.state.authority.as_ref().unwrap().previous, None);
    assert_eq!(world.no(rotate(FIRST, b"a third")), ErrorCode::Rotating, "it is over with the first one");
    world.ok(rotate(SECOND, b"a third"));
}

#[test]
fn the_old_one_is_dropped_over_the_heads_of_some_only_where_that_is_said() {
    let mut world = World::of(2);
    assert_eq!(world.no(drop_old(FIRST, true)), ErrorCode::Rotating);
    world.ok(rotate(FIRST, SECOND));
    world.ok(certified(key_of(1), SECOND));
    assert_eq!(world.no(drop_old(FIRST, false)), ErrorCode::Rotating);
    world.ok(drop_old(FIRST, true));
    // A host that was off goes on being told that it has none.
    assert_eq!(world.state.uncertified().hosts.len(), 1);
    world.ok(certified(key_of(2), SECOND));
}

#[test]
fn a_certificate_that_is_too_long_or_the_same_again_is_refused() {
    let mut world = World::of(1);
    assert_eq!(world.no(rotate(FIRST, &[0; 5000])), ErrorCode::TooLarge);
    assert_eq!(world.no(rotate(FIRST, FIRST)), ErrorCode::BadParameter);
    assert_eq!(world.no(rotate(b"another", SECOND)), ErrorCode::Rotating);
}
