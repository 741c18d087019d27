//! What becomes of a plan's cases: which run, which are skipped and why, and what is refused before anything starts.
//!
//! The same code reads parameters here and in the scenario that runs. A variant that asks for another test than the one
//! that would run is skipped, never run as something else.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    job::{CaseFate, Fate, PlannedCase, ScenarioInfo, shapes_a_run},
    params::{COMMAND_LINE, DERIVED, ParamError, Params},
};

use super::{ALL, Scenario, file::ScenarioFile, find, meant, seen_by, settings, transfer};
use crate::{nearest::nearest, plan::OpenPlan};

/// Checks a plan before anything starts: the scenario, the number of hosts, every parameter of every case. Returns for
/// each case why it is skipped, where it is.
///
/// # Errors
/// The first mistake, with key, value and place for a parameter.
pub fn validate(plan: &OpenPlan) -> Result<Vec<Option<Report>>, Report> {
    if plan.plan().cases.is_empty() {
        return Err(Report::new(ErrorCode::NoVariants, "the plan has no case"));
    }
    if plan.has_stray_variants() {
        return Err(stray_variant());
    }
    // A variant is checked once, however often it runs.
    let mut known = BTreeMap::new();
    let of_case = |(case, name): (&PlannedCase, &str)| {
        let key = (case.variant, case.hosts.len(), case.leftover);
        if case.variant.is_some()
            && let Some(fate) = known.get(&key)
        {
            return Ok(Option::clone(fate));
        }
        let fate = fate(plan, case, name).map_err(|report| report.with("case", &case.name))?;
        known.insert(key, fate.clone());
        Ok(fate)
    };
    plan.cases().map(of_case).collect()
}

/// What would become of each case of a plan.
pub fn fates(plan: &OpenPlan) -> Vec<CaseFate> {
    let infos: BTreeMap<&str, ScenarioInfo> = ALL.iter().map(|scenario| (scenario.name, scenario.info())).collect();
    let mut first: HashMap<blake3::Hash, u32> = HashMap::new();
    let stray = plan.has_stray_variants();
    let of_case = |(index, (case, name)): (u32, (&PlannedCase, &str))| {
        let fate = match fate(plan, case, name) {
            _ if stray => Fate::Refused(stray_variant()),
            Err(report) => Fate::Refused(report),
            Ok(Some(report)) => Fate::Skipped(report),
            Ok(None) => {
                let same = infos.get(name).map(|info| *first.entry(what_is_read(info, plan, case)).or_insert(index));
                same.filter(|same| *same != index).map_or(Fate::Runs, Fate::Same)
            }
        };
        CaseFate { scenario: name.to_owned(), fate }
    };
    (1..).zip(plan.cases()).map(of_case).collect()
}

/// A digest of everything that a scenario reads for a case.
fn what_is_read(info: &ScenarioInfo, plan: &OpenPlan, case: &PlannedCase) -> blake3::Hash {
    let params = plan.params(case);
    let read: BTreeMap<&str, &str> =
        params.iter().filter(|(key, _)| info.reads(key)).map(|(key, param)| (key, param.value.trim())).collect();
    let mut hasher = blake3::Hasher::new();
    hasher.update(info.name.as_bytes());
    for (key, value) in read {
        // Keys have no line ends, and how long a value is says where the next one begins.
        hasher.update(format!("\n{key}={}:{value}", value.len()).as_bytes());
    }
    hasher.finalize()
}

fn stray_variant() -> Report {
    Report::new(ErrorCode::BadConfig, "a case of the plan names a variant that the matrix does not have")
}

