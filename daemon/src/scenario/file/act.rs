//! One thing that the parties do, and how it is told.

use std::{fmt, time::Duration};

use serde_json::Value;
use vt_protocol::{party::Plane, vm::MigrationSpec};

use super::{
    expect::{Wanted, shown},
    unfold::host_name,
};
use crate::scenario::load::Load;

/// One thing that is done, by the line that says so.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Act {
    pub(super) line: u32,
    pub(super) what: What,
}

/// What is done. VMs are named by their number, hosts by their places, both from 0.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    /// `wait`: until its guest is up.
    Start {
        vm: usize,
        at: usize,
        wait: bool,
    },
    Ready {
        vm: usize,
        at: usize,
    },
    Reset {
        vm: usize,
        at: usize,
    },
    Stop {
        vm: usize,
    },
    Migrate {
        vm: usize,
        from: usize,
        to: usize,
        spec: Box<MigrationSpec>,
        /// The guest boots still and is asked nothing.
        boots: bool,
        ends: Ends,
        block: Option<Block>,
        expect: Vec<Expected>,
    },
    Meet {
        tag: String,
        places: Vec<usize>,
        deadline: Duration,
    },
    /// A line of shell, on the console or by the guest's agent.
    Guest {
        vm: usize,
        at: usize,
        agent: bool,
        command: String,
        timeout: Duration,
        expect: Vec<Expected>,
    },
    Put {
        vm: usize,
        at: usize,
        path: String,
        text: String,
    },
    Get {
        vm: usize,
        at: usize,
        path: String,
        expect: Vec<Expected>,
    },
    Qmp {
        vm: usize,
        at: usize,
        command: String,
        arguments: Value,
        expect: Vec<Expected>,
    },
    Check {
        vm: usize,
        at: usize,
    },
    LoadOn {
        vm: usize,
        at: usize,
        load: Load,
    },
    LoadGoesOn {
        vm: usize,
        at: usize,
        load: Load,
    },
    LoadOff {
        vm: usize,
        at: usize,
        load: Load,
    },
    Wait {
        places: Vec<usize>,
        time: Duration,
    },
    /// What comes in on these planes is dropped, and on no others.
    Net {
        places: Vec<usize>,
        cut: Vec<Plane>,
    },
    Log {
        places: Vec<usize>,
        text: String,
    },
}

/// What is done to packets, in words.
pub(super) fn told_cut(cut: &[Plane]) -> String {
    match cut {
        [] => "let packets pass".to_owned(),
        planes => {
            let names = planes.iter().map(|plane| plane.name()).collect::<Vec<_>>();
            format!("drop what comes in ({})", names.join(", "))
        }
    }
}

/// How a move is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Completed,
    Cancelled,
    Failed,
}

/// For how long the packets of a move are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    For(Duration),
    ToTheEnd,
}

/// What is to be found under a name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    pub(super) key: String,
    pub(super) wanted: Wanted,
}

impl Expected {
    /// What was found instead, where it is not as wanted.
    pub(super) fn unmet(&self, found: &Value) -> Option<String> {
        (!self.wanted.holds(found)).then(|| shown(found))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.wanted)
    }
}

impl Act {
    /// What all parties have to do alike, one after the other: whoever does not would leave the others waiting.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.what, What::Start { .. } | What::Stop { .. } | What::Migrate { .. } | What::Meet { .. })
    }

    /// Whether it is done without being written.
    pub(super) fn is_implied(&self) -> bool {
        matches!(&self.what, What::Meet { tag, .. } if !tag.starts_with("file-"))
    }

    /// Whether another party does the same, as far as they meet in it.
    pub(super) fn fits(&self, other: &Self) -> bool {
        match (&self.what, &other.what) {
            (What::Meet { tag, places, .. }, What::Meet { tag: their, places: theirs, .. }) => {
                (tag, places) == (their, theirs)
            }
            (
                What::Migrate { vm, from, to, spec, ends, boots, block, .. },
                What::Migrate { vm: v, from: f, to: t, spec: s, ends: e, boots: b, block: k, .. },
            ) => (vm, from, to, spec, ends, boots, block) == (v, f, t, s, e, b, k),
            (own, their) => own == their,
        }
    }

    /// In words, with the VMs' names.
    pub(super) fn told(&self, vms: &[&str]) -> String {
        let name = |vm: usize| vms.get(vm).copied().unwrap_or("?");
        let host = |at: usize| host_name(Some(at));
        let hosts = |places: &[usize]| places.iter().map(|at| host(*at)).collect::<Vec<_>>().join(", ");
        let wants = |expect: &[Expected]| match expect {
            [] => String::new(),
            all => format!(", expects {}", all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        match &self.what {
            What::Start { vm, at, wait: true } => format!("{} boots on {}, probes on", name(*vm), host(*at)),
            What::Start { vm, at, .. } => format!("{} begins to boot on {}", name(*vm), host(*at)),
            What::Ready { vm, at } => format!("{} is up on {}, probes on", name(*vm), host(*at)),
            What::Reset { vm, .. } => format!("{} is reset and boots anew", name(*vm)),
            What::Stop { vm } => format!("{} is stopped", name(*vm)),
            What::Migrate { vm, from, to, spec, ends, block, expect, .. } => {
                let ends = match ends {
                    Ends::Completed => "",
                    Ends::Cancelled => ", is cancelled",
                    Ends::Failed => ", has to fail",
                };
                let block = match block {
                    None => String::new(),
                    Some(Block::For(time)) => format!(", packets dropped for {time:?}"),
                    Some(Block::ToTheEnd) => ", packets dropped to the end".to_owned(),
                };
                let offline = if spec.offline { ", paused" } else { "" };
                let how = spec.transport;
                let wants = wants(expect);
                format!("{} moves {} → {} over {how}{offline}{block}{ends}{wants}", name(*vm), host(*from), host(*to))
            }
            What::Meet { tag, places, .. } => match tag.strip_prefix("file-") {
                Some(tag) => format!("{} meet at {tag:?}", hosts(places)),
                None => format!("{} wait for each other", hosts(places)),
            },
            What::Guest { vm, at, agent, command, expect, .. } => {
                let by = if *agent { " by its agent" } else { "" };
                format!("{} on {} runs {command:?}{by}{}", name(*vm), host(*at), wants(expect))
            }
            What::Put { vm, path, text, .. } => format!("{} gets a file {path} of {} bytes", name(*vm), text.len()),
            What::Get { vm, path, expect, .. } => {
                format!("{}: its file {path} goes to the evidence{}", name(*vm), wants(expect))
            }
            What::Qmp { vm, command, expect, .. } => {
                format!("the QEMU of {} is told {command}{}", name(*vm), wants(expect))
            }
            What::Check { vm, at } => format!("{} runs on {} and answers on every way in", name(*vm), host(*at)),
            What::LoadOn { vm, load, .. } => {
                format!("{}: load of {} busy loops and {} readers of the disk", name(*vm), load.loops, load.readers)
            }
            What::LoadGoesOn { vm, .. } => format!("{}: the load has got on", name(*vm)),
            What::LoadOff { vm, .. } => format!("{}: the load ends", name(*vm)),
            What::Wait { places, time } => format!("{} wait for {time:?}", hosts(places)),
            What::Net { places, cut } => format!("{}: {}", hosts(places), told_cut(cut)),
            What::Log { text, .. } => format!("log: {text}"),
        }
    }
}
