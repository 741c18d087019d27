//! Taking a disk, or the folder of an image that was built, into a pool: looked at, copied without its zeros, checked, and
//! given its name. What is refused has left nothing.
//!
//! Only a file that stands alone is taken, or one upon an image of the same pool. A name of another file in it is never
//! followed: whoever made the disk would choose which file of this host is read.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use nix::sys::statvfs::statvfs;
use vt_protocol::{
    catalogue::{ImageFormat, ImportImage},
    error::{ErrorCode, Report},
    ids::{Digest, Name},
    image::{ImageFile, ImageRecord, RECORD_FILE, RECORD_SCHEMA, SSH_KEY_FILE},
    manifest::{self, FILE_BYTES_MAX, FileBlocks, Manifest},
};
use vt_sync::{State, state::ImageContent};

use super::{
    blocks,
    header::{self, HeaderError},
    inspect,
    store::{self, Store, trouble},
    sum::Sum,
};

/// An image that is whole and has not got its name yet. Dropped before that, nothing is left of it.
#[derive(Debug)]
pub(crate) struct Taken {
    folder: Option<Part>,
    /// What it is.
    pub(crate) content: ImageContent,
    /// What a user should know of it.
    pub(crate) notes: Vec<String>,
}

impl Taken {
    /// Gives it its name in the pool.
    pub(crate) fn place(mut self, store: &Store, image: &Name) -> Result<(), Report> {
        match self.folder.take() {
            Some(part) => store
                .put_in_place(&part.0, image)
                .map_err(|error| trouble("it cannot be put in place", &part.0, &error)),
            None => Ok(()),
        }
    }

    /// Whether it was taken where it lies.
    pub(crate) fn in_place(&self) -> bool {
        self.folder.is_none()
    }
}

/// A folder that is removed with this value.
#[derive(Debug)]
pub(super) struct Part(pub(super) PathBuf);

