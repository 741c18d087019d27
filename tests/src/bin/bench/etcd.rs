//! An etcd of three members on loopback, to compare with: Debian's, with its defaults, on the disk it is given.
//!
//! It is asked through its HTTP door, on a kept connection to its leader, by as many threads as requests are in flight.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// Bytes of a value that is put, and of the settings that are compared with it.
pub(crate) const PUT_BYTES: usize = 48;
const MEMBERS: usize = 3;
const STARTS: Duration = Duration::from_secs(30);
const ANSWERS: Duration = Duration::from_secs(20);
const BODY_MAX: usize = 1 << 20;

/// A running etcd. Dropping it ends its members.
pub(crate) struct Etcd {
    members: Vec<Child>,
    leader: SocketAddr,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            // One that has ended by itself is as good.
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

impl Etcd {
    /// Starts it below `folder`; `None` where etcd is not installed.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Option<Self>> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Ok(None);
        }
        fs::create_dir_all(folder)?;
        // Held until all are known, so that none is given twice.
        let held: Vec<TcpListener> =
            (0..2 * MEMBERS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let ports: Vec<u16> = held.iter().map(|port| Ok(port.local_addr()?.port())).collect::<anyhow::Result<_>>()?;
        drop(held);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (clients, peers) = ports.split_at(MEMBERS);
        let all = (0..MEMBERS).map(|n| format!("m{n}={}", url(peers[n]))).collect::<Vec<_>>().join(",");
        let mut etcd = Self { members: Vec::new(), leader: ([127, 0, 0, 1], clients[0]).into() };
        for n in 0..MEMBERS {
            let (client, peer, log) =
                (url(clients[n]), url(peers[n]), fs::File::create(folder.join(format!("m{n}.log")))?);
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("m{n}"), "--initial-cluster", &all, "--initial-cluster-state", "new"]);
            command.arg("--data-dir").arg(folder.join(format!("m{n}")));
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            etcd.members.push(command.spawn().context("starting etcd")?);
        }
        let until = Instant::now() + STARTS;
        loop {
            if let Some(leader) = clients.iter().find(|port| leads(([127, 0, 0, 1], **port).into())) {
                etcd.leader = ([127, 0, 0, 1], *leader).into();
                return Ok(Some(etcd));
            }
            if Instant::now() > until {
                bail!("etcd has no leader after {} s", STARTS.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Puts, by `callers` at once, `each` one after the other. The time of each in milliseconds.
    pub(crate) fn put(&self, callers: usize, each: usize) -> anyhow::Result<Vec<f64>> {
        // Base64, as its door wants it: 64 letters are 48 bytes.
        let value = "YmVuY2hi".repeat(PUT_BYTES / 6);
        let callers: Vec<_> = (0..callers)
            .map(|caller| {
                let (leader, body) = (self.leader, json!({ "key": format!("{caller:04}"), "value": value }));
                std::thread::spawn(move || -> anyhow::Result<Vec<f64>> {
                    let mut door = Door::open(leader)?;
                    (0..each)
                        .map(|_| {
                            let begun = Instant::now();
                            door.post("/v3/kv/put", &body)?;
                            Ok(begun.elapsed().as_secs_f64() * 1000.0)
                        })
                        .collect()
                })
            })
            .collect();
        let mut times = Vec::new();
        for caller in callers {
            times.extend(caller.join().map_err(|_| anyhow::anyhow!("a caller of etcd panicked"))??);
        }
        Ok(times)
    }
}

fn leads(address: SocketAddr) -> bool {
    let status = Door::open(address).and_then(|mut door| door.post("/v3/maintenance/status", &json!({})));
    status.is_ok_and(|status| status["leader"].is_string() && status["leader"] == status["header"]["member_id"])
}

/// A kept connection to etcd's HTTP door.
struct Door(BufReader<TcpStream>);

impl Door {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWERS))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = body.to_string();
        let request = format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.0.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let header = self.line()?.to_ascii_lowercase();
            match header.split_once(':').map(|(name, value)| (name, value.trim())) {
                None => break,
                Some(("content-length", value)) => length = value.parse()?,
                Some(("transfer-encoding", "chunked")) => chunked = true,
                Some(_) => {}
            }
        }
        let mut answer = Vec::new();
        if chunked {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16)?;
                self.take(size, &mut answer)?;
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else {
            self.take(length, &mut answer)?;
        }
        if !status.contains(" 200 ") {
            bail!("etcd answered {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.0.by_ref().take(8192).read_line(&mut line)? == 0 {
            bail!("etcd hung up");
        }
        Ok(line.trim_end().to_owned())
    }

    fn take(&mut self, size: usize, into: &mut Vec<u8>) -> anyhow::Result<()> {
        if into.len() + size > BODY_MAX {
            bail!("an answer of etcd is too long");
        }
        let begin = into.len();
        into.resize(begin + size, 0);
        Ok(self.0.read_exact(&mut into[begin..])?)
    }
}
