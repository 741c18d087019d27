//! The daemon's front on its own machine: before it belongs to a cluster it takes `init` and `join`, afterwards it
//! hands every request to the host. The change needs no restart.
//!
//! An `init` or `join` that fails leaves nothing: what it wrote is removed, and the daemon is as unclaimed as before.

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep},
};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, Hello as WhoAreYou, HostRole, Init, Join, Joined},
    endpoint,
    error::{ErrorCode, Report},
    hello::{BUILD, Hello},
    ids::Name,
    membership::{Leave, Recover, Restore},
    token::{Token, TokenError},
};

use crate::{
    api::{recovery, views::stored_role},
    audit::Audit,
    control::session::Holdings,
    data::DataDir,
    facts::Facts,
    host::{First, Host, Parts},
    mesh::{
        AdminService, Caller, ReplySink,
        join::{
            claim::Claim,
            joiner::{self, Joining},
        },
    },
    settings::Settings,
};

/// A host that has just joined is started this often, with a pause between.
const START_TRIES: u32 = 4;
const START_PAUSE: Duration = Duration::from_millis(500);
/// The port of a host that was let go is free again after this long at most.
const PORT_TIME: Duration = Duration::from_secs(5);

/// What does not change when the daemon is claimed.
pub struct Front {
    settings: Arc<Settings>,
    data: Arc<DataDir>,
    facts: Arc<Facts>,
    incarnation: u64,
    host: RwLock<Option<Arc<Host>>>,
    audit: Arc<Audit>,
    broken: watch::Sender<Option<String>>,
    superseded: watch::Sender<Option<u64>>,
    /// Held by the one `init` or `join` under way.
    claiming: Mutex<()>,
}

impl Front {
    /// The front of a daemon that is not claimed yet, or whose host is not started yet.
    pub fn new(settings: Arc<Settings>, data: Arc<DataDir>, facts: Arc<Facts>) -> Arc<Self> {
        let incarnation = rand::random();
        let audit = Audit::new(&data.audit());
        Arc::new(Self {
            settings,
            data,
            facts,
            incarnation,
            host: RwLock::new(None),
            audit,
            broken: watch::Sender::new(None),
            superseded: watch::Sender::new(None),
            claiming: Mutex::new(()),
        })
    }

