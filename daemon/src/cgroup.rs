//! Control groups (v2) of what must outlive the daemon: each QEMU and each guard sits in one of its own, so that it is
//! not ended with the daemon's service, and so that everything in it can be found again and ended at once.
//!
//! A machine may have no v2 hierarchy that we can write to. Then [`Cgroups::detect`] says why, processes are found by
//! their record and by `/proc` alone, and nothing else changes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The folder of our groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    root: PathBuf,
}

/// One group. It may or may not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

/// Why there are no groups.
#[derive(Debug, thiserror::Error)]
pub enum NoCgroups {
    /// No cgroup2 file system is mounted.
    #[error("no cgroup2 file system is mounted")]
    NotMounted,
    /// It is, but not for us.
    #[error("cannot make groups below {path}")]
    NotWritable {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl Cgroups {
    /// Finds the mounted v2 hierarchy and makes `folder` at its root; below our own group where the root is not ours to
    /// write. Daemons that share a machine have different folders, or each would take the other's groups for its own.
    pub fn detect(folder: &Path) -> Result<Self, NoCgroups> {
        let root = first_of(folder, |root| fs::create_dir_all(root))?;
        Ok(Self { root })
    }

    /// Where [`Cgroups::detect`] would find or make `folder`. Makes nothing.
    pub fn place(folder: &Path) -> Result<PathBuf, NoCgroups> {
        let writable = |path: &Path| Ok(nix::unistd::access(path, nix::unistd::AccessFlags::W_OK)?);
        // What is not there is made below its nearest parent that is.
        first_of(folder, |root| writable(root.ancestors().find(|path| path.exists()).unwrap_or(root)))
    }

    /// Groups below a folder of the hierarchy that the caller chose.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Makes the group `name`, which holds no `/`; an existing one is taken over.
    pub fn create(&self, name: &str) -> io::Result<Cgroup> {
        let cgroup = self.get(name);
        fs::create_dir_all(&self.root)?;
        fs::create_dir(&cgroup.path).or_else(exists)?;
        Ok(cgroup)
    }

    /// The group `name`, whether or not it exists.
    pub fn get(&self, name: &str) -> Cgroup {
        Cgroup { path: self.root.join(name.replace('/', "_")) }
    }

    /// Names of all groups there are, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut names: Vec<String> = folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

impl Cgroup {
    /// The group at `path`, as a record has it.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The group a process is in, by the first mounted v2 hierarchy.
    pub fn of_process(pid: u32) -> Option<Self> {
        let mount = mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(Self { path: mount.join(group) })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// The processes in it.
    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    /// Moves the calling process into it.
    pub fn enter(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), "0")
    }

    /// Kills what is in it and removes it, waiting at most `patience` for the kernel to let go. One that does not exist
    /// is removed already.
    pub fn remove(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match fs::remove_dir(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
            // Kernels before 5.14 lack the file; the caller has killed the processes it knows of.
            let _ = fs::write(self.path.join("cgroup.kill"), "1");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The first place for `folder` that `take` does not fail on.
fn first_of(folder: &Path, take: impl Fn(&Path) -> io::Result<()>) -> Result<PathBuf, NoCgroups> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|_| NoCgroups::NotMounted)?;
    let mount = mount_point(&mounts).ok_or(NoCgroups::NotMounted)?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    let mut refused = None;
    for parent in [mount.clone(), mount.join(own)] {
        let root = parent.join(folder);
        match take(&root) {
            Ok(()) => return Ok(root),
            Err(source) => refused = refused.or(Some(NoCgroups::NotWritable { path: parent, source })),
        }
    }
    Err(refused.unwrap_or(NoCgroups::NotMounted))
}

fn exists(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

/// The mount point of the first cgroup2 in a `mountinfo`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_in_pure_and_hybrid_set_ups() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu rw shared:3 - cgroup cgroup rw,cpu\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 c rw"), Some("/sys/fs/cgroup".into()));
        assert_eq!(mount_point("rubbish\n"), None);
    }

    #[test]
    fn an_absent_group_is_empty_and_removed_already() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroups::at(dir.path().join("g")).get("a/b");
        assert!(group.path().ends_with("g/a_b") && !group.exists() && group.processes().is_empty());
        group.remove(Duration::ZERO).unwrap();
    }
}
