//! Bytes as what is stored: records of the log, state and snapshot, saved clusters, manifests, and the records of VMs,
//! parties and claims. They are refused or read, and what was read says the same when it is written again.
//!
//! The first byte chooses what is expected. What the log holds is applied as well: whatever is committed, no host panics.

#![no_main]

use std::{collections::BTreeMap, fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use vt_daemon::{
    mesh::join::claim,
    party::record::PartyRecord,
    qemu::record::{RECORD_FILE, VmRecord},
};
use vt_protocol::{
    codec,
    ids::{ClusterId, Digest, HostId, RequestId, TokenId},
    manifest::Manifest,
};
use vt_sync::{
    Command, Request, State,
    command::{AdmitHost, CreateToken, InitCluster, NewHost, OpenSession},
    fuzzing,
    saved::Saved,
    state::Role,
};

const CAP: usize = 64 << 10;
/// Commands applied one after the other.
const COMMANDS: usize = 64;

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("vt-fuzz-stored-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a temporary directory can be made");
    directory
});

/// A cluster of three hosts with their sessions.
static BEGUN: LazyLock<State> = LazyLock::new(|| {
    let mut state = State::default();
    for (index, command) in (1..).zip(beginning()) {
        let request = Request::with_id(RequestId(u128::MAX - u128::from(index)), command);
        state.apply(index, &request).expect("a cluster begins");
    }
    state
});

fuzz_target!(|data: &[u8]| {
    let Some((what, bytes)) = data.split_first() else { return };
    match what % 10 {
        0 => fuzzing::small(bytes),
        1 => apply(&mut State::clone(&BEGUN), fuzzing::record(bytes).into_iter()),
        2 => apply(&mut State::clone(&BEGUN), commands(bytes)),
        3 => drop(fuzzing::state(bytes)),
        4 => saved(bytes),
        5 => {
            if let Ok(manifest) = Manifest::decode(bytes, Digest::of(bytes)) {
                let (again, root) = manifest.encode().expect("what was read can be written");
                assert_eq!(Manifest::decode(&again, root).as_ref(), Ok(&manifest));
                for file in &manifest.files {
                    let _ = (file.place(0), file.place(u32::MAX), file.bytes_of(&[(0, u32::MAX), (1, 1)]));
                }
            }
        }
        6 => {
            if let Ok(record) = codec::decode::<claim::Record>(bytes, CAP) {
                let again = codec::encode(&record, 4 * CAP).expect("what was read can be written");
                assert_eq!(codec::decode::<claim::Record>(&again, 4 * CAP).as_ref(), Ok(&record));
            }
        }
        7 => {
            fs::write(DIRECTORY.join(RECORD_FILE), bytes).expect("an own directory can be written");
            if let Ok(Some(record)) = VmRecord::read(&DIRECTORY) {
                record.write(&DIRECTORY).expect("what was read can be written");
                assert_eq!(VmRecord::read(&DIRECTORY).expect("what was written can be read").as_ref(), Some(&record));
            }
        }
        8 => {
            let folder = DIRECTORY.join("parties");
            let file = folder.join("1.json");
            fs::create_dir_all(&folder)
                .and_then(|()| fs::write(&file, bytes))
                .expect("an own directory can be written");
            for record in PartyRecord::all(&folder) {
                record.write(&file).expect("what was read can be written");
                assert_eq!(PartyRecord::all(&folder), [record]);
            }
        }
        _ => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let words: Vec<_> = text.split('\0').map(std::ffi::OsString::from).collect();
            if let Ok(words) = vt_daemon::guard::program::Words::parse(words) {
                let again = words.to_args().into_iter().map(std::ffi::OsString::from);
                assert_eq!(vt_daemon::guard::program::Words::parse(again).as_ref(), Ok(&words));
            }
        }
    }
});

/// Applies what was committed; the state can be written after it and reads the same.
fn apply(state: &mut State, requests: impl Iterator<Item = Request>) {
    for request in requests.take(COMMANDS) {
        let index = state.index.saturating_add(1);
        let _ = state.apply(index, &request);
    }
    let saved = Saved {
        taken_unix_s: 0,
        taken_on: "host1".parse().expect("it is a name"),
        build: String::new(),
        state: state.clone(),
    };
    let bytes = saved.encode().expect("a state can be written");
    assert!(Saved::decode(&bytes).expect("what was written can be read").state == *state);
}

/// Commands, each behind two bytes of length.
fn commands(mut bytes: &[u8]) -> impl Iterator<Item = Request> {
    let mut number = 0;
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (command, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
        bytes = rest;
        number += 1;
        let command: Command = codec::body_from(command).ok()?;
        Some(Request::with_id(RequestId(number), command))
    })
}

/// The body of a saved cluster, in a file with the right digest.
fn saved(body: &[u8]) {
    let file = [&b"vtmesh snapshot\n"[..], &Digest::of(body).0, body].concat();
    assert!(Saved::decode(body).is_err());
    let Ok(saved) = Saved::decode(&file) else { return };
    let again = saved.encode().expect("what was read can be written");
    assert!(Saved::decode(&again).as_ref() == Ok(&saved));
}

fn host(id: u64) -> NewHost {
    NewHost {
        id: HostId(id),
        name: format!("host{id}").parse().expect("it is a name"),
        addresses: vec![([10, 0, 0, 1], 7465).into()],
        labels: BTreeMap::new(),
        role: None,
        public_key: id.to_le_bytes().to_vec(),
        build: String::new(),
        facts: None,
    }
}

fn beginning() -> Vec<Command> {
    let name = "fuzz".parse().expect("it is a name");
    let mut commands: Vec<Command> =
        vec![InitCluster { id: ClusterId(1), name, ca: Digest::of(b"ca"), host: host(1) }.into()];
    let secret_hash = Digest::of(b"secret");
    for id in [2, 3] {
        let (token, made_by) = (TokenId(id), String::new());
        commands.push(CreateToken { token, secret_hash, role: Role::Voter, made_by, expires_unix_s: 0 }.into());
        commands.push(AdmitHost { token, secret_hash, host: host(id) }.into());
    }
    commands.extend((1..=3).map(|id| OpenSession { host: HostId(id), incarnation: 1, resume: false }.into()));
    commands
}
