//! What is asked of this daemon by vtctl and by other daemons: decode, check, read or propose, encode.
//!
//! Every host answers every request. What only looks is answered from the state this host has applied; what changes
//! something is proposed, and answered once this host has applied it too, so that a caller reads its own writes.

mod access;
mod admission;
mod authority;
mod doctor;
mod fetch;
mod hosts;
mod images;
mod inventory;
mod job_json;
mod migration;
mod new_images;
mod peer;
pub(crate) mod recovery;
mod storage;
mod submit;
mod tokens;
pub mod views;
mod watch;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;
use vt_protocol::{
    admin::{AdminReply, AdminRequest, Hello as WhoAreYou, HostDetail},
    codec,
    error::{ErrorCode, Report},
    hello::BUILD,
    ids::{Digest, HostId, JobId, Name, RequestId},
    job::{PLAN_MAX, Plan},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    State,
    command::{CancelJob, ReleaseJob},
    state::Job,
};

use crate::{
    audit::user_name,
    cluster::Cluster,
    host::Host,
    images::blocking,
    mesh::{Caller, ReplySink},
    nearest::nearest,
    party::Plans,
    plan::OpenPlan,
    scenario,
};

/// How long an entry may take where the request names no shorter time.
const DECIDES: Duration = Duration::from_secs(15);
/// How long another host may take to say something of itself.
const ASKS: Duration = Duration::from_secs(3);

impl Host {
    /// Answers a request of vtctl.
    pub async fn answer_admin(
        self: &Arc<Self>,
        caller: Caller,
        request: AdminRequest,
        replies: ReplySink,
        by: Instant,
    ) {
        let reply = match request {
            AdminRequest::Hello => Ok(AdminReply::Hello(self.who())),
            AdminRequest::Init(_) | AdminRequest::Join(_) => {
                Err(Report::new(ErrorCode::AlreadyClaimed, "this daemon already belongs to a cluster"))
            }
            AdminRequest::Status => self.status(),
            AdminRequest::TokenCreate(create) => self.create_token(create, by).await.map(AdminReply::Token),
            AdminRequest::TokenList => Ok(AdminReply::Tokens(self.tokens())),
            AdminRequest::TokenRevoke(token) => self.revoke_token(token, by).await.map(|()| AdminReply::Done),
            AdminRequest::HostShow(name) => self.show_host(&name).await.map(|host| AdminReply::Host(Box::new(host))),
            AdminRequest::ScenarioList => Ok(AdminReply::Scenarios(scenario::list())),
            AdminRequest::KeyList => Ok(AdminReply::Keys(scenario::keys::list())),
            AdminRequest::Doctor(examine) => self.doctor(examine).await.map(AdminReply::Findings),
            AdminRequest::PlanCheck(plan) => {
                let fates = move || {
                    submit::limited(&plan).and_then(|()| OpenPlan::new(*plan).map(|plan| scenario::fates(&plan)))
                };
                blocking(fates).await.map(AdminReply::Fates)
            }
            AdminRequest::ScenarioCheck(check) => {
                let checked = blocking(move || scenario::file::checked(&check)).await;
                Ok(AdminReply::ScenarioChecked(Box::new(checked)))
            }
            AdminRequest::RunSubmit(submit) => self.submit(submit, &caller, by).await.map(AdminReply::Submitted),
            AdminRequest::JobList => Ok(AdminReply::Jobs(self.list_jobs())),
            AdminRequest::JobShow(job) => self.show_job(job).await.map(|job| AdminReply::Job(Box::new(job))),
            AdminRequest::JobPlan(job) => self.job_plan(job).await.map(|plan| AdminReply::Plan(Box::new(plan))),
            AdminRequest::JobCancel(job) => self.cancel(job, &caller, by).await.map(|()| AdminReply::Done),
            AdminRequest::JobRelease(job) => self.release(job, by).await.map(|()| AdminReply::Done),
            AdminRequest::JobWatch(job) => self.watch_job(job, &replies).await.map(|()| AdminReply::End),
            AdminRequest::JobLogs(logs) => self.job_logs(logs, &replies).await.map(|()| AdminReply::End),
            AdminRequest::JobFetch(job) => self.fetch_job(job, &replies).await.map(|()| AdminReply::End),
            AdminRequest::VmList => Ok(AdminReply::Vms(views::vms(&self.state()))),
            AdminRequest::Inventory => Ok(AdminReply::Inventory(self.inventory().await)),
            AdminRequest::ClientToken(create) => self.create_client_token(create, by).await.map(AdminReply::Token),
            AdminRequest::AccessList => Ok(AdminReply::Access(self.clients())),
            AdminRequest::AccessRevoke(name) => self.revoke_client(&name, by).await.map(|()| AdminReply::Done),
            AdminRequest::Audit(query) => Ok(AdminReply::Audit(self.audit_everywhere(query).await)),
            AdminRequest::HostChange(change) => self.change_host(change, by).await.map(AdminReply::Steps),
            AdminRequest::TransferLeader(to) => self.transfer_leader(&to, by).await.map(AdminReply::Steps),
            AdminRequest::SnapshotSave => self.save_snapshot(&replies).await.map(AdminReply::Steps),
            AdminRequest::AuthorityShow => self.authority_view().map(AdminReply::Authority),
            AdminRequest::AuthorityRotate(rotate) => self.rotate(rotate, by).await.map(AdminReply::Steps),
            AdminRequest::Renew(request) => {
                self.renew(&caller, request, by).await.map(|renewed| AdminReply::Renewed(Box::new(renewed)))
            }
            AdminRequest::Restore(_) => {
                Err(Report::new(ErrorCode::AlreadyClaimed, "this daemon already belongs to a cluster"))
            }
            AdminRequest::Image(image) => self.images_asked(image, &caller, &replies).await,
            AdminRequest::Storage(storage) => self.storage_asked(storage, by).await,
            AdminRequest::Leave(_) | AdminRequest::Recover(_) => {
                Err(Report::new(ErrorCode::Denied, "this goes over the host's own socket only"))
            }
        };
        let reply = reply.unwrap_or_else(|report| {
            tracing::debug!(%report, "a request was refused");
            AdminReply::Refused(report)
        });
        // A caller that went away needs no reply.
        let _ = replies.send(reply).await;
    }

