//! What can be asked of the replicated state: one struct per command.
//!
//! A command says what happened or what is wanted; whether it holds is decided when it is applied. New commands are
//! added at the end: the encoding counts variants. Times in commands are data for people and are never compared here.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    catalogue::{PlacementState, PoolKind},
    error::Report,
    ids::{AttemptId, CaseId, ClusterId, Digest, Epoch, HostId, JobId, MigrationId, Name, RequestId, TokenId, VmId},
    membership::Reserved,
    verdict::{Outcome, Verdict},
};

use crate::state::{BarrierKey, ClientGrant, ImageContent, Role};

/// A mutation with the id that makes it happen once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by who asks; the same for every repetition of the same call.
    pub id: RequestId,
    /// What is asked.
    pub command: Command,
}

impl Request {
    /// A request with a fresh id.
    pub fn new(command: impl Into<Command>) -> Self {
        Self { id: RequestId::random(), command: command.into() }
    }

    /// A request under an id the caller can make again, so that it may be repeated after a lost answer.
    pub fn with_id(id: RequestId, command: impl Into<Command>) -> Self {
        Self { id, command: command.into() }
    }
}

macro_rules! commands {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$field_doc:meta])* $field:ident : $kind:ty ),* $(,)? } )*) => {
        /// Every command. The order of variants is stored: append only.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "each variant holds the struct of the same name")]
        pub enum Command { $( $name($name), )* }

        impl Command {
            /// The command's name, for logs.
            pub fn name(&self) -> &'static str {
                match self { $( Self::$name(_) => stringify!($name), )* }
            }
        }

        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
            pub struct $name { $( $(#[$field_doc])* pub $field: $kind, )* }

            impl From<$name> for Command {
                fn from(command: $name) -> Self { Self::$name(command) }
            }
        )*
    };
}

/// A host as it comes into the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewHost {
    /// Its Raft id, made by itself; never zero.
    pub id: HostId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Where its daemon is reached; at least one.
    pub addresses: Vec<SocketAddr>,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// The role it wishes for; `None`: what its token says.
    pub role: Option<Role>,
    /// Its public key (SubjectPublicKeyInfo, DER): its identity.
    pub public_key: Vec<u8>,
    /// Version of its daemon.
    pub build: String,
    /// Digest of its facts.
    pub facts: Option<Digest>,
}

/// A case as it is submitted. Its index is its place in the list, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCase {
    /// The hosts it runs on, host1 first; empty for one that was left without hosts.
    pub hosts: Vec<HostId>,
    /// Indexes of the cases that have to pass before it begins, each smaller than its own.
    pub after: Vec<u32>,
    /// Why it is skipped at once: a place in the job's refusals.
    pub refused: Option<u32>,
}

impl RenewSessions {
    /// What several hosts asked for, as one entry. A host that asks under several epochs was given the last one when the
    /// others were over; the answer names hosts, so that only one of them can stand here.
    pub fn of(asked: impl IntoIterator<Item = (HostId, Epoch)>) -> Self {
        let mut sessions = BTreeMap::new();
        for (host, epoch) in asked {
            let last = sessions.entry(host).or_insert(epoch);
            *last = epoch.max(*last);
        }
        Self { sessions: sessions.into_iter().collect() }
    }

    /// The sessions that were renewed, where these hosts were refused.
    pub fn renewed(&self, refused: &[HostId]) -> Vec<(HostId, Epoch)> {
        self.sessions.iter().copied().filter(|(host, _)| !refused.contains(host)).collect()
    }
}

impl NewCase {
    /// A case that waits for its hosts and nothing else.
    pub fn on(hosts: Vec<HostId>) -> Self {
        Self { hosts, after: Vec::new(), refused: None }
    }
}

