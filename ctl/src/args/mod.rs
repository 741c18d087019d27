//! The command line: `vtctl NOUN VERB [NAME] [flags]`. What is typed, and nothing of what is done with it.

mod access;
mod authority;
mod cluster;
mod config;
mod doctor;
mod globals;
mod host;
mod image;
mod job;
mod lab;
mod later;
mod provider;
mod recovery;
mod results;
mod run;
mod variants;

use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::{
    access::{AccessVerb, AuditArgs},
    authority::{AuthorityVerb, RotateArgs},
    cluster::{ClusterVerb, InitArgs, JoinArgs, LeaveArgs, RoleArg, TokenCreateArgs, TokenRole, TokenVerb},
    config::{ConfigVerb, UseContextArgs},
    doctor::DoctorArgs,
    globals::{ColorChoice, Globals, Output, ProgressChoice, duration},
    host::{DrainArgs, HostVerb, PromoteArgs, ReserveArgs},
    image::{
        FormatArg, ImageBuildArgs, ImageConvertArgs, ImageFetchArgs, ImageImportArgs, ImageSyncArgs, ImageVerb,
        PoolKindArg, StorageAddArgs, StorageVerb,
    },
    job::{
        ExplainArgs, FetchArgs, JobVerb, KeysArgs, ParityArgs, RerunArgs, ScenarioCheckArgs, ScenarioVerb, VmVerb,
        WhichJob,
    },
    lab::{DriverArg, LabUpArgs, LabVerb},
    later::Later,
    provider::{GuestArgs, GuestDefineArgs, GuestSystem, GuestVerb, ProviderVerb, ProvidersArgs, SetArgs},
    recovery::{RecoverArgs, RestoreArgs, SnapshotVerb},
    results::{CoverageArgs, ResultsVerb},
    run::{GroupHosts, Outcome, ReportFile, RunArgs},
    variants::{CfgVerb, ExpandArgs, Selection, VariantsVerb},
};

/// Everything that was typed.
#[derive(Debug, Parser)]
#[command(
    name = "vtctl",
    version,
    about = "Move running VMs between hosts, and prove they survive",
    long_about = "vtctl talks to vtd, the daemon that runs on every host. It finds the daemon\n\
                  by --endpoint, --context, VTCTL_ENDPOINT, VTCTL_CONTEXT, the current lab,\n\
                  the current context, or this host's own socket.",
    disable_help_subcommand = true,
    after_help = "Examples:\n  vtctl lab up --hosts 3\n  vtctl run multihost_migration -m host1,host2\n  vtctl status\n\n\
                  Exit codes:\n\
                  \x20   0 ok             20 no daemon answered   100 a case FAILed\n\
                  \x20   1 bug in vtmesh  21 no quorum            101 a case ended in ERROR\n\
                  \x20   2 usage          22 denied               102 job cancelled\n\
                  \x20   3 configuration  23 not found            104 a deadline was hit\n\
                  \x20   4 nothing to run 24 conflict             105 set-up failed\n\
                  \x20                    25 precondition         124 --timeout passed\n\
                  \x20                    26 partly done          130 Ctrl-C"
)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Nouns, and the few verbs that stand alone.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make, join and look at a cluster
    #[command(subcommand, after_help = "Example:\n  vtctl cluster status")]
    Cluster(Later<ClusterVerb>),
    /// The cluster on one screen (same as `cluster status`)
    #[command(after_help = "Example:\n  vtctl status")]
    Status,
    /// Hosts of the cluster
    #[command(subcommand, after_help = "Example:\n  vtctl host list")]
    Host(Later<HostVerb>),
    /// What can be run
    #[command(subcommand, after_help = "Example:\n  vtctl scenario list")]
    Scenario(Later<ScenarioVerb>),
    /// Run a scenario on hosts, watch it, fetch the evidence
    Run(Box<RunArgs>),
    /// Jobs: what was run, what runs
    #[command(subcommand, after_help = "Example:\n  vtctl job list")]
    Job(Later<JobVerb>),
    /// Stored results, looked at together
    #[command(subcommand, after_help = "Example:\n  vtctl results coverage")]
    Results(Later<ResultsVerb>),
    /// The test matrix of a Cartesian configuration
    #[command(subcommand, after_help = "Example:\n  vtctl variants list -c tests.cfg")]
    Variants(Later<VariantsVerb>),
    /// Where tests come from: Avocado-VT's test providers
    #[command(subcommand, after_help = "Example:\n  vtctl provider list --providers ./avocado-vt")]
    Provider(Later<ProviderVerb>),
    /// Guests that configurations know
    #[command(subcommand, after_help = "Example:\n  vtctl guest list --providers ./avocado-vt")]
    Guest(Later<GuestVerb>),
    /// The configuration language itself, for scripts
    #[command(subcommand, after_help = "Example:\n  vtctl cfg expand --json tests.cfg")]
    Cfg(Later<CfgVerb>),
    /// Virtual machines and who owns them
    #[command(subcommand, after_help = "Example:\n  vtctl vm list")]
    Vm(Later<VmVerb>),
    /// Images that VMs boot from, and where their copies are
    #[command(subcommand, after_help = "Example:\n  vtctl image import rhel9.qcow2")]
    Image(Later<ImageVerb>),
    /// Pools that images lie in
    #[command(subcommand, after_help = "Example:\n  vtctl storage list")]
    Storage(Later<StorageVerb>),
    /// Which cluster is meant, and the key to it
    #[command(subcommand, after_help = "Example:\n  vtctl config contexts")]
    Config(Later<ConfigVerb>),
    /// A cluster on this one machine, in network namespaces
    #[command(subcommand, after_help = "Example:\n  vtctl lab up --hosts 3")]
    Lab(Later<LabVerb>),
    /// Find out what is wrong, and how to mend it
    Doctor(DoctorArgs),
    /// What an error code means and what to do
    Explain(ExplainArgs),
    /// Completion for a shell, to be sourced
    #[command(after_help = "Example:\n  vtctl completion bash > /etc/bash_completion.d/vtctl")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory; for packages
    #[command(hide = true, after_help = "Example:\n  vtctl man target/man")]
    Man {
        /// The directory; it exists
        directory: std::path::PathBuf,
    },
    /// Version of vtctl, and of the daemon that answers
    #[command(after_help = "Example:\n  vtctl version")]
    Version,
}

