//! From a table to steps: which keys there are, and what each step may say. Values stay as they are written, because
//! parameters stand in them.

use std::time::Duration;

use vt_protocol::{scenario::Mistake, vm::Backend};

use super::{
    ScenarioFile, VmTable,
    table::{Item, Spot, Table, Word, read},
};
use crate::nearest::nearest;

/// What `schema` says.
const SCHEMA: &str = "vtmesh/v1/scenario";
/// Most steps of a file, VMs, parameters, and loops in loops.
const STEPS_MAX: usize = 500;
const VMS_MAX: usize = 8;
const PARAMS_MAX: usize = 100;
const DEPTH_MAX: usize = 4;
/// Most hosts of a case.
const HOSTS_MAX: u32 = 64;

/// A kind of step: the key that says so, its value where that is a fixed word, and the other keys that it takes.
pub(super) struct Kind {
    head: &'static str,
    verb: &'static str,
    keys: &'static [&'static str],
}

const fn kind(head: &'static str, verb: &'static str, keys: &'static [&'static str]) -> Kind {
    Kind { head, verb, keys }
}

/// What a step that moves a VM takes besides; else the parameters of the same names count.
pub(super) const MOVE_KEYS: &[&str] = &[
    "mig_protocol",
    "mig_offline",
    "mig_speed",
    "downtime_limit",
    "mig_timeout",
    "capabilities",
    "parameters",
    "at",
    "goal",
];

/// All kinds. Every step takes `when` besides.
static KINDS: &[Kind] = &[
    kind("do", "vm.start", &["vm", "on", "until"]),
    kind("do", "vm.ready", &["vm"]),
    kind("do", "vm.reset", &["vm"]),
    kind("do", "vm.stop", &["vm"]),
    kind("do", "migrate", &["vm", "from", "to", "block", "expect", "transport", "mode", "channels", "*move"]),
    kind("do", "load.start", &["vm", "stress_cpu", "stress_disk"]),
    kind("do", "load.check", &["vm"]),
    kind("do", "load.stop", &["vm"]),
    kind("do", "wait", &["on", "time"]),
    kind("barrier", "", &["on", "timeout"]),
    kind("guest", "", &["vm", "timeout", "expect"]),
    kind("agent", "", &["vm", "timeout", "expect"]),
    kind("put", "", &["vm", "text"]),
    kind("get", "", &["vm", "expect"]),
    kind("qmp", "", &["vm", "arguments", "expect"]),
    kind("check", "guest", &["vm"]),
    kind("fault", "net.cut", &["on", "plane", "for"]),
    kind("fault", "net.block", &["on", "for"]),
    kind("fault", "net.pass", &["on"]),
    kind("log", "", &["on"]),
    kind("for", "", &["step"]),
];

/// What a check may be: it asks, and changes nothing.
const CHECKS: &[&str] = &["check", "guest", "agent", "get", "qmp", "load.check"];

/// A step as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    /// What is done: `migrate`, `barrier`, …
    pub(super) what: &'static str,
    /// The value of the key that says so.
    pub(super) value: Word,
    pub(super) when: Option<Word>,
    /// Its other keys.
    pub(super) keys: Table,
    /// For a loop: the name, the words it takes, and the steps in it.
    pub(super) each: Option<(Word, Word, Vec<Step>)>,
}

/// Mistakes so far.
#[derive(Debug, Default)]
struct Found(Vec<Mistake>);

impl Found {
    /// The value; a mistake is noted.
    fn ok<T>(&mut self, read: Result<T, Mistake>) -> Option<T> {
        read.map_err(|mistake| self.0.push(mistake)).ok()
    }

    /// A key that must be there, as a word.
    fn word(&mut self, table: &mut Table, key: &str, want: &str) -> Option<Word> {
        match table.take(key) {
            Some((_, item)) => self.ok(item.word(want)),
            None => {
                let mut mistake = Spot::default().mistake(format!("the file has no {key:?}"));
                mistake.hint = Some(format!("{key} = … at its beginning: {want}"));
                self.0.push(mistake);
                None
            }
        }
    }