impl Part {
    pub(super) fn fresh(store: &Store, image: &Name) -> Result<Self, Report> {
        let made = store.fresh(image);
        made.map(Self).map_err(|error| trouble("the pool cannot be written", &store.path, &error))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Takes what `import` names. `done` counts its bytes.
///
/// # Errors
/// It is not taken, for one reason; nothing is left then.
pub(crate) async fn take(
    store: &Store,
    state: &State,
    import: &ImportImage,
    done: &Arc<AtomicU64>,
) -> Result<Taken, Report> {
    let refused = |report: Report| {
        let file = import.path.display().to_string();
        let title = format!("{file} is not taken as image {}: {}", import.name, report.title);
        Report { title, ..report }.with("file", file)
    };
    let path = super::blocking({
        let path = import.path.clone();
        move || fs::canonicalize(path)
    })
    .await
    .map_err(|error| refused(Report::new(ErrorCode::ImageRefused, "it cannot be read").caused_by(&error)))?;
    let taken = if path.is_dir() {
        take_folder(store, import, &path, done).await
    } else {
        take_disk(store, state, import, &path, done).await
    };
    taken.map_err(refused)
}

/// How many bytes an import will read, for who watches it.
pub(crate) fn total(path: &Path) -> u64 {
    let length = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    if path.is_dir() {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| length(&entry.path())).sum()
    } else {
        length(path)
    }
}

/// Takes a disk.
///
/// # Errors
/// As of [`take`], without the file in the title.
pub(super) async fn take_disk(
    store: &Store,
    state: &State,
    import: &ImportImage,
    path: &Path,
    done: &Arc<AtomicU64>,
) -> Result<Taken, Report> {
    let beginning = look(path)?;
    let header = header::read(&beginning, import.format).map_err(of_header)?;
    let backing = match &header.backing {
        Some(written) => Some(image_below(store, state, path, written)?),
        None => None,
    };
    let sum = import.sum.clone().map(Sum::new).transpose()?;
    let part = Part::fresh(store, &import.name)?;
    let file_name = format!("disk.{}", header.format.name());
    let disk = part.0.join(&file_name);
    let (mut blocks, mut whole) = super::blocking({
        let (path, disk, done) = (path.to_owned(), disk.clone(), Arc::clone(done));
        move || copy_disk(&path, &disk, &done, sum)
    })
    .await?;
    if let Some((_, below)) = &backing {
        inspect::rebase(&disk, &format!("../{}/{}", below.name, below.disk.name), below.format).await?;
        (blocks, whole) = super::blocking({
            let disk = disk.clone();
            move || read_again(&disk)
        })
        .await?;
    }
    let record =
        plain_record(&import.name, header.format, ImageFile { name: file_name, bytes: blocks.length, blake3: whole });
    settle(part, record, vec![blocks], backing.map(|(name, _)| name)).await
}

/// The record of an image that is a disk and nothing else.
pub(super) fn plain_record(name: &Name, format: ImageFormat, disk: ImageFile) -> ImageRecord {
    ImageRecord {
        schema: RECORD_SCHEMA.to_owned(),
        name: name.to_string(),
        digest: String::new(),
        kernel: None,
        initrd: None,
        disk,
        format,
        cmdline: String::new(),
        ssh_public_key: None,
        recipe_blake3: String::new(),
        packages: Vec::new(),
    }
}

/// Looks into the disk that lies in a folder, and describes it and the files beside it.
///
/// # Errors
/// The disk cannot be read or is corrupt.
pub(super) async fn settle(
    part: Part,
    mut record: ImageRecord,
    mut files: Vec<FileBlocks>,
    backing: Option<Name>,
) -> Result<Taken, Report> {
    let disk = part.0.join(&record.disk.name);
    let virtual_bytes = inspect::virtual_bytes(&disk, record.format).await?;
    let mut notes = Vec::new();
    if record.format == ImageFormat::Qcow2 {
        notes.extend(inspect::check(&disk).await?);
    }
    record.digest = record.content_digest();
    let content = super::blocking({
        let folder = part.0.clone();
        move || {
            let json = serde_json::to_vec_pretty(&record).map_err(io::Error::from)?;
            files.push(FileBlocks {
                name: RECORD_FILE.to_owned(),
                mode: 0o644,
                length: json.len() as u64,
                digests: json.chunks(manifest::BLOCK_MIN as usize).map(Digest::of).collect(),
            });
            write_synced(&folder.join(RECORD_FILE), &json)?;
            describe(&folder, files, record.format, virtual_bytes, backing)
        }
    })
    .await
    .map_err(|error| trouble("it cannot be written into the pool", &part.0, &error))?;
    Ok(Taken { folder: Some(part), content, notes })
}

async fn take_folder(store: &Store, import: &ImportImage, path: &Path, done: &Arc<AtomicU64>) -> Result<Taken, Report> {
    let refused = |title: String| Report::new(ErrorCode::ImageRefused, title);
    if import.format.is_some() || import.sum.is_some() {
        return Err(refused("a format and a digest are for a disk, not for a folder".to_owned()));
    }
    let record =
        store::record_in(path).map_err(|error| refused(format!("its {RECORD_FILE} cannot be used: {error}")))?;
    if record.name != import.name.as_str() {
        return Err(refused(format!("its record calls it {}", record.name)).help(format!("--name {}", record.name)));
    }
    // One that lies in its place already is taken where it is.
    let in_place = fs::canonicalize(store.folder(&import.name)).is_ok_and(|place| place == path);
    let part = if in_place { None } else { Some(Part::fresh(store, &import.name)?) };
    let folder = part.as_ref().map_or_else(|| path.to_owned(), |part| part.0.clone());
    let disk = path.join(&record.disk.name);
    let header = header::read(&look(&disk)?, Some(record.format)).map_err(of_header)?;
    if header.backing.is_some() {
        return Err(refused("its disk is built upon another file".to_owned()));
    }
    let virtual_bytes = inspect::virtual_bytes(&disk, record.format).await?;
    let content = super::blocking({
        let (from, to, done) = (path.to_owned(), folder.clone(), Arc::clone(done));
        move || {
            let stated = record.files().map(|file| (file.name.clone(), Some(file.clone())));
            let files: Vec<_> = stated.chain([(RECORD_FILE.to_owned(), None)]).chain(keys()).collect();
            let copied = copy_files(&files, &from, (!in_place).then_some(to.as_path()), &done)?;
            let described = describe(&to, copied, record.format, virtual_bytes, None);
            described.map_err(|error| trouble("it cannot be written into the pool", &to, &error))
        }
    })
    .await?;
    Ok(Taken { folder: part, content, notes: Vec::new() })
}

/// The beginning of a regular file.
fn look(path: &Path) -> Result<Vec<u8>, Report> {
    let unreadable = |error: io::Error| {
        Report::new(ErrorCode::ImageRefused, format!("{} cannot be read", path.display())).caused_by(&error)
    };
    let file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(Report::new(ErrorCode::ImageRefused, "it is no regular file"));
    }
    if meta.len() == 0 || meta.len() > FILE_BYTES_MAX {
        let title = format!("it has {} bytes, and 1 to {FILE_BYTES_MAX} are taken", meta.len());
        return Err(Report::new(ErrorCode::ImageRefused, title));
    }
    let mut bytes = Vec::new();
    file.take(header::LOOKED_AT as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn of_header(error: HeaderError) -> Report {
    let report = Report::new(ErrorCode::ImageRefused, error.to_string());
    match error {
        HeaderError::Format(_) | HeaderError::DataFile => report.help("qemu-img convert -O qcow2 FILE NEW.qcow2"),
        HeaderError::NotQcow2 => report.help("--format raw, where it is one"),
        HeaderError::Damaged(_) | HeaderError::Corrupt | HeaderError::Encrypted => report,
    }
}

/// The image that a disk is built upon, which must be one of the same pool.
fn image_below(store: &Store, state: &State, disk: &Path, written: &str) -> Result<(Name, ImageRecord), Report> {
    let refused = |why: String| {
        Report::new(ErrorCode::ImageRefused, why)
            .with("backing file", written)
            .help("vtctl image import BACKING-FILE   (first, into the same pool)")
            .help("qemu-img convert -O qcow2 FILE NEW.qcow2   (makes it stand alone)")
    };
    // What has a colon before its first slash is a protocol to QEMU.
    if written.split('/').next().is_some_and(|word| word.contains(':')) {
        return Err(refused("it is built upon something that is no file of this pool".to_owned()));
    }
    let named = disk.parent().unwrap_or_else(|| Path::new("/")).join(written);
    let found = fs::canonicalize(&named)
        .map_err(|error| refused("the file that it is built upon is not there".to_owned()).caused_by(&error))?;
    if found == disk {
        return Err(refused("it is built upon itself".to_owned()));
    }
    let inside = fs::canonicalize(&store.path).is_ok_and(|pool| found.starts_with(pool));
    let image = found.parent().and_then(|folder| folder.file_name()?.to_str()?.parse::<Name>().ok());
    let known = image.filter(|name| inside && state.images.contains_key(name));
    let Some(name) = known else {
        return Err(refused("it is built upon a file that is no image of this pool".to_owned()));
    };
    let record = store.record(&name).map_err(|error| refused(format!("image {name} cannot be used: {error}")))?;
    if store.folder(&name).join(&record.disk.name).canonicalize().ok() != Some(found) {
        return Err(refused(format!("it is built upon a file of image {name} that is not its disk")));
    }
    Ok((name, record))
}

/// Copies a disk, and tells its blocks and its BLAKE3.
fn copy_disk(from: &Path, to: &Path, done: &AtomicU64, sum: Option<Sum>) -> Result<(FileBlocks, String), Report> {
    let unreadable = |error: io::Error| Report::new(ErrorCode::ImageRefused, "it cannot be read").caused_by(&error);
    let source = File::open(from).map_err(unreadable)?;
    let before = source.metadata().map_err(unreadable)?;
    room_for(to, &before)?;
    let mut sum = sum;
    let copied = copy_file(&source, to, before.len(), 0o644, done, |bytes| {
        if let Some(sum) = &mut sum {
            sum.update(bytes);
        }
    })?;
    let after = source.metadata().map_err(unreadable)?;
    let stamp = |meta: &fs::Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec());
    if stamp(&before) != stamp(&after) {
        let report = Report::new(ErrorCode::ImageRefused, "it was written to while it was read");
        return Err(report.help("end the VM or program that writes it"));
    }
    if let Some(sum) = sum {
        sum.check()?;
    }
    Ok(copied)
}

/// A file of an image's folder, and what its record says of it.
type Stated = (String, Option<ImageFile>);

/// The keys that log in to a built image, which are there or not.
pub(super) fn keys() -> [Stated; 2] {
    [(SSH_KEY_FILE.to_owned(), None), (format!("{SSH_KEY_FILE}.pub"), None)]
}

/// Copies files of an image, or, without `to`, reads them where they are; all must be as its record says.
pub(super) fn copy_files(
    files: &[Stated],
    from: &Path,
    to: Option<&Path>,
    done: &AtomicU64,
) -> Result<Vec<FileBlocks>, Report> {
    let mut copied = Vec::new();
    for (name, stated) in files {
        let (name, stated) = (name.as_str(), stated.as_ref());
        let path = from.join(name);
        let refused = |why: &str| Report::new(ErrorCode::ImageDamaged, format!("its file {name} {why}"));
        let source = match File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound && stated.is_none() && name != RECORD_FILE => {
                continue;
            }
            Err(error) => return Err(refused("cannot be read").caused_by(&error)),
        };
        let meta = source.metadata().map_err(|error| refused("cannot be read").caused_by(&error))?;
        if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
            return Err(refused("is no regular file"));
        }
        let (length, mode) = (meta.len(), meta.permissions().mode() & 0o777);
        let (blocks, whole) = match to {
            Some(to) => {
                room_for(&to.join(name), &meta)?;
                copy_file(&source, &to.join(name), length, mode, done, |_| {})?
            }
            None => read_file(&source, name, length, mode, done)
                .map_err(|error| refused("cannot be read").caused_by(&error))?,
        };
        if stated.is_some_and(|stated| stated.bytes != length || stated.blake3 != whole) {
            return Err(refused("is not the one that its record speaks of"));
        }
        copied.push(blocks);
    }
    Ok(copied)
}

