//! What a `run` is to run: a scenario with what was typed, or the variants of a configuration, each with the scenario of
//! its `type`.

use std::{collections::BTreeMap, time::Duration};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    job::{Plan, ScenarioInfo},
    params::Params,
};

use super::{run::user, scenario, variants};
use crate::{
    args::{RunArgs, Selection},
    job::{
        matrix::{self, Expanded, Head, Unexpanded},
        plan::{self, Groups, Run},
    },
    ui::{
        Ui,
        report::usage,
        text::{count, safe},
    },
};

/// How long a case may take where nothing else is said.
const CASE_TIMEOUT: Duration = Duration::from_secs(20 * 60);
/// Most names of ignored keys in one line.
const IGNORED_SHOWN: usize = 12;

/// Reads and expands the configuration.
pub(super) fn expand(ui: &Ui, from: &Selection) -> Result<Expanded, Report> {
    let opened = variants::read(ui, from)?;
    matrix::expand(&opened.config, |file, line| opened.files.place(file, line)).map_err(|error| match error {
        Unexpanded::Mistake(mistake) => opened.refused(ui, *mistake),
        Unexpanded::TooLarge(report) => report.with("file", opened.files.main()),
        Unexpanded::Empty => {
            let report = Report::new(ErrorCode::NoVariants, "the filters leave no variant");
            let report = report.with("file", opened.files.main());
            match opened.emptied_by() {
                Ok(Some(line)) => report.with("removed the last ones", variants::removed(&line)),
                _ => report,
            }
            .help("vtctl variants list   (with the same flags, fewer filters)")
        }
    })
}

/// What is to be run, and which scenarios there are for it.
pub(super) struct Chosen<'a> {
    /// The scenario that was named.
    named: Option<&'a ScenarioInfo>,
    expanded: Option<Expanded>,
    scenarios: &'a [ScenarioInfo],
}

impl<'a> Chosen<'a> {
    pub(super) fn new(
        args: &RunArgs,
        expanded: Option<Expanded>,
        scenarios: &'a [ScenarioInfo],
    ) -> Result<Self, Report> {
        let named = args.scenario.as_deref().map(|name| scenario::find(scenarios, name)).transpose()?;
        if expanded.is_none() && !(args.matrix.only.is_empty() && args.matrix.no.is_empty()) {
            return Err(usage("--only and --no choose variants of a configuration, and none is given").help("-c FILE"));
        }
        let untyped = expanded.iter().flat_map(|all| &all.variants).find(|variant| variant.kind.is_none());
        if let (None, Some(variant)) = (named, untyped) {
            return Err(usage("a variant names no `type`, and no SCENARIO is given for it")
                .with("variant", &variant.name)
                .help("vtctl run SCENARIO -c …"));
        }
        Ok(Self { named, expanded, scenarios })
    }

