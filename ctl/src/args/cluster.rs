//! `cluster …` and `host …`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use vt_protocol::{
    admin::HostRole,
    ids::{Name, TokenId},
};

use super::globals::duration;

/// What is done with a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Make a cluster of this host's unclaimed daemon
    Init(InitArgs),
    /// Join this host's unclaimed daemon to a cluster
    Join(JoinArgs),
    /// Hosts, votes and what may fail
    #[command(after_help = "Example:\n  vtctl cluster status -o wide\n\nExit code 21 where the cluster has no quorum.")]
    Status,
    /// Tokens that admit hosts
    #[command(subcommand, after_help = "Example:\n  vtctl cluster token create")]
    Token(TokenVerb),
}

/// `cluster init`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vtctl cluster init --name lab-a --advertise 10.20.0.11:7465")]
pub struct InitArgs {
    /// The cluster's name
    #[arg(long = "name", default_value = "vtmesh")]
    pub cluster: Name,
    /// This host's name [default: its host name]
    #[arg(long)]
    pub host: Option<Name>,
    /// Where other hosts reach this one
    #[arg(long, value_name = "ADDR:PORT")]
    pub advertise: Option<SocketAddr>,
    /// This host's part
    #[arg(long, value_enum, default_value_t = RoleArg::Voter)]
    pub role: RoleArg,
    /// A label of this host; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
}

/// `cluster join`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl cluster join vtj1_7k2m9q4x8\n  vtctl cluster join --token-file - < token")]
pub struct JoinArgs {
    /// The token; also from VTCTL_TOKEN
    #[arg(env = "VTCTL_TOKEN", hide_env_values = true, required_unless_present = "token_file")]
    pub token: Option<String>,
    /// Read the token from a file; `-`: from stdin
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// This host's name [default: its host name]
    #[arg(long = "name", value_name = "HOST")]
    pub host: Option<Name>,
    /// Where other hosts reach this one
    #[arg(long, value_name = "ADDR:PORT")]
    pub advertise: Option<SocketAddr>,
    /// A wish: everyone joins as learner first
    #[arg(long, value_enum, default_value_t = RoleArg::Voter)]
    pub role: RoleArg,
    /// A label of this host; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
}

/// What is done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token; its text is shown once
    Create(TokenCreateArgs),
    /// Tokens, without their secrets
    #[command(visible_alias = "ls", after_help = "Example:\n  vtctl cluster token list")]
    List,
    /// Make a token worthless
    #[command(after_help = "Example:\n  vtctl cluster token revoke tk_4f2a")]
    Revoke {
        /// Its id, from `token list`
        id: TokenId,
    },
}

/// `cluster token create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl cluster token create --role voter --ttl 15m\n  vtctl cluster token create -o name"
)]
pub struct TokenCreateArgs {
    /// The part the host is to take
    #[arg(long, value_enum, default_value_t = RoleArg::Voter)]
    pub role: RoleArg,
    /// How long it is valid, at most 24h
    #[arg(long, value_parser = ttl, default_value = "1h")]
    pub ttl: Duration,
}

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
    /// One host with what it says of itself
    #[command(after_help = "Example:\n  vtctl host show host1")]
    Show {
        /// Its name
        host: Name,
    },
}

/// A host's part in decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Votes, and runs VMs
    Voter,
    /// Follows without a vote, and runs VMs
    Learner,
    /// Votes, and runs nothing
    Witness,
}

impl From<RoleArg> for HostRole {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Voter => Self::Voter,
            RoleArg::Learner => Self::Learner,
            RoleArg::Witness => Self::Witness,
        }
    }
}

/// `key=value`; the key is not empty.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    let day = Duration::from_secs(86_400);
    if ttl < Duration::from_secs(1) || ttl > day { Err("a token lives 1s to 24h".to_owned()) } else { Ok(ttl) }
}
