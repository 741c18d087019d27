//! What a step says, each key as what it is to be: times, hosts, VMs, expectations.

use std::time::Duration;

use vt_protocol::{
    params::Params,
    party::Plane,
    scenario::Mistake,
    vm::{MigrationSpec, Transport},
};

use super::{
    act::{Block, Ends, Expected},
    expect::{Type, Wanted},
    read::{Step, time},
    table::{Item, Node, Table, Word},
    unfold::Unfolding,
};
use crate::scenario::{cut::plane_of, transfer};

/// A step on its way through a file.
pub(super) struct Said<'a, 'b> {
    pub(super) unfolding: &'a Unfolding<'b>,
    pub(super) step: &'a Step,
}

impl Said<'_, '_> {
    fn item(&self, key: &str) -> Option<&Item> {
        self.step.keys.0.iter().find(|(known, _)| known.text == key).map(|(_, item)| item)
    }

    pub(super) fn word(&self, key: &str) -> Result<Option<Word>, Mistake> {
        let item = self.item(key).cloned();
        item.map(|item| self.unfolding.fill(&item.word("a text")?)).transpose()
    }

    pub(super) fn time(&self, key: &str) -> Result<Option<Duration>, Mistake> {
        self.word(key)?.map(|word| time(&word)).transpose()
    }

    /// The number of the VM that is meant: of the one there is, where none is named.
    pub(super) fn vm(&self) -> Result<usize, Mistake> {
        let names = self.unfolding.vm_names();
        match self.word("vm")? {
            None if names.len() == 1 => Ok(0),
            None => Err(self.step.value.mistake("which VM: vm = \"vm1\"")),
            Some(word) => names.iter().position(|name| *name == word.text).ok_or_else(|| {
                let mut mistake = word.mistake(format!("there is no VM {:?}", word.text));
                mistake.hint = Some(format!("this scenario has {}", names.join(", ")));
                mistake
            }),
        }
    }

    /// The step's own value, as a path in the guest.
    pub(super) fn path(&self) -> Result<String, Mistake> {
        let path = self.unfolding.fill(&self.step.value)?;
        if path.text.starts_with('/') {
            return Ok(path.text);
        }
        Err(path.mistake("a path in the guest begins with /"))
    }

    /// What carries a move, in which mode and over how many connections: words of a step that stand for parameters.
    pub(super) fn ways(&self, params: &mut Params, file: &str) -> Result<(), Mistake> {
        let mut add = |key: &str, between: &str, value: &str, word: &Word| {
            let before = params.text(key).map(str::trim).filter(|before| !before.is_empty() && !between.is_empty());
            let value = before.map_or_else(|| value.to_owned(), |before| format!("{before}{between}{value}"));
            params.set(key, value, word.spot.origin(file));
        };
        if let Some(word) = self.word("transport")? {
            if self.item("mig_protocol").is_some() {
                return Err(word.mistake("transport and mig_protocol say the same: one of them"));
            }
            let known =
                word.text.parse::<Transport>().map_err(|want| word.mistake(format!("{:?} is not {want}", word.text)));
            add("mig_protocol", "", &known?.to_string(), &word);
        }
        if let Some(word) = self.word("mode")? {
            match word.text.as_str() {
                "precopy" => {}
                "postcopy" => add("at", "; ", "active postcopy", &word),
                "precopy+postcopy" => add("at", "; ", "pass:1 postcopy", &word),
                other => return Err(word.mistake(format!("{other:?} is not precopy, postcopy or precopy+postcopy"))),
            }
        }
        if let Some(word) = self.word("channels")? {
            let number = word.text.parse::<u8>();
            let number = number.map_err(|_| word.mistake(format!("{:?} is no number from 0 to 255", word.text)))?;
            if number > 0 {
                add("capabilities", " ", "multifd", &word);
                add("parameters", " ", &format!("multifd-channels={number}"), &word);
            }
        }
        Ok(())
    }

    /// A goal that is a table: words that stand for parameters.
    pub(super) fn goal(&self, params: &mut Params, file: &str) -> Result<(), Mistake> {
        let Some(Item { node: Node::Table(table), .. }) = self.item("goal") else { return Ok(()) };
        let mut aim = None;
        for (key, item) in &table.0 {
            let word = self.unfolding.fill(&item.clone().word("a text")?)?;
            let (param, value) = match (key.text.as_str(), word.text.as_str()) {
                ("aim" | "finish_within", _) if aim.replace(&key.text).is_some() => {
                    return Err(key.mistake("aim and finish_within say the same: one of them"));
                }
                ("aim", "min_downtime" | "min_time") => ("goal", word.text.clone()),
                ("aim", other) => return Err(word.mistake(format!("{other:?} is not min_downtime or min_time"))),
                ("finish_within", _) => match time(&word)?.as_secs() {
                    seconds @ 10.. => ("goal", format!("must_finish:{seconds}s")),
                    _ => return Err(word.mistake("a transfer is given 10s at least")),
                },
                ("downtime", _) => ("downtime_limit", time(&word)?.as_millis().to_string()),
                ("on_stall", "go_on") => continue,
                ("on_stall", what @ ("cancel" | "postcopy")) => {
                    let before = params.text("at").map(str::trim).filter(|at| !at.is_empty());
                    ("at", before.map_or(String::new(), |at| format!("{at}; ")) + &format!("stalled {what}"))
                }
                ("on_stall", other) => {
                    return Err(word.mistake(format!("{other:?} is not cancel, postcopy or go_on")));
                }
                (other, _) => {
                    let mut mistake = key.mistake(format!("a goal has no key {other:?}"));
                    mistake.hint = Some("it takes aim, downtime, finish_within, on_stall".to_owned());
                    return Err(mistake);
                }
            };
            params.set(param, value, word.spot.origin(file));
        }
        Ok(())
    }

