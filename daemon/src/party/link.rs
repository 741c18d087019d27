//! A party's connection to its daemon: calls out, replies in, and everything outstanding again after a reconnect.
//!
//! The daemon may restart under a running party. Then the link connects again, says hello, and repeats what has no
//! reply yet with the same ids, so that the scenario sees a slow answer and nothing else. A call ends at the latest at
//! its deadline. What may not happen here: a call sent under a second id.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedReadHalf},
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    party::{Answer, CALLS_MAX, Call, Failure, Hello, LINE_MAX, Reply, Request, Welcome},
    verdict::{Blame, Cause},
};

/// Pauses between two tries to connect.
const RETRY: Duration = Duration::from_millis(200);
/// How long one try to connect and say hello may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// What the daemon gets beyond a call's own deadline to say that it passed.
const GRACE: Duration = Duration::from_secs(5);

/// A handle of the connection.
#[derive(Debug)]
pub struct Link {
    calls: mpsc::Sender<Asked>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Asked {
    call: Call,
    reply: oneshot::Sender<Result<Answer, Failure>>,
}

/// A failure on our side.
pub fn our_fault(report: Report) -> Failure {
    Failure::Caused(Cause { blame: Blame::Infrastructure, report })
}

impl Link {
    /// Connects, says hello, and returns what the daemon wants done.
    ///
    /// # Errors
    /// The daemon refused the party, or none answered within `deadline`.
    pub async fn connect(socket: &Path, hello: Hello, deadline: Duration) -> Result<(Self, Welcome), Failure> {
        let until = Instant::now() + deadline;
        let (stream, welcome) = loop {
            match timeout(HELLO_TIMEOUT, greet(socket, &hello)).await {
                Ok(Ok(Ok(done))) => break done,
                Ok(Ok(Err(refused))) => return Err(refused),
                Ok(Err(_)) | Err(_) if Instant::now() < until => sleep(RETRY).await,
                Ok(Err(error)) => return Err(our_fault(silent(&error.to_string()))),
                Err(_) => return Err(our_fault(silent("no answer to hello"))),
            }
        };
        let (calls, queue) = mpsc::channel(CALLS_MAX);
        let actor = Actor { socket: socket.to_owned(), hello, queue, outstanding: BTreeMap::new() };
        tokio::spawn(actor.run(stream));
        Ok((Self { calls, next: AtomicU64::new(1) }, welcome))
    }

    /// Makes a call and waits for its reply.
    ///
    /// # Errors
    /// As the daemon says, or none answered within `deadline` and a little more.
    pub async fn call(&self, request: Request, deadline: Duration) -> Result<Answer, Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let asked = Asked { call: Call { id, repeat: false, call: request }, reply };
        let ended = || our_fault(silent("the connection has ended"));
        let asking = async {
            self.calls.send(asked).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        };
        match timeout(deadline + GRACE, asking).await {
            Ok(result) => result,
            Err(_) => Err(our_fault(silent(&format!("no reply within {:?}", deadline + GRACE)))),
        }
    }
}

fn silent(what: &str) -> Report {
    Report::new(ErrorCode::Unreachable, "the daemon did not answer its party").with("detail", what).retryable()
}

type Greeted = (BufReader<UnixStream>, Welcome);

/// Connects and says hello. The outer error may go away, the inner one is the daemon's no.
async fn greet(socket: &Path, hello: &Hello) -> std::io::Result<Result<Greeted, Failure>> {
    let mut stream = BufReader::new(UnixStream::connect(socket).await?);
    let call = Call { id: 0, repeat: false, call: Request::Hello(hello.clone()) };
    stream.get_mut().write_all(line(&call).as_bytes()).await?;
    let mut text = Vec::new();
    (&mut stream).take(LINE_MAX as u64).read_until(b'\n', &mut text).await?;
    let reply: Reply = serde_json::from_slice(&text).map_err(std::io::Error::other)?;
    Ok(match (reply.ok, reply.failed) {
        (Some(Answer::Welcome(welcome)), _) => Ok((stream, *welcome)),
        (_, Some(failure)) => Err(failure),
        _ => Err(our_fault(Report::new(ErrorCode::WireVersion, "the daemon answered hello with something else"))),
    })
}

