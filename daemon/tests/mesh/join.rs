//! Joining a cluster: what succeeds, each way to fail, and both sides dying at the worst moment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;
use vt_daemon::mesh::join::claim::Claim;
use vt_daemon::mesh::join::joiner::{self, JoinError, Joining};
use vt_protocol::error::ErrorCode;
use vt_protocol::ids::ClusterId;
use vt_protocol::round::NotNow;
use vt_protocol::token::Token;
use vt_sync::command::{ExpireToken, RevokeToken};
use vt_sync::state::TokenStatus;

use crate::support::{Fate, Host, Lab, address, by, echoed, name, now};

/// A machine that belongs to no cluster: its address and its data directory.
struct Machine {
    root: tempfile::TempDir,
    at: SocketAddr,
    steps: Mutex<Vec<String>>,
}

impl Machine {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), at: address(), steps: Mutex::default() }
    }

    fn place(&self) -> PathBuf {
        self.root.path().join("cluster")
    }

    fn plan(&self, token: &Token, text: &str) -> Joining {
        Joining {
            token: token.clone(),
            listen: self.at,
            advertise: self.at,
            name: name(text),
            role: None,
            labels: BTreeMap::new(),
            facts: None,
        }
    }

    async fn join(&self, plan: &Joining, by: Instant) -> Result<Claim, JoinError> {
        joiner::join(plan, &self.place(), by, &|step| self.steps.lock().unwrap().push(step)).await
    }

    /// Whether nothing at all is left of a join.
    fn is_clean(&self) -> bool {
        std::fs::read_dir(self.root.path()).unwrap().next().is_none()
    }
}

/// The log is as it was: nobody new, and the token as open as before.
fn nothing_changed(lab: &Lab, hosts: usize) -> bool {
    lab.log.state().hosts.len() == hosts && lab.log.admissions.load(Ordering::SeqCst) == 0
}

