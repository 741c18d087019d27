//! Bytes that are no request, and paths that lead elsewhere.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use vt_protocol::{
    admin::AccessRole,
    bulk::BulkRequest,
    call::{self, CallError},
    client::open_stream,
    codec,
    frame::Kind,
    hello::Hello,
    identity::Identity,
    ids::{AttemptId, CaseId, JobId},
    peer::{PeerReply, PeerRequest},
    service::Service,
};

use super::{
    Row, print,
    target::{Target, by, dialler, fetch},
};

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_request_end_in_a_reason() {
    let mut target = Target::start(5).await;
    let mut rows = Vec::new();
    let insider = target.insider();
    let viewer = target.client(AccessRole::Viewer, "vera").await;
    for service in [Service::Admin, Service::Peer, Service::Join] {
        let (identity, hello) = match service {
            Service::Admin => (&viewer, Hello::of(Some(target.cluster), None, 1)),
            _ => (&insider, target.hello_of(&insider)),
        };
        let long = (service.cap() as u32 + 1).to_le_bytes();
        let frames: [(&str, Vec<u8>); 4] = [
            ("a frame over the cap", vec![long[0], long[1], long[2], long[3], Kind::Request as u8, 1]),
            ("a frame of an unknown kind", vec![1, 0, 0, 0, 99, 1, 0]),
            ("a frame of an unknown version", vec![1, 0, 0, 0, Kind::Request as u8, 77, 0]),
            (
                "garbage in a good frame",
                [&[9, 0, 0, 0, Kind::Request as u8, 1, 0xff, 0xff, 0, 0][..], &[0xfe; 5]].concat(),
            ),
        ];
        for (what, bytes) in frames {
            let attack = format!("{what}, {service}");
            let since = target.moment().await;
            let (connection, _) = dialler(identity).connect(target.at, service, &hello, by()).await.unwrap();
            let (mut send, mut receive) = open_stream(&connection, by()).await.unwrap();
            send.write_all(&bytes).await.unwrap();
            send.flush().await.unwrap();
            let answer = call::next_reply(&mut receive, 4096, by()).await;
            let Err(CallError::Failed(report)) = answer else { panic!("{attack}: {answer:?}") };
            let entry = target.logged(since, &attack, |entry| entry.verb.starts_with("request")).await;
            let reason = report.evidence.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>().join(" ");
            rows.push(Row::of(&attack, format!("{report} ({reason})"), &entry));
        }
    }
    target.lives("garbage").await;

    // Paths that lead out, asked by a client for files and by a host that was taken over.
    let attempt = AttemptId { case: CaseId { job: JobId(1), index: 1 }, number: 1 };
    for path in ["../../../cluster/ca.key", "/etc/shadow", "a/../../../../cluster/host.key", "./x", "a\0b"] {
        let attack = format!("evidence at {path:?}, blob");
        let since = target.moment().await;
        let request = BulkRequest::Evidence { attempt, path: path.to_owned(), offset: 0 };
        let error = fetch(&target, &viewer, request).await.unwrap_err();
        let entry = target.logged(since, &attack, |entry| entry.verb == "evidence" && entry.object == path).await;
        rows.push(Row::of(&attack, error, &entry));

        let attack = format!("evidence at {path:?}, peer");
        let since = target.moment().await;
        let request = PeerRequest::EvidenceRead { attempt, path: path.to_owned(), offset: 0, length: 4096 };
        let reply = ask_peer(&target, &insider, &request).await;
        let PeerReply::Refused(report) = reply else { panic!("{attack}: {reply:?}") };
        let entry = target.logged(since, &attack, |entry| entry.verb == "evidence" && entry.object == path).await;
        rows.push(Row::of(&attack, report, &entry));
    }
    target.lives("paths").await;
    print("bytes and paths", &rows);
}

async fn ask_peer(target: &Target, identity: &Arc<Identity>, request: &PeerRequest) -> PeerReply {
    let hello = target.hello_of(identity);
    let (connection, _) = dialler(identity).connect(target.at, Service::Peer, &hello, by()).await.unwrap();
    let (mut send, mut receive) = open_stream(&connection, by()).await.unwrap();
    let cap = Service::Peer.cap();
    let payload = call::encode(request, cap).unwrap();
    let reply = call::ask(&mut send, &mut receive, &payload, cap, by()).await.unwrap();
    codec::decode_wire(&reply, cap).unwrap()
}
