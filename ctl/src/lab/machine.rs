//! The Debian that VMs which are hosts start from, made once from the distribution's packages.
//!
//! What the Ansible roles would install is in it, because nothing can be fetched from inside, and because installing takes
//! long where everything is emulated; so is the built-in guest, in the hosts' folder of images. Made in a folder beside its
//! place and put there by a rename; whoever starts VMs from it links its files first, so that a newer one hurts nobody.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    image::{BUILTIN, ImageRecord, RECORD_FILE},
};

use super::{daemon::last_lines, network, record::trouble};

/// What is in it beside what debootstrap's `minbase` has: a system, what the roles install, and what a guest is made of.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "openssh-server",
    "openssh-client",
    "python3",
    "python3-apt",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "kmod",
    "iproute2",
    "nftables",
    "qemu-system-x86",
    "qemu-utils",
    "busybox-static",
    "chrony",
    "nfs-common",
    "ca-certificates",
];
/// Files of ours: where, what, and their permissions. A machine that is emulated on a busy box stands still for longer than
/// systemd would wait for a real one.
const FILES: &[(&str, &str, u32)] = &[
    ("etc/systemd/system/vtmesh-address.service", include_str!("machine/address.service"), 0o644),
    ("usr/local/sbin/vtmesh-address", include_str!("machine/address.sh"), 0o755),
    ("etc/systemd/system.conf.d/slow.conf", "[Manager]\nDefaultTimeoutStartSec=900\n", 0o644),
    ("etc/systemd/system/vtd.service.d/slow.conf", "[Service]\nWatchdogSec=300\n", 0o644),
];
/// Size of its disk; what is not written takes no room.
const DISK: &str = "4G";
/// Its release, where this machine has none of Debian's.
const RELEASE: &str = "bookworm";
const RECORD: &str = "machine.json";

/// A machine in its folder.
#[derive(Debug, Clone)]
pub struct Machine {
    folder: PathBuf,
}

/// What it was made of.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    schema: String,
    recipe_blake3: String,
    release: String,
    packages: Vec<String>,
}

impl Machine {
    /// The one in a folder, whether it is there or not.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Its disk, a raw ext4.
    pub(super) fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    /// Its kernel.
    pub(super) fn kernel(&self) -> PathBuf {
        self.folder.join("kernel")
    }

    /// Its initrd.
    pub(super) fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// The key that logs in as root.
    pub(super) fn key(&self) -> PathBuf {
        self.folder.join("key")
    }

    /// The same files in another folder, for somebody whose VMs need them for as long as they live.
    pub(super) fn link_to(&self, folder: &Path) -> Result<Self, Report> {
        fs::create_dir_all(folder).map_err(|e| trouble("make", folder, &e))?;
        let linked = Self::at(folder.to_owned());
        for (from, to) in [
            (self.disk(), linked.disk()),
            (self.kernel(), linked.kernel()),
            (self.initrd(), linked.initrd()),
            (self.key(), linked.key()),
        ] {
            // Another file system has no links to it.
            fs::hard_link(&from, &to)
                .or_else(|_| fs::copy(&from, &to).map(drop))
                .map_err(|e| trouble("make", &to, &e))?;
        }
        Ok(linked)
    }

    /// Makes it, where it is not there as this program makes it, with the built-in guest of the folder `images`. Whether it
    /// was made.
    ///
    /// # Errors
    /// Not root, a program or the guest is missing, or the packages cannot be had.
    pub fn make(&self, images: &Path, say: &mut (dyn FnMut(String) + Send)) -> Result<bool, Report> {
        let guest = images.join(BUILTIN);
        let recipe = recipe(&guest)?;
        check()?;
        // Whoever waited for another one that makes it finds it made.
        let _lock = self.lock()?;
        if self.recipe().is_some_and(|made| made == recipe) {
            return Ok(false);
        }
        let new = self.folder.with_extension("new");
        remove(&new)?;
        say(format!("machine    a Debian for hosts is made of {} packages and what they need", PACKAGES.len()));
        let made = make_in(&new, &guest, recipe).and_then(|()| {
            remove(&self.folder)?;
            fs::rename(&new, &self.folder).map_err(|e| trouble("make", &self.folder, &e))
        });
        match made {
            Ok(()) => Ok(true),
            Err(report) => remove(&new).and(Err(report)),
        }
    }

    fn recipe(&self) -> Option<String> {
        let record: Record = serde_json::from_slice(&fs::read(self.folder.join(RECORD)).ok()?).ok()?;
        Some(record.recipe_blake3)
    }

    fn lock(&self) -> Result<Flock<fs::File>, Report> {
        let path = self.folder.with_extension("lock");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| trouble("make", parent, &e))?;
        }
        let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| trouble("open", &path, &e))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| trouble("lock", &path, &errno.into()))
    }
}

/// The digest of everything of ours in it.
fn recipe(guest: &Path) -> Result<String, Report> {
    let missing = || {
        Report::new(ErrorCode::ImageMissing, "the guest that goes into the hosts is not built")
            .with("looked for", guest.display().to_string())
            .help("vtctl image build")
    };
    let record = fs::read(guest.join(RECORD_FILE)).map_err(|_| missing())?;
    let record = ImageRecord::parse(&record).map_err(|_| missing())?;
    let mut hasher = blake3::Hasher::new_derive_key("vtmesh machine recipe v1");
    let mut add = |part: &str| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    add(&release());
    add(DISK);
    add(&record.digest);
    PACKAGES.iter().for_each(|package| add(package));
    FILES.iter().for_each(|(path, text, _)| [path, text].into_iter().for_each(|part| add(part)));
    Ok(hasher.finalize().to_hex().to_string())
}

