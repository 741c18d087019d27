//! The replicated state: a deterministic function of the log.
//!
//! No clock, no randomness, no I/O and no comparison of times happens here, and nothing unordered is iterated, so that
//! every host that applied the same entries holds the same state, bit for bit. A rejected command changes nothing but
//! the memory of its outcome. Large parts are shared, so that a clone is cheap and readers never block the log.
//!
//! Epochs are log indexes: whatever begins later has the larger one.

mod attempts;
mod authority;
mod barriers;
mod clients;
mod cluster;
mod images;
mod jobs;
mod migrations;
mod recovery;
mod requests;
mod reservations;
mod sessions;
mod tokens;
mod vms;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, CaseId, Epoch, HostId, JobId, MigrationId, Name, TokenId, VmId},
    membership::Reserved,
};

pub use self::{
    attempts::{Attempt, Ending, PartyState},
    authority::{Authority, Previous, Uncertified},
    barriers::{Barrier, BarrierKey, BarrierState},
    clients::{Client, Clients},
    cluster::{Cluster, Host, RemovedHost, Role},
    images::{Image, ImageContent, Placement, Pool},
    jobs::{Case, CaseState, Job, JobState},
    migrations::{Migration, Phase},
    recovery::Survivor,
    requests::Requests,
    sessions::{Session, SessionStatus},
    tokens::{ClientGrant, Grant, Token, TokenStatus},
    vms::{VmRecord, VmState},
};
use crate::{
    answer::{Answer, Applied, Effect, Rejected},
    bounds,
    command::{Command, Request},
    mutation::Mutation,
};

/// Everything the cluster agrees on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The cluster's own record; `None` before its first entry.
    pub cluster: Option<Cluster>,
    /// Admitted hosts.
    pub hosts: BTreeMap<HostId, Arc<Host>>,
    /// Hosts that were removed, oldest first: their ids and keys stay refused.
    pub removed: Arc<Vec<RemovedHost>>,
    /// Join tokens.
    pub tokens: BTreeMap<TokenId, Arc<Token>>,
    /// Settings of the cluster.
    pub settings: Arc<BTreeMap<String, String>>,
    /// Jobs.
    pub jobs: BTreeMap<JobId, Arc<Job>>,
    /// Live attempts.
    pub attempts: BTreeMap<AttemptId, Arc<Attempt>>,
    /// Ended attempts, without payloads, bounded.
    pub ended: BTreeMap<AttemptId, Arc<Attempt>>,
    /// Owner records of VMs.
    pub vms: BTreeMap<VmId, Arc<VmRecord>>,
    /// Outcomes of requests, so that a repetition is answered alike.
    pub requests: Requests,
    /// Log index of the last command applied; 0 before the first.
    pub index: u64,
    /// Clients by the digest of their public key.
    pub clients: Arc<Clients>,
    /// The catalogue of images.
    pub images: BTreeMap<Name, Arc<Image>>,
    /// Pools beside the one that every host has.
    pub pools: BTreeMap<Name, Arc<Pool>>,
    /// The authority, once it is not the cluster's first.
    pub authority: Option<Arc<Authority>>,
    /// Hosts that a person holds.
    pub reservations: BTreeMap<HostId, Arc<Reserved>>,
}

/// What a command's handler gives: an answer, or a refusal made before anything was changed.
type Decision = Result<Answer, Rejected>;

/// One entry being applied.
struct Entry {
    index: u64,
    effects: Vec<Effect>,
}

impl Entry {
    fn epoch(&self) -> Epoch {
        Epoch(self.index)
    }

    fn tell(&mut self, effect: Effect) {
        if !self.effects.contains(&effect) {
            self.effects.push(effect);
        }
    }
}

impl State {
    /// Applies the request of log entry `index`.
    ///
    /// # Errors
    /// The command is not allowed as things stand. State is as before, but for the memory of the request.
    pub fn apply(&mut self, index: u64, request: &Request) -> Result<Applied, Rejected> {
        self.index = index;
        let content = Requests::content(&request.command);
        if let Some(remembered) = self.requests.recall(request.id, content) {
            return remembered;
        }
        let mut entry = Entry { index, effects: Vec::new() };
        let outcome = self.decide(&mut entry, &request.command);
        self.requests.remember(request.id, content, index, outcome.clone());
        outcome.map(|answer| Applied { index, answer, effects: entry.effects })
    }

