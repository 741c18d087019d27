//! Words for numbers and times, and cleaning of text that came from elsewhere.

use std::cmp::Ordering;

/// A size: `31 MiB`, `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A rate in bits: `6.2 Gb/s`.
pub fn bit_rate(bytes_per_s: u64) -> String {
    let bits = bytes_per_s as f64 * 8.0;
    for (factor, unit) in [(1e9, "Gb/s"), (1e6, "Mb/s"), (1e3, "kb/s")] {
        if bits >= factor {
            return format!("{:.1} {unit}", bits / factor);
        }
    }
    format!("{bits:.0} b/s")
}

/// A time that something took: `0.4 s`, `41.2 s`, `3m12s`, `2h05m`.
pub fn elapsed(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..=99 => format!("{:.1} s", ms as f64 / 1000.0),
        100..=5999 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

/// How long ago: `12s`, `3m12s`, `2h05m`, `3d`.
pub fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..=59 => format!("{s}s"),
        60..=3599 => format!("{}m{:02}s", s / 60, s % 60),
        3600..=172_799 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d", s / 86_400),
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC with milliseconds.
pub fn rfc3339(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Howard Hinnant's civil_from_days, for days since 1970 that are not negative.
    let z = days as i64 + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1000)
}

/// The same for people: `2026-11-23 18:34:29Z`.
pub fn date(unix_ms: u64) -> String {
    let text = rfc3339(unix_ms);
    match text.split_once('T') {
        Some((day, time)) => format!("{day} {}Z", &time[..8]),
        None => text,
    }
}

/// The time of day alone: `18:34:29.125`.
pub fn clock(unix_ms: u64) -> String {
    let text = rfc3339(unix_ms);
    text.split_once('T').map_or_else(|| text.clone(), |(_, time)| time.trim_end_matches('Z').to_owned())
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// `1 case`, `2 cases`.
pub fn count(n: usize, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}

/// Text in lines of at most `width` columns, each ended; a longer word stands alone.
pub fn wrapped(text: &str, width: usize) -> String {
    let (mut lines, mut column) = (String::new(), 0);
    for word in text.split_whitespace() {
        let wide = word.chars().count();
        if column > 0 && column + 1 + wide > width {
            lines.push('\n');
            column = 0;
        } else if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += wide;
    }
    if column > 0 {
        lines.push('\n');
    }
    lines
}

/// Cuts a text in its middle to at most `width` characters.
pub fn cut_middle(text: &str, width: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= width {
        return text.to_owned();
    }
    let keep = width.saturating_sub(1);
    let (head, tail) = (keep.div_ceil(2), keep / 2);
    let mut cut: String = chars[..head].iter().collect();
    cut.push('…');
    cut.extend(&chars[chars.len() - tail..]);
    cut
}

/// The text without colour sequences.
pub fn strip_sgr(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\x1b' {
            plain.push(c);
            continue;
        }
        for c in chars.by_ref() {
            if c.is_ascii_alphabetic() {
                break;
            }
        }
    }
    plain
}

/// Text from a guest, QEMU or a log made safe for a terminal: control characters other than line break and tab go.
pub fn safe(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

/// Text from a stranger on one line, with everything that is not plainly visible escaped: control characters, line
/// breaks, and what turns the direction of writing.
pub fn escaped(text: &str) -> String {
    let invisible = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if invisible(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown
}

/// Natural order: `host2` before `host10`.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (left, rest_a) = digits(a);
                let (right, rest_b) = digits(b);
                let order = left.len().cmp(&right.len()).then_with(|| left.cmp(right));
                if order != Ordering::Equal {
                    return order;
                }
                (a, b) = (rest_a, rest_b);
            }
            (Some(x), Some(y)) if x != y => return x.cmp(y),
            _ => (a, b) = (&a[1..], &b[1..]),
        }
    }
}

/// The digits in front without leading zeros, and what follows them.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let zeros = text[..end].iter().take_while(|c| **c == b'0').count();
    (&text[zeros..end], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrapped("one two  three", 7), "one two\nthree\n");
        assert_eq!(wrapped("a veryverylongword b", 6), "a\nveryverylongword\nb\n");
        assert_eq!(wrapped(" ", 7), "");
    }

    #[test]
    fn numbers_and_times_have_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(31 << 20), "31.0 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "16777216 TiB");
        assert_eq!(bit_rate(775_000_000), "6.2 Gb/s");
        assert_eq!(elapsed(41_230), "41.2 s");
        assert_eq!(elapsed(192_000), "3m12s");
        assert_eq!(age(192_000), "3m12s");
        assert_eq!(count(1, "case"), "1 case");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_458_869_125), "2026-11-23T18:34:29.125Z");
        assert_eq!(date(1_795_458_869_125), "2026-11-23 18:34:29Z");
        assert_eq!(clock(1_795_458_869_125), "18:34:29.125");
        assert!(!rfc3339(u64::MAX).is_empty());
    }

    #[test]
    fn names_sort_as_people_expect() {
        let mut names = ["host10", "host2", "host1", "a", "host02", "host"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names[..3], ["a", "host", "host1"]);
        assert_eq!(names[5], "host10");
    }

    #[test]
    fn text_from_elsewhere_cannot_drive_the_terminal() {
        assert_eq!(safe("a\x1b[2Jb\x07\nc"), "a[2Jb\nc");
        assert_eq!(strip_sgr("\x1b[31mx\x1b[0m"), "x");
        assert_eq!(escaped("a\x1b[2J\n\u{202e}é"), "a\\u{1b}[2J\\u{a}\\u{202e}é");
        assert_eq!(cut_middle("abcdefghij", 5), "ab…ij");
        assert_eq!(cut_middle("ab", 5), "ab");
    }
}
