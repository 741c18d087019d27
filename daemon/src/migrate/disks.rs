//! The disks of a VM whose pool the destination does not share: QEMU copies them with the VM, over NBD.
//!
//! ```text
//! destination: an overlay on its own copy of the image, opened for writing by one connection (its QEMU's NBD server)
//! source:      mirror ──ready──▶ memory moves ──▶ before the switch-over: mirror ended, all is there ──▶ go on
//! destination: loaded ──▶ NBD server closed ──▶ vote
//! ```
//!
//! Only what differs from the image moves: both overlays lie on the same image, which is compared by its digest. Until
//! the decision the source's disk is the VM's, and the copy is nobody's; nobody can write to the copy any more when the
//! destination votes. The disk goes in plain TCP, whatever carries the memory.
//!
//! Source: QEMU's `docs/interop/live-block-operations.rst`, "QMP invocation for live storage migration with
//! drive-mirror + NBD".

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{MigrationId, Name},
    peer::PrepareIncoming,
    vm::{MigrationSpec, VmSpec},
};

use super::{
    inlet::{free_ports, no_port},
    preflight::Difference,
    send::Ready,
};
use crate::{
    party::{attempt::LocalAttempt, disk::DiskPlace, image::Image, local_vm::LocalVm},
    qemu::{
        command_line::{Medium, drive_ids},
        qmp::{EventError, Events, Qmp, QmpError},
    },
};

/// The first disk.
const FIRST: &str = "vda";
/// QEMU's name for waiting before the switch-over, where the copy is ended.
const PAUSE: &str = "pause-before-switchover";
/// A command that may have to wait for the disk.
const COMMAND: Duration = Duration::from_secs(30);
/// How long the last writes may take to arrive while the guest stands still.
const ENDS: Duration = Duration::from_secs(60);
/// A copy that stands still for this long is given up.
const STALL: Duration = Duration::from_secs(60);
/// How often it is looked how far a copy is.
const LOOKS: Duration = Duration::from_secs(2);

/// One copy, by the names it has in the source's QEMU.
struct Mirror {
    /// What is copied; the export at the destination is called alike.
    drive: String,
    job: String,
    node: String,
}

/// How a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    done: u64,
    total: u64,
    ready: bool,
}

impl Mirror {
    fn of(id: &MigrationId, drive: String) -> Self {
        Self { job: format!("copy-{}-{drive}", id.number), node: format!("there-{}-{drive}", id.number), drive }
    }

    /// The copies of all that is a VM's own.
    fn all(id: &MigrationId, spec: &VmSpec) -> Vec<Self> {
        own_drives(spec).into_iter().map(|drive| Self::of(id, drive)).collect()
    }

    /// Whether an event says that this job has ended.
    fn ended(&self, event: &crate::qemu::qmp::Event) -> bool {
        event.name == "BLOCK_JOB_COMPLETED" && event.text("device") == Some(&self.job)
    }

    async fn begin(&self, qmp: &Qmp, address: SocketAddr) -> Result<(), QmpError> {
        let server = json!({ "type": "inet", "host": address.ip().to_string(), "port": address.port().to_string() });
        let add = json!({ "driver": "nbd", "node-name": self.node, "server": server, "export": self.drive });
        qmp.execute("blockdev-add", add, COMMAND).await?;
        // Writes of the guest do not wait for the other host.
        let mirror = json!({ "job-id": self.job, "device": self.drive, "target": self.node, "sync": "top" });
        qmp.execute("blockdev-mirror", mirror, COMMAND).await.map(drop)
    }

    /// How the job is; `None` where there is none.
    async fn progress(&self, qmp: &Qmp) -> Result<Option<Progress>, QmpError> {
        let jobs = qmp.execute("query-block-jobs", Value::Null, COMMAND).await?;
        let job = jobs.as_array().into_iter().flatten().find(|job| job["device"] == self.job.as_str());
        let number = |job: &Value, key: &str| job[key].as_u64().unwrap_or_default();
        Ok(job.map(|job| Progress {
            done: number(job, "offset"),
            total: number(job, "len"),
            ready: job["ready"].as_bool().unwrap_or(false),
        }))
    }

