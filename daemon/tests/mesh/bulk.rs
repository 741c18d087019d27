//! The bulk service: what is given, what is kept, who is refused.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use vt_daemon::mesh::Services;
use vt_daemon::mesh::bulk::{BlobSink, BlobSource, BulkServer, Content};
use vt_daemon::migrate::carry::Duplex;
use vt_protocol::admin::AccessRole;
use vt_protocol::bulk::{BulkDialer, BulkError, BulkRequest, Expected};
use vt_protocol::call::CallError;
use vt_protocol::error::{ErrorCode, Report};
use vt_protocol::hello::{Hello, Refusal};
use vt_protocol::identity::{Identity, Validity};
use vt_protocol::ids::{AttemptId, CaseId, Digest, HostId, JobId, MigrationId, VmId};

use crate::support::{CLUSTER, Host, Lab, by};

/// Blobs and files in memory.
#[derive(Default)]
struct Shelf {
    blobs: Arc<Mutex<HashMap<Digest, Vec<u8>>>>,
    files: HashMap<String, Vec<u8>>,
    /// Serves other bytes than the digest's.
    lies: bool,
    /// Whose migrations come in: their bytes come back reversed at their end.
    moves_from: Option<HostId>,
}

impl Shelf {
    /// With one blob, and its digest.
    fn with(bytes: &[u8]) -> (Self, Digest) {
        let (shelf, digest) = (Self::default(), Digest::of(bytes));
        shelf.blobs.lock().unwrap().insert(digest, bytes.to_vec());
        (shelf, digest)
    }
}

struct Sink {
    bytes: Vec<u8>,
    digest: Digest,
    blobs: Arc<Mutex<HashMap<Digest, Vec<u8>>>>,
}

#[async_trait]
impl BlobSink for Sink {
    fn writer(&mut self) -> &mut (dyn AsyncWrite + Send + Unpin) {
        &mut self.bytes
    }

    async fn keep(self: Box<Self>) -> io::Result<()> {
        self.blobs.lock().unwrap().insert(self.digest, self.bytes);
        Ok(())
    }
}

fn content(bytes: Vec<u8>) -> Content {
    let length = bytes.len() as u64;
    let reader: Box<dyn AsyncBufRead + Send + Unpin> = Box::new(io::Cursor::new(bytes));
    (length, reader)
}

#[async_trait]
impl BlobSource for Shelf {
    async fn blob(&self, digest: Digest) -> io::Result<Option<Content>> {
        let mut found = self.blobs.lock().unwrap().get(&digest).cloned();
        if self.lies
            && let Some(bytes) = &mut found
        {
            bytes[0] ^= 1;
        }
        Ok(found.map(content))
    }

    async fn evidence(&self, _: AttemptId, path: &Path, offset: u64) -> io::Result<Option<Content>> {
        let found = self.files.get(path.to_str().unwrap());
        Ok(found.map(|bytes| content(bytes[offset as usize..].to_vec())))
    }

    async fn manifest(&self, root: Digest) -> io::Result<Option<Content>> {
        self.blob(root).await
    }

    async fn blocks(&self, root: Digest, _: u16, _: Vec<(u32, u32)>) -> io::Result<Option<Content>> {
        self.blob(root).await
    }

    async fn have(&self, root: Digest) -> io::Result<Option<Content>> {
        self.blob(root).await
    }

    async fn accept(&self, digest: Digest, length: u64) -> Result<Option<Box<dyn BlobSink>>, Report> {
        if length > 64 << 20 {
            return Err(Report::new(ErrorCode::TooLarge, "larger than a blob may be"));
        }
        if self.blobs.lock().unwrap().contains_key(&digest) {
            return Ok(None);
        }
        Ok(Some(Box::new(Sink { bytes: Vec::new(), digest, blobs: Arc::clone(&self.blobs) })))
    }

    async fn inlet(&self, from: HostId, _: &MigrationId) -> Result<Box<dyn Duplex>, Report> {
        if self.moves_from != Some(from) {
            return Err(Report::new(ErrorCode::Denied, "not from that host"));
        }
        let (ours, mut qemus) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            qemus.read_to_end(&mut bytes).await.unwrap();
            bytes.reverse();
            qemus.write_all(&bytes).await.unwrap();
        });
        Ok(Box::new(ours))
    }
}

const ATTEMPT: AttemptId = AttemptId { case: CaseId { job: JobId(5), index: 1 }, number: 1 };

async fn serve(host: &Host, shelf: Shelf) -> SocketAddr {
    // The same port number as the host's UDP port.
    let listener = TcpListener::bind(host.at).await.unwrap();
    let services = Arc::clone(&host.services) as Arc<dyn Services>;
    let server = BulkServer::new(listener, host.endpoint.clone(), services, Arc::new(shelf)).unwrap();
    tokio::spawn(server.run(CancellationToken::new()));
    host.at
}

