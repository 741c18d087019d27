//! A scenario in a file: steps over the same party API as the built-in ones, read and checked before anything starts.
//!
//! | file | noun |
//! |---|---|
//! | [`table`] | TOML with the place of every key and value |
//! | [`read`] | from a table to steps: which keys there are |
//! | [`unfold`] | from steps to acts: parameters filled in, loops unrolled, values read, every VM's place known |
//! | [`said`] | what a step says, each key as what it is to be |
//! | [`act`], [`expect`] | one thing that is done; what it is to find |
//! | [`run`] | acts as one party does them |
//!
//! What is checked is what is run: the same acts, made by the same code from the same text. All parties are checked
//! against each other, so that nobody waits at a barrier that another one passes by.
//!
//! What may not happen here: a step that begins to run before the whole file is known to be right.

mod act;
mod expect;
mod read;
mod run;
mod said;
mod table;
mod unfold;

use std::time::Duration;

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    job::ScenarioInfo,
    params::{Params, for_host},
    party::Failure,
    scenario::{Mistake, ScenarioCheck, ScenarioChecked, ScenarioStep, ScenarioText},
    vm::Backend,
};

use self::{
    read::Step,
    table::{Spot, Table, Word},
    unfold::{Program, unfold},
};
use super::{
    drives::{DRIVE_ALIASES, DRIVE_PARAMS},
    load::LOAD_PARAMS,
    settings::{ALIASES, MOVE_PARAMS, VM_PARAMS},
};
use crate::party::{Party, our_fault};

/// A scenario in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct ScenarioFile {
    /// The file, as its user calls it.
    file: String,
    name: String,
    summary: String,
    about: String,
    /// Fewest and most hosts of a case.
    hosts: (u32, u32),
    /// Who may start and move its VMs, where it says so.
    backends: Vec<(Backend, Word)>,
    timeout: Option<Duration>,
    /// Name, default, meaning.
    params: Vec<(Word, Word, String)>,
    vms: Vec<VmTable>,
    steps: Vec<Step>,
}

/// A VM as it is written.
#[derive(Debug, Clone, PartialEq)]
struct VmTable {
    name: String,
    settings: Table,
}