fn copy_file(
    source: &File,
    to: &Path,
    length: u64,
    mode: u32,
    done: &AtomicU64,
    mut also: impl FnMut(&[u8]),
) -> Result<(FileBlocks, String), Report> {
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut whole = blake3::Hasher::new();
    let copied = File::options().read(true).write(true).create_new(true).mode(mode).open(to).and_then(|goal| {
        blocks::copy(source, goal, length, done, |bytes| {
            whole.update(bytes);
            also(bytes);
        })
    });
    let digests = copied.map_err(|error| trouble("it cannot be copied into the pool", to, &error))?;
    Ok((FileBlocks { name, mode, length, digests }, whole.finalize().to_hex().to_string()))
}

fn read_file(source: &File, name: &str, length: u64, mode: u32, done: &AtomicU64) -> io::Result<(FileBlocks, String)> {
    let (mut whole, mut digests) = (blake3::Hasher::new(), Vec::new());
    blocks::read(source, length, done, |_, bytes, digest, _| {
        whole.update(bytes);
        digests.push(digest);
        Ok(())
    })?;
    Ok((FileBlocks { name: name.to_owned(), mode, length, digests }, whole.finalize().to_hex().to_string()))
}

/// Blocks and BLAKE3 of a disk that was changed after it was copied.
pub(super) fn read_again(disk: &Path) -> Result<(FileBlocks, String), Report> {
    let name = disk.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let read = File::open(disk).and_then(|file| {
        file.sync_all()?;
        let length = file.metadata()?.len();
        read_file(&file, &name, length, 0o644, &AtomicU64::new(0))
    });
    read.map_err(|error| trouble("it cannot be read back", disk, &error))
}

