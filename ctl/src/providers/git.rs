//! Fetching the tree of a provider with git. Nothing of it is run: no hook, no filter, no submodule, no helper program.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::process::Command;

use super::{
    definition::{Definition, Uri},
    error::ProviderError,
};

/// Most lines of git's words that are quoted, from the end.
const SAID_LINES: usize = 6;
/// What keeps git from running anything, and from asking.
const SETTINGS: [&str; 8] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
    "core.autocrlf=false",
];
/// No attribute of the tree counts: filters are programs.
const ATTRIBUTES: &str = "* -filter -text -ident -working-tree-encoding\n";

/// Fetches the tree of a provider, whole or not at all, and returns the commit that it is at.
///
/// # Errors
/// Git is not there, failed, or did not end within `limit`; another sync of the provider is under way; the provider's uri
/// is a folder, which is used where it is.
pub async fn sync(definition: &Definition, trees: &Path, limit: Duration) -> Result<String, ProviderError> {
    let Uri::Git(uri) = &definition.uri else {
        return Err(ProviderError::definition(&definition.file, 1, "the tree is a folder; there is nothing to fetch"));
    };
    fs::create_dir_all(trees).map_err(ProviderError::io(trees))?;
    let fetch = Fetch { provider: &definition.name, uri, until: Instant::now() + limit };
    let _lock = fetch.lock(&trees.join(format!(".{}.lock", definition.name)))?;
    // Under the lock, what is there was left by a sync that was killed.
    let (new, old) = (trees.join(format!(".{}.new", definition.name)), trees.join(format!(".{}.old", definition.name)));
    remove(&new)?;
    remove(&old)?;
    let wanted = definition.reference.clone().unwrap_or_else(|| format!("refs/heads/{}", definition.branch));
    let commit = match fetch.fetch_into(&new, &wanted).await {
        Ok(commit) => commit,
        Err(error) => {
            remove(&new)?;
            return Err(error);
        }
    };
    let tree = trees.join(&definition.name);
    if tree.exists() {
        fs::rename(&tree, &old).map_err(ProviderError::io(&tree))?;
    }
    fs::rename(&new, &tree).map_err(ProviderError::io(&tree))?;
    remove(&old)?;
    Ok(commit)
}

fn remove(folder: &Path) -> Result<(), ProviderError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ProviderError::io(folder)(error)),
        _ => Ok(()),
    }
}

struct Fetch<'a> {
    provider: &'a str,
    uri: &'a str,
    until: Instant,
}

impl Fetch<'_> {
    async fn fetch_into(&self, folder: &Path, wanted: &str) -> Result<String, ProviderError> {
        let path = folder.to_string_lossy();
        self.git(None, &["init", "--quiet", "--template=", "--", &path]).await?;
        let attributes = folder.join(".git/info");
        fs::create_dir_all(&attributes)
            .and_then(|()| fs::write(attributes.join("attributes"), ATTRIBUTES))
            .map_err(ProviderError::io(&attributes))?;
        let fetch = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--", self.uri, wanted];
        self.git(Some(folder), &fetch).await?;
        self.git(Some(folder), &["checkout", "--quiet", "--detach", "FETCH_HEAD"]).await?;
        Ok(self.git(Some(folder), &["rev-parse", "HEAD"]).await?.trim().to_owned())
    }

    /// Runs git to its end and returns its stdout; beyond the limit it is killed with all it has started.
    async fn git(&self, folder: Option<&Path>, arguments: &[&str]) -> Result<String, ProviderError> {
        let mut command = Command::new("git");
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        // A caller's repository is not meant.
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"] {
            command.env_remove(name);
        }
        if std::env::var_os("GIT_SSH_COMMAND").is_none() {
            command.env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes");
        }
        command.current_dir(folder.unwrap_or_else(|| Path::new("/"))).args(arguments);
        command.env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "true");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Its own group: it starts programs for transport, which have to end with it.
        command.process_group(0).kill_on_drop(true);
        let step = arguments.first().copied().unwrap_or_default();
        let child = command.spawn().map_err(|error| self.failed(step, &format!("cannot be run: {error}"), ""))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let left = self.until.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, child.wait_with_output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(Ok(output)) => {
                Err(self.failed(step, &output.status.to_string(), &String::from_utf8_lossy(&output.stderr)))
            }
            Ok(Err(error)) => Err(self.failed(step, &error.to_string(), "")),
            Err(_) => {
                // Gone already is as good.
                let _ = group.map(|group| killpg(group, Signal::SIGKILL));
                Err(self.failed(step, "did not end in time and was killed", ""))
            }
        }
    }

    fn failed(&self, step: &str, ended: &str, said: &str) -> ProviderError {
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        ProviderError::Git {
            provider: self.provider.to_owned(),
            uri: self.uri.to_owned(),
            ended: format!("{step}: {ended}"),
            said: lines[lines.len().saturating_sub(SAID_LINES)..].join("\n"),
        }
    }

    fn lock(&self, path: &PathBuf) -> Result<Flock<File>, ProviderError> {
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = open.map_err(ProviderError::io(path))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| self.failed("lock", "another sync of this provider is under way", ""))
    }
}
