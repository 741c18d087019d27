//! Lines with a cap, read from a peer that may send anything.
//!
//! An oversized line is skipped to its end and reported as such; the lines after it are read as usual. What may not
//! happen here: an allocation that the peer chooses the size of.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Longest line taken from a monitor, in bytes. `query-qmp-schema` answers with about 300 KiB.
pub(crate) const LINE_MAX: usize = 8 * 1024 * 1024;

/// What stood between two newlines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A whole line, without its end.
    Whole(Vec<u8>),
    /// A line longer than the cap, with its length; its content is dropped.
    Oversized(usize),
}

/// Reads one line of at most `max` bytes; `None` at the end of the stream. A last line without its end is dropped.
pub(crate) async fn read_line<R: AsyncBufRead + Unpin>(reader: &mut R, max: usize) -> io::Result<Option<Line>> {
    let mut kept = Vec::new();
    let mut seen = 0usize;
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(None);
        }
        let end = chunk.iter().position(|b| *b == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        seen = seen.saturating_add(part.len());
        if seen <= max {
            kept.extend_from_slice(part);
        } else {
            kept = Vec::new();
        }
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            if seen > max {
                return Ok(Some(Line::Oversized(seen)));
            }
            if kept.last() == Some(&b'\r') {
                kept.pop();
            }
            return Ok(Some(Line::Whole(kept)));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    #[tokio::test]
    async fn an_oversized_line_is_skipped_and_the_next_one_read() {
        let input = [b"short\r\n".to_vec(), vec![b'x'; 1000], b"\n{}\n\nrest".to_vec()].concat();
        let mut reader = BufReader::with_capacity(16, &input[..]);
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut reader, 100).await.unwrap() {
            lines.push(line);
        }
        let whole = |text: &str| Line::Whole(text.as_bytes().to_vec());
        assert_eq!(lines, [whole("short"), Line::Oversized(1000), whole("{}"), whole("")]);
    }
}
