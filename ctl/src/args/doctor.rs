//! `doctor`.

use std::path::PathBuf;

use clap::Args;

/// `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl doctor\n  vtctl doctor --all --junit doctor.xml\n  vtctl doctor --check D-STO-02 --fix --yes\n\nWithout --all it examines the host whose daemon answers, and its ways to the\n\
                  others; where none answers, this machine (vtd doctor). -v shows what is well,\n\
                  too. Exit code 25 where something does not work, 0 otherwise."
)]
pub struct DoctorArgs {
    /// Every host, and how they fit each other
    #[arg(long)]
    pub all: bool,
    /// Do what is safe to do: directories, their permissions,
    /// labs that are left over
    #[arg(long)]
    pub fix: bool,
    /// Only these checks, by id; repeatable
    #[arg(long = "check", value_name = "ID", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Not these checks
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub skip: Vec<String>,
    /// Also write the findings as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}