/// Why a case is skipped, where it is.
fn fate(plan: &OpenPlan, case: &PlannedCase, name: &str) -> Result<Option<Report>, Report> {
    let params = plan.params(case);
    if let Some(skip) = params.get("skip").filter(|skip| case.variant.is_some() && skip.value.trim() == "yes") {
        let report = Report::new(ErrorCode::CannotRunHere, "skip = yes");
        return Ok(Some(report.with("set at", skip.origin.to_string())));
    }
    let typed = params.get("type").filter(|_| case.variant.is_some());
    if let Some(file) = plan.file(name).filter(|_| typed.is_none()) {
        if !case.leftover {
            let info = file.info();
            check_keys(&info, &params)?;
            check_hosts(&info.name, file.hosts(), case.hosts.len())?;
            file.check(&params, &case.hosts)?;
        }
        return Ok(None);
    }
    let found = match typed {
        Some(kind) => meant(kind.value.trim(), |key| params.text(key)),
        None => find(name).ok_or(None),
    };
    let scenario = match found {
        Ok(scenario) => scenario,
        Err(why) => {
            let Some(kind) = typed else { return Err(unknown(name, format!("there is no scenario {name:?}"))) };
            let report = match why {
                Some(why) => Report::new(ErrorCode::CannotRunHere, format!("type = {name}: {why}")),
                None => unknown(name, format!("type = {name} names no scenario")),
            };
            return Ok(Some(report.with("set at", kind.origin.to_string())));
        }
    };
    if case.leftover {
        return Ok(None);
    }
    let seen: Vec<Params> = (0..case.hosts.len()).map(|place| seen_by(&params, &case.hosts, place, "")).collect();
    if case.variant.is_none() {
        scenario.check(&params)?;
        seen.iter().try_for_each(|seen| scenario.check(seen))?;
        check_hosts(scenario.name, scenario.hosts, case.hosts.len())?;
        return scenario.unequal(&case.hosts, &seen).map_or(Ok(None), Err);
    }
    for seen in &seen {
        if let Some(beyond) = scenario.beyond(seen) {
            return Ok(Some(beyond));
        }
        scenario.check(seen)?;
    }
    check_hosts(scenario.name, scenario.hosts, case.hosts.len())?;
    Ok(scenario.unequal(&case.hosts, &seen))
}

/// No scenario is called that; what may have been meant.
fn unknown(name: &str, title: String) -> Report {
    let called = |scenario: &'static Scenario| scenario.types.iter().map(|called| called.kind);
    let names = ALL.iter().flat_map(|scenario| std::iter::once(scenario.name).chain(called(scenario)));
    let report = Report::new(ErrorCode::UnknownScenario, title);
    let report = match nearest(name, names) {
        Some(near) => report.help(format!("did you mean `{near}`?")),
        None => report,
    };
    report.help("vtctl scenario list")
}

/// Keys of a job's configuration that no scenario of its reads, each once, in order. Other keys may be made of them.
pub fn ignored_keys(plan: &OpenPlan) -> BTreeSet<String> {
    let mut ignored = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let infos: BTreeMap<&str, ScenarioInfo> = ALL.iter().map(|scenario| (scenario.name, scenario.info())).collect();
    for (case, name) in plan.cases().filter(|(case, _)| case.variant.is_some_and(|variant| seen.insert(variant))) {
        let of_file = plan.file(name).map(ScenarioFile::info);
        let Some(info) = infos.get(name).or(of_file.as_ref()) else { continue };
        let params = plan.params(case);
        let unread = params.iter().map(|(key, _)| key).filter(|key| !info.reads(key) && !shapes_a_run(key));
        ignored.extend(unread.map(str::to_owned));
    }
    ignored
}

impl Scenario {
    /// What a variant asks for and this scenario does not do, or nobody can.
    pub(super) fn beyond(&self, params: &Params) -> Option<Report> {
        // A network card may be asked for more than the others are.
        let cards = params.objects("nics");
        let found = self.limits().find_map(|limit| {
            let own = cards.iter().map(|nic| format!("{}_{nic}", limit.key));
            let mut said = std::iter::once(limit.key.to_owned()).chain(own).filter_map(|key| params.get(&key));
            Some((limit, said.find(|param| !(limit.takes)(param.value.trim()))?))
        });
        let Some((limit, param)) = found else {
            let (key, rule) = transfer::barred(params).filter(|_| self.moves())?;
            let report = Report::new(ErrorCode::CannotRunHere, format!("not possible so: {rule}"));
            return Some(params.get(key).into_iter().fold(report, |report, param| {
                report.with("parameter", key).with("value", &param.value).with("set at", param.origin.to_string())
            }));
        };
        let title = format!("{} = {}: {} {}", limit.key, param.value.trim(), self.name, limit.does);
        Some(Report::new(ErrorCode::CannotRunHere, title).with("set at", param.origin.to_string()))
    }

    /// What of a VM that moves is to be another on one host than on the first: such a VM cannot go there. `seen` are the
    /// parameters as each host sees them.
    fn unequal(&self, hosts: &[Name], seen: &[Params]) -> Option<Report> {
        let (first, rest) = seen.split_first().filter(|_| self.moves())?;
        let differences = hosts.iter().skip(1).zip(rest).flat_map(|(host, params)| {
            settings::unequal(first, params).into_iter().map(move |(key, here, there)| {
                (host, format!("{key}: {here} on {}, {there} on {host}", hosts[0]), params.get(key))
            })
        });
        let mut report: Option<Report> = None;
        for (host, text, param) in differences {
            let title = format!("{} and {host} do not fit each other: {text}", hosts[0]);
            let with = report.unwrap_or_else(|| Report::new(ErrorCode::Preflight, title)).with("difference", text);
            report = Some(param.into_iter().fold(with, |with, param| with.with("set at", param.origin.to_string())));
        }
        report
    }

