//! What vtctl asks a daemon (`vt-admin/1`, and the daemon's Unix socket). Any host answers every request; a follower
//! forwards decisions to the leader.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    audit::{AuditQuery, AuditTrail},
    catalogue::{HostOutcome, ImageProgress, ImageRequest, ImageView, PoolView, StorageRequest, WriterView},
    doctor::{Examine, Finding},
    error::Report,
    facts::HostFacts,
    ids::{AttemptId, ClusterId, Digest, Epoch, HostId, JobId, Name, RequestId, TokenId},
    image::ImagePackage,
    job::{AttemptEvent, CaseFate, JobView, KeyInfo, Plan, ScenarioInfo},
    join::Enrolled,
    membership::{HostChange, Leave, Recover, Reserved, Restore},
    scenario::{ScenarioCheck, ScenarioChecked},
};

/// What a certificate allows. Later roles include the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessRole {
    /// May look.
    Viewer,
    /// May run jobs.
    Runner,
    /// May change the cluster.
    Admin,
}

/// What part a host takes in decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostRole {
    /// Votes, and runs VMs.
    Voter,
    /// Follows the log without a vote, and runs VMs.
    Learner,
    /// Votes, and runs nothing.
    Witness,
}

/// A request. One struct a variant; variants are only ever appended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Who are you, and do you belong to a cluster?
    Hello,
    /// Make a cluster of this unclaimed daemon. Unix socket only.
    Init(Init),
    /// Join this unclaimed daemon to a cluster. Unix socket only.
    Join(Join),
    /// The cluster on one screen.
    Status,
    /// Make a join token.
    TokenCreate(TokenCreate),
    /// List tokens, without secrets.
    TokenList,
    /// Revoke a token.
    TokenRevoke(TokenId),
    /// One host with its facts.
    HostShow(Name),
    /// The scenarios this daemon can run.
    ScenarioList,
    /// Submit a job.
    RunSubmit(RunSubmit),
    /// Jobs, newest first, without cases.
    JobList,
    /// One job with its cases.
    JobShow(JobId),
    /// A stream of [`AdminReply::Watch`]; ends when the job is done.
    JobWatch(JobId),
    /// Cancel a job.
    JobCancel(JobId),
    /// A stream of [`AdminReply::Files`]: the evidence of a job that is done.
    JobFetch(JobId),
    /// VMs and their owners.
    VmList,
    /// What exists on the host that answers: for leak checks.
    Inventory,
    /// A stream of [`AdminReply::Watch`] items with events only: the log of one job, all hosts, from the beginning.
    JobLogs(JobLogs),
    /// Make a token that admits a client.
    ClientToken(ClientToken),
    /// Clients that are admitted.
    AccessList,
    /// Revoke the key of the client of this name.
    AccessRevoke(Name),
    /// Who did what, of all hosts that answer.
    Audit(AuditQuery),
    /// Change a host.
    HostChange(HostChange),
    /// Hand leadership to this host.
    TransferLeader(Name),
    /// Take this daemon's host out of its cluster. Unix socket only.
    Leave(Leave),
    /// Let go what a job has kept after its cases.
    JobRelease(JobId),
    /// The plan of a job, so that it can be run again.
    JobPlan(JobId),
    /// A stream of [`AdminReply::Files`] with the state of the cluster, then [`AdminReply::Steps`].
    SnapshotSave,
    /// Make a cluster of this unclaimed daemon from a saved snapshot. Unix socket only.
    Restore(Restore),
    /// Go on alone after a lost quorum. Unix socket only.
    Recover(Recover),
    /// Something about images.
    Image(ImageRequest),
    /// Something about pools.
    Storage(StorageRequest),
    /// The cluster's authority, and who has no certificate of it yet.
    AuthorityShow,
    /// Have another authority follow, or drop the one before.
    AuthorityRotate(Rotate),
    /// A certificate of the present authority for the key of the client that asks: its signing request, in DER.
    Renew(Vec<u8>),
    /// What is wrong with a scenario in a file, and what it does.
    ScenarioCheck(ScenarioCheck),
    /// What would become of the cases of a plan.
    PlanCheck(Box<Plan>),
    /// Keys of configurations: who reads them, or why nobody does.
    KeyList,
    /// What is wrong on the host that answers, or on all.
    Doctor(Examine),
}

/// Makes a cluster of one voter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// The cluster's name.
    pub cluster: Name,
    /// This host's name; `None`: its host name.
    pub host: Option<Name>,
    /// Where other hosts reach this one; `None`: from the settings.
    pub advertise: Option<SocketAddr>,
    /// `Voter` or `Witness`.
    pub role: HostRole,
    /// Labels of this host.
    pub labels: BTreeMap<String, String>,
}

