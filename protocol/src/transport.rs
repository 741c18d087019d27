//! The seam between the mesh and what carries it: QUIC in production, framed TCP in the simulator.

use async_trait::async_trait;
use tokio::time::Instant;

use crate::call::CallError;
use crate::ids::HostId;
use crate::service::Service;

/// Carries a request to a host and its reply back. Payloads are opaque here.
///
/// Implementations keep connections, reconnect by themselves, and return by the deadline. A call whose future is
/// dropped may or may not be done, like one whose deadline passed.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// One request, one reply.
    async fn call(&self, host: HostId, service: Service, request: Vec<u8>, by: Instant) -> Result<Vec<u8>, CallError>;

    /// Drops the connections to a host: it was removed, or its address changed.
    async fn close(&self, host: HostId);
}
