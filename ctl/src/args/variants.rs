//! `variants …` and `cfg expand`: the test matrix.

use clap::{Args, Subcommand};

use super::{
    cluster::key_value,
    provider::{GuestArgs, SetArgs},
};

/// Which configuration, and which part of it.
#[derive(Debug, Clone, Args)]
pub struct Selection {
    /// A Cartesian configuration; repeatable, read in order
    /// [default with --providers: tests.cfg of the set]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub config: Vec<String>,
    /// Keep the variants that match; repeatable
    #[arg(long, value_name = "FILTER")]
    pub only: Vec<String>,
    /// Drop the variants that match; repeatable
    #[arg(long, value_name = "FILTER")]
    pub no: Vec<String>,
    /// A parameter for all of them; repeatable
    #[arg(short = 'p', long = "param", value_name = "KEY=VALUE", value_parser = key_value)]
    pub params: Vec<(String, String)>,
    /// The set behind the files
    #[command(flatten)]
    pub set: SetArgs,
    /// Guests and machines
    #[command(flatten)]
    pub guests: GuestArgs,
}

/// `variants …`.
#[derive(Debug, Clone, Subcommand)]
pub enum VariantsVerb {
    /// Names of the variants, as they are found
    #[command(after_help = "Example:\n  vtctl variants list -c tests.cfg --only boot --no Windows..ide")]
    List(Selection),
    /// How many there are, without walking them
    #[command(after_help = "Example:\n  vtctl variants count -c tests.cfg")]
    Count(Selection),
    /// The parameters of one variant
    #[command(after_help = "Example:\n  vtctl variants show -c tests.cfg qcow2.boot --host host1")]
    Show {
        /// Full name, or a filter that leaves one variant
        name: String,
        /// As this host of a run sees them: host1, host2, …
        #[arg(long, value_name = "HOSTN")]
        host: Option<String>,
        /// What is meant
        #[command(flatten)]
        from: Selection,
    },
    /// Where values come from, or why a variant is not there
    #[command(after_help = "Example:\n  vtctl variants explain -c tests.cfg qcow2.boot mem")]
    Explain {
        /// Full name, or a filter that leaves one variant
        name: String,
        /// Only this key
        key: Option<String>,
        /// What is meant
        #[command(flatten)]
        from: Selection,
    },
    /// Probable mistakes: dead filters, misspelt names
    #[command(after_help = "Example:\n  vtctl variants lint -c tests.cfg")]
    Lint {
        /// Also keys that neither these files nor a scenario reads; a daemon is asked for the scenarios
        #[arg(long)]
        keys: bool,
        /// Leave out notes
        #[arg(long)]
        warnings: bool,
        /// What is meant
        #[command(flatten)]
        from: Selection,
    },
}

impl VariantsVerb {
    /// Whether a daemon is asked.
    pub fn asks(&self) -> bool {
        matches!(self, Self::Lint { keys: true, .. })
    }
}

/// `cfg …`.
#[derive(Debug, Clone, Subcommand)]
pub enum CfgVerb {
    /// Expand a Cartesian configuration, for scripts
    #[command(after_help = "Example:\n  vtctl cfg expand --json tests.cfg")]
    Expand(ExpandArgs),
}

/// `cfg expand`.
#[derive(Debug, Clone, Args)]
pub struct ExpandArgs {
    /// The file
    pub file: String,
    /// Text parsed behind the file's end, e.g. 'only boot'
    pub statements: Vec<String>,
    /// One JSON object a line instead of names
    #[arg(long)]
    pub json: bool,
    /// Only the default variant of each set
    #[arg(long)]
    pub defaults: bool,
    /// Sets that --defaults expands all the same
    #[arg(long, value_name = "SET,SET…")]
    pub expand: Option<String>,
}
