//! `cluster …`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use vt_protocol::{
    admin::{AccessRole, HostRole, TokenGrant},
    ids::{Name, TokenId},
};

use super::{
    access::{AccessVerb, AuditArgs},
    authority::AuthorityVerb,
    globals::duration,
    recovery::{RecoverArgs, SnapshotVerb},
};

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
    /// Hand leadership to another voter
    #[command(after_help = "Example:\n  vtctl cluster transfer host2")]
    Transfer {
        /// The host that is to lead
        host: Name,
    },
    /// Take this host out of its cluster
    Leave(LeaveArgs),
    /// The cluster's state in a file, and a cluster from it
    #[command(subcommand, after_help = "Example:\n  vtctl cluster snapshot save lab-a.snapshot")]
    Snapshot(SnapshotVerb),
    /// Go on with this host alone after a lost quorum
    Recover(RecoverArgs),
    /// Tokens that admit hosts and clients
    #[command(subcommand, after_help = "Example:\n  vtctl cluster token create")]
    Token(TokenVerb),
    /// Clients that may use the cluster from elsewhere
    #[command(subcommand, after_help = "Example:\n  vtctl cluster access list")]
    Access(AccessVerb),
    /// The certificate authority
    #[command(subcommand, after_help = "Example:\n  vtctl cluster ca show")]
    Ca(AuthorityVerb),
    /// Who did what, and who was refused
    Audit(AuditArgs),
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

/// `cluster leave`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl host drain host3\n  vtctl cluster leave\n  vtctl cluster leave --forget --yes\n\nRun it on the host itself. It comes back only by `vtctl cluster join`, as a new\n\
                  host. --forget asks nobody: for a host that was removed, or whose cluster is\n\
                  gone or was recovered without it."
)]
pub struct LeaveArgs {
    /// Do not ask the cluster: this host alone forgets it
    #[arg(long, requires = "yes")]
    pub forget: bool,
    /// Yes, also where something may be lost
    #[arg(long)]
    pub yes: bool,
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
    after_help = "Examples:\n  vtctl cluster token create --role voter --ttl 15m\n  vtctl cluster token create --role client-runner --for alice\n  vtctl cluster token create -o name"
)]
pub struct TokenCreateArgs {
    /// The part the host is to take, or what the client may do
    #[arg(long, value_enum, default_value_t = TokenRole::Voter)]
    pub role: TokenRole,
    /// How long it is valid, at most 24h
    #[arg(long, value_parser = ttl, default_value = "1h")]
    pub ttl: Duration,
    /// The client's name [default: what it asks for]
    #[arg(long = "for", value_name = "NAME")]
    pub client: Option<Name>,
    /// How long the client's certificate is valid, at most 400d
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "90d")]
    pub valid: Duration,
}

/// What a token gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenRole {
    /// A host that votes, and runs VMs
    Voter,
    /// A host that follows without a vote, and runs VMs
    Learner,
    /// A host that votes, and runs nothing
    Witness,
    /// A client that may look
    ClientViewer,
    /// A client that may run jobs
    ClientRunner,
    /// A client that may change the cluster
    ClientAdmin,
}

impl From<TokenRole> for TokenGrant {
    fn from(role: TokenRole) -> Self {
        match role {
            TokenRole::Voter => Self::Host(HostRole::Voter),
            TokenRole::Learner => Self::Host(HostRole::Learner),
            TokenRole::Witness => Self::Host(HostRole::Witness),
            TokenRole::ClientViewer => Self::Client(AccessRole::Viewer),
            TokenRole::ClientRunner => Self::Client(AccessRole::Runner),
            TokenRole::ClientAdmin => Self::Client(AccessRole::Admin),
        }
    }
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