impl ScenarioFile {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it, as far as that does not depend on parameters.
    pub fn read(text: &ScenarioText) -> Result<Self, Vec<Mistake>> {
        let read = read::scenario(&text.file, &text.text)?;
        if super::is_taken(&read.name) {
            let title = format!("a built-in scenario is called {:?}: this one needs another name", read.name);
            return Err(vec![Spot::default().mistake(title)]);
        }
        Ok(read)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fewest and most hosts of a case.
    pub(super) fn hosts(&self) -> (u32, u32) {
        self.hosts
    }

    /// As it would be listed.
    pub fn info(&self) -> ScenarioInfo {
        let own =
            self.params.iter().map(|(key, default, about)| (key.text.clone(), default.text.clone(), about.clone()));
        let mut params: Vec<(String, String, String)> = own.collect();
        for (key, default, meaning) in [VM_PARAMS, DRIVE_PARAMS, MOVE_PARAMS, LOAD_PARAMS].concat() {
            match params.iter_mut().find(|(known, ..)| known == key) {
                Some((.., about)) => meaning.clone_into(about),
                None => params.push((key.to_owned(), default.to_owned(), meaning.to_owned())),
            }
        }
        ScenarioInfo {
            name: self.name.clone(),
            summary: self.summary.clone(),
            hosts: self.hosts.0,
            params,
            types: Vec::new(),
            also_reads: ALIASES.iter().chain(DRIVE_ALIASES).map(|key| (*key).to_owned()).collect(),
            about: self.about.clone(),
        }
    }

    /// What the parties of a case do; those of `hosts` by what each sees of the case's parameters.
    ///
    /// # Errors
    /// A value cannot be used, a step does not fit where it stands, or the parties would not meet.
    fn program(&self, params: &Params, hosts: &[Name]) -> Result<Program, Vec<Mistake>> {
        let names: Vec<&str> = hosts.iter().map(Name::as_str).collect();
        let of = |place| unfold(self, &for_host(params, &names, place, ""), hosts.len());
        let first = of(0)?;
        for place in 1..hosts.len() {
            let other = of(place)?;
            self.meet(&first, &other, place)?;
        }
        Ok(first)
    }

    /// Whether the party at a place comes to everything that the first one comes to.
    fn meet(&self, first: &Program, other: &Program, place: usize) -> Result<(), Vec<Mistake>> {
        let shared = |program: &Program| program.acts.iter().filter(|act| act.is_shared()).cloned().collect::<Vec<_>>();
        let (first_acts, other_acts) = (shared(first), shared(other));
        let vms: Vec<&str> = first.vms.iter().map(|(name, _)| name.as_str()).collect();
        let pairs = first_acts.iter().zip(&other_acts).find(|(one, other)| !one.fits(other));
        let (one, two) = match pairs {
            Some((one, other)) => (Some(one), Some(other)),
            None if first_acts.len() == other_acts.len() => return Ok(()),
            None => (first_acts.get(other_acts.len()), other_acts.get(first_acts.len())),
        };
        let line = one.or(two).map_or(0, |act| act.line);
        let does = |act: Option<&act::Act>| act.map_or_else(|| "nothing more".to_owned(), |act| act.told(&vms));
        let place = unfold::host_name(Some(place));
        Err(vec![Mistake {
            line,
            message: format!(
                "the hosts would not meet: to host1 {:?} comes next, to {place} {:?}",
                does(one),
                does(two)
            ),
            hint: Some("a parameter of one host alone (KEY_hostN) stands in a condition, a loop or a move".to_owned()),
            ..Mistake::default()
        }])
    }

    /// Checks a case before anything starts.
    ///
    /// # Errors
    /// The first mistake, with its line.
    pub(super) fn check(&self, params: &Params, hosts: &[Name]) -> Result<(), Report> {
        self.program(params, hosts).map(drop).map_err(|mistakes| self.refused(&mistakes))
    }

    fn refused(&self, mistakes: &[Mistake]) -> Report {
        refused(&self.file, mistakes)
    }

    /// Runs one party of it to its end.
    ///
    /// # Errors
    /// Why it did not pass.
    pub(super) async fn run(&self, party: &Party) -> Result<Option<String>, Failure> {
        // The parameters are this host's own already.
        let program = unfold(self, party.params(), party.hosts().len());
        let program = program.map_err(|mistakes| our_fault(self.refused(&mistakes)))?;
        run::run(party, &self.file, program).await
    }
}

/// The report of mistakes in a file.
pub(crate) fn refused(file: &str, mistakes: &[Mistake]) -> Report {
    let place = |mistake: &Mistake| match mistake.line {
        0 => file.to_owned(),
        line => format!("{file}:{line}"),
    };
    let title = match mistakes {
        [one] => format!("{}: {}", place(one), one.message),
        many => format!("{file} has {} mistakes", many.len()),
    };
    let report = Report::new(ErrorCode::BadConfig, title);
    let report = mistakes
        .iter()
        .take(20)
        .fold(report, |report, mistake| report.with("mistake", format!("{}: {}", place(mistake), mistake.message)));
    report.help(format!("vtctl scenario check {file}"))
}

/// What is to be said of a scenario in a file.
pub fn checked(check: &ScenarioCheck) -> ScenarioChecked {
    let read = match ScenarioFile::read(&check.scenario) {
        Ok(read) => read,
        Err(mistakes) => return ScenarioChecked { mistakes, ..ScenarioChecked::default() },
    };
    let (least, most) = read.hosts;
    let count = if check.hosts == 0 { least } else { check.hosts };
    let timeout_ms = read.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    let mut checked = ScenarioChecked { info: Some(read.info()), timeout_ms, ..ScenarioChecked::default() };
    if !(least..=most).contains(&count) {
        let title = format!("{} takes {least} to {most} hosts, not {count}", read.name);
        checked.mistakes.push(Spot::default().mistake(title));
        return checked;
    }
    let hosts: Vec<Name> = (1..=count).filter_map(|n| format!("host{n}").parse().ok()).collect();
    match read.program(&check.params, &hosts) {
        Ok(program) => {
            let vms: Vec<&str> = program.vms.iter().map(|(name, _)| name.as_str()).collect();
            // That all wait for each other before a move goes without saying.
            let said = program.acts.iter().filter(|act| !act.is_implied());
            checked.steps = said.map(|act| ScenarioStep { line: act.line, text: act.told(&vms) }).collect();
        }
        Err(mistakes) => checked.mistakes = mistakes,
    }
    checked
}

#[cfg(test)]
mod tests {
    use vt_protocol::params::{COMMAND_LINE, Origin};

