//! The pool of connections: hosts that die, come back, go silent, or were never there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;
use vt_protocol::admin::AccessRole;
use vt_protocol::call::CallError;
use vt_protocol::client::open_stream;
use vt_protocol::endpoint::MeshEndpoint;
use vt_protocol::hello::Hello;
use vt_protocol::identity::Validity;
use vt_protocol::ids::HostId;
use vt_protocol::service::Service;
use vt_protocol::transport::Transport;

use crate::support::{CLUSTER, Lab, address, by, echoed, until};

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_and_a_dead_one_are_told_apart_and_nothing_was_sent() {
    let (lab, host) = Lab::with_host().await;
    let error = host.peers.call(HostId(99), Service::Raft, b"x".to_vec(), by()).await.unwrap_err();
    assert!(matches!(error, CallError::UnknownHost(HostId(99))), "{error}");
    let identity = lab.identity("host2");
    lab.admit(&identity, "host2", address());
    let dead = vt_protocol::join::host_id_of(&identity.key().public());
    let error = host.peers.call(dead, Service::Raft, b"x".to_vec(), by()).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    assert!(!error.may_be_done());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_comes_back_is_found_by_calls_too_short_to_dial() {
    let (lab, host) = Lab::with_host().await;
    let identity = lab.identity("host2");
    let at = address();
    lab.admit(&identity, "host2", at);
    let other = lab.start(Arc::clone(&identity), "host2", at);
    assert!(host.echo(&other, b"x").await.is_ok());
    let id = other.id;
    other.die().await;
    let short = || Instant::now() + Duration::from_millis(100);
    assert!(host.peers.call(id, Service::Raft, b"x".to_vec(), short()).await.is_err());
    let other = lab.start(identity, "host2", at);
    let deadline = by();
    while host.peers.call(id, Service::Raft, b"x".to_vec(), short()).await.is_err() {
        assert!(Instant::now() < deadline, "the host came back and was not found");
    }
    assert_eq!(host.echo(&other, b"y").await.unwrap(), echoed(host.id, b"y"));
}

/// A wire between two UDP addresses that can be cut.
struct Wire {
    at: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Wire {
    async fn to(target: SocketAddr) -> Self {
        let near = Arc::new(UdpSocket::bind(address()).await.unwrap());
        let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let at = near.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let caller = Arc::new(std::sync::Mutex::new(None));
        let there = (Arc::clone(&near), Arc::clone(&far), Arc::clone(&cut), Arc::clone(&caller));
        tokio::spawn(async move {
            let (near, far, cut, caller) = there;
            let mut buffer = vec![0; 65536];
            while let Ok((count, from)) = near.recv_from(&mut buffer).await {
                *caller.lock().unwrap() = Some(from);
                if !cut.load(Ordering::SeqCst) {
                    let _ = far.send_to(&buffer[..count], target).await;
                }
            }
        });
        let back = Arc::clone(&cut);
        tokio::spawn(async move {
            let mut buffer = vec![0; 65536];
            while let Ok((count, _)) = far.recv_from(&mut buffer).await {
                let to = *caller.lock().unwrap();
                if let Some(to) = to
                    && !back.load(Ordering::SeqCst)
                {
                    let _ = near.send_to(&buffer[..count], to).await;
                }
            }
        });
        Self { at, cut }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_silent_is_dropped_and_found_again() {
    let (lab, host) = Lab::with_host().await;
    let identity = lab.identity("host2");
    let at = address();
    let wire = Wire::to(at).await;
    lab.admit(&identity, "host2", wire.at);
    let other = lab.start(identity, "host2", at);
    assert!(host.echo(&other, b"x").await.is_ok());
    assert_eq!(host.endpoint.quic().open_connections(), 1);
    wire.cut.store(true, Ordering::SeqCst);
    let soon = Instant::now() + Duration::from_millis(500);
    let error = host.peers.call(other.id, Service::Raft, b"x".to_vec(), soon).await.unwrap_err();
    assert!(error.may_be_done(), "it was sent, and no answer came: {error}");
    until("the silent connection is dropped at this end", || host.endpoint.quic().open_connections() == 0).await;
    until("and at the other", || other.endpoint.quic().open_connections() == 0).await;
    wire.cut.store(false, Ordering::SeqCst);
    assert_eq!(host.echo(&other, b"y").await.unwrap(), echoed(host.id, b"y"));
}

#[tokio::test(flavor = "multi_thread")]
async fn those_connected_to_a_killed_daemon_learn_of_its_restart_at_once() {
    // A daemon that is killed says no goodbye: the wire is cut while it dies, so that its goodbye is lost.
    let (lab, host) = Lab::with_host().await;
    let (identity, at) = (host.endpoint.identity(), host.at);
    let wire = Wire::to(at).await;
    let client = lab.client(AccessRole::Viewer, Validity::from_now(Duration::from_secs(3600)));
    let dialler = MeshEndpoint::dial_only("127.0.0.1:0".parse().unwrap(), client).unwrap();
    let hello = Hello::of(Some(CLUSTER), None, 1);
    let (connection, _) = dialler.connect(wire.at, Service::Admin, &hello, by()).await.unwrap();
    wire.cut.store(true, Ordering::SeqCst);
    host.die().await;
    let _host = lab.start(identity, "host1", at);
    wire.cut.store(false, Ordering::SeqCst);
    let (mut send, _receive) = open_stream(&connection, by()).await.unwrap();
    send.write_all(b"anyone there?").await.unwrap();
    // Not by the idle time: the new process says itself that it does not know the connection.
    let ended = tokio::time::timeout_at(by(), connection.closed()).await.expect("the connection ends");
    assert!(matches!(ended, quinn::ConnectionError::Reset), "{ended}");
}
