//! `vtctl image build`: the built-in guest and others by recipe, each a real Linux made from the distribution's own
//! packages.
//!
//! Kernel, busybox, an ssh server, the guest agent and the probe become a kernel with an initrd, and a disk beside them
//! for the disk writer. Nothing is installed or mounted, and root is not needed. The same packages and the same probe
//! give the same bytes, so the digest tells whether two hosts run the same guest.
//!
//! Everything happens in a work folder inside the cache and is put in place by one rename; what a killed build leaves
//! there is removed by the next one. What may not happen here: printing, or parsing of arguments.

mod cpio;
mod elf;
mod error;
mod packages;
mod program;
mod qcow2;
mod recipe;
mod rootfs;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
pub use vt_protocol::image::BUILTIN;
use vt_protocol::{
    catalogue::ImageFormat,
    image::{ImageFile, ImageRecord, RECORD_FILE, RECORD_SCHEMA, SSH_KEY_FILE},
    probe::DISK_MAGIC,
};

pub use self::{elf::ElfError, error::ImageError, recipe::Recipe};
use self::{packages::Package, program::run, rootfs::Unpacked};

/// Size of its disk as the guest sees it, bytes.
const DISK_BYTES: u64 = 512 << 20;
/// Where the guest's consoles are, and what shortens the boot of an emulated guest. A panic restarts the guest, which
/// the probes tell, rather than leaving it hanging.
const CMDLINE: &str = "console=ttyS0 quiet panic=1 mitigations=off nokaslr random.trust_cpu=on no_timer_check";
/// Packages of the guest's programs, and of the libraries of the probe. What libraries they need is found.
const PACKAGES: [&str; 5] = ["busybox-static", "dropbear-bin", "qemu-guest-agent", "libc6", "libgcc-s1"];
/// The package that names the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
const ARCHITECTURE: &str = "amd64";
const STEPS: usize = 5;
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(30);
const LEFTOVER_PAUSE: Duration = Duration::from_millis(50);

/// What to build and where.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Name of the image; [`BUILTIN`] for the one that scenarios use by default.
    pub name: String,
    /// The folder of images; made if it is not there.
    pub images: PathBuf,
    /// The probe program; [`probe_beside`] finds the one that came with this program.
    pub probe: PathBuf,
    /// What it has beside what every image has.
    pub recipe: Recipe,
}

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part of the work begins.
    Step {
        /// What it does, such as "fetching packages".
        title: &'static str,
        /// Which, from 1.
        index: usize,
        /// Of how many.
        count: usize,
    },
    /// Packages that the cache does not have are being downloaded.
    Download {
        /// How many.
        count: usize,
        /// How large they are together, bytes.
        bytes: u64,
    },
    /// The file of a package is there.
    Package {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// Which, from 1.
        index: usize,
        /// Of how many.
        count: usize,
    },
}

/// An image that was built.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// Its folder.
    pub folder: PathBuf,
    /// Its record, as written there.
    pub record: ImageRecord,
    /// Another image of this name was there before, with this digest.
    pub replaced: Option<String>,
}

/// Where images are when nobody says otherwise: `/var/lib/vtmesh/images` for root, below the home folder for others.
pub fn default_folder() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some("/var/lib/vtmesh/images".into());
    }
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("vtmesh/images"))
}

/// The probe that lies beside the running program, or in its library folder when it is installed.
pub fn probe_beside() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let folder = own.parent()?;
    let places = [folder.join("vt-probe"), folder.join("../lib/vtmesh/vt-probe")];
    places.into_iter().find(|path| path.is_file())
}

/// The image that is there, where it is whole and a build by this program from the packages it names would give the
/// same. Whether newer packages exist is not asked.
pub fn current(options: &BuildOptions) -> Option<BuiltImage> {
    let folder = options.images.join(&options.name);
    let record = ImageRecord::parse(&fs::read(folder.join(RECORD_FILE)).ok()?).ok()?;
    let probe = elf::stripped(&fs::read(&options.probe).ok()?).ok()?;
    let whole = record.files().all(|file| fs::read(folder.join(&file.name)).is_ok_and(|bytes| file.check(&bytes)));
    let same =
        record.recipe_blake3 == recipe_digest(&probe, &options.recipe) && record.digest == record.content_digest();
    (whole && same && folder.join(SSH_KEY_FILE).is_file()).then_some(BuiltImage { folder, record, replaced: None })
}

/// The digest of everything of ours in an image, and of what its recipe asks for.
fn recipe_digest(probe: &[u8], recipe: &Recipe) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("vtmesh image recipe v1");
    let mut add = |part: &[u8]| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    };
    add(probe);
    add(CMDLINE.as_bytes());
    add(&DISK_BYTES.to_le_bytes());
    rootfs::own_parts().for_each(&mut add);
    recipe.parts().for_each(add);
    hasher.finalize().to_hex().to_string()
}

