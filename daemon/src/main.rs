//! `vtd`: the daemon, and the programs it starts from its own binary (a party, a VM's guard).

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use vt_daemon::{
    doctor,
    guest::{self, holder::HolderWords},
    memory, party,
    pools::{self, export::ExportWords},
    qemu, run,
    settings::{DEFAULT, Flags, Settings},
    telemetry,
};
use vt_protocol::{error::Exit, ids::AttemptId};

/// The daemon of a vtmesh host.
#[derive(Debug, Parser)]
#[command(name = "vtd", version)]
struct Words {
    /// The settings [default: /etc/vtmesh/vtd.toml where that exists]; drop-ins are FILE.d/*.toml
    #[arg(long, global = true, value_name = "FILE", env = "VTD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run the daemon (the same without a word).
    Run,
    /// Show or check settings.
    Settings(SettingsWords),
    /// Find out what is wrong on this host, and how to mend it.
    Doctor(doctor::program::Words),
    /// Write the manual page into a directory; for packages.
    #[command(hide = true)]
    Man {
        /// The directory.
        directory: PathBuf,
    },
    /// One host's part in an attempt; started by the daemon.
    #[command(hide = true)]
    Party(PartyWords),
    /// The disk of a VM in a pool, for its QEMU; started by the daemon.
    #[command(hide = true)]
    Export(ExportWords),
    /// A shell in a guest; started by the daemon.
    #[command(hide = true)]
    Session(HolderWords),
}

#[derive(Debug, Args)]
struct PartyWords {
    /// The daemon's party socket.
    #[arg(long)]
    socket: PathBuf,
    /// The attempt.
    #[arg(long)]
    attempt: AttemptId,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SettingsWords {
    /// Print every key with its default.
    #[arg(long)]
    default: bool,
    /// Check a file with its drop-ins, the daemon's own where none is named; say nothing where they are good.
    #[arg(long, value_name = "FILE")]
    check: Option<Option<PathBuf>>,
}

fn main() -> ExitCode {
    // A process that becomes QEMU must not have threads or a runtime first.
    if let Some(code) = qemu::early(std::env::args_os()) {
        return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX));
    }
    let words = Words::parse();
    match words.command {
        None | Some(Action::Run) => daemon(words.config.as_deref(), &words.flags),
        Some(Action::Settings(wanted)) => settings(words.config.as_deref(), &wanted),
        Some(Action::Doctor(wanted)) => match doctor::program::run(words.config.as_deref(), &words.flags, wanted) {
            Ok(exit) => ExitCode::from(exit.code()),
            Err(report) => {
                let exit = report.code.exit();
                eprintln!("{}", run::told(report));
                ExitCode::from(exit.code())
            }
        },
        Some(Action::Man { directory }) => man(&directory),
        Some(Action::Party(words)) => {
            party::program::run(party::program::Args { socket: words.socket, attempt: words.attempt })
        }
        Some(Action::Export(words)) => ExitCode::from(pools::export::run(&words)),
        Some(Action::Session(words)) => ExitCode::from(guest::holder::run(&words)),
    }
}

fn settings(config: Option<&Path>, wanted: &SettingsWords) -> ExitCode {
    let Some(file) = &wanted.check else {
        print!("{DEFAULT}");
        return ExitCode::SUCCESS;
    };
    match Settings::load(file.as_deref().or(config), &Flags::default()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", run::told(error.report()));
            ExitCode::from(Exit::Config.code())
        }
    }
}

fn man(directory: &Path) -> ExitCode {
    match clap_mangen::generate_to(Words::command(), directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vtd: the manual page cannot be written into {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn daemon(config: Option<&Path>, flags: &Flags) -> ExitCode {
    memory::bound();
    let settings = match Settings::load(config, flags) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{}", run::told(error.report()));
            return ExitCode::from(Exit::Config.code());
        }
    };
    telemetry::start(&settings.log);
    telemetry::abort_on_panic();
    // Two threads: one may wait for the disk while the other answers.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(8).enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let ended = runtime.block_on(run::run(settings));
        // What is still blocked on a disk must not keep the process.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vtd: {error:#}");
            ExitCode::from(Exit::Internal.code())
        }
    }
}
