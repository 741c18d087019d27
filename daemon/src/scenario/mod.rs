//! The built-in scenarios: what a party does, over the party API alone.
//!
//! A scenario is a program that every party of an attempt runs, told which host it is. It starts nothing itself: VMs,
//! migrations and storage belong to the daemon. Parameters are checked before anything starts, by the same code that
//! reads them when the scenario runs.

mod checks;
mod multihost_migration;
mod settings;
mod uptime;

use std::{future::Future, pin::Pin};

use vt_protocol::{
    error::{ErrorCode, Report},
    job::{Plan, ScenarioInfo},
    params::{ParamError, Params},
    party::Failure,
};

use crate::{nearest::nearest, party::Party};

/// What a scenario's run gives: a remark for a pass, or why it did not pass.
type Run<'a> = Pin<Box<dyn Future<Output = Result<Option<String>, Failure>> + Send + 'a>>;

/// A parameter as it is documented: key, default, meaning.
type Documented = (&'static str, &'static str, &'static str);

/// A built-in scenario.
#[derive(Debug)]
pub struct Scenario {
    name: &'static str,
    summary: &'static str,
    /// Fewest and most hosts of a case.
    hosts: (u32, u32),
    params: &'static [Documented],
    /// Other spellings of parameters, not listed.
    aliases: &'static [&'static str],
    check: fn(&Params) -> Result<(), ParamError>,
    run: fn(&Party) -> Run<'_>,
}

static ALL: &[Scenario] = &[multihost_migration::SCENARIO, uptime::SCENARIO];

/// The scenarios, in order of name.
pub fn list() -> Vec<ScenarioInfo> {
    ALL.iter().map(Scenario::info).collect()
}

/// The scenario of that name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// Checks a plan before anything starts: the scenario, the number of hosts, every parameter of every case.
///
/// # Errors
/// The first mistake, with key, value and place for a parameter.
pub fn validate(plan: &Plan) -> Result<(), Report> {
    let Some(scenario) = find(&plan.scenario) else {
        let mut report = Report::new(ErrorCode::UnknownScenario, format!("there is no scenario {:?}", plan.scenario));
        if let Some(near) = nearest(&plan.scenario, ALL.iter().map(|s| s.name)) {
            report = report.help(format!("did you mean `{near}`?"));
        }
        return Err(report.help("vtctl scenario list"));
    };
    if plan.cases.is_empty() {
        return Err(Report::new(ErrorCode::NoVariants, "the plan has no case"));
    }
    for case in &plan.cases {
        scenario.check(&case.params).map_err(|report| report.with("case", &case.name))?;
        if !case.leftover {
            scenario.check_hosts(case.hosts.len()).map_err(|report| report.with("case", &case.name))?;
        }
    }
    Ok(())
}

impl Scenario {
    /// As it is listed.
    pub fn info(&self) -> ScenarioInfo {
        let text = |(key, default, meaning): &Documented| ((*key).into(), (*default).into(), (*meaning).into());
        ScenarioInfo {
            name: self.name.to_owned(),
            summary: self.summary.to_owned(),
            hosts: self.hosts.0,
            params: self.params.iter().map(text).collect(),
        }
    }

    /// Runs one party of it to its end.
    ///
    /// # Errors
    /// Why it did not pass.
    pub async fn run(&self, party: &Party) -> Result<Option<String>, Failure> {
        (self.run)(party).await
    }

    fn check_hosts(&self, hosts: usize) -> Result<(), Report> {
        let (least, most) = self.hosts;
        let given = u32::try_from(hosts).unwrap_or(u32::MAX);
        if given < least {
            let title = format!("{} takes {least} hosts, the case has {hosts}", self.name);
            return Err(Report::new(ErrorCode::TooFewHosts, title));
        }
        if given > most {
            let title = format!("{} takes at most {most} host(s), the case has {hosts}", self.name);
            return Err(Report::new(ErrorCode::Usage, title));
        }
        Ok(())
    }

    fn check(&self, params: &Params) -> Result<(), Report> {
        // A configuration file sets keys for every scenario there is; a key on the command line is meant for this one.
        for (key, param) in params.iter().filter(|(_, param)| param.origin.file == "-p") {
            // `mem_vm1` is `mem` for vm1.
            let stem = key.strip_suffix("_vm1").unwrap_or(key);
            let known = || self.params.iter().map(|(key, ..)| *key).chain(self.aliases.iter().copied());
            if known().all(|known| known != stem) {
                let mut report =
                    Report::new(ErrorCode::BadParameter, format!("{} has no parameter {key:?}", self.name))
                        .with("parameter", key)
                        .with("value", &param.value)
                        .with("set at", param.origin.to_string());
                if let Some(near) = nearest(stem, known()) {
                    report = report.help(format!("did you mean `-p {near}={}`?", param.value));
                }
                return Err(report.help(format!("vtctl scenario show {}", self.name)));
            }
        }
        (self.check)(params).map_err(|error| bad(&error, self.name))
    }
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
    use vt_protocol::{job::PlannedCase, params::Origin};

    use super::*;

    fn plan(scenario: &str, hosts: usize, params: &[(&str, &str)]) -> Plan {
        let mut all = Params::new();
        for (key, value) in params {
            all.set(*key, *value, Origin { file: "-p".into(), line: 0 });
        }
        let hosts = (1..=hosts).map(|i| format!("host{i}").parse().unwrap()).collect();
        Plan {
            scenario: scenario.into(),
            cases: vec![PlannedCase { name: scenario.into(), hosts, leftover: false, params: all }],
            case_timeout_ms: 1000,
            strict_hosts: false,
            user: "me".into(),
            note: None,
            keep: false,
        }
    }

    #[test]
    fn good_plans_are_taken() {
        for (scenario, hosts, params) in [
            ("multihost_migration", 2, &[][..]),
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
        let mut plan = plan("uptime", 1, &[]);
        plan.cases[0].params.set("cdrom_cd1", "winutils.iso", Origin { file: "base.cfg".into(), line: 7 });
        validate(&plan).unwrap();
    }

    #[test]
    fn documented_defaults_are_the_values_used() {
        for scenario in ALL {
            let mut params = Params::new();
            for (key, default, meaning) in scenario.params {
                assert!(!meaning.is_empty(), "{key}");
                if !default.is_empty() {
                    params.set(*key, *default, Origin { file: "-p".into(), line: 0 });
                }
            }
            scenario.check(&params).unwrap();
        }
        let defaults = settings::Settings::read(&Params::new()).unwrap();
        let mut written = Params::new();
        for (key, default, _) in settings::PARAMS.iter().filter(|(_, default, _)| !default.is_empty()) {
            written.set(*key, *default, Origin { file: "-p".into(), line: 0 });
        }
        assert_eq!(settings::Settings::read(&written).unwrap(), defaults);
    }
}