    /// What variants of a type run, as the daemons decide it too.
    fn runs(&self, kind: Option<&str>) -> Option<&'a ScenarioInfo> {
        let named = |kind: &str| self.scenarios.iter().find(|info| info.is_called(kind));
        kind.map_or(self.named, named)
    }

    fn variants(&self) -> &[Head] {
        self.expanded.as_ref().map_or(&[], |all| &all.variants)
    }

    /// The scenarios that will run, each once.
    fn running(&self) -> Vec<&'a ScenarioInfo> {
        let mut running: Vec<&ScenarioInfo> = Vec::new();
        let of_variants = self.variants().iter().filter_map(|variant| self.runs(variant.kind.as_deref()));
        let typed = self.named.filter(|_| self.expanded.is_none());
        for info in of_variants.chain(typed) {
            if !running.iter().any(|known| known.name == info.name) {
                running.push(info);
            }
        }
        running
    }

    /// What the job is called here.
    pub(super) fn label(&self) -> String {
        match self.running()[..] {
            [only] => only.name.clone(),
            [] => "no scenario".to_owned(),
            _ => "mixed".to_owned(),
        }
    }

    /// Checks what was typed and tells what will not be as one may expect.
    pub(super) fn tell(&self, ui: &Ui, args: &RunArgs) -> Result<(), Report> {
        let running = self.running();
        let strange = plan::check_keys(&args.matrix.params, &running)?;
        let Some(expanded) = &self.expanded else {
            for key in strange {
                ui.note(format_args!("note: {} does not list a parameter {key:?}; it is passed on", self.label()));
            }
            return Ok(());
        };
        if let Some(named) = self.named.filter(|named| !running.iter().any(|info| info.name == named.name)) {
            ui.note(format_args!(
                "note: every variant names a `type` of its own; {} runs for none of them",
                named.name
            ));
        }
        for info in running {
            let ignored: Vec<&str> = expanded.ignored(info, |kind| self.runs(kind)).into_iter().collect();
            if let Some(note) = ignored_keys(&ignored) {
                ui.note(format_args!("note: {} does not read {note}", info.name));
            }
        }
        Ok(())
    }

    pub(super) fn plan(&self, args: &RunArgs, hosts: &[Name]) -> Result<Plan, Report> {
        let mut groups: BTreeMap<&str, Groups> = BTreeMap::new();
        for info in self.running() {
            groups.insert(&info.name, plan::group(hosts, args.group_hosts, info)?);
        }
        let groups_of = |info: Option<&ScenarioInfo>| groups.get(info?.name.as_str());
        let of_variants = (0..).zip(self.variants()).map(|(number, head)| {
            let info = self.runs(head.kind.as_deref());
            // A configuration without variant sets has one variant, and that has no name.
            let name = if head.name.is_empty() { info.map_or("", |info| &info.name) } else { &head.name };
            let (params, groups) = (Params::new(), groups_of(info));
            Run { name, variant: Some(number), params, groups, parents: &head.parents }
        });
        let typed = self.named.filter(|_| self.expanded.is_none()).map(|info| Run {
            name: &info.name,
            variant: None,
            params: plan::params(&args.matrix.params),
            groups: groups_of(Some(info)),
            parents: &[],
        });
        let runs: Vec<Run<'_>> = of_variants.chain(typed).collect();
        let named = self.named.map_or("", |info| &info.name);
        Ok(Plan {
            scenario: named.to_owned(),
            cases: plan::cases(&runs, hosts, &self.label(), args.repeat)?,
            case_timeout_ms: u64::try_from(args.case_timeout.unwrap_or(CASE_TIMEOUT).as_millis()).unwrap_or(u64::MAX),
            strict_hosts: args.strict_hosts,
            user: user(),
            note: args.note.clone(),
            keep: args.keep,
            matrix: self.expanded.as_ref().map(|all| all.packed.clone()),
            file: None,
        })
    }
}

