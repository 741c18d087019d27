//! The built-in scenarios: what a party does, over the party API alone.
//!
//! A scenario is a program that every party of an attempt runs, told which host it is. It starts nothing itself: VMs,
//! migrations and storage belong to the daemon. Parameters are checked before anything starts, by the same code that
//! reads them when the scenario runs.
//!
//! A scenario can also come in a file ([`file`]), which travels with the plan.
//!
//! The table [`ALL`] is the one place that says which scenarios there are, how configurations of Avocado-VT call them, and
//! what in such a configuration they can do. What that means for the cases of a plan is in [`fate`].

mod auto_converge;
mod cancel;
mod cdrom;
mod checks;
mod cpuflags;
mod cut;
mod data_plane;
mod downtime;
mod downtime_and_speed;
mod drives;
mod early_boot;
mod fate;
mod figures;
pub mod file;
mod file_transfer;
mod firewall_block;
mod floppy;
mod flow;
mod goals;
mod hearing;
mod hotplug_disk;
mod journey;
pub mod keys;
mod load;
mod migration_matrix;
mod module_reload;
mod multihost_migration;
mod ping_pong;
mod settings;
mod speed_measurement;
mod suspend;
mod timedrift;
mod transfer;
mod trays;
mod uptime;
mod ways;
mod with_reboot;
mod with_stress;
mod xbzrle;

use std::{future::Future, pin::Pin};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    job::ScenarioInfo,
    params::{Origin, ParamError, Params, for_host},
    party::Failure,
};

pub(crate) use self::drives::images_of;
pub use self::fate::{fates, ignored_keys, validate};
use self::file::ScenarioFile;
use crate::party::{Party, our_fault};

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
    /// What is done, what makes it pass, and where Avocado-VT's test of that name does something else than it meant to.
    about: &'static str,
    /// In groups, in the order in which they are listed.
    /// Those of disks and CDs, which every scenario takes, do not stand there.
    params: &'static [&'static [Documented]],
    /// Other spellings of parameters, not listed.
    aliases: &'static [&'static [&'static str]],
    /// What configurations of Avocado-VT say that mean this one.
    types: &'static [Called],
    /// Keys of such configurations that decide what is tested, and what of that this one does.
    limits: &'static [&'static [Limit]],
    check: fn(&Params) -> Result<(), ParamError>,
    run: fn(&Party) -> Run<'_>,
}

/// What a variant of a configuration of Avocado-VT says that means a scenario: a `type`, and values of other keys where the
/// type alone means several.
#[derive(Debug, Clone, Copy)]
struct Called {
    kind: &'static str,
    when: &'static [(&'static str, &'static str)],
}

impl std::fmt::Display for Called {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind)?;
        self.when.iter().try_for_each(|(key, value)| write!(f, " with {key} = {value}"))
    }
}

impl Called {
    /// By its type alone.
    const fn plainly(kind: &'static str) -> Self {
        Self { kind, when: &[] }
    }

    /// How many keys say so; `None` where one says otherwise.
    fn fits<'a>(&self, kind: &str, value: impl Fn(&str) -> Option<&'a str>) -> Option<usize> {
        let says = |(key, wanted): &(&str, &str)| value(key).is_some_and(|found| found.trim() == *wanted);
        (self.kind == kind && self.when.iter().all(says)).then_some(self.when.len())
    }
}

/// A key that decides what is tested. A variant that asks for more than is done here is skipped: its verdict would be
/// that of another test.
#[derive(Debug)]
struct Limit {
    key: &'static str,
    takes: fn(&str) -> bool,
    /// What is done here.
    does: &'static str,
}

static ALL: &[Scenario] = &[
    auto_converge::SCENARIO,
    cancel::SCENARIO,
    cdrom::SCENARIO,
    cpuflags::SCENARIO,
    data_plane::SCENARIO,
    downtime_and_speed::SCENARIO,
    early_boot::SCENARIO,
    file_transfer::SCENARIO,
    firewall_block::SCENARIO,
    floppy::SCENARIO,
    hotplug_disk::SCENARIO,
    migration_matrix::SCENARIO,
    module_reload::SCENARIO,
    multihost_migration::SCENARIO,
    ping_pong::SCENARIO,
    speed_measurement::SCENARIO,
    suspend::SCENARIO,
    timedrift::SCENARIO,
    uptime::SCENARIO,
    with_reboot::SCENARIO,
    with_stress::SCENARIO,
    xbzrle::SCENARIO,
];

