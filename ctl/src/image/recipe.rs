//! Recipes of images: files that say what a guest has beside what every guest of ours has.
//!
//! ```toml
//! name = "stress"                       # of the image
//! about = "with load generators"        # for people
//! packages = ["stress-ng", "iperf3"]    # of this machine's distribution; their libraries are found
//! programs = ["usr/bin/stress-ng"]      # files of those packages that come into the guest's /bin
//! kernel = "linux-image-amd64"           # the package that names its kernel; left out: the one for virtual machines
//! modules = ["dm_mod"]                  # drivers that are loaded when it boots
//! ```
//!
//! A recipe names things of the distribution, and brings no bytes of its own: what an image was made from stays checked
//! by the distribution's signatures.

use std::path::Path;

use serde::Deserialize;

use super::error::ImageError;

/// Those that come with this program.
const BUILTIN: [(&str, &str); 3] = [
    ("minimal", include_str!("recipes/minimal.toml")),
    ("stress", include_str!("recipes/stress.toml")),
    ("devices", include_str!("recipes/devices.toml")),
];
/// Longest file, bytes.
const FILE_MAX: u64 = 64 << 10;
/// Most packages, programs or drivers of one recipe.
const LIST_MAX: usize = 64;

/// What a guest has beside what every guest has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the image.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub about: String,
    /// Packages of the distribution.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Files of packages that become programs of the guest.
    #[serde(default)]
    pub programs: Vec<String>,
    /// The package that names its kernel, where that is not the one for virtual machines.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Drivers that are loaded when it boots.
    #[serde(default)]
    pub modules: Vec<String>,
}

impl Recipe {
    /// A recipe by its name, else by its file.
    ///
    /// # Errors
    /// There is none, or it cannot be used: the message names the place.
    pub fn find(name: &str) -> Result<Self, ImageError> {
        if let Some((name, text)) = BUILTIN.iter().find(|(known, _)| *known == name) {
            return Self::parse(name, text);
        }
        let path = Path::new(name);
        let length = std::fs::metadata(path).map_err(|error| {
            let names: Vec<&str> = BUILTIN.iter().map(|(name, _)| *name).collect();
            ImageError::Recipe(name.to_owned(), format!("{error}; there are {}, or a file", names.join(", ")))
        })?;
        if length.len() > FILE_MAX {
            return Err(ImageError::Recipe(name.to_owned(), format!("it is longer than {FILE_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(ImageError::io(path))?;
        Self::parse(name, &text)
    }

    /// The one of the built-in guest.
    pub fn minimal() -> Self {
        Self {
            name: super::BUILTIN.to_owned(),
            about: String::new(),
            packages: vec![],
            programs: vec![],
            kernel: None,
            modules: vec![],
        }
    }

    fn parse(place: &str, text: &str) -> Result<Self, ImageError> {
        let wrong = |what: String| ImageError::Recipe(place.to_owned(), what);
        let recipe: Self = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "+-._:/".contains(c);
        let kernel: Vec<String> = recipe.kernel.iter().cloned().collect();
        for (list, what) in [
            (&recipe.packages, "packages"),
            (&recipe.programs, "programs"),
            (&recipe.modules, "modules"),
            (&kernel, "kernel"),
        ] {
            if list.len() > LIST_MAX {
                return Err(wrong(format!("{what} has more than {LIST_MAX} entries")));
            }
            let bad = |word: &&String| {
                word.is_empty() || word.starts_with(['-', '/']) || word.contains("..") || !word.chars().all(plain)
            };
            if let Some(bad) = list.iter().find(bad) {
                return Err(wrong(format!("{bad:?} in {what} is no name")));
            }
        }
        Ok(recipe)
    }

    /// Everything of it that changes what is in the image.
    pub(super) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.packages.iter().chain(&self.programs).chain(&self.modules).chain(&self.kernel).map(|word| word.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_that_come_with_the_program_can_be_used() {
        for (name, _) in BUILTIN {
            Recipe::find(name).unwrap();
        }
        let minimal = Recipe::find("minimal").unwrap();
        assert_eq!(Recipe { about: String::new(), ..minimal }, Recipe::minimal());
        assert_eq!(Recipe::find("stress").unwrap().name, "stress");
    }

    #[test]
    fn what_is_no_recipe_is_told_with_its_place() {
        for (text, says) in [
            ("", "name"),
            ("name = 'x'\npakages = []", "pakages"),
            ("name = 'x'\npackages = ['--purge']", "--purge"),
            ("name = 'x'\nkernel = '../vmlinuz'", "in kernel is no name"),
            ("name = 'x'\nprograms = ['../../etc/shadow']", "no name"),
            ("name = 'x'\nmodules = ['a b']", "no name"),
        ] {
            let error = Recipe::parse("mine.toml", text).unwrap_err().to_string();
            assert!(error.contains("mine.toml") && error.contains(says), "{text:?}: {error}");
        }
        let error = Recipe::find("absent").unwrap_err().to_string();
        assert!(error.contains("minimal, stress"), "{error}");
    }
}
