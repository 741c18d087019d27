//! `explain`, `completion`, `man` and `version`: what needs no cluster.

use std::{path::Path, time::Duration};

use serde_json::json;
use vt_protocol::{
    error::{ErrorCode, Exit, Report},
    hello::BUILD,
    version::SPOKEN,
};

use super::{App, Code};
use crate::{
    args::{self, ExplainArgs, Output},
    client::Need,
    exit,
    ui::{Ui, report::usage, table::Table, text::wrapped},
};

/// How long a daemon may take to say its version.
const PATIENCE: Duration = Duration::from_millis(500);

pub(super) fn explain(ui: &Ui, args: &ExplainArgs) -> Result<Code, Report> {
    let Some(typed) = &args.code else {
        let mut table = Table::new(&["CODE", ">EXIT", "MEANING"]);
        for code in ErrorCode::ALL {
            let first = code.explain().split_inclusive(['.', ':']).next().unwrap_or_default();
            table.row([
                code.to_string(),
                code.exit().code().to_string(),
                first.trim_end_matches(['.', ':']).to_owned(),
            ]);
        }
        match ui.output {
            Output::Table | Output::Wide => ui.raw(&table.render(ui.width)),
            Output::Json => {
                let codes: Vec<_> = ErrorCode::ALL.iter().map(|code| json(*code)).collect();
                ui.json(&json!({"schema": "vtmesh/v1/error_codes", "codes": codes}));
            }
            Output::Jsonl => ErrorCode::ALL.iter().for_each(|code| ui.json(&json(*code))),
            Output::Name => ErrorCode::ALL.iter().for_each(|code| ui.line(code)),
        }
        return Ok(Exit::Ok.into());
    };
    let Some(code) = ErrorCode::parse(typed.trim()) else {
        return Err(usage(format!("there is no error code {typed:?}")).help("vtctl explain   # lists all codes"));
    };
    match ui.output {
        Output::Json | Output::Jsonl => {
            let mut value = json(code);
            value["schema"] = json!("vtmesh/v1/error_code");
            ui.json(&value);
        }
        Output::Name => ui.line(code),
        Output::Table | Output::Wide => {
            let text = code.explain();
            ui.raw(&wrapped(&format!("{code}: {text}"), ui.width.unwrap_or(80).min(100)));
            ui.line(format_args!(
                "\nA command that ends with it exits with {} ({}).",
                code.exit().code(),
                exit::name(code.exit())
            ));
        }
    }
    Ok(Exit::Ok.into())
}

fn json(code: ErrorCode) -> serde_json::Value {
    json!({"code": code.to_string(), "explain": code.explain(), "exit": exit::json(code.exit())})
}

pub(super) fn completion(ui: &Ui, shell: clap_complete::Shell) -> Result<Code, Report> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "vtctl", &mut script);
    ui.raw(&String::from_utf8_lossy(&script));
    Ok(Exit::Ok.into())
}

/// A page for vtctl and one for each of its commands.
pub(super) fn man(directory: &Path) -> Result<Code, Report> {
    clap_mangen::generate_to(args::command(), directory).map_err(|error| {
        usage(format!("the manual pages cannot be written into {}", directory.display())).caused_by(&error)
    })?;
    Ok(Exit::Ok.into())
}

pub(super) async fn version(app: &mut App) -> Result<Code, Report> {
    let mut mesh = app.mesh.within(PATIENCE);
    let daemon = mesh.reach(Need::Any).await.ok().map(|reached| (reached.daemon_build(), reached.place.to_string()));
    match app.ui.output {
        Output::Json | Output::Jsonl => app.ui.json(&json!({
            "schema": "vtmesh/v1/version",
            "product": "vtmesh",
            "vtctl": BUILD,
            "protocol": {"oldest": SPOKEN.oldest, "newest": SPOKEN.newest},
            "vtd": daemon.as_ref().map(|(build, _)| build),
        })),
        Output::Name => app.ui.line(BUILD),
        Output::Table | Output::Wide => {
            app.ui.line(format_args!("vtmesh: vtctl {BUILD}, protocol {SPOKEN}"));
            match daemon {
                Some((build, place)) => app.ui.line(format_args!("vtd {build} answers at {place}")),
                None => app.ui.line("no daemon answers here"),
            }
        }
    }
    Ok(Exit::Ok.into())
}
