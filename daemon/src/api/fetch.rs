//! The bundle of a job: `job.json`, and one folder a case with what each of its hosts kept of it.
//!
//! Evidence comes from the host it was made on; where that does not answer, from the host that keeps a copy
//! ([`crate::control::copies`]). What cannot be had is named in `job.json`; nothing is made up.

use std::{sync::Arc, time::Duration};

use vt_protocol::{
    admin::{AdminReply, FileChunk},
    error::{ErrorCode, Report},
    ids::{AttemptId, HostId, JobId},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::state::JobState;

use super::{
    blocking,
    job_json::{self, Document},
    known_job, views,
};
use crate::{cluster::Cluster, control::copies, host::Host, mesh::ReplySink};

/// One question to a host that holds evidence.
const ASKS: Duration = Duration::from_secs(10);
/// Files up to this size are looked into for `job.json`.
const DOCUMENT_MAX: u64 = 4 << 20;

/// Why evidence was not sent.
enum Fetch {
    /// The caller went away.
    Gone,
    /// The host did not give it.
    Missing(Report),
}

/// Evidence of one host, and where it is to be had.
struct Origin {
    attempt: AttemptId,
    /// Who is asked.
    asked: HostId,
    /// What stands in front of the paths there: nothing, or the folder of a copy.
    folder: String,
    /// What stands in front of the paths in the bundle.
    shown: String,
}

impl Host {
    pub(super) async fn fetch_job(self: &Arc<Self>, id: JobId, replies: &ReplySink) -> Result<(), Report> {
        let state = self.state();
        let job = known_job(&state, id)?;
        if job.state != JobState::Done {
            return Err(Report::new(ErrorCode::CaseClosed, format!("{id} is not done yet"))
                .help(format!("vtctl job watch {id}"))
                .retryable());
        }
        let plan = self.plan_of(job).await?;
        let view = views::job(&state, job, Some(&plan));
        let mut cases = Vec::with_capacity(view.cases.len());
        let mut missing = Vec::new();
        let mut files = 0_usize;
        let mut begun = false;
        for ((case, record), shown) in job.cases().zip(&view.cases) {
            // What is looked into is kept for one case only.
            let mut documents = Vec::new();
            for number in 1..=record.attempts {
                begun = true;
                let attempt = AttemptId { case, number };
                let mut folder = shown.folder();
                if number < record.attempts {
                    folder.push_str(&format!("/attempt-{number}"));
                }
                for host in state.attempt(attempt).map_or(&record.hosts, |known| &known.hosts) {
                    match self.fetch_host(attempt, *host, &folder, &mut documents, replies).await {
                        Ok(sent) => files += sent,
                        Err(Fetch::Gone) => return Ok(()),
                        Err(Fetch::Missing(report)) => missing.push((attempt, state.host_name(*host), report.title)),
                    }
                }
            }
            cases.push(job_json::case(shown, &plan, &documents));
            // There may be thousands of them that never ran: whoever waits for this thread gets his turn.
            tokio::task::yield_now().await;
        }
        if files == 0 && begun {
            let report = Report::new(ErrorCode::ResultsMissing, format!("no host that answers has evidence of {id}"));
            let with = |report: Report, (attempt, host, why)| report.with(format!("{attempt} on {host}"), why);
            return Err(missing.into_iter().fold(report, with));
        }
        let of_plan = Arc::clone(&plan);
        let written =
            blocking(move || serde_json::to_vec_pretty(&job_json::job(&view, &of_plan, cases, &missing))).await;
        let text = written.map_err(|error| {
            Report::new(ErrorCode::Internal, "the summary of the job could not be written").caused_by(&error)
        })?;
        let matrix = plan.plan().matrix.iter().map(|packed| (job_json::MATRIX_FILE, packed.bytes()));
        for (path, bytes) in matrix.chain([("job.json", text.as_slice())]) {
            if send(path, bytes, replies).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What one host kept of an attempt: from itself, else from who has a copy.
    async fn fetch_host(
        &self,
        attempt: AttemptId,
        host: HostId,
        folder: &str,
        documents: &mut Vec<Document>,
        replies: &ReplySink,
    ) -> Result<usize, Fetch> {
        let state = self.state();
        let name = state.host_name(host);
        let mut origin = Origin { attempt, asked: host, folder: String::new(), shown: format!("{folder}/{name}") };
        let mut why = match self.list(&origin).await {
            Ok(list) if !list.is_empty() => return self.fetch_files(&origin, &name, list, documents, replies).await,
            Ok(_) => Report::new(ErrorCode::ResultsMissing, "it has nothing of this attempt"),
            Err(Fetch::Missing(report)) => report,
            Err(Fetch::Gone) => return Err(Fetch::Gone),
        };
        for keeper in copies::keepers(&state, attempt).into_iter().filter(|keeper| *keeper != host) {
            origin = Origin { asked: keeper, folder: copies::folder(&name), ..origin };
            match self.list(&origin).await {
                Ok(list) if !list.is_empty() => {
                    return self.fetch_files(&origin, &name, list, documents, replies).await;
                }
                Ok(_) => {}
                Err(Fetch::Missing(report)) => why = report,
                Err(Fetch::Gone) => return Err(Fetch::Gone),
            }
        }
        Err(Fetch::Missing(why))
    }

    /// Paths below the origin's folder, with sizes; copies of other hosts' evidence are not the host's own.
    async fn list(&self, origin: &Origin) -> Result<Vec<(String, u64)>, Fetch> {
        let list = match self.ask(origin.asked, PeerRequest::EvidenceList(origin.attempt), ASKS).await {
            Ok(PeerReply::EvidenceList(list)) => list,
            Ok(_) => return Err(Fetch::Missing(unexpected())),
            Err(error) => return Err(Fetch::Missing(error.into())),
        };
        Ok(copies::own(list, &origin.folder))
    }

    async fn fetch_files(
        &self,
        origin: &Origin,
        host: &str,
        list: Vec<(String, u64)>,
        documents: &mut Vec<Document>,
        replies: &ReplySink,
    ) -> Result<usize, Fetch> {
        let files = list.len();
        for (path, size) in list {
            let keep = size <= DOCUMENT_MAX && job_json::wants(&path);
            let bytes = self.fetch_file(origin, &path, keep, replies).await?;
            if keep {
                documents.push(Document { attempt: origin.attempt, host: host.to_owned(), path, bytes });
            }
        }
        Ok(files)
    }

    async fn fetch_file(&self, origin: &Origin, path: &str, keep: bool, replies: &ReplySink) -> Result<Vec<u8>, Fetch> {
        let mut kept = Vec::new();
        let mut offset = 0;
        loop {
            let length = FileChunk::MAX as u32;
            let from = format!("{}{path}", origin.folder);
            let request = PeerRequest::EvidenceRead { attempt: origin.attempt, path: from, offset, length };
            let bytes = match self.ask(origin.asked, request, ASKS).await {
                Ok(PeerReply::Bytes(bytes)) => bytes,
                Ok(_) => return Err(Fetch::Missing(unexpected())),
                Err(error) => return Err(Fetch::Missing(error.into())),
            };
            offset += bytes.len() as u64;
            if keep {
                kept.extend_from_slice(&bytes);
            }
            let last = bytes.len() < FileChunk::MAX;
            let chunk = FileChunk { path: format!("{}/{path}", origin.shown), bytes, last };
            replies.send(AdminReply::Files(chunk)).await.map_err(|_| Fetch::Gone)?;
            if last {
                return Ok(kept);
            }
        }
    }
}

/// A file that is made here.
async fn send(path: &str, bytes: &[u8], replies: &ReplySink) -> Result<(), Fetch> {
    for (index, piece) in bytes.chunks(FileChunk::MAX).enumerate() {
        let last = (index + 1) * FileChunk::MAX >= bytes.len();
        let chunk = FileChunk { path: path.to_owned(), bytes: piece.to_vec(), last };
        replies.send(AdminReply::Files(chunk)).await.map_err(|_| Fetch::Gone)?;
    }
    Ok(())
}

fn unexpected() -> Report {
    Report::new(ErrorCode::Internal, "a host gave another kind of answer than was asked for")
}
