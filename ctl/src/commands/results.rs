//! `results …`: stored results, looked at together. No daemon is asked.

use vt_protocol::error::{Exit, Report};

use super::Code;
use crate::{
    args::{CoverageArgs, Output, ResultsVerb},
    results::{self, coverage},
    ui::{Ui, table::Table, text::safe},
};

pub(super) fn results(ui: &Ui, verb: &ResultsVerb) -> Result<Code, Report> {
    match verb {
        ResultsVerb::Coverage(args) => coverage(ui, args),
    }
}

fn coverage(ui: &Ui, args: &CoverageArgs) -> Result<Code, Report> {
    let coverage = coverage::read(&args.folders)?;
    if let Some(file) = &args.html {
        results::write(file, &coverage.html())?;
        ui.note(format_args!("{} is written", file.display()));
    }
    match ui.output {
        Output::Json | Output::Jsonl => ui.json(&coverage.json()),
        Output::Name => coverage.lines().for_each(|[flag, ..]| ui.line(safe(&flag))),
        Output::Table | Output::Wide => {
            let mut table = Table::new(&["FLAG", "BACKEND", "QEMU", "VERDICT", "JOB", "WHY"]);
            coverage.lines().for_each(|line| table.row(line.map(|cell| safe(&cell))));
            ui.raw(&table.render(ui.width));
            let counts = coverage.counts();
            let counts: Vec<String> = counts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
            ui.note(format_args!("{} from {} stored jobs", counts.join(", "), coverage.jobs));
        }
    }
    Ok(Exit::Ok.into())
}
