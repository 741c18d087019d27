//! The connection itself: one task reads, one writes, a map leads answers to their askers.
//!
//! ```text
//!  execute ── id, line ──▶ writer task ──▶ QEMU ──▶ reader task ──▶ answer, by id ──▶ the asker (if still there)
//!                                                        └────────▶ event ──▶ every listener (bounded, may lag)
//! ```
//!
//! An asker that gave up is a missing waiter: its answer is logged and ignored, and only then its place among the
//! commands in flight is free again. What may not happen here: anything QEMU sends ends the connection except its end.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncWriteExt, BufReader, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot},
    time::timeout,
};

use super::{
    error::{QmpError, excerpt},
    event::{Event, Events},
    line::{LINE_MAX, Line, read_line},
    transcript::{Direction, Transcript},
};

/// QEMU queues eight in-band commands per monitor and then stops reading; out-of-band ones must still get through.
const IN_BAND_MAX: usize = 7;
const OUT_OF_BAND_MAX: usize = 8;
const EVENTS_MAX: usize = 512;
const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

type Answer = Result<Value, (String, String)>;

struct Waiting {
    command: String,
    asker: oneshot::Sender<Answer>,
    /// Held until QEMU answers, not until the asker gives up.
    _place: OwnedSemaphorePermit,
}

/// A line to QEMU, and what goes with it.
struct Outgoing {
    line: String,
    descriptor: Option<OwnedFd>,
}

/// How a command is sent.
#[derive(Debug)]
pub(super) enum Lane {
    /// After those before it.
    InBand,
    /// Past everything in-band.
    OutOfBand,
    /// In-band, with a descriptor that becomes QEMU's.
    With(OwnedFd),
}

/// What the greeting said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// `major.minor.micro`.
    pub version: (u64, u64, u64),
    /// The distribution's word for it, may be empty.
    pub package: String,
    /// Whether out-of-band commands are possible.
    pub out_of_band: bool,
}

pub(super) struct Connection {
    waiting: Mutex<HashMap<u64, Waiting>>,
    next_id: AtomicU64,
    lines: mpsc::Sender<Outgoing>,
    in_band: Arc<Semaphore>,
    out_of_band: Arc<Semaphore>,
    /// Taken away at the end, so that listeners see it.
    events: Mutex<Option<broadcast::Sender<Arc<Event>>>>,
    ended: Arc<OnceLock<String>>,
    tasks: Mutex<Vec<tokio::task::AbortHandle>>,
    pub(super) greeting: Greeting,
}

impl Connection {
    pub(super) async fn open(path: &Path, transcript: Transcript) -> Result<Arc<Self>, QmpError> {
        let connect = |source: io::Error| QmpError::Connect { path: path.to_owned(), source: Arc::new(source) };
        let stream = match timeout(GREETING_TIMEOUT, UnixStream::connect(path)).await {
            Ok(stream) => stream.map_err(connect)?,
            Err(_) => return Err(connect(io::Error::new(io::ErrorKind::TimedOut, "the socket does not take it"))),
        };
        let (read, write) = stream.into_split();
        let mut read = BufReader::with_capacity(64 * 1024, read);
        let greeting = match timeout(GREETING_TIMEOUT, read_greeting(&mut read, &transcript)).await {
            Ok(greeting) => greeting?,
            Err(_) => {
                return Err(QmpError::Greeting(format!("nothing within {} s", GREETING_TIMEOUT.as_secs())));
            }
        };
        let (lines, queue) = mpsc::channel(IN_BAND_MAX + OUT_OF_BAND_MAX);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let enable: &[&str] = if greeting.out_of_band { &["oob"] } else { &[] };
        let connection = Arc::new(Self {
            waiting: Mutex::default(),
            next_id: AtomicU64::new(1),
            lines,
            in_band: Arc::new(Semaphore::new(IN_BAND_MAX)),
            out_of_band: Arc::new(Semaphore::new(OUT_OF_BAND_MAX)),
            events: Mutex::new(Some(events)),
            ended: Arc::default(),
            tasks: Mutex::default(),
            greeting,
        });
        let writer = tokio::spawn(write_lines(write, queue, transcript.clone(), Arc::downgrade(&connection)));
        let reader = tokio::spawn(read_lines(read, transcript, Arc::downgrade(&connection)));
        *locked(&connection.tasks) = vec![writer.abort_handle(), reader.abort_handle()];
        connection.command("qmp_capabilities", json!({ "enable": enable }), GREETING_TIMEOUT, Lane::InBand).await?;
        Ok(connection)
    }

