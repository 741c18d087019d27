//! One request on one pair of streams: read, hand over, answer.
//!
//! Handlers run as tasks of their own: a panic in one is an answer to its caller and nothing more, and one that
//! outlives its deadline is not torn down half-way. Bytes that are not a request end the stream with a reason.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use vt_protocol::admin::{AccessRole, AdminReply, AdminRequest};
use vt_protocol::audit::Outcome;
use vt_protocol::call;
use vt_protocol::codec;
use vt_protocol::error::{ErrorCode, Report};
use vt_protocol::frame::FrameError;
use vt_protocol::identity::subject::role_name;
use vt_protocol::service::Service;

use super::services::{AdminService, Answered, Caller, ReplySink};
use crate::audit::{Actor, Deed};

/// A request must be there whole after this long.
pub const REQUEST_TIME: Duration = Duration::from_secs(60);
/// Replies of a stream that wait for a slow caller.
const REPLIES_WAITING: usize = 16;

/// Reads a request; answers nothing yet.
pub(super) async fn request<R: AsyncRead + Unpin>(
    reader: &mut R,
    service: Service,
) -> Result<(Vec<u8>, Instant), FrameError> {
    call::take_request(reader, service.cap(), service.longest(), Instant::now() + REQUEST_TIME).await
}

/// What to say of a request that could not be read.
pub(super) fn unreadable(error: &impl std::error::Error) -> Report {
    Report::new(ErrorCode::WireVersion, "the request was not understood").with("reason", error.to_string())
}

/// Waits for a handler until the deadline and writes its answer. The handler goes on after the deadline.
pub(super) async fn finish<W: AsyncWrite + Unpin>(
    writer: &mut W,
    handler: JoinHandle<Result<Vec<u8>, Report>>,
    by: Instant,
) -> Result<(), FrameError> {
    let answer = match timeout_at(by, handler).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_panicked)) => Err(Report::new(ErrorCode::Internal, "the handler of the request failed")),
        Err(_) => Err(Report::new(ErrorCode::DeadlinePassed, "the request was not done in time").retryable()),
    };
    match answer {
        Ok(reply) => call::put_reply(writer, &reply).await,
        Err(report) => call::put_failure(writer, &report).await,
    }
}

/// Encodes a reply; one that is too long becomes a failure.
pub(super) fn encode<T: serde::Serialize>(reply: &T, service: Service) -> Result<Vec<u8>, Report> {
    codec::encode_wire(reply, service.cap())
        .map_err(|error| Report::new(ErrorCode::TooLarge, "the reply does not fit").with("reason", error.to_string()))
}

/// Serves one admin request on any pair of streams: reads it, checks the role, passes replies on until the handler
/// ends or the caller goes away. `permit` is held as long as the handler runs.
pub async fn admin<R, W>(
    reader: &mut R,
    writer: &mut W,
    caller: Caller,
    services: Arc<dyn AdminService>,
    permit: Option<OwnedSemaphorePermit>,
) -> Result<(), FrameError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (payload, by) = match request(reader, Service::Admin).await {
        Ok(request) => request,
        Err(error @ (FrameError::Closed | FrameError::Io(_))) => return Err(error),
        Err(error) => {
            services.audit().refusal(Actor::caller(&caller), "request admin", "", &error.to_string()).await;
            return call::put_failure(writer, &unreadable(&error)).await;
        }
    };
    let request: AdminRequest = match codec::decode_wire(&payload, Service::Admin.cap()) {
        Ok(request) => request,
        Err(error) => {
            services.audit().refusal(Actor::caller(&caller), "request admin", "", &error.to_string()).await;
            return call::put_failure(writer, &unreadable(&error)).await;
        }
    };
    drop(payload);
    let verb = request.verb();
    if caller.role() < verb.needs {
        let report = denied(caller.role(), verb.needs);
        let reason = format!("needs role {}", role_name(verb.needs));
        services.audit().refusal(Actor::caller(&caller), verb.name, &request.object(), &reason).await;
        return call::put_failure(writer, &report).await;
    }
    let (sink, replies) = ReplySink::pair(REPLIES_WAITING);
    let looks_only = !verb.changes;
    let handler = tokio::spawn(async move {
        if looks_only {
            services.admin(caller, request, sink, by).await;
        } else {
            on_the_record(caller, request, sink, services, by).await;
        }
        drop(permit);
    });
    let stop = handler.abort_handle();
    let outcome = pass_on(reader, writer, replies, handler, by).await;
    if looks_only {
        // A watch whose caller went away must not wait for an event that may never come.
        stop.abort();
    }
    outcome
}

/// Handles a request that changes something, and writes down who it was and what came of it, whatever that is.
async fn on_the_record(
    caller: Caller,
    request: AdminRequest,
    sink: ReplySink,
    services: Arc<dyn AdminService>,
    by: Instant,
) {
    let (actor, verb, object) = (Actor::caller(&caller), request.verb().name.to_owned(), request.object());
    let answered = sink.answered();
    let handled = AssertUnwindSafe(services.admin(caller, request, sink, by)).catch_unwind().await;
    let Answered { outcome, detail } = answered.get().cloned().unwrap_or_else(|| Answered {
        outcome: Outcome::Failed,
        detail: "the handler of the request gave no answer".to_owned(),
    });
    services.audit().action(actor, Deed { verb, object, outcome, detail }).await;
    if let Err(panic) = handled {
        std::panic::resume_unwind(panic);
    }
}

async fn pass_on<R, W>(
    reader: &mut R,
    writer: &mut W,
    mut replies: mpsc::Receiver<AdminReply>,
    handler: JoinHandle<()>,
    by: Instant,
) -> Result<(), FrameError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut first = true;
    let mut byte = [0];
    loop {
        let next = async { if first { timeout_at(by, replies.recv()).await } else { Ok(replies.recv().await) } };
        let next = tokio::select! {
            biased;
            next = next => next,
            // A caller sends nothing after its request: its end, or anything else, means that it is gone.
            _ = reader.read(&mut byte) => return Err(FrameError::Closed),
        };
        match next {
            Ok(Some(reply)) => match encode(&reply, Service::Admin) {
                Ok(bytes) => call::put_reply(writer, &bytes).await?,
                Err(report) => return call::put_failure(writer, &report).await,
            },
            Ok(None) => break,
            Err(_) => {
                let late = Report::new(ErrorCode::DeadlinePassed, "the request was not done in time").retryable();
                return call::put_failure(writer, &late).await;
            }
        }
        first = false;
    }
    match handler.await {
        Ok(()) => call::put_end(writer).await,
        Err(_panicked) => {
            let report = Report::new(ErrorCode::Internal, "the handler of the request failed");
            call::put_failure(writer, &report).await
        }
    }
}

fn denied(have: AccessRole, need: AccessRole) -> Report {
    Report::new(ErrorCode::Denied, "the role of your certificate does not allow this")
        .with("role", role_name(have))
        .with("needed", role_name(need))
}
