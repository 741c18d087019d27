//! Parameters of a case: text by key, each with the place it came from.
//!
//! Typed getters turn text into values, views ([`Params::object`]) show one VM, image or NIC, and [`for_host`] makes
//! what one host of a case sees. The rules are those of Avocado-VT's `Params`, so that configurations mean what they meant
//! there. Nothing here knows a key of a scenario.

mod hosts;
mod typed;

use std::fmt;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use self::{
    hosts::{DERIVED, for_host},
    typed::{MissingParam, ParamError},
};

/// The place of what was given with `-p`.
pub const COMMAND_LINE: &str = "-p";

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

/// A parameter set, in the order in which its keys were first set: views depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params(IndexMap<String, Param>);

impl Params {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key`; the last one wins, in the place of the first.
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

    /// All keys with their values, in the order in which they were first set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The names of a list, e.g. `vms = vm1 vm2`, each once and in the order written; empty where the key is absent.
    pub fn objects(&self, key: &str) -> Vec<&str> {
        let mut names = Vec::new();
        for name in self.text(key).into_iter().flat_map(str::split_whitespace) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The view of one object: each key `K_NAME` also as `K`. The suffixed value wins wherever it was written, and the
    /// suffixed key stays. Objects in objects are chained from the outside: `x_image1_vm1` is `x` in
    /// `object("vm1").object("image1")`.
    ///
    /// The new key ends at the first occurrence of the suffix, so `x_vm1` and `x_vm1_vm1` both set `x`; the one that was
    /// set later wins.
    #[must_use]
    pub fn object(&self, name: &str) -> Self {
        let suffix = format!("_{name}");
        let mut view = self.clone();
        // A key without its suffix may be one that ends in it: what it holds by then is what counts.
        for key in self.0.keys().filter(|key| key.ends_with(&suffix)) {
            if let (Some(at), Some(param)) = (key.find(&suffix), view.0.get(key)) {
                let param = param.clone();
                view.0.insert(key[..at].to_owned(), param);
            }
        }
        view
    }

    /// Only these keys, as far as they have a value that is not empty.
    #[must_use]
    pub fn subset(&self, keys: &[&str]) -> Self {
        let chosen = keys.iter().filter_map(|key| self.0.get_key_value(*key));
        Self(chosen.filter(|(_, p)| !p.value.is_empty()).map(|(key, p)| (key.clone(), p.clone())).collect())
    }

    /// Without the keys that begin with `_`, which are no tester's concern.
    #[must_use]
    pub fn public(&self) -> Self {
        let shown = self.0.iter().filter(|(key, _)| !key.starts_with('_'));
        Self(shown.map(|(key, p)| (key.clone(), p.clone())).collect())
    }
}

#[cfg(test)]
pub(crate) fn params(pairs: &[(&str, &str)]) -> Params {
    let mut params = Params::new();
    for (i, (key, value)) in pairs.iter().enumerate() {
        params.set(*key, *value, Origin { file: "a.cfg".into(), line: i as u32 + 1 });
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_takes_suffixed_values_and_keeps_the_suffixed_keys() {
        let all = params(&[("mem", "1"), ("mem_vm1", "2"), ("mem_vm1_host2", "3"), ("vms", "vm1 vm2 vm1")]);
        assert_eq!(all.object("vm1").text("mem"), Some("2"));
        assert_eq!(all.object("host2").object("vm1").text("mem"), Some("3"));
        assert_eq!(all.object("vm2").text("mem"), Some("1"));
        assert_eq!(all.object("vm1").text("mem_vm1"), Some("2"));
        assert_eq!(all.objects("vms"), ["vm1", "vm2"]);
        assert_eq!(all.objects("none"), Vec::<&str>::new());
    }

    #[test]
    fn nested_views_are_taken_from_the_outside() {
        let all = params(&[
            ("image_size_image1_vm1_host2", "4"),
            ("image_size_image1_vm1", "3"),
            ("image_size_image1", "2"),
            ("image_size", "1"),
        ]);
        let size = |names: &[&str]| {
            let view = names.iter().fold(all.clone(), |view, name| view.object(name));
            view.text("image_size").unwrap().to_owned()
        };
        assert_eq!(size(&["host2", "vm1", "image1"]), "4");
        assert_eq!(size(&["host1", "vm1", "image1"]), "3");
        assert_eq!(size(&["host2", "vm2", "image1"]), "2");
        assert_eq!(size(&["host2", "vm1", "image2"]), "1");
        // The other way round the suffixes do not fit: only the one at the end counts.
        assert_eq!(size(&["image1", "vm1", "host2"]), "2");
    }

    #[test]
    fn the_order_of_setting_decides_between_a_suffix_and_its_double() {
        let (once, twice) = (("mem_vm1", "once"), ("mem_vm1_vm1", "twice"));
        assert_eq!(params(&[once, twice]).object("vm1").text("mem"), Some("twice"));
        assert_eq!(params(&[twice, once]).object("vm1").text("mem"), Some("once"));
        // Setting a key again does not move it.
        let mut again = params(&[once, twice]);
        again.set("mem_vm1", "again", Origin { file: "-p".into(), line: 0 });
        assert_eq!(again.object("vm1").text("mem"), Some("twice"));
    }

    #[test]
    fn order_survives_the_wire() {
        let all = params(&[("z", "1"), ("a", "2"), ("m", "3")]);
        let back: Params = postcard::from_bytes(&postcard::to_stdvec(&all).unwrap()).unwrap();
        assert_eq!(back.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["z", "a", "m"]);
    }
}
