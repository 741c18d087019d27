//! vtctl: one screen from the command line to the exit code.

use std::process::ExitCode;

use vt_ctl::{args, commands, ui};

fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(cli) => ExitCode::from(commands::run(cli)),
        Err(error) => {
            // Help and version come this way too, and go to stdout.
            let failed = error.use_stderr();
            let text = if failed { error.render().to_string() } else { String::new() };
            match text.strip_prefix("error: ") {
                Some(rest) => ui::stderr(&format!("error[E0001]: {rest}")),
                None => _ = error.print(),
            }
            ExitCode::from(if failed { 2 } else { 0 })
        }
    }
}
