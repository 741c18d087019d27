//! What is served, and what happens to requests that fail, hang or are abandoned.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use vt_protocol::admin::{AccessRole, AdminReply, AdminRequest};
use vt_protocol::call::CallError;
use vt_protocol::client::Client;
use vt_protocol::error::ErrorCode;
use vt_protocol::identity::Validity;
use vt_protocol::ids::JobId;
use vt_protocol::peer::{PeerReply, PeerRequest};
use vt_protocol::service::Service;
use vt_protocol::transport::Transport;

use crate::support::{Host, Lab, by, echoed, until};

async fn client(lab: &Lab, host: &Host) -> Client {
    let identity = lab.client(AccessRole::Admin, Validity::from_now(Duration::from_secs(3600)));
    Client::remote(host.at, identity, by()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_call_each_other_in_both_directions() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    assert_eq!(other.echo(&host, b"one").await.unwrap(), echoed(other.id, b"one"));
    assert_eq!(host.echo(&other, b"two").await.unwrap(), echoed(host.id, b"two"));
    assert_eq!(host.peers.peer(other.id, &PeerRequest::Ping, by()).await.unwrap(), PeerReply::Done);
    let refused = host.peers.ask(other.id, &PeerRequest::Facts, by()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::HostBusy);
    let failed = other.echo(&host, b"fail").await.unwrap_err();
    assert_eq!(failed.report().code, ErrorCode::NoQuorum);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_64_mib_goes_through() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let bytes: Vec<u8> = (0..64u32 << 20).map(|n| (n >> 3) as u8).collect();
    let deadline = Instant::now() + Duration::from_secs(100);
    let back = other.peers.call(host.id, Service::Raft, bytes.clone(), deadline).await.unwrap();
    assert!(back == echoed(other.id, &bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_share_a_connection() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let calls = (0..200u8).map(|n| {
        let (host, other) = (&host, &other);
        async move { assert_eq!(other.echo(host, &[n]).await.unwrap(), echoed(other.id, &[n])) }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(host.endpoint.quic().open_connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_replies_comes_in_order_and_ends() {
    let (lab, host) = Lab::with_host().await;
    let client = client(&lab, &host).await;
    let mut replies = client.stream::<_, AdminReply>(&AdminRequest::JobList, by()).await.unwrap();
    for count in 0..3 {
        let reply = replies.next(by()).await.unwrap();
        assert_eq!(reply, Some(AdminReply::Inventory(vec![count.to_string()])));
    }
    assert_eq!(replies.next(by()).await.unwrap(), None);
    let who = client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap();
    assert_eq!(who, AdminReply::Inventory(vec!["Admin false".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_its_caller_goes_away() {
    let (lab, host) = Lab::with_host().await;
    let client = client(&lab, &host).await;
    let mut replies = client.stream::<_, AdminReply>(&AdminRequest::JobWatch(JobId(1)), by()).await.unwrap();
    assert_eq!(replies.next(by()).await.unwrap(), Some(AdminReply::Done));
    assert_eq!(host.services.watching.load(Ordering::SeqCst), 1);
    drop(replies);
    until("the watch has ended", || host.services.watching.load(Ordering::SeqCst) == 0).await;

    // The same when the whole client goes.
    let mut replies = client.stream::<_, AdminReply>(&AdminRequest::JobWatch(JobId(1)), by()).await.unwrap();
    replies.next(by()).await.unwrap();
    client.close().await;
    until("the watch has ended", || host.services.watching.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_changes_something_runs_to_its_end_without_its_caller() {
    let (lab, host) = Lab::with_host().await;
    let client = client(&lab, &host).await;
    let replies = client.stream::<_, AdminReply>(&AdminRequest::JobCancel(JobId(1)), by()).await.unwrap();
    drop(replies);
    until("the request is done", || host.services.finished.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_is_told_as_late() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let client = client(&lab, &host).await;
    let soon = Instant::now() + Duration::from_millis(300);
    let error = client.call::<_, AdminReply>(&AdminRequest::VmList, soon).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::DeadlinePassed, "{error}");
    let soon = Instant::now() + Duration::from_millis(300);
    let error = other.peers.call(host.id, Service::Raft, b"pend".to_vec(), soon).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::DeadlinePassed, "{error}");
    assert!(other.echo(&host, b"x").await.is_ok(), "the connection is still good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_is_an_answer_and_no_more() {
    let (lab, host) = Lab::with_host().await;
    let client = client(&lab, &host).await;
    let error = client.call::<_, AdminReply>(&AdminRequest::Inventory, by()).await.unwrap_err();
    let CallError::Failed(report) = error else { panic!("{error}") };
    assert_eq!(report.code, ErrorCode::Internal);
    client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap();
}
