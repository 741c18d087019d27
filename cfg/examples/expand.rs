//! Expands one configuration to JSON lines: `expand FILE [STATEMENT…] [--defaults] [--expand LIST] [--names] [--count] [--lint]
//! [--explain NAME]`.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut options = vt_cfg::Options::default();
    let (mut names, mut count, mut lint, mut explain) = (false, false, false, None);
    let mut rest = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        match a.as_str() {
            "--defaults" => options.defaults = true,
            "--expand" => {
                let list = args.next().unwrap_or_default();
                options.expand.extend(list.split(',').map(|s| s.trim().to_owned()));
            }
            "--lint" => lint = true,
            "--explain" => explain = args.next(),
            "--names" => names = true,
            "--count" => count = true,
            _ => rest.push(a),
        }
    }
    if rest.is_empty() {
        eprintln!("usage: expand FILE [STATEMENT…] [--defaults] [--expand LIST] [--names] [--count]");
        return ExitCode::from(2);
    }
    let file = rest.remove(0);
    let config = match vt_cfg::parse(&vt_cfg::FsSource, &file, &rest, &options) {
        Ok(c) => c,
        Err(mistakes) => {
            mistakes.iter().for_each(|d| eprintln!("{d}"));
            return ExitCode::from(3);
        }
    };
    if lint {
        config.lint(&vt_cfg::LintOptions::default()).iter().for_each(|d| println!("{d}"));
        return ExitCode::SUCCESS;
    }
    if let Some(name) = explain {
        println!("{:#?}", config.explain(&name));
        return ExitCode::SUCCESS;
    }
    match print(&config, names, count) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(3)
        }
    }
}

fn print(config: &vt_cfg::Config, names: bool, count: bool) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout());
    if count {
        writeln!(out, "{}", config.count()?)?;
        return Ok(());
    }
    if names {
        for name in config.names() {
            writeln!(out, "{}", name?)?;
        }
        return Ok(());
    }
    Ok(config.write_json(&mut std::io::stdout())?)
}
