//! The leader dies between the first and the last arrival at a barrier: it is released once, for everyone alike.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use vt_protocol::ids::{AttemptId, Digest, Epoch, HostId, RequestId};
use vt_sync::{
    Answer, Command, Replica, Request,
    command::{Arrive, NewCase, OpenSession, StartAttempt, SubmitJob},
    state::{BarrierKey, BarrierState},
};

use crate::{
    harness::{Cluster, config, wait},
    world::{JOB, admit, attempt, h, hosts, token},
};

const ALL: [u64; 3] = [1, 2, 3];

/// Proposes through whoever leads, with one id, until it is acknowledged.
async fn decide(cluster: &Cluster, up: &[u64], id: RequestId, command: impl Into<Command>) -> Answer {
    let request = Request { id, command: command.into() };
    for _ in 0..20 {
        let leader = cluster.leader(up).await;
        if let Ok(applied) = leader.propose(request.clone(), Duration::from_secs(5)).await {
            return applied.answer;
        }
    }
    panic!("{} was never accepted", request.command.name());
}

async fn running(cluster: &Cluster) -> Epoch {
    for host in [2, 3] {
        decide(cluster, &ALL, RequestId::random(), token(host)).await;
        decide(cluster, &ALL, RequestId::random(), admit(host)).await;
    }
    for host in ALL {
        let open = OpenSession { host: h(host), incarnation: 1, resume: false };
        decide(cluster, &ALL, RequestId::random(), open).await;
    }
    let job = SubmitJob {
        job: JOB,
        scenario: "multihost_migration".into(),
        plan: Digest::of(b"plan"),
        holders: hosts(&[1]),
        strict: false,
        submitted_by: "test".into(),
        submitted_unix_s: 0,
        cases: vec![NewCase::on(hosts(&ALL))],
        refusals: vec![],
    };
    decide(cluster, &ALL, RequestId::random(), job).await;
    let start = StartAttempt { case: attempt(1).case, number: 1, hosts: hosts(&ALL) };
    match decide(cluster, &ALL, RequestId::random(), start).await {
        Answer::Epoch(epoch) => epoch,
        other => panic!("{other:?}"),
    }
}

fn arrival(epoch: Epoch, host: u64, seed: u64) -> (RequestId, Arrive) {
    let barrier = BarrierKey { tag: format!("seed{seed}"), generation: 1 };
    let id = RequestId::derived(&[barrier.tag.as_bytes(), &host.to_le_bytes()]);
    (id, Arrive { attempt: attempt(1), epoch, host: h(host), barrier, parties: Vec::new(), payload: vec![host as u8] })
}

/// Every state of a barrier that a replica shows, in order, without repetitions.
fn observe(replica: &Replica, id: AttemptId, seed: u64) -> Arc<Mutex<Vec<BarrierState>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut watch = replica.watch();
    let shown = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let state = watch.borrow_and_update().clone();
            let barrier =
                state.attempts.get(&id).and_then(|attempt| attempt.barrier(&format!("seed{seed}"), 1).cloned());
            if let Some(barrier) = barrier {
                let mut shown = shown.lock().unwrap();
                if shown.last() != Some(&barrier.state) {
                    shown.push(barrier.state.clone());
                }
            }
            if watch.changed().await.is_err() {
                return;
            }
        }
    });
    seen
}

/// `VTMESH_LEADER_DEATHS` is how many leaders die: 4, and 20 in `make proofs`. The simulator does the same with more
/// seeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_is_released_once_when_the_leader_dies_between_its_arrivals() {
    let deaths: u64 = std::env::var("VTMESH_LEADER_DEATHS").map_or(4, |number| number.parse().unwrap());
    println!("{deaths} leaders die, seeds from 0");
    let cluster = Cluster::of(3, config()).await;
    let epoch = running(&cluster).await;
    for seed in 0..deaths {
        // Which party arrives first, and whether its acknowledgement is awaited before the leader dies.
        let order = [1 + seed % 3, 1 + (seed + 1) % 3, 1 + (seed + 2) % 3];
        let awaited = seed % 2 == 0;
        let leader = cluster.leader(&ALL).await.status().host.0;
        let others: Vec<u64> = ALL.into_iter().filter(|host| *host != leader).collect();
        let seen: Vec<_> = others.iter().map(|host| observe(&cluster.at(*host), attempt(1), seed)).collect();

        let (id, first) = arrival(epoch, order[0], seed);
        if awaited {
            decide(&cluster, &ALL, id, first.clone()).await;
        } else {
            // Half sent: it may or may not be in the log when the leader is gone.
            let replica = cluster.at(leader);
            let request = Request { id, command: first.clone().into() };
            tokio::spawn(async move { replica.propose(request, Duration::from_secs(5)).await });
        }
        cluster.stop(leader).await;
        decide(&cluster, &others, id, first).await;
        let (id, second) = arrival(epoch, order[1], seed);
        assert_eq!(decide(&cluster, &others, id, second).await, Answer::Barrier(BarrierState::Open), "seed {seed}");
        let (last, third) = arrival(epoch, order[2], seed);
        let released = decide(&cluster, &others, last, third.clone()).await;
        assert_eq!(released, Answer::Barrier(BarrierState::Released), "seed {seed}");
        // A party that did not hear of it asks again and is told the same.
        assert_eq!(decide(&cluster, &others, last, third).await, released, "seed {seed}");

        cluster.start(leader).await;
        for host in ALL {
            let replica = cluster.at(host);
            wait(&format!("seed {seed}: the release at host {host}"), || {
                let state = replica.state();
                let barrier = state.attempts[&attempt(1)].barrier(&format!("seed{seed}"), 1)?.clone();
                let all = ALL.into_iter().map(HostId).eq(barrier.arrived.keys().copied());
                (barrier.state == BarrierState::Released && all).then_some(())
            })
            .await;
        }
        for seen in seen {
            let seen = seen.lock().unwrap().clone();
            let released = seen.iter().filter(|state| **state == BarrierState::Released).count();
            assert!(released <= 1 && seen.len() <= 2, "seed {seed}: {seen:?}");
        }
    }
}