    pub(super) async fn command(
        &self,
        name: &str,
        arguments: Value,
        limit: Duration,
        lane: Lane,
    ) -> Result<Value, QmpError> {
        let out_of_band = matches!(lane, Lane::OutOfBand);
        let descriptor = if let Lane::With(descriptor) = lane { Some(descriptor) } else { None };
        let closed = || QmpError::Closed { command: name.to_owned(), cause: self.cause() };
        if out_of_band && !self.greeting.out_of_band {
            return Err(QmpError::NoOutOfBand { command: name.to_owned() });
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let line = line(id, name, arguments, out_of_band);
        let asked = async {
            let places = if out_of_band { &self.out_of_band } else { &self.in_band };
            let place = places.clone().acquire_owned().await.map_err(|_| closed())?;
            let (asker, answer) = oneshot::channel();
            let slot = self.lines.reserve().await.map_err(|_| closed())?;
            {
                let mut waiting = locked(&self.waiting);
                if self.ended.get().is_some() {
                    return Err(closed());
                }
                waiting.insert(id, Waiting { command: name.to_owned(), asker, _place: place });
            }
            slot.send(Outgoing { line, descriptor });
            answer.await.map_err(|_| closed())
        };
        match timeout(limit, asked).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err((class, desc)))) => Err(QmpError::Refused { command: name.to_owned(), class, desc }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(QmpError::Timeout { command: name.to_owned(), after: limit }),
        }
    }

    pub(super) fn events(&self) -> Events {
        let receiver = match &*locked(&self.events) {
            Some(events) => events.subscribe(),
            // A channel without a sender: the listener sees the end at once.
            None => broadcast::channel(1).1,
        };
        Events { receiver, ended: self.ended.clone() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.ended.get().is_none()
    }

    fn cause(&self) -> String {
        self.ended.get().cloned().unwrap_or_else(|| "closed".to_owned())
    }

    /// The end: every asker and listener learns of it.
    pub(super) fn end(&self, cause: String) {
        let mut waiting = locked(&self.waiting);
        let _ = self.ended.set(cause);
        waiting.clear();
        drop(waiting);
        self.in_band.close();
        self.out_of_band.close();
        locked(&self.events).take();
        for task in locked(&self.tasks).drain(..) {
            task.abort();
        }
    }

    fn take_in(&self, text: &str) {
        let mut message = match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(message)) => message,
            Ok(other) => return tracing::warn!(line = %excerpt(&other.to_string()), "monitor: not an object, ignored"),
            Err(error) => return tracing::warn!(%error, line = %excerpt(text), "monitor: not JSON, ignored"),
        };
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            let event = Event {
                name: name.to_owned(),
                timestamp_us: timestamp_us(&message),
                data: message.remove("data").unwrap_or(Value::Null),
                received: Instant::now(),
            };
            if let Some(events) = &*locked(&self.events) {
                // Nobody listening is fine.
                let _ = events.send(Arc::new(event));
            }
            return;
        }
        let answer = if let Some(value) = message.remove("return") {
            Ok(value)
        } else if let Some(error) = message.remove("error") {
            let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            Err((text("class"), text("desc")))
        } else {
            return tracing::warn!(line = %excerpt(text), "monitor: neither event nor answer, ignored");
        };
        let Some(id) = message.get("id").and_then(Value::as_u64) else {
            return tracing::warn!(line = %excerpt(text), "monitor: answer without an id of ours, ignored");
        };
        match locked(&self.waiting).remove(&id) {
            None => tracing::warn!(id, "monitor: answer that nobody asked for, ignored"),
            Some(waiting) => {
                if waiting.asker.send(answer).is_err() {
                    tracing::info!(id, command = waiting.command, "monitor: answer came after its asker had given up");
                }
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end("handle dropped".to_owned());
    }
}

