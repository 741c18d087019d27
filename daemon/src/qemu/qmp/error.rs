//! What can go wrong when talking to a monitor. QEMU's own class and words are kept verbatim.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use vt_protocol::error::{ErrorCode, Report};

/// Why a command has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// The monitor's socket could not be reached.
    #[error("cannot connect to monitor {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: Arc<io::Error>,
    },
    /// What answered does not speak QMP as we know it.
    #[error("monitor does not greet as QMP does: {0}")]
    Greeting(String),
    /// QEMU refused the command.
    #[error("{command}: {class}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// No answer in time. QEMU may still carry the command out.
    #[error("{command}: no answer within {after:?}")]
    Timeout {
        /// The command.
        command: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection ended before the answer.
    #[error("{command}: connection to the monitor ended: {cause}")]
    Closed {
        /// The command.
        command: String,
        /// What ended it.
        cause: String,
    },
    /// The command needs the out-of-band channel and this monitor has none.
    #[error("{command}: the monitor has no out-of-band channel")]
    NoOutOfBand {
        /// The command.
        command: String,
    },
    /// The answer is JSON, but not what the command returns.
    #[error("{command}: answer lacks {lacks}: {answer}")]
    Shape {
        /// The command.
        command: String,
        /// What is not in it.
        lacks: String,
        /// The answer, cut.
        answer: String,
    },
}

impl QmpError {
    /// Whether QEMU itself refused (and so is alive and answers).
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// The error as a user meets it.
    pub fn report(&self) -> Report {
        let report = match self {
            Self::Refused { command, class, desc } => {
                Report::new(ErrorCode::QmpFailed, format!("QEMU refused {command}: {desc}"))
                    .with("class", class.clone())
            }
            other => Report::new(ErrorCode::QmpFailed, other.to_string()),
        };
        report.caused_by(self).help("the QMP transcript of the VM is among the evidence of the case")
    }
}

/// Cuts a text for a message.
pub(crate) fn excerpt(text: &str) -> String {
    const MAX: usize = 300;
    if text.chars().count() <= MAX { text.to_owned() } else { text.chars().take(MAX).collect::<String>() + "…" }
}
