//! `vtd export`: the process.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use nfs3_client::nfs3_types::nfs3::nfsstat3;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Mutex, Semaphore, watch},
    task::{JoinSet, LocalSet, spawn_local},
    time::timeout,
};
use tokio_util::codec::{Framed, LinesCodec};
use vt_protocol::{ids::Epoch, pool::NfsPlace};

use super::{
    Ask, CONTROL_SOCKET, DISK_SOCKET, LINE_MAX, Word,
    backing::{Backing, Trouble},
    nbd::{self, Errno, Request},
};

/// How long QEMU may take to connect.
const CONNECTS: Duration = Duration::from_secs(120);
/// Most requests at once; QEMU has no more on its way.
const AT_ONCE: usize = 16;
/// Most bytes of requests at once. One that is longer has it alone.
const ROOM: usize = 32 << 20;

/// Its words.
#[derive(Debug, Args)]
pub struct ExportWords {
    /// The VM's run folder.
    #[arg(long)]
    run_dir: PathBuf,
    /// The pool.
    #[arg(long)]
    pool: String,
    /// The file in it.
    #[arg(long)]
    file: String,
    /// Take it over under this epoch before anything else.
    #[arg(long)]
    epoch: Option<u64>,
}

impl ExportWords {
    /// As words of a command line.
    pub(super) fn to_args(run_dir: &Path, pool: &NfsPlace, file: &str, epoch: Option<Epoch>) -> Vec<String> {
        let mut words = vec![super::WORD.to_owned()];
        for (name, value) in
            [("--run-dir", run_dir.display().to_string()), ("--pool", pool.to_string()), ("--file", file.to_owned())]
        {
            words.extend([name.to_owned(), value]);
        }
        words.extend(epoch.into_iter().flat_map(|epoch| ["--epoch".to_owned(), epoch.to_string()]));
        words
    }
}

/// Serves until QEMU has ended. Returns the exit code.
pub fn run(words: &ExportWords) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vtd export: {error}");
            return 1;
        }
    };
    match LocalSet::new().block_on(&runtime, serve(words)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    }
}

/// What was said last, for whoever listens: a daemon that comes back hears it too.
#[derive(Debug, Clone)]
struct Voice(watch::Sender<Option<Word>>);

impl Voice {
    fn say(&self, word: Word) {
        eprintln!("vtd export: {word:?}");
        self.0.send_if_modified(|last| {
            // Trouble is the last that there is to be said.
            let over = matches!(last, Some(Word::Trouble { .. }));
            if !over {
                *last = Some(word);
            }
            !over
        });
    }
}

async fn serve(words: &ExportWords) -> anyhow::Result<()> {
    let place = NfsPlace::parse(&words.pool)?;
    let voice = Voice(watch::Sender::new(None));
    let backing = Backing::new(place, words.file.clone());
    let tell = |word| voice.say(word);
    let length = backing.length(&tell).await?;
    if let Some(epoch) = words.epoch {
        backing.take(Epoch(epoch), &tell).await?;
    }
    let backing = Rc::new(backing);
    let control = UnixListener::bind(words.run_dir.join(CONTROL_SOCKET))?;
    spawn_local({
        let (backing, voice) = (backing.clone(), voice.clone());
        async move {
            while let Ok((daemon, _)) = control.accept().await {
                spawn_local(obey(daemon, backing.clone(), voice.clone()));
            }
        }
    });
    // Made last: who sees it knows that all is ready.
    let disk = UnixListener::bind(words.run_dir.join(DISK_SOCKET))?;
    eprintln!("vtd export: {} of {}, {length} bytes", words.file, words.pool);
    loop {
        let (stream, _) = timeout(CONNECTS, disk.accept()).await??;
        match attend(stream, length, &backing, &voice).await {
            // It only looked.
            Ok(false) => {}
            Ok(true) => break,
            Err(error) => {
                eprintln!("vtd export: QEMU's connection: {error}");
                break;
            }
        }
    }
    // QEMU has ended; what it had flushed is safe, and the rest is as good as a guest can expect.
    let _ = timeout(Duration::from_secs(5), backing.flush(&tell)).await;
    Ok(())
}