fn code(joined: Result<Claim, JoinError>) -> ErrorCode {
    joined.expect_err("the join fails").report().code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_and_lives_in_the_cluster() {
    let (lab, host) = Lab::with_host().await;
    let machine = Machine::new();
    let token: Token = lab.token(now() + 600, &[host.at]).reveal().parse().unwrap();
    let claim = machine.join(&machine.plan(&token, "host2"), by()).await.unwrap();
    assert_eq!(claim.record.members.len(), 2);
    assert_eq!(claim.record.cluster_name, name("lab"));
    assert!(machine.steps.lock().unwrap().iter().any(|step| step.contains(&lab.ca.digest().to_string())));
    let TokenStatus::Used { host: by } = lab.log.state().tokens[&token.id].status else { panic!("it is used") };
    assert_eq!(by, claim.record.host);

    // What is on disk is a whole identity, with which the host is served and serves, on the port it advertised.
    let claim = Claim::load(&machine.place()).unwrap().unwrap();
    let joined = lab.start(Arc::new(claim.identity), "host2", machine.at);
    assert_eq!(joined.echo(&host, b"x").await.unwrap(), echoed(joined.id, b"x"));
    assert_eq!(host.echo(&joined, b"y").await.unwrap(), echoed(host.id, b"y"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_token_has_its_own_error_and_leaves_no_trace() {
    let (lab, host) = Lab::with_host().await;
    let machine = Machine::new();
    let at = [host.at];

    let unknown = Token { secret: vt_protocol::token::Secret::random(), ..lab.token(now() + 600, &at) };
    assert_eq!(code(machine.join(&machine.plan(&unknown, "host2"), by()).await), ErrorCode::TokenUnknown);

    let expired = lab.token(now() - 60, &at);
    assert_eq!(code(machine.join(&machine.plan(&expired, "host2"), by()).await), ErrorCode::TokenExpired);
    let expired = lab.token(now() + 600, &at);
    lab.log.apply(ExpireToken { token: expired.id }).unwrap();
    assert_eq!(code(machine.join(&machine.plan(&expired, "host2"), by()).await), ErrorCode::TokenExpired);

    let revoked = lab.token(now() + 600, &at);
    lab.log.apply(RevokeToken { token: revoked.id }).unwrap();
    assert_eq!(code(machine.join(&machine.plan(&revoked, "host2"), by()).await), ErrorCode::TokenRevoked);

    let taken = lab.token(now() + 600, &at);
    assert_eq!(code(machine.join(&machine.plan(&taken, "host1"), by()).await), ErrorCode::NameTaken);
    assert!(matches!(lab.log.state().tokens[&taken.id].status, TokenStatus::Open), "the token is still good");

    let nowhere = lab.token(now() + 600, &[address(), address()]);
    let error = machine.join(&machine.plan(&nowhere, "host2"), by()).await.unwrap_err();
    let JoinError::NotNow(NotNow::Unreachable(tried)) = &error else { panic!("{error}") };
    assert_eq!(tried.len(), 2, "each address with its reason");
    assert_eq!(error.report().code, ErrorCode::JoinUnreachable);

    assert!(machine.is_clean() && nothing_changed(&lab, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_token_names_who_used_it() {
    let (lab, host) = Lab::with_host().await;
    let token = lab.token(now() + 600, &[host.at]);
    let first = Machine::new();
    first.join(&first.plan(&token, "host2"), by()).await.unwrap();
    let second = Machine::new();
    let report = second.join(&second.plan(&token, "host3"), by()).await.unwrap_err().report();
    assert_eq!(report.code, ErrorCode::TokenUsed);
    assert_eq!(report.evidence, [("by".to_owned(), format!("host2 ({})", first.at))]);
    assert!(second.is_clean());
    assert_eq!(lab.log.admissions.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_a_host_of_another_ca() {
    let (lab, host) = Lab::with_host().await;
    let (_elsewhere, stranger) = Lab::with_host().await;
    let machine = Machine::new();
    // The stranger claims to be of the same cluster: someone is in the middle.
    let token = lab.token(now() + 600, &[stranger.at]);
    let report = machine.join(&machine.plan(&token, "host2"), by()).await.unwrap_err().report();
    assert_eq!(report.code, ErrorCode::CaMismatch, "{report:?}");
    // A good host behind a bad address is still found.
    let both = lab.token(now() + 600, &[stranger.at, host.at]);
    machine.join(&machine.plan(&both, "host2"), by()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_cluster_is_told_as_such() {
    let (lab, host) = Lab::with_host().await;
    let machine = Machine::new();
    // The token is of cluster 8 with a CA of its own; its address now belongs to cluster 7.
    let foreign = vt_protocol::identity::ClusterCa::generate(ClusterId(8)).unwrap();
    let token = Token { cluster: ClusterId(8), ca: foreign.digest(), ..lab.token(now() + 600, &[host.at]) };
    let report = machine.join(&machine.plan(&token, "host2"), by()).await.unwrap_err().report();
    assert_eq!(report.code, ErrorCode::TokenOtherCluster, "{report:?}");
    assert!(machine.is_clean() && nothing_changed(&lab, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_reached_is_found_before_anything_changes() {
    let (lab, host) = Lab::with_host().await;
    let machine = Machine::new();
    let token = lab.token(now() + 600, &[host.at]);
    let plan = Joining { advertise: address(), ..machine.plan(&token, "host2") };
    let report = machine.join(&plan, by()).await.unwrap_err().report();
    assert_eq!(report.code, ErrorCode::DialBackFailed);
    assert!(report.evidence.iter().any(|(_, value)| *value == plan.advertise.to_string()), "{report:?}");
    assert!(machine.is_clean() && nothing_changed(&lab, 1));
    assert!(matches!(lab.log.state().tokens[&token.id].status, TokenStatus::Open));

    // Another host answers at the advertised address: it does not hold the joiner's key.
    let other = lab.add("host2").await;
    lab.remove(other.id);
    let plan = Joining { advertise: other.at, ..machine.plan(&token, "host3") };
    assert_eq!(code(machine.join(&plan, by()).await), ErrorCode::DialBackFailed);

    // The same token is good for the right address.
    machine.join(&machine.plan(&token, "host3"), by()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_host_does_not_join_again() {
    let (lab, host) = Lab::with_host().await;
    let machine = Machine::new();
    machine.join(&machine.plan(&lab.token(now() + 600, &[host.at]), "host2"), by()).await.unwrap();
    let again = machine.join(&machine.plan(&lab.token(now() + 600, &[host.at]), "host3"), by()).await;
    assert_eq!(code(again), ErrorCode::AlreadyClaimed);
    assert!(Claim::load(&machine.place()).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_asked_for_again() {
    let (lab, host) = Lab::with_host().await;
    for (fate, text) in [(Fate::LostBefore, "host2"), (Fate::LostAfter, "host3")] {
        let machine = Machine::new();
        lab.log.next_admission(fate);
        let token = lab.token(now() + 600, &[host.at]);
        let claim = machine.join(&machine.plan(&token, text), by()).await.unwrap();
        assert!(lab.log.state().hosts.contains_key(&claim.record.host));
    }
    assert_eq!(lab.log.admissions.load(Ordering::SeqCst), 2, "each was admitted once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_resumed_with_the_same_key() {
    let (lab, host) = Lab::with_host().await;
    let machine = Machine::new();
    let token = lab.token(now() + 600, &[host.at]);
    lab.log.next_admission(Fate::LostAfter);
    // No time is left to ask again.
    let soon = Instant::now() + Duration::from_millis(400);
    let first = machine.join(&machine.plan(&token, "host2"), soon).await;
    let error = first.expect_err("the answer was lost");
    assert!(matches!(error, JoinError::Unknown(_)), "{error}");
    let claim = machine.join(&machine.plan(&token, "host2"), by()).await.unwrap();
    assert_eq!(lab.log.admissions.load(Ordering::SeqCst), 1);
    assert!(lab.log.state().hosts.contains_key(&claim.record.host));
    assert_eq!(std::fs::read_dir(machine.root.path()).unwrap().count(), 1, "nothing is left beside the claim");
}

/// A join that is killed at a moment drawn from the seed, on either side, and done again as a user would.
async fn killed_and_repeated(lab: &Lab, mut host: Host, seed: u64, text: &str) -> Host {
    let mut random = StdRng::seed_from_u64(seed);
    let machine = Arc::new(Machine::new());
    let token = lab.token(now() + 600, &[host.at]);
    let fate = [Fate::Applied, Fate::LostBefore, Fate::LostAfter][random.random_range(0..3)];
    lab.log.next_admission(fate);
    let after = Duration::from_micros(random.random_range(0..30_000));
    let joining = tokio::spawn({
        let (machine, token, text) = (Arc::clone(&machine), token.clone(), text.to_owned());
        async move { machine.join(&machine.plan(&token, &text), by()).await.map(drop) }
    });
    tokio::time::sleep(after).await;
    if random.random_bool(0.5) {
        joining.abort();
        let _ = joining.await;
    } else {
        let (identity, at) = (host.endpoint.identity(), host.at);
        host.die().await;
        host = lab.start(identity, "host1", at);
        let _ = joining.await;
    }
    lab.log.next_admission(Fate::Applied);
    if Claim::load(&machine.place()).unwrap().is_none() {
        let deadline = by();
        while let Err(error) = machine.join(&machine.plan(&token, text), by()).await {
            assert!(Instant::now() < deadline, "seed {seed}: stuck: {error} {:?}", error.report());
        }
    }
    let claim = Claim::load(&machine.place()).unwrap().expect("joined");
    let state = lab.log.state();
    let known = state.hosts.get(&claim.record.host);
    let known = known.unwrap_or_else(|| panic!("seed {seed}: the claim is of a host that the cluster does not know"));
    assert_eq!(known.public_key, claim.identity.key().public().0, "seed {seed}");
    assert_eq!(state.hosts.values().filter(|known| known.name.as_str() == text).count(), 1, "seed {seed}");
    host
}

/// Joins of one cluster: it takes 64 hosts.
const IN_ONE_CLUSTER: u64 = 50;

/// `VTMESH_JOINS` is how many there are: 20, and 100 in `make proofs`.
#[tokio::test(flavor = "multi_thread")]
async fn joins_survive_the_death_of_either_side() {
    let joins: u64 = std::env::var("VTMESH_JOINS").map_or(20, |number| number.parse().unwrap());
    let start = rand::random::<u32>() as u64;
    println!("{joins} joins, seeds from {start}");
    for first in (0..joins).step_by(IN_ONE_CLUSTER as usize) {
        let here = IN_ONE_CLUSTER.min(joins - first);
        let (lab, mut host) = Lab::with_host().await;
        for round in 0..here {
            host = killed_and_repeated(&lab, host, start + first + round, &format!("joiner{round}")).await;
        }
        let state = lab.log.state();
        assert_eq!(state.hosts.len() as u64, 1 + here, "each joined once");
        assert_eq!(lab.log.admissions.load(Ordering::SeqCst) as u64, here);
    }
}
