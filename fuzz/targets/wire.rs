//! Bytes from a connection as messages: they are refused or read, and what was read can be sent on and says the same.
//!
//! The first byte chooses what is expected; the rest is what arrives, version byte included.

#![no_main]

use std::fmt::Debug;
use std::str::FromStr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use vt_protocol::{admin, bulk, codec, frame, hello, ids, job, join, matrix, params, party, peer, probe, token, vm};

const CAP: usize = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let Some((what, bytes)) = data.split_first() else { return };
    match what % 20 {
        0 => message::<hello::Hello>(bytes),
        1 => message::<hello::Welcome>(bytes),
        2 => message::<hello::Refusal>(bytes),
        3 => message::<admin::AdminRequest>(bytes),
        4 => message::<admin::AdminReply>(bytes),
        5 => message::<peer::PeerRequest>(bytes),
        6 => message::<peer::PeerReply>(bytes),
        7 => message::<join::JoinCall>(bytes),
        8 => message::<join::JoinAnswer>(bytes),
        9 => message::<bulk::BulkRequest>(bytes),
        10 => message::<bulk::BulkAnswer>(bytes),
        11 => message::<job::Plan>(bytes),
        12 => message::<job::JobView>(bytes),
        13 => matrix(bytes),
        14 => line::<party::Call>(bytes),
        15 => line::<party::Reply>(bytes),
        16 => line::<probe::Call>(bytes),
        17 => line::<probe::Reply>(bytes),
        18 => frames(bytes),
        _ => words(bytes),
    }
});

fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(value) = codec::decode_wire::<T>(bytes, CAP) else { return };
    // Numbers may come in more bytes than they need, so the bytes need not be the same, but the value is.
    let sent = codec::encode_wire(&value, 4 * CAP).expect("what was read can be sent");
    let again = codec::decode_wire::<T>(&sent, 4 * CAP).expect("what was sent can be read");
    assert_eq!(codec::encode_wire(&again, 4 * CAP).expect("still"), sent);
}

/// A line of the party API or of the probe in the guest.
fn line<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let sent = serde_json::to_string(&value).expect("what was read can be sent");
    let again: T = serde_json::from_str(&sent).expect("what was sent can be read");
    assert_eq!(serde_json::to_string(&again).expect("still"), sent);
}

fn matrix(bytes: &[u8]) {
    let Ok(packed) = codec::decode_wire::<matrix::Packed>(bytes, CAP) else { return };
    assert_eq!(packed.digest(), packed.digest());
    let _ = packed.open();
}

/// A stream of frames, to its end or to the first that is refused.
fn frames(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let mut stream = bytes;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while let Ok(frame) = frame::read(&mut stream, CAP, deadline).await {
            assert!(frame.body.len() <= CAP);
        }
    });
}

/// Words that users and files give.
fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    word::<ids::Name>(text);
    word::<ids::Digest>(text);
    word::<ids::AttemptId>(text);
    let _ = text.parse::<vm::Moment>();
    let _ = text.parse::<token::Token>();
    let mut all = params::Params::new();
    let origin = params::Origin { file: "-p".into(), line: 0 };
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        all.set(key, value, origin.clone());
    }
    for key in all.iter().map(|(key, _)| key.to_owned()).take(8).collect::<Vec<_>>() {
        let _ = (all.integer(&key), all.float(&key), all.flag(&key), all.pairs(&key, None), all.objects(&key));
        let _ = (all.size(&key, 1 << 20, 0..=u64::MAX), all.numbered(&key, "nic"), all.object(&key));
    }
}

/// What is shown of a word reads as the same word.
fn word<T: FromStr + ToString + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok().as_ref(), Some(&value));
    }
}
