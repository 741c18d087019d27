//! What is kept of a transfer: its readings, its figures, and where QEMU's own words are.

use std::time::Duration;

use vt_protocol::{
    ids::MigrationId,
    vm::{How, MigrationResult, Sample},
};

use super::sender::Sender;
use crate::{
    evidence::samples,
    qemu::{qmp::MigrationInfo, stall::stalled_ms, vm::TRANSCRIPT_FILE},
};

/// The file of the figures, in the evidence.
pub(super) fn result_file(id: &MigrationId) -> String {
    format!("migrations/{}-{}.json", id.vm.name, id.number)
}

impl Sender {
    pub(super) fn keep_samples(&self, samples: &[Sample]) {
        let write = || -> std::io::Result<()> {
            let folder = self.attempt.evidence.folder("migrations")?;
            let name = format!("{}-{}.csv", self.ready.id.vm.name, self.ready.id.number);
            std::fs::write(folder.join(name), samples::csv(samples))
        };
        if let Err(error) = write() {
            self.attempt.evidence.events.warn(format!("samples of {} were not written: {error}", self.ready.id));
        }
    }

    /// The figures, with where QEMU's own words are: relative to the evidence of either host.
    pub(super) fn kept(&self, result: &MigrationResult) -> serde_json::Value {
        let mut kept = serde_json::json!(result);
        let evidence = self.vm.qemu.evidence();
        let source = evidence.strip_prefix(self.attempt.evidence.dir()).unwrap_or(evidence);
        let vm = &self.ready.id.vm.name;
        kept["source_transcript"] = source.join(TRANSCRIPT_FILE).display().to_string().into();
        kept["destination_transcript"] = format!("{vm}/in-{}/{TRANSCRIPT_FILE}", self.ready.id.number).into();
        kept
    }

    pub(super) fn result(&self, info: Option<MigrationInfo>, samples: Vec<Sample>) -> MigrationResult {
        let ram = info.as_ref().and_then(|info| info.ram).unwrap_or_default();
        let ms = |time: Duration| (time.as_secs_f64() * 100_000.0).round() / 100.0;
        let t = self.times;
        let part = |name: &str, from: Duration, to: Duration| (name.to_owned(), ms(to.saturating_sub(from)));
        let number = |value: Option<Option<u64>>| value.flatten().unwrap_or(0);
        MigrationResult {
            id: self.ready.id.clone(),
            from: self.call.from.clone(),
            to: self.call.to.clone(),
            how: How::of(&self.call.spec),
            backend: self.vm.qemu.record().spec.backend,
            capabilities: self.call.spec.asked().cloned().collect(),
            total_ms: number(info.as_ref().map(|info| info.total_ms)),
            qemu_downtime_ms: number(info.as_ref().map(|info| info.downtime_ms)),
            setup_ms: number(info.as_ref().map(|info| info.setup_ms)),
            ram_transferred_bytes: ram.transferred,
            normal_pages: ram.normal,
            duplicate_pages: ram.duplicate,
            dirty_sync_count: ram.dirty_sync_count,
            wall_ms: ms(t.resumed),
            parts_ms: [
                part("prepare", Duration::ZERO, t.prepared),
                part("start", t.prepared, t.started),
                part("transfer", t.started, t.written),
            ]
            .into_iter()
            .chain(self.outlet.is_file().then(|| part("deliver", t.written, t.completed)))
            .chain([part("vote and decision", t.completed, t.decided), part("resume", t.decided, t.resumed)])
            .chain((!t.ended.is_zero()).then(|| part("post-copy", t.resumed, t.ended)))
            .collect(),
            postcopy_requests: ram.postcopy_requests,
            source_pid: self.vm.qemu.pid(),
            destination_pid: self.ready.pid,
            source_qemu: self.vm.qemu.version(),
            destination_qemu: self.ready.qemu_version.clone(),
            stalled_ms: stalled_ms(&samples),
            missed: self.interventions.missed().map(|(at, what)| format!("{at}: {what:?}")).collect(),
            samples,
        }
    }
}
