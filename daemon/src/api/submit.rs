//! Taking a job: check everything, put the plan on two hosts, then propose. A refused job has stored nothing.

use std::sync::Arc;

use tokio::time::Instant;
use vt_protocol::{
    admin::RunSubmit,
    codec,
    error::{ErrorCode, Report},
    ids::{HostId, JobId, RequestId},
    job::{CASES_MAX, PLAN_MAX, Plan},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    State,
    command::{NewCase, SubmitJob},
    state::{Role, SessionStatus},
};

use super::{DECIDES, blocking, left, unknown_host};
use crate::{cluster::Cluster, control::tokens::unix_s, host::Host, scenario};

impl Host {
    pub(super) async fn submit(&self, submit: RunSubmit, by: Instant) -> Result<JobId, Report> {
        let RunSubmit { request, plan } = submit;
        let state = self.state();
        let cases = check(&plan, &state)?;
        let bytes = codec::encode_wire(&plan, PLAN_MAX).map_err(|error| {
            Report::new(ErrorCode::TooLarge, "the plan of the job is too large").with("reason", error.to_string())
        })?;
        let job = job_of(request);
        let digest = vt_protocol::ids::Digest::of(&bytes);
        if let Some(known) = state.jobs.get(&job) {
            // The same call again after a lost answer.
            return if known.plan == digest {
                Ok(job)
            } else {
                Err(Report::new(ErrorCode::RequestConflict, "this request was made before with another plan"))
            };
        }
        let holders = self.spread(&state, digest, Arc::new(bytes)).await?;
        let Plan { scenario, strict_hosts, user, .. } = plan;
        let command = SubmitJob {
            job,
            scenario,
            plan: digest,
            holders,
            strict: strict_hosts,
            submitted_by: user,
            submitted_unix_s: unix_s(),
            cases,
        };
        self.propose(request, command.into(), left(by)).await?;
        tracing::info!(%job, "a job was taken");
        Ok(job)
    }

    /// Stores the plan here and on one more live host.
    async fn spread(
        &self,
        state: &State,
        digest: vt_protocol::ids::Digest,
        bytes: Arc<Vec<u8>>,
    ) -> Result<Vec<HostId>, Report> {
        let (store, mine) = (self.blobs().clone(), Arc::clone(&bytes));
        blocking(move || store.put_as(digest, &mine)).await?;
        let mut holders = vec![self.me()];
        let others: Vec<HostId> =
            state.hosts.values().filter(|host| host.id != self.me() && host.is_live()).map(|host| host.id).collect();
        let mut refused = Vec::new();
        for other in &others {
            let put = PeerRequest::BlobPut { digest, bytes: bytes.to_vec() };
            match self.ask(*other, put, DECIDES).await {
                Ok(PeerReply::Done) => {
                    holders.push(*other);
                    break;
                }
                Ok(_) => refused.push((*other, "gave another kind of answer".to_owned())),
                Err(error) => refused.push((*other, error.to_string())),
            }
        }
        if holders.len() < 2 && state.hosts.len() > 1 {
            let title = "the plan of the job could not be stored on a second host";
            let report = Report::new(ErrorCode::HostDown, title).help("vtctl host list").retryable();
            return Err(refused
                .into_iter()
                .fold(report, |report, (host, why)| report.with(state.host_name(host), why)));
        }
        Ok(holders)
    }
}

/// The job of a request: the same request is the same job.
fn job_of(request: RequestId) -> JobId {
    let digest = RequestId::derived(&[b"job", &request.0.to_le_bytes()]);
    JobId((digest.0 as u64) & 0x3fff_ffff)
}

/// Checks a plan against the scenarios of this build and the hosts of the cluster.
fn check(plan: &Plan, state: &State) -> Result<Vec<NewCase>, Report> {
    if plan.cases.len() > CASES_MAX {
        let title = format!("the job has {} cases, at most {CASES_MAX} are taken", plan.cases.len());
        return Err(Report::new(ErrorCode::TooLarge, title));
    }
    scenario::validate(plan)?;
    let mut cases = Vec::with_capacity(plan.cases.len());
    for case in &plan.cases {
        if case.leftover {
            cases.push(NewCase { hosts: Vec::new() });
            continue;
        }
        let mut hosts = Vec::with_capacity(case.hosts.len());
        for name in &case.hosts {
            let host = state.host_named(name.as_str()).ok_or_else(|| unknown_host(state, name))?;
            if hosts.contains(&host.id) {
                let title = format!("{name} is named twice for one case");
                return Err(Report::new(ErrorCode::Usage, title).with("case", &case.name));
            }
            if host.role == Role::Witness {
                let title = format!("{name} is a witness and runs nothing");
                return Err(Report::new(ErrorCode::CannotRunHere, title).help("vtctl host list"));
            }
            if !host.is_live() {
                let since = match host.session.as_ref().map(|session| session.status) {
                    None => "it has not started yet since it joined",
                    Some(SessionStatus::Expired) => "its session has ended",
                    _ => "it is silent",
                };
                return Err(Report::new(ErrorCode::HostDown, format!("{name} does not answer"))
                    .with(name.as_str(), since)
                    .help("vtctl host list   (shows who does)")
                    .retryable());
            }
            hosts.push(host.id);
        }
        cases.push(NewCase { hosts });
    }
    Ok(cases)
}
