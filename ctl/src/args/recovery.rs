//! `cluster snapshot …` and `cluster recover`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand};
use vt_protocol::ids::Name;

/// What is done with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Write what the cluster agreed on into a file
    #[command(
        after_help = "Example:\n  vtctl cluster snapshot save lab-a.snapshot\n\nIt holds hosts, jobs and settings, no keys, images or evidence."
    )]
    Save {
        /// The file; replaced where it exists
        file: PathBuf,
    },
    /// Make a cluster of this unclaimed daemon from a snapshot
    Restore(RestoreArgs),
}

/// `cluster snapshot restore`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  vtctl cluster snapshot restore lab-a.snapshot --yes\n\nFor the day when no host is left. This host is then the only one; all others\n\
                  join afresh, under a new authority. Without --yes it only says what would be lost."
)]
pub struct RestoreArgs {
    /// The file
    pub file: PathBuf,
    /// This host's name [default: its host name]
    #[arg(long)]
    pub host: Option<Name>,
    /// Where other hosts reach this one
    #[arg(long, value_name = "ADDR:PORT")]
    pub advertise: Option<SocketAddr>,
    /// Yes, what happened after it was taken is lost
    #[arg(long)]
    pub yes: bool,
}

/// `cluster recover`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl cluster recover\n  vtctl cluster recover --yes\n\nRun it on the one host that goes on, best the voter with the highest entry. It\n\
                  keeps all its log holds and becomes the only voter. The others are refused when\n\
                  they come back; on each: vtctl cluster leave --forget --yes, then cluster join.\n\
                  Without --yes it only says what may be lost."
)]
pub struct RecoverArgs {
    /// Yes, the other voters are gone for good
    #[arg(long)]
    pub yes: bool,
}
