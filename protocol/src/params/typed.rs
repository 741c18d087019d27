//! Typed getters. Every error names key, value and the place where it was set.
//!
//! Absent is `None`, never an error: what a missing value means is for the caller to say, or for [`Params::required`].

use std::ops::RangeInclusive;

use super::{Origin, Params};

/// Most objects that a count may ask for.
const NUMBERED_MAX: i64 = 10_000;

/// A value that cannot be used as what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parameter {key} = {value:?} ({origin}) is not {want}")]
pub struct ParamError {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Where it was set.
    pub origin: Origin,
    /// What was wanted, with its article.
    pub want: String,
}

/// A key that must be there and is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parameter {0} is required, and nothing sets it")]
pub struct MissingParam(pub String);

impl Params {
    fn typed<'a, T>(
        &'a self,
        key: &str,
        want: &str,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<Option<T>, ParamError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| self.error(key, want))
    }

    /// An error about `key` for a rule that the getters do not know.
    pub fn error(&self, key: &str, want: impl Into<String>) -> ParamError {
        let param = self.get(key);
        ParamError {
            key: key.to_owned(),
            value: param.map(|p| p.value.clone()).unwrap_or_default(),
            origin: param.map_or_else(|| Origin { file: "default".into(), line: 0 }, |p| p.origin.clone()),
            want: want.into(),
        }
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// It is not.
    pub fn required(&self, key: &str) -> Result<&str, MissingParam> {
        self.text(key).ok_or_else(|| MissingParam(key.to_owned()))
    }

    /// A whole number, with a sign or without; `0x`, `0o` and `0b` begin other bases, and `007` is refused because it
    /// could be one.
    ///
    /// # Errors
    /// The value is no such number, or beyond 64 bits.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, ParamError> {
        self.typed(key, "a whole number", |text| i64::try_from(parse_integer(text)?).ok())
    }

    /// A whole number within `range`, written as for [`Params::integer`].
    ///
    /// # Errors
    /// The value is no number, or outside the range.
    pub fn number(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ParamError> {
        let want = format!("a whole number from {} to {}", range.start(), range.end());
        self.typed(key, &want, |text| u64::try_from(parse_integer(text)?).ok().filter(|n| range.contains(n)))
    }

    /// A number with a fraction or an exponent, or without.
    ///
    /// # Errors
    /// The value is no number.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ParamError> {
        self.typed(key, "a number", |text| without_underscores(text.trim(), 10)?.parse().ok())
    }

    /// A size in bytes: digits with an optional K, M, G or T (powers of 1024; a `B` or `iB` behind it is allowed).
    /// Without a letter the unit is `unit` bytes.
    ///
    /// # Errors
    /// The value is no size, or outside the range.
    pub fn size(&self, key: &str, unit: u64, range: RangeInclusive<u64>) -> Result<Option<u64>, ParamError> {
        let want = format!("a size such as 512M, from {} to {} bytes", range.start(), range.end());
        self.typed(key, &want, |text| parse_size(text.trim(), unit).filter(|n| range.contains(n)))
    }

    /// `yes`, `on` or `true`; `no`, `off` or `false`. Nothing else, `Yes` included.
    ///
    /// # Errors
    /// The value is none of them.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ParamError> {
        self.typed(key, "yes or no", |text| match text {
            "yes" | "on" | "true" => Some(true),
            "no" | "off" | "false" => Some(false),
            _ => None,
        })
    }

    /// The items between `delimiter`, exactly as written, or the words where there is none; empty where the key is absent
    /// or its value is.
    pub fn list(&self, key: &str, delimiter: Option<&str>) -> Vec<&str> {
        split(self.text(key).unwrap_or_default(), delimiter)
    }

    /// A list of `name=value`, each side trimmed; the last one of a name wins, in the place of the first.
    ///
    /// # Errors
    /// An item has no `=`.
    pub fn pairs(&self, key: &str, delimiter: Option<&str>) -> Result<Vec<(&str, &str)>, ParamError> {
        let parse = |text| {
            let mut pairs: Vec<(&str, &str)> = Vec::new();
            for item in split(text, delimiter) {
                let (name, value) = item.split_once('=')?;
                let (name, value) = (name.trim(), value.trim());
                match pairs.iter_mut().find(|(known, _)| *known == name) {
                    Some(pair) => pair.1 = value,
                    None => pairs.push((name, value)),
                }
            }
            Some(pairs)
        };
        Ok(self.typed(key, "a list of NAME=VALUE", parse)?.unwrap_or_default())
    }

    /// The keys `base1`, `base2`, … as many as `count_key` says (1 where it is absent), each with its value.
    ///
    /// # Errors
    /// The count is no decimal number, or above 10 000.
    pub fn numbered(&self, count_key: &str, base: &str) -> Result<Vec<(String, Option<&str>)>, ParamError> {
        let want = format!("a whole number up to {NUMBERED_MAX}");
        let count = |text: &str| text.trim().parse::<i64>().ok().filter(|n| *n <= NUMBERED_MAX);
        let count = self.typed(count_key, &want, count)?.unwrap_or(1);
        Ok((1..=count).map(|n| format!("{base}{n}")).map(|key| (key.clone(), self.text(&key))).collect())
    }
}

