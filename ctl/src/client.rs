//! The daemons that are asked: reaching the first that can answer, calling it, and streams that survive its end.
//!
//! A daemon without quorum is passed over where another can decide. Requests carry ids or change nothing, so a call
//! whose answer was lost is asked again of the next daemon; `init`, `join` and `leave` are not.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, ClusterStatus},
    call::{CallError, new_certificate},
    client::Client,
    error::{ErrorCode, Report},
    identity::{self, Identity},
    token::CaDigest,
};

use crate::{
    endpoint::{Place, Way},
    ui::{
        report::unexpected,
        text::{date, now_ms},
    },
};

/// How long a daemon may take to say how it is.
const PROBE: Duration = Duration::from_secs(4);
/// How long one call may take where `--timeout` says nothing.
const CALL: Duration = Duration::from_secs(30);
/// The same of what changes the cluster itself, or checks thousands of cases.
const LONG_CALL: Duration = Duration::from_secs(120);
/// How long a cluster between two leaders is waited for.
const ELECTION: Duration = Duration::from_secs(6);
/// Calls of one request, the first included.
const TRIES: usize = 3;
/// Items of a stream that wait to be looked at.
const BACKLOG: usize = 256;

/// What a request wants of the daemon that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To be there.
    Any,
    /// To know the state, best with quorum.
    Read,
    /// To have quorum.
    Decide,
}

/// A daemon that answered.
#[derive(Debug, Clone)]
pub struct Reached {
    /// Where it is.
    pub place: Place,
    /// How the cluster is, as it sees it; none where it was not asked.
    pub status: Option<Box<ClusterStatus>>,
    client: Arc<Client>,
}

/// The daemons that may be asked. Clones ask on their own.
#[derive(Debug, Clone)]
pub struct Mesh {
    places: Vec<Place>,
    reached: Option<Reached>,
    /// When everything must be over; none: each call has its own bound.
    until: Option<Instant>,
    identity: Option<PathBuf>,
}

impl Reached {
    /// The version of the daemon.
    pub fn daemon_build(&self) -> String {
        self.client.daemon().build.clone()
    }
}

impl std::fmt::Display for Reached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&label(&self.place))
    }
}

enum Probe {
    Decides(Reached),
    NoQuorum(Reached),
    Unclaimed(Reached),
    Silent(Report),
}

impl Mesh {
    /// The places in the order to be asked; `timeout` bounds everything that is asked, together.
    ///
    /// `identity` is the folder with the client certificate, where one is needed.
    pub fn new(places: Vec<Place>, identity: Option<PathBuf>, timeout: Option<Duration>) -> Self {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        Self { places, reached: None, until, identity }
    }

    /// The same daemons, of which only the one of `place` is asked.
    pub fn only(&self, place: &Place) -> Self {
        Self { places: vec![place.clone()], reached: None, until: self.until, identity: self.identity.clone() }
    }

    /// The same daemons, for no longer than this.
    pub fn within(&self, timeout: Duration) -> Self {
        Self::new(self.places.clone(), self.identity.clone(), Some(timeout))
    }

    /// The places that may be asked.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// When a wait of at most `longest` from now ends.
    pub fn by(&self, longest: Duration) -> Instant {
        let by = Instant::now() + longest;
        self.until.map_or(by, |until| until.min(by))
    }

    /// When everything must be over, where `--timeout` says so.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Forgets the daemon in use: the next call looks for one again.
    pub fn forget(&mut self) {
        self.reached = None;
    }

    /// The daemon in use.
    pub fn in_use(&self) -> Option<&Reached> {
        self.reached.as_ref()
    }

    /// Goes on with this daemon.
    pub fn go_on_with(&mut self, reached: Reached) {
        self.reached = Some(reached);
    }

    /// A daemon with quorum, where the one in use has none or does not answer; none where it is well, or nobody is
    /// better.
    pub async fn better(&self, reached: &Reached) -> Option<Reached> {
        if self.status_of(reached).await.is_some_and(|status| status.quorum) {
            return None;
        }
        self.reach_once(Need::Decide).await.ok()
    }