/// Builds the image, or leaves everything as it was. Waits while another build into the same folder runs.
pub fn build(options: &BuildOptions, progress: &mut dyn FnMut(Event)) -> Result<BuiltImage, ImageError> {
    check_name(&options.name)?;
    let cache = options.images.join(".cache");
    fs::create_dir_all(&cache).map_err(ImageError::io(&cache))?;
    let _lock = lock(&cache.join("lock"))?;
    remove_leftovers(&cache)?;
    let work = tempfile_in(&cache)?;
    let built = build_in(&work.0, &cache, options, progress)?;
    work.remove()?;
    Ok(built)
}

fn check_name(name: &str) -> Result<(), ImageError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && name.len() <= 63 && name.chars().all(fits) { Ok(()) } else { Err(ImageError::Name(name.into())) }
}

fn lock(path: &Path) -> Result<Flock<File>, ImageError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(ImageError::io(path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| ImageError::io(path)(errno.into()))
}

/// Under the lock, every work folder is one whose build was killed.
fn remove_leftovers(cache: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(cache).map_err(ImageError::io(cache))? {
        let path = entry.map_err(ImageError::io(cache))?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("build-")) {
            remove_leftover(&path)?;
        }
    }
    Ok(())
}

/// A program that the killed build had started may still write there for a moment.
fn remove_leftover(path: &Path) -> Result<(), ImageError> {
    let deadline = Instant::now() + LEFTOVER_TIMEOUT;
    loop {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && Instant::now() < deadline => {
                std::thread::sleep(LEFTOVER_PAUSE);
            }
            result => return result.map_err(ImageError::io(path)),
        }
    }
}

/// A work folder that goes away with the build.
struct Work(PathBuf);

fn tempfile_in(cache: &Path) -> Result<Work, ImageError> {
    let path = cache.join(format!("build-{}", std::process::id()));
    fs::create_dir(&path).map_err(ImageError::io(&path))?;
    Ok(Work(path))
}

