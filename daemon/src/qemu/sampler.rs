//! Readings of a running migration, ten a second: the only thing on a monitor that polls.
//!
//! Bounded: after [`SAMPLES_MAX`] readings every second one is dropped and the pace is halved, so a transfer of hours
//! keeps its shape.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};
use vt_protocol::vm::Sample;

use super::{
    qmp::{MigrationInfo, Qmp, QmpError},
    stall::Stall,
};

/// Most readings kept: a quarter of an hour at full pace.
pub const SAMPLES_MAX: usize = 9000;
const PERIOD: Duration = Duration::from_millis(100);
/// A reading that takes longer is given up; the next one is tried.
const READING_TIMEOUT: Duration = Duration::from_secs(5);

/// A running sampler. Dropping it ends it.
#[derive(Debug)]
pub struct Sampler {
    stop: watch::Sender<bool>,
    latest: watch::Receiver<Sample>,
    task: Option<JoinHandle<Vec<Sample>>>,
}

impl Sampler {
    /// Begins to read. `began` is the moment `t_ms` counts from.
    pub fn start(qmp: Qmp, began: Instant) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (tell, latest) = watch::channel(Sample::default());
        Self { stop, latest, task: Some(tokio::spawn(sample(qmp, began, stopped, tell))) }
    }

    /// The newest reading, for a progress display.
    pub fn latest(&self) -> watch::Receiver<Sample> {
        self.latest.clone()
    }

    /// Takes one last reading and returns all of them.
    pub async fn finish(mut self) -> Vec<Sample> {
        self.stop.send_replace(true);
        match self.task.take() {
            Some(task) => task.await.unwrap_or_default(),
            None => Vec::new(),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A reading as a sample.
pub fn sample_of(info: &MigrationInfo, t_ms: u64) -> Sample {
    let ram = info.ram.unwrap_or_default();
    Sample {
        t_ms,
        status: info.status.to_string(),
        ram_total_bytes: ram.total,
        ram_transferred_bytes: ram.transferred,
        ram_remaining_bytes: ram.remaining,
        dirty_sync_count: ram.dirty_sync_count,
        dirty_rate_bytes_s: ram.dirty_pages_rate.saturating_mul(ram.page_size),
        xfer_bytes_s: (ram.mbps * 1e6 / 8.0) as u64,
        expected_downtime_ms: info.expected_downtime_ms,
        cpu_throttle_pct: info.cpu_throttle_pct.unwrap_or(0),
        stalled: false,
    }
}

async fn sample(
    qmp: Qmp,
    began: Instant,
    mut stopped: watch::Receiver<bool>,
    tell: watch::Sender<Sample>,
) -> Vec<Sample> {
    let mut samples = Samples::default();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut stall, mut last) = (Stall::default(), false);
    while !last {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => last = true,
        }
        match qmp.execute("query-migrate", Value::Null, READING_TIMEOUT).await {
            Ok(answer) => {
                let t_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let mut sample = sample_of(&MigrationInfo::from(answer), t_ms);
                sample.stalled = stall.observe(&sample);
                tell.send_replace(sample.clone());
                samples.push(sample, last);
            }
            Err(QmpError::Timeout { .. }) => {}
            // The monitor is gone: nothing more to read.
            Err(_) => break,
        }
    }
    samples.kept
}

/// Readings that stay below their bound.
#[derive(Default)]
struct Samples {
    kept: Vec<Sample>,
    /// Two to this power readings are taken for one that is kept.
    halvings: u32,
    seen: u64,
}

impl Samples {
    fn push(&mut self, sample: Sample, always: bool) {
        let wanted = self.seen.is_multiple_of(1 << self.halvings.min(63));
        self.seen += 1;
        if !wanted && !always {
            return;
        }
        if self.kept.len() >= SAMPLES_MAX {
            let mut even = false;
            self.kept.retain(|_| {
                even = !even;
                even
            });
            self.halvings += 1;
        }
        self.kept.push(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_transfer_keeps_its_shape_and_its_bound() {
        let mut samples = Samples::default();
        let count = SAMPLES_MAX as u64 * 5;
        for t_ms in 0..count {
            samples.push(Sample { t_ms, ..Sample::default() }, t_ms == count - 1);
        }
        let times: Vec<u64> = samples.kept.iter().map(|s| s.t_ms).collect();
        assert!(times.len() <= SAMPLES_MAX && times.len() > SAMPLES_MAX / 4, "{}", times.len());
        assert_eq!((times[0], *times.last().unwrap()), (0, count - 1));
        assert!(times.windows(2).all(|pair| pair[0] < pair[1] && pair[1] - pair[0] <= 16));
    }
}
