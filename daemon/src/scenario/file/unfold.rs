//! From steps to what the parties do, one thing after the other: parameters are filled in, loops unrolled, conditions
//! decided, and every value is read as what it is to be. Where a VM is at each moment is known by then, so that a step that
//! asks a guest where it is not is a mistake in the file and no failure of a run.

use std::time::Duration;

use serde_json::Value;
use vt_protocol::{
    ids::Name,
    params::{ParamError, Params},
    party::Plane,
    scenario::Mistake,
    vm::Backend,
};

use super::{
    ScenarioFile,
    act::{Act, Ends, Expected, What},
    expect::{Type, Wanted, condition},
    read::{MOVE_KEYS, Step},
    said::Said,
    table::{Item, Node, Spot, Table, Word},
};
use crate::{
    party::is_allowed,
    scenario::{
        cut::slowly,
        drives::DRIVE_PARAMS,
        journey::{ASK, SLACK},
        load::{LOAD_PARAMS, Load},
        settings::{MOVE_PARAMS, Settings, VM_PARAMS},
    },
};

/// Most things that are done.
const ACTS_MAX: usize = 2000;
/// Most steps that are looked at, those of loops each time; and most turns of one loop.
const LOOKS_MAX: usize = 20_000;
const TURNS_MAX: u64 = 1000;
/// Most mistakes that are told.
const MISTAKES_MAX: usize = 20;
/// Longest text, parameters filled in.
const TEXT_MAX: usize = 4096;

/// What is done, on which VMs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Program {
    pub(super) vms: Vec<(Name, Settings)>,
    pub(super) acts: Vec<Act>,
}

/// A VM on its way through the file.
#[derive(Debug, Clone)]
struct Vm {
    name: Name,
    params: Params,
    at: usize,
    stage: Stage,
    load: Option<Load>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Off,
    Boots,
    Up,
    Gone,
}

pub(super) struct Unfolding<'a> {
    file: &'a ScenarioFile,
    params: Params,
    /// How many there are.
    pub(super) hosts: usize,
    names: Vec<(String, String)>,
    vms: Vec<Vm>,
    /// How long may have passed on one host since all met.
    since: Duration,
    acts: Vec<Act>,
    mistakes: Vec<Mistake>,
    left: usize,
}

/// What the parties of a case on so many hosts do, as one of them sees its parameters.
pub(super) fn unfold(file: &ScenarioFile, params: &Params, hosts: usize) -> Result<Program, Vec<Mistake>> {
    let mut all = Params::new();
    for (key, default, _) in &file.params {
        all.set(&key.text, &default.text, default.spot.origin(&file.file));
    }
    for (key, param) in params.iter() {
        all.set(key, &param.value, param.origin.clone());
    }
    let mut unfolding = Unfolding {
        file,
        params: all,
        hosts,
        names: Vec::new(),
        vms: Vec::new(),
        since: Duration::ZERO,
        acts: Vec::new(),
        mistakes: Vec::new(),
        left: LOOKS_MAX,
    };
    let vms = unfolding.vms();
    unfolding.steps(&file.steps);
    let Unfolding { mut mistakes, acts, .. } = unfolding;
    if mistakes.is_empty() {
        return Ok(Program { vms, acts });
    }
    mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    mistakes.dedup();
    Err(mistakes)
}