    /// The daemon in use; looks for one where there is none.
    ///
    /// # Errors
    /// Nobody answers, or nobody can do what is needed.
    pub async fn reach(&mut self, need: Need) -> Result<Reached, Report> {
        if let Some(reached) = &self.reached {
            return Ok(reached.clone());
        }
        let reached = match need {
            Need::Any => self.reach_any().await?,
            Need::Read => self.reach_once(need).await?,
            Need::Decide => {
                let patience = self.by(ELECTION);
                let mut no_quorum = None;
                loop {
                    match self.reach_once(need).await {
                        Err(report) if report.code == ErrorCode::NoQuorum && Instant::now() < patience => {
                            no_quorum = Some(report);
                            sleep(Duration::from_millis(250)).await;
                        }
                        // A probe that the end of the time cut short knows less than the one before it.
                        Err(report) => return Err(no_quorum.filter(|_| Instant::now() >= patience).unwrap_or(report)),
                        Ok(reached) => break reached,
                    }
                }
            }
        };
        if let Some(folder) = &self.identity {
            renewed(&reached, folder, self.by(PROBE)).await;
        }
        self.reached = Some(reached.clone());
        Ok(reached)
    }

    async fn reach_any(&self) -> Result<Reached, Report> {
        let mut silent = Vec::new();
        for place in &self.places {
            match connect(place, self.identity.as_deref(), self.by(PROBE)).await {
                Ok(client) => return Ok(Reached { place: place.clone(), status: None, client: Arc::new(client) }),
                Err(report) => silent.push((place.clone(), report)),
            }
        }
        Err(nobody(silent))
    }

    /// Asks all at the same time how they are, and takes the first in order that fits best.
    async fn reach_once(&self, need: Need) -> Result<Reached, Report> {
        let by = self.by(PROBE);
        let probes: Vec<_> = self
            .places
            .iter()
            .map(|place| {
                let (place, identity) = (place.clone(), self.identity.clone());
                tokio::spawn(async move { probe(place, identity, by).await })
            })
            .collect();
        let stop: Vec<_> = probes.iter().map(tokio::task::JoinHandle::abort_handle).collect();
        let (mut no_quorum, mut unclaimed, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        let mut found = None;
        for (place, probe) in self.places.iter().zip(probes) {
            match probe.await {
                Ok(Probe::Decides(reached)) => {
                    found = Some(reached);
                    break;
                }
                Ok(Probe::NoQuorum(reached)) => no_quorum.push(reached),
                Ok(Probe::Unclaimed(reached)) => unclaimed.push(reached),
                Ok(Probe::Silent(report)) => silent.push((place.clone(), report)),
                Err(error) => silent.push((place.clone(), Report::new(ErrorCode::Internal, error.to_string()))),
            }
        }
        stop.iter().for_each(tokio::task::AbortHandle::abort);
        if let Some(reached) = found {
            return Ok(reached);
        }
        if need == Need::Read && !no_quorum.is_empty() {
            return Ok(no_quorum.swap_remove(0));
        }
        if !no_quorum.is_empty() {
            return Err(without_quorum(&no_quorum, &silent));
        }
        match unclaimed.into_iter().next() {
            Some(reached) => Err(Report::new(ErrorCode::Unclaimed, "this daemon belongs to no cluster yet")
                .with("asked", reached.place.to_string())
                .help("vtctl cluster init")
                .help("vtctl cluster join TOKEN")),
            None => Err(nobody(silent)),
        }
    }

    /// Asks one thing. A refusal is an error.
    ///
    /// # Errors
    /// Nobody answers in time, or the answer is no.
    pub async fn call(&mut self, request: &AdminRequest, need: Need) -> Result<AdminReply, Report> {
        let again = !matches!(
            request,
            AdminRequest::Init(_)
                | AdminRequest::Join(_)
                | AdminRequest::Leave(_)
                | AdminRequest::Restore(_)
                | AdminRequest::Recover(_)
        );
        let mut tries = 1;
        loop {
            let reached = self.reach(need).await?;
            let is_long = !again || matches!(request, AdminRequest::RunSubmit(_));
            let by = self.by(if is_long { LONG_CALL } else { CALL });
            match reached.client.call(request, by).await {
                Ok(AdminReply::Refused(report)) => return Err(report),
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    self.forget();
                    let lost = matches!(error, CallError::Broken { .. } | CallError::Unreachable { .. });
                    if !lost || !again || tries >= TRIES {
                        return Err(error.report().with("asked", reached.place.to_string()));
                    }
                    tries += 1;
                }
            }
        }
    }

