//! The evidence as it arrives: file after file into a directory beside the goal, renamed when the last piece is there.
//!
//! What may not happen here: a path that leads out of the directory, a file that is overwritten, half a bundle under
//! the goal's name, a leftover after a failure.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use vt_protocol::{
    admin::{AdminReply, AdminRequest, FileChunk},
    error::{ErrorCode, Report},
    ids::JobId,
};

use super::trouble;
use crate::{
    client::{Mesh, Need, Next},
    ui::report::unexpected,
};

/// Most files of one bundle.
const FILES_MAX: usize = 500_000;
/// Most bytes of one bundle.
const BYTES_MAX: u64 = 64 << 30;
/// Longest document that is looked into, bytes.
const JSON_MAX: u64 = 256 << 20;
/// Longest path, bytes.
const PATH_MAX: usize = 512;
/// Most folders of a path.
const DEPTH_MAX: usize = 12;
/// How often the evidence is asked for when daemons go away meanwhile.
const TRIES: usize = 3;
/// How long the next piece may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bundle that is whole and not yet at its goal. Dropping it removes it.
#[derive(Debug)]
pub struct Bundle {
    part: Part,
    goal: PathBuf,
    files: Vec<String>,
}

/// The directory that is filled; gone when it is dropped.
#[derive(Debug)]
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether the evidence can go there: nothing is there yet, or an empty directory.
///
/// # Errors
/// Something is there, or it cannot be looked at.
pub fn check_goal(goal: &Path) -> Result<(), Report> {
    match fs::read_dir(goal).map(|entries| entries.take(1).count()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(trouble("use", goal, &error)),
        Ok(0) => Ok(()),
        Ok(_) => Err(Report::new(ErrorCode::ResultsWrite, format!("{} is there already", goal.display()))
            .with("wanted", "a directory that does not exist yet, or an empty one: nothing is overwritten")
            .help("choose another one with -r DIR")),
    }
}

impl Bundle {
    /// Fetches everything; asks again, from the beginning, when a daemon goes away in the middle.
    ///
    /// # Errors
    /// It does not come whole, or cannot be written. Nothing is left behind.
    pub async fn fetch(mesh: &mut Mesh, job: JobId, goal: &Path) -> Result<Self, Report> {
        check_goal(goal)?;
        let mut tries = 1;
        loop {
            match Self::fetch_once(mesh, job, goal).await {
                Err(report) if report.retryable && tries < TRIES => {
                    tries += 1;
                    mesh.forget();
                }
                Err(report) => return Err(report.help(format!("vtctl job fetch {job} -r {}", goal.display()))),
                fetched => return fetched,
            }
        }
    }

    async fn fetch_once(mesh: &mut Mesh, job: JobId, goal: &Path) -> Result<Self, Report> {
        let mut writer = Writer::new(goal)?;
        let mut stream = mesh.stream(&AdminRequest::JobFetch(job), Need::Read).await?;
        loop {
            let next = tokio::time::timeout_at(mesh.by(PATIENCE), stream.next()).await;
            match next {
                Ok(Next::Reply(AdminReply::Files(chunk))) => writer.take(&chunk)?,
                Ok(Next::Reply(other)) => return Err(unexpected("job fetch", &other)),
                Ok(Next::Refused(report)) => return Err(report),
                Ok(Next::End) => return writer.finish(),
                Ok(Next::Lost(report)) => return Err(ended_early(&writer, &report.title)),
                Err(_) => return Err(ended_early(&writer, "the next piece did not come in time")),
            }
        }
    }

    /// Relative paths of the files.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// What a document of it says; `None` where it is not there, is no JSON, or is too long to be looked into.
    pub fn json(&self, name: &str) -> Option<serde_json::Value> {
        let path = below(&self.part.0, name)?;
        let file = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|about| about.len() <= JSON_MAX))?;
        serde_json::from_reader(std::io::BufReader::new(file)).ok()
    }

    /// Adds a file of our own; one of the same name from a daemon is replaced.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&self, name: &str, text: &str) -> Result<(), Report> {
        let path = self.part.0.join(name);
        fs::write(&path, text).map_err(|error| trouble("write", &self.goal.join(name), &error))
    }

    /// Moves the bundle to its goal. Returns how many files came.
    ///
    /// # Errors
    /// Something is there meanwhile, or it cannot be moved.
    pub fn keep(self) -> Result<usize, Report> {
        fs::rename(&self.part.0, &self.goal).map_err(|error| trouble("move the evidence to", &self.goal, &error))?;
        Ok(self.files.len())
    }
}

fn ended_early(writer: &Writer, why: &str) -> Report {
    Report::new(ErrorCode::Unreachable, "the evidence stopped coming before it was whole")
        .with("reason", why)
        .with("until then", format!("{} files; nothing of them is kept", writer.files.len()))
        .retryable()
}

/// Writes pieces.
struct Writer {
    part: Part,
    goal: PathBuf,
    files: Vec<String>,
    open: Option<(String, File)>,
    bytes: u64,
}

