//! `cluster ca …`.

use clap::{Args, Subcommand};

/// What is done with the cluster's certificate authority.
#[derive(Debug, Subcommand)]
pub enum AuthorityVerb {
    /// Its fingerprint, and who has no certificate of it yet
    #[command(after_help = "Example:\n  vtctl cluster ca show")]
    Show,
    /// Have another one follow, or end the one before
    Rotate(RotateArgs),
}

/// `cluster ca rotate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl cluster ca rotate\n  vtctl cluster ca show\n  vtctl cluster ca rotate --finish\n\nBoth are trusted from the first command to the last; jobs go on. Hosts get a new\n\
                  certificate as soon as they are there, also after the end. A client gets one when it\n\
                  is used before the end; after the end it needs a new token.\n\
                  Where the old key may be in wrong hands, go on to --finish --yes at once."
)]
pub struct RotateArgs {
    /// Trust the one before the present one no more
    #[arg(long)]
    pub finish: bool,
    /// Yes, also where clients then need a new token
    #[arg(long, requires = "finish")]
    pub yes: bool,
}
