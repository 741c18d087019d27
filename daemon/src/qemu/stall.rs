//! Whether a transfer gets nowhere: pure, from the readings that are taken of it anyway.
//!
//! **A transfer is stalled** when, for at least [`WINDOW_MS`], what remained each time the dirty pages were gathered has not
//! fallen below nine tenths of the least it had been, over at least [`GATHERINGS`] gatherings; or when nothing at all was
//! sent for as long. What remains between two gatherings falls and leaps up again like the teeth of a saw, and says nothing
//! by itself; and a first pass over much memory is long, but no stall.

use vt_protocol::vm::Sample;

/// For so long nothing was gained, ms.
pub const WINDOW_MS: u64 = 5000;
/// Over so many gatherings.
pub const GATHERINGS: u32 = 3;

/// What was seen of a transfer so far.
#[derive(Debug, Default)]
pub struct Stall {
    gatherings: u64,
    /// The least that remained at a gathering, and when.
    least: Option<(u64, u64)>,
    /// Gatherings since.
    in_vain: u32,
    sent: (u64, u64),
}

impl Stall {
    /// Whether the transfer is stalled, now that this reading was taken. Readings come in their order.
    pub fn observe(&mut self, sample: &Sample) -> bool {
        let (now, remaining) = (sample.t_ms, sample.ram_remaining_bytes);
        if sample.status != "active" {
            // Set up, paused, or over to post-copy: no pages are gathered.
            *self = Self::default();
            return false;
        }
        if sample.ram_transferred_bytes != self.sent.1 || self.sent.0 == 0 {
            self.sent = (now.max(1), sample.ram_transferred_bytes);
        }
        if sample.dirty_sync_count != self.gatherings {
            self.gatherings = sample.dirty_sync_count;
            match self.least {
                Some((_, least)) if remaining.saturating_mul(10) > least.saturating_mul(9) => self.in_vain += 1,
                _ => (self.least, self.in_vain) = (Some((now, remaining)), 0),
            }
        }
        let in_vain = self.in_vain >= GATHERINGS && self.least.is_some_and(|(at, _)| now - at >= WINDOW_MS);
        in_vain || now.saturating_sub(self.sent.0) >= WINDOW_MS
    }
}

/// For how long a transfer was stalled, ms, by all its readings.
pub fn stalled_ms(samples: &[Sample]) -> u64 {
    let mut stall = Stall::default();
    let mut last = 0;
    let spans = samples.iter().map(|sample| {
        let span = sample.t_ms.saturating_sub(std::mem::replace(&mut last, sample.t_ms));
        if stall.observe(sample) { span } else { 0 }
    });
    spans.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings every 100 ms of passes that begin with so much to send, MiB, each taking so long.
    fn passes(begin_mib: &[u64], pass_ms: u64) -> Vec<Sample> {
        let (mut samples, mut sent) = (Vec::new(), 0);
        for (pass, begin) in begin_mib.iter().map(|mib| mib << 20).enumerate() {
            for step in 0..pass_ms / 100 {
                let done = begin * step * 100 / pass_ms;
                samples.push(Sample {
                    t_ms: pass as u64 * pass_ms + step * 100,
                    status: "active".into(),
                    dirty_sync_count: pass as u64 + 1,
                    ram_remaining_bytes: begin - done,
                    ram_transferred_bytes: sent + done,
                    ..Sample::default()
                });
            }
            sent += begin;
        }
        samples
    }

    #[test]
    fn what_falls_from_pass_to_pass_is_no_stall_however_it_leaps_between() {
        assert_eq!(stalled_ms(&passes(&[1000, 500, 250, 120, 60, 30], 3000)), 0);
        assert_eq!(stalled_ms(&passes(&[100_000], 600_000)), 0, "a long first pass");
        assert_eq!(stalled_ms(&passes(&[1000, 300, 310], 60_000)), 0, "two in vain may be chance");
    }

    #[test]
    fn what_does_not_fall_is_one_and_ends_when_it_does() {
        let teeth = passes(&[1000, 300, 310, 305, 300, 300, 300], 2000);
        let stalled = stalled_ms(&teeth);
        assert!((4000..=7000).contains(&stalled), "{stalled}");
        let freed = passes(&[1000, 300, 310, 305, 300, 100, 30, 10], 2000);
        let mut stall = Stall::default();
        let seen: Vec<bool> = freed.iter().map(|sample| stall.observe(sample)).collect();
        assert!(seen.contains(&true) && !seen.last().unwrap(), "it goes on");
        assert_eq!(stalled_ms(&passes(&[1000, 300, 310, 305, 300], 500)), 0, "within the window nothing is said");
    }

    #[test]
    fn a_link_that_carries_nothing_is_one() {
        let mut samples = passes(&[1000], 1000);
        let last = samples.last().unwrap().clone();
        samples.extend((1..100).map(|step| Sample { t_ms: last.t_ms + step * 100, ..last.clone() }));
        let stalled = stalled_ms(&samples);
        assert!((4500..=5500).contains(&stalled), "{stalled}");
        let over = Sample { status: "postcopy-active".into(), ..last };
        assert_eq!(stalled_ms(&vec![over; 200]), 0);
    }
}
