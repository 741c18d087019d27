//! All variants as JSON lines: one thread walks and builds, another writes.

use std::io::Write;
use std::sync::mpsc::sync_channel;

use crate::config::Config;
use crate::diag::Diagnostic;
use crate::expand::variant::Variant;

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

/// Variants handed over at once; the first one goes alone, so that it shows at once.
const BATCH: usize = 32;
/// Batches on the way.
const WAITING: usize = 4;
/// Bytes collected before they are written.
const CHUNK: usize = 1 << 16;

impl Config {
    /// Writes every variant as one JSON object a line. Memory does not grow with their number.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn write_json(&self, out: &mut (impl Write + Send)) -> Result<(), StreamError> {
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel::<Vec<Variant<'_>>>(WAITING);
            let writer = scope.spawn(move || -> std::io::Result<()> {
                let mut buffer = Vec::with_capacity(2 * CHUNK);
                let mut first = true;
                for batch in receive {
                    for v in batch {
                        v.write_json(&mut buffer);
                        buffer.push(b'\n');
                        if first || buffer.len() >= CHUNK {
                            out.write_all(&buffer)?;
                            buffer.clear();
                        }
                    }
                    if first {
                        out.flush()?;
                        first = false;
                    }
                }
                out.write_all(&buffer)?;
                out.flush()
            });
            let mut mistake = None;
            let mut batch = Vec::new();
            let mut size = 1;
            for v in self.variants() {
                match v {
                    Ok(v) => batch.push(v),
                    Err(e) => {
                        mistake = Some(e);
                        break;
                    }
                }
                if batch.len() == size {
                    size = BATCH;
                    // The writer is gone only if it could not write; it says so below.
                    if send.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).is_err() {
                        break;
                    }
                }
            }
            let _ = send.send(batch);
            drop(send);
            match writer.join() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(StreamError::Output(e)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
            mistake.map_or(Ok(()), |e| Err(StreamError::Mistake(Box::new(e))))
        })
    }
}
