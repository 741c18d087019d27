//! Disks of a VM beside the one it boots from, its CDs and floppy disks: their files on this host, made before the VM starts
//! and looked into when it has ended.
//!
//! | content | its file | where the pool is not shared |
//! |---|---|---|
//! | blank, clone | the VM's own | copied with the VM |
//! | CD of a folder | the VM's own, made of the folder below `media` in the pool | copied with the VM |
//! | CD of noise | the VM's own | copied with the VM |
//! | CD of an image | the image's disk, which nobody writes | every host has the image |
//! | floppy disk, empty or of a folder | the VM's own, made of the folder below `media` | copied with the VM |
//! | floppy disk of an image | the VM's own, upon the image | copied with the VM |
//! | the disk of a pool | none: a LUN, as it is | every host sees it |
//!
//! What may not happen here: a file of this host in a guest because a parameter named it. Images are named by the
//! catalogue, and folders lie below `media`.

use std::{
    io,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use vt_protocol::{
    catalogue::ImageFormat,
    error::{ErrorCode, Report},
    ids::VmId,
    party::Failure,
    verdict::{Blame, Cause},
    vm::{Drive, DriveContent, VmSpec},
};

use super::{
    attempt::LocalAttempt,
    disk::DiskPlace,
    failure::caused,
    floppy,
    image::{Image, create_blank},
    local_vm::LocalVm,
};
use crate::{
    images::{blocking, inspect, sum::Sum, tool::Tool},
    migrate::Difference,
    pools::iscsi,
    qemu::command_line::Extra,
};

/// The folder in a pool whose folders may be put on a CD or a floppy disk.
const MEDIA: &str = "media";
/// Whether a disk in which damage is found is kept.
const KEEP_DAMAGED: &str = "backup_image_on_check_error";
/// Whether space that a disk takes and does not use is not told.
const SKIP_LEAKS: &str = "skip_cluster_leak_warn";
/// Most disks with damage that a host keeps: who looks into them removes them.
const DAMAGED_MAX: usize = 16;
/// Lengths of disks that floppy drives take, bytes.
const FLOPPIES: [u64; 3] = [720 << 10, floppy::BYTES, 2880 << 10];
const XORRISO: Tool = Tool {
    name: "xorrisofs",
    package: "xorriso",
    missing: ErrorCode::StorageFailed,
    patience: Duration::from_secs(600),
};

impl LocalAttempt {
    /// The drives of a VM as QEMU gets them on this host.
    pub(crate) fn drives(&self, spec: &VmSpec) -> Result<Vec<Extra>, Report> {
        let extra = |drive: &Drive| {
            let path = match &drive.content {
                DriveContent::Cd(name) => {
                    let image = self.image(name)?;
                    image.folder.join(&image.record.disk.name).display().to_string()
                }
                DriveContent::Device(pool) => self.lun(pool)?.to_string(),
                _ => self.places.drive(&spec.id, drive).display().to_string(),
            };
            Ok(Extra::of(drive, path))
        };
        spec.drives.iter().map(extra).collect()
    }

    /// Looks into what the drives are made of, before anything is on record. What is learnt is noted in them.
    pub(super) async fn survey_drives(&self, drives: &mut [Drive], check: bool) -> Result<(), Report> {
        for drive in drives {
            if let Some(pool) = drive.content.device() {
                drive.bytes = iscsi::length(&self.lun(pool)?).await?;
            }
            let Some(name) = drive.content.image() else { continue };
            let image = self.image(name)?;
            if drive.content.is_cd() && image.record.format != ImageFormat::Raw {
                let title = format!("image {name} is a {} disk and no CD", image.record.format.name());
                return Err(Report::new(ErrorCode::BadParameter, title).with("drive", drive.name.as_str()));
            }
            if drive.content.is_floppy()
                && (image.record.format != ImageFormat::Raw || !FLOPPIES.contains(&image.record.disk.bytes))
            {
                let title = format!("image {name} is no floppy disk: that is raw and has 720, 1440 or 2880 KiB");
                return Err(Report::new(ErrorCode::BadParameter, title).with("drive", drive.name.as_str()));
            }
            if let Some(sum) = &drive.sum {
                let wanted = Sum::new((sum.kind.clone(), sum.digits.clone()))?;
                let (disk, most) = (image.folder.join(&image.record.disk.name), sum.first_bytes);
                let compared = blocking(move || wanted.of_file(&disk, most)).await;
                compared.map_err(|report| Report {
                    title: format!("image {name} is another one: {}", report.title),
                    ..report
                })?;
            }
            if check {
                image.look_inside().await?;
            }
            drive.image_digest = Some(image.record.digest);
        }
        Ok(())
    }

    /// Makes the files of a VM's drives. Those left from before are replaced: the claim says that they are nobody's.
    pub(super) async fn make_drives(&self, spec: &mut VmSpec) -> Result<(), Report> {
        for drive in &mut spec.drives {
            let file = self.places.drive(&spec.id, drive);
            match &drive.content {
                DriveContent::Blank => create_blank(drive.format, drive.bytes, &file).await?,
                DriveContent::Clone(name) | DriveContent::FloppyImage(name) => self.image(name)?.overlay(&file).await?,
                DriveContent::Folder(folder) => {
                    drive.bytes = self.make_cd(folder, &file).await?;
                }
                DriveContent::Floppy(folder) => self.make_floppy(folder.as_deref(), &file).await?,
                DriveContent::Noise => make_noise(drive.bytes, &file).await?,
                DriveContent::Cd(_) | DriveContent::Device(_) => {}
            }
        }
        Ok(())
    }

    /// The destination: makes what the source's drives are copied into.
    pub(crate) async fn make_room_for_drives(&self, spec: &VmSpec) -> Result<(), Report> {
        for drive in &spec.drives {
            let file = self.places.drive(&spec.id, drive);
            match &drive.content {
                DriveContent::Clone(name) | DriveContent::FloppyImage(name) => self.image(name)?.overlay(&file).await?,
                DriveContent::Blank => create_blank(drive.format, drive.bytes, &file).await?,
                DriveContent::Folder(_) | DriveContent::Floppy(_) | DriveContent::Noise => {
                    create_blank(ImageFormat::Raw, drive.bytes, &file).await?;
                }
                DriveContent::Cd(_) | DriveContent::Device(_) => {}
            }
        }
        Ok(())
    }

    /// The destination: what of the drives cannot be had here. `copied`: they come with the VM.
    pub(crate) fn drives_fit(&self, spec: &VmSpec, copied: bool) -> Vec<Difference> {
        let unfit = |drive: &Drive| {
            if let Some(name) = drive.content.image() {
                let digest = match self.image(name) {
                    Ok(image) => image.record.digest,
                    Err(report) => return Some(report.title),
                };
                if drive.image_digest.as_ref().is_some_and(|wanted| *wanted != digest) {
                    return Some(format!("image {name} is another one on the destination"));
                }
            }
            if let Some(pool) = drive.content.device() {
                return self.lun(pool).err().map(|report| report.title);
            }
            let own = !matches!(drive.content, DriveContent::Cd(_));
            let file = self.places.drive(&spec.id, drive);
            (own && !copied && !file.is_file())
                .then(|| format!("the VM's disk {} is not seen on the destination", file.display()))
        };
        spec.drives.iter().filter_map(unfit).map(Difference::Unfit).collect()
    }

    /// Writes a CD of a folder. Returns its length, bytes.
    async fn make_cd(&self, folder: &str, file: &Path) -> Result<u64, Report> {
        let from = media_folder(&self.places.images, folder)?;
        let words = ["-quiet", "-R", "-J", "-V", "vtmesh", "-o"].map(PathBuf::from);
        let words: Vec<PathBuf> = words.into_iter().chain([file.to_owned(), from]).collect();
        let said = XORRISO.run(&words, None).await?;
        if said.code != Some(0) {
            let code = if said.is_full() { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
            return Err(
                Report::new(code, format!("no CD could be made of {MEDIA}/{folder}")).with("xorriso", said.words())
            );
        }
        let meta = tokio::fs::metadata(file).await;
        meta.map(|meta| meta.len()).map_err(|error| {
            Report::new(ErrorCode::StorageFailed, format!("the CD of {MEDIA}/{folder} is gone")).caused_by(&error)
        })
    }

    /// Writes a floppy disk, with the files of a folder where one is named.
    async fn make_floppy(&self, folder: Option<&str>, file: &Path) -> Result<(), Report> {
        let from = folder.map(|folder| media_folder(&self.places.images, folder)).transpose()?;
        let of = folder.map(|folder| format!(" of {MEDIA}/{folder}")).unwrap_or_default();
        floppy::make(from, file).await.map_err(|report| {
            let title = format!("no floppy disk could be made{of}: {}", report.title);
            Report { title, ..report }
        })
    }

    /// Looks into the disks of a VM whose QEMU has ended, where that was asked for. What costs space alone is told.
    ///
    /// # Errors
    /// QEMU has left a disk corrupt: the product's fault.
    pub(super) async fn check_disks(&self, vm: &LocalVm) -> Result<(), Failure> {
        let spec = vm.spec();
        if !spec.check_images {
            return Ok(());
        }
        let own = spec.drives.iter().filter(|drive| !drive.content.is_cd() && drive.format == ImageFormat::Qcow2);
        let own = own.map(|drive| (drive.name.to_string(), self.places.drive(&spec.id, drive)));
        // One at a server cannot be looked into by a tool of this host.
        let first = match &vm.disk {
            DiskPlace::File(path) => Some(("the disk it booted from".to_owned(), path.clone())),
            DiskPlace::Pool { .. } => None,
        };
        let params = self.record().case.params.object(vm.id.name.as_str());
        let says = |key| params.flag(key).ok().flatten().unwrap_or(false);
        for (name, disk) in first.into_iter().chain(own) {
            match inspect::check(&disk).await {
                Ok(Some(note)) if !says(SKIP_LEAKS) => {
                    self.evidence.events.warn(format!("{}, {name}: {note}", vm.id.name));
                }
                Ok(_) => {}
                // Nothing was found out about the disk: that is not the product's doing.
                Err(report) if report.code != ErrorCode::ImageRefused => return Err(caused(report)),
                Err(report) => {
                    let title = format!("QEMU left a disk of {} damaged ({name}): {}", vm.id.name, report.title);
                    let report = Report { code: ErrorCode::DiskDamaged, title, ..report };
                    let report = if says(KEEP_DAMAGED) { self.keep_damaged(&disk, report).await } else { report };
                    return Err(Failure::Caused(Cause { blame: Blame::Product, report }));
                }
            }
        }
        Ok(())
    }

    /// Puts a disk out of the way of what removes disks, and says where it is.
    async fn keep_damaged(&self, disk: &Path, report: Report) -> Report {
        let folder = self.places.damaged_disks();
        let kept = folder.join(disk.file_name().unwrap_or_default());
        let moved = async {
            tokio::fs::create_dir_all(&folder).await?;
            if std::fs::read_dir(&folder)?.count() >= DAMAGED_MAX {
                return Err(io::Error::other(format!("{DAMAGED_MAX} disks are in {} already", folder.display())));
            }
            tokio::fs::rename(disk, &kept).await
        };
        match moved.await {
            Ok(()) => report.with("kept as", kept.display().to_string()),
            Err(error) => report.with("not kept", error.to_string()),
        }
    }

    /// Removes the files of a VM's disks and CDs.
    pub(crate) async fn remove_disks(&self, vm: &VmId) {
        for disk in self.places.disks_of(vm) {
            match tokio::fs::remove_file(&disk).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.evidence.events.warn(format!("disk {} is left behind: {error}", disk.display()));
                }
                _ => {}
            }
        }
        self.remove_from_pool(vm).await;
    }
}