/// Keys in a line: as many as fit, and how many there are.
fn ignored_keys(keys: &[&str]) -> Option<String> {
    let shown = keys.iter().take(IGNORED_SHOWN).map(|key| safe(key)).collect::<Vec<_>>().join(" ");
    match keys.len().saturating_sub(IGNORED_SHOWN) {
        _ if keys.is_empty() => None,
        0 => Some(format!("{} of the configuration: {shown}", count(keys.len(), "key"))),
        more => Some(format!("{} keys of the configuration: {shown} and {more} more (job.json has all)", keys.len())),
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::matrix::MatrixBuilder;

    use super::*;
    use crate::args::{self, Command};

    fn args(words: &[&str]) -> RunArgs {
        let line = ["vtctl", "run"].iter().chain(words);
        match args::parse(line).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn names(text: &str) -> Vec<Name> {
        text.split_whitespace().map(|word| word.parse().unwrap()).collect()
    }

    fn scenarios() -> Vec<ScenarioInfo> {
        let info = |name: &str, hosts, kind: &str| ScenarioInfo {
            name: name.into(),
            summary: String::new(),
            hosts,
            params: vec![("mem".into(), String::new(), String::new())],
            types: vec![kind.into()],
            also_reads: vec![],
            about: String::new(),
        };
        vec![info("move", 2, "old_move"), info("boot", 1, "old_boot")]
    }

    /// Variants called after their types; the second one depends on the first.
    fn expanded(kinds: &[Option<&str>]) -> Expanded {
        let head = |(number, kind): (u32, &Option<&str>)| Head {
            name: kind.unwrap_or("plain").into(),
            kind: kind.map(str::to_owned),
            parents: if number == 1 { vec![0] } else { vec![] },
        };
        let packed = MatrixBuilder::new().pack().unwrap();
        Expanded { packed, variants: (0..).zip(kinds).map(head).collect(), keys: BTreeMap::new() }
    }

    fn lines(plan: &Plan) -> Vec<String> {
        let line = |case: &vt_protocol::job::PlannedCase| {
            let hosts = case.hosts.iter().map(Name::as_str).collect::<Vec<_>>().join("+");
            format!("{} v{} on {hosts} after {:?}", case.name, case.variant.unwrap_or(99), case.after)
        };
        plan.cases.iter().map(line).collect()
    }

    #[test]
    fn what_was_typed_is_a_plan_without_a_matrix() {
        let words = "move -m a,b -m c -p mem=1G --strict-hosts --note x --case-timeout 3m --keep";
        let (args, scenarios) = (args(&words.split(' ').collect::<Vec<_>>()), scenarios());
        let plan = Chosen::new(&args, None, &scenarios).unwrap().plan(&args, &names("a b c")).unwrap();
        assert_eq!((plan.cases.len(), plan.strict_hosts, plan.case_timeout_ms), (2, true, 180_000));
        assert_eq!((plan.scenario.as_str(), plan.cases[0].params.text("mem")), ("move", Some("1G")));
        assert!(plan.cases[1].leftover && plan.cases[1].hosts == names("c"));
        assert!(plan.keep && plan.matrix.is_none());
        assert_eq!(plan.note.as_deref(), Some("x"));
        assert!(!plan.user.is_empty());
    }

    #[test]
    fn each_variant_runs_the_scenario_of_its_type_on_as_many_hosts_as_that_takes() {
        let (args, scenarios) = (args(&["move", "-c", "a.cfg", "-m", "a,b"]), scenarios());
        let all = expanded(&[Some("old_boot"), Some("old_move"), Some("floppy"), None]);
        let chosen = Chosen::new(&args, Some(all), &scenarios).unwrap();
        assert_eq!(chosen.label(), "mixed");
        let plan = chosen.plan(&args, &names("a b")).unwrap();
        assert_eq!(
            lines(&plan),
            [
                "old_boot v0 on a after []",
                "old_boot v0 on b after []",
                "old_move v1 on a+b after [1, 2]",
                "floppy v2 on  after []",
                "plain v3 on a+b after []",
            ]
        );
        assert!(plan.matrix.is_some());
    }

    #[test]
    fn a_variant_without_a_type_needs_a_scenario_and_filters_need_a_configuration() {
        let scenarios = scenarios();
        let refused = |words: &[&str], expanded| match Chosen::new(&args(words), expanded, &scenarios) {
            Err(report) => report.title,
            Ok(_) => panic!("{words:?} is taken"),
        };
        let title = refused(&["-c", "a.cfg"], Some(expanded(&[Some("old_boot"), None])));
        assert_eq!(title, "a variant names no `type`, and no SCENARIO is given for it");
        assert!(refused(&["move", "--only", "x"], None).starts_with("--only and --no choose variants"));
        assert_eq!(refused(&["mvoe"], None), "no scenario is called \"mvoe\"");
        assert!(args::parse(["vtctl", "run", "-m", "a,b"]).is_err(), "neither a scenario nor a configuration");
    }

    #[test]
    fn ignored_keys_fit_into_a_line() {
        assert_eq!(ignored_keys(&[]), None);
        assert_eq!(ignored_keys(&["a"]).unwrap(), "1 key of the configuration: a");
        let text = ignored_keys(&["k"; 40]).unwrap();
        assert!(text.starts_with("40 keys") && text.ends_with("k and 28 more (job.json has all)"), "{text}");
    }
}
