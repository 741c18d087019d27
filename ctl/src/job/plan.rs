//! From hosts and parameter sets to the cases of a plan. Pure.

use std::collections::{BTreeMap, BTreeSet};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    job::{CASES_MAX, Plan, PlannedCase, ScenarioInfo, shapes_a_run},
    params::{COMMAND_LINE, Origin, Params},
};

use crate::{args::GroupHosts, suggest, ui::report::usage};

/// Most hosts of one run.
const HOSTS_MAX: usize = 1000;

/// One parameter set that is run: a variant, or what was typed.
#[derive(Debug, Clone, PartialEq)]
pub struct Run<'a> {
    /// What its cases are called.
    pub name: &'a str,
    /// Its number in the matrix, where there is one.
    pub variant: Option<u32>,
    /// Its parameters, where there is no matrix.
    pub params: Params,
    /// The hosts it runs on; none where there is no scenario for it, and its one case is skipped.
    pub groups: Option<&'a Groups>,
    /// Which runs in front of it have to pass first.
    pub parents: &'a [u32],
}

/// Hosts cut into groups, each for one case at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// Whole groups, in order.
    pub whole: Vec<Vec<Name>>,
    /// What is left over.
    pub rest: Vec<Name>,
}

/// The hosts given with `-m`: lists with commas, in order.
///
/// # Errors
/// A word is no host name, a host is named twice, or too many are named.
pub fn hosts_of_flags(lists: &[String]) -> Result<Vec<Name>, Report> {
    let words = lists.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|word| !word.is_empty());
    let names = words.map(|word| {
        word.parse::<Name>().map_err(|error| {
            usage(format!("-m names {word:?}, which is no host name")).with("reason", error.to_string())
        })
    });
    unique(names.collect::<Result<_, _>>()?)
}

/// The hosts of a file given with `-M`: one a line; empty lines and those that begin with `#` are skipped.
///
/// # Errors
/// A line is no host name; the message names file and line.
pub fn hosts_of_file(file: &str, text: &str) -> Result<Vec<Name>, Report> {
    let mut names = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let word = line.trim();
        if word.is_empty() || word.starts_with('#') {
            continue;
        }
        let name = word.parse::<Name>().map_err(|error| {
            let shown: String = word.chars().filter(|c| !c.is_control()).take(60).collect();
            Report::new(ErrorCode::BadHostsFile, format!("{file}:{} is no host name", number + 1))
                .with("line", shown)
                .with("reason", error.to_string())
        })?;
        names.push(name);
    }
    unique(names)
}

/// Checks that no host stands twice in the hosts of a run.
///
/// # Errors
/// One does, or there are too many.
pub fn unique(names: Vec<Name>) -> Result<Vec<Name>, Report> {
    if names.len() > HOSTS_MAX {
        return Err(Report::new(ErrorCode::TooLarge, format!("{} hosts are more than a run takes", names.len()))
            .with("bound", HOSTS_MAX.to_string()));
    }
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(twice) => Err(usage(format!("host {twice} is named twice")).with("hosts", join(&names, ","))),
        None => Ok(names),
    }
}

/// Cuts the hosts into groups.
///
/// # Errors
/// There are not enough of them for one group, or a group cannot hold the scenario.
pub fn group(hosts: &[Name], how: GroupHosts, scenario: &ScenarioInfo) -> Result<Groups, Report> {
    let wanted = usize::try_from(scenario.hosts.max(1)).unwrap_or(usize::MAX);
    let size = match how {
        GroupHosts::Auto => wanted,
        GroupHosts::All => hosts.len(),
        GroupHosts::Of(n) => usize::try_from(n).unwrap_or(usize::MAX),
    };
    if hosts.len() < wanted || size < wanted {
        let given = if hosts.is_empty() { "none".to_owned() } else { join(hosts, ",") };
        let example: Vec<String> = (1..=wanted.min(4)).map(|n| format!("host{n}")).collect();
        let mut report = Report::new(
            ErrorCode::TooFewHosts,
            format!("{} needs {}", scenario.name, crate::ui::text::count(wanted, "host")),
        )
        .with("given", given);
        if size < wanted && hosts.len() >= wanted {
            report = report.with("groups", format!("of {size}, by --group-hosts"));
        }
        return Err(report
            .help(format!("vtctl run {} -m {}", scenario.name, example.join(",")))
            .help("vtctl host list"));
    }
    let mut chunks = hosts.chunks_exact(size);
    let whole = chunks.by_ref().map(<[Name]>::to_vec).collect();
    Ok(Groups { whole, rest: chunks.remainder().to_vec() })
}

