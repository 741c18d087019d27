//! The serial console: log in, run a line of shell and get its output and status.
//!
//! Everything typed is echoed among the output, kernel messages come in between, and what was printed before the
//! connection is lost. So a marker is typed in two pieces and looked for in one: the echo never looks like the marker.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use fancy_regex::{Regex, RegexBuilder};
use tokio::time::Instant;

use super::{GuestError, Place, channel::Channel};

/// Longest command, bytes: terminals lose what comes after 4096 in one line.
pub const COMMAND_MAX: usize = 2000;
/// Most output of one command, bytes.
pub const OUTPUT_MAX: usize = 1 << 20;
/// Kept of what came before a question.
const TAIL: usize = 4096;
/// How often an empty line is typed to see who is there.
const KNOCK: Duration = Duration::from_secs(1);
/// Most reads of what was not asked for, before a command.
const READS_MAX: usize = 64;
/// How long a prompt may take to be complete.
const SETTLE: Duration = Duration::from_millis(200);

/// Who logs in, and how a shell looks then.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Name of the user.
    pub user: String,
    /// Password, where the guest asks for one.
    pub password: Option<String>,
    /// What the last line looks like when the shell waits, where it does not end as most do.
    pub prompt: Option<Regex>,
}

/// Most memory of a prompt's pattern, bytes, and most steps it may go back on a line: it comes from whoever runs a case.
const PROMPT_MAX: (usize, usize) = (1 << 20, 10_000);

/// Reads the pattern of a prompt.
///
/// # Errors
/// It is none, or too large.
pub fn prompt(pattern: &str) -> Result<Regex, fancy_regex::Error> {
    RegexBuilder::new(pattern).delegate_size_limit(PROMPT_MAX.0).backtrack_limit(PROMPT_MAX.1).build()
}

impl Default for Credentials {
    /// The built-in image lets root in without a password.
    fn default() -> Self {
        Self { user: "root".into(), password: None, prompt: None }
    }
}

/// How a line of shell ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it printed to both streams, without escape sequences.
    pub text: String,
}

/// A connection to the console.
#[derive(Debug)]
pub struct Console {
    channel: Channel,
    credentials: Credentials,
    /// A shell of ours waits for a command.
    ready: bool,
}

/// What the end of the console's output says about who is there.
#[derive(Debug, PartialEq, Eq)]
enum Scene {
    Login,
    Password,
    Refused,
    Shell,
    Unknown,
}

impl Console {
    /// Connects to the console's socket.
    ///
    /// # Errors
    /// The socket is not there until the deadline.
    pub async fn connect(path: &Path, credentials: Credentials, deadline: Instant) -> Result<Self, GuestError> {
        Self::at(path, Place::Console(path.into()), credentials, deadline).await
    }

    /// The same where the socket leads to a terminal of another kind.
    pub(super) async fn at(
        path: &Path,
        place: Place,
        credentials: Credentials,
        deadline: Instant,
    ) -> Result<Self, GuestError> {
        let channel = Channel::connect(path, place, OUTPUT_MAX, deadline).await?;
        Ok(Self { channel, credentials, ready: false })
    }

    /// Waits for the login prompt, logs in, and makes sure that a shell answers. Does nothing where one does.
    ///
    /// # Errors
    /// No shell until the deadline, or the guest does not let this user in.
    pub async fn login(&mut self, deadline: Instant) -> Result<(), GuestError> {
        if self.ready && !self.logged_out().await? {
            return Ok(());
        }
        self.ready = false;
        let began = Instant::now();
        // Ends what somebody may have begun to type, or a command that still runs.
        self.channel.send(b"\x03\r", deadline).await?;
        let mut knock = Instant::now() + KNOCK;
        loop {
            if Instant::now() >= deadline {
                return Err(self.channel.late("shell", began.elapsed()));
            }
            // A prompt comes in pieces: it is looked at when nothing more comes.
            if self.channel.read((Instant::now() + SETTLE).min(deadline)).await? {
                if self.channel.pending().len() > OUTPUT_MAX / 2 {
                    self.channel.forget_but(TAIL);
                }
                continue;
            }
            let typed = match self.scene() {
                Scene::Login => format!("{}\r", self.credentials.user),
                Scene::Password => match &self.credentials.password {
                    Some(password) => format!("{password}\r"),
                    None => {
                        let said = format!("a password is asked for user {}", self.credentials.user);
                        return Err(GuestError::Refused { place: self.channel.place().clone(), said });
                    }
                },
                Scene::Refused => {
                    let said = format!("the login of user {}", self.credentials.user);
                    return Err(GuestError::Refused { place: self.channel.place().clone(), said });
                }
                Scene::Shell if self.answers(deadline).await? => {
                    self.ready = true;
                    return Ok(());
                }
                Scene::Shell | Scene::Unknown if Instant::now() < knock => continue,
                Scene::Shell | Scene::Unknown => {
                    knock = Instant::now() + KNOCK;
                    self.channel.send(b"\r", deadline).await?;
                    continue;
                }
            };
            self.channel.forget_but(0);
            self.channel.send(typed.as_bytes(), deadline).await?;
            knock = Instant::now() + KNOCK;
        }
    }

