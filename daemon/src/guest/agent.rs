//! QEMU's guest agent: synchronise, ping, and run any of its commands.
//!
//! Answers carry no id, so a connection begins with a synchronisation, and after an answer that did not come it begins
//! again. Answers are read tolerantly: agents of all ages differ in fields.

use std::{path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{GuestError, Place, channel::Channel};

/// Longest answer, bytes.
pub const ANSWER_MAX: usize = 4 << 20;
/// How long until an unanswered synchronisation is sent again: while the guest boots, they pile up in QEMU.
const RESYNC: Duration = Duration::from_secs(5);
/// Bytes of a file in one question: agents take no more than some megabytes in a line.
const PIECE: usize = 64 << 10;
/// How often a program run by the agent is asked whether it ended.
const EXEC_POLL: Duration = Duration::from_millis(50);

/// A connection to the guest agent.
#[derive(Debug)]
pub struct Agent {
    channel: Channel,
    synchronised: bool,
}

/// What the agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// Its version.
    pub version: String,
    /// Names of the commands it takes.
    pub commands: Vec<String>,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentExec {
    /// Exit code; `None` when a signal ended it.
    pub exit: Option<i64>,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it printed to the other stream.
    pub stderr: Vec<u8>,
}

impl Agent {
    /// Connects to the agent's socket; the agent itself may come later.
    ///
    /// # Errors
    /// The socket is not there until the deadline.
    pub async fn connect(path: &Path, deadline: Instant) -> Result<Self, GuestError> {
        let channel = Channel::connect(path, Place::Agent(path.into()), ANSWER_MAX, deadline).await?;
        Ok(Self { channel, synchronised: false })
    }

    /// Waits until the agent answers.
    ///
    /// # Errors
    /// It does not until the deadline.
    pub async fn ping(&mut self, deadline: Instant) -> Result<(), GuestError> {
        self.execute("guest-ping", Value::Null, deadline).await.map(drop)
    }

    /// Asks what it can do.
    ///
    /// # Errors
    /// As [`Agent::execute`].
    pub async fn info(&mut self, deadline: Instant) -> Result<AgentInfo, GuestError> {
        let info = self.execute("guest-info", Value::Null, deadline).await?;
        let listed = info["supported_commands"].as_array().map(Vec::as_slice).unwrap_or_default();
        let enabled = listed.iter().filter(|command| command["enabled"].as_bool() != Some(false));
        let commands = enabled.filter_map(|command| command["name"].as_str().map(str::to_owned)).collect();
        Ok(AgentInfo { version: info["version"].as_str().unwrap_or("unknown").to_owned(), commands })
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// As [`Agent::execute`]; a program that does not end by the deadline goes on in the guest.
    pub async fn exec(&mut self, argv: &[&str], deadline: Instant) -> Result<AgentExec, GuestError> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(GuestError::Question("no program is named for the guest agent".into()));
        };
        let began = Instant::now();
        let start = json!({"path": program, "arg": arguments, "capture-output": true});
        let started = self.execute("guest-exec", start, deadline).await?;
        let Some(pid) = started["pid"].as_i64() else {
            return Err(self.channel.garbled("guest-exec gave no pid", started.to_string().as_bytes()));
        };
        loop {
            let status = self.execute("guest-exec-status", json!({"pid": pid}), deadline).await?;
            if status["exited"].as_bool() == Some(true) {
                let output =
                    |key: &str| status[key].as_str().map_or(Some(Vec::new()), |text| STANDARD.decode(text).ok());
                let (Some(stdout), Some(stderr)) = (output("out-data"), output("err-data")) else {
                    return Err(self.channel.garbled("output that is no base64", status.to_string().as_bytes()));
                };
                return Ok(AgentExec { exit: status["exitcode"].as_i64(), stdout, stderr });
            }
            if Instant::now() >= deadline {
                return Err(self.channel.late(&format!("end of {program}"), began.elapsed()));
            }
            sleep(EXEC_POLL).await;
        }
    }

    /// Writes a file: anew, or what stands from `offset` on.
    ///
    /// # Errors
    /// As [`Agent::execute`]. A part of it may have been written.
    pub async fn put(&mut self, path: &str, bytes: &[u8], offset: u64, deadline: Instant) -> Result<(), GuestError> {
        let handle = self.open(path, if offset == 0 { "w" } else { "r+" }, deadline).await?;
        // Where it begins is said, so that what is written twice is there once.
        let to = json!({"handle": handle, "offset": offset, "whence": "set"});
        let mut written = self.execute("guest-file-seek", to, deadline).await.map(drop);
        for piece in bytes.chunks(PIECE) {
            if written.is_err() {
                break;
            }
            let question = json!({"handle": handle, "buf-b64": STANDARD.encode(piece)});
            written = self.execute("guest-file-write", question, deadline).await.and_then(|answer| {
                let all = answer["count"].as_u64() == Some(piece.len() as u64);
                let said = || format!("{path} took only a part of what was written");
                if all {
                    Ok(())
                } else {
                    Err(GuestError::Refused { place: self.channel.place().clone(), said: said() })
                }
            });
        }
        let closed = self.execute("guest-file-close", json!({"handle": handle}), deadline).await;
        written.and_then(|()| closed.map(drop))
    }

    /// Reads a file of at most so many bytes.
    ///
    /// # Errors
    /// As [`Agent::execute`], or the file is longer.
    pub async fn get(&mut self, path: &str, most: usize, deadline: Instant) -> Result<Vec<u8>, GuestError> {
        let handle = self.open(path, "r", deadline).await?;
        let mut bytes = Vec::new();
        let read = loop {
            let question = json!({"handle": handle, "count": PIECE});
            let answer = match self.execute("guest-file-read", question, deadline).await {
                Ok(answer) => answer,
                Err(error) => break Err(error),
            };
            let Some(piece) = answer["buf-b64"].as_str().and_then(|text| STANDARD.decode(text).ok()) else {
                break Err(self.channel.garbled("a file that is no base64", answer.to_string().as_bytes()));
            };
            bytes.extend_from_slice(&piece);
            if bytes.len() > most {
                let said = format!("{path} has more than {most} bytes");
                break Err(GuestError::Refused { place: self.channel.place().clone(), said });
            }
            if piece.is_empty() || answer["eof"].as_bool() == Some(true) {
                break Ok(());
            }
        };
        let closed = self.execute("guest-file-close", json!({"handle": handle}), deadline).await;
        read.and_then(|()| closed.map(drop)).map(|()| bytes)
    }

    async fn open(&mut self, path: &str, mode: &str, deadline: Instant) -> Result<i64, GuestError> {
        let handle = self.execute("guest-file-open", json!({"path": path, "mode": mode}), deadline).await?;
        handle.as_i64().ok_or_else(|| self.channel.garbled("no handle of a file", handle.to_string().as_bytes()))
    }

    /// Runs a command of the agent and returns its answer.
    ///
    /// # Errors
    /// The agent refuses, sends nonsense, or does not answer until the deadline.
    pub async fn execute(&mut self, command: &str, arguments: Value, deadline: Instant) -> Result<Value, GuestError> {
        self.synchronise(deadline).await?;
        let mut message = json!({"execute": command});
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let began = Instant::now();
        // Whatever goes wrong from here, an answer may still come and would be taken for another's.
        self.synchronised = false;
        self.channel.send(format!("{message}\n").as_bytes(), deadline).await?;
        let Some(line) = self.channel.line(deadline).await? else {
            return Err(self.channel.late(&format!("answer to {command}"), began.elapsed()));
        };
        let answer = read_answer(&line).ok_or_else(|| self.channel.garbled("no answer of a guest agent", &line))?;
        self.synchronised = true;
        answer.map_err(|said| GuestError::Refused { place: self.channel.place().clone(), said })
    }

    async fn synchronise(&mut self, deadline: Instant) -> Result<(), GuestError> {
        if self.synchronised {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            if Instant::now() >= deadline {
                return Err(self.channel.late("answer of the guest agent", began.elapsed()));
            }
            // The agent takes 0xFF as the end of whatever it was reading, and sends one before its answer.
            let id = i64::from(rand::random::<u32>());
            let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
            self.channel.send(&[b"\xff", format!("{sync}\n").as_bytes()].concat(), deadline).await?;
            let patience = (Instant::now() + RESYNC).min(deadline);
            while let Some(line) = self.channel.line(patience).await? {
                let after = line.iter().rposition(|byte| *byte == 0xff).map_or(&line[..], |at| &line[at + 1..]);
                // Answers to earlier questions and synchronisations are passed over.
                if let Some(Ok(answer)) = read_answer(after)
                    && answer.as_i64() == Some(id)
                {
                    self.synchronised = true;
                    return Ok(());
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, rename = "return")]
    returned: Option<Value>,
    #[serde(default)]
    error: Option<Value>,
}

/// What the agent returned, or why it refused; `None` for what is no answer.
fn read_answer(line: &[u8]) -> Option<Result<Value, String>> {
    let answer: Answer = serde_json::from_slice(line.trim_ascii()).ok()?;
    match (answer.returned, answer.error) {
        (_, Some(error)) => {
            let said = error["desc"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            Some(Err(said.chars().take(400).collect()))
        }
        (returned, None) => Some(Ok(returned?)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixListener,
    };

    use super::*;

    #[test]
    fn answers_are_read_and_nonsense_is_none() {
        assert_eq!(read_answer(br#"{"return": {}}"#), Some(Ok(json!({}))));
        assert_eq!(read_answer(br#"{"return": 5, "extra": 1}"#), Some(Ok(json!(5))));
        assert_eq!(read_answer(br#"{"error": {"class": "X", "desc": "no"}}"#), Some(Err("no".into())));
        assert_eq!(read_answer(br#"{"error": 3}"#), Some(Err("3".into())));
        for nonsense in [&b""[..], b"{", b"[]", b"{}", b"\xff\xff", b"null"] {
            assert_eq!(read_answer(nonsense), None, "{nonsense:?}");
        }
    }

    /// An agent that is given a few answers, one for each line it reads; `SYNC` stands for the right one.
    fn agent(path: &Path, answers: &'static [&'static [u8]]) {
        let listener = UnixListener::bind(path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut read = BufReader::new(read);
            let mut answers = answers.iter();
            loop {
                let mut line = Vec::new();
                if read.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                    return;
                }
                let Some(answer) = answers.next() else { continue };
                if *answer != b"SYNC" {
                    write.write_all(answer).await.unwrap();
                    continue;
                }
                let start = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
                let asked: Value = serde_json::from_slice(&line[start..]).unwrap();
                let id = &asked["arguments"]["id"];
                write.write_all(b"{\"return\": 1}\n\xff").await.unwrap();
                write.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).await.unwrap();
            }
        });
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn a_program_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ga");
        agent(
            &path,
            &[
                b"SYNC",
                b"{\"return\": {\"pid\": 7}}\n",
                b"{\"return\": {\"exited\": false}}\n",
                b"{\"return\": {\"exited\": true, \"exitcode\": 3, \"out-data\": \"Zm9v\"}}\n",
                b"{\"error\": {\"desc\": \"The command is unknown\"}}\n",
            ],
        );
        let mut agent = Agent::connect(&path, soon()).await.unwrap();
        let ended = agent.exec(&["/bin/x"], soon()).await.unwrap();
        assert_eq!(ended, AgentExec { exit: Some(3), stdout: b"foo".to_vec(), stderr: Vec::new() });
        let refused = agent.info(soon()).await.err().unwrap();
        assert!(matches!(&refused, GuestError::Refused { said, .. } if said.contains("unknown")), "{refused:?}");
    }

    #[tokio::test]
    async fn a_file_is_written_and_read_and_closed_whatever_happens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ga");
        agent(
            &path,
            &[
                b"SYNC",
                b"{\"return\": 5}\n",
                b"{\"return\": {\"position\": 0, \"eof\": false}}\n",
                b"{\"return\": {\"count\": 3, \"eof\": false}}\n",
                b"{\"return\": {}}\n",
                b"{\"return\": 6}\n",
                b"{\"return\": {\"count\": 3, \"buf-b64\": \"Zm9v\", \"eof\": true}}\n",
                b"{\"return\": {}}\n",
                b"{\"return\": 7}\n",
                b"{\"return\": {\"count\": 3, \"buf-b64\": \"Zm9v\", \"eof\": true}}\n",
                b"{\"return\": {}}\n",
                b"{\"error\": {\"desc\": \"no such file\"}}\n",
            ],
        );
        let mut agent = Agent::connect(&path, soon()).await.unwrap();
        agent.put("/tmp/x", b"foo", 0, soon()).await.unwrap();
        assert_eq!(agent.get("/tmp/x", 3, soon()).await.unwrap(), b"foo");
        let refused = agent.get("/tmp/x", 2, soon()).await.err().unwrap();
        assert!(matches!(&refused, GuestError::Refused { said, .. } if said.contains("more than 2")), "{refused:?}");
        let refused = agent.get("/tmp/y", 2, soon()).await.err().unwrap();
        assert!(matches!(&refused, GuestError::Refused { said, .. } if said == "no such file"), "{refused:?}");
    }

    #[tokio::test]
    async fn after_an_answer_that_did_not_come_the_next_is_not_mistaken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ga");
        agent(&path, &[b"SYNC", b"", b"SYNC", b"{\"return\": {\"version\": \"9\"}}\n"]);
        let mut agent = Agent::connect(&path, soon()).await.unwrap();
        let late = agent.ping(Instant::now() + Duration::from_millis(300)).await.err().unwrap();
        assert!(matches!(late, GuestError::Deadline { .. }), "{late:?}");
        assert_eq!(agent.info(soon()).await.unwrap(), AgentInfo { version: "9".into(), commands: Vec::new() });
    }

    #[tokio::test]
    async fn nonsense_is_an_error_that_names_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ga");
        agent(&path, &[b"SYNC", b"\xfe\x00 garbage\n"]);
        let mut agent = Agent::connect(&path, soon()).await.unwrap();
        let error = agent.ping(soon()).await.err().unwrap();
        assert!(matches!(&error, GuestError::Garbled { place: Place::Agent(_), .. }), "{error:?}");
    }
}
