//! From hosts and parameter sets to the cases of a plan. Pure.

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    job::{CASES_MAX, PlannedCase, ScenarioInfo},
    params::{Origin, Params},
};

use crate::{args::GroupHosts, suggest, ui::report::usage};

/// Most hosts of one run.
const HOSTS_MAX: usize = 1000;

/// One parameter set with its name. Without configuration files there is one, called like the scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub params: Params,
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
    let mut seen = std::collections::BTreeSet::new();
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

/// Every variant on every group, `repeat` times; what is left over is one case that cannot run.
///
/// # Errors
/// There are no variants, or too many cases.
pub fn cases(scenario: &str, variants: &[Variant], groups: &Groups, repeat: u32) -> Result<Vec<PlannedCase>, Report> {
    if variants.is_empty() {
        return Err(Report::new(ErrorCode::NoVariants, "nothing is left to run"));
    }
    let repeat = usize::try_from(repeat.max(1)).unwrap_or(usize::MAX);
    let number = variants.len().saturating_mul(groups.whole.len()).saturating_mul(repeat);
    if number.saturating_add(usize::from(!groups.rest.is_empty())) > CASES_MAX {
        return Err(Report::new(ErrorCode::TooLarge, format!("{number} cases are more than a job takes"))
            .with("bound", CASES_MAX.to_string())
            .with(
                "made of",
                format!("{} variants × {} groups of hosts × {repeat}", variants.len(), groups.whole.len()),
            ));
    }
    let mut cases = Vec::with_capacity(number + 1);
    for round in 1..=repeat {
        for variant in variants {
            for hosts in &groups.whole {
                let name = if repeat > 1 { format!("{}#{round}", variant.name) } else { variant.name.clone() };
                cases.push(PlannedCase { name, hosts: hosts.clone(), leftover: false, params: variant.params.clone() });
            }
        }
    }
    if !groups.rest.is_empty() {
        let (name, hosts) = (scenario.to_owned(), groups.rest.clone());
        cases.push(PlannedCase { name, hosts, leftover: true, params: Params::new() });
    }
    Ok(cases)
}

/// The parameters given with `-p`; the last one of a key wins.
pub fn params(pairs: &[(String, String)]) -> Params {
    let mut params = Params::new();
    for (key, value) in pairs {
        params.set(key.as_str(), value.as_str(), Origin { file: "-p".into(), line: 0 });
    }
    params
}

/// Keys of `-p` that the scenario does not list. One that is close to a listed key is a mistake and refused; others may
/// be meant for QEMU or the guest and are returned, for a warning. `mem_vm1` is `mem` of one VM.
///
/// # Errors
/// A key is a misspelt one.
pub fn check_keys(pairs: &[(String, String)], scenario: &ScenarioInfo) -> Result<Vec<String>, Report> {
    let known: Vec<&str> = scenario.params.iter().map(|(key, ..)| key.as_str()).collect();
    let mut strange = Vec::new();
    for (key, value) in pairs {
        let suffixed = |known: &&&str| key.strip_prefix(**known).is_some_and(|rest| rest.starts_with('_'));
        if known.is_empty() || known.contains(&key.as_str()) || known.iter().any(|known| suffixed(&known)) {
            continue;
        }
        if let Some(close) = suggest::close(key, known.iter().copied()).first() {
            return Err(Report::new(ErrorCode::BadParameter, format!("{} has no parameter {key:?}", scenario.name))
                .with("given", format!("-p {key}={value}"))
                .with("parameters", known.join(" "))
                .help(format!("did you mean {close}?"))
                .help(format!("vtctl scenario show {}", scenario.name)));
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
        ScenarioInfo { name: "s".into(), summary: String::new(), hosts, params: params.into() }
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

    #[test]
    fn every_variant_runs_on_every_group_and_the_rest_is_one_leftover() {
        let groups = Groups { whole: vec![names("a b"), names("c d")], rest: names("e") };
        let variants = ["x", "y"].map(|name| Variant { name: name.into(), params: Params::new() });
        let made = cases("s", &variants, &groups, 2).unwrap();
        let text: Vec<String> = made
            .iter()
            .map(|case| format!("{}@{}{}", case.name, join(&case.hosts, "+"), if case.leftover { "!" } else { "" }))
            .collect();
        assert_eq!(
            text,
            ["x#1@a+b", "x#1@c+d", "y#1@a+b", "y#1@c+d", "x#2@a+b", "x#2@c+d", "y#2@a+b", "y#2@c+d", "s@e!"]
        );
        assert_eq!(cases("s", &variants, &groups, 5000).unwrap_err().code, ErrorCode::TooLarge);
        assert_eq!(cases("s", &[], &groups, 1).unwrap_err().code, ErrorCode::NoVariants);
    }

    #[test]
    fn a_misspelt_parameter_is_refused_and_a_strange_one_is_named() {
        let check = |key: &str| check_keys(&[(key.to_owned(), "1".to_owned())], &scenario(2));
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
