//! Events of a monitor: a name and raw data, so that an event we have never heard of is just another event.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::broadcast,
    time::{Instant, timeout_at},
};

/// An event as QEMU sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// QEMU's name, e.g. `RESUME`.
    pub name: String,
    /// Its data; `Null` where it has none.
    pub data: Value,
    /// QEMU's own wall clock, µs since 1970; `None` where it does not say.
    pub timestamp_us: Option<u64>,
    /// When our reader had it.
    pub received: std::time::Instant,
}

impl Event {
    /// A text field of its data.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key).and_then(Value::as_str)
    }
}

/// Why no event came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// This listener was too slow and that many events are gone for it: ask for the state again.
    #[error("{0} events were missed")]
    Lagged(u64),
    /// None that fits came in time.
    #[error("no such event within {0:?}")]
    Deadline(Duration),
    /// The connection ended.
    #[error("connection to the monitor ended: {0}")]
    Closed(String),
}

/// A listener's own queue of events, from the moment it was made. Bounded: a slow listener loses the oldest and is told.
#[derive(Debug)]
pub struct Events {
    pub(crate) receiver: broadcast::Receiver<Arc<Event>>,
    pub(crate) ended: Arc<OnceLock<String>>,
}

impl Events {
    /// The next event.
    pub async fn next(&mut self) -> Result<Arc<Event>, EventError> {
        match self.receiver.recv().await {
            Ok(event) => Ok(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Err(EventError::Lagged(missed)),
            Err(broadcast::error::RecvError::Closed) => {
                Err(EventError::Closed(self.ended.get().cloned().unwrap_or_else(|| "closed".to_owned())))
            }
        }
    }

    /// Waits for an event that `wanted` accepts; others are dropped.
    pub async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(&Event) -> bool,
        deadline: Instant,
    ) -> Result<Arc<Event>, EventError> {
        let began = Instant::now();
        loop {
            match timeout_at(deadline, self.next()).await {
                Err(_) => return Err(EventError::Deadline(began.elapsed())),
                Ok(Ok(event)) if wanted(&event) => return Ok(event),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}