    /// The host, once this daemon belongs to a cluster.
    pub fn host(&self) -> Option<Arc<Host>> {
        self.host.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the host cannot go on, and says why.
    pub async fn broken(&self) -> String {
        let mut broken = self.broken.subscribe();
        let why = broken.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        // This front holds the sender, so the wait ends with a reason.
        why.unwrap_or_default()
    }

    /// Starts the host of a claimed daemon; does nothing for an unclaimed one.
    ///
    /// # Errors
    /// The identity or the log is damaged, or the port is taken.
    pub async fn resume(&self) -> Result<(), Report> {
        let _claiming = self.claiming.lock().await;
        if let Some(generation) = self.fence()? {
            tracing::warn!(generation, "the cluster was recovered without this host: it takes no part");
            self.superseded.send_replace(Some(generation));
            return Ok(());
        }
        match Claim::load(&self.data.cluster()).map_err(|error| error.report())? {
            Some(claim) => self.start(claim, First::default()).await.map(drop),
            None => self.clear(),
        }
    }

    async fn start(&self, claim: Claim, first: First) -> Result<Arc<Host>, Report> {
        let host = Host::start(Parts {
            settings: Arc::clone(&self.settings),
            data: Arc::clone(&self.data),
            facts: Arc::clone(&self.facts),
            incarnation: self.incarnation,
            claim,
            first,
            audit: Arc::clone(&self.audit),
            broken: self.broken.clone(),
            superseded: self.superseded.clone(),
        })
        .await?;
        *self.host.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&host));
        Ok(host)
    }

    async fn init(&self, init: Init) -> Result<Joined, Report> {
        let _claiming = self.claiming.lock().await;
        self.check_unclaimed()?;
        if init.role == HostRole::Learner {
            return Err(Report::new(ErrorCode::Usage, "the first host of a cluster votes: role voter or witness"));
        }
        let name = self.name(init.host)?;
        let advertise = self.address(init.advertise)?;
        self.clear()?;
        let first = First { role: stored_role(init.role), labels: init.labels };
        let claim =
            Claim::found(&self.data.cluster(), init.cluster, name, advertise).map_err(|error| error.report())?;
        match self.start(claim, first).await {
            Ok(host) => {
                let mut joined = joined(&host);
                let Joined { name, cluster, host_name, host, .. } = &joined;
                joined.steps = vec![
                    format!("made cluster {name} ({cluster}) and its authority"),
                    format!("made the key of {host_name} ({host}), reached at {advertise}"),
                    format!("{host_name} votes alone and leads"),
                ];
                Ok(joined)
            }
            Err(report) => {
                self.give_up();
                Err(report)
            }
        }
    }

    async fn join(&self, join: Join, by: Instant) -> Result<Joined, Report> {
        let _claiming = self.claiming.lock().await;
        self.check_unclaimed()?;
        let token: Token = join.token.parse().map_err(|error: TokenError| {
            Report::new(ErrorCode::TokenGarbled, error.to_string())
                .help("copy the whole line that begins with vtj1_")
                .help("vtctl cluster token create   (on any host of the cluster)")
        })?;
        let joining = Joining {
            token,
            listen: self.settings.host.listen,
            advertise: self.address(join.advertise)?,
            name: self.name(join.host)?,
            role: Some(join.role),
            labels: join.labels,
            facts: Some(self.facts.now()),
        };
        self.clear()?;
        let steps = std::sync::Mutex::new(Vec::new());
        let tell = |step: String| {
            tracing::info!(%step, "joining");
            steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        };
        let claim = joiner::join(&joining, &self.data.cluster(), by, &tell).await.map_err(|error| error.report())?;
        let host = self.start_joined(claim).await?;
        let mut joined = joined(&host);
        joined.steps = steps.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(joined)
    }

    /// Admitted and stored: the port may be needed by the last packets of the join for a moment. Whatever else fails,
    /// the next start of the daemon goes on from here.
    async fn start_joined(&self, claim: Claim) -> Result<Arc<Host>, Report> {
        let mut next = Some(claim);
        let mut tries = 0;
        loop {
            tries += 1;
            let claim = match next.take() {
                Some(claim) => claim,
                None => match Claim::load(&self.data.cluster()).map_err(|error| error.report())? {
                    Some(claim) => claim,
                    None => return Err(Report::new(ErrorCode::Internal, "the claim of this host is gone")),
                },
            };
            match self.start(claim, First::default()).await {
                Ok(host) => return Ok(host),
                Err(report) if tries >= START_TRIES || report.code == ErrorCode::StoreDamaged => return Err(report),
                Err(report) => {
                    tracing::info!(%report, "the host is started again");
                    sleep(START_PAUSE).await;
                }
            }
        }
    }

    /// Takes this host out of its cluster; afterwards the daemon is as unclaimed as a new one.
    async fn leave(&self, leave: Leave, by: Instant) -> Result<Vec<String>, Report> {
        let _claiming = self.claiming.lock().await;
        let fenced = self.superseded.borrow().is_some();
        let mut steps = match self.host() {
            Some(host) => {
                let steps = if leave.forget { Vec::new() } else { host.leave_cluster(leave.request, by).await? };
                self.let_go(&host).await;
                steps
            }
            None if fenced && leave.forget => Vec::new(),
            None => return Err(self.hostless()),
        };
        // The claim goes first: without it the rest is cleared by the next start, whatever happens in between.
        let cleared = remove(&self.data.cluster()).and_then(|()| remove(&self.data.raft()));
        cleared.map_err(|error| {
            Report::new(ErrorCode::StorageFailed, "what this host kept of its cluster cannot be removed")
                .caused_by(&error)
                .help("vtctl cluster leave --forget --yes   (goes on from here)")
        })?;
        match fs::remove_file(self.data.superseded()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Report::new(ErrorCode::StorageFailed, "this host is still fenced").caused_by(&error));
            }
            _ => _ = self.superseded.send_replace(None),
        }
        steps.push("this daemon belongs to no cluster now".to_owned());
        tracing::info!(forget = leave.forget, "this host left its cluster");
        Ok(steps)
    }

    /// The generation that this host was left behind by, as its file says.
    fn fence(&self) -> Result<Option<u64>, Report> {
        match fs::read_to_string(self.data.superseded()) {
            // Whatever stands in it, the file's being there is what counts.
            Ok(text) => Ok(Some(text.trim().parse().unwrap_or(0))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Report::new(ErrorCode::StorageFailed, "whether this host is fenced cannot be read")
                .with("file", self.data.superseded().display().to_string())
                .caused_by(&error)),
        }
    }

    /// Lets go of everything when this host learns that its cluster was recovered without it. Never ends.
    pub async fn stay_fenced(self: Arc<Self>) {
        let mut superseded = self.superseded.subscribe();
        loop {
            let generation = match superseded.wait_for(Option::is_some).await {
                Ok(generation) => generation.unwrap_or(0),
                // This front holds the sender.
                Err(_) => return,
            };
            let claiming = self.claiming.lock().await;
            if let Some(host) = self.host() {
                tracing::error!(generation, "the cluster was recovered without this host: it lets go of everything");
                let file = self.data.superseded();
                let written =
                    fs::write(&file, format!("{generation}\n")).and_then(|()| fs::File::open(&file)?.sync_all());
                if let Err(error) = written {
                    tracing::error!(%error, "that this host is fenced will be learned anew after a restart");
                }
                self.let_go(&host).await;
            }
            drop(claiming);
            if superseded.changed().await.is_err() {
                return;
            }
        }
    }

    /// Goes on alone after most voters were lost.
    async fn recover(&self, recover: Recover) -> Result<Vec<String>, Report> {
        let _claiming = self.claiming.lock().await;
        let Some(host) = self.host() else { return Err(self.hostless()) };
        recovery::check(&host, recover)?;
        tracing::warn!("this host is to go on alone: the next generation of its cluster");
        self.let_go(&host).await;
        host.close_log().await;
        let began = recovery::begin_anew(&self.data, host.record()).await;
        drop(host);
        // Also where it failed: the host is then as it was.
        let claim = Claim::load(&self.data.cluster()).map_err(|error| error.report())?;
        let Some(claim) = claim else { return Err(Report::new(ErrorCode::Internal, "the claim of this host is gone")) };
        let host = self.start(claim, First::default()).await?;
        let mut steps = began?;
        recovery::leads(&host).await?;
        steps.push(format!("{} leads alone; voters: {}", host.record().name, host.record().name));
        Ok(steps)
    }

    /// Makes a cluster from a snapshot, with this host as its first.
    async fn restore(&self, restore: Restore) -> Result<Joined, Report> {
        let _claiming = self.claiming.lock().await;
        self.check_unclaimed()?;
        let saved = recovery::read(&restore).await?;
        let name = self.name(restore.host.clone())?;
        let advertise = self.address(restore.advertise)?;
        self.clear()?;
        let (claim, mut steps) =
            recovery::restore(&self.data, saved, name, advertise).await.inspect_err(|_| self.give_up())?;
        match self.start(claim, First::default()).await {
            Ok(host) => {
                recovery::leads(&host).await?;
                let mut joined = joined(&host);
                steps.push(format!("{} votes alone and leads", joined.host_name));
                joined.steps = steps;
                Ok(joined)
            }
            Err(report) => {
                self.give_up();
                Err(report)
            }
        }
    }

    /// Why there is no host.
    fn hostless(&self) -> Report {
        match *self.superseded.borrow() {
            Some(generation) => left_behind(generation),
            None => unclaimed(),
        }
    }

    /// Stops the host and what hangs from its session. The daemon goes on without one.
    async fn let_go(&self, host: &Arc<Host>) {
        host.lost().await;
        *self.host.write().unwrap_or_else(PoisonError::into_inner) = None;
        host.stop().await;
        endpoint::port_is_free(self.settings.host.listen, PORT_TIME).await;
    }

    fn check_unclaimed(&self) -> Result<(), Report> {
        if self.superseded.borrow().is_some() {
            return Err(self.hostless());
        }
        let Some(host) = self.host() else { return Ok(()) };
        let record = host.record();
        Err(Report::new(ErrorCode::AlreadyClaimed, "this daemon already belongs to a cluster")
            .with("cluster", format!("{} ({})", record.cluster_name, record.cluster))
            .with("host", record.name.to_string())
            .help("vtctl cluster leave   (first)"))
    }

    /// Removes a log that belongs to no claim, and allows one to be made.
    fn clear(&self) -> Result<(), Report> {
        remove(&self.data.raft()).and_then(|()| fs::File::create(self.data.fresh())?.sync_all()).map_err(|error| {
            Report::new(ErrorCode::StorageFailed, "what an unfinished claim left cannot be removed").caused_by(&error)
        })
    }

    /// Takes back an `init` that failed: nobody knows of that cluster yet.
    fn give_up(&self) {
        for directory in [self.data.cluster(), self.data.raft()] {
            if let Err(error) = remove(&directory) {
                tracing::warn!(%error, directory = %directory.display(), "what a failed init made was not removed");
            }
        }
    }

    fn name(&self, given: Option<Name>) -> Result<Name, Report> {
        given.map_or_else(|| self.settings.host_name(), Ok)
    }

    fn address(&self, given: Option<SocketAddr>) -> Result<SocketAddr, Report> {
        let address = given.map_or_else(|| self.settings.advertise(), Ok)?;
        if address.ip().is_unspecified() || address.port() == 0 {
            return Err(Report::new(ErrorCode::Usage, format!("{address} is not an address that others could reach")));
        }
        Ok(address)
    }
}