fn line(call: &Call) -> String {
    // A call is made of types that all have a JSON form with text keys.
    let mut text = serde_json::to_string(call).expect("a call has a JSON form");
    text.push('\n');
    text
}

struct Actor {
    socket: PathBuf,
    hello: Hello,
    queue: mpsc::Receiver<Asked>,
    outstanding: BTreeMap<u64, Asked>,
}

impl Actor {
    async fn run(mut self, mut stream: BufReader<UnixStream>) {
        loop {
            if self.serve(stream).await.is_none() {
                return;
            }
            stream = loop {
                self.outstanding.retain(|_, asked| !asked.reply.is_closed());
                if self.queue.is_closed() && self.outstanding.is_empty() {
                    return;
                }
                match timeout(HELLO_TIMEOUT, greet(&self.socket, &self.hello)).await {
                    Ok(Ok(Ok((stream, _)))) => break stream,
                    Ok(Ok(Err(refused))) => {
                        // The attempt is over for this daemon: nothing can be asked any more.
                        self.queue.close();
                        while let Ok(asked) = self.queue.try_recv() {
                            let _ = asked.reply.send(Err(refused.clone()));
                        }
                        for (_, asked) in std::mem::take(&mut self.outstanding) {
                            let _ = asked.reply.send(Err(refused.clone()));
                        }
                        return;
                    }
                    Ok(Err(_)) | Err(_) => sleep(RETRY).await,
                }
            };
            for asked in self.outstanding.values_mut() {
                asked.call.repeat = true;
            }
        }
    }

    /// Serves one connection. `None`: the party dropped its link.
    async fn serve(&mut self, stream: BufReader<UnixStream>) -> Option<()> {
        let buffered = stream.buffer().to_vec();
        let (read, mut write) = stream.into_inner().into_split();
        let (lines, mut replies) = mpsc::channel(CALLS_MAX);
        let reader = tokio::spawn(read_replies(buffered, read, lines));
        let mut result = Some(());
        for asked in self.outstanding.values() {
            if write.write_all(line(&asked.call).as_bytes()).await.is_err() {
                reader.abort();
                return result;
            }
        }
        loop {
            tokio::select! {
                asked = self.queue.recv() => {
                    let Some(asked) = asked else { result = None; break };
                    let text = line(&asked.call);
                    self.outstanding.insert(asked.call.id, asked);
                    if write.write_all(text.as_bytes()).await.is_err() {
                        break;
                    }
                }
                reply = replies.recv() => {
                    let Some(reply) = reply else { break };
                    self.take(reply);
                }
            }
        }
        reader.abort();
        result
    }

    fn take(&mut self, reply: Reply) {
        let Some(asked) = self.outstanding.remove(&reply.id) else { return };
        let result = match (reply.ok, reply.failed) {
            (_, Some(failure)) => Err(failure),
            (Some(answer), None) => Ok(answer),
            (None, None) => Err(our_fault(Report::new(ErrorCode::WireVersion, "the daemon sent an empty reply"))),
        };
        // The asker may have given up.
        let _ = asked.reply.send(result);
    }
}

async fn read_replies(buffered: Vec<u8>, read: OwnedReadHalf, lines: mpsc::Sender<Reply>) {
    let mut read = BufReader::new(std::io::Cursor::new(buffered).chain(read));
    let mut text = Vec::new();
    loop {
        text.clear();
        match (&mut read).take(LINE_MAX as u64).read_until(b'\n', &mut text).await {
            Ok(n) if n > 0 && text.last() == Some(&b'\n') => {}
            _ => return,
        }
        match serde_json::from_slice::<Reply>(&text) {
            Ok(reply) => {
                if lines.send(reply).await.is_err() {
                    return;
                }
            }
            Err(error) => eprintln!("party: the daemon sent a line that is no reply: {error}"),
        }
    }
}
