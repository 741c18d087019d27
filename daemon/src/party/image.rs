//! Images of this host's pool, and the overlay disks on top of them.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::Instant};
use vt_protocol::{
    catalogue::ImageFormat,
    error::{ErrorCode, Report},
    ids::Name,
    image::{BUILTIN, ImageRecord},
    job::Happening,
    params::Params,
    party::Failure,
    peer::{PeerReply, PeerRequest},
    verdict::Consequence,
    vm::Nic,
};
use vt_sync::{State, state};

use super::{attempt::LocalAttempt, failure::caused};
use crate::{
    images::{
        Pools,
        store::{RecordTrouble, Store},
    },
    qemu::Boot,
    scenario,
};

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

    /// What is to be booted from it; `None`: what the firmware finds on its disk.
    pub(crate) fn boot(&self, nics: &[Nic]) -> Option<Boot> {
        let kernel = self.record.kernel.as_ref()?;
        let nic = nics.first();
        let address = nic.and_then(|nic| Some((nic.address?, nic.prefix)));
        Some(Boot {
            kernel: self.folder.join(&kernel.name),
            initrd: self.record.initrd.as_ref().map(|initrd| self.folder.join(&initrd.name)),
            append: self.record.cmdline_for(address, nic.map(|nic| nic.mac)),
        })
    }

    /// Its own disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join(&self.record.disk.name)
    }

    /// Makes the overlay disk of a VM on top of it.
    pub(crate) async fn overlay(&self, disk: &Path) -> Result<(), Report> {
        create_overlay(&self.disk(), self.record.format, disk).await
    }
}

/// How often a party that waits for an image looks how far it is, and how often that is told.
const LOOKS: Duration = Duration::from_millis(1000);
const TELLS: Duration = Duration::from_secs(5);
/// How long this host may take to say so.
const ASKS: Duration = Duration::from_secs(10);

impl LocalAttempt {
    /// The pool directory that an image lies in.
    fn store(&self, name: &Name) -> Store {
        Pools::at(self.places.images.clone(), self.places.shared).store_of(&self.cluster.state(), name)
    }

