//! Connections in great numbers, and connections that do nothing: memory stays bounded, and who may is served meanwhile.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};
use vt_protocol::{
    admin::{AccessRole, AdminReply, AdminRequest},
    client::Client,
    endpoint,
    frame::{FRAME_VERSION, Kind},
    identity::{subject::server_name, tls},
    service::Service,
};

use super::{
    Row, print,
    target::{Target, by},
};

/// Connections of the flood, and addresses they come from.
const CONNECTIONS: usize = 2000;
const ADDRESSES: u8 = 4;
/// What the daemon may grow by under any of this, MiB. Without bounds before admission it would be gigabytes.
const GROWTH_MIB: u64 = 64;

#[tokio::test(flavor = "multi_thread")]
async fn floods_are_bounded_and_shut_out_nobody() {
    let mut target = Target::start(7).await;
    let mut rows = Vec::new();
    let client = target.client(AccessRole::Viewer, "vera").await;
    let before = target.resident_kib();

    // Handshakes that are never followed by a hello, from several addresses at once, with as much data as is taken.
    let attack = format!("{CONNECTIONS} connections of {ADDRESSES} addresses that say nothing");
    let since = target.moment().await;
    let mut flood = JoinSet::new();
    for n in 0..ADDRESSES {
        let from: SocketAddr = SocketAddr::from(([127, 99, n, 1], 0));
        let dialler = endpoint::bind(from, None, rand::random()).unwrap();
        let tls = tls::client_without_certificate(target.ca.certificate(), Service::Join).unwrap();
        let dial = endpoint::client_config(tls, Service::Join).unwrap();
        for _ in 0..CONNECTIONS / usize::from(ADDRESSES) {
            let (dialler, dial, at, name) = (dialler.clone(), dial.clone(), target.at, server_name(target.cluster));
            flood.spawn(async move {
                let Ok(connecting) = dialler.connect_with(dial, at, &name) else { return false };
                let Ok(Ok(connection)) = timeout(Duration::from_secs(20), connecting).await else { return false };
                // Streams that carry as much as the other side takes, and are never read.
                let garbage = vec![0x55; 8 << 20];
                let mut sending = JoinSet::new();
                while let Ok(Ok((mut send, _receive))) = timeout(Duration::from_secs(1), connection.open_bi()).await {
                    let garbage = garbage.clone();
                    sending.spawn(async move {
                        let _ = timeout(Duration::from_secs(2), send.write_all(&garbage[9..])).await;
                    });
                    if sending.len() >= 4 {
                        break;
                    }
                }
                while sending.join_next().await.is_some() {}
                let _ = timeout(Duration::from_secs(20), connection.closed()).await;
                true
            });
        }
    }
    // While it lasts, an admitted client from elsewhere comes through, and memory is looked at.
    let (mut most, mut served) = (before, 0);
    let watching = Instant::now() + Duration::from_secs(8);
    while Instant::now() < watching {
        let asked = async {
            let met = Client::remote(target.at, Arc::clone(&client), by()).await?;
            let reply = met.call::<_, AdminReply>(&AdminRequest::Status, by()).await;
            met.close().await;
            reply
        };
        if matches!(asked.await, Ok(AdminReply::Status(_))) {
            served += 1;
        }
        most = most.max(target.resident_kib());
    }
    flood.abort_all();
    while flood.join_next().await.is_some() {}
    let entry = target.logged(since, &attack, |entry| entry.from.starts_with("127.99.")).await;
    let grown = most.saturating_sub(before) >> 10;
    assert!(served > 0, "an admitted client was shut out by the flood");
    assert!(grown <= GROWTH_MIB, "the daemon grew by {grown} MiB");
    rows.push(Row::of(&attack, format!("places by address; grew {grown} MiB, served {served} others"), &entry));
    target.lives(&attack).await;

    // The bulk port: connections over TCP that say nothing.
    let attack = "500 TCP connections that say nothing";
    let before = target.resident_kib();
    let since = target.moment().await;
    let mut held = Vec::new();
    for _ in 0..500 {
        if let Ok(stream) = TcpStream::connect(target.at).await {
            held.push(stream);
        }
    }
    let entry = target.logged(since, attack, |entry| entry.verb == "connect blob").await;
    let grown = target.resident_kib().saturating_sub(before) >> 10;
    assert!(grown <= GROWTH_MIB, "the daemon grew by {grown} MiB");
    rows.push(Row::of(attack, format!("places by address, time; grew {grown} MiB"), &entry));
    drop(held);
    target.lives(attack).await;

    // A hello, one byte at a time.
    let attack = "slow loris: a hello of two bytes a second";
    let since = target.moment().await;
    let dialler = endpoint::bind("127.0.0.1:0".parse().unwrap(), None, rand::random()).unwrap();
    let tls = tls::client_without_certificate(target.ca.certificate(), Service::Join).unwrap();
    let dial = endpoint::client_config(tls, Service::Join).unwrap();
    let connection = dialler.connect_with(dial, target.at, &server_name(target.cluster)).unwrap().await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let began = Instant::now();
    let dripping = async {
        // A hello of four KiB is announced.
        let _ = send.write_all(&[0, 16, 0, 0, Kind::Hello as u8, FRAME_VERSION]).await;
        loop {
            if send.write_all(&[0]).await.is_err() || send.flush().await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = dripping => {}
        _ = connection.closed() => {}
    }
    let after = began.elapsed();
    assert!(after < Duration::from_secs(30), "it was kept for {after:?}");
    let entry = target.logged(since, attack, |entry| entry.verb == "connect join").await;
    rows.push(Row::of(attack, format!("closed after {:.1} s", after.as_secs_f64()), &entry));
    target.lives(attack).await;
    print("floods", &rows);
}
