//! A tolerant view of `query-migrate`: every field may be missing or of another type in some QEMU.

use serde_json::Value;

use super::words::MigrationStatus;

/// What QEMU says about its migration. `None`: it did not say.
#[derive(Debug, Clone, PartialEq)]
pub struct MigrationInfo {
    /// Where it is.
    pub status: MigrationStatus,
    /// Why it failed, QEMU's words.
    pub error: Option<String>,
    /// Time since the start, or the whole time when it has ended, ms.
    pub total_ms: Option<u64>,
    /// Downtime QEMU measured at the end, ms.
    pub downtime_ms: Option<u64>,
    /// Downtime QEMU expects, ms.
    pub expected_downtime_ms: Option<u64>,
    /// Time to set up, ms.
    pub setup_ms: Option<u64>,
    /// How far auto-converge slows the guest, percent.
    pub cpu_throttle_pct: Option<u64>,
    /// Figures of RAM, once the transfer runs.
    pub ram: Option<RamInfo>,
    /// The whole answer.
    pub raw: Value,
}

/// Figures of RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RamInfo {
    /// Size of all RAM, bytes.
    pub total: u64,
    /// Sent, bytes.
    pub transferred: u64,
    /// To send, bytes.
    pub remaining: u64,
    /// Pages that were zero.
    pub duplicate: u64,
    /// Pages sent as they are.
    pub normal: u64,
    /// Times all dirty pages were synchronised.
    pub dirty_sync_count: u64,
    /// Pages the guest dirties in a second.
    pub dirty_pages_rate: u64,
    /// Bytes in a page.
    pub page_size: u64,
    /// Rate of the transfer, bit/s × 10⁻⁶.
    pub mbps: f64,
    /// Pages asked for by the destination in post-copy.
    pub postcopy_requests: u64,
}

impl From<Value> for MigrationInfo {
    fn from(raw: Value) -> Self {
        let number = |key: &str| raw.get(key).and_then(Value::as_u64);
        let ram = raw.get("ram").filter(|ram| ram.is_object()).map(|ram| {
            let number = |key: &str| ram.get(key).and_then(Value::as_u64).unwrap_or(0);
            RamInfo {
                total: number("total"),
                transferred: number("transferred"),
                remaining: number("remaining"),
                duplicate: number("duplicate"),
                normal: number("normal"),
                dirty_sync_count: number("dirty-sync-count"),
                dirty_pages_rate: number("dirty-pages-rate"),
                page_size: match number("page-size") {
                    0 => 4096,
                    bytes => bytes,
                },
                mbps: ram.get("mbps").and_then(Value::as_f64).filter(|m| m.is_finite()).unwrap_or(0.0),
                postcopy_requests: number("postcopy-requests"),
            }
        });
        Self {
            status: raw.get("status").and_then(Value::as_str).unwrap_or("none").into(),
            error: raw.get("error-desc").and_then(Value::as_str).map(str::to_owned),
            total_ms: number("total-time"),
            downtime_ms: number("downtime"),
            expected_downtime_ms: number("expected-downtime"),
            setup_ms: number("setup-time"),
            cpu_throttle_pct: number("cpu-throttle-percentage"),
            ram,
            raw,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_words_and_wrong_types_are_taken() {
        let info = MigrationInfo::from(json!({"status": "teleporting", "total-time": "soon", "ram": {"total": -3}}));
        assert_eq!(info.status, MigrationStatus::Other("teleporting".into()));
        assert_eq!(info.total_ms, None);
        assert_eq!(info.ram.unwrap().total, 0);
        assert_eq!(MigrationInfo::from(json!([1])).status, MigrationStatus::None);
        assert_eq!(MigrationInfo::from(json!({"ram": 5})).ram, None);
    }
}
