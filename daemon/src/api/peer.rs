//! What other daemons ask of this one.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::HostId,
    job::PLAN_MAX,
    peer::{PeerReply, PeerRequest},
};

use super::blocking;
use crate::{audit::Actor, cluster::Cluster, evidence::files, host::Host};

/// Longest wait of a long poll.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Most bytes of a piece of evidence.
const PIECE_MAX: u32 = 4 << 20;

impl Host {
    /// Answers a request of an admitted host.
    pub async fn answer_peer(self: &Arc<Self>, from: HostId, request: PeerRequest, by: Instant) -> PeerReply {
        match request {
            PeerRequest::Ping => PeerReply::Done,
            PeerRequest::Audit(query) => PeerReply::Audit(self.audit_here(query).await),
            PeerRequest::KeepAuthority(key) => self.keep_authority(from, key).await,
            PeerRequest::RotateAuthority => self.rotate_here().await,
            PeerRequest::Certify(request) => refused_or(self.certify(&request).await, PeerReply::Certificate),
            PeerRequest::GiveAuthority(wanted) => self.give_authority(from, wanted).await,
            PeerRequest::Clock => PeerReply::Clock(vt_protocol::rehearsal::unix_s()),
            PeerRequest::HandOver(to) => self.hand_over_to(to).await,
            PeerRequest::Facts => PeerReply::Facts(Box::new(self.facts().now())),
            PeerRequest::Propose(bytes) => self.propose_for(from, &bytes, by).await,
            PeerRequest::Renew(renew) if renew.host != from => {
                PeerReply::Refused(Report::new(ErrorCode::Denied, "a host renews its own session only"))
            }
            PeerRequest::Renew(renew) => self.renewals().renew(renew).await,
            PeerRequest::BlobGet(digest) => {
                let store = self.blobs().clone();
                match blocking(move || store.get(digest)).await {
                    Ok(found) => PeerReply::Blob(found),
                    Err(error) => PeerReply::Refused(error.into()),
                }
            }
            PeerRequest::BlobPut { bytes, .. } if bytes.len() > PLAN_MAX => {
                PeerReply::Refused(Report::new(ErrorCode::TooLarge, "the blob is larger than a plan may be"))
            }
            PeerRequest::BlobPut { digest, bytes } => {
                let store = self.blobs().clone();
                match blocking(move || store.put_as(digest, &bytes)).await {
                    Ok(()) => PeerReply::Done,
                    Err(error) => PeerReply::Refused(error.into()),
                }
            }
            PeerRequest::Events { attempt, after, wait_ms } => {
                let wait = Duration::from_millis(wait_ms.into()).min(WAIT_MAX);
                PeerReply::Events(self.evidence().events_after(attempt, after, wait).await)
            }
            PeerRequest::EvidenceList(attempt) => {
                let evidence = Arc::clone(self.evidence());
                refused_or(blocking(move || evidence.list(attempt)).await, PeerReply::EvidenceList)
            }
            PeerRequest::EvidenceRead { attempt, path, offset, length } => {
                let evidence = Arc::clone(self.evidence());
                let length = length.min(PIECE_MAX);
                if files::below(Path::new(""), &path).is_none() {
                    let actor = Actor::named(format!("host {}", self.state().host_name(from)), "peer");
                    self.audit_trail().refusal(actor, "evidence", &path, "the path leads out of the attempt").await;
                }
                refused_or(blocking(move || evidence.read(attempt, &path, offset, length)).await, PeerReply::Bytes)
            }
            PeerRequest::PrepareIncoming(prepare) => match self.supervisor() {
                Some(supervisor) => refused_or(supervisor.prepare_incoming(*prepare).await, PeerReply::Prepared),
                None => starting(),
            },
            PeerRequest::QemuOf(vm) => match self.supervisor() {
                Some(supervisor) => refused_or(supervisor.qemu_of(vm).await.map(Box::new), PeerReply::Qemu),
                None => starting(),
            },
            PeerRequest::RecoverIncoming { migration, transport } => match self.supervisor() {
                Some(supervisor) => {
                    refused_or(supervisor.recover_incoming(&migration, transport).await, PeerReply::Recovering)
                }
                None => starting(),
            },
            PeerRequest::CertifyMigration { migration, request } => {
                refused_or(self.certify_migration(from, &migration, &request).await, PeerReply::Certified)
            }
            PeerRequest::IncomingState { migration, wait_ms } => match self.supervisor() {
                Some(supervisor) => {
                    let wait = Duration::from_millis(wait_ms.into()).min(WAIT_MAX);
                    PeerReply::Incoming(supervisor.incoming_state(&migration, wait).await)
                }
                None => starting(),
            },
            PeerRequest::PullImage { image, root, rate, wait_ms } => {
                let wait = Duration::from_millis(wait_ms.into()).min(WAIT_MAX);
                refused_or(self.pull_image(image, root, rate, wait).await, PeerReply::Pulling)
            }
            PeerRequest::Examine(examine) => {
                refused_or(self.examine_here(&examine).await.map(Box::new), PeerReply::Examined)
            }
            PeerRequest::EchoOnce => self.echo_once().await,
            PeerRequest::VerifyImage(image) => refused_or(self.verify_image(&image).await, PeerReply::Told),
            PeerRequest::DropImage(image) => refused_or(self.drop_image(&image).await, PeerReply::Told),
            PeerRequest::SweepImages => refused_or(self.sweep_images().await, PeerReply::Told),
            PeerRequest::TryPool { pool, written } => refused_or(self.try_pool(&pool, written).await, PeerReply::Told),
        }
    }
}

fn refused_or<T>(result: Result<T, Report>, reply: impl FnOnce(T) -> PeerReply) -> PeerReply {
    match result {
        Ok(value) => reply(value),
        Err(report) => PeerReply::Refused(report),
    }
}

fn starting() -> PeerReply {
    PeerReply::Refused(Report::new(ErrorCode::Unreachable, "the daemon is starting").retryable())
}
