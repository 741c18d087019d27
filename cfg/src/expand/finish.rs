//! `_min`, `_max` and `_fixed`: the last step before a dictionary is joined or flattened.

use std::cmp::Ordering;

use crate::chars::{is_space, trim_end, trim_start};
use crate::expand::prepare::BoundKind;

/// Whether the bounded key takes the bound's value; the error is a sentence.
pub(crate) fn replaces(bound: BoundKind, current: Option<&str>, limit: &str) -> Result<bool, String> {
    let Some(current) = current else { return Ok(true) };
    Ok(match bound {
        BoundKind::Fixed => true,
        BoundKind::Max => compare(current, limit)? == Ordering::Greater,
        BoundKind::Min => compare(current, limit)? == Ordering::Less,
    })
}

fn compare(a: &str, b: &str) -> Result<Ordering, String> {
    let sized = |s: &str| s.chars().any(|c| "BKMGTbkmgt".contains(c));
    if sized(a) || sized(b) {
        let (a, b) = (size(a)?, size(b)?);
        return Ok(a.partial_cmp(&b).unwrap_or(Ordering::Equal));
    }
    Ok(integer(a)?.cmp(&integer(b)?))
}

/// Bytes, truncated; a number without unit counts megabytes.
fn size(s: &str) -> Result<f64, String> {
    let no_number = || format!("{s:?} is no size");
    let last = s.chars().last().ok_or_else(no_number)?;
    let (number, power) = match last.to_ascii_uppercase() {
        'B' => (&s[..s.len() - 1], 0),
        'K' => (&s[..s.len() - 1], 1),
        'M' => (&s[..s.len() - 1], 2),
        'G' => (&s[..s.len() - 1], 3),
        'T' => (&s[..s.len() - 1], 4),
        _ => (s, 2),
    };
    let value = float(number).ok_or_else(no_number)? * 1024f64.powi(power);
    if value.is_finite() { Ok(value.trunc()) } else { Err(no_number()) }
}

/// Digits of any script, single `_` between digits dropped, outer white space trimmed.
fn digits_only(s: &str) -> Option<String> {
    let s = trim_start(trim_end(s));
    let chars: Vec<char> = s.chars().map(|c| decimal(c).unwrap_or(c)).collect();
    let mut out = String::with_capacity(s.len());
    for (i, c) in chars.iter().enumerate() {
        if *c != '_' {
            if !c.is_ascii() || is_space(*c) {
                return None;
            }
            out.push(*c);
            continue;
        }
        let near = |j: Option<usize>| j.and_then(|j| chars.get(j)).is_some_and(char::is_ascii_digit);
        if !near(i.checked_sub(1)) || !near(Some(i + 1)) {
            return None;
        }
    }
    Some(out)
}

/// Decimal digits outside ASCII: blocks of ten in code point order.
fn decimal(c: char) -> Option<char> {
    const ZEROS: [u32; 20] = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xe50, 0xed0, 0xf20,
        0x1040, 0x17e0, 0x1810, 0xa620, 0xff10,
    ];
    let n = c as u32;
    let zero = ZEROS.iter().find(|z| (**z..**z + 10).contains(&n))?;
    char::from_digit(n - zero, 10)
}

fn float(s: &str) -> Option<f64> {
    let text = digits_only(s)?;
    let body = text.strip_prefix(['+', '-']).unwrap_or(&text);
    // Rust also reads "infinity" and "nan", which are no sizes.
    if !body.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    text.parse().ok()
}

/// An integer of any length: sign, then magnitude by length and digits.
#[derive(Debug, PartialEq, Eq)]
struct Integer {
    negative: bool,
    digits: String,
}

/// Digits an integer may have.
const MAX_DIGITS: usize = 4300;

fn integer(s: &str) -> Result<Integer, String> {
    let no_number = || format!("{s:?} is no integer");
    let text = digits_only(s).ok_or_else(no_number)?;
    let body = text.strip_prefix(['+', '-']).unwrap_or(&text);
    if body.is_empty() || body.len() > MAX_DIGITS || !body.bytes().all(|b| b.is_ascii_digit()) {
        return Err(no_number());
    }
    let digits = body.trim_start_matches('0').to_owned();
    Ok(Integer { negative: text.starts_with('-') && !digits.is_empty(), digits })
}

impl Ord for Integer {
    fn cmp(&self, other: &Self) -> Ordering {
        let magnitude = |a: &Self, b: &Self| a.digits.len().cmp(&b.digits.len()).then_with(|| a.digits.cmp(&b.digits));
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => magnitude(self, other),
            (true, true) => magnitude(other, self),
        }
    }
}

impl PartialOrd for Integer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_any_length_compare() {
        for (a, b, want) in [
            ("10", "9", Ordering::Greater),
            ("-10", "9", Ordering::Less),
            ("-10", "-9", Ordering::Less),
            (" 007 ", "7", Ordering::Equal),
            ("1_000", "999", Ordering::Greater),
            ("-0", "0", Ordering::Equal),
            ("٣", "2", Ordering::Greater),
            ("100000000000000000000000", "99999999999999999999999", Ordering::Greater),
        ] {
            assert_eq!(compare(a, b).unwrap(), want, "{a} {b}");
        }
    }

    #[test]
    fn sizes_know_their_units() {
        for (a, b, want) in [
            ("1G", "1024M", Ordering::Equal),
            ("2", "1024k", Ordering::Greater),
            ("1.5g", "1536", Ordering::Equal),
            ("1e1M", "10", Ordering::Equal),
            ("512b", "1K", Ordering::Less),
        ] {
            assert_eq!(compare(a, b).unwrap(), want, "{a} {b}");
        }
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        for (a, b) in [
            ("", "1"),
            ("x", "1"),
            ("1.5", "1"),
            ("_1", "1"),
            ("1__0", "1"),
            ("1X", "1M"),
            ("infinity", "1M"),
            ("-", "1"),
        ] {
            assert!(compare(a, b).is_err(), "{a}");
        }
    }
}
