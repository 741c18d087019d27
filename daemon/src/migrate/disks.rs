//! The disk of a VM whose pool the destination does not share: QEMU copies it with the VM, over NBD.
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
use tokio::time::{Instant, sleep, timeout};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{MigrationId, Name},
    peer::PrepareIncoming,
    vm::MigrationSpec,
};

use super::{
    inlet::{free_ports, no_port},
    preflight::Difference,
    send::Ready,
};
use crate::{
    party::{attempt::LocalAttempt, image::Image, local_vm::LocalVm},
    qemu::qmp::{EventError, Events, Qmp, QmpError},
};

/// The device whose disk it is.
const DEVICE: &str = "vda";
/// The name of the export.
const EXPORT: &str = "disk";
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
    fn of(id: &MigrationId) -> Self {
        Self { job: format!("copy-{}", id.number), node: format!("there-{}", id.number) }
    }

    /// Whether an event says that this job has ended.
    fn ended(&self, event: &crate::qemu::qmp::Event) -> bool {
        event.name == "BLOCK_JOB_COMPLETED" && event.text("device") == Some(&self.job)
    }

    async fn begin(&self, qmp: &Qmp, address: SocketAddr) -> Result<(), QmpError> {
        let server = json!({ "type": "inet", "host": address.ip().to_string(), "port": address.port().to_string() });
        let add = json!({ "driver": "nbd", "node-name": self.node, "server": server, "export": EXPORT });
        qmp.execute("blockdev-add", add, COMMAND).await?;
        // Writes of the guest do not wait for the other host.
        let mirror = json!({ "job-id": self.job, "device": DEVICE, "target": self.node, "sync": "top" });
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
        if !self.places.shared {
            spec.capabilities.insert(PAUSE.to_owned(), true);
        }
        spec
    }

    /// The digest of the image that a VM's disk lies upon, where the disk has to be copied.
    pub(super) fn image_to_compare(&self, image: &Name) -> Result<Option<String>, Report> {
        if self.places.shared { Ok(None) } else { self.image(image).map(|image| Some(image.record.digest)) }
    }

    /// The destination: whether the VM's disk can be had here, by what the source says.
    pub(super) fn disk_fits(&self, asked: &PrepareIncoming, image: &Image) -> Option<Difference> {
        let disk = self.places.disk(&asked.migration.vm);
        let text = match &asked.copies_upon {
            None if !self.places.shared => {
                "the pool of the destination is not shared, and the one of the source is".to_owned()
            }
            Some(_) if self.places.shared => {
                "the pool of the source is not shared, and the one of the destination is".to_owned()
            }
            None if disk.is_file() => return None,
            None => format!("the VM's disk {} is not seen on the destination", disk.display()),
            Some(digest) if *digest == image.record.digest => return None,
            Some(digest) => format!(
                "image {} is another one on the destination: {} there, {} here",
                asked.vm.image,
                short(digest),
                short(&image.record.digest)
            ),
        };
        Some(Difference::Unfit(text))
    }

    /// The destination: lets the source write the VM's disk here. Returns where.
    pub(super) async fn open_disk(&self, qmp: &Qmp) -> Result<String, Report> {
        let node = node_of(qmp).await.map_err(|error| error.report())?;
        let mut last = None;
        for address in free_ports(self.places.migration) {
            match serve(qmp, address, &node).await {
                Ok(()) => return Ok(address.to_string()),
                Err(error) if error.to_string().contains("in use") => last = Some(error.to_string()),
                Err(error) => return Err(error.report()),
            }
        }
        Err(no_port(self.places.migration, last))
    }

    /// The destination: nobody but its own QEMU can write the disk here after this.
    pub(super) async fn close_disk(&self, qmp: &Qmp) {
        while !self.places.shared && !self.closing.is_cancelled() && qmp.is_open() {
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
        if !self.places.shared {
            self.remove_disk(vm).await;
        }
    }

    /// The source: copies the disk, and returns when what is written from now on is all that is missing there.
    pub(super) async fn copy_disk(&self, vm: &LocalVm, ready: &Ready) -> Result<(), Report> {
        let Some(address) = &ready.disk else { return Ok(()) };
        let address = address.parse().map_err(|_| broken("the destination has named no place for it"))?;
        let (mirror, qmp) = (Mirror::of(&ready.id), vm.qemu.qmp());
        let mut events = qmp.events();
        let begun = Instant::now();
        self.evidence.events.say(format!(
            "{}: the pool is not shared, so the disk is copied with the VM (NBD to {address}, plain TCP)",
            ready.id
        ));
        let said = |error: QmpError| broken(&error.to_string());
        if mirror.progress(qmp).await.map_err(said)?.is_none() {
            if mirror.is_attached(qmp).await.map_err(said)? {
                mirror.detach(qmp).await.map_err(said)?;
            }
            mirror.begin(qmp, address).await.map_err(said)?;
        }
        let copied = tokio::select! {
            copied = self.await_ready(&mirror, qmp, &mut events) => copied,
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
                let _ = mirror.give_up(qmp).await;
                Err(broken(&why))
            }
        }
    }

    async fn await_ready(&self, mirror: &Mirror, qmp: &Qmp, events: &mut Events) -> Result<u64, String> {
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            match timeout(LOOKS, events.next()).await {
                Ok(Ok(event)) if mirror.ended(&event) => {
                    return Err(event.text("error").unwrap_or("it has ended too early").to_owned());
                }
                Ok(Ok(event)) if event.name == "BLOCK_JOB_READY" => {}
                Ok(Ok(_)) => continue,
                Ok(Err(EventError::Lagged(_))) | Err(_) => {}
                Ok(Err(error)) => return Err(error.to_string()),
            }
            let now = mirror.progress(qmp).await.map_err(|error| error.to_string())?;
            let now = now.ok_or("it has ended too early")?;
            if now.ready {
                return Ok(now.done);
            }
            if now.done != last {
                (last, moved) = (now.done, Instant::now());
                self.evidence.events.say(format!("disk: {} of {} bytes are there", now.done, now.total));
            } else if moved.elapsed() > STALL {
                return Err(format!("it stood still for {} s after {last} of {} bytes", STALL.as_secs(), now.total));
            }
        }
    }

    /// The source, before the switch-over: the guest stands still, and the copy is ended when its last write is there.
    pub(super) async fn finish_disk(&self, vm: &LocalVm, ready: &Ready) -> Result<(), Report> {
        if ready.disk.is_none() {
            return Ok(());
        }
        Mirror::of(&ready.id).finish(vm.qemu.qmp()).await.map_err(|why| broken(&why))
    }

    /// The source: the VM stays, and its disk is copied no further.
    pub(super) async fn give_up_disk(&self, vm: &LocalVm, ready: &Ready) {
        if ready.disk.is_some()
            && let Err(error) = Mirror::of(&ready.id).give_up(vm.qemu.qmp()).await
        {
            self.evidence.events.warn(format!("{}: the copy of the disk is not ended: {error}", ready.id));
        }
    }
}

/// The destination: listens for one connection, which may write that disk.
async fn serve(qmp: &Qmp, address: SocketAddr, node: &str) -> Result<(), QmpError> {
    let inet = json!({ "host": address.ip().to_string(), "port": address.port().to_string() });
    let start = json!({ "addr": { "type": "inet", "data": inet }, "max-connections": 1 });
    qmp.execute("nbd-server-start", start, COMMAND).await?;
    let export = json!({ "type": "nbd", "id": EXPORT, "name": EXPORT, "node-name": node, "writable": true });
    qmp.execute("block-export-add", export, COMMAND).await.map(drop)
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// The name that QEMU has given to the VM's disk.
async fn node_of(qmp: &Qmp) -> Result<String, QmpError> {
    let blocks = qmp.execute("query-block", Value::Null, COMMAND).await?;
    let block = blocks.as_array().into_iter().flatten().find(|block| block["device"] == DEVICE);
    let node = block.and_then(|block| block["inserted"]["node-name"].as_str());
    node.map(str::to_owned).ok_or_else(|| QmpError::Shape {
        command: "query-block".to_owned(),
        lacks: format!("a disk {DEVICE}"),
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