impl Work {
    fn remove(self) -> Result<(), ImageError> {
        fs::remove_dir_all(&self.0).map_err(ImageError::io(&self.0))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // After an error; the next build would remove it, too.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn build_in(
    work: &Path,
    cache: &Path,
    options: &BuildOptions,
    progress: &mut dyn FnMut(Event),
) -> Result<BuiltImage, ImageError> {
    let step = |title, index, progress: &mut dyn FnMut(Event)| progress(Event::Step { title, index, count: STEPS });
    let architecture = packages::architecture(work)?;
    if architecture != ARCHITECTURE {
        return Err(ImageError::Architecture(architecture));
    }
    let probe = fs::read(&options.probe).map_err(ImageError::io(&options.probe))?;
    let stripped = elf::stripped(&probe).map_err(|source| ImageError::Elf { path: options.probe.clone(), source })?;

    step("fetching packages", 1, progress);
    let kernel_name = packages::behind(options.recipe.kernel.as_deref().unwrap_or(KERNEL), cache)?;
    let wanted: Vec<&str> = PACKAGES.into_iter().chain(options.recipe.packages.iter().map(String::as_str)).collect();
    let fetched = packages::fetch(&wanted, &kernel_name, cache, work, progress)?;

    step("unpacking", 2, progress);
    let (kernel, programs) = unpack(&fetched, &kernel_name, work)?;

    step("making the initrd", 3, progress);
    let initrd = rootfs::assemble(&programs, &kernel, &probe, &options.recipe)?.archive();
    let kernel_path = find_kernel(&kernel, &kernel_name)?;
    let kernel_bytes = fs::read(&kernel_path).map_err(ImageError::io(&kernel_path))?;

    step("making the key", 4, progress);
    let ready = work.join("image");
    fs::create_dir(&ready).map_err(ImageError::io(&ready))?;
    let place = options.images.join(&options.name);
    let ssh_public_key = put_key(&place, &ready, &programs, work)?;

    step("writing the image", 5, progress);
    let mut record = ImageRecord {
        schema: RECORD_SCHEMA.into(),
        name: options.name.clone(),
        digest: String::new(),
        kernel: Some(put_file(&ready, "kernel", &kernel_bytes)?),
        initrd: Some(put_file(&ready, "initrd", &initrd)?),
        disk: put_file(&ready, "disk.qcow2", &qcow2::disk(DISK_BYTES, &disk_head(&options.name)))?,
        format: ImageFormat::Qcow2,
        cmdline: CMDLINE.into(),
        ssh_public_key: Some(ssh_public_key),
        recipe_blake3: recipe_digest(&stripped, &options.recipe),
        packages: fetched.into_iter().map(|package| package.identity).collect(),
    };
    record.digest = record.content_digest();
    let mut json = serde_json::to_vec_pretty(&record).map_err(|error| ImageError::io(&ready)(error.into()))?;
    json.push(b'\n');
    put_file(&ready, RECORD_FILE, &json)?;
    let replaced = put_in_place(&ready, &place)?;
    Ok(BuiltImage { folder: place, record, replaced })
}

fn unpack(packages: &[Package], kernel_name: &str, work: &Path) -> Result<(Unpacked, Unpacked), ImageError> {
    let (kernel, programs) = (work.join("kernel"), work.join("programs"));
    for folder in [&kernel, &programs] {
        fs::create_dir(folder).map_err(ImageError::io(folder))?;
    }
    for package in packages {
        packages::unpack(package, if package.identity.name == kernel_name { &kernel } else { &programs })?;
    }
    Ok((Unpacked::new(&kernel)?, Unpacked::new(&programs)?))
}

fn find_kernel(kernel: &Unpacked, package: &str) -> Result<PathBuf, ImageError> {
    let release = package.strip_prefix("linux-image-").unwrap_or(package);
    let path = format!("boot/vmlinuz-{release}");
    kernel.find([path.as_str()]).ok_or(ImageError::Missing(path))
}

/// First block of the disk: says whose it is, to the disk writer and to people.
fn disk_head(name: &str) -> Vec<u8> {
    let mut head = DISK_MAGIC.to_vec();
    head.extend_from_slice(
        format!("Disk of the vtmesh image {name}. Records of the probe begin at 1 MiB.\n").as_bytes(),
    );
    head
}

/// Keeps the key of the image that is there, so that guests already running can still be reached; else makes one.
fn put_key(place: &Path, ready: &Path, programs: &Unpacked, work: &Path) -> Result<String, ImageError> {
    let (private, public) = (ready.join(SSH_KEY_FILE), ready.join(format!("{SSH_KEY_FILE}.pub")));
    let before = (place.join(SSH_KEY_FILE), place.join(format!("{SSH_KEY_FILE}.pub")));
    let (secret, line) = match (fs::read(&before.0), fs::read_to_string(&before.1)) {
        (Ok(secret), Ok(line)) if middle_word(&line).is_some() => (secret, line),
        _ => make_key(programs, work)?,
    };
    let key = middle_word(&line).ok_or_else(|| ImageError::Missing("an ed25519 key from dropbearkey".into()))?;
    write_new(&private, &secret, 0o600)?;
    write_new(&public, format!("ssh-ed25519 {key} vtmesh\n").as_bytes(), 0o644)?;
    Ok(key)
}

fn middle_word(line: &str) -> Option<String> {
    let key = line.strip_prefix("ssh-ed25519 ")?.split_whitespace().next()?;
    let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    key.chars().all(base64).then(|| key.to_owned())
}

fn make_key(programs: &Unpacked, work: &Path) -> Result<(Vec<u8>, String), ImageError> {
    let own = work.join("dropbear-key").display().to_string();
    let openssh = work.join("openssh-key");
    let (linker, mut arguments) = programs.command(&["usr/bin/dropbearkey"])?;
    arguments.extend(["-t", "ed25519", "-f", &own].map(String::from));
    let said = run(&linker, &arguments, "making an ssh key", work)?;
    let (linker, mut arguments) = programs.command(&["usr/bin/dropbearconvert", "usr/lib/dropbear/dropbearconvert"])?;
    arguments.extend(["dropbear", "openssh", &own].map(String::from));
    arguments.push(openssh.display().to_string());
    run(&linker, &arguments, "writing the ssh key", work)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let line = said.lines().find(|line| line.starts_with("ssh-ed25519 ")).unwrap_or_default().to_owned();
    Ok((fs::read(&openssh).map_err(ImageError::io(&openssh))?, line))
}

fn put_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<ImageFile, ImageError> {
    write_new(&folder.join(name), bytes, 0o644)?;
    Ok(ImageFile { name: name.into(), bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() })
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), ImageError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(ImageError::io(path))?;
    file.write_all(bytes).map_err(ImageError::io(path))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(ImageError::io(path))?;
    file.sync_all().map_err(ImageError::io(path))
}

/// One rename: whoever looks sees the old image or the new one. Returns the digest of the old one.
fn put_in_place(ready: &Path, place: &Path) -> Result<Option<String>, ImageError> {
    let before = fs::read(place.join(RECORD_FILE)).ok().and_then(|json| ImageRecord::parse(&json).ok());
    let flags = if place.exists() { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
    renameat2(AT_FDCWD, ready, AT_FDCWD, place, flags).map_err(|errno| ImageError::io(place)(errno.into()))?;
    // What was exchanged lies in the work folder now and goes with it.
    if let Some(parent) = place.parent() {
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(ImageError::io(parent))?;
    }
    Ok(before.map(|record| record.digest))
}