/// A poisoned lock only means that a log line panicked: the map itself is whole.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn line(id: u64, name: &str, arguments: Value, out_of_band: bool) -> String {
    let mut message = Map::new();
    message.insert(if out_of_band { "exec-oob" } else { "execute" }.to_owned(), name.into());
    if !arguments.is_null() {
        message.insert("arguments".to_owned(), arguments);
    }
    message.insert("id".to_owned(), id.into());
    let mut line = Value::Object(message).to_string();
    line.push('\n');
    line
}

fn timestamp_us(message: &Map<String, Value>) -> Option<u64> {
    let timestamp = message.get("timestamp")?;
    let part = |key| timestamp.get(key).and_then(Value::as_u64);
    part("seconds")?.checked_mul(1_000_000)?.checked_add(part("microseconds")?)
}

async fn read_greeting(read: &mut BufReader<OwnedReadHalf>, transcript: &Transcript) -> Result<Greeting, QmpError> {
    let wrong = |what: &str| QmpError::Greeting(what.to_owned());
    let line = match read_line(read, LINE_MAX).await {
        Ok(Some(Line::Whole(line))) => line,
        Ok(Some(Line::Oversized(bytes))) => return Err(wrong(&format!("its first line has {bytes} bytes"))),
        Ok(None) => return Err(wrong("it closed the connection")),
        Err(error) => return Err(wrong(&error.to_string())),
    };
    let text = String::from_utf8_lossy(&line);
    transcript.note(Direction::In, &text);
    let greeting: Value = serde_json::from_str(&text).map_err(|_| QmpError::Greeting(excerpt(&text)))?;
    let qmp = greeting.get("QMP").ok_or_else(|| QmpError::Greeting(excerpt(&text)))?;
    let number = |key| qmp["version"]["qemu"][key].as_u64().unwrap_or(0);
    Ok(Greeting {
        version: (number("major"), number("minor"), number("micro")),
        package: qmp["version"]["package"].as_str().unwrap_or_default().to_owned(),
        out_of_band: qmp["capabilities"].as_array().is_some_and(|all| all.iter().any(|c| c == "oob")),
    })
}

async fn write_lines(
    mut write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Outgoing>,
    transcript: Transcript,
    connection: std::sync::Weak<Connection>,
) {
    while let Some(Outgoing { line, descriptor }) = queue.recv().await {
        transcript.note(Direction::Out, &line);
        let written = async {
            let sent = match descriptor {
                Some(descriptor) => send_with(write.as_ref(), line.as_bytes(), &descriptor).await?,
                None => 0,
            };
            write.write_all(&line.as_bytes()[sent..]).await
        };
        if let Err(error) = written.await {
            if let Some(connection) = connection.upgrade() {
                connection.end(format!("write: {error}"));
            }
            return;
        }
    }
}

/// Sends the beginning of a line with a descriptor; QEMU takes it with the command it comes with.
async fn send_with(stream: &UnixStream, bytes: &[u8], descriptor: &OwnedFd) -> io::Result<usize> {
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        Ok(sendmsg(stream, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}

async fn read_lines(
    mut read: BufReader<OwnedReadHalf>,
    transcript: Transcript,
    connection: std::sync::Weak<Connection>,
) {
    let cause = loop {
        match read_line(&mut read, LINE_MAX).await {
            Ok(Some(Line::Whole(line))) => {
                let text = String::from_utf8_lossy(&line);
                transcript.note(Direction::In, &text);
                let Some(connection) = connection.upgrade() else { return };
                connection.take_in(&text);
            }
            Ok(Some(Line::Oversized(bytes))) => {
                tracing::warn!(bytes, "monitor: oversized line, ignored");
                transcript.note(Direction::In, &format!("oversized line of {bytes} bytes, dropped"));
            }
            Ok(None) => break "QEMU closed it".to_owned(),
            Err(error) => break format!("read: {error}"),
        }
    };
    if let Some(connection) = connection.upgrade() {
        connection.end(cause);
    }
}
