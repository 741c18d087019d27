//! The bundle of a job: the files that its bundle makers put together, or, where no bundle is complete, what each host
//! still has of its attempts.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use vt_protocol::{
    admin::{AdminReply, FileChunk},
    error::{ErrorCode, Report},
    ids::{AttemptId, HostId, JobId},
    peer::{PeerReply, PeerRequest},
};

use super::known_job;
use crate::{cluster::Cluster, host::Host, mesh::ReplySink};

/// One question to a host that holds evidence.
const ASKS: Duration = Duration::from_secs(10);

impl Host {
    pub(super) async fn fetch_job(self: &Arc<Self>, id: JobId, replies: &ReplySink) -> Result<(), Report> {
        let state = self.state();
        let job = known_job(&state, id)?;
        let mut files = 0_usize;
        let mut missing = Vec::new();
        for (case, record) in job.cases() {
            for number in 1..=record.attempts {
                let attempt = AttemptId { case, number };
                let hosts = state.attempt(attempt).map_or_else(|| record.hosts.clone(), |known| known.hosts.clone());
                for host in hosts {
                    match self.fetch_evidence(attempt, host, replies).await {
                        Ok(sent) => files += sent,
                        Err(Fetch::Gone) => return Ok(()),
                        Err(Fetch::Missing(report)) => missing.push((attempt, host, report)),
                    }
                }
            }
        }
        let begun = job.cases().any(|(_, case)| case.attempts > 0);
        if files == 0 && begun {
            let report = Report::new(ErrorCode::ResultsMissing, format!("no host that answers has evidence of {id}"));
            let with = |report: Report, (attempt, host, why): (AttemptId, HostId, Report)| {
                report.with(format!("{attempt} on {}", state.host_name(host)), why.title)
            };
            return Err(missing.into_iter().fold(report, with));
        }
        for (attempt, host, report) in missing {
            tracing::info!(%attempt, host = state.host_name(host), %report, "evidence was not fetched");
        }
        Ok(())
    }

    async fn fetch_evidence(&self, attempt: AttemptId, host: HostId, replies: &ReplySink) -> Result<usize, Fetch> {
        let name = self.state().host_name(host);
        let list = match self.ask(host, PeerRequest::EvidenceList(attempt), ASKS).await {
            Ok(PeerReply::EvidenceList(list)) => list,
            Ok(_) => return Err(Fetch::Missing(unexpected())),
            Err(error) => return Err(Fetch::Missing(error.into())),
        };
        let files = list.len();
        for (path, _) in list {
            let shown = format!("{}/{}.{}/{name}/{path}", attempt.case, attempt.case.index, attempt.number);
            self.fetch_file(attempt, host, path, shown, replies).await?;
        }
        Ok(files)
    }

    async fn fetch_file(
        &self,
        attempt: AttemptId,
        host: HostId,
        path: String,
        shown: String,
        replies: &ReplySink,
    ) -> Result<(), Fetch> {
        let mut offset = 0;
        let began = Instant::now();
        loop {
            let length = FileChunk::MAX as u32;
            let request = PeerRequest::EvidenceRead { attempt, path: path.clone(), offset, length };
            let bytes = match self.ask(host, request, ASKS).await {
                Ok(PeerReply::Bytes(bytes)) => bytes,
                Ok(_) => return Err(Fetch::Missing(unexpected())),
                Err(error) => return Err(Fetch::Missing(error.into())),
            };
            offset += bytes.len() as u64;
            let last = bytes.len() < length as usize;
            let chunk = FileChunk { path: shown.clone(), bytes, last };
            replies.send(AdminReply::Files(chunk)).await.map_err(|_| Fetch::Gone)?;
            if last {
                tracing::trace!(%attempt, shown, offset, elapsed = ?began.elapsed(), "a file was sent");
                return Ok(());
            }
        }
    }
}

/// Why evidence was not sent.
enum Fetch {
    /// The caller went away.
    Gone,
    /// The host did not give it.
    Missing(Report),
}

fn unexpected() -> Report {
    Report::new(ErrorCode::Internal, "a host gave another kind of answer than was asked for")
}