    /// Asks for many replies.
    ///
    /// # Errors
    /// Nobody takes the request.
    pub async fn stream(&mut self, request: &AdminRequest, need: Need) -> Result<Stream, Report> {
        let reached = self.reach(need).await?;
        // What waits for servers of pools answers once, at its end.
        let by = self.by(if matches!(request, AdminRequest::Storage(_)) { LONG_CALL } else { CALL });
        match reached.client.stream::<_, AdminReply>(request, by).await {
            Ok(mut replies) => {
                let (sender, items) = mpsc::channel(BACKLOG);
                // A reply must not be dropped half-way, so a task of its own reads, and whoever waits waits for it.
                let task = tokio::spawn(async move {
                    loop {
                        let year = Instant::now() + Duration::from_secs(365 * 86_400);
                        let next = replies.next(year).await.transpose();
                        let Some(next) = next else { break };
                        let failed = next.is_err();
                        if sender.send(next).await.is_err() || failed {
                            break;
                        }
                    }
                });
                Ok(Stream { items, task })
            }
            Err(error) => {
                self.forget();
                Err(error.report().with("asked", reached.place.to_string()))
            }
        }
    }

    async fn status_of(&self, reached: &Reached) -> Option<ClusterStatus> {
        match reached.client.call(&AdminRequest::Status, self.by(PROBE)).await {
            Ok(AdminReply::Status(status)) => Some(*status),
            _ => None,
        }
    }
}

/// Replies that arrive. Dropping it tells the daemon to stop.
#[derive(Debug)]
pub struct Stream {
    items: mpsc::Receiver<Result<AdminReply, CallError>>,
    task: tokio::task::JoinHandle<()>,
}

/// What came next.
#[derive(Debug)]
pub enum Next {
    /// A reply.
    Reply(AdminReply),
    /// The daemon said that this was all.
    End,
    /// The connection ended before it said so.
    Lost(Report),
    /// The daemon refuses.
    Refused(Report),
}