    /// Whatever is left of a table is not known.
    fn rest(&mut self, table: &Table, what: &str, known: &[&str]) {
        for (key, _) in &table.0 {
            let mut mistake = key.mistake(format!("{what} has no key {:?}", key.text));
            mistake.hint = Some(match nearest(&key.text, known.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("it takes {}", known.join(", ")),
            });
            self.0.push(mistake);
        }
    }
}

/// Reads a file.
pub(super) fn scenario(file: &str, text: &str) -> Result<ScenarioFile, Vec<Mistake>> {
    let mut table = read(text).map_err(|mistake| vec![mistake])?;
    let mut found = Found::default();
    if let Some(schema) = found.word(&mut table, "schema", SCHEMA).filter(|schema| schema.text != SCHEMA) {
        found.0.push(schema.mistake(format!("the schema is {SCHEMA:?} here")));
    }
    let name = found.word(&mut table, "name", "a name such as cut_and_move");
    let name = name.and_then(|name| found.ok(plain(name, "the name of a scenario")));
    let summary = found.word(&mut table, "summary", "one line");
    let about = table.take("about").and_then(|(_, item)| found.ok(item.word("a text")));
    let hosts = table.take("hosts").and_then(|(_, item)| found.ok(hosts(item)));
    let timeout = table.take("timeout").and_then(|(_, item)| {
        let word = found.ok(item.word("a time such as 15m"))?;
        found.ok(time(&word))
    });
    let params = table.take("params").map(|(_, item)| params(&mut found, item)).unwrap_or_default();
    let vms = table.take("vm").map(|(_, item)| vms(&mut found, item)).unwrap_or_default();
    let mut left = STEPS_MAX;
    let mut steps = match table.take("step") {
        Some((_, item)) => steps(&mut found, item, 0, &mut left),
        None => {
            found.0.push(Spot::default().mistake("the file has no step: [[step]]"));
            Vec::new()
        }
    };
    if let Some((_, item)) = table.take("check") {
        steps.extend(checks(&mut found, item, &mut left));
    }
    let backends = table.take("backends").and_then(|(_, item)| found.ok(backends(item))).unwrap_or_default();
    let known = ["schema", "name", "summary", "about", "hosts", "backends", "timeout", "params", "vm", "step", "check"];
    found.rest(&table, "a scenario", &known);
    if !found.0.is_empty() {
        found.0.sort_by_key(|mistake| (mistake.line, mistake.column));
        return Err(found.0);
    }
    Ok(ScenarioFile {
        file: file.to_owned(),
        name: name.unwrap_or_default(),
        summary: summary.map(|summary| summary.text).unwrap_or_default(),
        about: about.map(|about| about.text).unwrap_or_default(),
        hosts: hosts.unwrap_or((2, 2)),
        backends,
        timeout,
        params,
        vms,
        steps,
    })
}

/// A name as scenarios and parameters have it.
fn plain(word: Word, what: &str) -> Result<String, Mistake> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let good = word.text.starts_with(|c: char| c.is_ascii_lowercase()) && word.text.chars().all(plain);
    if good && word.text.len() <= 64 {
        return Ok(word.text);
    }
    Err(word.mistake(format!("{what} has small letters, digits and _, and begins with a letter")))
}

/// `2`, or `[2, 5]`: as few and as many as a case may have.
fn hosts(item: Item) -> Result<(u32, u32), Mistake> {
    let spot = item.spot;
    let wrong = || spot.mistake(format!("hosts is a number from 1 to {HOSTS_MAX}, or two: the fewest and the most"));
    let number = |item: Item| {
        let number = item.word("a number")?.text.parse().ok();
        number.filter(|number| (1..=HOSTS_MAX).contains(number)).ok_or_else(wrong)
    };
    let numbers = item.list().into_iter().map(number).collect::<Result<Vec<u32>, _>>()?;
    match numbers[..] {
        [both] => Ok((both, both)),
        [least, most] if least <= most => Ok((least, most)),
        _ => Err(wrong()),
    }
}