commands! {
    /// The first entry of a cluster. Answers the host's admission epoch.
    InitCluster {
        /// The cluster's id.
        id: ClusterId,
        /// The cluster's name.
        name: Name,
        /// Digest of the certificate of the authority.
        ca: Digest,
        /// The first host.
        host: NewHost,
    }
    /// Makes a join token.
    CreateToken {
        /// Its public half.
        token: TokenId,
        /// Hash of its secret half.
        secret_hash: Digest,
        /// Role of the host it admits.
        role: Role,
        /// Who made it, for people.
        made_by: String,
        /// When it ends, seconds since 1970. Data only: [`ExpireToken`] ends it.
        expires_unix_s: u64,
    }
    /// An admin ends a token.
    RevokeToken {
        /// Which.
        token: TokenId,
    }
    /// The leader found that a token's time is over.
    ExpireToken {
        /// Which.
        token: TokenId,
    }
    /// Consumes a token and admits a host, both or neither. The same host with the same key again is answered alike.
    AdmitHost {
        /// The token.
        token: TokenId,
        /// Hash of the secret that was shown.
        secret_hash: Digest,
        /// The host.
        host: NewHost,
    }
    /// A host tells where it is reached and what it is.
    UpdateHost {
        /// Which.
        host: HostId,
        /// Its addresses; at least one.
        addresses: Vec<SocketAddr>,
        /// Version of its daemon.
        build: String,
        /// Digest of its facts.
        facts: Option<Digest>,
    }
    /// Sets and clears labels of a host; what is not named stays.
    SetLabels {
        /// Which.
        host: HostId,
        /// Labels with their new values; `None` clears one.
        labels: BTreeMap<String, Option<String>>,
    }
    /// Changes the role that a host is wished to have.
    SetRole {
        /// Which.
        host: HostId,
        /// The role.
        role: Role,
    }
    /// Takes a host out of the cluster: what it holds is fenced, its key and id stay refused.
    RemoveHost {
        /// Which.
        host: HostId,
    }
    /// Sets or clears a setting of the cluster.
    SetSetting {
        /// Its key.
        key: String,
        /// Its value; `None` clears it.
        value: Option<String>,
    }
    /// A daemon starts to act. Answers the session's epoch.
    OpenSession {
        /// Which host.
        host: HostId,
        /// Differs for every start of the daemon.
        incarnation: u64,
        /// The daemon restarted on the same data directory and took over what it held: an unexpired session goes on
        /// under its epoch. Otherwise what the session held is fenced.
        resume: bool,
    }
    /// Renews sessions of several hosts. Answers which were refused.
    RenewSessions {
        /// Hosts and the epochs they hold.
        sessions: Vec<(HostId, Epoch)>,
    }
    /// A host was silent for a while: breaks barriers, frees nothing.
    SuspectHost {
        /// Which.
        host: HostId,
        /// The session that was silent.
        epoch: Epoch,
        /// The renewal since which it was silent: the verdict is void where a later one was applied before it.
        renewed: Epoch,
    }
    /// A host was silent for so long that its guards have stopped its VMs: fences all it held.
    ExpireSession {
        /// Which.
        host: HostId,
        /// The session that was silent.
        epoch: Epoch,
        /// The renewal since which it was silent: the verdict is void where a later one was applied before it.
        renewed: Epoch,
    }
    /// Submits a job.
    SubmitJob {
        /// Its id, chosen by the client.
        job: JobId,
        /// Name of the scenario.
        scenario: String,
        /// Digest of the plan: names and parameters of all cases.
        plan: Digest,
        /// Hosts that hold the plan.
        holders: Vec<HostId>,
        /// A case left without hosts fails instead of being skipped.
        strict: bool,
        /// Who submitted it, for people.
        submitted_by: String,
        /// When, seconds since 1970. Data only.
        submitted_unix_s: u64,
        /// Its cases.
        cases: Vec<NewCase>,
        /// Why some of them cannot run at all; each reason stands here once.
        refusals: Vec<Report>,
    }
    /// A user cancels a job: what waits is cancelled at once, what runs is told.
    CancelJob {
        /// Which.
        job: JobId,
        /// Who, for people.
        by: String,
    }
    /// Gives all hosts of a case to one attempt, or none. Answers its epoch.
    StartAttempt {
        /// The case.
        case: CaseId,
        /// Which execution of it, from 1.
        number: u32,
        /// Its hosts, host1 first: those of the case.
        hosts: Vec<HostId>,
    }
    /// A party ended and its host gave back what the party held. The last one has the case judged.
    PartyEnded {
        /// Which attempt.
        attempt: AttemptId,
        /// The attempt's epoch.
        epoch: Epoch,
        /// The party's host.
        host: HostId,
        /// How it ended.
        outcome: Outcome,
        /// Figures for people, with the unit in the name. Data only; the greater of two parties' values is kept.
        metrics: BTreeMap<String, u64>,
    }
    /// A party arrives at a barrier. The last arrival releases it in the same entry.
    Arrive {
        /// Which attempt.
        attempt: AttemptId,
        /// The attempt's epoch.
        epoch: Epoch,
        /// The party's host.
        host: HostId,
        /// Which barrier.
        barrier: BarrierKey,
        /// Who has to arrive; empty: every party of the attempt. All arrivals must say the same.
        parties: Vec<HostId>,
        /// What this party gives to the others.
        payload: Vec<u8>,
    }
    /// A party's own deadline for a barrier passed. Answers what came first: release or break.
    BreakBarrier {
        /// Which attempt.
        attempt: AttemptId,
        /// The attempt's epoch.
        epoch: Epoch,
        /// The party whose deadline passed.
        host: HostId,
        /// Which barrier.
        barrier: BarrierKey,
        /// Who has to arrive, as in [`Arrive`].
        parties: Vec<HostId>,
    }
    /// Ends a case that waits, without an attempt.
    SkipCase {
        /// Which.
        case: CaseId,
        /// SKIP, or what else the reason makes of it; not PASS or WARN.
        verdict: Verdict,
        /// Why.
        cause: Report,
    }
    /// A host starts a VM of an attempt it is a party of. Answers the owner's epoch.
    ClaimVm {
        /// Which VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// The attempt's epoch.
        epoch: Epoch,
        /// The image it writes.
        image: Name,
        /// Digest of its full description.
        spec: Option<Digest>,
        /// Other images that its disks lie upon.
        also: Vec<Name>,
        /// Pools of one disk each, which no other VM may have meanwhile.
        alone: Vec<Name>,
    }
    /// The owner has ended the VM.
    ReleaseVm {
        /// Which VM.
        vm: VmId,
        /// The owner.
        host: HostId,
        /// The owner's epoch.
        epoch: Epoch,
    }
    /// The owner begins to move a VM.
    BeginMigration {
        /// Which movement; numbers count from 1 without gaps.
        migration: MigrationId,
        /// The owner: the source.
        from: HostId,
        /// The owner's epoch.
        epoch: Epoch,
        /// The destination: another party of the attempt.
        to: HostId,
    }
    /// The destination listens.
    MigrationPrepared {
        /// Which movement.
        migration: MigrationId,
        /// The destination.
        host: HostId,
        /// Where it listens, as QEMU is told.
        address: String,
        /// What else the source has to know.
        detail: Vec<u8>,
    }
    /// The source's vote: QEMU completed and cannot resume by itself any more.
    VoteSourceCompleted {
        /// Which movement.
        migration: MigrationId,
        /// The source.
        host: HostId,
    }
    /// The destination's vote: everything is loaded and it waits, paused.
    VoteDestLoaded {
        /// Which movement.
        migration: MigrationId,
        /// The destination.
        host: HostId,
    }
    /// A side that has not voted gives up.
    AbortMigration {
        /// Which movement.
        migration: MigrationId,
        /// The side.
        host: HostId,
        /// Why.
        why: Report,
    }
    /// The owner saw the end: the record goes into the attempt's history, and the next movement may begin.
    FinishMigration {
        /// Which movement.
        migration: MigrationId,
        /// The owner.
        host: HostId,
    }
    /// Drops a finished job from the record.
    ForgetJob {
        /// Which.
        job: JobId,
    }
    /// Keeps new attempts off a host, or lets them come again. What runs there goes on.
    Cordon {
        /// Which.
        host: HostId,
        /// Whether they are kept off.
        cordoned: bool,
    }
    /// Makes a token that admits a client.
    CreateClientToken {
        /// Its public half.
        token: TokenId,
        /// Hash of its secret half.
        secret_hash: Digest,
        /// What the client is given.
        grant: ClientGrant,
        /// Who made it, for people.
        made_by: String,
        /// When it ends, seconds since 1970. Data only: [`ExpireToken`] ends it.
        expires_unix_s: u64,
    }
    /// Consumes a token and admits a client, both or neither. The same key again is answered alike.
    AdmitClient {
        /// The token.
        token: TokenId,
        /// Hash of the secret that was shown.
        secret_hash: Digest,
        /// Digest of the client's public key: its identity.
        key: Digest,
        /// The name it wishes for, where the token names none.
        name: Name,
        /// When its certificate ends, seconds since 1970. Data only.
        until_unix_s: u64,
    }
    /// An admin revokes a client's key.
    RemoveClient {
        /// Digest of the public key.
        key: Digest,
    }
    /// A user lets go what a job has kept: parties that have come to their end give back what they hold.
    ReleaseJob {
        /// Which.
        job: JobId,
    }
    /// A host has a whole image, as it says: a new one, a new version, or one more copy.
    RegisterImage {
        /// Its name.
        image: Name,
        /// The pool it lies in.
        pool: Name,
        /// What it is.
        content: ImageContent,
        /// The host that has it.
        host: HostId,
        /// Whether every host sees that copy.
        shared: bool,
    }
    /// A host says how its copy of a version is.
    PlaceImage {
        /// Which image.
        image: Name,
        /// Which version.
        root: Digest,
        /// The host.
        host: HostId,
        /// How the copy is.
        state: PlacementState,
        /// Whether every host sees it.
        shared: bool,
    }
    /// A copy is gone. The last one takes the image out of the catalogue.
    DropPlacement {
        /// Which image.
        image: Name,
        /// The host.
        host: HostId,
    }
    /// Keeps an image from being deleted, or no longer.
    PinImage {
        /// Which.
        image: Name,
        /// Whether it is kept.
        pinned: bool,
    }
    /// Makes a pool known.
    AddPool {
        /// Its name.
        pool: Name,
        /// What it is.
        kind: PoolKind,
        /// Where it is: a directory or a URI.
        path: String,
        /// Whether every host sees the same files there.
        shared: bool,
    }
    /// Forgets a pool in which no image lies.
    RemovePool {
        /// Which.
        pool: Name,
    }
    /// Another authority follows the present one; both are trusted until [`DropAuthority`]. Open tokens end.
    RotateAuthority {
        /// Certificate of the present one, in DER.
        old: Vec<u8>,
        /// Certificate of the one that follows, in DER.
        new: Vec<u8>,
        /// A certificate of the present one for the key of the one that follows, in DER.
        cross: Vec<u8>,
    }
    /// A host shows a certificate of the present authority, or a client was given one.
    Certified {
        /// Digest of the host's or client's public key.
        key: Digest,
        /// Digest of the authority's certificate.
        ca: Digest,
    }
    /// The authority before the present one is trusted no more.
    DropAuthority {
        /// Digest of its certificate.
        old: Digest,
        /// Also where hosts or clients have no certificate of the present one.
        anyway: bool,
    }
    /// A person holds a host. It fences nothing: what runs there goes on.
    ReserveHost {
        /// Which.
        host: HostId,
        /// Who, what for, and until when; the end is data only: [`ReleaseHost`] ends it.
        hold: Reserved,
    }
    /// A hold is over.
    ReleaseHost {
        /// Which host.
        host: HostId,
        /// The end that has come, where the leader found that; a hold that was prolonged meanwhile stays.
        until_unix_s: Option<u64>,
    }
}
