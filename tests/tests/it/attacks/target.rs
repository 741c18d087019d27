//! What is attacked: one real `vtd` on a loopback address of this test alone, founder of a cluster of its own.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use vt_protocol::{
    admin::{AccessRole, AdminReply, AdminRequest, ClientToken, HostRole, Init, Join, TokenCreate},
    audit::{AuditEntry, AuditQuery},
    bulk::{BulkDialer, BulkRequest},
    client::Client,
    endpoint::MeshEndpoint,
    enroll::enroll,
    error::Report,
    hello::Hello,
    identity::{ClusterCa, Identity, PrivateKey, store},
    ids::{ClusterId, Name, RequestId},
    join::host_id_of,
    token::Token,
};
use vt_tests::program;

/// Everything that is waited for has to happen within this time, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn by() -> Instant {
    Instant::now() + PATIENCE
}

/// The daemon under attack. Dropped, it is killed.
pub(crate) struct Target {
    dir: TempDir,
    process: Child,
    pub(super) at: SocketAddr,
    pub(super) cluster: ClusterId,
    /// The cluster's CA: an attacker does not have it; it makes what insiders have.
    pub(super) ca: ClusterCa,
    /// The second of the last attack, and how many began in it.
    second: u64,
    attacks: u64,
}

impl Target {
    /// A daemon with a cluster of one host. `index` differs for each daemon of a test process.
    pub(crate) async fn start(index: u8) -> Self {
        let mut target = Self::unclaimed(index, "host1").await;
        let init = Init {
            cluster: "target".parse().unwrap(),
            host: None,
            advertise: None,
            role: HostRole::Voter,
            labels: Default::default(),
        };
        let AdminReply::Joined(joined) = target.ask(&AdminRequest::Init(init)).await.unwrap() else { panic!() };
        target.cluster = joined.cluster;
        target.ca = store::load_ca(&target.dir.path().join("data/cluster"), joined.cluster).unwrap().unwrap();
        target
    }

    /// Another daemon, in this one's cluster.
    pub(super) async fn joined(&self, index: u8, name: &str) -> Self {
        let mut other = Self::unclaimed(index, name).await;
        let token = self.host_token().await.reveal();
        let labels = Default::default();
        let join = Join { token, host: None, advertise: None, role: HostRole::Learner, labels };
        let AdminReply::Joined(_) = other.ask(&AdminRequest::Join(join)).await.unwrap() else { panic!() };
        other.cluster = self.cluster;
        other
    }