    fn decide(&mut self, entry: &mut Entry, command: &Command) -> Decision {
        if self.cluster.is_none() && !matches!(command, Command::InitCluster(_)) {
            return reject(ErrorCode::Unclaimed, "there is no cluster yet");
        }
        match command {
            Command::InitCluster(c) => self.init_cluster(entry, c),
            Command::CreateToken(c) => self.create_token(entry, c),
            Command::RevokeToken(c) => self.revoke_token(entry, c),
            Command::ExpireToken(c) => self.expire_token(entry, c),
            Command::AdmitHost(c) => self.admit_host(entry, c),
            Command::UpdateHost(c) => self.update_host(entry, c),
            Command::SetLabels(c) => self.set_labels(entry, c),
            Command::SetRole(c) => self.set_role(entry, c),
            Command::RemoveHost(c) => self.remove_host(entry, c),
            Command::SetSetting(c) => self.set_setting(entry, c),
            Command::OpenSession(c) => self.open_session(entry, c),
            Command::RenewSessions(c) => self.renew_sessions(entry, c),
            Command::SuspectHost(c) => self.suspect_host(entry, c),
            Command::ExpireSession(c) => self.expire_session(entry, c),
            Command::SubmitJob(c) => self.submit_job(entry, c),
            Command::CancelJob(c) => self.cancel_job(entry, c),
            Command::StartAttempt(c) => self.start_attempt(entry, c),
            Command::PartyEnded(c) => self.party_ended(entry, c),
            Command::Arrive(c) => self.arrive(entry, c),
            Command::BreakBarrier(c) => self.break_barrier(entry, c),
            Command::SkipCase(c) => self.skip_case(entry, c),
            Command::ClaimVm(c) => self.claim_vm(entry, c),
            Command::ReleaseVm(c) => self.release_vm(entry, c),
            Command::BeginMigration(c) => self.begin_migration(entry, c),
            Command::MigrationPrepared(c) => self.migration_prepared(entry, c),
            Command::VoteSourceCompleted(c) => self.vote(entry, &c.migration, c.host, migrations::Side::Source),
            Command::VoteDestLoaded(c) => self.vote(entry, &c.migration, c.host, migrations::Side::Destination),
            Command::AbortMigration(c) => self.abort_migration(entry, c),
            Command::FinishMigration(c) => self.finish_migration(entry, c),
            Command::ForgetJob(c) => self.forget_job(entry, c),
            Command::Cordon(c) => self.cordon(entry, c),
            Command::CreateClientToken(c) => self.create_client_token(entry, c),
            Command::AdmitClient(c) => self.admit_client(entry, c),
            Command::RemoveClient(c) => self.remove_client(entry, c),
            Command::ReleaseJob(c) => self.release_job(entry, c),
            Command::RegisterImage(c) => self.register_image(entry, c),
            Command::PlaceImage(c) => self.place_image(entry, c),
            Command::DropPlacement(c) => self.drop_placement(entry, c),
            Command::PinImage(c) => self.pin_image(entry, c),
            Command::AddPool(c) => self.add_pool(entry, c),
            Command::RemovePool(c) => self.remove_pool(entry, c),
            Command::ReserveHost(c) => self.reserve_host(entry, c),
            Command::ReleaseHost(c) => self.release_host(entry, c),
            Command::RotateAuthority(c) => self.rotate_authority(entry, c),
            Command::Certified(c) => self.certified(entry, c),
            Command::DropAuthority(c) => self.drop_authority(entry, c),
        }
    }

    /// A host by its name.
    pub fn host_named(&self, name: &str) -> Option<&Arc<Host>> {
        self.hosts.values().find(|host| host.name.as_str() == name)
    }

    /// The name of a host for people: its id where it is not admitted.
    pub fn host_name(&self, host: HostId) -> String {
        self.hosts.get(&host).map_or_else(|| host.to_string(), |h| h.name.to_string())
    }

    /// A case of a job.
    pub fn case(&self, case: CaseId) -> Option<&Arc<Case>> {
        self.jobs.get(&case.job)?.case(case.index)
    }

    /// An attempt, live or ended.
    pub fn attempt(&self, attempt: AttemptId) -> Option<&Arc<Attempt>> {
        self.attempts.get(&attempt).or_else(|| self.ended.get(&attempt))
    }

    /// A migration: the one under way or decided at the VM, else from the attempt's history.
    pub fn migration(&self, id: &MigrationId) -> Option<&Migration> {
        let current = self.vms.get(&id.vm).and_then(|vm| vm.migration.as_ref()).filter(|m| m.id == *id);
        current.or_else(|| self.attempt(id.vm.attempt)?.history.iter().rev().find(|m| m.id == *id))
    }

    /// The live attempt in which this host still has a running party.
    pub fn busy_with(&self, host: HostId) -> Option<&Arc<Attempt>> {
        self.attempts.values().find(|attempt| attempt.parties.get(&host) == Some(&PartyState::Running))
    }
}

/// Whether who shows this fencing number may still act. `current` is the one in force, `None` where it is over.
fn in_force(current: Option<Epoch>, shown: Epoch) -> bool {
    current == Some(shown) || Mutation::StaleEpochAccepted.is_on()
}

fn reject<T>(code: ErrorCode, text: impl Into<String>) -> Result<T, Rejected> {
    Err(Rejected::new(code, text))
}

/// Refuses what is longer than `bound`.
fn within(what: &str, len: usize, bound: usize) -> Result<(), Rejected> {
    if len <= bound { Ok(()) } else { reject(ErrorCode::TooLarge, format!("{what}: {len} is more than {bound}")) }
}

/// A report cut to what may be replicated. Reports from other builds or hands need not be bounded.
fn bounded(report: &Report) -> Report {
    let mut left = bounds::REPORT_BYTES;
    let mut cut = |text: &String| {
        let mut end = text.len().min(left);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        left -= end;
        text[..end].to_owned()
    };
    let lines = Report::LINES_MAX;
    Report {
        code: report.code,
        title: cut(&report.title),
        evidence: report.evidence.iter().take(lines).map(|(key, value)| (cut(key), cut(value))).collect(),
        help: report.help.iter().take(lines).map(&mut cut).collect(),
        causes: report.causes.iter().take(lines).map(&mut cut).collect(),
        retryable: report.retryable,
    }
}