    /// Whether QEMU still knows the other side.
    async fn is_attached(&self, qmp: &Qmp) -> Result<bool, QmpError> {
        let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }), COMMAND).await?;
        Ok(nodes.as_array().into_iter().flatten().any(|node| node["node-name"] == self.node.as_str()))
    }

    async fn detach(&self, qmp: &Qmp) -> Result<(), QmpError> {
        qmp.execute("blockdev-del", json!({ "node-name": self.node }), COMMAND).await.map(drop)
    }

    /// Ends a copy that is ready: when it has ended, all that was written is at the destination.
    async fn finish(&self, qmp: &Qmp) -> Result<(), String> {
        let said = |error: QmpError| error.to_string();
        match self.progress(qmp).await.map_err(said)? {
            Some(Progress { ready: true, .. }) => {}
            Some(_) => return Err("it is not ready".to_owned()),
            // Ended by a daemon before this one.
            None if !self.is_attached(qmp).await.map_err(said)? => return Ok(()),
            None => return Err("it has broken off".to_owned()),
        }
        let mut events = qmp.events();
        qmp.execute("block-job-cancel", json!({ "device": self.job }), COMMAND).await.map_err(said)?;
        let ended = events.wait_for(|event| self.ended(event), Instant::now() + ENDS).await;
        let ended = ended.map_err(|error| error.to_string())?;
        if let Some(words) = ended.text("error") {
            return Err(words.to_owned());
        }
        self.detach(qmp).await.map_err(said)
    }

    /// Ends a copy that nobody wants any more. A connection that hangs is broken.
    async fn give_up(&self, qmp: &Qmp) -> Result<(), QmpError> {
        if !self.is_attached(qmp).await? {
            return Ok(());
        }
        let instances = json!({ "instances": [{ "type": "block-node", "node-name": self.node }] });
        // One that has no connection any more has nothing to be broken.
        let _ = qmp.execute_oob("yank", instances, COMMAND).await;
        let mut events = qmp.events();
        let cancel = json!({ "device": self.job, "force": true });
        if qmp.execute("block-job-cancel", cancel, COMMAND).await.is_ok() {
            let ended = |event: &crate::qemu::qmp::Event| {
                let cancelled = event.name == "BLOCK_JOB_CANCELLED" && event.text("device") == Some(&self.job);
                cancelled || self.ended(event)
            };
            let _ = events.wait_for(ended, Instant::now() + ENDS).await;
        }
        // A job that has ended lets go of it a moment later.
        let until = Instant::now() + COMMAND;
        loop {
            match self.detach(qmp).await {
                Err(error) if error.is_refusal() && Instant::now() < until => sleep(Duration::from_millis(100)).await,
                done => return done,
            }
        }
    }
}

impl LocalAttempt {
    /// What a move has to be like from this host: a disk that is copied is there before the guest runs there.
    pub(super) fn with_disk(&self, spec: &MigrationSpec) -> MigrationSpec {
        let mut spec = spec.clone();
        if !self.disks_are_seen() {
            spec.capabilities.insert(PAUSE.to_owned(), true);
        }
        spec
    }

    /// The digest of the image that a VM's disk lies upon, where the disk has to be copied.
    pub(super) fn image_to_compare(&self, image: &Name) -> Result<Option<String>, Report> {
        if self.disks_are_seen() { Ok(None) } else { self.image(image).map(|image| Some(image.record.digest)) }
    }

    /// The destination: whether the VM's disk can be had here, by what the source says.
    pub(super) fn disk_fits(&self, asked: &PrepareIncoming, image: &Image) -> Option<Difference> {
        let place = match self.disk_place(&asked.migration.vm) {
            Ok(place) => place,
            Err(report) => return Some(Difference::Unfit(report.title)),
        };
        let other_image = |digest: &str| {
            format!(
                "image {} is another one on the destination: {} there, {} here",
                asked.vm.image,
                short(digest),
                short(&image.record.digest)
            )
        };
        let text = match (&asked.copies_upon, &place) {
            // Who opens it finds out whether it is there.
            (None, DiskPlace::Pool { .. }) if asked.image == image.record.digest => return None,
            (None, DiskPlace::Pool { .. }) => other_image(&asked.image),
            (None, _) if !self.disks_are_seen() => {
                "the pool of the destination is not shared, and the one of the source is".to_owned()
            }
            (Some(_), _) if self.disks_are_seen() => {
                "the pool of the source is not shared, and the one of the destination is".to_owned()
            }
            (None, DiskPlace::File(disk)) if disk.is_file() => return None,
            (None, _) => format!("the VM's disk {place} is not seen on the destination"),
            (Some(digest), _) if *digest == image.record.digest => return None,
            (Some(digest), _) => other_image(digest),
        };
        Some(Difference::Unfit(text))
    }

