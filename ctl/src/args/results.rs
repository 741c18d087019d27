//! `results …`: what stored results show together.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What is made of stored results.
#[derive(Debug, Subcommand)]
pub enum ResultsVerb {
    /// The last verdict of every flag, by backend and QEMUs
    Coverage(CoverageArgs),
}

/// `results coverage`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl results coverage\n  vtctl results coverage nightly/ --html coverage.html")]
pub struct CoverageArgs {
    /// Folders of jobs, or folders with such folders
    #[arg(value_name = "DIR", default_value = "vtmesh-results")]
    pub folders: Vec<PathBuf>,
    /// Write a page as well
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}