    fn who(&self) -> WhoAreYou {
        let record = self.record();
        WhoAreYou {
            build: BUILD.to_owned(),
            cluster: Some((record.cluster, record.cluster_name.clone())),
            host: Some(record.name.clone()),
        }
    }

    fn status(&self) -> Result<AdminReply, Report> {
        self.check_admitted()?;
        let status = views::status(&self.state(), &self.consensus(), &self.record().name);
        status.map(|status| AdminReply::Status(Box::new(status))).ok_or_else(|| {
            Report::new(ErrorCode::NoQuorum, "this host has not heard from its cluster yet")
                .with("cluster", self.record().cluster_name.to_string())
                .help("check that the other hosts run and that port 7465/udp is open")
                .retryable()
        })
    }

    /// Refuses to speak for a cluster that does not know this host any more.
    pub(crate) fn check_admitted(&self) -> Result<(), Report> {
        if self.consensus().quorum || !self.peers().expelled() {
            return Ok(());
        }
        Err(Report::new(ErrorCode::HostRemoved, "the hosts that answer do not admit this one: it was removed")
            .with("cluster", self.record().cluster_name.to_string())
            .help("vtctl cluster leave --forget --yes   (clears what this host kept)")
            .help("vtctl cluster join TOKEN   (then, as a new host)"))
    }

    async fn show_host(&self, name: &Name) -> Result<HostDetail, Report> {
        let state = self.state();
        let host = state.host_named(name.as_str()).ok_or_else(|| unknown_host(&state, name))?;
        let facts = match self.ask(host.id, PeerRequest::Facts, ASKS).await {
            Ok(PeerReply::Facts(facts)) => Some(*facts),
            Ok(_) | Err(_) => None,
        };
        Ok(HostDetail {
            view: views::host_view(&state, &self.consensus(), host),
            times_ms: facts.as_ref().map(|facts| facts.times_ms.clone()).unwrap_or_default(),
            facts,
            session: host.session.as_ref().map(|session| session.epoch).unwrap_or_default(),
        })
    }