    /// The destination: lets the source write the VM's disks here. Returns where.
    pub(super) async fn open_disks(&self, vm: &LocalVm) -> Result<String, Report> {
        let (qmp, drives) = (vm.qemu.qmp(), own_drives(&vm.spec()));
        let address = self.serve(qmp, drives.len()).await?;
        for drive in drives {
            let node = node_of(qmp, &drive).await.map_err(|error| error.report())?;
            let export = json!({ "type": "nbd", "id": drive, "name": drive, "node-name": node, "writable": true });
            qmp.execute("block-export-add", export, COMMAND).await.map_err(|error| error.report())?;
        }
        Ok(address)
    }

    /// Listens for as many connections as there are disks.
    async fn serve(&self, qmp: &Qmp, connections: usize) -> Result<String, Report> {
        let mut last = None;
        for address in free_ports(self.places.migration) {
            let inet = json!({ "host": address.ip().to_string(), "port": address.port().to_string() });
            let start = json!({ "addr": { "type": "inet", "data": inet }, "max-connections": connections });
            match qmp.execute("nbd-server-start", start, COMMAND).await {
                Ok(_) => return Ok(address.to_string()),
                Err(error) if error.to_string().contains("in use") => last = Some(error.to_string()),
                Err(error) => return Err(error.report()),
            }
        }
        Err(no_port(self.places.migration, last))
    }