fn dialer(host: &Host) -> BulkDialer {
    BulkDialer::new(&host.endpoint.identity(), host.hello.clone()).unwrap()
}

fn client_dialer(identity: &Identity) -> BulkDialer {
    BulkDialer::new(identity, Hello::of(Some(CLUSTER), None, 1)).unwrap()
}

fn blob() -> Vec<u8> {
    (0..3_000_000u32).map(|n| ((n * 7) >> 3) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migrations_stream_is_carried_both_ways_for_its_source_and_for_nobody_else() {
    let (lab, host) = Lab::with_host().await;
    let (source, third) = (lab.add("host2").await, lab.add("host3").await);
    let at = serve(&host, Shelf { moves_from: Some(source.id), ..Shelf::default() }).await;
    let vm = VmId { attempt: ATTEMPT, name: "vm1".parse().unwrap() };
    let migration = MigrationId { vm, number: 1 };

    let mut stream = dialer(&source).migration(at, None, &migration, by()).await.unwrap();
    let sent = blob();
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (read, ()) = tokio::join!(reader.read_to_end(&mut back), write);
    read.unwrap();
    back.reverse();
    assert!(back == sent, "{} of {} bytes, or others", back.len(), sent.len());

    let dates = Validity::from_now(Duration::from_secs(3600));
    let admin = client_dialer(&lab.client(AccessRole::Admin, dates));
    for refused in [dialer(&third), admin] {
        let error = refused.migration(at, None, &migration, by()).await.unwrap_err();
        assert_eq!(error.report().code, ErrorCode::Denied, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_and_evidence_are_fetched_and_blobs_are_kept() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let bytes = blob();
    let digest = Digest::of(&bytes);
    let files = HashMap::from([("h1/serial.log".to_owned(), b"login:".to_vec())]);
    let shelf = Shelf { files, ..Shelf::default() };
    let blobs = Arc::clone(&shelf.blobs);
    let at = serve(&host, shelf).await;
    let dialer = dialer(&other);
    let expected = Expected { host: host.id, key: host.endpoint.identity().key().public() };

    let mut sink = Vec::new();
    let missing = dialer.fetch(at, None, &BulkRequest::Blob(digest), 1 << 30, &mut sink, by()).await.unwrap_err();
    assert_eq!(missing.report().code, ErrorCode::ResultsMissing);
    for _ in 0..2 {
        let length = bytes.len() as u64;
        dialer.offer(at, Some(&expected), (digest, length), &mut bytes.as_slice(), by()).await.unwrap();
    }
    assert!(blobs.lock().unwrap()[&digest] == bytes);
    let length = dialer.fetch(at, Some(&expected), &BulkRequest::Blob(digest), 1 << 30, &mut sink, by()).await.unwrap();
    assert!(sink == bytes && length == bytes.len() as u64);

    let want = BulkRequest::Evidence { attempt: ATTEMPT, path: "h1/serial.log".into(), offset: 2 };
    let mut sink = Vec::new();
    dialer.fetch(at, None, &want, 100, &mut sink, by()).await.unwrap();
    assert_eq!(sink, b"gin:");
    let long = dialer.fetch(at, None, &want, 3, &mut sink, by()).await.unwrap_err();
    assert!(matches!(long, BulkError::TooLong { length: 4, cap: 3 }), "{long}");
    for path in ["../secret", "/etc/shadow", ""] {
        let want = BulkRequest::Evidence { attempt: ATTEMPT, path: path.into(), offset: 0 };
        let refused = dialer.fetch(at, None, &want, 100, &mut sink, by()).await.unwrap_err();
        assert_eq!(refused.report().title, "the path leads out of the attempt");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn false_bytes_are_found_by_either_side() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let bytes = blob();
    let digest = Digest::of(&bytes);
    let shelf = Shelf { lies: true, ..Shelf::default() };
    let blobs = Arc::clone(&shelf.blobs);
    blobs.lock().unwrap().insert(digest, bytes.clone());
    let at = serve(&host, shelf).await;
    let dialer = dialer(&other);
    let mut sink = Vec::new();
    let false_bytes = dialer.fetch(at, None, &BulkRequest::Blob(digest), 1 << 30, &mut sink, by()).await.unwrap_err();
    assert!(matches!(false_bytes, BulkError::Digest { wanted, .. } if wanted == digest), "{false_bytes}");

    let claimed = Digest::of(b"something else");
    let refused = dialer.offer(at, None, (claimed, 100), &mut &bytes[..100], by()).await.unwrap_err();
    assert_eq!(refused.report().code, ErrorCode::ImageDamaged);
    assert!(!blobs.lock().unwrap().contains_key(&claimed), "it is not kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_reads_one_part_after_another_on_one_connection_until_it_is_removed() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let bytes = blob();
    let (shelf, digest) = Shelf::with(&bytes);
    let at = serve(&host, shelf).await;
    let mut link = dialer(&other).link(at, None, by()).await.unwrap();
    let part = BulkRequest::Blocks { root: digest, file: 0, runs: vec![(0, 1)] };
    for want in [&part, &BulkRequest::Have(digest), &part] {
        let mut sink = Vec::new();
        link.fetch(want, 1 << 30, &mut sink, by()).await.unwrap();
        assert!(sink == bytes);
    }
    lab.remove(other.id);
    let refused = link.fetch(&part, 1 << 30, &mut Vec::new(), by()).await.unwrap_err();
    assert_eq!(refused.report().code, ErrorCode::HostRemoved, "{refused}");
}

/// Passes connections on to `to`, and changes one of the bytes that come back, so many behind the first.
async fn altering(to: SocketAddr, behind: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move {
                let ((mut from, mut back), (mut there, mut away)) = (near.split(), far.split());
                let answers = async {
                    tokio::io::copy(&mut (&mut there).take(behind), &mut back).await?;
                    let byte = there.read_u8().await?;
                    back.write_u8(byte ^ 1).await?;
                    tokio::io::copy(&mut there, &mut back).await
                };
                tokio::select! {
                    _ = answers => {}
                    _ = tokio::io::copy(&mut from, &mut away) => {}
                }
            });
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_is_altered_on_the_wire_ends_the_transfer_and_is_not_taken() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let bytes = blob();
    let (shelf, digest) = Shelf::with(&bytes);
    let at = altering(serve(&host, shelf).await, 1_000_000).await;
    let mut sink = Vec::new();
    let want = BulkRequest::Blocks { root: digest, file: 0, runs: vec![(0, 1)] };
    let broken = dialer(&other).fetch(at, None, &want, 1 << 30, &mut sink, by()).await.unwrap_err();
    assert!(matches!(broken, BulkError::Broken { .. }), "{broken}");
    assert!(broken.report().retryable, "it is asked for again");
    assert!(bytes.starts_with(&sink), "what came before it is what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_refused_and_the_service_lives_on() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let bytes = b"a plan".to_vec();
    let digest = Digest::of(&bytes);
    let at = serve(&host, Shelf::default()).await;
    let mut sink = Vec::new();
    let want = BulkRequest::Blob(digest);

    // A client that may look may not give.
    let dates = Validity::from_now(Duration::from_secs(3600));
    let viewer = client_dialer(&lab.client(AccessRole::Viewer, dates));
    let denied = viewer.offer(at, None, (digest, 6), &mut bytes.as_slice(), by()).await.unwrap_err();
    assert_eq!(denied.report().code, ErrorCode::Denied);
    let runner = client_dialer(&lab.client(AccessRole::Runner, dates));
    runner.offer(at, None, (digest, 6), &mut bytes.as_slice(), by()).await.unwrap();
    viewer.fetch(at, None, &want, 100, &mut sink, by()).await.unwrap();

    // Images hold the keys of guests: they are for hosts.
    let blocks = BulkRequest::Blocks { root: digest, file: 0, runs: vec![(0, 1)] };
    for of_image in [BulkRequest::Manifest(digest), blocks] {
        let denied = runner.fetch(at, None, &of_image, 100, &mut sink, by()).await.unwrap_err();
        assert_eq!(denied.report().code, ErrorCode::Denied);
        dialer(&other).fetch(at, None, &of_image, 100, &mut sink, by()).await.unwrap();
    }

    // A host that was removed; one of another CA; one that expects another host.
    let third = lab.add("host3").await;
    lab.remove(third.id);
    let refused = dialer(&third).fetch(at, None, &want, 100, &mut sink, by()).await.unwrap_err();
    let BulkError::Call(CallError::Refused { refusal, .. }) = refused else { panic!("{refused}") };
    assert_eq!(refusal, Refusal::NotAdmitted);
    let foreign = vt_protocol::identity::ClusterCa::generate(CLUSTER).unwrap();
    let elsewhere = Lab { ca: Arc::new(foreign), log: Arc::clone(&lab.log) };
    let stranger = client_dialer(&elsewhere.client(AccessRole::Admin, dates));
    assert!(stranger.fetch(at, None, &want, 100, &mut sink, by()).await.is_err());
    let wrong = Expected { host: third.id, key: third.endpoint.identity().key().public() };
    let wrong_key = dialer(&other).fetch(at, Some(&wrong), &want, 100, &mut sink, by()).await.unwrap_err();
    assert!(matches!(wrong_key, BulkError::Call(CallError::WrongKey { .. })), "{wrong_key}");

    // No TLS at all.
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout_at(by(), tcp.read_to_end(&mut rest)).await.expect("the daemon hangs up").ok();

    dialer(&other).fetch(at, None, &want, 100, &mut sink, by()).await.unwrap();
}
