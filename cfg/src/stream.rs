//! All variants as JSON lines.

use std::io::Write;

use crate::config::Config;
use crate::diag::Diagnostic;

/// Why the stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The reader went away or the disk is full.
    #[error("the output cannot be written")]
    Output(#[source] std::io::Error),
    /// Expanding found a mistake; what came before it is written.
    #[error(transparent)]
    Mistake(Box<Diagnostic>),
}

/// Bytes collected before they are written.
const CHUNK: usize = 1 << 15;

impl Config {
    /// Writes every variant as one JSON object a line. Memory does not grow with their number.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn write_json(&self, out: &mut impl Write) -> Result<(), StreamError> {
        let mut variants = self.variants();
        let mut buffer = Vec::with_capacity(2 * CHUNK);
        let mut mistake = None;
        let mut first = true;
        while let Some(written) = variants.write_next(&mut buffer) {
            if let Err(e) = written {
                mistake = Some(e);
                break;
            }
            buffer.push(b'\n');
            if buffer.len() >= CHUNK || first {
                out.write_all(&buffer).map_err(StreamError::Output)?;
                buffer.clear();
            }
            if std::mem::take(&mut first) {
                // The first one shows at once.
                out.flush().map_err(StreamError::Output)?;
            }
        }
        out.write_all(&buffer).map_err(StreamError::Output)?;
        out.flush().map_err(StreamError::Output)?;
        mistake.map_or(Ok(()), |e| Err(StreamError::Mistake(Box::new(e))))
    }
}
