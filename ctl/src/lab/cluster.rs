//! From daemons that know nothing of each other to one cluster.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use vt_protocol::{
    admin::{AdminReply, AdminRequest, ClusterStatus, HostRole, Init, Join, TokenCreate},
    client::Client,
    error::{ErrorCode, Report},
    ids::{Name, RequestId},
};

use super::record::{HostRecord, LabRecord};

/// How long one step (init, a join) may take.
const STEP_DEADLINE: Duration = Duration::from_secs(30);
/// How long the hosts may take until all are live and the right number of them votes.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// Makes a cluster on the first host and joins the others. Returns one line about the result.
pub(super) async fn form(lab: &LabRecord) -> Result<String, Report> {
    let first = &lab.hosts[0];
    let init = AdminRequest::Init(Init {
        cluster: lab.name.clone(),
        host: Some(first.name.clone()),
        advertise: Some(first.listen().into()),
        role: HostRole::Voter,
        labels: BTreeMap::new(),
    });
    ask(first, &init).await?;
    for host in &lab.hosts[1..] {
        let create =
            AdminRequest::TokenCreate(TokenCreate { request: RequestId::random(), role: HostRole::Voter, ttl_s: 600 });
        let AdminReply::Token(token) = ask(first, &create).await? else { return Err(unexpected(first)) };
        let join = AdminRequest::Join(Join {
            token: token.text,
            host: Some(host.name.clone()),
            advertise: Some(host.listen().into()),
            role: HostRole::Voter,
            labels: BTreeMap::new(),
        });
        ask(host, &join).await?;
    }
    ready(lab, READY_DEADLINE).await
}

/// Waits until all hosts are live in one cluster. Returns one line about it.
pub(super) async fn ready(lab: &LabRecord, patience: Duration) -> Result<String, Report> {
    let status = wait_until_ready(lab, patience).await?;
    let leader = status.leader.as_ref().map_or("nobody", Name::as_str);
    Ok(format!(
        "cluster    {} hosts, {} voters, leader {leader}; survives {}",
        status.hosts.len(),
        status.voters,
        status.survives
    ))
}

/// 1, 3 or 5: as many as there are hosts for.
fn voters_for(hosts: usize) -> u32 {
    match hosts {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

async fn wait_until_ready(lab: &LabRecord, patience: Duration) -> Result<Box<ClusterStatus>, Report> {
    let by = Instant::now() + patience;
    loop {
        let answer = ask(&lab.hosts[0], &AdminRequest::Status).await;
        if let Ok(AdminReply::Status(status)) = &answer {
            let live = status.hosts.iter().filter(|host| host.state == "live").count();
            if live == lab.hosts.len() && status.quorum && status.voters == voters_for(live) {
                return Ok(status.clone());
            }
        }
        if Instant::now() > by {
            let report =
                Report::new(ErrorCode::LabPrecondition, "the hosts of the lab did not become one cluster in time");
            return Err(match answer {
                Ok(AdminReply::Status(status)) => status.hosts.iter().fold(report, |report, host| {
                    report.with(host.name.as_str(), format!("{}, {:?}", host.state, host.role))
                }),
                Ok(_) => report,
                Err(error) => report.with("host1 said", error.title),
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn ask(host: &HostRecord, request: &AdminRequest) -> Result<AdminReply, Report> {
    let by = Instant::now() + STEP_DEADLINE;
    let client = Client::local(&host.socket(), by).await.map_err(|error| error.report())?;
    match client.call(request, by).await.map_err(|error| error.report())? {
        AdminReply::Refused(report) => Err(report.with("asked", host.name.as_str())),
        reply => Ok(reply),
    }
}

fn unexpected(host: &HostRecord) -> Report {
    Report::new(
        ErrorCode::Internal,
        format!("the daemon of {} gave another kind of answer than was asked for", host.name),
    )
}