/// Writes a file of so many random bytes.
async fn make_noise(bytes: u64, file: &Path) -> Result<(), Report> {
    let path = file.to_owned();
    let write = move || {
        use std::io::Write;
        let mut out = std::fs::File::create(&path)?;
        let (mut left, mut piece, mut rng) = (bytes, vec![0; 1 << 20], rand::rng());
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            rand::RngCore::fill_bytes(&mut rng, &mut piece[..length]);
            out.write_all(&piece[..length])?;
            left -= length as u64;
        }
        out.sync_data()
    };
    let written = tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    written.map_err(|error| {
        let code =
            if error.kind() == io::ErrorKind::StorageFull { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
        Report::new(code, format!("no CD could be written to {}", file.display())).caused_by(&error)
    })
}

impl Image {
    /// Has QEMU's tool look for damage inside its disk.
    ///
    /// # Errors
    /// It is corrupt.
    pub(super) async fn look_inside(&self) -> Result<(), Report> {
        if self.record.format != ImageFormat::Qcow2 {
            return Ok(());
        }
        let checked = inspect::check(&self.folder.join(&self.record.disk.name)).await;
        checked.map(drop).map_err(|report| {
            let title = format!("image {} is damaged: {}", self.record.name, report.title);
            Report { code: ErrorCode::ImageDamaged, title, ..report }
                .help(format!("vtctl image verify {}", self.record.name))
        })
    }
}