    pub(super) fn check(&self, params: &Params) -> Result<(), Report> {
        check_keys(&self.info(), params)?;
        (self.check)(params).map_err(|error| bad(&error, self.name))
    }
}

fn check_hosts(name: &str, (least, most): (u32, u32), hosts: usize) -> Result<(), Report> {
    let given = u32::try_from(hosts).unwrap_or(u32::MAX);
    if given < least {
        let title = format!("{name} takes {least} hosts, the case has {hosts}");
        return Err(Report::new(ErrorCode::TooFewHosts, title));
    }
    if given > most {
        let title = format!("{name} takes at most {most} host(s), the case has {hosts}");
        return Err(Report::new(ErrorCode::Usage, title));
    }
    Ok(())
}

/// Whether what was typed is among a scenario's parameters.
fn check_keys(info: &ScenarioInfo, params: &Params) -> Result<(), Report> {
    // A configuration file sets keys for every scenario there is; a key on the command line is meant for this one,
    // unless a file is there that may use it, and then only what looks misspelt is.
    let mut files = params.iter().map(|(_, param)| param.origin.file.as_str());
    let alone = files.all(|file| matches!(file, COMMAND_LINE | DERIVED));
    let typed = params.iter().filter(|(_, param)| param.origin.file == COMMAND_LINE);
    for (key, param) in typed.filter(|(key, _)| !info.reads(key)) {
        let known = info.params.iter().map(|(key, ..)| key).chain(&info.also_reads);
        let near = nearest(key, known.map(String::as_str));
        if near.is_none() && !alone {
            continue;
        }
        let mut report = Report::new(ErrorCode::BadParameter, format!("{} has no parameter {key:?}", info.name))
            .with("parameter", key)
            .with("value", &param.value)
            .with("set at", param.origin.to_string());
        if let Some(near) = near {
            report = report.help(format!("did you mean `-p {near}={}`?", param.value));
        }
        return Err(report.help(format!("vtctl scenario show {}", info.name)));
    }
    Ok(())
}

fn bad(error: &ParamError, scenario: &str) -> Report {
    Report::new(ErrorCode::BadParameter, format!("parameter {} is not {}", error.key, error.want))
        .with("parameter", &error.key)
        .with("value", &error.value)
        .with("set at", error.origin.to_string())
        .help(format!("vtctl scenario show {scenario}"))
}

#[cfg(test)]
mod tests {
    use vt_protocol::{job::Plan, matrix::MatrixBuilder, params::Origin};

    use super::*;

    fn hosts(hosts: usize) -> Vec<Name> {
        (1..=hosts).map(|i| format!("host{i}").parse().unwrap()).collect()
    }

    fn plan(scenario: &str, on: usize, params: &[(&str, &str)]) -> OpenPlan {
        let mut all = Params::new();
        for (key, value) in params {
            all.set(*key, *value, Origin { file: COMMAND_LINE.into(), line: 0 });
        }
        let case = PlannedCase { name: scenario.into(), hosts: hosts(on), params: all, ..PlannedCase::default() };
        OpenPlan::new(Plan { scenario: scenario.into(), cases: vec![case], ..Plan::default() }).unwrap()
    }

    /// One variant of a configuration, with a key that was typed.
    fn variant(params: &[(&str, &str)], typed: Option<(&str, &str)>) -> OpenPlan {
        let mut matrix = MatrixBuilder::new();
        let files = params.iter().map(|(key, value)| (*key, *value, "base.cfg", 7));
        matrix.add("v", files.chain(typed.map(|(key, value)| (key, value, COMMAND_LINE, 0)))).unwrap();
        let case = PlannedCase { name: "v".into(), hosts: hosts(2), variant: Some(0), ..PlannedCase::default() };
        OpenPlan::new(Plan { cases: vec![case], matrix: Some(matrix.pack().unwrap()), ..Plan::default() }).unwrap()
    }