    /// The planes that are meant: that of migrations where none is named.
    pub(super) fn planes(&self) -> Result<Vec<Plane>, Mistake> {
        let Some(item) = self.item("plane").cloned() else { return Ok(vec![Plane::Migration]) };
        let spot = item.spot;
        let mut planes = Vec::new();
        for item in item.list() {
            let word = self.unfolding.fill(&item.word("the name of a plane")?)?;
            let plane = Plane::ALL.into_iter().find(|plane| plane.name() == word.text);
            planes.push(plane.ok_or_else(|| {
                word.mistake(format!("{:?} is not {}", word.text, Plane::ALL.map(Plane::name).join(", ")))
            })?);
        }
        planes.sort_unstable();
        planes.dedup();
        if planes.is_empty() { Err(spot.mistake("no plane: leave it out for that of migrations")) } else { Ok(planes) }
    }

    /// Hosts by a key; `None` where it is not there.
    pub(super) fn places_of(&self, key: &str) -> Result<Option<Vec<usize>>, Mistake> {
        let Some(item) = self.item(key).cloned() else { return Ok(None) };
        let mut places = Vec::new();
        for item in item.list() {
            let word = self.unfolding.fill(&item.word("the name of a host")?)?;
            if word.text == "all" {
                places.extend(0..self.unfolding.hosts);
            } else {
                places.push(self.unfolding.host(&word)?);
            }
        }
        places.sort_unstable();
        places.dedup();
        Ok(Some(places))
    }

    /// The hosts that do it: all of them where none is named.
    pub(super) fn places(&self) -> Result<Vec<usize>, Mistake> {
        Ok(self.places_of("on")?.unwrap_or_else(|| (0..self.unfolding.hosts).collect()))
    }

    /// The part of the step's keys that is among these.
    pub(super) fn table(&self, keys: &[&str]) -> Table {
        Table(self.step.keys.0.iter().filter(|(key, _)| keys.contains(&key.text.as_str())).cloned().collect())
    }

    /// What is expected; of those keys, or of any where there are none.
    pub(super) fn expect(&self, keys: &[(&str, Type)]) -> Result<Vec<Expected>, Mistake> {
        let Some(item) = self.item("expect").cloned() else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for (key, item) in item.table("a table: expect = { status = 0 }")?.0 {
            let kind = match keys.iter().find(|(known, _)| *known == key.text) {
                Some((_, kind)) => *kind,
                None if keys.is_empty() => Type::Any,
                None => {
                    let known: Vec<&str> = keys.iter().map(|(known, _)| *known).collect();
                    let mut mistake = key.mistake(format!("{} tells no {:?}", self.step.what, key.text));
                    mistake.hint = Some(format!("it tells {}", known.join(", ")));
                    return Err(mistake);
                }
            };
            let word = self.unfolding.fill(&item.word("a comparison")?)?;
            let wanted = Wanted::read(&word.text, kind)
                .map_err(|want| word.mistake(format!("{:?} is not {want}", word.text)))?;
            all.push(Expected { key: key.text, wanted });
        }
        Ok(all)
    }

    /// How the move is to end.
    pub(super) fn ends(&self, spec: &MigrationSpec) -> Result<Ends, Mistake> {
        let cancels = transfer::is_cancelled(spec);
        let expect = self.item("expect").cloned().map(|item| item.table("a table")).transpose()?.unwrap_or_default();
        let Some((_, item)) = expect.0.into_iter().find(|(key, _)| key.text == "result") else {
            return Ok(if cancels { Ends::Cancelled } else { Ends::Completed });
        };
        let said = self.unfolding.fill(&item.word("a text")?)?;
        match (said.text.as_str(), cancels) {
            ("completed", false) => Ok(Ends::Completed),
            ("failed", false) => Ok(Ends::Failed),
            ("cancelled", true) => Ok(Ends::Cancelled),
            ("completed" | "failed", true) => Err(said.mistake("it is cancelled: at says so")),
            ("cancelled", false) => Err(said.mistake("nothing cancels it: at = { \"pass:1\" = \"cancel\" }")),
            _ => Err(said.mistake("a move is completed, cancelled or failed")),
        }
    }

    /// For how long its packets are dropped.
    pub(super) fn block(&self, spec: &MigrationSpec, ends: Ends) -> Result<Option<Block>, Mistake> {
        let Some(word) = self.word("block")? else { return Ok(None) };
        if plane_of(spec.transport).is_none() {
            return Err(word.mistake(format!("a move over {} is not cut off by packets", spec.transport)));
        }
        match (word.text.as_str(), ends) {
            ("end", Ends::Failed) => Ok(Some(Block::ToTheEnd)),
            ("end", _) => {
                Err(word.mistake("a move that is blocked to its end fails: expect = { result = \"failed\" }"))
            }
            (_, Ends::Completed) => time(&word).map(|time| Some(Block::For(time))),
            _ => Err(word.mistake("a move that is blocked for a while completes; block = \"end\" for one that fails")),
        }
    }
}