/// Refuses at once what cannot fit.
fn room_for(to: &Path, source: &fs::Metadata) -> Result<(), Report> {
    let Some(pool) = to.parent() else { return Ok(()) };
    let Ok(stat) = statvfs(pool) else { return Ok(()) };
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let needed = (source.blocks() * 512).min(source.len());
    if needed <= free {
        return Ok(());
    }
    Err(Report::new(ErrorCode::DiskFull, "the pool has no room for it")
        .with("needed", format!("{needed} bytes"))
        .with("free", format!("{free} bytes")))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).open(path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// Writes the manifest into the folder.
fn describe(
    folder: &Path,
    mut files: Vec<FileBlocks>,
    format: ImageFormat,
    virtual_bytes: u64,
    backing: Option<Name>,
) -> io::Result<ImageContent> {
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let manifest = Manifest { files };
    let (bytes, root) = manifest.encode().map_err(io::Error::other)?;
    let part = folder.join(".manifest");
    write_synced(&part, &bytes)?;
    fs::rename(&part, folder.join(manifest::FILE))?;
    Ok(ImageContent { root, format, virtual_bytes, bytes: manifest.bytes(), backing })
}

/// Takes back what came to its name and the catalogue did not want. A folder that was taken where it lay stays.
pub(crate) fn undo(store: &Store, image: &Name, in_place: bool) {
    let undone = if in_place {
        fs::remove_file(store.folder(image).join(manifest::FILE))
    } else {
        store.remove(image).map(drop)
    };
    if let Err(error) = undone {
        tracing::warn!(%image, %error, "what the catalogue refused is left behind");
    }
}

/// Writes the disk of an image into a new file, each block compared on the way.
///
/// # Errors
/// The file exists, or the image is damaged; no file is left then.
pub(crate) fn export(store: &Store, image: &Name, root: Digest, to: &Path) -> Result<Vec<String>, Report> {
    let failed = |error: io::Error| {
        Report::new(ErrorCode::StorageFailed, format!("{} cannot be written", to.display())).caused_by(&error)
    };
    let damaged = |why: String| Report::new(ErrorCode::ImageDamaged, format!("image {image} is damaged: {why}"));
    let record = store.record(image).map_err(|error| damaged(error.to_string()))?;
    let manifest = store.manifest(image, root);
    let wanted = manifest.and_then(|manifest| manifest.files.into_iter().find(|file| file.name == record.disk.name));
    let wanted = wanted.ok_or_else(|| damaged("its manifest names no disk".to_owned()))?;
    let source = File::open(store.folder(image).join(&record.disk.name)).map_err(failed)?;
    let goal = File::options().read(true).write(true).create_new(true).open(to).map_err(failed)?;
    let copied = blocks::copy(&source, goal, wanted.length, &AtomicU64::new(0), |_| {});
    match copied {
        Ok(digests) if digests == wanted.digests => {
            Ok(vec![format!("{} bytes of {} are in {}", wanted.length, record.format.name(), to.display())])
        }
        copied => {
            let _ = fs::remove_file(to);
            match copied {
                Ok(_) => Err(damaged("its blocks do not have their digests".to_owned())
                    .help(format!("vtctl image verify {image}"))),
                Err(error) => Err(failed(error)),
            }
        }
    }
}