    /// A daemon that belongs to no cluster.
    async fn unclaimed(index: u8, name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("vtd-").tempdir_in("/tmp").unwrap();
        let at = address(index);
        let path = |what: &str| dir.path().join(what).display().to_string();
        let text = format!(
            "[host]\nname = \"{name}\"\nlisten = \"{at}\"\nkind = \"namespace\"\n\
             [paths]\ndata = \"{}\"\nrun = \"{}\"\nimages = \"{}\"\ndisks = \"{}\"\n\
             [qemu]\nbinary = \"/nowhere/qemu\"\n",
            path("data"),
            path("run"),
            path("images"),
            path("disks"),
        );
        fs::write(dir.path().join("vtd.toml"), text).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new(program("vtd"))
            .arg("--config")
            .arg(dir.path().join("vtd.toml"))
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        // Nobody's, until there is a cluster.
        let ca = ClusterCa::generate(ClusterId(1)).unwrap();
        let target = Self { dir, process, at, cluster: ClusterId(1), ca, second: 0, attacks: 0 };
        let until = by();
        while target.ask(&AdminRequest::Hello).await.is_err() {
            assert!(Instant::now() < until, "the daemon does not answer: {}", target.log());
            sleep(Duration::from_millis(50)).await;
        }
        target
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/vtd.sock")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Asks over the daemon's socket.
    pub(crate) async fn ask(&self, request: &AdminRequest) -> Result<AdminReply, Report> {
        let client = Client::local(&self.socket(), by()).await.map_err(|error| error.report())?;
        match client.call(request, by()).await.map_err(|error| error.report())? {
            AdminReply::Refused(report) => Err(report),
            reply => Ok(reply),
        }
    }

    /// A token for a host.
    pub(super) async fn host_token(&self) -> Token {
        let create = TokenCreate { request: RequestId::random(), role: HostRole::Learner, ttl_s: 600 };
        let Ok(AdminReply::Token(made)) = self.ask(&AdminRequest::TokenCreate(create)).await else { panic!() };
        made.text.parse().unwrap()
    }

    /// A token for a client.
    pub(crate) async fn client_token(&self, role: AccessRole, name: &str) -> Token {
        let name = Some(name.parse().unwrap());
        let create = ClientToken { request: RequestId::random(), role, name, ttl_s: 600, valid_s: 3600 };
        let Ok(AdminReply::Token(made)) = self.ask(&AdminRequest::ClientToken(create)).await else { panic!() };
        made.text.parse().unwrap()
    }

    /// A client that was let in the proper way.
    pub(super) async fn client(&self, role: AccessRole, name: &str) -> Arc<Identity> {
        let token = self.client_token(role, name).await;
        let wish: Name = "somebody".parse().unwrap();
        let (identity, _) = enroll(&token, PrivateKey::generate().unwrap(), &wish, by()).await.unwrap();
        Arc::new(identity)
    }

    /// The identity of the target's own host: what a host that was taken over has.
    pub(super) fn insider(&self) -> Arc<Identity> {
        Arc::new(store::load(&self.dir.path().join("data/cluster")).unwrap())
    }

    /// An identity for a host that `ca` signed and nobody admitted.
    pub(super) fn stranger(&self, ca: &ClusterCa) -> Arc<Identity> {
        let key = PrivateKey::generate().unwrap();
        let request = key.signing_request().unwrap();
        let certificate = ca.issue_host(&request, host_id_of(&key.public()), &"stranger".parse().unwrap()).unwrap();
        Arc::new(Identity::new(key, certificate, self.ca.certificate().clone()).unwrap())
    }

    /// The hello of a holder of `identity`, who tells the truth.
    pub(super) fn hello_of(&self, identity: &Identity) -> Hello {
        Hello::of(Some(self.cluster), Some(host_id_of(&identity.key().public())), 1)
    }

    /// Now, unix milliseconds: what an attack leaves in the trail is looked for from here on. A daemon writes down twenty
    /// refusals a second and counts the others, so attacks begin ten a second.
    pub(super) async fn moment(&mut self) -> u64 {
        loop {
            let now = now_ms();
            if now / 1000 != self.second {
                (self.second, self.attacks) = (now / 1000, 0);
            }
            if self.attacks < 10 {
                self.attacks += 1;
                return now;
            }
            sleep(Duration::from_millis(1000 - now % 1000)).await;
        }
    }

    /// The newest entry of the audit trail, not older than `since`, for which `wanted` holds.
    pub(super) async fn logged(&self, since: u64, what: &str, wanted: impl Fn(&AuditEntry) -> bool) -> AuditEntry {
        let query = AuditQuery { since_unix_ms: since, limit: 5000, denied: false };
        let until = by();
        loop {
            let Ok(AdminReply::Audit(trail)) = self.ask(&AdminRequest::Audit(query)).await else { panic!() };
            if let Some(found) = trail.entries.iter().rev().find(|entry| wanted(entry)) {
                return found.clone();
            }
            assert!(Instant::now() < until, "{what} is not in the trail: {:#?}\n{}", trail.entries, self.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The daemon lives, decides, and serves those who may.
    pub(super) async fn lives(&mut self, attack: &str) {
        assert_eq!(self.process.try_wait().unwrap(), None, "{attack} ended the daemon: {}", self.log());
        match self.ask(&AdminRequest::Status).await {
            Ok(AdminReply::Status(status)) => assert!(status.quorum, "{attack}: no quorum"),
            other => panic!("{attack}: {other:?}\n{}", self.log()),
        }
        assert!(!self.log().contains("panicked"), "{attack} made a thread panic: {}", self.log());
    }

    /// Resident memory of the daemon, KiB.
    pub(super) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An endpoint that dials with an identity.
pub(super) fn dialler(identity: &Arc<Identity>) -> MeshEndpoint {
    MeshEndpoint::dial_only("127.0.0.1:0".parse().unwrap(), Arc::clone(identity)).unwrap()
}

/// An address of this test process alone.
fn address(index: u8) -> SocketAddr {
    let pid = std::process::id();
    SocketAddr::from(([127, (pid >> 8) as u8 | 0x40, pid as u8, index], 17_465))
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_millis().try_into().unwrap()
}

/// Asks the bulk service for something.
pub(super) async fn fetch(target: &Target, identity: &Arc<Identity>, request: BulkRequest) -> Result<u64, String> {
    let dialer = BulkDialer::new(identity, Hello::of(Some(target.cluster), None, 1)).unwrap();
    let mut sink = Vec::new();
    let fetched = dialer.fetch(target.at, None, &request, 1 << 20, &mut sink, by()).await;
    fetched.map_err(|error| error.report().to_string())
}