    use super::*;

    const HEAD: &str = "schema = \"vtmesh/v1/scenario\"\nname = \"t\"\nsummary = \"s\"\nhosts = 2\n";

    fn check(text: &str, typed: &[(&str, &str)], hosts: u32) -> ScenarioChecked {
        let mut params = Params::new();
        for (key, value) in typed {
            params.set(*key, *value, Origin { file: COMMAND_LINE.into(), line: 0 });
        }
        checked(&ScenarioCheck {
            scenario: ScenarioText { file: "t.scenario".into(), text: text.into() },
            params,
            hosts,
        })
    }

    fn steps(steps: &str) -> ScenarioChecked {
        check(&format!("{HEAD}{steps}"), &[], 0)
    }

    fn done(checked: &ScenarioChecked) -> Vec<&str> {
        assert!(checked.mistakes.is_empty(), "{:?}", checked.mistakes);
        checked.steps.iter().map(|step| step.text.as_str()).collect()
    }

    #[test]
    fn a_file_becomes_what_is_done() {
        let text = "[params]\nrounds = 2\n[[vm]]\nname = \"vm1\"\nmem = \"${mem}\"\n[[step]]\ndo = \"vm.start\"\n\
                    [[step]]\nfor = { n = \"1..${rounds}\" }\n[[step.step]]\ndo = \"migrate\"\nmig_protocol = \"tls\"\n\
                    [[step.step]]\nguest = \"echo ${n} of ${host_count}\"\nexpect = { output = \"== ${n} of 2\" }\n\
                    when = \"${n} > 1\"\n[[step]]\nbarrier = \"end\"\n[[step]]\nlog = \"${note:-none}\"\non = \"host2\"\n";
        let checked = steps(text);
        assert_eq!(
            done(&checked),
            [
                "vm1 boots on host1, probes on",
                "vm1 moves host1 → host2 over tls",
                "vm1 moves host2 → host1 over tls",
                "vm1 on host1 runs \"echo 2 of 2\", expects output == \"2 of 2\", status == 0",
                "host1, host2 meet at \"end\"",
                "log: none",
            ]
        );
        assert_eq!(checked.steps[1].line, 15, "{:?}", checked.steps);
        let typed = check(&format!("{HEAD}{text}"), &[("rounds", "3"), ("mem", "64M")], 2);
        assert_eq!(done(&typed).iter().filter(|step| step.contains("moves")).count(), 3);
        let info = checked.info.unwrap();
        assert_eq!(info.params[0].1, "2");
        assert!(info.reads("mem_host2") && info.reads("rounds") && info.reads("mig_downtime"));
    }