    #[test]
    fn good_plans_are_taken() {
        for (scenario, hosts, params) in [
            ("multihost_migration", 2, &[][..]),
            ("multihost_migration", 3, &[("vms", "vm1 vm2"), ("vms_start", "spread"), ("mem_vm2", "128M")][..]),
            ("multihost_migration", 5, &[("mem", "512M"), ("smp", "2"), ("migrate_count", "3")][..]),
            ("multihost_migration", 2, &[("capabilities", "auto-converge xbzrle"), ("mig_speed", "1G")][..]),
            ("multihost_migration", 2, &[("capabilitys", "auto-converge"), ("capabilitys_state", "disable")][..]),
            ("uptime", 1, &[("mem", "128")][..]),
        ] {
            validate(&plan(scenario, hosts, params)).unwrap();
        }
    }

    #[test]
    fn every_mistake_is_named_before_anything_starts() {
        use ErrorCode::*;
        for (scenario, hosts, params, code, says) in [
            ("multihost_migratoin", 2, &[][..], UnknownScenario, "multihost_migration"),
            ("multihost_migration", 1, &[][..], TooFewHosts, "takes 2"),
            ("uptime", 2, &[][..], Usage, "at most 1"),
            ("multihost_migration", 2, &[("mem", "lots")][..], BadParameter, "lots"),
            ("multihost_migration", 2, &[("mem", "1")][..], BadParameter, "mem"),
            ("multihost_migration", 2, &[("smp", "0")][..], BadParameter, "smp"),
            ("multihost_migration", 2, &[("migrate_count", "-1")][..], BadParameter, "migrate_count"),
            ("multihost_migration", 2, &[("mig_speed", "fast")][..], BadParameter, "fast"),
            ("multihost_migration", 2, &[("downtime_limit", "1h")][..], BadParameter, "1h"),
            ("multihost_migration", 2, &[("mig_timeout", "0")][..], BadParameter, "mig_timeout"),
            ("multihost_migration", 2, &[("capabilities", "Post Copy!")][..], BadParameter, "Post Copy!"),
            ("multihost_migration", 2, &[("image", "../x")][..], BadParameter, "../x"),
            ("multihost_migration", 2, &[("mem", "64M"), ("mem_probe", "64M")][..], BadParameter, "mem_probe"),
            ("multihost_migration", 2, &[("memm", "512M")][..], BadParameter, "-p mem=512M"),
            ("multihost_migration", 2, &[("mig_protocol", "pigeon")][..], BadParameter, "mesh (or unix)"),
            ("multihost_migration", 2, &[("mig_offline", "maybe")][..], BadParameter, "yes or no"),
            ("multihost_migration", 2, &[("vms", "vm1 vm1")][..], BadParameter, "each once"),
            ("multihost_migration", 2, &[("mem_host2", "lots")][..], BadParameter, "lots"),
            (
                "multihost_migration",
                2,
                &[("mem_host2", "512M")][..],
                Preflight,
                "host1 and host2 do not fit each other: mem: 256 MiB on host1, 512 MiB on host2",
            ),
            (
                "ping_pong",
                3,
                &[("cpu_model", "qemu64"), ("cpu_model_host3", "Nehalem")][..],
                Preflight,
                "cpu_model: qemu64 on host1, Nehalem on host3",
            ),
            ("multihost_migration", 2, &[("vms_start", "anywhere")][..], BadParameter, "together or spread"),
            ("multihost_migration", 2, &[("vms", "vm1 vm2"), ("mem_vm2", "lots")][..], BadParameter, "lots"),
            (
                "multihost_migration",
                2,
                &[("mig_protocol", "exec"), ("capabilities", "multifd")][..],
                BadParameter,
                "several connections",
            ),
            ("uptime", 1, &[("mig_speed", "1G")][..], BadParameter, "mig_speed"),
        ] {
            let report = validate(&plan(scenario, hosts, params)).unwrap_err();
            let text = format!("{report:?}");
            assert_eq!(report.code, code, "{text}");
            assert!(text.contains(says), "{says:?} in {text}");
        }
    }

    #[test]
    fn a_bad_value_names_key_value_and_place() {
        let report = validate(&plan("uptime", 1, &[("smp", "many")])).unwrap_err();
        let value = |key: &str| report.evidence.iter().find(|(k, _)| k == key).unwrap().1.clone();
        assert_eq!((value("parameter"), value("value"), value("set at")), ("smp".into(), "many".into(), "-p".into()));
    }