    /// The destination: nobody but its own QEMU can write the disk here after this.
    pub(super) async fn close_disk(&self, qmp: &Qmp) {
        while !self.disks_are_seen() && !self.closing.is_cancelled() && qmp.is_open() {
            match qmp.execute("nbd-server-stop", Value::Null, COMMAND).await {
                Ok(_) => return,
                Err(QmpError::Refused { .. }) => return,
                Err(error) => tracing::warn!(%error, "the NBD server is not known to be closed"),
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Removes a copy of a VM's disk that is, or has become, nobody's. What every host sees is left alone.
    pub(super) async fn forget_copy(&self, vm: &Name) {
        if !self.disks_are_seen() {
            self.remove_disks(&self.vm_id(vm)).await;
        }
    }

    /// The source: copies the disk, and returns when what is written from now on is all that is missing there.
    pub(super) async fn copy_disk(&self, vm: &LocalVm, ready: &Ready) -> Result<(), Report> {
        let Some(address) = &ready.disk else { return Ok(()) };
        let address = address.parse().map_err(|_| broken("the destination has named no place for it"))?;
        let (mirrors, qmp) = (Mirror::all(&ready.id, &vm.spec()), vm.qemu.qmp());
        let mut events = qmp.events();
        let begun = Instant::now();
        self.evidence.events.say(format!(
            "{}: the pool is not shared, so the disk is copied with the VM (NBD to {address}, plain TCP)",
            ready.id
        ));
        let said = |error: QmpError| broken(&error.to_string());
        for mirror in &mirrors {
            if mirror.progress(qmp).await.map_err(said)?.is_none() {
                if mirror.is_attached(qmp).await.map_err(said)? {
                    mirror.detach(qmp).await.map_err(said)?;
                }
                mirror.begin(qmp, address).await.map_err(said)?;
            }
        }
        let all_ready = async {
            let mut bytes = 0;
            for mirror in &mirrors {
                bytes += self.await_ready(mirror, qmp, &mut events).await?;
            }
            Ok(bytes)
        };
        let copied = tokio::select! {
            copied = all_ready => copied,
            ended = vm.ended() => {
                return Err(ended.report(ErrorCode::VmLost, "the source QEMU ended while its disk was copied"));
            }
            () = self.closing.cancelled() => Err("the attempt has ended".to_owned()),
        };
        match copied {
            Ok(bytes) => {
                let ms = begun.elapsed().as_millis();
                self.evidence.events.say(format!("{}: the disk is there: {bytes} bytes in {ms} ms", ready.id));
                Ok(())
            }
            Err(why) => {
                for mirror in &mirrors {
                    let _ = mirror.give_up(qmp).await;
                }
                Err(broken(&why))
            }
        }
    }

    async fn await_ready(&self, mirror: &Mirror, qmp: &Qmp, events: &mut Events) -> Result<u64, String> {
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            let now = mirror.progress(qmp).await.map_err(|error| error.to_string())?;
            let now = now.ok_or("it has ended too early")?;
            if now.ready {
                return Ok(now.done);
            }
            if now.done != last {
                (last, moved) = (now.done, Instant::now());
                self.evidence.events.say(format!("{}: {} of {} bytes are there", mirror.drive, now.done, now.total));
            } else if moved.elapsed() > STALL {
                return Err(format!("it stood still for {} s after {last} of {} bytes", STALL.as_secs(), now.total));
            }
            let look = Instant::now() + LOOKS;
            loop {
                match timeout_at(look, events.next()).await {
                    Ok(Ok(event)) if mirror.ended(&event) => {
                        return Err(event.text("error").unwrap_or("it has ended too early").to_owned());
                    }
                    Ok(Ok(event)) if event.name != "BLOCK_JOB_READY" => {}
                    Ok(Ok(_)) | Ok(Err(EventError::Lagged(_))) | Err(_) => break,
                    Ok(Err(error)) => return Err(error.to_string()),
                }
            }
        }
    }

    /// The source, before the switch-over: the guest stands still, and the copy is ended when its last write is there.
    pub(super) async fn finish_disk(&self, vm: &LocalVm, ready: &Ready) -> Result<(), Report> {
        if ready.disk.is_none() {
            return Ok(());
        }
        for mirror in Mirror::all(&ready.id, &vm.spec()) {
            mirror.finish(vm.qemu.qmp()).await.map_err(|why| broken(&format!("{}: {why}", mirror.drive)))?;
        }
        Ok(())
    }

    /// The source: the VM stays, and its disk is copied no further.
    pub(super) async fn give_up_disk(&self, vm: &LocalVm, ready: &Ready) {
        if ready.disk.is_none() {
            return;
        }
        for mirror in Mirror::all(&ready.id, &vm.spec()) {
            if let Err(error) = mirror.give_up(vm.qemu.qmp()).await {
                self.evidence.events.warn(format!("{}: the copy of {} is not ended: {error}", ready.id, mirror.drive));
            }
        }
    }
}

/// What is a VM's own and goes with it, by QEMU's ids: all but what every host has.
fn own_drives(spec: &VmSpec) -> Vec<String> {
    let media: Vec<Medium> = spec.drives.iter().map(|drive| Medium::of(&drive.content)).collect();
    let ids = drive_ids(media.iter().copied());
    let goes = |medium: &Medium| !matches!(medium, Medium::Cd | Medium::SeenDisk);
    let own = ids.into_iter().zip(media).filter(|(_, medium)| goes(medium)).map(|(id, _)| id);
    std::iter::once(FIRST.to_owned()).chain(own).collect()
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// The name that QEMU has given to one of the VM's drives: its id, or one that QEMU made for a disk.
async fn node_of(qmp: &Qmp, drive: &str) -> Result<String, QmpError> {
    let blocks = qmp.execute("query-block", Value::Null, COMMAND).await?;
    let node = |block: &Value| block["inserted"]["node-name"].as_str().map(str::to_owned);
    let is_it = |block: &&Value| block["device"] == drive || block["inserted"]["node-name"] == drive;
    let block = blocks.as_array().into_iter().flatten().find(is_it);
    block.and_then(node).ok_or_else(|| QmpError::Shape {
        command: "query-block".to_owned(),
        lacks: format!("a drive {drive}"),
        answer: String::new(),
    })
}

fn broken(why: &str) -> Report {
    Report::new(
        ErrorCode::MigrationFailed,
        "the disk could not be copied to the destination; the VM goes on at the source",
    )
    .with("copy", why)
}