/// Tests of such configurations that nothing here can stand for, and why.
static ABSENT: &[(Called, &str)] = &[
    (
        Called::plainly("migration_multi_host_with_kdump"),
        "the built-in guest has no second kernel that could write a dump when the first one crashes",
    ),
    (
        Called { kind: "migration_multi_host", when: &[("pre_sub_test", "steps")] },
        "there is no guest with a graphical desktop (Windows XP with qxl drivers) to be driven by pictures",
    ),
    (Called::plainly("floppy"), "of the tests of floppy disks only those that move a VM are there"),
    (Called::plainly("cdrom"), "of the tests of CD drives only those that move a VM are there"),
];

/// The scenarios, in order of name.
pub fn list() -> Vec<ScenarioInfo> {
    ALL.iter().map(Scenario::info).collect()
}

/// Names of the ways that `ways` of `migration_matrix` means, in their order.
///
/// # Errors
/// There is no such way.
pub fn ways(named: &str) -> Result<Vec<&'static str>, ParamError> {
    let mut params = Params::new();
    params.set("ways", named, Origin { file: "ways".to_owned(), line: 0 });
    Ok(ways::chosen(&params)?.into_iter().map(|way| way.name).collect())
}

/// The scenario of that name, or of that `type` where it means just one.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name).or_else(|| meant(name, |_| None).ok())
}

/// Whether a built-in scenario is called that, or a `type` that means one.
fn is_taken(name: &str) -> bool {
    ALL.iter().any(|scenario| scenario.name == name || scenario.types.iter().any(|called| called.kind == name))
}

/// Runs one party of what its plan names to its end.
///
/// # Errors
/// Why it did not pass.
pub async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let welcome = party.welcome();
    if let Some(text) = &welcome.file {
        let file = ScenarioFile::read(text).map_err(|mistakes| our_fault(file::refused(&text.file, &mistakes)))?;
        if file.name() == welcome.scenario {
            return file.run(party).await;
        }
    }
    match find(&welcome.scenario) {
        Some(scenario) => (scenario.run)(party).await,
        None => {
            let title = format!("there is no scenario {:?}", welcome.scenario);
            Err(our_fault(Report::new(ErrorCode::UnknownScenario, title)))
        }
    }
}

/// What a variant's `type` means, where `value` gives its other keys: a scenario, or why there is none.
///
/// # Errors
/// There is none; with the reason, where it is known.
pub fn meant<'a>(
    kind: &str,
    value: impl Fn(&str) -> Option<&'a str>,
) -> Result<&'static Scenario, Option<&'static str>> {
    // Who asks for more keys means it more.
    let best = |called: &[Called]| called.iter().filter_map(|called| called.fits(kind, &value)).max();
    let scenario =
        ALL.iter().filter_map(|scenario| Some((best(scenario.types)?, scenario))).max_by_key(|(keys, _)| *keys);
    let absent = ABSENT
        .iter()
        .filter_map(|(called, why)| Some((called.fits(kind, &value)?, *why)))
        .max_by_key(|(keys, _)| *keys);
    match (scenario, absent) {
        (Some((keys, scenario)), Some((more, _))) if keys >= more => Ok(scenario),
        (Some((_, scenario)), None) => Ok(scenario),
        (_, absent) => {
            // One that is called like a type of several tests is meant by its name only where the other keys say so.
            let plainly =
                |scenario: &&Scenario| scenario.name == kind && scenario.types.iter().all(|called| called.kind != kind);
            ALL.iter().find(plainly).ok_or_else(|| absent.map(|(_, why)| why))
        }
    }
}

/// The parameters of a case as the VM of one host sees them.
pub fn seen_by(params: &Params, hosts: &[Name], place: usize, seed: &str) -> Params {
    let names: Vec<&str> = hosts.iter().map(Name::as_str).collect();
    let own = for_host(params, &names, place, seed);
    let vm = own.objects("vms").first().map_or("vm1", |vm| *vm).to_owned();
    own.object(&vm)
}

