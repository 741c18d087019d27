//! A disk from an address: downloaded by curl, compared with the digest that somebody states for it, unpacked, and taken
//! like any file.
//!
//! ```text
//! .part-NAME-get-KEY/coming     what has come so far: asked for again, it goes on from there
//!                    come       all of it
//!                    unpacked   what is in it
//! ```
//!
//! What broke off stays for the next time; what has come and is not what it should be is removed. What may not happen
//! here: a download without a digest, or an address that leads to a file of this host where it says it does not.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{interval, sleep};
use vt_protocol::{
    catalogue::{FetchImage, FetchSum, ImportImage, Packing},
    error::{ErrorCode, Report},
    manifest::FILE_BYTES_MAX,
};
use vt_sync::State;

use super::{
    blocking,
    import::{Taken, take_disk},
    store::{Store, trouble},
    sum::{Sum, listed},
    tool::{Said, Tool},
};

const CURL: Tool = Tool {
    name: "curl",
    package: "curl",
    missing: ErrorCode::DownloadFailed,
    patience: Duration::from_secs(24 * 3600),
};
/// Longest list of digests, bytes.
const LIST_MAX: u64 = 1 << 20;
/// A connection that breaks is made again this often, while each brings something.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked how much has come.
const LOOKS: Duration = Duration::from_millis(300);
/// How curl ends where a transfer broke off: the name or host did not answer, part of it came, it stood still, or the
/// connection was reset.
const BROKE_OFF: [i32; 7] = [6, 7, 18, 28, 52, 55, 56];
/// How curl ends where the server cannot, or will not, go on in the middle.
const CANNOT_RESUME: [i32; 3] = [22, 33, 36];
const WRITE_FAILED: i32 = 23;

/// How far a download is.
#[derive(Debug, Default)]
pub(crate) struct Coming {
    /// Bytes that are here.
    pub(crate) done: Arc<AtomicU64>,
    /// Bytes that there are; 0: not known yet.
    pub(crate) total: AtomicU64,
}

/// Takes what `fetch` names.
///
/// # Errors
/// It did not come, or is not what it should be. Nothing has the image's name then.
pub(crate) async fn fetch(
    store: &Store,
    state: &State,
    fetch: &FetchImage,
    coming: &Arc<Coming>,
) -> Result<Taken, Report> {
    let refused = |report: Report| {
        let title = format!("{} is not taken as image {}: {}", fetch.url, fetch.name, report.title);
        Report { title, ..report }
    };
    let download = Download::open(store, fetch).map_err(refused)?;
    let taken = download.take(store, state, fetch, coming).await;
    let keep = taken.as_ref().err().is_some_and(|report| {
        matches!(report.code, ErrorCode::DownloadFailed | ErrorCode::DiskFull | ErrorCode::StorageFailed)
    });
    if !keep && let Err(error) = tokio::fs::remove_dir_all(&download.folder).await {
        tracing::warn!(folder = %download.folder.display(), %error, "a download is left behind");
    }
    taken.map_err(refused)
}

/// The folder of a download.
struct Download {
    folder: PathBuf,
}