/// Who may start and move its VMs, with the place that says so; none: whoever is asked to.
fn backends(item: Item) -> Result<Vec<(Backend, Word)>, Mistake> {
    let named = |item: Item| {
        let word = item.word("qmp or libvirt")?;
        let backend = match word.text.as_str() {
            "qmp" | "qemu" => Backend::Qmp,
            "libvirt" => Backend::Libvirt,
            other => return Err(word.mistake(format!("{other:?} is not qmp or libvirt"))),
        };
        Ok((backend, word))
    };
    item.list().into_iter().map(named).collect()
}

/// What is asked when all steps are done.
fn checks(found: &mut Found, item: Item, left: &mut usize) -> Vec<Step> {
    let checks = steps(found, item, DEPTH_MAX, left);
    for check in checks.iter().filter(|check| !CHECKS.contains(&check.what)) {
        let mut mistake = check.value.mistake(format!("a check asks and changes nothing: {} is a step", check.what));
        mistake.hint = Some("[[step]] in the place of [[check]]".to_owned());
        found.0.push(mistake);
    }
    checks
}

/// A time: `300ms`, `10s`, `5m`, `1h`; at most a day.
pub(super) fn time(word: &Word) -> Result<Duration, Mistake> {
    let text = word.text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let ms = unit.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit));
    ms.filter(|ms| *ms <= 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(|| word.mistake(format!("{text:?} is no time such as 300ms, 10s, 5m or 1h, of at most a day")))
}

/// Default and meaning of each parameter.
fn params(found: &mut Found, item: Item) -> Vec<(Word, Word, String)> {
    let Some(table) = found.ok(item.table("a table of parameters with their defaults")) else { return Vec::new() };
    let mut params = Vec::new();
    for (key, item) in table.0 {
        if found.ok(plain(key.clone(), "the name of a parameter")).is_none() {
            continue;
        }
        let (default, about) = match item.node {
            super::table::Node::Table(mut table) => {
                let spot = item.spot;
                let default = table.take("default").map(|(_, item)| item.flat());
                let default = default.unwrap_or_else(|| Ok(Word { text: String::new(), spot }));
                let about = table.take("about").map(|(_, item)| item.word("a text"));
                found.rest(&table, "a parameter", &["default", "about"]);
                (default, about.and_then(|about| found.ok(about)).map(|about| about.text))
            }
            _ => (item.flat(), None),
        };
        let Some(default) = found.ok(default) else { continue };
        let about = about.unwrap_or_else(|| format!("see line {} of the file", key.spot.line));
        params.push((key, default, about));
    }
    if let Some((key, ..)) = params.get(PARAMS_MAX) {
        found.0.push(key.mistake(format!("more than {PARAMS_MAX} parameters")));
    }
    params
}

fn vms(found: &mut Found, item: Item) -> Vec<VmTable> {
    let mut vms: Vec<VmTable> = Vec::new();
    for item in item.list() {
        let spot = item.spot;
        let Some(mut table) = found.ok(item.table("a VM: [[vm]]")) else { continue };
        let Some((_, name)) = table.take("name") else {
            found.0.push(spot.mistake("a VM without a name: name = \"vm1\""));
            continue;
        };
        let name = found.ok(name.word("the name of a VM"));
        let Some(name) = name.and_then(|word| Some((found.ok(plain(word.clone(), "the name of a VM"))?, word.spot)))
        else {
            continue;
        };
        if vms.iter().any(|vm| vm.name == name.0) {
            found.0.push(name.1.mistake(format!("there is another VM called {}", name.0)));
        } else if vms.len() == VMS_MAX {
            found.0.push(name.1.mistake(format!("more than {VMS_MAX} VMs")));
        } else {
            vms.push(VmTable { name: name.0, settings: table });
        }
    }
    vms
}

fn steps(found: &mut Found, item: Item, depth: usize, left: &mut usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for item in item.list() {
        let spot = item.spot;
        if *left == 0 {
            found.0.push(spot.mistake(format!("more than {STEPS_MAX} steps")));
            break;
        }
        *left -= 1;
        let Some(table) = found.ok(item.table("a step: [[step]]")) else { continue };
        steps.extend(step(found, table, spot, depth, left));
    }
    steps
}