impl Scenario {
    /// As it is listed.
    pub fn info(&self) -> ScenarioInfo {
        let text = |(key, default, meaning): &Documented| ((*key).into(), (*default).into(), (*meaning).into());
        ScenarioInfo {
            name: self.name.to_owned(),
            summary: self.summary.to_owned(),
            hosts: self.hosts.0,
            params: self.params().map(text).collect(),
            types: self.types.iter().map(ToString::to_string).collect(),
            also_reads: self.also_reads().map(str::to_owned).collect(),
            about: self.about.to_owned(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Every parameter that it documents.
    fn params(&self) -> impl Iterator<Item = &'static Documented> {
        self.params.iter().copied().flatten().chain(drives::DRIVE_PARAMS)
    }

    fn limits(&self) -> impl Iterator<Item = &'static Limit> {
        self.limits.iter().copied().flatten().chain(drives::DRIVE_LIMITS)
    }

    fn also_reads(&self) -> impl Iterator<Item = &'static str> {
        let limits = self.limits().map(|limit| limit.key);
        let types = self.types.iter().flat_map(|called| called.when.iter().map(|(key, _)| *key));
        self.aliases.iter().copied().chain([drives::DRIVE_ALIASES]).flatten().copied().chain(limits).chain(types)
    }

    /// Whether it moves VMs.
    fn moves(&self) -> bool {
        self.params.iter().copied().flatten().any(|(key, ..)| *key == transfer::TRANSPORT)
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::params::Origin;

    use super::*;

    #[test]
    fn a_type_of_several_tests_is_told_by_the_keys_that_make_them_differ() {
        let meant = |pairs: &[(&str, &'static str)]| {
            let value = |key: &str| pairs.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
            meant(value("type").unwrap(), value).map(Scenario::name)
        };
        let old = ("type", "migration_multi_host");
        let stress = ("type", "migration_multi_host_with_stress");
        for (pairs, name) in [
            (&[old][..], "multihost_migration"),
            (&[old, ("paused_after_start_vm", "no")], "multihost_migration"),
            (&[old, ("paused_after_start_vm", " yes ")], "early_boot"),
            (&[old, ("post_sub_test", "guest_suspend")], "suspend"),
            (&[old, ("migration_sync_vms", "yes")], "hotplug_disk"),
            (&[stress, ("bg_stress_test", "autotest_control")], "with_stress"),
            (&[stress, ("bg_stress_test", "driver_load")], "module_reload"),
            (&[stress, ("test_control_file", "fio.control")], "data_plane"),
            (&[("type", "cpuflags"), ("test_type", "test_multi_host_migration_onoff_cpu")], "cpuflags"),
            (&[("type", "uptime")], "uptime"),
        ] {
            assert_eq!(meant(pairs), Ok(name), "{pairs:?}");
        }
        assert!(meant(&[old, ("pre_sub_test", "steps")]).unwrap_err().unwrap().contains("graphical"));
        assert_eq!(meant(&[("type", "cpuflags")]), Err(None), "a test of one host");
        assert_eq!(find("migration_multi_host").unwrap().name(), "multihost_migration");
    }

    #[test]
    fn every_scenario_says_what_makes_it_pass_and_what_it_does_instead_of_the_test_it_stands_for() {
        for scenario in ALL {
            assert!(scenario.about.contains("PASS"), "{}", scenario.name);
            let stands_for_another = !scenario.types.is_empty();
            assert_eq!(scenario.about.contains("Avocado-VT"), stands_for_another, "{}", scenario.name);
        }
    }

    #[test]
    fn documented_defaults_are_the_values_used() {
        for scenario in ALL {
            let mut params = Params::new();
            for (key, default, meaning) in scenario.params() {
                assert!(!meaning.is_empty(), "{key}");
                if !default.is_empty() {
                    params.set(*key, *default, Origin { file: "-p".into(), line: 0 });
                }
            }
            scenario.check(&params).unwrap();
        }
        let defaults = settings::Settings::read(&Params::new()).unwrap();
        let mut written = Params::new();
        for (key, default, _) in
            [settings::VM_PARAMS, settings::MOVE_PARAMS].concat().iter().filter(|(_, default, _)| !default.is_empty())
        {
            written.set(*key, *default, Origin { file: "-p".into(), line: 0 });
        }
        assert_eq!(settings::Settings::read(&written).unwrap(), defaults);
    }
}