/// A folder below `media` of a pool; links do not lead out of it.
fn media_folder(pool: &Path, folder: &str) -> Result<PathBuf, Report> {
    let media = pool.join(MEDIA);
    let refused = |why: &str| {
        Report::new(ErrorCode::BadParameter, format!("{MEDIA}/{folder} {why}"))
            .with("looked for", media.join(folder).display().to_string())
            .help(format!("put a folder below {} on every host that begins with the VM", media.display()))
    };
    let down = |part| matches!(part, Component::Normal(_));
    if folder.is_empty() || !Path::new(folder).components().all(down) {
        return Err(refused("is no folder below it"));
    }
    let found = media.join(folder).canonicalize().map_err(|error| refused("is not there").caused_by(&error))?;
    let inside = media.canonicalize().is_ok_and(|media| found.starts_with(media));
    if inside && found.is_dir() { Ok(found) } else { Err(refused("is no folder below it")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_below_media_are_put_on_a_cd() {
        let dir = tempfile::tempdir().unwrap();
        let media = dir.path().join("media");
        std::fs::create_dir_all(media.join("tools/sub")).unwrap();
        std::fs::write(media.join("file"), b"").unwrap();
        std::os::unix::fs::symlink("/etc", media.join("link")).unwrap();
        assert!(media_folder(dir.path(), "tools").unwrap().ends_with("media/tools"));
        assert!(media_folder(dir.path(), "tools/sub").is_ok());
        for folder in ["", "..", "../tiny", "/etc", "link", "file", "absent", "tools/../../x"] {
            assert_eq!(media_folder(dir.path(), folder).unwrap_err().code, ErrorCode::BadParameter, "{folder:?}");
        }
    }
}