    /// Finds an image in this host's pools.
    pub(crate) fn image(&self, name: &Name) -> Result<Image, Report> {
        let store = self.store(name);
        let folder = store.folder(name);
        let missing = |what: String| {
            Report::new(ErrorCode::ImageMissing, format!("image {name} is not on {}", self.name_of(self.me())))
                .with("looked for", what)
                .help("vtctl image build   (where it is the built-in one)")
                .help("vtctl image list   (shows what the cluster has)")
        };
        let damaged = |what: String| {
            Report::new(ErrorCode::ImageDamaged, format!("image {name} is damaged: {what}"))
                .with("folder", folder.display().to_string())
                .help(format!("vtctl image verify {name}"))
                .help("vtctl image build --force   (where it is the built-in one)")
        };
        let record = store.record(name).map_err(|error| match error {
            RecordTrouble::Missing(error) => missing(folder.display().to_string()).caused_by(&error),
            RecordTrouble::Damaged(what) => damaged(what),
        })?;
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

    /// Has the images of the case come to this host, where the catalogue has them and this host does not. What it waits
    /// for is told meanwhile.
    ///
    /// # Errors
    /// It does not come; or the attempt is over for this host, which then is nobody's fault.
    pub(super) async fn bring_images(&self) -> Result<(), Failure> {
        for name in images_of(&self.record().case.params) {
            self.bring_image(name).await?;
        }
        Ok(())
    }

    async fn bring_image(&self, name: Name) -> Result<(), Failure> {
        let known = |state: &State| state.images.get(&name).cloned();
        let Some(image) = known(&self.cluster.state()) else { return Ok(()) };
        let (begun, step) = (Instant::now(), format!("image {name}"));
        let mut told: Option<Instant> = None;
        if !image.is_on(self.me()) {
            self.evidence.events.note(Happening::StepBegan(step.clone()));
            self.say_waiting(&name, &image, 0);
            told = Some(begun);
        }
        loop {
            let wait_ms = LOOKS.as_millis() as u32;
            let pull = PeerRequest::PullImage { image: name.clone(), root: image.content.root, rate: 0, wait_ms };
            let now = match self.cluster.ask(self.me(), pull, ASKS).await {
                Ok(PeerReply::Pulling(now)) => now,
                Ok(_) => return Err(caused(Report::new(ErrorCode::WireVersion, "an image was not asked for well"))),
                Err(error) => return Err(caused(error.into())),
            };
            match now.ended {
                Some(Ok(())) => {
                    if told.is_some() {
                        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                        let note = format!("{} of {} bytes came over the network", now.moved, image.content.bytes);
                        self.evidence.events.note(Happening::StepEnded { step, ms, note });
                    }
                    return Ok(());
                }
                Some(Err(report)) => {
                    let title = format!("image {name} did not come to {}: {}", self.name_of(self.me()), report.title);
                    return Err(caused(Report { title, ..report }));
                }
                None if told.is_none_or(|told| told.elapsed() >= TELLS) => {
                    told = Some(Instant::now());
                    self.say_waiting(&name, &image, now.done);
                }
                None => {}
            }
            let state = self.cluster.state();
            self.open_in(&state)?;
            if state.attempts.get(&self.id).is_some_and(|attempt| attempt.cancelled) {
                return Err(Failure::Followed(Consequence::Closed));
            }
        }
    }

    fn say_waiting(&self, name: &Name, image: &state::Image, done: u64) {
        let state = self.cluster.state();
        let from: Vec<String> = image.sources().map(|host| state.host_name(host)).collect();
        let (me, from, total) = (self.name_of(self.me()), from.join(", "), image.content.bytes);
        let said = format!("everyone waits for {me}: image {name} comes from {from}, {done} of {total} bytes are here");
        self.evidence.events.say(said);
    }
}

/// The images that a case needs: the one that it boots, by its parameters, else the built-in one; and those of its drives.
fn images_of(params: &Params) -> BTreeSet<Name> {
    let of_vm = |own: &Params| {
        let boots = own.text("image").unwrap_or(BUILTIN).trim().parse().ok();
        boots.into_iter().chain(scenario::images_of(own)).collect::<Vec<Name>>()
    };
    match params.objects("vms")[..] {
        [] => of_vm(params).into_iter().collect(),
        ref vms => vms.iter().flat_map(|vm| of_vm(&params.object(vm))).collect(),
    }
}

/// Makes an empty disk.
pub(super) async fn create_blank(format: ImageFormat, bytes: u64, disk: &Path) -> Result<(), Report> {
    let (words, bytes) = (["-f", format.name()].map(OsStr::new), bytes.to_string());
    create(disk, &words, Some(&bytes)).await
}

/// Makes the overlay disk on top of an image.
async fn create_overlay(image: &Path, format: ImageFormat, disk: &Path) -> Result<(), Report> {
    let format = ["-f", "qcow2", "-F", format.name(), "-b"].map(OsStr::new);
    create(disk, &[&format[..], &[image.as_os_str()]].concat(), None).await
}

/// Makes a disk. One left from before is replaced: the claim says that it is nobody's.
async fn create(disk: &Path, words: &[&OsStr], bytes: Option<&str>) -> Result<(), Report> {
    let failed = |what: &str, said: String| {
        let full = said.contains("No space left") || said.contains("StorageFull");
        let code = if full { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
        let title = if full { "the disk is full" } else { "the disk could not be made" };
        Report::new(code, format!("{title}: {what}")).with("disk", disk.display().to_string()).with("said", said)
    };
    if let Some(parent) = disk.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(|error| failed("its folder", error.to_string()))?;
    }
    let made = Command::new("qemu-img")
        .args(["create", "-q"])
        .args(words)
        .arg(disk)
        .args(bytes)
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
        create_overlay(&base, ImageFormat::Qcow2, &disk).await.unwrap();
        assert!(disk.is_file());
        let other = dir.path().join("vm2.qcow2");
        let report = create_overlay(&dir.path().join("absent"), ImageFormat::Qcow2, &other).await.unwrap_err();
        assert_eq!(report.code, ErrorCode::StorageFailed);
        assert!(!other.exists());
    }
}
