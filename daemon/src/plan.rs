//! The plan of a job, opened: its matrix unpacked, its scenario read where that is a file, and what is looked up in them for
//! every case.

use std::sync::{Arc, Mutex, PoisonError};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Digest, Name},
    job::{MatrixView, Plan, PlannedCase},
    matrix::Matrix,
    params::{Params, for_host},
};

use crate::scenario::{
    self,
    file::{self, ScenarioFile},
};

/// Plans kept in memory.
const PLANS: usize = 4;

/// A plan that can be asked for its cases.
#[derive(Debug)]
pub struct OpenPlan {
    plan: Plan,
    matrix: Option<Matrix>,
    digest: Option<Digest>,
    file: Option<ScenarioFile>,
    /// What each case runs.
    scenarios: Vec<String>,
}

impl OpenPlan {
    /// Unpacks the matrix and reads the scenario's file.
    ///
    /// # Errors
    /// It is no matrix, or too large; or there are mistakes in the file.
    pub fn new(plan: Plan) -> Result<Self, Report> {
        let matrix = plan.matrix.as_ref().map(|packed| packed.open()).transpose().map_err(|error| {
            Report::new(ErrorCode::BadConfig, "the matrix of the job cannot be used").caused_by(&error)
        })?;
        let file = match &plan.file {
            Some(text) => Some(ScenarioFile::read(text).map_err(|mistakes| file::refused(&text.file, &mistakes))?),
            None => None,
        };
        let digest = plan.matrix.as_ref().map(|packed| packed.digest());
        let named = |case: &PlannedCase| {
            let of_variant = matrix.as_ref().zip(case.variant);
            let value = |key: &str| of_variant.and_then(|(matrix, variant)| matrix.value(variant, key));
            match value("type").map(str::trim) {
                None => {
                    scenario::find(&plan.scenario).map_or(plan.scenario.as_str(), |scenario| scenario.name()).to_owned()
                }
                Some(kind) => scenario::meant(kind, value).map_or(kind, |scenario| scenario.name()).to_owned(),
            }
        };
        let scenarios = plan.cases.iter().map(named).collect();
        Ok(Self { plan, matrix, digest, file, scenarios })
    }

    /// As it was sent.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its cases with the name of what each runs: a scenario, or a `type` that names none.
    pub fn cases(&self) -> impl Iterator<Item = (&PlannedCase, &str)> {
        self.plan.cases.iter().zip(self.scenarios.iter().map(String::as_str))
    }

    /// The case with this index, from 1, and what it runs.
    pub fn case(&self, index: u32) -> Option<(&PlannedCase, &str)> {
        let place = usize::try_from(index).ok()?.checked_sub(1)?;
        Some((self.plan.cases.get(place)?, self.scenarios.get(place)?.as_str()))
    }

    /// The parameters of a case: of its variant, where it has one.
    pub fn params(&self, case: &PlannedCase) -> Params {
        let of_variant = self.matrix.as_ref().zip(case.variant).and_then(|(matrix, variant)| matrix.params(variant));
        of_variant.unwrap_or_else(|| case.params.clone())
    }

    /// The scenario in a file that a case of this name runs, where it runs one.
    pub fn file(&self, scenario: &str) -> Option<&ScenarioFile> {
        self.file.as_ref().filter(|file| file.name() == scenario)
    }

    /// The parameters of a case as the party at a place sees them: for a built-in scenario those of its one VM. `seed` is
    /// what addresses are made of.
    pub fn seen(&self, case: &PlannedCase, scenario: &str, place: usize, seed: &str) -> Params {
        let params = self.params(case);
        let names = |hosts: &[Name]| hosts.iter().map(|host| host.as_str().to_owned()).collect::<Vec<_>>();
        match self.file(scenario) {
            Some(_) => for_host(&params, &names(&case.hosts), place, seed),
            None => scenario::seen_by(&params, &case.hosts, place, seed),
        }
    }

    /// The full name of a case's variant, where the case is called something else.
    pub fn variant(&self, case: &PlannedCase) -> Option<&str> {
        let name = self.matrix.as_ref().zip(case.variant).and_then(|(matrix, variant)| matrix.name(variant));
        name.filter(|name| *name != case.name)
    }