    #[test]
    fn a_vm_is_where_its_moves_have_led_it() {
        let checked = check(
            &format!(
                "{}{}",
                HEAD.replace("hosts = 2", "hosts = [2, 4]"),
                "[[vm]]\nname = \"a\"\n[[vm]]\nname = \"b\"\n[[step]]\ndo = \"vm.start\"\nvm = \"a\"\non = \"host3\"\nuntil = \
                 \"started\"\n[[step]]\ndo = \"migrate\"\nvm = \"a\"\n[[step]]\ndo = \"vm.ready\"\nvm = \"a\"\n[[step]]\ndo = \
                 \"vm.start\"\nvm = \"b\"\n[[step]]\ndo = \"migrate\"\nvm = \"a\"\nat = { setup = \"cancel\" }\n[[step]]\ndo = \
                 \"migrate\"\nvm = \"a\"\nfrom = \"host1\"\nto = \"host3\"\nblock = \"3s\"\n[[step]]\ndo = \"vm.stop\"\nvm = \
                 \"a\"\n"
            ),
            &[],
            3,
        );
        assert_eq!(
            done(&checked),
            [
                "a begins to boot on host3",
                "a moves host3 → host1 over tcp",
                "a is up on host1, probes on",
                "b boots on host1, probes on",
                "a moves host1 → host2 over tcp, is cancelled",
                "a moves host1 → host3 over tcp, packets dropped for 3s",
                "a is stopped",
            ]
        );
    }

    #[test]
    fn words_of_a_move_stand_for_parameters() {
        let text = format!(
            "{HEAD}[params]\nway = \"tls\"\n[[step]]\ndo = \"vm.start\"\n[[step]]\ndo = \"migrate\"\ntransport = \"${{way}}\"\n\
             channels = 4\n[[step]]\ndo = \"migrate\"\ncapabilities = \"auto-converge\"\nmode = \"precopy+postcopy\"\nchannels = 0\n\
             at = {{ active = \"max-bandwidth=1048576\" }}\n"
        );
        let file = ScenarioFile::read(&ScenarioText { file: "t.scenario".into(), text }).unwrap();
        let hosts: Vec<Name> = ["a", "b"].map(|name| name.parse().unwrap()).into();
        let program = file.program(&Params::new(), &hosts).unwrap();
        let specs: Vec<_> = program
            .acts
            .iter()
            .filter_map(|act| match &act.what {
                act::What::Migrate { spec, .. } => Some(spec),
                _ => None,
            })
            .collect();
        assert_eq!((specs[0].transport.to_string(), specs[0].parameters["multifd-channels"]), ("tls".to_owned(), 4));
        assert!(specs[0].wants("multifd") && !specs[0].is_postcopy());
        assert!(specs[1].is_postcopy() && specs[1].wants("auto-converge") && !specs[1].wants("multifd"));
        assert_eq!(specs[1].interventions.len(), 2, "{:?}", specs[1]);
    }

    #[test]
    fn a_goal_is_settings_and_what_is_done_about_a_stall() {
        let text = format!(
            "{HEAD}[params]\nlimit = \"5m\"\n[[step]]\ndo = \"vm.start\"\n[[step]]\ndo = \"migrate\"\nat = \"pass:9 \
             max-bandwidth=1048576\"\ngoal = {{ downtime = \"150ms\", finish_within = \"${{limit}}\", on_stall = \"cancel\" }}\n"
        );
        let file = ScenarioFile::read(&ScenarioText { file: "t.scenario".into(), text }).unwrap();
        let hosts: Vec<Name> = ["a", "b"].map(|name| name.parse().unwrap()).into();
        let program = file.program(&Params::new(), &hosts).unwrap();
        let spec = program.acts.iter().find_map(|act| match &act.what {
            act::What::Migrate { spec, .. } => Some(spec.clone()),
            _ => None,
        });
        let spec = spec.unwrap();
        assert_eq!((spec.timeout_ms, spec.parameters["downtime-limit"]), (300_000, 150));
        assert!(spec.wants("auto-converge"), "{spec:?}");
        let moments: Vec<String> = spec.interventions.iter().map(|(moment, _)| moment.to_string()).collect();
        assert_eq!(moments, ["pass:9", "stalled", "pass:8", "pass:16"]);
        // It completes where nothing stalls.
        assert!(!crate::scenario::transfer::is_cancelled(&spec));
    }

