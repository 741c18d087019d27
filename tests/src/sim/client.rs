//! Programs that use the cluster: a client that counts, and a party that meets the others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::sleep;
use vt_protocol::ids::{AttemptId, HostId, RequestId};
use vt_sync::{
    Answer, Request,
    command::{Arrive, SetSetting},
    state::{BarrierKey, BarrierState},
};

use super::{
    HOSTS,
    net::{self, Ask, Said},
    oracle::Oracle,
};
use crate::beginning;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// Waits until something is set.
async fn until(set: &AtomicBool) {
    while !set.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(20)).await;
    }
}

/// A client: sets its own setting to 1, 2, 3…, each until it is acknowledged, and reads it back now and then.
pub(super) async fn client(
    number: usize,
    seed: u64,
    oracle: Oracle,
    ready: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
) -> turmoil::Result {
    let mut rng = StdRng::seed_from_u64(seed ^ ((number as u64 + 1) << 32));
    let key = format!("client{number}");
    until(&ready).await;
    let mut target = HOSTS[number % HOSTS.len()];
    for value in 1_u64.. {
        let id = RequestId::derived(&[key.as_bytes(), &value.to_le_bytes()]);
        let request = Request::with_id(id, SetSetting { key: key.clone(), value: Some(value.to_string()) });
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            oracle.asked(&request);
            match net::ask(target, &Ask::Propose(Box::new(request.clone())), DEADLINE).await {
                Ok(Said::Applied(applied)) => {
                    oracle.acknowledged(id, &applied);
                    break;
                }
                Ok(Said::Rejected(rejected)) => {
                    oracle.violation(format!("{request} was rejected: {rejected}"));
                    return Ok(());
                }
                Ok(Said::Elsewhere(Some(leader))) => target = leader,
                _ => target = *HOSTS.choose(&mut rng).expect("there are hosts"),
            }
            sleep(Duration::from_millis(rng.random_range(5..50))).await;
        }
        oracle.value_set(&key, value);
        if value.is_multiple_of(4) {
            // Whoever answers must know what was acknowledged before it was asked.
            let asked = *HOSTS.choose(&mut rng).expect("there are hosts");
            if let Ok(Said::Value(got)) = net::ask(asked, &Ask::Read(key.clone()), DEADLINE).await {
                oracle.read(&key, got.and_then(|value| value.parse().ok()).unwrap_or(0), value);
            }
        }
        sleep(Duration::from_millis(rng.random_range(10..60))).await;
    }
    Ok(())
}

/// How the parties of a run stand.
#[derive(Debug, Default)]
pub(super) struct Meeting {
    /// The cluster is there.
    pub(super) ready: Arc<AtomicBool>,
    /// How many parties were told that they have arrived.
    pub(super) arrived: AtomicUsize,
    /// The last party may come.
    pub(super) last_may_come: AtomicBool,
    /// How many parties were let pass.
    pub(super) passed: AtomicUsize,
}

/// A party: arrives at one barrier, under one request id until it is answered, then asks until it is let pass.
pub(super) async fn party(me: HostId, seed: u64, epoch: u64, oracle: Oracle, meeting: Arc<Meeting>) -> turmoil::Result {
    let mut rng = StdRng::seed_from_u64(seed ^ (me.0 << 40));
    until(&meeting.ready).await;
    if me == HOSTS[HOSTS.len() - 1] {
        until(&meeting.last_may_come).await;
    }
    let arrive = Arrive {
        attempt: AttemptId { case: beginning::case(1), number: 1 },
        epoch: vt_protocol::ids::Epoch(epoch),
        host: me,
        barrier: BarrierKey { tag: "go".to_owned(), generation: 1 },
        parties: Vec::new(),
        payload: me.0.to_le_bytes().to_vec(),
    };
    let mut id = RequestId::derived(&[b"arrive", &me.0.to_le_bytes()]);
    let mut target = *HOSTS.choose(&mut rng).expect("there are hosts");
    let mut told = false;
    loop {
        let request = Request::with_id(id, arrive.clone());
        oracle.asked(&request);
        match net::ask(target, &Ask::Propose(Box::new(request)), DEADLINE).await {
            Ok(Said::Applied(applied)) => {
                if !told {
                    told = true;
                    meeting.arrived.fetch_add(1, Ordering::Relaxed);
                }
                match applied.answer {
                    Answer::Barrier(BarrierState::Released) => {
                        meeting.passed.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                    Answer::Barrier(BarrierState::Open) => id = RequestId(rng.random()),
                    other => oracle.violation(format!("{me} was told {other:?}")),
                }
            }
            Ok(Said::Rejected(rejected)) => oracle.violation(format!("{me} was rejected: {rejected}")),
            Ok(Said::Elsewhere(Some(leader))) => target = leader,
            _ => target = *HOSTS.choose(&mut rng).expect("there are hosts"),
        }
        sleep(Duration::from_millis(rng.random_range(5..50))).await;
    }
}
