//! Times the large sets of the corpus, whole processes, against the reference where a Python with it is given:
//!
//! `bench CORPUS [--python VENV/bin/python] [--program "vtctl cfg expand --json"]`
//!
//! Without `--program` this program runs itself. Ends with status 1 if a target is missed.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use vt_cfg::{FsSource, MemSource, Options, parse};

const SETS: [&str; 4] = ["large-unittest-huge", "large-many-guests", "large-jeos", "large-multi-host"];
/// The set with the most text; its first variant has to show within this time.
const LARGEST: &str = "large-multi-host";
const FIRST_WITHIN: Duration = Duration::from_millis(50);

/// What the reference is asked to do: parse and expand, nothing printed.
const REFERENCE: &str = "
import logging, warnings
warnings.simplefilter('ignore'); logging.disable(logging.CRITICAL)
from virttest import cartesian_config
n = sum(1 for _ in cartesian_config.Parser('input.cfg').get_dicts())
";

struct Run {
    took: Duration,
    /// Peak resident memory in KiB, as last seen.
    peak: u64,
}

fn peak_of(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

fn timed(command: &mut Command) -> Result<Duration, String> {
    let begin = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().map_err(|e| e.to_string())?;
    let took = begin.elapsed();
    if status.success() { Ok(took) } else { Err(format!("{command:?}: {status}")) }
}

/// A run of its own: looking at a process takes time from it.
fn watched(command: &mut Command) -> Result<u64, String> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|e| e.to_string())?;
    let pid = child.id().to_string();
    let mut peak = 0;
    loop {
        peak = peak_of(&pid).unwrap_or(0).max(peak);
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(_) => return Ok(peak),
            None => std::thread::sleep(Duration::from_micros(500)),
        }
    }
}

/// Time until the first variant is there.
fn first(mut command: Command) -> Result<Duration, String> {
    let begin = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(|e| e.to_string())?;
    let read = child.stdout.take().ok_or("no output")?.read_exact(&mut [0]);
    let took = begin.elapsed();
    let _ = child.kill();
    let _ = child.wait();
    read.map(|()| took).map_err(|e| e.to_string())
}

/// The fastest of some runs: what the machine can do when nobody disturbs it.
fn best(times: usize, mut command: impl FnMut() -> Command) -> Result<Run, String> {
    let mut took = timed(&mut command())?;
    for _ in 1..times {
        took = took.min(timed(&mut command())?);
    }
    Ok(Run { took, peak: watched(&mut command())? })
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (mut corpus, mut python, mut program) = (None, None, None);
    while let Some(a) = args.next() {
        match a.as_str() {
            "--python" => python = args.next(),
            "--program" => program = args.next(),
            "--expand" => return expand_and_print(&args.next().unwrap_or_default()),
            _ => corpus = Some(a),
        }
    }
    let Some(corpus) = corpus else {
        eprintln!("usage: bench CORPUS [--python VENV/bin/python] [--program \"vtctl cfg expand --json\"]");
        return ExitCode::from(2);
    };
    match compare(Path::new(&corpus), python.as_deref(), program.as_deref()).and_then(|met| Ok(met & synthetic()?)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn compare(corpus: &Path, python: Option<&str>, program: Option<&str>) -> Result<bool, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let words: Vec<String> = match program {
        Some(p) => p.split_whitespace().map(str::to_owned).collect(),
        None => vec![own.to_string_lossy().into_owned(), "--expand".to_owned()],
    };
    let ours_on = |set: &str| {
        let mut c = Command::new(&words[0]);
        c.args(&words[1..]).arg("input.cfg").current_dir(corpus.join(set));
        c
    };
    let (mut ours, mut theirs, mut met) = (Duration::ZERO, Duration::ZERO, true);
    println!("{:<22}{:>10}{:>12}{:>8}{:>11}{:>14}", "set", "ours", "reference", "times", "peak MiB", "reference MiB");
    for set in SETS {
        let a = best(7, || ours_on(set))?;
        ours += a.took;
        let Some(python) = python else {
            println!(
                "{set:<22}{:>8.1}ms{:>12}{:>8}{:>11.1}",
                a.took.as_secs_f64() * 1e3,
                "-",
                "-",
                a.peak as f64 / 1024.0
            );
            continue;
        };
        let b = best(if a.took < Duration::from_millis(20) { 5 } else { 2 }, || {
            let mut c = Command::new(python);
            c.args(["-c", REFERENCE]).env("PYTHONUTF8", "1").current_dir(corpus.join(set));
            c
        })?;
        theirs += b.took;
        let times = b.took.as_secs_f64() / a.took.as_secs_f64();
        met &= times >= 50.0 && a.peak <= b.peak;
        println!(
            "{set:<22}{:>8.1}ms{:>10.2} s{times:>8.0}{:>11.1}{:>14.1}",
            a.took.as_secs_f64() * 1e3,
            b.took.as_secs_f64(),
            a.peak as f64 / 1024.0,
            b.peak as f64 / 1024.0
        );
    }
    if python.is_some() {
        let times = theirs.as_secs_f64() / ours.as_secs_f64();
        met &= times >= 100.0;
        println!("{:<22}{:>8.1}ms{:>10.2} s{times:>8.0}", "sum", ours.as_secs_f64() * 1e3, theirs.as_secs_f64());
    }
    let firsts: Result<Vec<Duration>, String> = (0..5).map(|_| first(ours_on(LARGEST))).collect();
    let soonest = firsts?.into_iter().min().unwrap_or_default();
    println!("first variant of {LARGEST}: {:.1} ms", soonest.as_secs_f64() * 1e3);
    Ok(met && soonest <= FIRST_WITHIN)
}

fn dimensions(sets: usize) -> Result<vt_cfg::Config, String> {
    let mut text = String::from("base = 1\n");
    for s in 0..sets {
        text.push_str("variants:\n");
        (0..10).for_each(|v| text.push_str(&format!("  - s{s}v{v}:\n      k{s} = {v}\n")));
    }
    let mut source = MemSource::new();
    source.insert("m.cfg", text);
    parse(&source, "m.cfg", &[], &Options::default()).map_err(|e| e[0].to_string())
}

fn synthetic() -> Result<bool, String> {
    let config = dimensions(5)?;
    let begin = Instant::now();
    let n = config.variants().filter(Result::is_ok).count();
    let rate = n as f64 / begin.elapsed().as_secs_f64();
    println!("five dimensions of ten: {n} dictionaries built, {:.2} million a second", rate / 1e6);
    let config = dimensions(7)?;
    let begin = Instant::now();
    let n = config.variants().filter(Result::is_ok).count();
    let peak = peak_of("self").unwrap_or(0);
    println!(
        "{n} dictionaries streamed in {:.1} s, peak {:.1} MiB",
        begin.elapsed().as_secs_f64(),
        peak as f64 / 1024.0
    );
    Ok(rate >= 1e6 && peak <= 64 << 10)
}

/// What `vtctl cfg expand --json` does.
fn expand_and_print(file: &str) -> ExitCode {
    match parse(&FsSource, file, &[], &Options::default()) {
        Ok(config) if config.write_json(&mut std::io::stdout()).is_ok() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
