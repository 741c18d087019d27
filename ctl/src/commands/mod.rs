//! One file a noun: the call and the rendering. What is typed stands in `args`.

mod access;
mod authority;
mod cfg;
mod chosen;
mod cluster;
pub(crate) mod config;
mod doctor;
mod domain_file;
mod explain;
mod guest;
mod guest_define;
mod host;
mod image;
mod image_build;
mod job;
mod lab;
mod parity;
mod provider;
mod recovery;
mod rerun;
mod results;
mod run;
mod scenario;
mod scenario_file;
mod storage;
mod token;
mod variants;
mod vm;

use serde_json::{Value, json};
use vt_protocol::error::{ErrorCode, Exit, Report};

use crate::{
    args::{Cli, Command, Globals, ImageVerb, Later, Output},
    client::{Mesh, Reached},
    endpoint,
    ui::{Ui, style::Symbol, text::safe},
};

/// What a command works with.
#[derive(Debug)]
pub struct App {
    /// Flags that every command takes.
    pub globals: Globals,
    /// Where things are written.
    pub ui: Ui,
    /// The daemons to be asked.
    pub mesh: Mesh,
}

/// Runs a command and returns the exit code; errors are shown.
pub fn run(cli: Cli) -> u8 {
    let ui = Ui::new(&cli.globals);
    let done = match &cli.command {
        // These need neither a daemon nor a runtime.
        Command::Explain(args) => explain::explain(&ui, args),
        Command::Cfg(Later(verb)) => cfg::cfg(&ui, verb),
        Command::Variants(Later(verb)) if !verb.asks() => variants::variants(&ui, verb),
        Command::Guest(Later(verb)) => guest::guest(&ui, verb),
        Command::Results(Later(verb)) => results::results(&ui, verb),
        Command::Completion { shell } => explain::completion(&ui, *shell),
        Command::Man { directory } => explain::man(directory),
        _ => with_runtime(cli, ui.clone()),
    };
    match done {
        Ok(code) => code.0,
        Err(report) => {
            ui.error(&report);
            report.code.exit().code()
        }
    }
}

/// How the process ends: an exit code of ours, or that of a program that was run for the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u8);

impl From<Exit> for Code {
    fn from(exit: Exit) -> Self {
        Self(exit.code())
    }
}

fn with_runtime(cli: Cli, ui: Ui) -> Result<Code, Report> {
    // One thread: nothing here is worth the start of more.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Report::new(ErrorCode::Internal, "the runtime did not start").caused_by(&error))?;
    let done = runtime.block_on(dispatch(cli, ui));
    // A thread that waits for a key must not hold up the end.
    runtime.shutdown_background();
    done
}

async fn dispatch(cli: Cli, ui: Ui) -> Result<Code, Report> {
    let Cli { globals, command } = cli;
    match command {
        Command::Lab(Later(verb)) => return lab::lab(&globals, &ui, verb).await,
        Command::Image(Later(ImageVerb::Build(args))) => return image_build::image_build(&ui, args),
        Command::Config(Later(verb)) => return config::config(&globals, &ui, verb).await,
        Command::Provider(Later(verb)) => return provider::provider(&ui, verb, globals.timeout).await,
        _ => {}
    }
    let found = endpoint::places(
        &globals,
        |name| std::env::var(name).ok(),
        endpoint::Sources { lab: crate::lab::current_sockets, contexts: config::load },
    )?;
    let mesh = Mesh::new(found.places, found.identity, globals.timeout);
    let mut app = App { globals, ui, mesh };
    match command {
        Command::Cluster(Later(verb)) => cluster::cluster(&mut app, verb).await,
        Command::Status => cluster::status(&mut app).await,
        Command::Host(Later(verb)) => host::host(&mut app, verb).await,
        Command::Scenario(Later(verb)) => scenario::scenario(&mut app, verb).await,
        Command::Run(args) => run::run(&mut app, *args).await,
        Command::Job(Later(verb)) => job::job(&mut app, verb).await,
        Command::Vm(Later(verb)) => vm::vm(&mut app, verb).await,
        Command::Image(Later(verb)) => image::image(&mut app, verb).await,
        Command::Storage(Later(verb)) => storage::storage(&mut app, verb).await,
        Command::Doctor(args) => doctor::doctor(&mut app, args).await,
        Command::Version => explain::version(&mut app).await,
        Command::Variants(Later(verb)) => variants::lint_keys(&mut app, &verb).await,
        Command::Explain(_) | Command::Cfg(_) | Command::Guest(_) | Command::Results(_) | Command::Man { .. } => {
            Ok(Exit::Ok.into())
        }
        Command::Config(_) | Command::Completion { .. } | Command::Lab(_) | Command::Provider(_) => Ok(Exit::Ok.into()),
    }
}

impl App {
    /// Shows a list: as a table, as one JSON object with `schema`, a line an item, or names only.
    fn list(&self, schema: &str, key: &str, items: Vec<Value>, names: Vec<String>, table: impl FnOnce() -> String) {
        self.ui.list(schema, key, &items, &names, table);
    }

    /// Shows what was done to `key`, step by step.
    fn steps(&self, schema: &str, key: &str, value: &Value, steps: &[String]) -> Code {
        match self.ui.output {
            Output::Json | Output::Jsonl => self.ui.json(&json!({"schema": schema, key: value, "steps": steps})),
            Output::Name => value.as_str().into_iter().for_each(|name| self.ui.line(name)),
            Output::Table | Output::Wide => {
                steps.iter().for_each(|step| {
                    self.ui.line(format_args!("{} {}", self.ui.out.symbol(Symbol::Done), safe(step)));
                });
            }
        }
        Exit::Ok.into()
    }

    /// The exit code of something that was read: without quorum it may be old, and that is said.
    fn read_from(&self, reached: &Reached) -> Code {
        match &reached.status {
            Some(status) if status.quorum => Exit::Ok.into(),
            Some(status) => {
                self.ui.note(format_args!(
                    "note: no quorum. This is what {} knew up to entry {}; it may be old.",
                    status.answered_by, status.applied
                ));
                Exit::NoQuorum.into()
            }
            None => Exit::Ok.into(),
        }
    }
}