impl Unfolding<'_> {
    /// The VMs with their parameters: those of the file stand above those of the case.
    fn vms(&mut self) -> Vec<(Name, Settings)> {
        let mut settings = Vec::new();
        let named = self.file.vms.iter().map(|vm| (vm.name.clone(), vm.settings.clone()));
        let mut named: Vec<(String, Table)> = named.collect();
        if named.is_empty() {
            named.push(("vm1".to_owned(), Table::default()));
        }
        for (name, table) in named {
            let Ok(parsed) = name.parse::<Name>() else {
                self.mistakes.push(Spot::default().mistake(format!("{name:?} cannot be the name of a VM")));
                continue;
            };
            let known: Vec<&str> =
                [VM_PARAMS, DRIVE_PARAMS, MOVE_PARAMS].concat().iter().map(|(key, ..)| *key).collect();
            let mut params = self.params.object(&name);
            let read = self
                .overlay(&mut params, &table, &known, "a VM")
                .and_then(|()| Settings::read(&params).map_err(|error| self.misread(&error, &table)));
            match read {
                Ok(read) => {
                    let other = self.not_by(&name, read.vm.backend);
                    self.mistakes.extend(other);
                    settings.push((parsed.clone(), read));
                }
                Err(mistake) => self.mistakes.push(mistake),
            }
            self.vms.push(Vm { name: parsed, params, at: 0, stage: Stage::Off, load: None });
        }
        settings
    }

    /// A VM that somebody starts and moves whom the file does not name.
    fn not_by(&self, vm: &str, backend: Backend) -> Option<Mistake> {
        let (_, first) =
            self.file.backends.first().filter(|_| self.file.backends.iter().all(|(one, _)| *one != backend))?;
        let by = match backend {
            Backend::Qmp => "the daemon over qmp",
            Backend::Libvirt => "libvirt",
        };
        Some(first.mistake(format!("{vm} is started and moved by {by}, for which this scenario is not made (vm_type)")))
    }

    /// Sets what a table says, parameters filled in.
    fn overlay(&self, params: &mut Params, table: &Table, known: &[&str], what: &str) -> Result<(), Mistake> {
        for (key, item) in &table.0 {
            if !known.contains(&key.text.as_str()) {
                let mut mistake = key.mistake(format!("{what} has no key {:?}", key.text));
                let near = crate::nearest::nearest(&key.text, known.iter().copied());
                mistake.hint = near.map(|near| format!("did you mean {near:?}?"));
                return Err(mistake);
            }
            let value = self.fill(&value_of(&key.text, item.clone())?)?;
            params.set(&key.text, value.text, value.spot.origin(&self.file.file));
        }
        Ok(())
    }

    /// A value that cannot be used, at its place where the file says it.
    fn misread(&self, error: &ParamError, table: &Table) -> Mistake {
        if error.origin.file != self.file.file {
            return Spot::default().mistake(error.to_string());
        }
        let message = format!("{} = {:?} is not {}", error.key, error.value, error.want);
        let own = table.0.iter().find(|(key, _)| key.text == error.key).map(|(_, item)| item.spot);
        let default = self.file.params.iter().find(|(key, ..)| key.text == error.key).map(|(_, value, _)| value.spot);
        own.or(default).unwrap_or_default().mistake(message)
    }

    /// A text with its parameters filled in: `${mem}`, `${mem:-256M}`.
    pub(super) fn fill(&self, word: &Word) -> Result<Word, Mistake> {
        let mut text = String::new();
        let mut rest = word.text.as_str();
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, behind)) = after.split_once('}') else {
                return Err(word.mistake("${ without }"));
            };
            text.push_str(before);
            let (name, fallback) = match name.split_once(":-") {
                Some((name, fallback)) => (name, Some(fallback)),
                None => (name, None),
            };
            let said = self.value(name).filter(|value| fallback.is_none() || !value.is_empty());
            match said.or_else(|| fallback.map(str::to_owned)).or_else(|| documented(name)) {
                Some(value) => text.push_str(&value),
                None => {
                    let mut mistake = word.mistake(format!("there is no parameter {name:?}"));
                    mistake.hint = Some("[params] declares those of this scenario".to_owned());
                    return Err(mistake);
                }
            }
            rest = behind;
        }
        text.push_str(rest);
        if text.len() > TEXT_MAX {
            return Err(word.mistake(format!("a text of more than {TEXT_MAX} bytes")));
        }
        Ok(Word { text, spot: word.spot })
    }

    /// The names of the VMs, in order.
    pub(super) fn vm_names(&self) -> Vec<&str> {
        self.vms.iter().map(|vm| vm.name.as_str()).collect()
    }

    fn value(&self, name: &str) -> Option<String> {
        let of_loop = self.names.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        of_loop
            .or_else(|| (name == "host_count").then(|| self.hosts.to_string()))
            .or_else(|| self.params.text(name).map(str::to_owned))
    }

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            if self.left == 0 || self.acts.len() > ACTS_MAX {
                let what = format!("more than {ACTS_MAX} things to do, or {LOOKS_MAX} steps, once loops are unrolled");
                self.note(step.value.mistake(what));
                return;
            }
            if self.mistakes.len() >= MISTAKES_MAX {
                return;
            }
            self.left -= 1;
            if let Err(mistake) = self.step(step) {
                self.note(mistake);
            }
        }
    }

    /// In a loop a mistake is made again and again, and told once.
    fn note(&mut self, mistake: Mistake) {
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), Mistake> {
        if let Some(when) = &step.when {
            let filled = self.fill(when)?;
            let holds =
                condition(&filled.text).map_err(|want| when.mistake(format!("{:?} is not {want}", filled.text)))?;
            if !holds {
                return Ok(());
            }
        }
        if let Some((name, over, steps)) = &step.each {
            return self.each(name, over, steps);
        }
        let line = step.value.spot.line;
        let said = Said { unfolding: self, step };
        let what = match step.what {
            "barrier" => {
                let (tag, places, deadline) =
                    (said.unfolding.fill(&step.value)?, said.places()?, said.time("timeout")?);
                self.meeting(&tag, places, deadline)?
            }
            "wait" => {
                let time = said.time("time")?.ok_or_else(|| step.value.mistake("how long: time = \"5s\""))?;
                let places = said.places()?;
                self.since += time;
                What::Wait { places, time }
            }
            "log" => What::Log { places: said.places()?, text: said.unfolding.fill(&step.value)?.text },
            "net.cut" | "net.block" | "net.pass" => {
                let (places, time) = (said.places()?, said.time("for")?);
                let cut = if step.what == "net.pass" { Vec::new() } else { said.planes()? };
                match time {
                    None if cut.contains(&Plane::Raft) => {
                        return Err(step.value.mistake("hosts without raft decide nothing: for = \"3s\" ends it"));
                    }
                    None => What::Net { places, cut },
                    Some(time) => {
                        self.since += time;
                        self.acts.push(Act { line, what: What::Net { places: places.clone(), cut } });
                        self.acts.push(Act { line, what: What::Wait { places: places.clone(), time } });
                        What::Net { places, cut: Vec::new() }
                    }
                }
            }
            _ => {
                let vm = said.vm()?;
                self.on_vm(step, vm)?
            }
        };
        self.acts.push(Act { line, what });
        Ok(())
    }

    fn meeting(&mut self, tag: &Word, places: Vec<usize>, deadline: Option<Duration>) -> Result<What, Mistake> {
        if tag.text.is_empty() || tag.text.len() > 100 {
            return Err(tag.mistake("the tag of a barrier has 1 to 100 bytes"));
        }
        if places.len() < 2 && self.hosts > 1 {
            return Err(tag.mistake(format!("only {} would come to the barrier", host_name(places.first().copied()))));
        }
        let name = format!("file-{}", tag.text);
        let others = self.acts.iter().find_map(|act| match &act.what {
            What::Meet { tag, places: others, .. } if *tag == name && *others != places => Some(act.line),
            _ => None,
        });
        if let Some(line) = others {
            return Err(tag.mistake(format!("in line {line} other hosts meet under this tag")));
        }
        let deadline = deadline.unwrap_or(self.since + SLACK);
        if places.len() == self.hosts {
            self.since = Duration::ZERO;
        }
        Ok(What::Meet { tag: name, places, deadline })
    }

    fn each(&mut self, name: &Word, over: &Word, steps: &[Step]) -> Result<(), Mistake> {
        let filled = self.fill(over)?;
        let numbers =
            filled.text.split_once("..").map(|(from, to)| (from.trim().parse::<u64>(), to.trim().parse::<u64>()));
        let words: Vec<String> = match numbers {
            Some((Ok(from), Ok(to))) if to.saturating_sub(from) < TURNS_MAX => {
                (from..=to).map(|n| n.to_string()).collect()
            }
            Some((Ok(_), Ok(_))) => return Err(over.mistake(format!("{} is more than {TURNS_MAX} turns", filled.text))),
            Some(_) => return Err(over.mistake(format!("{:?} is no range of numbers such as 1..3", filled.text))),
            None => filled.text.split_whitespace().map(str::to_owned).collect(),
        };
        if words.len() as u64 > TURNS_MAX {
            return Err(over.mistake(format!("more than {TURNS_MAX} turns")));
        }
        for word in words {
            self.names.push((name.text.clone(), word));
            self.steps(steps);
            self.names.pop();
        }
        Ok(())
    }

    /// All hosts meet before what all of them do.
    fn gather(&mut self, line: u32) {
        let deadline = self.since + SLACK;
        self.since = Duration::ZERO;
        let places = (0..self.hosts).collect();
        self.acts.push(Act { line, what: What::Meet { tag: format!("line-{line}"), places, deadline } });
    }

    fn on_vm(&mut self, step: &Step, vm: usize) -> Result<What, Mistake> {
        let line = step.value.spot.line;
        let stage = self.vms[vm].stage;
        let wanted = match step.what {
            "vm.start" => Stage::Off,
            "vm.ready" => Stage::Boots,
            "qmp" | "vm.stop" | "migrate" if stage == Stage::Boots => Stage::Boots,
            _ => Stage::Up,
        };
        if stage != wanted {
            return Err(step.value.mistake(format!("{} {}", self.vms[vm].name, told(stage))));
        }
        let at = self.vms[vm].at;
        let login = self.vms[vm].params.number("login_timeout", 1..=86_400).ok().flatten().unwrap_or(360);
        let login = Duration::from_secs(login);
        let said = Said { unfolding: self, step };
        Ok(match step.what {
            "vm.start" => {
                let at = match said.places_of("on")? {
                    None => 0,
                    Some(places) => match places[..] {
                        [at] => at,
                        _ => return Err(step.value.mistake("a VM starts on one host")),
                    },
                };
                let wait = match said.word("until")? {
                    None => true,
                    Some(until) => match until.text.as_str() {
                        "guest_ready" => true,
                        "started" => false,
                        _ => return Err(until.mistake("until is guest_ready or started")),
                    },
                };
                self.gather(line);
                self.vms[vm].at = at;
                self.vms[vm].stage = if wait { Stage::Up } else { Stage::Boots };
                What::Start { vm, at, wait }
            }
            "vm.ready" => {
                self.since += login;
                self.vms[vm].stage = Stage::Up;
                What::Ready { vm, at }
            }
            "vm.reset" => {
                self.since += login * 2;
                What::Reset { vm, at }
            }
            "vm.stop" => {
                self.gather(line);
                self.vms[vm].stage = Stage::Gone;
                What::Stop { vm }
            }
            "load.start" => {
                let mut params = self.vms[vm].params.clone();
                let known = ["stress_cpu", "stress_disk"];
                let table = said.table(&known);
                self.overlay(&mut params, &table, &known, "a load")?;
                let load = Load::read(&params).map_err(|error| self.misread(&error, &table))?;
                self.since += ASK;
                self.vms[vm].load = Some(load);
                What::LoadOn { vm, at, load }
            }
            "load.check" | "load.stop" => {
                let Some(load) = self.vms[vm].load else {
                    return Err(step.value.mistake(format!("{} has no load here", self.vms[vm].name)));
                };
                self.since += ASK;
                match step.what {
                    "load.check" => What::LoadGoesOn { vm, at, load },
                    _ => {
                        self.vms[vm].load = None;
                        What::LoadOff { vm, at, load }
                    }
                }
            }
            "guest" | "agent" => {
                let (command, timeout) = (said.unfolding.fill(&step.value)?, said.time("timeout")?.unwrap_or(ASK));
                let mut expect = said.expect(&[("status", Type::Number), ("output", Type::Text)])?;
                if expect.iter().all(|expected| expected.key != "status") {
                    expect.push(Expected { key: "status".to_owned(), wanted: Wanted::is(0) });
                }
                self.since += timeout;
                What::Guest { vm, at, agent: step.what == "agent", command: command.text, timeout, expect }
            }
            "put" => {
                let text = said.word("text")?.ok_or_else(|| step.value.mistake("what it is to hold: text = \"…\""))?;
                let path = said.path()?;
                self.since += ASK;
                What::Put { vm, at, path, text: text.text }
            }
            "get" => {
                let (path, expect) = (said.path()?, said.expect(&[("text", Type::Text), ("bytes", Type::Number)])?);
                self.since += ASK;
                What::Get { vm, at, path, expect }
            }
            "qmp" => {
                let command = said.unfolding.fill(&step.value)?;
                if !is_allowed(&command.text) {
                    return Err(command.mistake(format!("a scenario may not tell QEMU {:?}", command.text)));
                }
                let arguments = match said.word("arguments")? {
                    None => Value::Null,
                    Some(text) => serde_json::from_str(&text.text)
                        .ok()
                        .filter(Value::is_object)
                        .ok_or_else(|| text.mistake("arguments are an object of JSON: '{\"id\": \"x\"}'"))?,
                };
                let expect = said.expect(&[])?;
                self.since += ASK;
                What::Qmp { vm, at, command: command.text, arguments, expect }
            }
            "migrate" => self.migration(step, vm)?,
            _ => {
                self.since += ASK * 3;
                What::Check { vm, at }
            }
        })
    }

    fn migration(&mut self, step: &Step, vm: usize) -> Result<What, Mistake> {
        let Vm { name, at: from, stage, .. } = self.vms[vm].clone();
        let said = Said { unfolding: self, step };
        if let Some(word) = said.word("from")?
            && self.host(&word)? != from
        {
            return Err(word.mistake(format!("{name} is on {} here", host_name(Some(from)))));
        }
        let to = match said.word("to")? {
            Some(word) => match self.host(&word)? {
                to if to == from => return Err(word.mistake(format!("{name} is on {} already", word.text))),
                to => to,
            },
            None if self.hosts < 2 => return Err(step.value.mistake("there is one host, and a VM moves between two")),
            None => (from + 1) % self.hosts,
        };
        let mut params = self.vms[vm].params.clone();
        let mut table = said.table(MOVE_KEYS);
        // A goal that is a table stands for several of them.
        table.0.retain(|(key, item)| key.text != "goal" || !matches!(item.node, Node::Table(_)));
        self.overlay(&mut params, &table, MOVE_KEYS, "migrate")?;
        said.goal(&mut params, &self.file.file)?;
        said.ways(&mut params, &self.file.file)?;
        let read = Settings::read(&params).map_err(|error| {
            let mistake = self.misread(&error, &table);
            // It may follow from several keys of the step.
            if mistake.line == 0 { step.value.mistake(mistake.message) } else { mistake }
        });
        let mut spec = read?.spec;
        let mut expect = said.expect(&[
            ("result", Type::Text),
            ("qemu_downtime_ms", Type::Number),
            ("standstill_ms", Type::Number),
            ("total_ms", Type::Number),
            ("wall_ms", Type::Number),
            ("transferred_bytes", Type::Number),
            ("passes", Type::Number),
        ])?;
        let ends = said.ends(&spec)?;
        expect.retain(|expected| expected.key != "result");
        if let Some(expected) = expect.first().filter(|_| ends != Ends::Completed) {
            return Err(step.value.mistake(format!("a move that does not complete has no {}", expected.key)));
        }
        if stage == Stage::Boots && (ends != Ends::Completed || expect.iter().any(|e| e.key == "standstill_ms")) {
            return Err(step.value.mistake("a guest that boots is asked nothing: its move completes, and no more"));
        }
        let block = said.block(&spec, ends)?;
        if block.is_some() {
            slowly(&mut spec);
        }
        self.gather(step.value.spot.line);
        if ends == Ends::Completed {
            self.vms[vm].at = to;
        }
        let boots = stage == Stage::Boots;
        Ok(What::Migrate { vm, from, to, spec: Box::new(spec), boots, ends, block, expect })
    }

    /// The place of a host by its name.
    pub(super) fn host(&self, word: &Word) -> Result<usize, Mistake> {
        let place = word.text.strip_prefix("host").and_then(|number| number.parse::<usize>().ok());
        place.filter(|place| (1..=self.hosts).contains(place)).map(|place| place - 1).ok_or_else(|| {
            let mut mistake = word.mistake(format!("there is no host {:?}", word.text));
            mistake.hint = Some(format!("this case has host1 to {}", host_name(self.hosts.checked_sub(1))));
            mistake
        })
    }
}