/// Examples stand before the options: they are what most readers came for.
const HELP: &str = "{about-with-newline}\n{usage-heading} {usage}{after-help}\n\n{all-args}";

/// The command tree as clap knows it.
pub fn command() -> clap::Command {
    shape(Cli::command())
}

fn shape(command: clap::Command) -> clap::Command {
    // One form of help, a line a flag: the long one fills screens.
    let help = Arg::new("help").short('h').long("help").action(ArgAction::HelpShort).help("Print help");
    shape_verbs(command.help_template(HELP).max_term_width(80).disable_help_flag(true).arg(help))
}

fn shape_verbs(command: clap::Command) -> clap::Command {
    command.mut_subcommands(shape)
}

/// Reads a command line.
///
/// # Errors
/// What clap says, help and version included: those are not failures, see [`clap::Error::exit_code`].
pub fn parse<I, T>(words: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let mut command = command();
    let matches = command.try_get_matches_from_mut(words)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(command: &clap::Command, path: &str, visit: &mut impl FnMut(&str, &clap::Command)) {
        visit(path, command);
        for sub in command.get_subcommands() {
            walk(sub, &format!("{path} {}", sub.get_name()), visit);
        }
    }

    /// With everything in it that is otherwise read when it is typed.
    fn whole() -> clap::Command {
        let mut command = command();
        command.build();
        command
    }

    #[test]
    fn the_tree_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_help_fits_80_columns_and_shows_an_example() {
        let mut seen = 0;
        walk(&whole(), "vtctl", &mut |path, command| {
            for text in [command.clone().render_help(), command.clone().render_long_help()] {
                let text = text.to_string();
                for line in text.lines() {
                    assert!(line.chars().count() <= 80, "{path}: {line}");
                }
                assert!(text.contains("Example"), "{path} has no example:\n{text}");
                let example = text.find("Example").unwrap();
                assert!(text.find("Options:").is_none_or(|options| example < options), "{path}: example after options");
            }
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!((1..=60).contains(&about.chars().count()), "{path}: {about}");
            seen += 1;
        });
        assert!(seen > 30, "{seen}");
    }

    #[test]
    fn every_example_is_a_line_that_vtctl_takes() {
        let mut lines = Vec::new();
        walk(&whole(), "vtctl", &mut |_, command| {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = text.lines().map(str::trim).filter(|line| line.starts_with("vtctl "));
            lines.extend(examples.map(|line| line.split(['>', '|', '<']).next().unwrap_or(line).trim().to_owned()));
        });
        assert!(lines.len() > 30);
        for line in lines {
            let parsed = parse(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.err().map(|e| e.to_string()).unwrap_or_default());
        }
    }

    /// The commands of vtctl in the fenced blocks of a document: prompts and comments taken off, lines that go on put
    /// together, several in a line told apart.
    fn commands(text: &str) -> Vec<Vec<String>> {
        let fenced: String = text.split("```").skip(1).step_by(2).collect();
        let whole = fenced.replace("\\\n", " ");
        let bare = whole.lines().map(|line| line.split(" #").next().unwrap_or(line).trim());
        let bare = bare
            .map(|line| ["# ", "$ "].into_iter().find_map(|prompt| line.split_once(prompt)).map_or(line, |at| at.1));
        let mut found = Vec::new();
        for line in bare.filter(|line| line.starts_with("vtctl ")) {
            let words = shlex::split(line).unwrap_or_else(|| panic!("{line}: quotes"));
            for command in words.split_inclusive(|word| word.ends_with(';')) {
                found.push(command.iter().map(|word| word.trim_end_matches(';').to_owned()).collect());
            }
        }
        found
    }

    #[test]
    fn every_command_in_the_manual_is_a_line_that_vtctl_takes() {
        let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let docs = std::fs::read_dir(top.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let (mut seen, mut wrong) = (0, Vec::new());
        for file in docs.chain(["README.md", "ansible/README.md"].map(|name| top.join(name))) {
            for mut words in commands(&std::fs::read_to_string(&file).unwrap()) {
                words.iter_mut().filter(|word| *word == "JOB").for_each(|word| *word = "@latest".to_owned());
                if let Err(error) = parse(&words) {
                    wrong.push(format!("{}: {}: {error}", file.display(), words.join(" ")));
                }
                seen += 1;
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(seen > 80, "{seen}");
    }

    #[test]
    fn a_typo_is_answered_with_what_was_meant() {
        let error = parse(["vtctl", "clster", "status"]).unwrap_err().to_string();
        assert!(error.contains("cluster"), "{error}");
        let error = parse(["vtctl", "run", "x", "--detatch"]).unwrap_err().to_string();
        assert!(error.contains("--detach"), "{error}");
    }
}
