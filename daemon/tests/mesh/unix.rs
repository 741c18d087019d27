//! The admin socket: claimed or not, stale or taken.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use vt_daemon::mesh::AdminService;
use vt_daemon::mesh::unix::{AdminSocket, SocketError};
use vt_protocol::admin::{AdminReply, AdminRequest};
use vt_protocol::call::CallError;
use vt_protocol::client::Client;
use vt_protocol::error::ErrorCode;
use vt_protocol::ids::JobId;

use crate::support::{Host, Lab, by, until};

fn serve(host: &Host, path: &Path) -> CancellationToken {
    let stop = CancellationToken::new();
    let socket = AdminSocket::bind(path).unwrap();
    tokio::spawn(socket.serve(Arc::clone(&host.services) as Arc<dyn AdminService>, stop.clone()));
    stop
}

#[tokio::test(flavor = "multi_thread")]
async fn vtctl_is_served_on_the_socket() {
    let (_lab, host) = Lab::with_host().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vtd.sock");
    let stop = serve(&host, &path);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    let client = Client::local(&path, by()).await.unwrap();
    assert_eq!(client.daemon().host, Some(host.id));
    let who = client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap();
    assert_eq!(who, AdminReply::Inventory(vec!["Admin true".to_owned()]));
    let mut replies = client.stream::<_, AdminReply>(&AdminRequest::JobList, by()).await.unwrap();
    let mut count = 0;
    while replies.next(by()).await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 3);

    let mut watch = client.stream::<_, AdminReply>(&AdminRequest::JobWatch(JobId(1)), by()).await.unwrap();
    watch.next(by()).await.unwrap();
    drop(watch);
    let watching = || host.services.watching.load(std::sync::atomic::Ordering::SeqCst);
    until("the watch has ended", || watching() == 0).await;

    stop.cancel();
    until("the socket's file is gone", || !path.exists()).await;
    assert!(matches!(Client::local(&path, by()).await, Err(CallError::Unreachable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_on_the_socket_harms_nobody() {
    let (_lab, host) = Lab::with_host().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vtd.sock");
    let _stop = serve(&host, &path);
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[255; 64], &[0; 6], &[]] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        tokio::time::timeout_at(by(), stream.read_to_end(&mut rest)).await.expect("the daemon hangs up").ok();
    }
    let client = Client::local(&path, by()).await.unwrap();
    let error = client.call::<_, AdminReply>(&"not a request", by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::WireVersion, "{error}");
    client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let (_lab, host) = Lab::with_host().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vtd.sock");
    // What a daemon that was killed leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let _stop = serve(&host, &path);
    assert!(matches!(AdminSocket::bind(&path), Err(SocketError::InUse(_))));
    Client::local(&path, by()).await.unwrap();

    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(AdminSocket::bind(&file), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