    /// Runs one line of shell; logs in first where needed.
    ///
    /// # Errors
    /// The command cannot be typed, or did not end until the deadline (it is then interrupted before the next one).
    pub async fn run(&mut self, command: &str, deadline: Instant) -> Result<Output, GuestError> {
        if command.len() > COMMAND_MAX || command.chars().any(char::is_control) {
            let what = format!("a command for the console is one line of at most {COMMAND_MAX} bytes: {command:?}");
            return Err(GuestError::Question(what.chars().take(300).collect()));
        }
        self.login(deadline).await?;
        let began = Instant::now();
        match self.exchange(command, deadline).await {
            Ok(Some(output)) => Ok(output),
            Ok(None) => {
                self.ready = false;
                Err(self.channel.late(&format!("end of `{command}`"), began.elapsed()))
            }
            Err(error) => {
                self.ready = false;
                Err(error)
            }
        }
    }

    /// The end of what the console showed last.
    pub fn tail(&self) -> String {
        super::shown(self.channel.pending(), TAIL)
    }

    /// The end of what it showed before it was closed, of which a part may not have been read yet.
    pub async fn last_words(&mut self) -> String {
        for _ in 0..READS_MAX {
            if !matches!(self.channel.read(Instant::now() + SETTLE).await, Ok(true)) {
                break;
            }
        }
        self.tail().trim().to_owned()
    }

    /// Whether there is a prompt to log in, where somebody was logged in: the guest has booted anew.
    async fn logged_out(&mut self) -> Result<bool, GuestError> {
        let mut most = READS_MAX;
        while most > 0 && self.channel.read(Instant::now()).await? {
            most -= 1;
            if self.channel.pending().len() > OUTPUT_MAX / 2 {
                self.channel.forget_but(TAIL);
            }
        }
        Ok(matches!(self.scene(), Scene::Login | Scene::Password))
    }

    fn scene(&self) -> Scene {
        scene(self.channel.pending(), self.credentials.prompt.as_ref())
    }

    /// Whether what looks like a prompt is one.
    async fn answers(&mut self, deadline: Instant) -> Result<bool, GuestError> {
        let patience = (Instant::now() + 5 * KNOCK).min(deadline);
        Ok(self.exchange("true", patience).await?.is_some_and(|output| output.status == 0))
    }

    async fn exchange(&mut self, command: &str, deadline: Instant) -> Result<Option<Output>, GuestError> {
        let marker = Marker::next();
        self.channel.forget_but(0);
        self.channel.send(marker.line(command).as_bytes(), deadline).await?;
        loop {
            if let Some((output, end)) = marker.find(self.channel.pending()) {
                // Behind it the guest may have begun to boot.
                self.channel.forget_but(self.channel.pending().len() - end);
                return Ok(Some(output));
            }
            if !self.channel.read(deadline).await? {
                return Ok(None);
            }
        }
    }
}

/// Words that no echo and no earlier command contains.
struct Marker(String);

