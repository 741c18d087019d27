//! How long a guest stood still in a move, in three figures: QEMU's, the guest's, the network's. Pure.
//!
//! They measure three things. QEMU counts from the stop at the source to the end of its stream, and knows neither of the
//! hosts' decision nor of the resume; that part is measured beside and added before they are compared. The guest's is the
//! time its clocks lost against the time that passed, or the longest step they made at once, whichever is more: a guest
//! whose clocks stand with it sees no step. The network's is the longest silence of its beacon, heard from outside.

use serde::{Deserialize, Serialize};
use vt_protocol::vm::MigrationResult;

/// Figures agree within this, which is what a beacon and a tick of 10 ms each and two busy hosts make of one stop…
const AGREE_MS: f64 = 60.0;
/// … where instructions are emulated within this: a QEMU that has just loaded a guest translates its code anew, and for so
/// long the guest runs and gets nothing done…
const EMULATED_MS: f64 = 250.0;
/// … or within this share of the longest.
const AGREE_SHARE: f64 = 0.5;

/// The figures of one move, ms; `None`: not measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Downtime {
    /// QEMU's own.
    pub(super) qemu_ms: Option<u64>,
    /// What QEMU does not count: the hosts' decision and the resume, or all of a transfer whose guest was paused before.
    pub(super) beyond_ms: Option<f64>,
    /// By the guest's clocks.
    pub(super) guest_ms: Option<u64>,
    /// The longest silence on its network.
    pub(super) network_ms: Option<u64>,
    /// Whether they are further apart than they should be.
    pub(super) disagree: bool,
}

impl Downtime {
    pub(super) fn of(result: Option<&MigrationResult>, guest_ms: Option<u64>, network_ms: Option<u64>) -> Self {
        let qemu_ms = result.map(|result| result.qemu_downtime_ms);
        Self { qemu_ms, beyond_ms: result.map(beyond), guest_ms, network_ms, disagree: false }
    }

    /// With what others measured of the same move.
    pub(super) fn with(self, other: Self) -> Self {
        Self {
            qemu_ms: self.qemu_ms.or(other.qemu_ms),
            beyond_ms: self.beyond_ms.or(other.beyond_ms),
            guest_ms: self.guest_ms.or(other.guest_ms),
            // Who heard the most of it is the one to be believed.
            network_ms: self.network_ms.into_iter().chain(other.network_ms).min(),
            disagree: false,
        }
    }

    /// With the mark where they disagree.
    pub(super) fn compared(self, emulated: bool) -> Self {
        Self { disagree: self.are_apart(if emulated { EMULATED_MS } else { AGREE_MS }), ..self }
    }

    fn are_apart(&self, agree_ms: f64) -> bool {
        let counted = self.qemu_ms.map(|ms| ms as f64 + self.beyond_ms.unwrap_or(0.0));
        let seen = [self.guest_ms, self.network_ms].into_iter().flatten().map(|ms| ms as f64);
        let all = || seen.clone().chain(counted);
        let (least, most) = all().fold((f64::MAX, 0.0_f64), |(least, most), ms| (least.min(ms), most.max(ms)));
        all().count() > 1 && most - least > agree_ms.max(most * AGREE_SHARE)
    }
}

/// For how long a guest stood still that QEMU does not count, ms.
fn beyond(result: &MigrationResult) -> f64 {
    let part =
        |wanted: &str| -> f64 { result.parts_ms.iter().filter(|(name, _)| name == wanted).map(|(_, ms)| ms).sum() };
    let resume = part("resume");
    // A file is written before it is moved and read.
    let deliver = part("deliver");
    // A post-copy is decided while QEMU already counts.
    let postcopy = result.parts_ms.iter().any(|(name, _)| name == "post-copy");
    let decision = if postcopy { 0.0 } else { part("vote and decision") };
    // The guest was paused before QEMU was told to begin; QEMU counts from its completion.
    let paused = if result.how.offline { part("start") + part("transfer") } else { 0.0 };
    paused + deliver + decision + resume
}