fn left_behind(generation: u64) -> Report {
    Report::new(ErrorCode::OldGeneration, "the cluster was recovered without this host, which takes no part any more")
        .with("generation", format!("the cluster is in {generation}"))
        .help("vtctl cluster leave --forget --yes   (clears what this host kept)")
        .help("vtctl cluster join TOKEN   (then, as a new host)")
}

fn unclaimed() -> Report {
    Report::new(ErrorCode::Unclaimed, "this daemon belongs to no cluster yet")
        .help("vtctl cluster init   (a new cluster)")
        .help("vtctl cluster join TOKEN   (an existing one)")
}

fn joined(host: &Host) -> Joined {
    let record = host.record();
    Joined {
        cluster: record.cluster,
        name: record.cluster_name.clone(),
        host: record.host,
        host_name: record.name.clone(),
        ca_fingerprint: host.ca_fingerprint(),
        steps: Vec::new(),
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[async_trait]
impl AdminService for Front {
    fn hello(&self) -> Hello {
        match self.host() {
            Some(host) => host.hello(),
            None => Hello::of(None, None, self.incarnation),
        }
    }

    fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    async fn admin(&self, caller: Caller, request: AdminRequest, replies: ReplySink, by: Instant) {
        let reply = match request {
            AdminRequest::Init(_) | AdminRequest::Join(_) if !caller.is_local() => {
                Err(Report::new(ErrorCode::Denied, "a daemon is claimed over its own socket only"))
            }
            AdminRequest::Leave(_) | AdminRequest::Recover(_) | AdminRequest::Restore(_) if !caller.is_local() => {
                Err(Report::new(ErrorCode::Denied, "this goes over the host's own socket only"))
            }
            AdminRequest::Recover(recover) => self.recover(recover).await.map(AdminReply::Steps),
            AdminRequest::Restore(restore) => self.restore(restore).await.map(AdminReply::Joined),
            AdminRequest::Leave(leave) => self.leave(leave, by).await.map(AdminReply::Steps),
            AdminRequest::Init(init) => self.init(init).await.map(AdminReply::Joined),
            AdminRequest::Join(join) => self.join(join, by).await.map(AdminReply::Joined),
            request => match (self.host(), request) {
                (Some(host), request) => return host.admin(caller, request, replies, by).await,
                (None, AdminRequest::Hello) => {
                    Ok(AdminReply::Hello(WhoAreYou { build: BUILD.to_owned(), cluster: None, host: None }))
                }
                (None, _) => Err(self.hostless()),
            },
        };
        let reply = reply.unwrap_or_else(|report| {
            tracing::info!(%report, "a request was refused");
            AdminReply::Refused(report)
        });
        // A caller that went away needs no reply.
        let _ = replies.send(reply).await;
    }
}