/// Joins a cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The text of the token.
    pub token: String,
    /// This host's name; `None`: its host name.
    pub host: Option<Name>,
    /// Where other hosts reach this one; `None`: from the settings.
    pub advertise: Option<SocketAddr>,
    /// A wish: everyone joins as learner.
    pub role: HostRole,
    /// Labels of this host.
    pub labels: BTreeMap<String, String>,
}

impl std::fmt::Debug for Join {
    /// Without the token: it holds a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("host", &self.host).field("advertise", &self.advertise).finish_non_exhaustive()
    }
}

/// Makes a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreate {
    /// Repeating it with the same id makes one token.
    pub request: RequestId,
    /// The role the host is to get.
    pub role: HostRole,
    /// How long it is valid, seconds, at most a day.
    pub ttl_s: u32,
}

/// Makes a token that admits a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientToken {
    /// Repeating it with the same id makes one token.
    pub request: RequestId,
    /// What the client may do.
    pub role: AccessRole,
    /// Its name; `None`: the client names itself.
    pub name: Option<Name>,
    /// How long the token is valid, seconds, at most a day.
    pub ttl_s: u32,
    /// How long the client's certificate is valid, seconds, at most 400 days.
    pub valid_s: u32,
}

/// Submits a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSubmit {
    /// Repeating it with the same id makes one job.
    pub request: RequestId,
    /// What to run.
    pub plan: Plan,
}

/// Changes the cluster's authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotate {
    /// Drop the authority before the present one, instead of having another one follow.
    pub finish: bool,
    /// Drop it also where clients have no certificate of the present one.
    pub anyway: bool,
}

/// The cluster's authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityView {
    /// BLAKE3 of the certificate of the present one.
    pub fingerprint: String,
    /// The same of the one before it, while that is trusted as well.
    pub previous: Option<String>,
    /// Hosts that show no certificate of the present one yet.
    pub hosts: Vec<Name>,
    /// Clients that have none of it.
    pub clients: Vec<Name>,
}

/// Asks for the log of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLogs {
    /// Which.
    pub job: JobId,
    /// Go on until the job is done.
    pub follow: bool,
}

/// An answer, or one item of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AdminReply {
    /// It did not happen, and why.
    Refused(Report),
    /// It happened.
    Done,
    /// Answer to `Hello`.
    Hello(Hello),
    /// Answer to `Init`, `Join` and `Restore`.
    Joined(Joined),
    /// Answer to `Status`.
    Status(Box<ClusterStatus>),
    /// Answer to `TokenCreate`.
    Token(NewToken),
    /// Answer to `TokenList`.
    Tokens(Vec<TokenView>),
    /// Answer to `HostShow`.
    Host(Box<HostDetail>),
    /// Answer to `ScenarioList`.
    Scenarios(Vec<ScenarioInfo>),
    /// Answer to `RunSubmit`.
    Submitted(JobId),
    /// Answer to `JobList`.
    Jobs(Vec<JobView>),
    /// Answer to `JobShow`.
    Job(Box<JobView>),
    /// An item of `JobWatch` and `JobLogs`.
    Watch(Box<WatchItem>),
    /// An item of `JobFetch`.
    Files(FileChunk),
    /// Answer to `VmList`.
    Vms(Vec<VmView>),
    /// Answer to `Inventory`: one line a thing, sorted.
    Inventory(Vec<String>),
    /// The stream is complete.
    End,
    /// Answer to `AccessList`, in natural order of names.
    Access(Vec<ClientView>),
    /// Answer to `Audit`.
    Audit(AuditTrail),
    /// Answer to `HostChange`, `TransferLeader`, `Leave`, `Recover` and `AuthorityRotate`: what was done, for people.
    Steps(Vec<String>),
    /// Answer to `JobPlan`.
    Plan(Box<Plan>),
    /// Answer to `Image(List)`, in natural order of names.
    Images(Vec<ImageView>),
    /// An item of `Image(Import)` and `Image(Sync)`.
    ImageProgress(ImageProgress),
    /// Answer to what is done on several hosts, in natural order of names.
    Outcomes(Vec<HostOutcome>),
    /// Answer to `Image(Writers)`.
    Writers(Vec<WriterView>),
    /// Answer to `Storage(List)`.
    Pools(Vec<PoolView>),
    /// Answer to `AuthorityShow`.
    Authority(AuthorityView),
    /// Answer to `Renew`.
    Renewed(Box<Enrolled>),
    /// Answer to `ScenarioCheck`.
    ScenarioChecked(Box<ScenarioChecked>),
    /// Answer to `PlanCheck`: of each case, in order.
    Fates(Vec<CaseFate>),
    /// Answer to `KeyList`, in order.
    Keys(Vec<KeyInfo>),
    /// Answer to `Doctor`.
    Findings(Vec<Finding>),
    /// Answer to `Image(Packages)`, sorted; none of an image that we did not build.
    ImagePackages(Vec<ImagePackage>),
}