impl Writer {
    fn new(goal: &Path) -> Result<Self, Report> {
        let wrong = |why: &str| {
            Report::new(ErrorCode::ResultsWrite, format!("{} cannot hold the evidence", goal.display()))
                .with("reason", why)
        };
        let name = goal.file_name().ok_or_else(|| wrong("it names no directory"))?;
        let parent = match goal.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|error| trouble("make", parent, &error))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".part-{}-{:08x}", std::process::id(), rand::random::<u32>()));
        let path = parent.join(hidden);
        fs::create_dir(&path).map_err(|error| trouble("make", &path, &error))?;
        Ok(Self { part: Part(path), goal: goal.to_owned(), files: Vec::new(), open: None, bytes: 0 })
    }

    fn take(&mut self, chunk: &FileChunk) -> Result<(), Report> {
        let strange = |why: &str| {
            let path: String = chunk.path.chars().filter(|c| !c.is_control()).take(120).collect();
            Report::new(ErrorCode::Internal, "the daemon sent evidence that cannot be used")
                .with("path", path)
                .with("reason", why)
        };
        self.bytes = self.bytes.saturating_add(chunk.bytes.len() as u64);
        if self.bytes > BYTES_MAX || self.files.len() >= FILES_MAX {
            return Err(strange("it is more than a bundle may hold"));
        }
        let (path, mut file) = match self.open.take() {
            Some((path, file)) if path == chunk.path => (path, file),
            Some(_) => return Err(strange("a file began before the one in front of it ended")),
            None => {
                let inside = below(&self.part.0, &chunk.path)
                    .ok_or_else(|| strange("the path is not relative, or leads elsewhere"))?;
                let failed = |error: std::io::Error| match error.kind() {
                    std::io::ErrorKind::AlreadyExists => strange("the file came twice"),
                    _ => trouble("write", &self.goal.join(&chunk.path), &error),
                };
                if let Some(parent) = inside.parent() {
                    fs::create_dir_all(parent).map_err(failed)?;
                }
                (chunk.path.clone(), OpenOptions::new().write(true).create_new(true).open(&inside).map_err(failed)?)
            }
        };
        file.write_all(&chunk.bytes).map_err(|error| trouble("write", &self.goal.join(&path), &error))?;
        if chunk.last {
            self.files.push(path);
        } else {
            self.open = Some((path, file));
        }
        Ok(())
    }

    fn finish(self) -> Result<Bundle, Report> {
        if let Some((path, _)) = &self.open {
            return Err(ended_early(&self, &format!("the end of {path} did not come")));
        }
        Ok(Bundle { part: self.part, goal: self.goal, files: self.files })
    }
}

/// `path` below `root`, where it is relative and stays below.
fn below(root: &Path, path: &str) -> Option<PathBuf> {
    let plain = !path.is_empty() && path.len() <= PATH_MAX && !path.contains(['\0', '\\']) && !path.ends_with('/');
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    let inside = parts.len() <= DEPTH_MAX && parts.iter().all(|part| matches!(part, Component::Normal(_)));
    (plain && inside && !path.starts_with("./")).then(|| root.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(path: &str, bytes: &str, last: bool) -> FileChunk {
        FileChunk { path: path.into(), bytes: bytes.into(), last }
    }

    fn entries(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn pieces_become_files_and_the_directory_appears_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let goal = dir.path().join("a/job");
        let mut writer = Writer::new(&goal).unwrap();
        for piece in [chunk("job.json", "{", false), chunk("job.json", "}", true), chunk("cases/0001/x.log", "", true)]
        {
            writer.take(&piece).unwrap();
            assert!(!goal.exists());
        }
        let bundle = writer.finish().unwrap();
        bundle.add("results.json", "{}").unwrap();
        assert_eq!(bundle.keep().unwrap(), 2);
        assert_eq!(fs::read_to_string(goal.join("job.json")).unwrap(), "{}");
        assert_eq!(fs::read_to_string(goal.join("cases/0001/x.log")).unwrap(), "");
        assert_eq!(entries(&dir.path().join("a")), ["job"], "nothing else is left");
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused_and_nothing_is_left() {
        for path in
            ["../x", "/etc/x", "a/../../x", "", ".", "./x", "a/", "a\0b", "a\\b", &"d/".repeat(20), &"x".repeat(600)]
        {
            let dir = tempfile::tempdir().unwrap();
            let goal = dir.path().join("job");
            let mut writer = Writer::new(&goal).unwrap();
            let report = writer.take(&chunk(path, "x", true)).unwrap_err();
            assert!(matches!(report.code, ErrorCode::Internal | ErrorCode::ResultsWrite), "{path}: {report:?}");
            drop(writer);
            assert!(entries(dir.path()).is_empty(), "{path}");
        }
    }

    #[test]
    fn files_come_once_and_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(&dir.path().join("job")).unwrap();
        writer.take(&chunk("a", "1", true)).unwrap();
        assert!(writer.take(&chunk("a", "2", true)).is_err(), "nothing is overwritten");
        let mut writer = Writer::new(&dir.path().join("job")).unwrap();
        writer.take(&chunk("a", "1", false)).unwrap();
        assert!(writer.take(&chunk("b", "2", true)).is_err());
    }

    #[test]
    fn a_stream_that_ends_inside_a_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(&dir.path().join("job")).unwrap();
        writer.take(&chunk("a", "1", true)).unwrap();
        writer.take(&chunk("b", "1", false)).unwrap();
        let report = writer.finish().unwrap_err();
        assert!(report.title.contains("before it was whole"), "{report}");
        assert!(entries(dir.path()).is_empty());
    }

    #[test]
    fn what_is_there_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        check_goal(&dir.path().join("new")).unwrap();
        check_goal(dir.path()).unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        assert_eq!(check_goal(dir.path()).unwrap_err().code, ErrorCode::ResultsWrite);
        assert_eq!(check_goal(&dir.path().join("x")).unwrap_err().code, ErrorCode::ResultsWrite, "a file");
    }
}