/// A value as a parameter's is written.
fn value_of(key: &str, item: Item) -> Result<Word, Mistake> {
    match item.node {
        // `at = { "pass:2" = "cancel" }` is `at = "pass:2 cancel"`.
        Node::Table(table) if key == "at" => {
            let each = table.0.into_iter().map(|(moment, what)| Ok(format!("{} {}", moment.text, what.flat()?.text)));
            Ok(Word { text: each.collect::<Result<Vec<_>, Mistake>>()?.join("; "), spot: item.spot })
        }
        node => Item { node, ..item }.flat(),
    }
}

/// What a parameter of every scenario is where nobody says anything.
fn documented(name: &str) -> Option<String> {
    let all = [VM_PARAMS, DRIVE_PARAMS, MOVE_PARAMS, LOAD_PARAMS].concat();
    all.iter().find(|(key, ..)| *key == name).map(|(_, default, _)| (*default).to_owned())
}

fn told(stage: Stage) -> &'static str {
    match stage {
        Stage::Off => "is not started here: do = \"vm.start\" comes first",
        Stage::Boots => "still boots here: do = \"vm.ready\" waits for it",
        Stage::Up => "is up already",
        Stage::Gone => "was stopped before",
    }
}

/// `host1` for place 0.
pub(super) fn host_name(place: Option<usize>) -> String {
    place.map_or_else(|| "no host".to_owned(), |place| format!("host{}", place + 1))
}