impl Download {
    fn open(store: &Store, fetch: &FetchImage) -> Result<Self, Report> {
        is_address(&fetch.url)?;
        let (kind, rest) = match &fetch.sum {
            FetchSum::Known(kind, digest) => (kind, digest),
            FetchSum::ListedAt { kind, url } => {
                is_address(url)?;
                (kind, url)
            }
        };
        // Another address or digest is another download.
        let key = blake3::hash(format!("{}\0{kind}\0{rest}", fetch.url).as_bytes()).to_hex();
        let folder = store.download(&fetch.name, &key[..16]);
        let made = fs::create_dir_all(&folder).map_err(|error| trouble("the pool cannot be written", &folder, &error));
        made.map(|()| Self { folder })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    async fn take(
        &self,
        store: &Store,
        state: &State,
        fetch: &FetchImage,
        coming: &Arc<Coming>,
    ) -> Result<Taken, Report> {
        let sum = self.sum(fetch).await?;
        let come = self.file("come");
        if !come.is_file() {
            self.bring(&fetch.url, coming).await?;
        }
        blocking({
            let come = come.clone();
            move || sum.of_file(&come, None)
        })
        .await
        .map_err(|report| report.help("what came is removed: asked for again, it begins anew"))?;
        let disk = match fetch.packing {
            None => come,
            Some(packing) => self.unpack(&come, packing).await?,
        };
        let import = ImportImage {
            path: disk.clone(),
            name: fetch.name.clone(),
            pool: fetch.pool.clone(),
            format: fetch.format,
            sum: None,
        };
        coming.done.store(0, Ordering::Relaxed);
        coming.total.store(fs::metadata(&disk).map_or(0, |meta| meta.len()), Ordering::Relaxed);
        take_disk(store, state, &import, &disk, &coming.done).await
    }

    /// The digest that what comes must have.
    async fn sum(&self, fetch: &FetchImage) -> Result<Sum, Report> {
        match &fetch.sum {
            FetchSum::Known(kind, digest) => Sum::new((kind.clone(), digest.clone())),
            FetchSum::ListedAt { kind, url } => {
                let list = self.file("list");
                let said = curl(url, &list, LIST_MAX, false).await?;
                if said.code != Some(0) {
                    return Err(failed("the list with its digest did not come", url, &said));
                }
                let text = fs::read(&list).map_err(|error| trouble("the list cannot be read", &list, &error))?;
                let name = fetch.url.rsplit('/').next().unwrap_or_default();
                let digest = listed(&String::from_utf8_lossy(&text), name).ok_or_else(|| {
                    let title = format!("the list of digests has none for {name}");
                    Report::new(ErrorCode::ImageRefused, title).with("list", url)
                })?;
                Sum::new((kind.clone(), digest))
            }
        }
    }

    /// Brings the whole file, from where an earlier download broke off.
    async fn bring(&self, url: &str, coming: &Coming) -> Result<(), Report> {
        let part = self.file("coming");
        let length = || fs::metadata(&part).map_or(0, |meta| meta.len());
        let mut tries = 0;
        loop {
            let before = length();
            let said = {
                let asked = curl(url, &part, FILE_BYTES_MAX, true);
                tokio::pin!(asked);
                let mut tick = interval(LOOKS);
                loop {
                    tokio::select! {
                        said = &mut asked => break said?,
                        _ = tick.tick() => {
                            coming.done.store(length(), Ordering::Relaxed);
                            coming.total.store(self.announced(before), Ordering::Relaxed);
                        }
                    }
                }
            };
            match said.code {
                Some(0) => {
                    let come = fs::rename(&part, self.file("come"));
                    return come.map_err(|error| trouble("the download cannot be kept", &part, &error));
                }
                // The server has it no more as it was, or can only send it from its beginning.
                Some(code) if before > 0 && CANNOT_RESUME.contains(&code) => {
                    fs::remove_file(&part).map_err(|error| trouble("the download cannot begin anew", &part, &error))?;
                }
                Some(code) if BROKE_OFF.contains(&code) && length() > before && tries < TRIES => {
                    tries += 1;
                    sleep(PAUSE).await;
                }
                Some(WRITE_FAILED) => {
                    let error = io::Error::from(io::ErrorKind::StorageFull);
                    return Err(trouble("the download cannot be written", &part, &error).with("curl", said.words()));
                }
                _ => {
                    let report = failed("it did not come", url, &said);
                    return Err(report.with("bytes that came and are kept", length().to_string()));
                }
            }
        }
    }

    /// How long the server said that the whole file is; 0 where it has not. `before` bytes were not asked for.
    fn announced(&self, before: u64) -> u64 {
        let headers = fs::read_to_string(self.file("coming.headers")).unwrap_or_default();
        let length = headers.lines().rev().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>().ok()).flatten()
        });
        length.map_or(0, |length| length.saturating_add(before))
    }

    async fn unpack(&self, come: &Path, packing: Packing) -> Result<PathBuf, Report> {
        let unpacked = self.file("unpacked");
        let written = File::create(&unpacked);
        let out = written.map_err(|error| trouble("it cannot be unpacked into the pool", &unpacked, &error))?;
        let package = match packing {
            Packing::Xz => "xz-utils",
            other => other.program(),
        };
        let tool = Tool { name: packing.program(), package, ..CURL };
        let said = tool.run(&[Path::new("-d"), Path::new("-c"), come], Some(out)).await?;
        if said.code == Some(0) {
            return Ok(unpacked);
        }
        let code = if said.is_full() { ErrorCode::DiskFull } else { ErrorCode::ImageDamaged };
        Err(Report::new(code, "it cannot be unpacked").with(packing.program(), said.words()))
    }
}

/// What curl is given: no file of this host but where the address says so, no settings of a user, a bound on everything.
async fn curl(url: &str, to: &Path, most: u64, resume: bool) -> Result<Said, Report> {
    let (to, headers) = (to.display().to_string(), format!("{}.headers", to.display()));
    let most = most.to_string();
    let mut words = vec!["-q", "--silent", "--show-error", "--fail", "--location", "--globoff"];
    words.extend(["--proto", "=http,https,file", "--proto-redir", "=http,https", "--max-redirs", "10"]);
    words.extend(["--connect-timeout", "20", "--speed-limit", "1", "--speed-time", "60"]);
    words.extend(["--max-filesize", &most, "--dump-header", &headers, "--output", &to, "--url", url]);
    words.extend(resume.then_some(["--continue-at", "-"]).into_iter().flatten());
    CURL.run(&words, None).await
}

fn failed(title: &str, url: &str, said: &Said) -> Report {
    Report::new(ErrorCode::DownloadFailed, title).with("url", url).with("curl", said.words()).retryable()
}

/// Whether curl may be given this.
fn is_address(url: &str) -> Result<(), Report> {
    let known = ["http://", "https://", "file:///"].iter().any(|scheme| url.starts_with(scheme));
    if known && !url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Ok(());
    }
    Err(Report::new(ErrorCode::Usage, format!("{url:?} is no address: http://, https:// and file:/// are taken")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_are_meant_are_given_to_curl() {
        for url in ["http://10.0.0.1/a", "https://example.org/a.qcow2", "file:///srv/a.qcow2"] {
            is_address(url).unwrap();
        }
        for url in ["", "/etc/passwd", "file://host/etc", "scp://h/a", "-o/etc/passwd", "http://a b/", "http://a\n"] {
            assert_eq!(is_address(url).unwrap_err().code, ErrorCode::Usage, "{url:?}");
        }
    }
}
