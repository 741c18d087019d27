//! Readings of a migration as CSV: a figure each column, its unit in its name, so that a plot needs no explanation.

use std::fmt::Write;

use vt_protocol::vm::Sample;

/// The columns, in order.
pub const HEADER: &str = "t_ms,phase,iter,ram_total_bytes,ram_transferred_bytes,ram_remaining_bytes,\
dirty_rate_bytes_s,xfer_bytes_s,cpu_throttle_pct,expected_downtime_ms,stalled";

/// The readings as CSV, header first. What QEMU did not say is left empty.
pub fn csv(samples: &[Sample]) -> String {
    let mut text = String::with_capacity(HEADER.len() + samples.len() * 80);
    text.push_str(HEADER);
    text.push('\n');
    for s in samples {
        // QEMU's words are lower case with hyphens; anything else would be a newer QEMU's and must not break a row.
        let phase: String = s.status.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let downtime = s.expected_downtime_ms.map(|ms| ms.to_string()).unwrap_or_default();
        let _ = writeln!(
            text,
            "{},{phase},{},{},{},{},{},{},{},{downtime},{}",
            s.t_ms,
            s.dirty_sync_count,
            s.ram_total_bytes,
            s.ram_transferred_bytes,
            s.ram_remaining_bytes,
            s.dirty_rate_bytes_s,
            s.xfer_bytes_s,
            s.cpu_throttle_pct,
            u8::from(s.stalled),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_the_columns_of_the_header() {
        let sample = Sample { t_ms: 100, status: "active,\"x\n".into(), ram_remaining_bytes: 7, ..Sample::default() };
        let text = csv(&[sample, Sample { expected_downtime_ms: Some(300), ..Sample::default() }]);
        let rows: Vec<_> = text.lines().collect();
        assert_eq!(rows.len(), 3);
        for row in &rows {
            assert_eq!(row.split(',').count(), 11, "{row}");
        }
        assert!(rows[1].starts_with("100,activex,0,0,0,7,"), "{}", rows[1]);
        assert!(rows[2].ends_with(",300,0"));
    }
}
