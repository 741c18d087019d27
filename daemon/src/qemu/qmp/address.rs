//! Where a migration goes to or comes from, as QEMU is told.

use serde_json::{Value, json};

/// The first QEMU that takes a command as a list of words.
const TAKES_WORDS: (u64, u64, u64) = (8, 2, 0);

/// Where a migration goes to or comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A URI, e.g. `tcp:10.0.0.2:49152` or `unix:/run/x`.
    Uri(String),
    /// A command and its words, whose standard input or output is the stream.
    Command(Vec<String>),
}

impl From<&str> for Address {
    fn from(uri: &str) -> Self {
        Self::Uri(uri.to_owned())
    }
}

impl From<&String> for Address {
    fn from(uri: &String) -> Self {
        Self::Uri(uri.clone())
    }
}

impl Address {
    /// The arguments of `migrate` and its like, for a QEMU of that version.
    pub(super) fn arguments(&self, version: (u64, u64, u64)) -> Value {
        match self {
            Self::Uri(uri) => json!({ "uri": uri }),
            // No shell: what is in a word stays in it.
            Self::Command(words) if version >= TAKES_WORDS => {
                json!({ "channels": [{ "channel-type": "main", "addr": { "transport": "exec", "args": words } }] })
            }
            Self::Command(words) => {
                let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
                json!({ "uri": format!("exec:exec {}", quoted.join(" ")) })
            }
        }
    }
}

/// One word for a POSIX shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_words_and_for_an_older_qemu_words_that_a_shell_leaves_alone() {
        let words = vec!["/bin/echo".to_owned(), "it's; $(false) `x` \"y\" \\ *".to_owned()];
        let new = Address::Command(words.clone()).arguments((10, 0, 2));
        assert_eq!(new["channels"][0]["addr"]["args"], json!(words));
        let old = Address::Command(words.clone()).arguments((7, 2, 0));
        let line = old["uri"].as_str().and_then(|uri| uri.strip_prefix("exec:")).unwrap();
        let said = std::process::Command::new("/bin/sh").args(["-c", line]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim_end(), words[1]);
    }
}