fn split<'a>(text: &'a str, delimiter: Option<&str>) -> Vec<&'a str> {
    match delimiter {
        _ if text.is_empty() => Vec::new(),
        Some(delimiter) => text.split(delimiter).collect(),
        None => text.split_whitespace().collect(),
    }
}

/// A number as Python's `int(text, 0)` reads it.
fn parse_integer(text: &str) -> Option<i128> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', letter, ..] if letter.is_ascii_alphabetic() => {
            let base = match letter.to_ascii_lowercase() {
                b'x' => 16,
                b'o' => 8,
                b'b' => 2,
                _ => return None,
            };
            // `0x_ff` is allowed, and only there may an underscore lead.
            let digits = &digits[2..];
            (base, digits.strip_prefix('_').unwrap_or(digits))
        }
        _ => (10, digits),
    };
    let digits = without_underscores(digits, base)?;
    // from_str_radix takes a sign of its own; one was read already.
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(base));
    let leading_zero = base == 10 && digits.starts_with('0') && digits.contains(|c| c != '0');
    if !plain || leading_zero {
        return None;
    }
    i128::from_str_radix(&digits, base).ok().map(|number| sign * number)
}

/// Underscores may stand between digits and nowhere else.
fn without_underscores(text: &str, base: u32) -> Option<String> {
    let bytes = text.as_bytes();
    let digit =
        |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(|byte| char::from(*byte).is_digit(base));
    let good = |(at, byte): (usize, &u8)| *byte != b'_' || digit(at.checked_sub(1)) && digit(Some(at + 1));
    bytes.iter().enumerate().all(good).then(|| text.replace('_', ""))
}

fn parse_size(text: &str, unit: u64) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let letters = text[end..].trim().to_ascii_lowercase();
    let factor = match letters.strip_suffix("ib").or_else(|| letters.strip_suffix('b')).unwrap_or(&letters) {
        "" if letters.is_empty() => unit,
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::super::params;

    #[test]
    fn an_error_names_key_value_and_place() {
        let error = params(&[("x", "1"), ("mem", "lots")]).size("mem", 1 << 20, 1..=u64::MAX).unwrap_err().to_string();
        for part in ["mem", "lots", "a.cfg:2", "512M"] {
            assert!(error.contains(part), "{error}");
        }
        let bad = params(&[("smp", "0"), ("quiet", "maybe"), ("n", "one"), ("list", "a=1 b")]);
        let errors = [
            bad.number("smp", 1..=255).unwrap_err(),
            bad.flag("quiet").unwrap_err(),
            bad.integer("n").unwrap_err(),
            bad.float("n").unwrap_err(),
            bad.numbered("n", "x").unwrap_err(),
            bad.pairs("list", None).unwrap_err(),
        ];
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "parameter smp = \"0\" (a.cfg:1) is not a whole number from 1 to 255",
                "parameter quiet = \"maybe\" (a.cfg:2) is not yes or no",
                "parameter n = \"one\" (a.cfg:3) is not a whole number",
                "parameter n = \"one\" (a.cfg:3) is not a number",
                "parameter n = \"one\" (a.cfg:3) is not a whole number up to 10000",
                "parameter list = \"a=1 b\" (a.cfg:4) is not a list of NAME=VALUE",
            ]
        );
        assert_eq!(bad.required("none").unwrap_err().to_string(), "parameter none is required, and nothing sets it");
    }

    #[test]
    fn sizes_have_units_and_a_default_unit() {
        for (text, bytes) in
            [("512", 512 << 20), ("512M", 512 << 20), ("1G", 1 << 30), ("4KiB", 4096), ("7B", 7), ("2 GB", 2 << 30)]
        {
            assert_eq!(params(&[("m", text)]).size("m", 1 << 20, 0..=u64::MAX).unwrap(), Some(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1X", "99999999999T", "1.5G"] {
            assert!(params(&[("m", text)]).size("m", 1, 0..=u64::MAX).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_are_bounded() {
        assert!(params(&[("n", "10001")]).numbered("n", "x").is_err());
        assert_eq!(params(&[("n", "-5")]).numbered("n", "x").unwrap(), []);
    }
}