/// Every run on every group of its hosts, `repeat` times; hosts that no run uses are one case that cannot run, called
/// `leftover`.
///
/// A case waits for those cases of its parents, of the same round, that are on its hosts.
///
/// # Errors
/// There is nothing to run, or too much.
pub fn cases(runs: &[Run<'_>], hosts: &[Name], leftover: &str, repeat: u32) -> Result<Vec<PlannedCase>, Report> {
    if runs.is_empty() {
        return Err(Report::new(ErrorCode::NoVariants, "nothing is left to run"));
    }
    let repeat = usize::try_from(repeat.max(1)).unwrap_or(usize::MAX);
    let groups_of = |run: &Run<'_>| run.groups.map_or(1, |groups| groups.whole.len());
    let number = runs.iter().map(groups_of).fold(0, usize::saturating_add).saturating_mul(repeat);
    let used: BTreeSet<&Name> =
        runs.iter().filter_map(|run| run.groups).flat_map(|groups| groups.whole.iter().flatten()).collect();
    let unused = hosts.iter().filter(|host| !used.contains(host));
    let rest: Vec<Name> = if used.is_empty() { Vec::new() } else { unused.cloned().collect() };
    if number.saturating_add(usize::from(!rest.is_empty())) > CASES_MAX {
        let groups = runs.iter().map(groups_of).max().unwrap_or(0);
        return Err(Report::new(ErrorCode::TooLarge, format!("{number} cases are more than a job takes"))
            .with("bound", CASES_MAX.to_string())
            .with("made of", format!("{} variants × {groups} groups of hosts × {repeat}", runs.len()))
            .help("narrow it with --only and --no, give fewer hosts, or repeat it less often"));
    }
    let mut cases: Vec<PlannedCase> = Vec::with_capacity(number + 1);
    for round in 1..=repeat {
        // Where the cases of each run of this round begin.
        let mut begins: Vec<usize> = Vec::with_capacity(runs.len() + 1);
        for run in runs {
            begins.push(cases.len());
            let nowhere = [Vec::new()];
            for hosts in run.groups.map_or(&nowhere[..], |groups| &groups.whole) {
                let name = if repeat > 1 { format!("{}#{round}", run.name) } else { run.name.to_owned() };
                let mut after = Vec::new();
                for parent in run.parents.iter().filter_map(|parent| usize::try_from(*parent).ok()) {
                    let (Some(from), Some(to)) = (begins.get(parent), begins.get(parent + 1)) else { continue };
                    let on_its_hosts = |case: &PlannedCase| {
                        case.hosts.is_empty() || hosts.is_empty() || case.hosts.iter().any(|host| hosts.contains(host))
                    };
                    let theirs = (*from..*to).filter(|place| on_its_hosts(&cases[*place]));
                    after.extend(theirs.filter_map(|place| u32::try_from(place + 1).ok()));
                }
                let (hosts, params, variant) = (hosts.clone(), run.params.clone(), run.variant);
                cases.push(PlannedCase { name, hosts, leftover: false, params, variant, after });
            }
        }
    }
    if !rest.is_empty() {
        let name = leftover.to_owned();
        cases.push(PlannedCase { name, hosts: rest, leftover: true, ..PlannedCase::default() });
    }
    Ok(cases)
}

/// The cases of a plan that are wanted, by index, in a plan of their own with the same matrix. What is left out is not
/// waited for.
pub fn again(plan: Plan, wanted: impl Fn(u32) -> bool) -> Plan {
    let mut places = BTreeMap::new();
    let mut cases: Vec<PlannedCase> = Vec::new();
    for (index, mut case) in (1..).zip(plan.cases) {
        if wanted(index) {
            case.after = case.after.iter().filter_map(|before| places.get(before).copied()).collect();
            cases.push(case);
            places.insert(index, u32::try_from(cases.len()).unwrap_or(u32::MAX));
        }
    }
    Plan { cases, ..plan }
}

/// The parameters given with `-p`; the last one of a key wins.
pub fn params(pairs: &[(String, String)]) -> Params {
    let mut params = Params::new();
    for (key, value) in pairs {
        params.set(key.as_str(), value.as_str(), Origin { file: COMMAND_LINE.into(), line: 0 });
    }
    params
}

/// Keys of `-p` that none of the scenarios lists. One that is close to a listed key is a mistake and refused; others may
/// be meant for QEMU, the guest or a configuration and are returned. `mem_vm1` is `mem` of one VM.
///
/// # Errors
/// A key is a misspelt one.
pub fn check_keys(pairs: &[(String, String)], scenarios: &[&ScenarioInfo]) -> Result<Vec<String>, Report> {
    let known: BTreeSet<&str> =
        scenarios.iter().flat_map(|scenario| &scenario.params).map(|(key, ..)| key.as_str()).collect();
    let mut strange = Vec::new();
    for (key, value) in pairs {
        if known.is_empty() || scenarios.iter().any(|scenario| scenario.reads(key)) || shapes_a_run(key) {
            continue;
        }
        if let Some(close) = suggest::close(key, known.iter().copied()).first() {
            let name = scenarios.iter().map(|scenario| scenario.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Report::new(ErrorCode::BadParameter, format!("{name} has no parameter {key:?}"))
                .with("given", format!("-p {key}={value}"))
                .with("parameters", known.iter().copied().collect::<Vec<_>>().join(" "))
                .help(format!("did you mean {close}?"))
                .help(format!("vtctl scenario show {}", scenarios[0].name)));
        }
        strange.push(key.clone());
    }
    Ok(strange)
}

fn join(names: &[Name], with: &str) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(with)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<Name> {
        text.split_whitespace().map(|word| word.parse().unwrap()).collect()
    }

    fn scenario(hosts: u32) -> ScenarioInfo {
        let params = ["mem", "smp", "migrate_count"].map(|key| (key.to_owned(), String::new(), String::new()));
        let (types, also_reads) = (vec![], vec![]);
        let (summary, about) = (String::new(), String::new());
        ScenarioInfo { name: "s".into(), summary, hosts, params: params.into(), types, also_reads, about }
    }

    fn shown(groups: &Groups) -> String {
        let whole: Vec<String> = groups.whole.iter().map(|group| join(group, ",")).collect();
        format!("{} | {}", whole.join(" "), join(&groups.rest, ","))
    }

    #[test]
    fn hosts_come_from_flags_and_files_in_order() {
        let flags = ["a,b".to_owned(), " c , ,d".to_owned()];
        assert_eq!(hosts_of_flags(&flags).unwrap(), names("a b c d"));
        assert_eq!(hosts_of_flags(&["a,b".into(), "a".into()]).unwrap_err().code, ErrorCode::Usage);
        assert_eq!(hosts_of_flags(&["a,B!".into()]).unwrap_err().code, ErrorCode::Usage);
        assert_eq!(hosts_of_file("f", "# lab\n\nhost1\r\n  host2  \n").unwrap(), names("host1 host2"));
        let report = hosts_of_file("f", "host1\n../etc\x1b[2J\n").unwrap_err();
        assert_eq!((report.code, report.title.as_str()), (ErrorCode::BadHostsFile, "f:2 is no host name"));
        assert!(!report.evidence[0].1.contains('\x1b'));
    }

    #[test]
    fn hosts_are_cut_into_groups_in_order() {
        let hosts = names("a b c d e");
        let of = |how, n| group(&hosts, how, &scenario(n)).map(|groups| shown(&groups));
        assert_eq!(of(GroupHosts::Auto, 2).unwrap(), "a,b c,d | e");
        assert_eq!(of(GroupHosts::Auto, 1).unwrap(), "a b c d e | ");
        assert_eq!(of(GroupHosts::All, 2).unwrap(), "a,b,c,d,e | ");
        assert_eq!(of(GroupHosts::Of(3), 2).unwrap(), "a,b,c | d,e");
        for (how, n) in [(GroupHosts::Auto, 6), (GroupHosts::Of(1), 2), (GroupHosts::All, 9)] {
            assert_eq!(of(how, n).unwrap_err().code, ErrorCode::TooFewHosts, "{how:?} {n}");
        }
        let none = group(&[], GroupHosts::Auto, &scenario(2)).unwrap_err();
        assert_eq!(none.title, "s needs 2 hosts");
        assert_eq!(none.help[0], "vtctl run s -m host1,host2");
    }

    fn run<'a>(name: &'a str, groups: Option<&'a Groups>, parents: &'a [u32]) -> Run<'a> {
        Run { name, variant: None, params: Params::new(), groups, parents }
    }

    fn text(cases: &[PlannedCase]) -> Vec<String> {
        let line = |case: &PlannedCase| {
            let after: String = case.after.iter().map(|index| format!(">{index}")).collect();
            format!("{}@{}{}{after}", case.name, join(&case.hosts, "+"), if case.leftover { "!" } else { "" })
        };
        cases.iter().map(line).collect()
    }

    #[test]
    fn every_variant_runs_on_every_group_and_the_rest_is_one_leftover() {
        let groups = Groups { whole: vec![names("a b"), names("c d")], rest: names("e") };
        let runs = ["x", "y"].map(|name| run(name, Some(&groups), &[]));
        let hosts = names("a b c d e");
        assert_eq!(
            text(&cases(&runs, &hosts, "s", 2).unwrap()),
            ["x#1@a+b", "x#1@c+d", "y#1@a+b", "y#1@c+d", "x#2@a+b", "x#2@c+d", "y#2@a+b", "y#2@c+d", "s@e!"]
        );
        assert_eq!(cases(&runs, &hosts, "s", 5000).unwrap_err().code, ErrorCode::TooLarge);
        assert_eq!(cases(&[], &hosts, "s", 1).unwrap_err().code, ErrorCode::NoVariants);
    }

    #[test]
    fn a_case_waits_for_its_parents_on_its_own_hosts_in_its_own_round() {
        let pairs = Groups { whole: vec![names("a b"), names("c d")], rest: vec![] };
        let each = Groups { whole: ["a", "b", "c", "d"].map(names).into(), rest: vec![] };
        let runs = [
            run("install", Some(&each), &[]),
            run("unknown", None, &[]),
            run("boot", Some(&pairs), &[0]),
            run("move", Some(&pairs), &[1, 2]),
            run("other", None, &[2]),
        ];
        let made = text(&cases(&runs, &names("a b c d"), "s", 1).unwrap());
        assert_eq!(
            made,
            [
                "install@a",
                "install@b",
                "install@c",
                "install@d",
                "unknown@",
                "boot@a+b>1>2",
                "boot@c+d>3>4",
                "move@a+b>5>6",
                "move@c+d>5>7",
                "other@>6>7",
            ]
        );
        let twice = text(&cases(&[run("x", Some(&pairs), &[]), run("y", Some(&pairs), &[0])], &[], "s", 2).unwrap());
        assert_eq!(twice[6..], ["y#2@a+b>5", "y#2@c+d>6"]);
    }

    #[test]
    fn a_plan_of_some_cases_waits_for_those_only() {
        let case = |name: &str, after: &[u32]| PlannedCase {
            name: name.into(),
            after: after.into(),
            ..PlannedCase::default()
        };
        let cases = vec![case("a", &[]), case("b", &[]), case("c", &[1, 2]), case("d", &[3])];
        let plan = Plan { scenario: "s".into(), cases, ..Plan::default() };
        assert_eq!(again(plan.clone(), |_| true), plan);
        assert_eq!(text(&again(plan, |index| index != 1).cases), ["b@", "c@>1", "d@>2"]);
    }

    #[test]
    fn a_misspelt_parameter_is_refused_and_a_strange_one_is_named() {
        let check = |key: &str| check_keys(&[(key.to_owned(), "1".to_owned())], &[&scenario(2)]);
        assert_eq!(check("mem").unwrap(), Vec::<String>::new());
        assert_eq!(check("mem_vm1").unwrap(), Vec::<String>::new());
        assert_eq!(check("my_own_setting").unwrap(), ["my_own_setting"]);
        let report = check("migrate_cuont").unwrap_err();
        assert_eq!((report.code, report.help[0].as_str()), (ErrorCode::BadParameter, "did you mean migrate_count?"));
    }

    #[test]
    fn the_last_parameter_of_a_key_wins_and_knows_where_it_is_from() {
        let params = params(&[("mem".into(), "1".into()), ("mem".into(), "2".into())]);
        assert_eq!(params.text("mem"), Some("2"));
        assert_eq!(params.get("mem").unwrap().origin.to_string(), "-p");
    }
}
