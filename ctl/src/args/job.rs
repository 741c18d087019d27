//! `job …`, `scenario …`, `vm …`, `explain`.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};
use vt_protocol::ids::{IdError, JobId};

use super::{
    provider::SetArgs,
    run::{Outcome, ReportFile},
    variants::Selection,
};

/// Which job is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhichJob {
    /// The one that was submitted last, whoever did it.
    Latest,
    /// This one.
    Id(JobId),
}

impl FromStr for WhichJob {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "@latest" { Ok(Self::Latest) } else { text.parse().map(Self::Id) }
    }
}

/// What is done with jobs.
#[derive(Debug, Subcommand)]
pub enum JobVerb {
    /// Jobs, newest first
    #[command(visible_alias = "ls", after_help = "Example:\n  vtctl job list")]
    List,
    /// One job with its cases
    #[command(after_help = "Examples:\n  vtctl job show job_7f3k2\n  vtctl job show @latest")]
    Show {
        /// Its id, or @latest
        job: WhichJob,
    },
    /// Follow a job until it is done; exits as `run` does
    #[command(after_help = "Examples:\n  vtctl job watch job_7f3k2\n  vtctl job watch @latest")]
    Watch {
        /// Its id, or @latest
        job: WhichJob,
    },
    /// What happened, on all hosts, from the beginning
    #[command(after_help = "Examples:\n  vtctl job logs job_7f3k2\n  vtctl job logs job_7f3k2 --follow -o jsonl")]
    Logs {
        /// Its id, or @latest
        job: WhichJob,
        /// Go on until the job is done
        #[arg(short, long)]
        follow: bool,
    },
    /// Cancel a job
    #[command(after_help = "Example:\n  vtctl job cancel job_7f3k2")]
    Cancel {
        /// Its id, or @latest
        job: WhichJob,
        /// Return when it is asked for, not when it is done
        #[arg(long)]
        no_wait: bool,
    },
    /// Let go what `run --keep` has kept
    #[command(after_help = "Example:\n  vtctl job release job_7f3k2")]
    Release {
        /// Its id, or @latest
        job: WhichJob,
    },
    /// Run a job again: the same variants to the byte
    Rerun(RerunArgs),
    /// Fetch the evidence of a job and write its reports
    #[command(visible_alias = "report")]
    Fetch(FetchArgs),
}

/// `job fetch`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl job fetch job_7f3k2 -r ./evidence\n  \
                        vtctl job report job_7f3k2 --report junit=results.xml")]
pub struct FetchArgs {
    /// Its id, or @latest
    pub job: WhichJob,
    /// Directory, which must not exist yet [default: vtmesh-results/JOB]
    #[arg(short = 'r', long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// Also write reports: junit=F, json=F, md=F; repeatable
    #[arg(long, value_name = "KIND=FILE", value_delimiter = ',')]
    pub report: Vec<ReportFile>,
}

/// `job rerun`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl job rerun job_7f3k2\n  vtctl job rerun @latest --failed\n\n\
                        The cases run on the hosts they had, with the parameters they had: what became of\n\
                        configuration files since then does not matter. Exits as `run` does.")]
pub struct RerunArgs {
    /// Its id, or @latest
    pub job: WhichJob,
    /// Only cases that did not pass, and those that waited for them
    #[arg(long)]
    pub failed: bool,
    /// What is done about the job
    #[command(flatten)]
    pub outcome: Outcome,
    /// A remark kept with the new job [default: again: JOB]
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

/// What is done with scenarios.
#[derive(Debug, Subcommand)]
pub enum ScenarioVerb {
    /// Scenarios that the daemons can run, and tests of providers
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  vtctl scenario list\n  vtctl scenario list --providers ./avocado-vt"
    )]
    List {
        /// Whose tests are listed too
        #[command(flatten)]
        set: SetArgs,
    },
    /// One scenario with its parameters, or one test
    #[command(after_help = "Examples:\n  vtctl scenario show multihost_migration\n  \
                            vtctl scenario show cut.scenario")]
    Show {
        /// Its name, or the file it is in
        scenario: String,
        /// Whose tests are meant too
        #[command(flatten)]
        set: SetArgs,
    },
    /// What is wrong with a scenario in a file
    Check(ScenarioCheckArgs),
    /// What becomes of every variant of a configuration, and why
    Parity(Box<ParityArgs>),
    /// Keys of configurations: who reads them, or why nobody does
    Params(KeysArgs),
}

/// `scenario check`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vtctl scenario check cut.scenario -p rounds=3\n\n\
                        Everything that can be known before a run is checked, by the daemon that\n\
                        would run it: steps, their values, where each VM is at each step, and that\n\
                        all hosts meet at every barrier. Mistakes are shown with line and column;\n\
                        exits 3 where there are some. docs/scenario-files.md tells how one is written.")]
pub struct ScenarioCheckArgs {
    /// The file
    pub file: String,
    /// A parameter; repeatable
    #[arg(short = 'p', long = "param", value_name = "KEY=VALUE", value_parser = super::cluster::key_value)]
    pub params: Vec<(String, String)>,
    /// On how many hosts [default: as few as it takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub hosts: Option<u32>,
}

/// `scenario parity`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl scenario parity -c multi-host-tests.cfg\n  \
                        vtctl scenario parity -c multi-host-tests.cfg --markdown --job @latest\n\n\
                        Decided by the code that decides it when a job is taken. `runs`; `same`: the\n\
                        scenario reads nothing in which it differs from an earlier variant; `skip`,\n\
                        with the reason; `refused`: a job with it is. What a host lacks shows only in\n\
                        a run: --job adds what became of each in one.")]
pub struct ParityArgs {
    /// What is meant
    #[command(flatten)]
    pub from: Selection,
    /// Also what this job made of them: its id, or @latest
    #[arg(long)]
    pub job: Option<WhichJob>,
    /// As a table of Markdown
    #[arg(long)]
    pub markdown: bool,
}

/// `scenario params`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl scenario params\n  vtctl scenario params kill_vm\n  \
                        vtctl scenario params --without-effect -o json")]
pub struct KeysArgs {
    /// Only this key
    pub key: Option<String>,
    /// Only those that nobody reads
    #[arg(long)]
    pub without_effect: bool,
}

/// What is done with VMs.
#[derive(Debug, Subcommand)]
pub enum VmVerb {
    /// VMs, their owners and migrations under way
    #[command(visible_alias = "ls", after_help = "Example:\n  vtctl vm list")]
    List,
}

/// `explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl explain E0213\n  vtctl explain")]
pub struct ExplainArgs {
    /// An error code such as E0213; without one: the list
    pub code: Option<String>,
}
