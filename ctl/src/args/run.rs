//! `run SCENARIO`.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;

use super::{globals::duration, variants::Selection};

/// `run`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  vtctl run multihost_migration -m host1,host2\n  \
                        vtctl run multihost_migration -m host1,host2 -p mem=512M -p smp=2\n  \
                        vtctl run uptime -m host1 --report junit=results.xml\n  \
                        vtctl run -m host1,host2 -c tests.cfg --only 'tcp..after_login_vm'\n  \
                        vtctl run cut.scenario -m host1,host2 -p rounds=3\n\n\
                        With -c every variant runs the scenario that its `type` names. SCENARIO is for\n\
                        variants without one. A `type` that names no scenario is skipped, and so is a\n\
                        variant that asks for what its scenario does not do. A variant that depends on\n\
                        another waits for it, and is skipped when that one does not pass; what the\n\
                        filters removed is not waited for. `vtctl job rerun JOB` runs the same again.")]
pub struct RunArgs {
    /// The scenario, `vtctl scenario list` shows them, or a file with one; with -c for variants
    /// without `type`
    #[arg(required_unless_present_any = ["config", "providers"])]
    pub scenario: Option<String>,
    /// Hosts in order (host1 is the first); repeatable
    #[arg(short = 'm', long = "hosts", value_name = "A,B[,C…]")]
    pub hosts: Vec<String>,
    /// A file with one host a line; `-`: stdin
    #[arg(short = 'M', long, value_name = "FILE")]
    pub hosts_file: Option<PathBuf>,
    /// Cut the hosts into groups: auto, all, or a number
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub group_hosts: GroupHosts,
    /// Hosts that are left over FAIL instead of SKIP
    #[arg(long)]
    pub strict_hosts: bool,
    /// The test matrix, and parameters
    #[command(flatten)]
    pub matrix: Selection,
    /// What is done about the job
    #[command(flatten)]
    pub outcome: Outcome,
    /// How long one case may take [default: what a scenario's file says, else 20m]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub case_timeout: Option<Duration>,
    /// Leave the VM of a case as it is at the end, passed or not, until `vtctl job release JOB`
    #[arg(long)]
    pub keep: bool,
    /// A remark kept with the job
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Run every case this often
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeat: u32,
}

/// What is done about a job that was submitted.
#[derive(Debug, Clone, Args)]
pub struct Outcome {
    /// Directory for the evidence [default: vtmesh-results/JOB]
    #[arg(short = 'r', long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// Also write reports: junit=F, json=F, md=F; repeatable
    #[arg(long, value_name = "KIND=FILE", value_delimiter = ',')]
    pub report: Vec<ReportFile>,
    /// Print the job's id and do not wait
    #[arg(long, visible_alias = "no-wait")]
    pub detach: bool,
}

impl Outcome {
    /// Where its evidence is to go, if that was said and somebody waits for it.
    pub fn goal(&self) -> Option<&Path> {
        self.results.as_deref().filter(|_| !self.detach)
    }
}

impl RunArgs {
    /// Whether a configuration makes the cases.
    pub fn has_matrix(&self) -> bool {
        !self.matrix.config.is_empty() || self.scenario.is_none()
    }
}

/// How a list of hosts becomes cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupHosts {
    /// Groups of the scenario's host count.
    Auto,
    /// One group of all.
    All,
    /// Groups of this many.
    Of(u32),
}

impl FromStr for GroupHosts {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "all" => Ok(Self::All),
            _ => match text.parse() {
                Ok(n @ 1..=1000) => Ok(Self::Of(n)),
                _ => Err(format!("{text:?} is not auto, all, or a number from 1 to 1000")),
            },
        }
    }
}

/// A report to be written besides the results directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportFile {
    /// JUnit XML.
    Junit(PathBuf),
    /// results.json.
    Json(PathBuf),
    /// Markdown.
    Markdown(PathBuf),
}

impl FromStr for ReportFile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((_, "")) | None => Err(format!("{text:?} is not KIND=FILE; kinds are junit, json and md")),
            Some(("junit", file)) => Ok(Self::Junit(file.into())),
            Some(("json", file)) => Ok(Self::Json(file.into())),
            Some(("md", file)) => Ok(Self::Markdown(file.into())),
            Some((kind, _)) => Err(format!("there is no report of kind {kind:?}; kinds are junit, json and md")),
        }
    }
}
