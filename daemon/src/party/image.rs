//! Images of this host's pool, and the overlay disks on top of them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    image::{ImageRecord, RECORD_FILE},
    vm::Nic,
};

use super::attempt::LocalAttempt;
use crate::qemu::Boot;

/// An image of this host, checked as far as it can be without reading it whole.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) record: ImageRecord,
    pub(crate) folder: PathBuf,
}

impl Image {
    /// Whether a program of ours answers in its guest: every image that we built has one.
    pub(crate) fn has_probe(&self) -> bool {
        !self.record.recipe_blake3.is_empty()
    }

    /// What is to be booted from it.
    pub(crate) fn boot(&self, nics: &[Nic]) -> Boot {
        let nic = nics.first();
        let address = nic.and_then(|nic| Some((nic.address?, nic.prefix)));
        Boot {
            kernel: self.folder.join(&self.record.kernel.name),
            initrd: Some(self.folder.join(&self.record.initrd.name)),
            append: self.record.cmdline_for(address, nic.map(|nic| nic.mac)),
        }
    }
}

impl LocalAttempt {
    /// Finds an image in this host's pool.
    pub(crate) fn image(&self, name: &Name) -> Result<Image, Report> {
        let folder = self.places.images.join(name.as_str());
        let missing = |what: String| {
            Report::new(ErrorCode::ImageMissing, format!("image {name} is not on {}", self.name_of(self.me())))
                .with("looked for", what)
                .help("vtctl image build")
        };
        let path = folder.join(RECORD_FILE);
        let json = std::fs::read(&path).map_err(|error| missing(path.display().to_string()).caused_by(&error))?;
        let damaged = |what: String| {
            Report::new(ErrorCode::ImageDamaged, format!("image {name} is damaged: {what}"))
                .with("folder", folder.display().to_string())
                .help("vtctl image build --force")
        };
        let record = ImageRecord::parse(&json).map_err(|error| damaged(error.to_string()))?;
        for file in record.files() {
            let path = folder.join(&file.name);
            match std::fs::metadata(&path) {
                Ok(meta) if meta.len() == file.bytes => {}
                Ok(meta) => return Err(damaged(format!("{} has {} bytes, not {}", file.name, meta.len(), file.bytes))),
                Err(error) => return Err(missing(path.display().to_string()).caused_by(&error)),
            }
        }
        Ok(Image { record, folder })
    }
}

/// Makes the overlay disk on top of an image. One left from before is replaced: the claim says that it is nobody's.
pub(super) async fn create_overlay(image: &Path, disk: &Path) -> Result<(), Report> {
    let failed = |what: &str, said: String| {
        let full = said.contains("No space left") || said.contains("StorageFull");
        let code = if full { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
        let title = if full { "the disk is full" } else { "the overlay disk could not be made" };
        Report::new(code, format!("{title}: {what}")).with("disk", disk.display().to_string()).with("said", said)
    };
    if let Some(parent) = disk.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(|error| failed("its folder", error.to_string()))?;
    }
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(image)
        .arg(disk)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let made = made.map_err(|error| {
        Report::new(ErrorCode::QemuMissing, "qemu-img is not there or cannot be run")
            .help("apt-get install qemu-utils")
            .caused_by(&error)
    })?;
    if made.status.success() {
        return Ok(());
    }
    let _ = tokio::fs::remove_file(disk).await;
    let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
    Err(failed("qemu-img create", said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_overlay_is_made_over_an_image_and_a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.qcow2");
        let mut make = std::process::Command::new("qemu-img");
        make.args(["create", "-q", "-f", "qcow2"]).arg(&base).arg("1M");
        assert!(make.status().unwrap().success());
        let disk = dir.path().join("sub/vm1.qcow2");
        create_overlay(&base, &disk).await.unwrap();
        assert!(disk.is_file());
        let other = dir.path().join("vm2.qcow2");
        let report = create_overlay(&dir.path().join("absent"), &other).await.unwrap_err();
        assert_eq!(report.code, ErrorCode::StorageFailed);
        assert!(!other.exists());
    }
}
