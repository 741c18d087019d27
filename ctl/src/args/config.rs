//! `config …`: the client's own file.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use vt_protocol::ids::Name;

/// What is done with the client's own file.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Clusters that are reached from here, and until when
    #[command(after_help = "Example:\n  vtctl config contexts")]
    Contexts,
    /// Choose the cluster that is meant from now on
    UseContext(UseContextArgs),
    /// Forget a context and its key
    #[command(after_help = "Example:\n  vtctl config remove-context lab-a\n\n\
                            The key stays admitted until an admin revokes it:\n  vtctl cluster access revoke alice")]
    RemoveContext {
        /// Its name
        name: Name,
    },
    /// What is in the file, and where it comes from
    #[command(after_help = "Example:\n  vtctl config view")]
    View,
    /// Where the file is
    #[command(after_help = "Example:\n  vtctl config path")]
    Path,
}

/// `config use-context`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl config use-context lab-a\n  vtctl config use-context --join vtj1_7k2m9q4x8\n  \
                  vtctl config use-context --none\n\nAn admin makes the token: vtctl cluster token create --role client-runner"
)]
pub struct UseContextArgs {
    /// The context; with --join: what the new one is called
    /// [default: the cluster's name]
    #[arg(required_unless_present_any = ["join", "join_file", "none"])]
    pub name: Option<Name>,
    /// Make a key, take this token to its cluster, keep what comes back
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["join_file", "none"])]
    pub join: Option<String>,
    /// Read the token from a file; `-`: from stdin
    #[arg(long, value_name = "FILE", conflicts_with = "none")]
    pub join_file: Option<PathBuf>,
    /// The name this client asks for, where the token names none
    /// [default: your user name]
    #[arg(long = "as", value_name = "NAME")]
    pub wish: Option<Name>,
    /// Mean no context
    #[arg(long, conflicts_with = "name")]
    pub none: bool,
}
