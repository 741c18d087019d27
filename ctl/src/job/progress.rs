//! Progress on stderr: bars on a terminal, short lines elsewhere, JSON lines for programs.

use std::{collections::HashMap, io::Write, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use vt_protocol::{admin::WatchItem, ids::Name};

use super::{
    tracker::{Throttle, Update, percent, reading},
    views,
};
use crate::{
    args::ProgressChoice,
    ui::{Ui, style::Style},
};

/// Most bars at one time; what is beyond is still told by its lines.
const BARS_MAX: usize = 24;

/// Shows updates as they come.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    show: Show,
}

#[derive(Debug)]
enum Show {
    Nothing,
    Lines(Throttle),
    Json,
    Bars(Bars),
}

#[derive(Debug)]
struct Bars {
    multi: MultiProgress,
    steps: HashMap<(u32, Name), ProgressBar>,
    migrations: HashMap<String, (u32, ProgressBar)>,
}

impl Progress {
    /// As the flags, the environment and the terminal say.
    pub fn new(ui: &Ui) -> Self {
        let show = match ui.progress {
            ProgressChoice::None => Show::Nothing,
            ProgressChoice::Json => Show::Json,
            ProgressChoice::Bar => Show::Bars(Bars {
                multi: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
                steps: HashMap::new(),
                migrations: HashMap::new(),
            }),
            ProgressChoice::Auto | ProgressChoice::Plain => Show::Lines(Throttle::default()),
        };
        Self { style: ui.err, show }
    }

    /// A new item, before what it changes: programs get all of it.
    pub fn item(&mut self, item: &WatchItem) {
        if let Show::Json = self.show {
            stderr(&views::item_json(item).to_string());
        }
    }

    /// What changed.
    pub fn update(&mut self, update: Update) {
        let style = self.style;
        match (&mut self.show, update) {
            (Show::Lines(_), Update::Line { case, symbol, text }) => stderr(&line(case, style.symbol(symbol), &text)),
            (Show::Lines(throttle), Update::Migration { case: _, id, label, sample, unix_ms }) => {
                let percent = percent(&sample);
                if throttle.lets(&id, percent, unix_ms) {
                    stderr(&format!("    migrate {label}  {percent} %  {}", reading(&sample, style)));
                }
            }
            (Show::Bars(bars), Update::Line { case, symbol, text }) => {
                bars.multi.suspend(|| stderr(&line(case, style.symbol(symbol), &text)));
            }
            (Show::Bars(bars), Update::Step { case, host, step: Some(step) }) => bars.step(case, host, &step, style),
            (Show::Bars(bars), Update::Step { case, host, step: None }) => {
                if let Some(bar) = bars.steps.remove(&(case, host)) {
                    bar.finish_and_clear();
                }
                bars.end_migrations(case);
            }
            (Show::Bars(bars), Update::Migration { case, id, label, sample, .. }) => {
                let (position, message) = (percent(&sample), reading(&sample, style));
                bars.migration(case, id, &label, style, position, message);
            }
            (Show::Bars(bars), Update::CaseOver { case }) => bars.end_case(case),
            _ => {}
        }
    }

    /// A remark in between, e.g. that the daemon changed.
    pub fn note(&mut self, text: &str) {
        match &self.show {
            Show::Nothing => {}
            Show::Json => stderr(&json!({"note": text}).to_string()),
            Show::Lines(_) => stderr(&format!("! {text}")),
            Show::Bars(bars) => bars.multi.suspend(|| stderr(&format!("! {text}"))),
        }
    }

    /// Takes the bars away while a question stands on the terminal: what is typed must not be drawn over.
    pub fn hide(&self) {
        if let Show::Bars(bars) = &self.show {
            let _ = bars.multi.clear();
            bars.multi.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Brings the bars back.
    pub fn unhide(&self) {
        if let Show::Bars(bars) = &self.show {
            bars.multi.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// Removes what is not to stay.
    pub fn finish(&mut self) {
        if let Show::Bars(bars) = &mut self.show {
            bars.steps.drain().for_each(|(_, bar)| bar.finish_and_clear());
            bars.migrations.drain().for_each(|(_, (_, bar))| bar.finish_and_clear());
            let _ = bars.multi.clear();
        }
    }
}

impl Bars {
    fn room(&self) -> bool {
        self.steps.len() + self.migrations.len() < BARS_MAX
    }

    fn step(&mut self, case: u32, host: Name, step: &str, style: Style) {
        let message = format!("{host}  {step}");
        if let Some(bar) = self.steps.get(&(case, host.clone())) {
            bar.set_message(message);
        } else if self.room() {
            let bar = self.multi.add(ProgressBar::new_spinner());
            let ticks = if style.ascii { "-\\|/ " } else { "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ " };
            if let Ok(look) = ProgressStyle::with_template("  {spinner} {wide_msg} {elapsed:>4}") {
                bar.set_style(look.tick_chars(ticks));
            }
            bar.set_message(message);
            bar.enable_steady_tick(Duration::from_millis(120));
            self.steps.insert((case, host), bar);
        }
    }

    fn migration(&mut self, case: u32, id: String, label: &str, style: Style, position: u64, message: String) {
        if !self.migrations.contains_key(&id) {
            if !self.room() {
                return;
            }
            let bar = self.multi.add(ProgressBar::new(100));
            if let Ok(look) = ProgressStyle::with_template("    {prefix} {bar:16} {percent:>3}% {wide_msg}") {
                bar.set_style(look.progress_chars(if style.ascii { "#>." } else { "▇▅▁" }));
            }
            bar.set_prefix(label.to_owned());
            self.migrations.insert(id.clone(), (case, bar));
        }
        if let Some((_, bar)) = self.migrations.get(&id) {
            bar.set_position(position);
            bar.set_message(message);
        }
    }

    fn end_migrations(&mut self, case: u32) {
        let over: Vec<String> =
            self.migrations.iter().filter(|(_, (of, _))| *of == case).map(|(id, _)| id.clone()).collect();
        for (_, bar) in over.iter().filter_map(|id| self.migrations.remove(id)) {
            bar.finish_and_clear();
        }
    }

    fn end_case(&mut self, case: u32) {
        self.end_migrations(case);
        let over: Vec<(u32, Name)> = self.steps.keys().filter(|(of, _)| *of == case).cloned().collect();
        for bar in over.iter().filter_map(|key| self.steps.remove(key)) {
            bar.finish_and_clear();
        }
    }
}

fn line(case: Option<u32>, symbol: String, text: &str) -> String {
    match case {
        Some(case) => format!("  [{case}] {symbol} {text}"),
        None => format!("  {symbol} {text}"),
    }
}

fn stderr(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
