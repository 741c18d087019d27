//! What daemons cost while nothing happens: memory and CPU of every daemon of a 3-host lab, the leader included.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use vt_tests::lab::Lab;

use crate::figures::Figure;

/// Clock ticks a second that /proc counts in: 100 on every Linux of x86 (sysconf(_SC_CLK_TCK)).
const TICKS_PER_SECOND: f64 = 100.0;
/// A cluster that was just made still promotes voters and looks at its accelerators: that is not idle yet.
const SETTLES: Duration = Duration::from_secs(10);

/// Measures for `seconds`; gives the figures of the most expensive daemon.
pub(crate) fn measure(lab: &Lab, seconds: u64) -> anyhow::Result<Vec<Figure>> {
    let daemons = daemons(lab)?;
    ensure!(daemons.len() == 3, "{} daemons found, not 3", daemons.len());
    std::thread::sleep(SETTLES);
    let before: Vec<f64> = daemons.iter().map(|pid| cpu_seconds(*pid)).collect::<Result<_, _>>()?;
    std::thread::sleep(Duration::from_secs(seconds));
    let mut cpu = Figure::new("idle CPU of the busiest daemon of 3, % of a core", Some(0.5));
    let mut rss = Figure::new("idle RSS of the largest daemon of 3, MB", Some(40.0));
    let mut worst: (f64, f64) = (0.0, 0.0);
    for (pid, before) in daemons.iter().zip(before) {
        worst.0 = worst.0.max((cpu_seconds(*pid)? - before) / seconds as f64 * 100.0);
        worst.1 = worst.1.max(rss_mb(*pid)?);
    }
    cpu.values.push(worst.0);
    rss.values.push(worst.1);
    Ok(vec![cpu, rss])
}

pub(crate) fn daemons(lab: &Lab) -> anyhow::Result<Vec<u32>> {
    let marker = format!("/labs/{}/", lab.name());
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(bytes) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<String> = bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        let is_vtd = words.first().is_some_and(|word| Path::new(word).ends_with("vtd"));
        if is_vtd && words.iter().any(|word| word.contains(&marker)) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("a daemon ended while it was measured")?;
    // Field 2 is the name in brackets and may hold spaces; fields 14 and 15 are utime and stime (proc(5)).
    let rest = text.rsplit_once(") ").context("a stat line has a name")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

fn rss_mb(pid: u32) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("a daemon ended while it was measured")?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).context("status has VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("VmRSS has a value")?.parse()?;
    Ok(kib / 1000.0 * 1.024)
}