    #[test]
    fn a_fault_lasts_as_long_as_it_says_and_checks_come_last() {
        let text = "[[check]]\nguest = \"true\"\n[[check]]\ncheck = \"guest\"\n[[step]]\ndo = \"vm.start\"\n\
                    [[step]]\nfault = \"net.block\"\nfor = \"3s\"\non = \"host2\"\n";
        let checked = steps(text);
        let done = done(&checked);
        assert_eq!(done.len(), 6, "{done:?}");
        assert!(done[2].contains("host2 wait for 3s") && done[4].contains("runs \"true\""), "{done:?}");
        assert_ne!(done[1], done[3], "{done:?}");
        let by = |typed: &[(&str, &str)]| {
            check(&format!("{HEAD}backends = [\"qmp\"]\n[[step]]\ndo = \"vm.start\"\n"), typed, 0).mistakes
        };
        assert_eq!(by(&[]), []);
        let mistakes = by(&[("vm_type", "libvirt")]);
        assert_eq!((mistakes.len(), mistakes[0].line, mistakes[0].column), (1, 5, 13), "{mistakes:?}");
    }

    #[test]
    fn every_mistake_is_found_before_anything_starts_and_at_its_place() {
        const UP: &str = "[[step]]\ndo = \"vm.start\"\n";
        // Behind four lines of head. A mistake in line 0 is one of the whole file.
        for (text, line, column, says) in [
            ("", 0, 0, "the file has no step"),
            ("backends = [\"xen\"]\n[[step]]\nlog = \"x\"\n", 5, 13, "not qmp or libvirt"),
            ("[[step]]\nlog = \"x\"\n[[check]]\ndo = \"wait\"\n", 8, 6, "a check asks and changes nothing"),
            ("[[step]]\nfault = \"net.pass\"\nfor = \"3s\"\n", 7, 1, "net.pass has no key \"for\""),
            ("[[step]]\ndo = \"mvoe\"\n", 6, 6, "nothing that can stand behind do"),
            ("[[step]]\nguets = \"uptime\"\n", 6, 1, "says nothing to be done"),
            ("[[step]]\nguest = \"x\"\nbarrier = \"y\"\n", 5, 1, "barrier and guest"),
            ("[[step]]\nguest = 1\ntimeuot = \"3s\"\n", 7, 1, "guest has no key \"timeuot\""),
            ("[[step]]\ndo = [\"vm.start\"]\n", 6, 6, "this is a list"),
            ("step = 3\n", 5, 8, "not a step"),
            ("steps = 3\n[[step]]\nlog = \"x\"\n", 5, 1, "a scenario has no key \"steps\""),
            ("[params]\nRounds = 1\n[[step]]\nlog = \"x\"\n", 6, 1, "the name of a parameter"),
            ("[[vm]]\nmem = \"1G\"\n[[step]]\nlog = \"x\"\n", 5, 1, "a VM without a name"),
            ("[[vm]]\nname = \"a\"\nmemm = \"1G\"\n[[step]]\nlog = \"x\"\n", 7, 1, "a VM has no key \"memm\""),
            ("[[vm]]\nname = \"a\"\nmem = \"lots\"\n[[step]]\nlog = \"x\"\n", 7, 7, "mem = \"lots\" is not a size"),
            ("[params]\nmem = \"lots\"\n[[step]]\nlog = \"x\"\n", 6, 7, "mem = \"lots\" is not a size"),
            ("[[step]]\nlog = \"${nothing}\"\n", 6, 7, "there is no parameter \"nothing\""),
            ("[[step]]\nlog = \"${\"\n", 6, 7, "${ without }"),
            ("[[step]]\nlog = \"x\"\nwhen = \"perhaps\"\n", 7, 8, "is not a condition"),
            ("[[step]]\nlog = \"x\"\non = \"host3\"\n", 7, 6, "there is no host \"host3\""),
            ("[[step]]\nfor = { n = \"1..2000\" }\n[[step.step]]\nlog = \"x\"\n", 6, 13, "more than 1000 turns"),
            ("[[step]]\nfor = { n = \"1..x\" }\n[[step.step]]\nlog = \"x\"\n", 6, 13, "no range of numbers"),
            ("[[step]]\nfor = { n = \"1..3\" }\n", 6, 1, "a loop without steps"),
            (
                "[[step]]\nfor = { a = \"1..100\" }\n[[step.step]]\nfor = { b = \"1..100\" }\n[[step.step.step]]\nlog = \"x\"\n",
                8,
                1,
                "once loops are unrolled",
            ),
            ("[[step]]\nbarrier = \"b\"\non = \"host1\"\n", 6, 11, "only host1 would come to the barrier"),
            ("[[step]]\nbarrier = \"b\"\ntimeout = \"soon\"\n", 7, 11, "is no time such as"),
            ("[[step]]\nguest = \"uptime\"\n", 6, 9, "vm1 is not started here"),
            ("[[step]]\ndo = \"wait\"\n", 6, 6, "how long"),
            ("[[step]]\ncheck = \"gust\"\n", 6, 9, "nothing that can stand behind check"),
        ] {
            let checked = steps(text);
            let found = checked.mistakes.first().unwrap_or_else(|| panic!("{text} is right: {:?}", checked.steps));
            assert_eq!((found.line, found.column), (line, column), "{text}: {found:?}");
            assert!(found.message.contains(says), "{text}: {found:?}");
        }
        for (text, line, says) in [
            ("[[step]]\ndo = \"vm.start\"\n", 8, "vm1 is up already"),
            ("[[step]]\ndo = \"vm.ready\"\n", 8, "vm1 is up already"),
            ("[[step]]\ndo = \"vm.stop\"\n[[step]]\nguest = \"x\"\n", 10, "vm1 was stopped before"),
            ("[[step]]\nguest = \"x\"\nvm = \"vm2\"\n", 9, "there is no VM \"vm2\""),
            ("[[step]]\nguest = \"x\"\nexpect = { stauts = 0 }\n", 9, "guest tells no \"stauts\""),
            ("[[step]]\nguest = \"x\"\nexpect = { status = \"good\" }\n", 9, "is not a comparison with a number"),
            ("[[step]]\nqmp = \"quit\"\n", 8, "may not tell QEMU \"quit\""),
            ("[[step]]\nqmp = \"query-status\"\narguments = \"3\"\n", 9, "an object of JSON"),
            ("[[step]]\ndo = \"load.check\"\n", 8, "vm1 has no load here"),
            ("[[step]]\ndo = \"load.start\"\nstress_cpu = 99\n", 9, "stress_cpu = \"99\" is not"),
            ("[[step]]\ndo = \"migrate\"\nto = \"host1\"\n", 9, "vm1 is on host1 already"),
            ("[[step]]\ndo = \"migrate\"\nfrom = \"host2\"\n", 9, "vm1 is on host1 here"),
            ("[[step]]\ndo = \"migrate\"\nmig_protocol = \"pigeon\"\n", 9, "mesh (or unix)"),
            ("[[step]]\ndo = \"migrate\"\nmem = \"1G\"\n", 9, "migrate has no key \"mem\""),
            ("[[step]]\ndo = \"migrate\"\nat = { later = \"cancel\" }\n", 9, "at = \"later cancel\" is not"),
            ("[[step]]\ndo = \"migrate\"\nexpect = { result = \"cancelled\" }\n", 9, "nothing cancels it"),
            (
                "[[step]]\ndo = \"migrate\"\nat = \"setup cancel\"\nexpect = { total_ms = \"< 9\" }\n",
                8,
                "does not complete has no total_ms",
            ),
            ("[[step]]\ndo = \"migrate\"\nblock = \"end\"\n", 9, "expect = { result = \"failed\" }"),
            ("[[step]]\ndo = \"migrate\"\nblock = \"3s\"\nmig_protocol = \"file\"\n", 9, "is not cut off"),
            ("[[step]]\ndo = \"migrate\"\ngoal = { finish = \"5m\" }\n", 9, "a goal has no key \"finish\""),
            ("[[step]]\ndo = \"migrate\"\ngoal = { downtime = \"soon\" }\n", 9, "is no time such as"),
            ("[[step]]\ndo = \"migrate\"\ngoal = { finish_within = \"5s\" }\n", 9, "10s at least"),
            ("[[step]]\ndo = \"migrate\"\ngoal = { on_stall = \"wait\" }\n", 9, "not cancel, postcopy or go_on"),
            (
                "[[step]]\ndo = \"migrate\"\ngoal = { aim = \"min_time\", finish_within = \"5m\" }\n",
                9,
                "aim and finish_within say the same",
            ),
            ("[[step]]\ndo = \"migrate\"\ngoal = \"fast\"\n", 9, "goal = \"fast\" is not"),
            ("[[step]]\nfault = \"net.cut\"\nplane = \"disk\"\n", 9, "is not migration, bulk, raft"),
            ("[[step]]\nfault = \"net.cut\"\nplane = [\"bulk\", \"raft\"]\n", 8, "hosts without raft decide nothing"),
        ] {
            let checked = steps(&format!("{UP}{text}"));
            let found = checked.mistakes.first().unwrap_or_else(|| panic!("{text} is right: {:?}", checked.steps));
            assert!(found.message.contains(says) && found.line == line, "{text}: {found:?}");
        }
        let head = |from: &str, to: &str| check(&format!("{}{UP}", HEAD.replace(from, to)), &[], 0).mistakes;
        for (from, to, line, says) in [
            ("name = \"t\"", "name = \"uptime\"", 0, "a built-in scenario is called \"uptime\""),
            ("name = \"t\"", "name = \"migration_multi_host\"", 0, "needs another name"),
            ("name = \"t\"", "name = \"T\"", 2, "the name of a scenario"),
            ("name = \"t\"\n", "", 0, "the file has no \"name\""),
            ("v1", "v9", 1, "the schema is"),
            ("hosts = 2", "hosts = 99", 4, "hosts is a number"),
            ("hosts = 2", "hosts = [3, 2]", 4, "hosts is a number"),
        ] {
            let found = head(from, to);
            assert!(found.iter().any(|m| m.line == line && m.message.contains(says)), "{to}: {found:?}");
        }
        assert!(check(&format!("{HEAD}{UP}"), &[], 3).mistakes[0].message.contains("takes 2 to 2 hosts"));
        let typed = check(&format!("{HEAD}{UP}"), &[("mem", "lots")], 2).mistakes;
        assert!(typed[0].line == 0 && typed[0].message.contains("(-p) is not a size"), "{typed:?}");
        // Several at once.
        assert_eq!(steps("[[step]]\ndo = \"x\"\n[[step]]\ndo = \"y\"\n").mistakes.len(), 2);
    }