    /// Its matrix, for people.
    pub fn matrix(&self) -> Option<MatrixView> {
        let variants = self.matrix.as_ref()?.len();
        Some(MatrixView { digest: self.digest?, variants: u32::try_from(variants).unwrap_or(u32::MAX) })
    }

    /// Whether a case names a variant that is not there.
    pub fn has_stray_variants(&self) -> bool {
        let there = |variant: u32| self.matrix.as_ref().is_some_and(|matrix| (variant as usize) < matrix.len());
        self.plan.cases.iter().filter_map(|case| case.variant).any(|variant| !there(variant))
    }

    /// What the job is called in lists: the scenario of all its cases, or `mixed`.
    pub fn label(&self) -> &str {
        let known = |name: &&String| scenario::find(name).is_some() || self.file(name).is_some();
        let mut names = self.scenarios.iter().filter(known);
        match names.next() {
            None => self.scenarios.first().map_or("", String::as_str),
            Some(first) if names.all(|name| name == first) => first,
            Some(_) => "mixed",
        }
    }
}

/// The latest plans, opened.
#[derive(Debug, Default)]
pub(crate) struct Plans(Mutex<Vec<(Digest, Arc<OpenPlan>)>>);

impl Plans {
    /// The plan with this digest, where it is one of the latest.
    pub(crate) fn get(&self, digest: Digest) -> Option<Arc<OpenPlan>> {
        let plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        plans.iter().find(|(known, _)| *known == digest).map(|(_, plan)| Arc::clone(plan))
    }

    /// Keeps a plan; the oldest one makes room.
    pub(crate) fn keep(&self, digest: Digest, plan: Arc<OpenPlan>) {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|(known, _)| *known != digest);
        plans.push((digest, plan));
        if plans.len() > PLANS {
            plans.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::{matrix::MatrixBuilder, params::Origin};

    use super::*;

    fn plan(scenario: &str, types: &[Option<&str>]) -> OpenPlan {
        let mut matrix = MatrixBuilder::new();
        for (i, kind) in types.iter().enumerate() {
            let kind = kind.map(|kind| ("type", kind, "a.cfg", 2));
            matrix.add(&format!("full.v{i}"), [("mem", "64", "a.cfg", 1)].into_iter().chain(kind)).unwrap();
        }
        let case = |variant: usize| PlannedCase {
            name: format!("v{variant}"),
            variant: Some(variant as u32),
            ..PlannedCase::default()
        };
        OpenPlan::new(Plan {
            scenario: scenario.into(),
            cases: (0..types.len()).map(case).collect(),
            matrix: Some(matrix.pack().unwrap()),
            ..Plan::default()
        })
        .unwrap()
    }

    #[test]
    fn a_variant_runs_the_scenario_of_its_type_and_else_the_one_that_was_named() {
        let plan = plan("uptime", &[Some("migration_multi_host"), None, Some("floppy")]);
        let runs: Vec<&str> = plan.cases().map(|(_, scenario)| scenario).collect();
        assert_eq!(runs, ["multihost_migration", "uptime", "floppy"]);
        assert_eq!(plan.label(), "mixed");
        let (case, _) = plan.case(3).unwrap();
        assert_eq!(plan.params(case).text("type"), Some("floppy"));
        assert_eq!(plan.params(case).get("mem").unwrap().origin, Origin { file: "a.cfg".into(), line: 1 });
        assert_eq!((plan.variant(case), plan.matrix().unwrap().variants), (Some("full.v2"), 3));
        assert!(plan.case(0).is_none() && plan.case(4).is_none());
    }

    #[test]
    fn a_job_is_called_after_the_one_scenario_that_it_runs() {
        assert_eq!(plan("uptime", &[None, None, Some("shutdown")]).label(), "uptime");
        assert_eq!(plan("", &[Some("shutdown"), Some("boot")]).label(), "shutdown");
        let mut stray = plan("uptime", &[None]);
        assert!(!stray.has_stray_variants());
        stray.plan.cases[0].variant = Some(1);
        assert!(stray.has_stray_variants());
    }
}
