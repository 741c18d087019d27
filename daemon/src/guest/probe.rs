//! The probe of the built-in image, seen from the host: typed calls with deadlines.
//!
//! The connection may break at any time and is made again. A question that changes nothing is asked again when the
//! answer stays away; one that starts or stops something is asked once.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use vt_protocol::probe::{
    BUSY, Call, ClockReport, DiskReport, DiskStart, DiskStarted, Empty, Exec, ExecReport, Hello, LINE_MAX, MemReport,
    MemStart, NetStarted, Reply, Request,
};

use super::{GuestError, Place, channel::Channel};

/// How long until an unanswered question that changes nothing is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The probe of one guest.
#[derive(Debug)]
pub struct Probe {
    path: PathBuf,
    channel: Option<Channel>,
    next: u64,
}

impl Probe {
    /// The probe behind this socket; the connection is made by the first question.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        // Answers to an earlier connection's questions may still be under way in QEMU.
        Self { path: path.into(), channel: None, next: rand::random::<u64>() >> 16 }
    }

    /// Where its socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who the guest is; waits until the probe is up.
    ///
    /// # Errors
    /// As [`Probe::ask`].
    pub async fn hello(&mut self, deadline: Instant) -> Result<Hello, GuestError> {
        self.typed(Request::Hello, deadline).await
    }

    /// Starts the memory probe.
    ///
    /// # Errors
    /// As [`Probe::ask`].
    pub async fn mem_start(&mut self, wanted: MemStart, deadline: Instant) -> Result<(), GuestError> {
        self.typed::<Empty>(Request::MemStart(wanted), deadline).await.map(drop)
    }

    /// Verifies every page.
    ///
    /// # Errors
    /// As [`Probe::ask`].
    pub async fn mem_check(&mut self, deadline: Instant) -> Result<MemReport, GuestError> {
        self.typed(Request::MemCheck, deadline).await
    }

    /// Starts the disk writer.
    ///
    /// # Errors
    /// As [`Probe::ask`].
    pub async fn disk_start(&mut self, wanted: DiskStart, deadline: Instant) -> Result<DiskStarted, GuestError> {
        self.typed(Request::DiskStart(wanted), deadline).await
    }

    /// Reads every acknowledged record again.
    ///
    /// # Errors
    /// As [`Probe::ask`].
    pub async fn disk_check(&mut self, deadline: Instant) -> Result<DiskReport, GuestError> {
        self.typed(Request::DiskCheck, deadline).await
    }

    /// The clocks, and the gaps since the last reset; `reset` begins anew.
    ///
    /// # Errors
    /// As [`Probe::ask`].
    pub async fn clock(&mut self, reset: bool, deadline: Instant) -> Result<ClockReport, GuestError> {
        self.typed(if reset { Request::ClockReset } else { Request::Clock }, deadline).await
    }

    /// Starts the echo.
    ///
    /// # Errors
    /// As [`Probe::ask`].
    pub async fn net_start(&mut self, port: u16, deadline: Instant) -> Result<NetStarted, GuestError> {
        self.typed(Request::NetStart { port }, deadline).await
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// As [`Probe::ask`].
    pub async fn exec(&mut self, wanted: Exec, deadline: Instant) -> Result<ExecReport, GuestError> {
        self.typed(Request::Exec(wanted), deadline).await
    }

    /// Asks anything and reads the answer as the type named at the request.
    ///
    /// # Errors
    /// As [`Probe::ask`], and [`GuestError::Garbled`] for an answer of another type.
    pub async fn typed<T: DeserializeOwned>(&mut self, request: Request, deadline: Instant) -> Result<T, GuestError> {
        let answer = self.ask(request, deadline).await?;
        serde_json::from_value(answer.clone()).map_err(|error| GuestError::Garbled {
            place: self.place(),
            what: format!("an answer of another kind: {error}"),
            sent: answer.to_string().chars().take(400).collect(),
        })
    }

    /// Asks anything.
    ///
    /// # Errors
    /// The probe refuses, the socket is gone, or there is no answer until the deadline.
    pub async fn ask(&mut self, request: Request, deadline: Instant) -> Result<Value, GuestError> {
        let again = is_question(&request);
        let began = Instant::now();
        let mut asked = Vec::new();
        loop {
            let patience = if again { (Instant::now() + ASK_AGAIN).min(deadline) } else { deadline };
            match self.once(&request, again, &mut asked, patience, deadline).await {
                Ok(Some(answer)) => return answer,
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => {
                    let what = format!("answer of the probe to {}", name(&request));
                    let arrived = self.channel.as_ref().map(|c| super::shown(c.pending(), 400)).unwrap_or_default();
                    let waited = began.elapsed();
                    return Err(GuestError::Deadline { place: self.place(), awaited: what, waited, arrived });
                }
                Err(error) => {
                    self.channel = None;
                    if !again || !matches!(error, GuestError::Closed(_)) || Instant::now() >= deadline {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn once(
        &mut self,
        request: &Request,
        again: bool,
        asked: &mut Vec<u64>,
        patience: Instant,
        deadline: Instant,
    ) -> Result<Option<Result<Value, GuestError>>, GuestError> {
        let id = self.next;
        self.next += 1;
        asked.push(id);
        let call = serde_json::to_string(&Call { id, request: request.clone() });
        let call = call.map_err(|error| GuestError::Question(format!("no call of a probe: {error}")))?;
        if call.len() + 2 > LINE_MAX {
            return Err(GuestError::Question(format!("a call of the probe is at most {LINE_MAX} bytes")));
        }
        let place = self.place();
        let channel = match &mut self.channel {
            Some(channel) => channel,
            none => none.insert(Channel::connect(&self.path, place, 2 * LINE_MAX, deadline).await?),
        };
        // The line end in front closes what a connection before ours may have left half said.
        channel.send(format!("\n{call}\n").as_bytes(), deadline).await?;
        while let Some(line) = channel.line(patience).await? {
            // Answers to others, half lines of a connection before ours, and nonsense are passed over.
            let Ok(reply) = serde_json::from_slice::<Reply>(&line) else { continue };
            if !reply.id.is_some_and(|id| asked.contains(&id)) {
                continue;
            }
            // A guest that took long to boot finds all of them at once: it answers the first ones.
            if again && reply.error.as_deref().is_some_and(|said| said.starts_with(BUSY)) {
                continue;
            }
            let answer = match (reply.ok, reply.error) {
                (_, Some(said)) => {
                    Err(GuestError::Refused { place: channel.place().clone(), said: said.chars().take(400).collect() })
                }
                (Some(answer), None) => Ok(answer),
                (None, None) => Err(channel.garbled("a reply with neither answer nor error", &line)),
            };
            return Ok(Some(answer));
        }
        Ok(None)
    }

    fn place(&self) -> Place {
        Place::Probe(self.path.clone())
    }
}

/// Whether it can be asked twice.
fn is_question(request: &Request) -> bool {
    match request {
        Request::Hello | Request::MemCheck | Request::DiskCheck | Request::Clock => true,
        Request::NetStart { .. } | Request::BeaconStart { .. } => true,
        // Twice would forget what was seen between the two; the others start or end something.
        Request::ClockReset
        | Request::MemStart(_)
        | Request::MemStop
        | Request::DiskStart(_)
        | Request::DiskStop
        | Request::Exec(_) => false,
    }
}

fn name(request: &Request) -> String {
    let value = serde_json::to_value(request).unwrap_or_default();
    value["op"].as_str().unwrap_or("a question").to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixListener,
    };

    use super::*;

    /// A probe that answers the questions of each connection by the given lines; `ID` stands for the right id,
    /// `HOLD` for silence. After the last line of a connection it closes it.
    fn probe(path: &Path, connections: &'static [&'static [&'static str]]) {
        let listener = UnixListener::bind(path).unwrap();
        tokio::spawn(async move {
            for answers in connections {
                let (stream, _) = listener.accept().await.unwrap();
                let (read, mut write) = stream.into_split();
                let mut lines = BufReader::new(read).lines();
                for answer in *answers {
                    let asked = loop {
                        let Ok(Some(line)) = lines.next_line().await else { return };
                        if let Ok(call) = serde_json::from_str::<Call>(&line) {
                            break call;
                        }
                    };
                    if *answer == "HOLD" {
                        return std::future::pending::<()>().await;
                    }
                    write.write_all(answer.replace("ID", &asked.id.to_string()).as_bytes()).await.unwrap();
                }
            }
            std::future::pending::<()>().await;
        });
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    const STARTED: &str = "{\"id\":ID,\"ok\":{\"port\":7}}\n";

    #[tokio::test]
    async fn nonsense_and_answers_to_others_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe");
        probe(
            &path,
            &[&[
                "rt\":7}}\n\u{0}\n{\"id\":null,\"error\":\"not a call\"}\n{\"id\":1,\"ok\":{\"port\":8}}\n{\"id\":ID,\"ok\":{\"port\":7}}\n",
            ]],
        );
        assert_eq!(Probe::new(&path).net_start(7, soon()).await.unwrap(), NetStarted { port: 7 });
    }

    #[tokio::test]
    async fn a_probe_that_is_too_busy_is_asked_again_for_a_question_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe");
        const BUSY: &str = "{\"id\":ID,\"error\":\"busy: too many calls at once\"}\n";
        probe(&path, &[&[BUSY, STARTED, BUSY]]);
        let mut client = Probe::new(&path);
        assert_eq!(client.net_start(7, soon()).await.unwrap(), NetStarted { port: 7 });
        let stopped = client.ask(Request::MemStop, soon()).await.err().unwrap();
        assert!(matches!(stopped, GuestError::Refused { .. }), "{stopped:?}");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_made_again_for_a_question_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe");
        probe(&path, &[&["{\"id\":ID,\"o"], &[STARTED], &["{\"id\":ID,\"o"]]);
        let mut client = Probe::new(&path);
        assert_eq!(client.net_start(7, soon()).await.unwrap(), NetStarted { port: 7 });
        let stopped = client.ask(Request::MemStop, soon()).await.err().unwrap();
        assert!(matches!(stopped, GuestError::Closed(Place::Probe(_))), "{stopped:?}");
    }

    #[tokio::test]
    async fn refusals_wrong_types_and_silence_are_errors_that_name_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe");
        probe(&path, &[&["{\"id\":ID,\"error\":\"no room\"}\n", "{\"id\":ID,\"ok\":[1]}\n", "{\"id\":ID}\n", "HOLD"]]);
        let mut client = Probe::new(&path);
        let memory = MemStart { pages: 1, seed: 1, rewrite_bytes_per_second: 0 };
        let refused = client.mem_start(memory, soon()).await.err().unwrap();
        assert!(matches!(&refused, GuestError::Refused { said, .. } if said == "no room"), "{refused:?}");
        for _ in 0..2 {
            let garbled = client.hello(soon()).await.err().unwrap();
            assert!(matches!(garbled, GuestError::Garbled { place: Place::Probe(_), .. }), "{garbled:?}");
        }
        let late = client.ask(Request::DiskStop, Instant::now() + Duration::from_millis(200)).await.err().unwrap();
        assert!(late.to_string().contains("disk_stop"), "{late}");
    }
}