    #[test]
    fn keys_of_a_configuration_that_are_for_other_scenarios_are_no_mistake() {
        let params = [("type", "multihost_migration"), ("guest_floppy_path", "/dev/fd0"), ("mem_vm1", "128")];
        let plan = variant(&params, None);
        assert_eq!(validate(&plan).unwrap(), [None]);
        assert_eq!(ignored_keys(&plan).into_iter().collect::<Vec<_>>(), ["guest_floppy_path"]);
        // What is typed beside a file may be for the file; what looks misspelt is not.
        assert_eq!(validate(&variant(&params, Some(("second_tray", "open")))).unwrap(), [None]);
        let report = validate(&variant(&params, Some(("mig_sped", "1G")))).unwrap_err();
        assert_eq!(
            (report.code, report.help[0].as_str()),
            (ErrorCode::BadParameter, "did you mean `-p mig_speed=1G`?")
        );
        let report = validate(&variant(&[("type", "migration_multi_host"), ("mem_host2", "lots")], None)).unwrap_err();
        assert!(report.evidence.contains(&("set at".into(), "base.cfg:7".into())), "{report:?}");
    }

    #[test]
    fn a_variant_of_another_test_is_skipped_and_says_why() {
        let old = ("type", "migration_multi_host");
        for (params, code, title, help) in [
            (
                &[("type", "boot_cpu_model")][..],
                ErrorCode::UnknownScenario,
                "type = boot_cpu_model names no scenario",
                "vtctl scenario list",
            ),
            (
                &[("type", "multihost_migratoin")],
                ErrorCode::UnknownScenario,
                "type = multihost_migratoin names no scenario",
                "did you mean `multihost_migration`?",
            ),
            (&[old, ("pre_sub_test", "ioquit")], ErrorCode::CannotRunHere, "pre_sub_test = ioquit: ", ""),
            // Nothing here can stand for it, and why is known.
            (
                &[old, ("pre_sub_test", "steps")],
                ErrorCode::CannotRunHere,
                "type = migration_multi_host: there is no ",
                "",
            ),
            (&[("type", "floppy")], ErrorCode::CannotRunHere, "type = floppy: of the tests of floppy disks only", ""),
            (
                &[("type", "migration_multi_host_cancel"), ("vms", "vm1 vm2")],
                ErrorCode::CannotRunHere,
                "vms = vm1 vm2: cancel has one VM",
                "",
            ),
            // Only one of the hosts is asked for more than is done.
            (
                &[old, ("netdev_extra_params_host2", ",vhost=on,sndbuf=0")],
                ErrorCode::CannotRunHere,
                "netdev_extra_params = ,vhost=on,sndbuf=0: multihost_migration gives network cards no more than vhost",
                "",
            ),
            (
                &[old, ("nics", "nic1 nic2"), ("netdev_extra_params_nic2", ",sndbuf=0")],
                ErrorCode::CannotRunHere,
                "netdev_extra_params = ,sndbuf=0",
                "",
            ),
        ] {
            let skipped = validate(&variant(params, None)).unwrap();
            let report = skipped[0].as_ref().unwrap_or_else(|| panic!("{params:?} runs"));
            assert_eq!(report.code, code, "{report:?}");
            assert!(report.title.starts_with(title), "{report:?}");
            assert_eq!(report.help.first().map_or("", String::as_str), help, "{report:?}");
            assert!(report.evidence.contains(&("set at".into(), "base.cfg:7".into())), "{report:?}");
        }
        // What a host's kernel can do is that host's to say.
        let vhost = [old, ("netdev_extra_params_host1", ",vhost=on"), ("netdev_extra_params_host2", "")];
        assert_eq!(validate(&variant(&vhost, None)).unwrap(), [None]);
        let unequal = [old, ("machine_type", "q35"), ("machine_type_host2", "pc")];
        let skipped = validate(&variant(&unequal, None)).unwrap();
        let report = skipped[0].as_ref().unwrap();
        assert_eq!(report.title, "host1 and host2 do not fit each other: machine: q35 on host1, pc on host2");
        // A rule of the transports bars the variant, and not the plan.
        let skipped = validate(&variant(&[old, ("mig_protocol", "exec"), ("capabilitys", "multifd")], None)).unwrap();
        let report = skipped[0].as_ref().unwrap();
        assert_eq!(report.code, ErrorCode::CannotRunHere);
        assert!(report.title.starts_with("not possible so: multifd needs several connections"), "{report:?}");
        assert_eq!(validate(&variant(&[old, ("vms", "vm1 vm2")], None)).unwrap(), [None]);
        let plain = [old, ("mig_protocol", "tcp"), ("mig_offline", "no"), ("pre_sub_test", ""), ("machine_type", "pc")];
        assert_eq!(validate(&variant(&plain, None)).unwrap(), [None]);
    }
}