    #[test]
    fn hosts_that_would_not_meet_are_found() {
        let text = "[params]\nmore = \"no\"\n[[step]]\ndo = \"vm.start\"\n[[step]]\nbarrier = \"b\"\nwhen = \"${more} == yes\"\n\
                    [[step]]\ndo = \"migrate\"\n";
        let text = format!("{HEAD}{text}");
        done(&check(&text, &[("more", "yes")], 2));
        let found = check(&text, &[("more_host2", "yes")], 2).mistakes;
        assert!(found[0].line == 10 || found[0].line == 13, "{found:?}");
        assert!(found[0].message.starts_with("the hosts would not meet: to host1"), "{found:?}");
        // What concerns no other host may differ.
        done(&check(&text.replace("barrier = \"b\"", "log = \"b\""), &[("more_host2", "yes")], 2));
        let tags = "[[step]]\nbarrier = \"b\"\n[[step]]\nbarrier = \"b\"\non = [\"host1\", \"host2\"]\n";
        let text = format!("{}{tags}", HEAD.replace("hosts = 2", "hosts = 3"));
        assert!(check(&text, &[], 0).mistakes[0].message.contains("other hosts meet under this tag"));
    }

    #[test]
    fn the_scenario_of_the_repository_is_right() {
        let text = include_str!("../../../../tests/scenarios/cut.scenario");
        let checked = check(text, &[("rounds", "2")], 0);
        assert_eq!(done(&checked).iter().filter(|step| step.contains(" moves ")).count(), 6);
        assert!(done(&checked).contains(&"vm1 runs on host2 and answers on every way in"));
        assert_eq!(checked.timeout_ms, Some(900_000));
    }
}
