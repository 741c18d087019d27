//! `cfg expand`, and how mistakes in a configuration are shown.

use std::io::Write;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use vt_cfg::{Config, Diagnostic, FsSource, Options, Severity, Source, StreamError};
use vt_protocol::error::{ErrorCode, Exit, Report};

use super::Code;
use crate::{
    args::{CfgVerb, ExpandArgs},
    ui::{Ui, text::safe},
};

pub(super) fn cfg(ui: &Ui, verb: &CfgVerb) -> Result<Code, Report> {
    let CfgVerb::Expand(args) = verb;
    let config = parse(ui, &args.file, &args.statements, &options(args))?;
    // Whatever is left of it goes with the process; taking it apart only costs time.
    let config = std::mem::ManuallyDrop::new(config);
    let done = if args.json { config.write_json(&mut std::io::stdout()) } else { names(&config) };
    match done {
        Ok(()) => Ok(Exit::Ok.into()),
        // The reader went away: nobody is left to be told.
        Err(StreamError::Output(_)) => Ok(Exit::Ok.into()),
        Err(StreamError::Mistake(mistake)) => Err(refused(ui, &args.file, &[*mistake])),
    }
}

fn options(args: &ExpandArgs) -> Options {
    let expand = args.expand.iter().flat_map(|list| list.split(',')).map(|set| set.trim().to_owned()).collect();
    Options { defaults: args.defaults, expand }
}

fn names(config: &Config) -> Result<(), StreamError> {
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    for (i, name) in config.names().enumerate() {
        let name = name.map_err(|mistake| StreamError::Mistake(Box::new(mistake)))?;
        writeln!(out, "{name}").map_err(StreamError::Output)?;
        if i == 0 {
            // The first one shows at once.
            out.flush().map_err(StreamError::Output)?;
        }
    }
    out.flush().map_err(StreamError::Output)
}

/// Parses a configuration; its mistakes are shown, and the report says how many there are.
pub(super) fn parse(ui: &Ui, file: &str, extra: &[String], options: &Options) -> Result<Config, Report> {
    vt_cfg::parse(&FsSource, file, extra, options).map_err(|mistakes| refused(ui, file, &mistakes))
}

/// Shows mistakes on stderr and makes the report that ends the command.
pub(super) fn refused(ui: &Ui, file: &str, mistakes: &[Diagnostic]) -> Report {
    let mut report = Report::new(
        ErrorCode::BadConfig,
        match mistakes {
            [one] => format!("{file} cannot be used: {}", one.message),
            many => format!("{file} has {} mistakes", many.len()),
        },
    );
    if ui.human() {
        let mut err = std::io::stderr().lock();
        for mistake in mistakes {
            let _ = writeln!(err, "{}\n", shown(ui.err.color, ui.err.ascii, mistake));
        }
    } else {
        // A program reads the places from the report.
        report = mistakes.iter().fold(report, |report, mistake| report.with("mistake", mistake.to_string()));
    }
    report
}

/// One finding with its line and a mark under the place.
pub(super) fn shown(color: bool, ascii: bool, d: &Diagnostic) -> String {
    let level = match d.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let renderer =
        if ascii { renderer } else { renderer.decor_style(annotate_snippets::renderer::DecorStyle::Unicode) };
    let message = safe(&d.message);
    let path = safe(&d.file);
    let text = if d.text.is_empty() { line_of(&d.file, d.line).unwrap_or_default() } else { d.text.clone() };
    let text = safe(&text).replace('\n', " ");
    let hint = d.hint.as_deref().map(safe);
    let mut group = level.primary_title(message.as_str());
    let mut parts = annotate_snippets::Group::with_title(group.clone());
    if d.line == 0 {
        // The file itself is the place.
        let title = format!("{path}: {message}");
        group = Level::ERROR.primary_title(title);
        parts = annotate_snippets::Group::with_title(group);
    } else {
        let skip = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        let (from, to) = if d.column > 0 {
            let from = skip(d.column as usize - 1);
            (from, skip((d.column + d.length) as usize - 1).max(from))
        } else {
            (text.len() - text.trim_start().len(), text.len())
        };
        let mark = AnnotationKind::Primary.span(from..to);
        let snippet = Snippet::source(text.as_str()).path(path.as_str()).line_start(d.line as usize).annotation(mark);
        parts = parts.element(snippet);
    }
    if let Some(hint) = &hint {
        parts = parts.element(Level::HELP.message(hint.as_str()));
    }
    renderer.render(&[parts])
}

/// A line of a file as the language counts them, for findings that come without their text.
fn line_of(file: &str, line: u32) -> Option<String> {
    let text = FsSource.read(file).ok()?;
    let line = text.lines().nth(line.checked_sub(1)? as usize)?;
    Some(line.trim_end().replace('\t', " ").chars().take(400).collect())
}