    fn list_jobs(&self) -> Vec<vt_protocol::job::JobView> {
        let state = self.state();
        let mut jobs: Vec<_> = state.jobs.values().collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.submitted_at));
        jobs.into_iter().map(|job| views::job(&state, job, None)).collect()
    }

    async fn show_job(&self, id: JobId) -> Result<vt_protocol::job::JobView, Report> {
        let state = self.state();
        let job = known_job(&state, id)?;
        let plan = self.plan_of(job).await?;
        Ok(views::job(&state, job, Some(&plan)))
    }

    async fn job_plan(&self, id: JobId) -> Result<Plan, Report> {
        let state = self.state();
        Ok(self.plan_of(known_job(&state, id)?).await?.plan().clone())
    }

    async fn cancel(&self, id: JobId, caller: &Caller, by: Instant) -> Result<(), Report> {
        known_job(&self.state(), id)?;
        let who = match caller {
            Caller::Local { uid, .. } => {
                let user = user_name(*uid).unwrap_or_else(|| format!("uid {uid}"));
                format!("{user} on {}", self.record().name)
            }
            Caller::Remote { name, .. } => name.to_string(),
        };
        self.propose(RequestId::random(), CancelJob { job: id, by: who }.into(), left(by)).await?;
        Ok(())
    }

    async fn release(&self, id: JobId, by: Instant) -> Result<(), Report> {
        known_job(&self.state(), id)?;
        self.propose(RequestId::random(), ReleaseJob { job: id }.into(), left(by)).await?;
        Ok(())
    }

    /// The plan of a job: from this host, else from a host that holds it.
    pub(crate) async fn plan_of(&self, job: &Job) -> Result<Arc<OpenPlan>, Report> {
        if let Some(plan) = self.plans().get(job.plan) {
            return Ok(plan);
        }
        let bytes = self.blob(job.plan, &job.holders).await?;
        let unreadable = |error: &dyn std::error::Error| {
            Report::new(ErrorCode::StoreDamaged, "the plan of the job cannot be read").caused_by(error)
        };
        let open = move || {
            let plan: Plan = codec::decode_wire(&bytes, PLAN_MAX).map_err(|error| unreadable(&error))?;
            // It was read when it was taken; a later build may know less.
            OpenPlan::new(plan)
        };
        let plan = Arc::new(blocking(open).await?);
        self.plans().keep(job.plan, Arc::clone(&plan));
        Ok(plan)
    }

    /// A blob: from this host, else from one of `holders`, and then kept here.
    pub(crate) async fn blob(&self, digest: Digest, holders: &[HostId]) -> Result<Vec<u8>, Report> {
        let store = self.blobs().clone();
        let here = blocking(move || store.get(digest)).await;
        match here {
            Ok(Some(bytes)) => return Ok(bytes),
            Ok(None) => {}
            // A damaged copy is replaced by a good one from elsewhere.
            Err(error) => tracing::warn!(%error, %digest, "a blob of this host cannot be used"),
        }
        let mut tried = Vec::new();
        for holder in holders.iter().filter(|holder| **holder != self.me()) {
            match self.ask(*holder, PeerRequest::BlobGet(digest), DECIDES).await {
                Ok(PeerReply::Blob(Some(bytes))) => {
                    let store = self.blobs().clone();
                    let (kept, bytes) = blocking(move || (store.put_as(digest, &bytes), bytes)).await;
                    match kept {
                        Ok(()) => return Ok(bytes),
                        Err(error @ crate::blob::BlobError::Mismatch(_)) => tried.push((*holder, error.to_string())),
                        // It is good and only cannot be kept here.
                        Err(error) => {
                            tracing::warn!(%error, %digest, "a blob is not kept on this host");
                            return Ok(bytes);
                        }
                    }
                }
                Ok(_) => tried.push((*holder, "does not have it".to_owned())),
                Err(error) => tried.push((*holder, error.to_string())),
            }
        }
        let state = self.state();
        let report = Report::new(ErrorCode::ResultsMissing, "the plan of the job is on no host that answers");
        Err(tried.into_iter().fold(report, |report, (host, why)| report.with(state.host_name(host), why)).retryable())
    }
}

/// The time that is left, at most [`DECIDES`].
fn left(by: Instant) -> Duration {
    by.saturating_duration_since(Instant::now()).min(DECIDES)
}

fn known_job(state: &State, id: JobId) -> Result<&Arc<Job>, Report> {
    state
        .jobs
        .get(&id)
        .ok_or_else(|| Report::new(ErrorCode::UnknownJob, format!("there is no job {id}")).help("vtctl job list"))
}

fn unknown_host(state: &State, name: &Name) -> Report {
    let report = Report::new(ErrorCode::UnknownHost, format!("there is no host {name}"));
    let mut known: Vec<&str> = state.hosts.values().map(|host| host.name.as_str()).collect();
    known.sort_by(|a, b| views::natural(a, b));
    let report = match nearest(name.as_str(), known.iter().copied()) {
        Some(near) => report.help(format!("did you mean {near}?")),
        None => report,
    };
    report.with("hosts", known.join(", ")).help("vtctl host list")
}

#[async_trait]
impl Plans for Host {
    async fn plan(&self, job: JobId) -> Result<Arc<OpenPlan>, Report> {
        let state = self.state();
        let job =
            state.jobs.get(&job).ok_or_else(|| Report::new(ErrorCode::UnknownJob, format!("there is no job {job}")))?;
        self.plan_of(job).await
    }
}