/// One daemon: hears what is said, and may ask.
async fn obey(daemon: UnixStream, backing: Rc<Backing>, voice: Voice) {
    let mut wire = Framed::new(daemon, LinesCodec::new_with_max_length(LINE_MAX));
    let mut said = voice.0.subscribe();
    said.mark_changed();
    loop {
        let word = tokio::select! {
            line = wire.next() => match line {
                Some(Ok(line)) => match serde_json::from_str(&line) {
                    Ok(Ask::Take(epoch)) => {
                        let taken = backing.take(epoch, &|word| voice.say(word)).await;
                        match taken {
                            Ok(()) => Word::Taken(epoch),
                            Err(trouble) => Word::NotTaken(trouble.to_string()),
                        }
                    }
                    Err(error) => Word::NotTaken(format!("not understood: {error}")),
                },
                _ => return,
            },
            changed = said.changed() => match (changed, said.borrow_and_update().clone()) {
                (Ok(()), Some(word)) => word,
                (Ok(()), None) => continue,
                (Err(_), _) => return,
            },
        };
        let Ok(line) = serde_json::to_string(&word) else { return };
        if wire.send(line).await.is_err() {
            return;
        }
    }
}

/// QEMU, until it ends. Returns whether it used the disk.
async fn attend(mut stream: UnixStream, length: u64, backing: &Rc<Backing>, voice: &Voice) -> io::Result<bool> {
    if !nbd::agree(&mut stream, length).await? {
        return Ok(false);
    }
    let (mut asks, answers) = stream.into_split();
    let answers = Rc::new(Mutex::new(answers));
    // Bounded in number and in bytes; what comes beyond that waits in the socket.
    let (places, room) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(ROOM)));
    let mut open = JoinSet::new();
    let ended = loop {
        let (cookie, request) = match nbd::request(&mut asks, length).await {
            Ok((_, Request::Bye)) => break Ok(true),
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break Ok(true),
            Err(error) => break Err(error),
        };
        let takes = request.bytes().min(ROOM);
        let (Ok(place), Ok(takes)) = (
            places.clone().acquire_owned().await,
            room.clone().acquire_many_owned(u32::try_from(takes).unwrap_or(u32::MAX)).await,
        ) else {
            break Err(io::Error::other("no room for requests"));
        };
        let (backing, voice, answers) = (backing.clone(), voice.clone(), answers.clone());
        open.spawn_local(async move {
            let _held = (place, takes);
            let answer = done(request, &backing, &voice).await;
            nbd::answer(&mut *answers.lock().await, cookie, answer).await
        });
        // Those that are done. One that could not be answered has lost its client.
        while let Some(done) = open.try_join_next() {
            if let Ok(Err(error)) = done {
                return Err(error);
            }
        }
    };
    // What was asked before the end is done before the end.
    while open.join_next().await.is_some() {}
    ended
}

/// Does what is asked.
async fn done(request: Request, backing: &Backing, voice: &Voice) -> Result<Vec<u8>, Errno> {
    let tell = |word| voice.say(word);
    let done = match request {
        Request::Read { offset, length } => backing.read(offset, length, &tell).await,
        Request::Write { offset, bytes, safe } => backing.write(offset, bytes, safe, &tell).await.map(|()| Vec::new()),
        Request::Flush => backing.flush(&tell).await.map(|()| Vec::new()),
        Request::Bye | Request::Other => return Err(Errno::Invalid),
    };
    done.map_err(|trouble| {
        let errno = errno(&trouble);
        tell(Word::Trouble { full: errno == Errno::Full, why: trouble.to_string() });
        errno
    })
}

fn errno(trouble: &Trouble) -> Errno {
    match trouble {
        Trouble::NotOwner => Errno::NotAllowed,
        Trouble::Away => Errno::Io,
        Trouble::Nfs(error) => match error.status() {
            Some(nfsstat3::NFS3ERR_NOSPC | nfsstat3::NFS3ERR_DQUOT) => Errno::Full,
            Some(nfsstat3::NFS3ERR_ROFS) => Errno::NotAllowed,
            _ => Errno::Io,
        },
    }
}
