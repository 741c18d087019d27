//! `cluster access …` and `cluster audit`.

use std::time::Duration;

use clap::{Args, Subcommand};
use vt_protocol::ids::Name;

use super::globals::duration;

/// What is done with clients.
#[derive(Debug, Subcommand)]
pub enum AccessVerb {
    /// Clients that are admitted, with role and end
    #[command(visible_alias = "ls", after_help = "Example:\n  vtctl cluster access list")]
    List,
    /// Refuse the key of a client from now on
    #[command(after_help = "Example:\n  vtctl cluster access revoke alice")]
    Revoke {
        /// Its name, from `access list`
        name: Name,
    },
}

/// `cluster audit`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl cluster audit --since 1h\n  vtctl cluster audit --denied -o jsonl")]
pub struct AuditArgs {
    /// Not older than this
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub since: Option<Duration>,
    /// Only who was refused
    #[arg(long)]
    pub denied: bool,
    /// The newest so many
    #[arg(long, value_name = "N", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(vt_protocol::audit::ENTRIES_MAX)))]
    pub limit: u32,
}
