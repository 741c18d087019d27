//! Real `vtd` processes on loopback addresses of their own, ended when a test ends.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, ClusterStatus, HostRole, Init, Join, Joined, NewToken, TokenCreate},
    call::Replies,
    client::Client,
    error::{ErrorCode, Report},
    ids::RequestId,
};

/// Everything that is waited for has to happen within this time, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) const VTD: &str = env!("CARGO_BIN_EXE_vtd");

/// One daemon with its directories. Dropped, its process is killed.
pub(crate) struct Daemon {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    process: Option<Child>,
    pretends: Vec<(&'static str, String)>,
}

impl Daemon {
    /// Writes settings for a daemon below `root`; it is not started.
    pub(crate) fn new(root: &Path, name: &str, address: SocketAddr) -> Self {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        let path = |what: &str| dir.join(what).display().to_string();
        let text = format!(
            "[host]\nname = \"{name}\"\nlisten = \"{address}\"\nkind = \"namespace\"\n\
             [paths]\ndata = \"{}\"\nrun = \"{}\"\nimages = \"{}\"\ndisks = \"{}\"\n\
             [qemu]\nbinary = \"/nowhere/qemu\"\n[log]\nfilter = \"debug,quinn=info,quinn_proto=info,rustls=info\"\n",
            path("data"),
            path("run"),
            path("images"),
            path("disks"),
        );
        fs::write(dir.join("vtd.toml"), text).unwrap();
        Self { name: name.to_owned(), dir, process: None, pretends: Vec::new() }
    }

    /// What the debug build is to pretend from its next start on.
    pub(crate) fn pretend(&mut self, what: &'static str, value: &str) {
        self.pretends.retain(|(known, _)| *known != what);
        self.pretends.push((what, value.to_owned()));
    }

    /// Adds sections to its settings, before it is started.
    pub(crate) fn set(&self, sections: &str) {
        let text = fs::read_to_string(self.settings()).unwrap();
        fs::write(self.settings(), format!("{text}{sections}")).unwrap();
    }

