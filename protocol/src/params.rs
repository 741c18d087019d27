//! Parameters of a case: text by key, with the place each came from, and typed getters that name key, value and place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

/// Where a parameter was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// A file, or `-p` for the command line, or `default`.
    pub file: String,
    /// Line in it, from 1; 0 where there are no lines.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { f.write_str(&self.file) } else { write!(f, "{}:{}", self.file, self.line) }
    }
}

/// One value with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Param {
    /// The text.
    pub value: String,
    /// Where it was set.
    pub origin: Origin,
}

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

/// A parameter set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params(BTreeMap<String, Param>);

impl Params {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key`; the last one wins.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>, origin: Origin) {
        self.0.insert(key.into(), Param { value: value.into(), origin });
    }

    /// The value and its place.
    pub fn get(&self, key: &str) -> Option<&Param> {
        self.0.get(key)
    }

    /// The value as text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|p| p.value.as_str())
    }

    /// All keys with their values, in order of key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Keys that are not in `known`.
    pub fn unknown<'a>(&'a self, known: &BTreeSet<&str>) -> impl Iterator<Item = &'a str> {
        let known: BTreeSet<String> = known.iter().map(|k| (*k).to_owned()).collect();
        self.0.keys().map(String::as_str).filter(move |k| !known.contains(*k))
    }

    fn typed<T>(&self, key: &str, want: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, ParamError> {
        let Some(param) = self.0.get(key) else { return Ok(None) };
        parse(param.value.trim()).map(Some).ok_or_else(|| self.error(key, want))
    }

    /// An error about `key` for a rule that the getters do not know.
    pub fn error(&self, key: &str, want: impl Into<String>) -> ParamError {
        let param = self.0.get(key);
        ParamError {
            key: key.to_owned(),
            value: param.map(|p| p.value.clone()).unwrap_or_default(),
            origin: param.map_or_else(|| Origin { file: "default".into(), line: 0 }, |p| p.origin.clone()),
            want: want.into(),
        }
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// The value is no number, or outside the range.
    pub fn number(&self, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<u64>, ParamError> {
        let want = format!("a whole number from {} to {}", range.start(), range.end());
        self.typed(key, &want, |text| text.parse().ok().filter(|n| range.contains(n)))
    }

    /// A size in bytes: digits with an optional K, M, G or T (powers of 1024; a `B` or `iB` behind it is allowed).
    /// Without a letter the unit is `unit` bytes.
    ///
    /// # Errors
    /// The value is no size, or outside the range.
    pub fn size(&self, key: &str, unit: u64, range: std::ops::RangeInclusive<u64>) -> Result<Option<u64>, ParamError> {
        let want = format!("a size such as 512M, from {} to {} bytes", range.start(), range.end());
        self.typed(key, &want, |text| parse_size(text, unit).filter(|n| range.contains(n)))
    }

    /// `yes` or `no` (also on/off, true/false).
    ///
    /// # Errors
    /// The value is neither.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ParamError> {
        self.typed(key, "yes or no", |text| match text {
            "yes" | "on" | "true" => Some(true),
            "no" | "off" | "false" => Some(false),
            _ => None,
        })
    }

    /// The words of a list, e.g. `vms = vm1 vm2`; empty where the key is absent.
    pub fn objects(&self, key: &str) -> Vec<&str> {
        self.text(key).map(|text| text.split_whitespace().collect()).unwrap_or_default()
    }

    /// The view of one object: each key `K_NAME` also as `K`, the suffixed value winning; the suffixed key stays.
    ///
    /// As `object_params` of Avocado-VT (virttest/utils_params.py): the new key is everything before the first
    /// occurrence of the suffix text.
    #[must_use]
    pub fn object(&self, name: &str) -> Self {
        let suffix = format!("_{name}");
        let mut view = self.clone();
        for (key, param) in &self.0 {
            if key.ends_with(&suffix)
                && let Some(at) = key.find(&suffix)
            {
                view.0.insert(key[..at].to_owned(), param.clone());
            }
        }
        view
    }
}

fn parse_size(text: &str, unit: u64) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let letters = text[end..].trim().to_ascii_lowercase();
    let factor = match letters.strip_suffix("ib").or(letters.strip_suffix('b')).unwrap_or(&letters) {
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
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let mut params = Params::new();
        for (i, (key, value)) in pairs.iter().enumerate() {
            params.set(*key, *value, Origin { file: "a.cfg".into(), line: i as u32 + 1 });
        }
        params
    }

    #[test]
    fn an_error_names_key_value_and_place() {
        let error = params(&[("x", "1"), ("mem", "lots")]).size("mem", 1 << 20, 1..=u64::MAX).unwrap_err().to_string();
        for part in ["mem", "lots", "a.cfg:2", "512M"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(params(&[("smp", "0")]).number("smp", 1..=255).is_err());
        assert!(params(&[("quiet", "maybe")]).flag("quiet").is_err());
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
    fn a_view_takes_suffixed_values_and_keeps_the_suffixed_keys() {
        let all = params(&[("mem", "1"), ("mem_vm1", "2"), ("mem_vm1_host2", "3"), ("vms", "vm1 vm2")]);
        assert_eq!(all.object("vm1").text("mem"), Some("2"));
        assert_eq!(all.object("host2").object("vm1").text("mem"), Some("3"));
        assert_eq!(all.object("vm2").text("mem"), Some("1"));
        assert_eq!(all.object("vm1").text("mem_vm1"), Some("2"));
        assert_eq!(all.objects("vms"), ["vm1", "vm2"]);
    }
}