fn step(found: &mut Found, mut table: Table, spot: Spot, depth: usize, left: &mut usize) -> Option<Step> {
    let mut heads: Vec<&'static str> = KINDS.iter().map(|kind| kind.head).collect();
    heads.dedup();
    let has = |head: &str| table.0.iter().any(|(key, _)| key.text == head);
    // How long a fault lasts is no loop.
    let said: Vec<&str> = heads.iter().copied().filter(|head| has(head) && (*head != "for" || !has("fault"))).collect();
    let [head] = said[..] else {
        // What is misspelt is the place.
        let near = |(key, _): &(Word, Item)| Some((key.spot, nearest(&key.text, heads.iter().copied())?));
        let near = table.0.iter().find_map(near).filter(|_| said.is_empty());
        let mut mistake = near.map_or(spot, |(spot, _)| spot).mistake(match said[..] {
            [] => "a step that says nothing to be done".to_owned(),
            _ => format!("a step says one thing to be done, not {}", said.join(" and ")),
        });
        mistake.hint = Some(match near {
            Some((_, near)) => format!("did you mean {near:?}?"),
            None => format!("one of: {}", heads.join(", ")),
        });
        found.0.push(mistake);
        return None;
    };
    let (head, item) = table.take(head)?;
    let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| kind.head == head.text).collect();
    if head.text == "for" {
        return each(found, head, item, table, depth, left);
    }
    let value = found.ok(item.word("a text"))?;
    let Some(kind) = kinds.iter().find(|kind| kind.verb.is_empty() || kind.verb == value.text) else {
        let verbs: Vec<&str> = kinds.iter().map(|kind| kind.verb).collect();
        let mut mistake = value.mistake(format!("{:?} is nothing that can stand behind {}", value.text, head.text));
        mistake.hint = Some(match nearest(&value.text, verbs.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("one of: {}", verbs.join(", ")),
        });
        found.0.push(mistake);
        return None;
    };
    let when = table.take("when").and_then(|(_, item)| found.ok(item.word("a condition")));
    let known: Vec<&str> = kind.keys.iter().filter(|key| **key != "*move").copied().collect();
    let more = if kind.keys.contains(&"*move") { MOVE_KEYS } else { &[] };
    let known: Vec<&str> = known.into_iter().chain(more.iter().copied()).chain(["when"]).collect();
    let strange = Table(table.0.iter().filter(|(key, _)| !known.contains(&key.text.as_str())).cloned().collect());
    // What is checked is no step of that name.
    let what = if kind.verb.is_empty() || kind.head == "check" { kind.head } else { kind.verb };
    found.rest(&strange, what, &known);
    Some(Step { what, value, when, keys: table, each: None })
}

/// `for = { NAME = "1..3" }` with its own steps.
fn each(found: &mut Found, head: Word, item: Item, mut table: Table, depth: usize, left: &mut usize) -> Option<Step> {
    let spot = item.spot;
    let mut names = found.ok(item.table("a table: for = { round = \"1..3\" }"))?;
    let (name, over) = match names.0.len() {
        1 => names.0.remove(0),
        _ => {
            found.0.push(spot.mistake("a loop has one name: for = { round = \"1..3\" }"));
            return None;
        }
    };
    found.ok(plain(name.clone(), "the name of a loop"))?;
    let over = found.ok(over.flat())?;
    let when = table.take("when").and_then(|(_, item)| found.ok(item.word("a condition")));
    let inner = table.take("step");
    found.rest(&table, "a loop", &["step", "when"]);
    let Some((_, inner)) = inner else {
        found.0.push(head.mistake("a loop without steps: [[step.step]]"));
        return None;
    };
    if depth == DEPTH_MAX {
        found.0.push(head.mistake(format!("more than {DEPTH_MAX} loops in each other")));
        return None;
    }
    let steps = steps(found, inner, depth + 1, left);
    Some(Step { what: "for", value: head, when, keys: Table::default(), each: Some((name, over, steps)) })
}
