//! `run SCENARIO`.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::Args;

use super::{cluster::key_value, globals::duration};

/// `run`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  vtctl run multihost_migration -m host1,host2\n  \
                        vtctl run multihost_migration -m host1,host2 -p mem=512M -p smp=2\n  \
                        vtctl run uptime -m host1 --report junit=results.xml")]
pub struct RunArgs {
    /// The scenario; `vtctl scenario list` shows them
    pub scenario: String,
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
    /// A parameter; repeatable, the last one wins
    #[arg(short = 'p', long = "param", value_name = "KEY=VALUE", value_parser = key_value)]
    pub params: Vec<(String, String)>,
    /// Directory for the evidence [default: vtmesh-results/JOB]
    #[arg(short = 'r', long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// Also write reports: junit=F, json=F, md=F; repeatable
    #[arg(long, value_name = "KIND=FILE", value_delimiter = ',')]
    pub report: Vec<ReportFile>,
    /// Print the job's id and do not wait
    #[arg(long, visible_alias = "no-wait")]
    pub detach: bool,
    /// How long one case may take
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "20m")]
    pub case_timeout: Duration,
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
