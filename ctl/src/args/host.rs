//! `host …`.

use std::time::Duration;

use clap::{Args, Subcommand};
use vt_protocol::ids::Name;

/// What is done with hosts.
#[derive(Debug, Subcommand)]
pub enum HostVerb {
    /// Hosts with role, state and load
    #[command(visible_alias = "ls", after_help = "Example:\n  vtctl host list -o wide")]
    List,
    /// What exists on a host: processes, taps, files of vtmesh
    #[command(after_help = "Example:\n  vtctl host inventory host1")]
    Inventory {
        /// The host [default: the one that answers]
        host: Option<Name>,
    },
    /// One host with what it says of itself, and its times
    #[command(after_help = "Example:\n  vtctl host show host1")]
    Show {
        /// Its name
        host: Name,
    },
    /// Keep new cases off a host; what runs there goes on
    #[command(after_help = "Example:\n  vtctl host cordon host1")]
    Cordon {
        /// Its name
        host: Name,
    },
    /// Let cases begin on a host again
    #[command(after_help = "Example:\n  vtctl host uncordon host1")]
    Uncordon {
        /// Its name
        host: Name,
    },
    /// Make a host idle: cordon it, and wait for what runs there
    Drain(DrainArgs),
    /// Hold a host for yourself for a while
    Reserve(ReserveArgs),
    /// End a hold on a host
    #[command(after_help = "Example:\n  vtctl host release host1")]
    Release {
        /// Its name
        host: Name,
    },
    /// Set labels of a host, or clear them
    #[command(after_help = "Examples:\n  vtctl host label host1 nic=100g rack=a\n  vtctl host label host1 rack-")]
    Label {
        /// Its name
        host: Name,
        /// KEY=VALUE sets a label, KEY- clears one
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = label)]
        labels: Vec<(String, Option<String>)>,
    },
    /// Let a host vote; voters are 1, 3 or 5
    Promote(PromoteArgs),
    /// Take the vote of a host; it follows on
    #[command(after_help = "Example:\n  vtctl host demote host3")]
    Demote {
        /// Its name
        host: Name,
    },
    /// Take an idle host out of the cluster for good
    #[command(
        after_help = "Example:\n  vtctl host remove host3\n\nIts key and id stay refused. On the host itself, `vtctl cluster leave` does it\n\
                      and clears what it kept."
    )]
    Remove {
        /// Its name
        host: Name,
    },
    /// Put a joined host in the place of another, which goes
    #[command(
        after_help = "Example:\n  vtctl host replace host3 host4\n\nThe new host takes over vote and labels; the old one is removed. The number of\n\
                      voters stays as it is throughout."
    )]
    Replace {
        /// The host that goes; it may be dead
        old: Name,
        /// The host that comes in its place; already joined
        new: Name,
    },
}

/// `host drain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl host drain host1\n  vtctl host drain host1 --timeout 10m\n\nWhere it leads, another host takes over. It stays cordoned until\n\
                  `vtctl host uncordon`. Exit code 124 where --timeout passed first."
)]
pub struct DrainArgs {
    /// Its name
    pub host: Name,
    /// Do not wait for what runs there
    #[arg(long)]
    pub no_wait: bool,
}

/// `host reserve`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  vtctl host reserve host1 --for 2h --reason bisecting\n\nCases of others do not begin there until it ends or is released; yours do.\n\
                  It fences nothing: what runs there goes on. Reserving again sets a new end."
)]
pub struct ReserveArgs {
    /// Its name
    pub host: Name,
    /// For how long, at most 30d
    #[arg(long = "for", value_name = "TIME", value_parser = super::duration)]
    pub time: Duration,
    /// What for; others see it
    #[arg(long, default_value = "", hide_default_value = true)]
    pub reason: String,
}

/// `host promote`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl host promote host3\n  vtctl host promote small1 --witness")]
pub struct PromoteArgs {
    /// Its name
    pub host: Name,
    /// It votes and runs nothing
    #[arg(long)]
    pub witness: bool,
}

/// `key=value` sets, `key-` clears; the key is not empty.
fn label(text: &str) -> Result<(String, Option<String>), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), Some(value.to_owned()))),
        None => match text.strip_suffix('-') {
            Some(key) if !key.trim().is_empty() => Ok((key.trim().to_owned(), None)),
            _ => Err(format!("{text:?} is neither KEY=VALUE nor KEY-")),
        },
        Some(_) => Err(format!("{text:?} names no label")),
    }
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn a_label_is_set_or_cleared() {
        let set = |key: &str, value: Option<&str>| Ok((key.to_owned(), value.map(str::to_owned)));
        assert_eq!(label("nic=100g"), set("nic", Some("100g")));
        assert_eq!(label("nic="), set("nic", Some("")));
        assert_eq!(label("a=b=c-"), set("a", Some("b=c-")));
        assert_eq!(label("nic-"), set("nic", None));
        for wrong in ["nic", "=x", "-", ""] {
            assert!(label(wrong).is_err(), "{wrong}");
        }
    }
}