impl Stream {
    /// The next reply; may be dropped while it waits.
    pub async fn next(&mut self) -> Next {
        match self.items.recv().await {
            Some(Ok(AdminReply::End)) => Next::End,
            Some(Ok(AdminReply::Refused(report))) => Next::Refused(report),
            Some(Ok(reply)) => Next::Reply(reply),
            Some(Err(CallError::Failed(report))) => Next::Refused(*report),
            Some(Err(error)) => Next::Lost(error.report()),
            None => Next::End,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn probe(place: Place, identity: Option<PathBuf>, by: Instant) -> Probe {
    let client = match connect(&place, identity.as_deref(), by).await {
        Ok(client) => Arc::new(client),
        Err(report) => return Probe::Silent(report),
    };
    let reached = |status| Reached { place: place.clone(), status, client: client.clone() };
    match client.call(&AdminRequest::Status, by).await {
        Ok(AdminReply::Status(status)) if status.quorum => Probe::Decides(reached(Some(status))),
        Ok(AdminReply::Status(status)) => Probe::NoQuorum(reached(Some(status))),
        Ok(AdminReply::Refused(report)) if report.code == ErrorCode::Unclaimed => Probe::Unclaimed(reached(None)),
        Ok(AdminReply::Refused(report)) if report.code == ErrorCode::NoQuorum => Probe::NoQuorum(reached(None)),
        Ok(AdminReply::Refused(report)) => Probe::Silent(report),
        Ok(other) => Probe::Silent(unexpected("status", &other)),
        Err(error) => match error.report() {
            report if report.code == ErrorCode::Unclaimed => Probe::Unclaimed(reached(None)),
            report => Probe::Silent(report),
        },
    }
}

async fn connect(place: &Place, identity: Option<&Path>, by: Instant) -> Result<Client, Report> {
    match &place.way {
        Way::Socket(path) => Client::local(path, by).await.map_err(|error| error.report()),
        Way::Address(address) => {
            let identity = identity_in(identity)?;
            Client::remote(*address, Arc::new(identity), by).await.map_err(|error| error.report())
        }
    }
}

/// Where another authority has followed the one that signed for this client, and both are trusted: takes a certificate of
/// it, for the same key. What does not work now is tried at the next command; `vtctl cluster ca show` names the client.
async fn renewed(reached: &Reached, folder: &Path, by: Instant) {
    let Some(shown) = reached.client.authority() else { return };
    let Ok(identity) = identity::store::load_client(folder) else { return };
    if identity.ca_digest() == shown {
        return;
    }
    let Ok(request) = identity.key().signing_request() else { return };
    let Ok(AdminReply::Renewed(renewed)) = reached.client.call(&AdminRequest::Renew(request), by).await else { return };
    // TLS has led from the authority that is known here to the one that was shown.
    if CaDigest::of(&renewed.ca) != shown {
        return;
    }
    if let Ok(new) = Identity::again(&identity, renewed.certificate.into(), renewed.ca.into(), None)
        && new.facts().subject == identity.facts().subject
    {
        let _ = identity::store::save(folder, &new);
    }
}

/// The client identity in a folder, if its dates hold by this machine's clock.
///
/// # Errors
/// There is none, or it is over: that is told here, where it costs no round trip.
fn identity_in(folder: Option<&Path>) -> Result<Identity, Report> {
    let missing = |why: String| {
        Report::new(ErrorCode::Denied, "a daemon on another host wants a client certificate")
            .with("reason", why)
            .help("vtctl cluster token create --role client-runner   (an admin, on a host of the cluster)")
            .help("vtctl config use-context --join TOKEN   (here)")
            .help("or run vtctl on a host of the cluster, where it uses the daemon's socket")
    };
    let folder = folder.ok_or_else(|| missing("no context is meant, and VTCTL_IDENTITY is not set".to_owned()))?;
    let identity = identity::store::load_client(folder).map_err(|error| missing(error.to_string()))?;
    let facts = identity.facts();
    if facts.out_of_date(now_ms() / 1000) {
        let report = Report::new(ErrorCode::CertificateExpired, "the client certificate is outside its dates")
            .with("valid from", date(facts.not_before.saturating_mul(1000)))
            .with("until", date(facts.not_after.saturating_mul(1000)))
            .with("this clock", date(now_ms()))
            .with("folder", folder.display().to_string());
        return Err(new_certificate(report));
    }
    Ok(identity)
}

fn why(report: &Report) -> String {
    let reason = report.evidence.iter().find(|(key, _)| key == "reason");
    reason.map_or_else(|| report.title.clone(), |(_, reason)| reason.clone())
}

fn label(place: &Place) -> String {
    match &place.host {
        Some(host) => format!("{host} at {place}"),
        None => place.to_string(),
    }
}

/// Nobody answered. Where all say the same and it is not silence, that is the answer.
fn nobody(silent: Vec<(Place, Report)>) -> Report {
    let other =
        silent.first().filter(|(_, report)| !matches!(report.code, ErrorCode::Unreachable | ErrorCode::DeadlinePassed));
    if let Some((place, report)) = other
        && silent.iter().all(|(_, each)| each.code == report.code)
    {
        return report.clone().with("asked", label(place));
    }
    let mut answer = Report::new(ErrorCode::Unreachable, "no daemon answered").retryable();
    for (place, report) in &silent {
        answer = answer.with("tried", format!("{}: {}", label(place), why(report)));
    }
    let lab = silent.iter().any(|(place, _)| place.host.is_some());
    answer
        .help(if lab { "vtctl lab status" } else { "systemctl status vtd" })
        .help("vtctl lab up --hosts 3   # a cluster on this machine alone")
}

fn without_quorum(no_quorum: &[Reached], silent: &[(Place, Report)]) -> Report {
    let mut answer =
        Report::new(ErrorCode::NoQuorum, "the cluster cannot decide: most of its voters do not answer").retryable();
    for reached in no_quorum {
        let known = reached.status.as_ref();
        let host = known
            .map(|status| status.answered_by.to_string())
            .or_else(|| reached.place.host.as_ref().map(ToString::to_string));
        answer =
            answer.with("answered", format!("{} without quorum", host.unwrap_or_else(|| reached.place.to_string())));
    }
    for (place, report) in silent {
        answer = answer.with("silent", format!("{}: {}", label(place), why(report)));
    }
    answer.help("vtctl cluster status   # names the voters that are missing")
}
