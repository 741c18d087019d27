//! `vtd doctor`: this host, without asking a daemon.

use std::path::Path;

use clap::Args;
use vt_protocol::{
    doctor::{Checks, Document, Examine, Severity},
    error::{ErrorCode, Exit, Report},
};

use super::examine;
use crate::settings::{Flags, Settings};

/// What is examined.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtd doctor\n  vtd doctor --check D-STO-02 --fix\n\nIt asks no daemon; vtctl doctor looks at the cluster and its network, too.\n\
                  Exit code 25 where something does not work."
)]
pub struct Words {
    /// Only these checks, by id; repeatable
    #[arg(long = "check", value_name = "ID", value_delimiter = ',')]
    only: Vec<String>,
    /// Not these checks
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    skip: Vec<String>,
    /// Do what is safe to do about it: directories and their permissions
    #[arg(long)]
    fix: bool,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Examines this host and prints what was found.
///
/// # Errors
/// The settings are bad, nothing was examined, or a repair failed.
pub fn run(config: Option<&Path>, flags: &Flags, words: Words) -> Result<Exit, Report> {
    let settings = Settings::load(config, flags).map_err(|error| error.report())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Report::new(ErrorCode::Internal, "the runtime did not start").caused_by(&error))?;
    let wanted = Examine { all: false, repair: words.fix, checks: Checks { only: words.only, skip: words.skip } };
    let examined = runtime.block_on(examine(&settings, None, &wanted))?;
    let document = Document::of(examined.findings);
    if document.findings.is_empty() {
        return Err(Report::new(ErrorCode::Usage, "no check of that id says anything here")
            .help("vtd doctor --json   (ids of all that do)"));
    }
    if words.json {
        let text = serde_json::to_string_pretty(&document);
        println!("{}", text.map_err(|error| Report::new(ErrorCode::Internal, "no JSON").caused_by(&error))?);
    } else {
        for finding in document.findings.iter().filter(|finding| finding.severity > Severity::Ok) {
            print!("{finding}");
        }
        println!("{}", document.summary());
    }
    Ok(document.exit())
}