impl Marker {
    fn next() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(format!("{:x}-{count:x}-{:08x}", std::process::id(), rand::random::<u32>()))
    }

    /// What is typed: the command in a shell of its own, so that it cannot end ours or read what is typed next.
    fn line(&self, command: &str) -> String {
        let quoted = command.replace('\'', r"'\''");
        let Self(id) = self;
        format!("echo 'vt''b-{id}'; (eval '{quoted}') </dev/null 2>&1; vt=$?; echo; echo 'vt''e-{id}' $vt\r")
    }

    /// How the command ended, and where what belongs to it ends.
    fn find(&self, bytes: &[u8]) -> Option<(Output, usize)> {
        let Self(id) = self;
        let end = position(bytes, format!("vte-{id} ").as_bytes())?;
        let after = &bytes[end..];
        // The status is there in whole only with the end of its line.
        let length = position(after, b"\n")?;
        let line = &after[..length];
        let status = plain(line).split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(-1);
        let begin = format!("vtb-{id}");
        let start = position(&bytes[..end], begin.as_bytes()).map_or(0, |at| at + begin.len());
        let text = plain(&bytes[start..end]);
        // Ours: the line end after the first marker, and the empty line before the second.
        let text = text.strip_prefix('\n').unwrap_or(&text);
        let output = Output { status, text: text.strip_suffix('\n').unwrap_or(text).to_owned() };
        Some((output, end + length + 1))
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn scene(bytes: &[u8], prompt: Option<&Regex>) -> Scene {
    let text = plain(&bytes[bytes.len().saturating_sub(TAIL)..]);
    let line = text.rsplit('\n').find(|line| !line.trim().is_empty()).unwrap_or_default();
    let last = line.trim();
    let lower = last.to_lowercase();
    if lower.ends_with("login:") {
        // After a refused login there is a new prompt below.
        return if text.to_lowercase().contains("login incorrect") { Scene::Refused } else { Scene::Login };
    }
    if lower.ends_with("password:") {
        return Scene::Password;
    }
    if lower.ends_with("login incorrect") {
        return Scene::Refused;
    }
    // Old configurations have patterns for guests of theirs: one that does not fit this guest is no reason to miss its shell,
    // and what looks like one is asked before it counts.
    let shell =
        last.ends_with(['#', '$', '>', '%']) || prompt.is_some_and(|prompt| prompt.is_match(line).unwrap_or(false));
    if shell { Scene::Shell } else { Scene::Unknown }
}

/// Terminal output as text: escape sequences and control characters removed, line ends as `\n`.
pub(crate) fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.next() {
                // Control sequence: parameters, then one letter.
                Some('[') => while chars.next().is_some_and(|c| !('\x40'..='\x7e').contains(&c)) {},
                // A title or the like, ended by a bell or by another escape.
                Some(']') => while chars.next().is_some_and(|c| c != '\x07' && c != '\\') {},
                Some('(' | ')') => drop(chars.next()),
                _ => {}
            },
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{UnixListener, UnixStream},
    };

    use super::*;

    #[test]
    fn escape_sequences_and_control_characters_go() {
        assert_eq!(plain(b"a\x1b[1;31mred\x1b[0m\r\nb\x07\x1b]0;title\x07c\x1b(B\t\x00d\x08"), "ared\nbc\td");
        assert_eq!(plain(b"\xff\xfe ok \x1b"), "\u{fffd}\u{fffd} ok ");
        assert_eq!(plain(b"cut \x1b[12"), "cut ");
    }

    #[test]
    fn scenes_are_told_apart() {
        for (text, wanted) in [
            ("boot\r\n\r\nguest login: ", Scene::Login),
            ("debian12 login:", Scene::Login),
            ("root\r\nPassword: ", Scene::Password),
            ("Login incorrect\r\nguest login: ", Scene::Refused),
            ("\x1b[6n\r\nguest:~# ", Scene::Shell),
            ("[user@host ~]$ ", Scene::Shell),
            ("[    1.2] Run /init", Scene::Unknown),
            ("", Scene::Unknown),
            ("\u{0}\u{1}", Scene::Unknown),
        ] {
            assert_eq!(scene(text.as_bytes(), None), wanted, "{text:?}");
        }
        let lambda = prompt(r"^\w+ λ\s*$").unwrap();
        assert_eq!(scene("guest λ ".as_bytes(), Some(&lambda)), Scene::Shell);
        assert_eq!(scene("guest:~# ".as_bytes(), Some(&lambda)), Scene::Shell);
        assert_eq!(scene("guest λ is up".as_bytes(), Some(&lambda)), Scene::Unknown);
        assert!(prompt("[").is_err() && prompt("(a{1000}){1000}").is_err());
    }

    #[test]
    fn the_echo_is_not_the_answer() {
        let marker = Marker("1-2-3".into());
        let typed = marker.line("echo 'a b'");
        assert_eq!(marker.find(typed.as_bytes()), None);
        let seen = format!("guest:~# {typed}\nvtb-1-2-3\r\na b\r\n\r\nvte-1-2-3 0\r\nguest:~# ");
        let output = Output { status: 0, text: "a b\n".into() };
        assert_eq!(marker.find(seen.as_bytes()), Some((output, seen.len() - "guest:~# ".len())));
        assert_eq!(marker.find(b"vtb-1-2-3\r\n\r\nvte-1-2-3 12"), None, "the status may not be whole");
        assert_eq!(marker.find(b"vte-1-2-3 x\r\n").map(|(output, _)| output.status), Some(-1));
    }

    /// A guest that is a real shell behind a login prompt, with echo. Where it is to say so it boots anew.
    async fn guest(path: PathBuf) -> Result<(), std::io::Error> {
        let (mut stream, _) = UnixListener::bind(path)?.accept().await?;
        loop {
            boot(&mut stream).await?;
        }
    }

    async fn boot(stream: &mut UnixStream) -> Result<(), std::io::Error> {
        for (prompt, answer) in [("\r\nlogin: ", "nobody\r"), ("login: ", "root\r")] {
            stream.write_all(prompt.as_bytes()).await?;
            while typed(stream).await? == "\r" {
                stream.write_all(b"login: ").await?;
            }
            if answer == "root\r" {
                break;
            }
        }
        loop {
            stream.write_all(b"\x1b[1mguest\x1b[0m:~# ").await?;
            let line = typed(stream).await?;
            stream.write_all(format!("{line}\n").as_bytes()).await?;
            let shell = tokio::process::Command::new("sh").args(["-c", line.trim()]).output().await?;
            stream.write_all(String::from_utf8_lossy(&shell.stdout).replace('\n', "\r\n").as_bytes()).await?;
            if line.contains("echo booting anew") {
                return Ok(());
            }
        }
    }

    async fn typed(stream: &mut UnixStream) -> Result<String, std::io::Error> {
        let mut line = Vec::new();
        loop {
            line.push(stream.read_u8().await?);
            if line == b"\x03" {
                line.clear();
            }
            if line.ends_with(b"\r") {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn a_shell_behind_a_login_runs_commands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("con");
        tokio::spawn(guest(path.clone()));
        let mut console = Console::connect(&path, Credentials::default(), soon()).await.unwrap();
        let output = console.run("echo it\\'s; exit 3", soon()).await.unwrap();
        assert_eq!(output, Output { status: 3, text: "it's\n".into() });
        let output = console.run("printf '%s' \"it's\" # comment", soon()).await.unwrap();
        assert_eq!(output, Output { status: 0, text: "it's".into() });
        let output = console.run("nonsense-command; )", soon()).await.unwrap();
        assert_ne!(output.status, 0, "{output:?}");
        console.run("echo booting anew", soon()).await.unwrap();
        let until = soon();
        while !console.logged_out().await.unwrap() {
            assert!(Instant::now() < until, "nobody is asked to log in: {}", console.tail());
            tokio::task::yield_now().await;
        }
        assert_eq!(console.run("echo again", soon()).await.unwrap().text, "again\n");
        for bad in ["a\nb", "\x04", &"x".repeat(COMMAND_MAX + 1)] {
            assert!(matches!(console.run(bad, soon()).await, Err(GuestError::Question(_))));
        }
    }

    #[tokio::test]
    async fn silence_garbage_and_an_end_are_errors_that_name_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("con");
        let missing = Console::connect(&path, Credentials::default(), Instant::now() + SETTLE).await.err().unwrap();
        assert!(missing.to_string().contains("con"), "{missing}");
        let listener = UnixListener::bind(&path).unwrap();
        let mut console = Console::connect(&path, Credentials::default(), soon()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"\x1b[\xff\xfe kernel panic").await.unwrap();
        let late = console.login(Instant::now() + Duration::from_millis(700)).await.err().unwrap();
        assert!(matches!(&late, GuestError::Deadline { arrived, .. } if arrived.contains("panic")), "{late:?}");
        let flood = tokio::spawn(async move { while stream.write_all(&[b'x'; 4096]).await.is_ok() {} });
        // A guest that floods its console is waited for until the deadline, in bounded memory.
        assert!(console.login(Instant::now() + Duration::from_secs(1)).await.is_err());
        flood.abort();
        let _ = flood.await;
        let ended = console.login(soon()).await.err().unwrap();
        assert!(matches!(ended, GuestError::Closed(Place::Console(_))), "{ended:?}");
    }
}