impl std::fmt::Display for Downtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |ms: Option<u64>| ms.map_or_else(|| "–".to_owned(), |ms| ms.to_string());
        write!(f, "downtime {}", ms(self.qemu_ms))?;
        if let Some(beyond) = self.beyond_ms {
            write!(f, "+{beyond:.0}")?;
        }
        let mark = if self.disagree { " ≠" } else { "" };
        write!(f, "/{}/{} ms by QEMU/guest/network{mark}", ms(self.guest_ms), ms(self.network_ms))
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::{ids::Name, vm::How};

    use super::*;

    fn result(qemu_downtime_ms: u64, offline: bool, parts: &[(&str, f64)]) -> MigrationResult {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let mut result: MigrationResult = serde_json::from_value(serde_json::json!({
            "id": {"vm": {"attempt": {"case": {"job": 1, "index": 1}, "number": 1}, "name": "vm1"}, "number": 1},
            "from": name("host1"), "to": name("host2"), "total_ms": 0, "qemu_downtime_ms": qemu_downtime_ms,
            "setup_ms": 0, "ram_transferred_bytes": 0, "normal_pages": 0, "duplicate_pages": 0, "dirty_sync_count": 0,
            "wall_ms": 0.0, "parts_ms": [], "source_pid": 1, "destination_pid": 2, "samples": [],
        }))
        .unwrap();
        result.how = How { offline, ..How::default() };
        result.parts_ms = parts.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect();
        result
    }

    const PARTS: [(&str, f64); 5] =
        [("prepare", 300.0), ("start", 5.0), ("transfer", 900.0), ("vote and decision", 150.0), ("resume", 20.0)];

    fn of(result: &MigrationResult, guest_ms: Option<u64>, network_ms: Option<u64>) -> Downtime {
        Downtime::of(Some(result), guest_ms, network_ms).compared(false)
    }

    #[test]
    fn what_qemu_does_not_count_is_added_before_figures_are_compared() {
        let plain = of(&result(10, false, &PARTS), Some(175), Some(190));
        assert_eq!((plain.beyond_ms, plain.disagree), (Some(170.0), false), "{plain}");
        let paused = of(&result(2, true, &PARTS), Some(1050), Some(1090));
        assert_eq!((paused.beyond_ms, paused.disagree), (Some(1075.0), false), "{paused}");
        let parts: Vec<_> = PARTS.into_iter().chain([("post-copy", 700.0)]).collect();
        let postcopy = of(&result(160, false, &parts), Some(175), Some(190));
        assert_eq!((postcopy.beyond_ms, postcopy.disagree), (Some(20.0), false), "{postcopy}");
        let parts: Vec<_> = PARTS.into_iter().chain([("deliver", 500.0)]).collect();
        assert_eq!(of(&result(5, false, &parts), None, None).beyond_ms, Some(670.0));
    }

    #[test]
    fn figures_that_are_far_apart_are_marked_and_one_alone_is_not() {
        let still = |guest, network| of(&result(5, false, &[]), guest, network);
        assert!(!still(Some(40), Some(60)).disagree);
        assert!(still(Some(900), Some(910)).disagree, "QEMU knows of nothing");
        assert!(still(Some(20), Some(400)).disagree, "its network came late");
        assert!(!still(None, None).disagree);
        assert!(!Downtime::of(None, Some(900), None).compared(false).disagree);
        let slow = Downtime::of(Some(&result(5, false, &[])), Some(90), Some(240));
        assert!(slow.compared(false).disagree && !slow.compared(true).disagree, "its code is translated anew");
        assert_eq!(still(Some(900), None).to_string(), "downtime 5+0/900/– ms by QEMU/guest/network ≠");
    }

    #[test]
    fn what_several_parties_measured_is_one() {
        let source = Downtime::of(Some(&result(5, false, &[("resume", 3.0)])), None, Some(400));
        let all = source.with(Downtime::of(None, Some(30), Some(45))).compared(false);
        assert_eq!((all.qemu_ms, all.guest_ms, all.network_ms, all.disagree), (Some(5), Some(30), Some(45), false));
    }
}
