//! Taking a job: check everything, put the plan on two hosts, then propose. A refused job has stored nothing.

use std::sync::Arc;

use tokio::time::Instant;
use vt_protocol::{
    admin::RunSubmit,
    error::{ErrorCode, Report},
    ids::{HostId, JobId, RequestId},
    job::{CASES_MAX, Plan},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    State,
    bounds::{AFTER_PER_JOB, REFUSALS_PER_JOB},
    command::{NewCase, SubmitJob},
    state::{Role, SessionStatus},
};

use super::{DECIDES, blocking, left, unknown_host};
use crate::{cluster::Cluster, control::tokens::unix_s, host::Host, mesh::Caller, plan::OpenPlan, scenario};

impl Host {
    pub(super) async fn submit(&self, submit: RunSubmit, caller: &Caller, by: Instant) -> Result<JobId, Report> {
        let RunSubmit { request, mut plan } = submit;
        if let Caller::Remote { name, .. } = caller {
            // Who a client is, its certificate says, and not the client.
            plan.user = name.to_string();
        }
        let state = self.state();
        // A large matrix takes a while to be unpacked and checked.
        let Checked { plan, bytes, skipped } = blocking(move || Checked::new(plan)).await?;
        let (cases, refusals) = cases(&plan, &skipped, &state)?;
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
        let command = SubmitJob {
            job,
            scenario: plan.label().to_owned(),
            plan: digest,
            holders,
            strict: plan.plan().strict_hosts,
            submitted_by: plan.plan().user.clone(),
            submitted_unix_s: unix_s(),
            cases,
            refusals,
        };
        self.plans().keep(digest, plan);
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

/// A plan that can be run, as far as the scenarios of this build are concerned.
struct Checked {
    plan: Arc<OpenPlan>,
    /// As it is stored.
    bytes: Vec<u8>,
    /// Why a case is skipped, for those that are.
    skipped: Vec<Option<Report>>,
}

impl Checked {
    fn new(plan: Plan) -> Result<Self, Report> {
        limited(&plan)?;
        let bytes = plan.encode()?;
        let plan = OpenPlan::new(plan)?;
        let skipped = scenario::validate(&plan)?;
        Ok(Self { plan: Arc::new(plan), bytes, skipped })
    }
}

/// Whether a plan is within its bounds.
pub(super) fn limited(plan: &Plan) -> Result<(), Report> {
    if plan.cases.len() > CASES_MAX {
        return Err(too_many("cases", plan.cases.len(), CASES_MAX));
    }
    let dependencies = plan.cases.iter().map(|case| case.after.len()).sum();
    if dependencies > AFTER_PER_JOB {
        return Err(too_many("dependencies between its cases", dependencies, AFTER_PER_JOB));
    }
    Ok(())
}

fn too_many(what: &str, found: usize, bound: usize) -> Report {
    Report::new(ErrorCode::TooLarge, format!("the job has {found} {what}, at most {bound} are taken"))
        .help("narrow it with --only and --no, or make several jobs of it")
}

/// The place of a reason among the reasons, each of which stands there once. The last place is for all that are too many.
fn place_of(reason: &Report, refusals: &mut Vec<Report>) -> u32 {
    let known = refusals.iter().position(|known| known == reason);
    let place = known.unwrap_or_else(|| {
        if refusals.len() < REFUSALS_PER_JOB - 1 {
            refusals.push(reason.clone());
        } else if refusals.len() < REFUSALS_PER_JOB {
            refusals.push(Report::new(reason.code, "it cannot run here, as many others of this job for other reasons"));
        }
        refusals.len() - 1
    });
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// The cases of a plan on the hosts of the cluster, and why some are skipped.
fn cases(plan: &OpenPlan, skipped: &[Option<Report>], state: &State) -> Result<(Vec<NewCase>, Vec<Report>), Report> {
    let mut cases = Vec::with_capacity(skipped.len());
    let mut refusals = Vec::new();
    for ((case, _), skipped) in plan.cases().zip(skipped) {
        let after = case.after.clone();
        if let Some(reason) = skipped {
            let refused = Some(place_of(reason, &mut refusals));
            cases.push(NewCase { hosts: Vec::new(), after, refused });
            continue;
        }
        if case.leftover {
            cases.push(NewCase { hosts: Vec::new(), after, refused: None });
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
            if host.cordoned {
                return Err(Report::new(ErrorCode::Cordoned, format!("{name} is cordoned: no new case begins on it"))
                    .help(format!("vtctl host uncordon {name}")));
            }
            hosts.push(host.id);
        }
        cases.push(NewCase { hosts, after, refused: None });
    }
    Ok((cases, refusals))
}