/// The release of this machine: programs that were built here want its libraries.
fn release() -> String {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| os.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let codename = (field("ID") == Some("debian")).then(|| field("VERSION_CODENAME")).flatten();
    codename.unwrap_or(RELEASE).to_owned()
}

/// Where this machine has that release from.
fn mirror(release: &str) -> String {
    let words = ["indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"];
    let listed = network::output("apt-get", &words).unwrap_or_default();
    let found = listed.lines().find_map(|line| line.strip_suffix(release)?.strip_suffix(' '));
    found.unwrap_or("http://deb.debian.org/debian").to_owned()
}

fn check() -> Result<(), Report> {
    network::check_machine()?;
    let refuse = |title: &str| Report::new(ErrorCode::LabPrecondition, title);
    for program in ["debootstrap", "mke2fs", "ssh-keygen", "chroot"] {
        if network::find_in_path(program).is_none() {
            return Err(refuse("a program is not there that a machine for hosts is made with")
                .with("program", program)
                .help("apt-get install debootstrap e2fsprogs openssh-client"));
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), Report> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(trouble("remove", folder, &error)),
        _ => Ok(()),
    }
}

fn make_in(folder: &Path, guest: &Path, recipe: String) -> Result<(), Report> {
    let (root, made) = (folder.join("root"), Machine::at(folder.to_owned()));
    fs::create_dir_all(&root).map_err(|e| trouble("make", &root, &e))?;
    let release = release();
    install(&root, &release, &folder.join("debootstrap.log"))?;
    let listed = chroot(&root, &["dpkg-query", "-W", "-f", "${Package} ${Version}\n"])?;

    let key = made.key().display().to_string();
    network::output("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "vtmesh", "-f", &key])?;
    let public = fs::read_to_string(format!("{key}.pub")).map_err(|e| trouble("read", &made.key(), &e))?;
    put(&root, "root/.ssh/authorized_keys", &public, 0o600)?;
    for (path, text, mode) in FILES {
        put(&root, path, text, *mode)?;
    }
    chroot(&root, &["systemctl", "--quiet", "enable", "vtmesh-address.service"])?;
    // The name comes with the kernel's command line.
    let _ = fs::remove_file(root.join("etc/hostname"));
    copy_folder(guest, &root.join("var/lib/vtmesh/images").join(BUILTIN))?;

    move_out(&root.join("boot"), "vmlinuz-", &made.kernel())?;
    move_out(&root.join("boot"), "initrd.img-", &made.initrd())?;
    let (disk, from) = (made.disk().display().to_string(), root.display().to_string());
    network::output("mke2fs", &["-q", "-t", "ext4", "-d", &from, &disk, DISK])?;
    remove(&root)?;
    let packages = listed.lines().map(str::to_owned).collect();
    let record = Record { schema: "vtmesh/v1/machine".into(), recipe_blake3: recipe, release, packages };
    let text = serde_json::to_string_pretty(&record).expect("a record has string keys only");
    put(folder, RECORD, &text, 0o644)
}

fn install(root: &Path, release: &str, log: &Path) -> Result<(), Report> {
    let file = fs::File::create(log).map_err(|e| trouble("make", log, &e))?;
    let errors = file.try_clone().map_err(|e| trouble("make", log, &e))?;
    let status = Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={}", PACKAGES.join(",")), release])
        .arg(root)
        .arg(mirror(release))
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .status();
    let failed =
        || Report::new(ErrorCode::LabPrecondition, "debootstrap could not make a Debian").with("release", release);
    match status {
        Ok(status) if status.success() => {}
        Ok(_) => return Err(failed().with("its log", last_lines(log))),
        Err(error) => return Err(failed().caused_by(&error)),
    }
    // What was downloaded is not needed twice.
    let packages = root.join("var/cache/apt/archives");
    for entry in fs::read_dir(&packages).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|ending| ending == "deb") {
            fs::remove_file(entry.path()).map_err(|e| trouble("remove", &entry.path(), &e))?;
        }
    }
    Ok(())
}

fn chroot(root: &Path, words: &[&str]) -> Result<String, Report> {
    let root = root.display().to_string();
    network::output("chroot", &[&[root.as_str()], words].concat())
}

fn put(root: &Path, path: &str, text: &str, mode: u32) -> Result<(), Report> {
    let path = root.join(path);
    let parent = path.parent().unwrap_or(root);
    fs::create_dir_all(parent).map_err(|e| trouble("make", parent, &e))?;
    let written = fs::write(&path, text).and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)));
    written.map_err(|e| trouble("write", &path, &e))
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), Report> {
    fs::create_dir_all(to).map_err(|e| trouble("make", to, &e))?;
    for entry in fs::read_dir(from).map_err(|e| trouble("read", from, &e))? {
        let path = entry.map_err(|e| trouble("read", from, &e))?.path();
        let name = path.file_name().unwrap_or_default();
        fs::copy(&path, to.join(name)).map_err(|e| trouble("copy", &path, &e))?;
    }
    Ok(())
}

/// Moves the file whose name begins so out of a folder.
fn move_out(folder: &Path, begins: &str, to: &Path) -> Result<(), Report> {
    let entries = fs::read_dir(folder).map_err(|e| trouble("read", folder, &e))?;
    let found = entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(begins));
    let Some(found) = found else {
        return Err(Report::new(ErrorCode::LabPrecondition, format!("the Debian that was made has no {begins}…")));
    };
    fs::rename(found.path(), to).map_err(|e| trouble("move", &found.path(), &e))
}
