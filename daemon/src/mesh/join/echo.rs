//! The joiner's side of the probe: a listener that gives nonces back, while the join runs and no longer.
//!
//! It shows a self-signed certificate of the new key, and talks only to clients that the pinned CA signed. Nothing but
//! a nonce is answered here.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use vt_protocol::call;
use vt_protocol::codec;
use vt_protocol::endpoint::{self, CloseCode};
use vt_protocol::frame::FrameError;
use vt_protocol::hello::{self, Hello, Refusal, Welcome};
use vt_protocol::ids::ClusterId;
use vt_protocol::join::{JoinAnswer, JoinCall, JoinRefusal};
use vt_protocol::service::Service;

/// A probe gets this long.
const PROBE_TIME: Duration = Duration::from_secs(10);
/// A handshake, and the prober's goodbye, get this long.
const SHORT_TIME: Duration = Duration::from_secs(2);
/// Probes at once.
const PROBES: usize = 8;
/// The port must be free again this long after the join.
const PORT_TIME: Duration = Duration::from_secs(3);

/// Answers probes while the join runs.
pub(super) struct Echo {
    endpoint: quinn::Endpoint,
    tasks: JoinSet<()>,
}

impl Echo {
    /// Answers probes on `endpoint`.
    pub(super) fn start(endpoint: quinn::Endpoint, cluster: ClusterId) -> Self {
        let mut tasks = JoinSet::new();
        let listening = endpoint.clone();
        tasks.spawn(async move {
            let mut probes = JoinSet::new();
            while let Some(incoming) = listening.accept().await {
                while probes.try_join_next().is_some() {}
                if probes.len() >= PROBES {
                    incoming.refuse();
                    continue;
                }
                probes.spawn(async move {
                    if let Err(error) = answer_probe(incoming, cluster).await {
                        tracing::debug!(%error, "a probe ended early");
                    }
                });
            }
        });
        Self { endpoint, tasks }
    }

    /// Stops answering, and waits until the port can be bound again.
    pub(super) async fn stop(mut self, listen: SocketAddr) {
        self.endpoint.close(CloseCode::Done.into(), b"done");
        let _ = timeout(Duration::from_millis(500), self.endpoint.wait_idle()).await;
        self.tasks.shutdown().await;
        drop(self.endpoint);
        endpoint::port_is_free(listen, PORT_TIME).await;
    }
}

async fn answer_probe(incoming: quinn::Incoming, cluster: ClusterId) -> Result<(), FrameError> {
    let by = Instant::now() + PROBE_TIME;
    let broken = |error: quinn::ConnectionError| FrameError::Io(error.into());
    let connection = timeout(SHORT_TIME, incoming.into_future()).await.map_err(|_| FrameError::Deadline)?;
    let connection = connection.map_err(broken)?;
    let (mut send, mut receive) = connection.accept_bi().await.map_err(broken)?;
    let mine = Hello::of(Some(cluster), None, rand::random());
    let checked = match hello::hear(&mut receive, by).await {
        Ok(theirs) => hello::check(&mine, &theirs).map(|version| Welcome { hello: mine, version }),
        Err(_) => Err(Refusal::Garbled),
    };
    hello::answer(&mut send, &checked, by).await.map_err(|_| FrameError::Closed)?;
    let cap = Service::Join.cap();
    let (mut send, mut receive) = connection.accept_bi().await.map_err(broken)?;
    let (payload, _) = call::take_request(&mut receive, cap, PROBE_TIME, by).await?;
    let answer = match codec::decode_wire(&payload, cap) {
        Ok(JoinCall::Echo(nonce)) => JoinAnswer::Echo(nonce),
        _ => JoinAnswer::Refused(JoinRefusal::BadRequest("this host is not a member".to_owned())),
    };
    let bytes = codec::encode_wire(&answer, cap).unwrap_or_default();
    call::put_reply(&mut send, &bytes).await?;
    let _ = send.finish();
    // The prober closes once it has the answer.
    let _ = timeout(SHORT_TIME, connection.closed()).await;
    Ok(())
}
