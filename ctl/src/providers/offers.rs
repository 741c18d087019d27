//! The tests that providers offer, without expanding anything.

use std::path::PathBuf;

use super::{Assembly, error::ProviderError, subtests::head};

/// A test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// Whose it is.
    pub provider: String,
    /// Its name, without the provider's.
    pub name: String,
    /// The types its variants have, each once: a type names the program that runs.
    pub types: Vec<String>,
    /// Where it is defined.
    pub file: PathBuf,
    /// Line from 1.
    pub line: u32,
}

impl Test {
    /// The tests of a set, in the order of its files.
    ///
    /// # Errors
    /// A file cannot be read any more.
    pub fn all(set: &Assembly) -> Result<Vec<Self>, ProviderError> {
        let mut tests = Vec::new();
        for file in set.tests() {
            let first = tests.len();
            for (line, text) in (1..).zip(file.text()?.lines()) {
                if let Some((name, _)) = head(text) {
                    let (provider, name) = (file.provider.clone(), name.to_owned());
                    tests.push(Self { provider, name, types: Vec::new(), file: file.path.clone(), line });
                } else if let (Some(words), Some(test)) = (types(text), tests[first..].last_mut()) {
                    for word in words.split_whitespace() {
                        if test.types.iter().all(|known| known != word) {
                            test.types.push(word.to_owned());
                        }
                    }
                }
            }
        }
        Ok(tests)
    }
}

/// What a line gives the key `type`, where it does.
fn types(line: &str) -> Option<&str> {
    let value = line.trim().strip_prefix("type")?.trim_start().strip_prefix('=')?.trim();
    Some(value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_assignments_of_the_key_itself_count() {
        assert_eq!(types("    type = boot"), Some("boot"));
        assert_eq!(types("type=\"a b\""), Some("a b"));
        for other in ["type_x = 1", "    virt_test_type = qemu", "type ?= x", "types = x", "# type = x"] {
            assert_eq!(types(other), None, "{other}");
        }
    }
}