/// A client as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientView {
    /// Its name.
    pub name: Name,
    /// What it may do.
    pub role: AccessRole,
    /// Digest of its public key.
    pub key: Digest,
    /// When its certificate ends: seconds since 1970.
    pub until_unix_s: u64,
    /// The token that admitted it.
    pub admitted_with: TokenId,
}

/// Who a daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the daemon.
    pub build: String,
    /// Its cluster, where it belongs to one.
    pub cluster: Option<(ClusterId, Name)>,
    /// Its host name in the cluster.
    pub host: Option<Name>,
}

/// A host became part of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub name: Name,
    /// This host's id.
    pub host: HostId,
    /// This host's name.
    pub host_name: Name,
    /// BLAKE3 of the CA certificate, shown the same on every host.
    pub ca_fingerprint: String,
    /// Steps that were taken, for people.
    pub steps: Vec<String>,
}

/// A token that was made. Shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// Its public half.
    pub id: TokenId,
    /// The text to be given to `vtctl cluster join`.
    pub text: String,
    /// When it ends: seconds since 1970.
    pub expires_unix_s: u64,
}

impl std::fmt::Debug for NewToken {
    /// Without the text: it holds a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a token gives to the one it admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenGrant {
    /// A host, with this part in decisions.
    Host(HostRole),
    /// A client, with this role.
    Client(AccessRole),
}

/// A token as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Its public half.
    pub id: TokenId,
    /// What it gives.
    pub grant: TokenGrant,
    /// `open`, `used by HOST`, `revoked`, `expired`.
    pub state: String,
    /// When it ends: seconds since 1970.
    pub expires_unix_s: u64,
    /// The host it was made on.
    pub made_on: Name,
}

/// The cluster on one screen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub name: Name,
    /// BLAKE3 of the CA certificate.
    pub ca_fingerprint: String,
    /// Whether the cluster can decide, as the answering host sees it.
    pub quorum: bool,
    /// Who leads, where that is known.
    pub leader: Option<Name>,
    /// The Raft term.
    pub term: u64,
    /// How many hosts vote.
    pub voters: u32,
    /// How many voters may fail before the cluster stops.
    pub survives: u32,
    /// Index up to which the answering host has applied the log.
    pub applied: u64,
    /// The answering host.
    pub answered_by: Name,
    /// Hosts, in natural order of names.
    pub hosts: Vec<HostView>,
    /// Jobs that are not done.
    pub jobs: u32,
    /// Things a reader should know, e.g. that one voter is fragile.
    pub notes: Vec<String>,
}

/// A host as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// Its part in decisions now.
    pub role: HostRole,
    /// Whether it leads.
    pub leader: bool,
    /// `live`, `suspect`, `expired`.
    pub state: String,
    /// Where it is reached.
    pub addresses: Vec<SocketAddr>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Version of its daemon.
    pub build: String,
    /// The attempt it serves.
    pub attempt: Option<AttemptId>,
    /// VMs it owns.
    pub vms: u32,
    /// Log entries it is behind, where the leader answered.
    pub lag: Option<u64>,
    /// No new case begins on it.
    pub cordoned: bool,
    /// Who holds it.
    pub reserved: Option<Reserved>,
}

/// One host, with what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDetail {
    /// The list's view.
    pub view: HostView,
    /// What it says of itself; `None` where it does not answer.
    pub facts: Option<HostFacts>,
    /// Epoch of its session.
    pub session: Epoch,
    /// Times of the session: name and milliseconds.
    pub times_ms: Vec<(String, u64)>,
}

/// A VM as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// Text form of its id.
    pub id: String,
    /// Its name.
    pub name: Name,
    /// Who may run it.
    pub owner: Name,
    /// Epoch of the owner record.
    pub epoch: Epoch,
    /// Its image.
    pub image: Name,
    /// The attempt it belongs to.
    pub attempt: AttemptId,
    /// Its migration under way: source, destination, phase.
    pub migration: Option<(Name, Name, String)>,
}

/// An item of a watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum WatchItem {
    /// The job changed.
    Job(JobView),
    /// Something happened on a host.
    Event {
        /// In which attempt.
        attempt: AttemptId,
        /// What.
        event: AttemptEvent,
    },
    /// The job changed: without the cases that are as they were in the item before.
    Changed(JobView),
}

/// A piece of a file. Pieces come in order, file after file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChunk {
    /// Relative path with `/`; never absolute, never with `..`.
    pub path: String,
    /// Bytes, at most 256 KiB.
    pub bytes: Vec<u8>,
    /// Whether the file ends here.
    pub last: bool,
}

impl FileChunk {
    /// Most bytes of one piece.
    pub const MAX: usize = 256 << 10;
}