    pub(crate) fn settings(&self) -> PathBuf {
        self.dir.join("vtd.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("run/vtd.sock")
    }

    /// Starts the process and waits until it answers.
    pub(crate) async fn start(&mut self) {
        self.spawn();
        let by = Instant::now() + PATIENCE;
        while !matches!(self.ask(&AdminRequest::Hello).await, Ok(AdminReply::Hello(_))) {
            assert!(Instant::now() < by, "{} does not answer: {}", self.name, self.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts the process.
    pub(crate) fn spawn(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let child = Command::new(VTD)
            .arg("--config")
            .arg(self.settings())
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .envs(self.pretends.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().expect("the daemon runs").id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// Kills the process at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let by = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.as_mut().expect("the daemon runs").try_wait().unwrap() {
                self.process = None;
                return status;
            }
            assert!(Instant::now() < by, "{} does not end: {}", self.name, self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// The end of the daemon's log.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Asks over the daemon's socket; a refusal is an error.
    pub(crate) async fn ask(&self, request: &AdminRequest) -> Result<AdminReply, Report> {
        let by = Instant::now() + Duration::from_secs(40);
        let client = Client::local(&self.socket(), by).await.map_err(|error| error.report())?;
        match client.call(request, by).await.map_err(|error| error.report())? {
            AdminReply::Refused(report) => Err(report),
            reply => Ok(reply),
        }
    }

    /// Asks for a stream.
    pub(crate) async fn stream(&self, request: &AdminRequest) -> Items {
        let by = Instant::now() + Duration::from_secs(40);
        let client = Client::local(&self.socket(), by).await.unwrap();
        Items(client.stream(request, by).await.unwrap())
    }

    pub(crate) async fn init(&self) -> Result<Joined, Report> {
        let init = Init {
            cluster: "test".parse().unwrap(),
            host: None,
            advertise: None,
            role: HostRole::Voter,
            labels: Default::default(),
        };
        match self.ask(&AdminRequest::Init(init)).await? {
            AdminReply::Joined(joined) => Ok(joined),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn token(&self) -> NewToken {
        let create = TokenCreate { request: RequestId::random(), role: HostRole::Voter, ttl_s: 600 };
        match self.ask(&AdminRequest::TokenCreate(create)).await {
            Ok(AdminReply::Token(token)) => token,
            other => panic!("{other:?}: {}", self.log()),
        }
    }

    pub(crate) async fn join(&self, token: &str) -> Result<Joined, Report> {
        self.join_as(token, HostRole::Voter).await
    }

    pub(crate) async fn join_as(&self, token: &str, role: HostRole) -> Result<Joined, Report> {
        let join = Join { token: token.to_owned(), host: None, advertise: None, role, labels: Default::default() };
        match self.ask(&AdminRequest::Join(join)).await? {
            AdminReply::Joined(joined) => Ok(joined),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn status(&self) -> Result<ClusterStatus, Report> {
        match self.ask(&AdminRequest::Status).await? {
            AdminReply::Status(status) => Ok(*status),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the daemon refuses to tell its status with this code.
    pub(crate) async fn refused(&self, code: ErrorCode) {
        let by = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if matches!(&status, Err(report) if report.code == code) {
                return;
            }
            assert!(Instant::now() < by, "{} does not answer {code}: {status:#?}\n{}", self.name, self.log());
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the status is as wanted.
    pub(crate) async fn wait(&self, what: &str, wanted: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
        let by = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if let Ok(status) = &status
                && wanted(status)
            {
                return status.clone();
            }
            assert!(Instant::now() < by, "{}: not {what}: {status:#?}\n{}", self.name, self.log());
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The items of a stream.
pub(crate) struct Items(Replies<AdminReply>);

impl Items {
    /// The next one; none after the last.
    pub(crate) async fn next(&mut self) -> Option<AdminReply> {
        self.0.next(Instant::now() + PATIENCE).await.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An address of this test process alone.
fn address(index: u8) -> SocketAddr {
    let pid = std::process::id();
    SocketAddr::from(([127, (pid >> 8) as u8 | 0x80, pid as u8, index], 17_465))
}

/// Daemons that share a temporary directory.
pub(crate) struct Daemons {
    pub(crate) all: Vec<Daemon>,
    root: TempDir,
}

impl Daemons {
    /// Settings for `count` daemons on addresses of this test alone; nothing is started.
    pub(crate) fn new(count: u8) -> Self {
        // Sockets have short paths, and other tests other addresses.
        let root = tempfile::Builder::new().prefix("vtd-").tempdir_in("/tmp").unwrap();
        let all = (1..=count).map(|index| Daemon::new(root.path(), &format!("host{index}"), address(index))).collect();
        Self { all, root }
    }

    /// One more daemon, unclaimed and running; gives its place.
    pub(crate) async fn add(&mut self, index: u8) -> usize {
        self.all.push(Daemon::new(self.root.path(), &format!("host{index}"), address(index)));
        let place = self.all.len() - 1;
        self.all[place].start().await;
        place
    }

    /// One cluster of all of them, every one live, with the number of voters that this makes.
    pub(crate) async fn cluster(count: u8) -> Self {
        Self::cluster_of(count, HostRole::Voter).await
    }

    /// The same, where all but the first wish for this role.
    pub(crate) async fn cluster_of(count: u8, role: HostRole) -> Self {
        let mut daemons = Self::new(count);
        daemons.gather(role).await;
        let voters = if count < 3 || role == HostRole::Learner { 1 } else { 3 };
        daemons.settled(voters).await;
        daemons
    }

    /// Starts all and makes one cluster of them.
    pub(crate) async fn gather(&mut self, role: HostRole) {
        for daemon in &mut self.all {
            daemon.start().await;
        }
        let first = &self.all[0];
        first.init().await.unwrap_or_else(|report| panic!("{report:?}\n{}", first.log()));
        for daemon in &self.all[1..] {
            let token = first.token().await;
            daemon.join_as(&token.text, role).await.unwrap_or_else(|report| panic!("{report:?}\n{}", daemon.log()));
        }
    }

    /// Waits until every running daemon sees all running ones live under one leader.
    pub(crate) async fn settled(&self, voters: u32) {
        let running: Vec<&Daemon> = self.all.iter().filter(|daemon| daemon.runs()).collect();
        for daemon in &running {
            daemon
                .wait("settled", |status| {
                    let live =
                        |name: &str| status.hosts.iter().any(|host| host.name.as_str() == name && host.state == "live");
                    status.quorum
                        && status.voters == voters
                        && status.leader.is_some()
                        && running.iter().all(|daemon| live(&daemon.name))
                })
                .await;
        }
    }

    /// The place of the leader, as `asked` sees it.
    pub(crate) async fn leader(&self, asked: usize) -> usize {
        let status = self.all[asked].wait("led", |status| status.quorum && status.leader.is_some()).await;
        let name = status.leader.unwrap();
        self.all.iter().position(|daemon| daemon.name == name.as_str()).unwrap()
    }
}
