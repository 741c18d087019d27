//! Whether source and destination fit each other: compared before anything is started, every difference named. Pure.

use vt_protocol::{
    error::{ErrorCode, Report},
    peer::Preflight,
    vm::{Accelerator, MigrationSpec},
};

use super::{
    features::Features,
    receive::{LATE_BLOCK_ACTIVATE, capabilities},
};

/// What the destination has, beside its QEMU.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// Its QEMU.
    pub features: &'a Features,
    /// The accelerator that works on it.
    pub accelerator: Accelerator,
}

/// One thing that does not fit, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A side lacks a capability or machine type that was asked for: the case cannot be run on these hosts.
    Lacks(String),
    /// The VM cannot go on over there.
    Unfit(String),
}

impl Difference {
    fn text(&self) -> &str {
        let (Self::Lacks(text) | Self::Unfit(text)) = self;
        text
    }
}

/// What does not fit; empty where all does. `source` is what the VM runs with.
pub fn differences(source: &Preflight, here: Here<'_>, spec: &MigrationSpec) -> Vec<Difference> {
    let (mut all, mut lacks) = (Vec::new(), Vec::new());
    let mut unfit = |text| all.push(Difference::Unfit(text));
    let version = &here.features.version;
    match here.features.machine(&source.machine) {
        Some(name) if name == source.machine => {}
        _ => {
            let name = &source.machine;
            lacks.push(Difference::Lacks(format!(
                "machine type {name} is not known to QEMU {version} of the destination"
            )));
        }
    }
    if !here.features.cpus.is_empty() && !here.features.has_cpu(&source.cpu_model) {
        unfit(format!("CPU model {} is not known to QEMU {version} of the destination", source.cpu_model));
    }
    if source.accelerator == Accelerator::Kvm && here.accelerator != Accelerator::Kvm {
        unfit("the VM runs under KVM, which does not work on the destination".to_owned());
    }
    // What the order of a move needs has words of its own below.
    let asked = capabilities(spec).into_iter().filter(|(name, on)| *on && name != LATE_BLOCK_ACTIVATE);
    for (name, side, has) in asked.flat_map(|(name, _)| {
        [("source", &source.capabilities), ("destination", &here.features.capabilities)]
            .map(|(side, has)| (name.clone(), side, has))
    }) {
        if !has.contains(&name) {
            lacks.push(Difference::Lacks(format!("migration capability {name} is not known to QEMU of the {side}")));
        }
    }
    if !here.features.capabilities.iter().any(|c| c == LATE_BLOCK_ACTIVATE) {
        unfit(format!("QEMU {version} of the destination has no late-block-activate, so it would take the disk early"));
    }
    all.append(&mut lacks);
    all
}

/// The report of differences; `None` where there are none.
pub fn report(differences: &[Difference], from: &str, to: &str) -> Option<Report> {
    if differences.is_empty() {
        return None;
    }
    let report = if differences.iter().all(|difference| matches!(difference, Difference::Lacks(_))) {
        let title = differences.iter().map(Difference::text).collect::<Vec<_>>().join("; ");
        Report::new(ErrorCode::CannotRunHere, title).with("source", from).with("destination", to)
    } else {
        Report::new(ErrorCode::Preflight, format!("{from} and {to} do not fit each other; nothing was started"))
    };
    Some(differences.iter().fold(report, |report, difference| report.with("difference", difference.text())))
}

#[cfg(test)]
mod tests {
    use vt_protocol::vm::{Intervention, Moment};

    use super::*;

    fn features() -> Features {
        Features {
            version: "10.0.2".into(),
            machines: vec![("pc-q35-10.0".into(), Some("q35".into())), ("pc-q35-7.2".into(), None)],
            cpus: vec!["qemu64".into()],
            capabilities: ["events", "late-block-activate", "pause-before-switchover", "xbzrle"].map(Into::into).into(),
        }
    }

    fn source() -> Preflight {
        Preflight {
            qemu_version: "7.2.0".into(),
            machine: "pc-q35-7.2".into(),
            cpu_model: "qemu64,+avx".into(),
            accelerator: Accelerator::Tcg,
            capabilities: features().capabilities,
        }
    }

    fn wanted(name: &str) -> MigrationSpec {
        let mut spec = MigrationSpec::default();
        spec.capabilities.insert(name.into(), true);
        spec
    }

    #[test]
    fn another_version_that_knows_the_machine_fits() {
        let features = features();
        let here = Here { features: &features, accelerator: Accelerator::Tcg };
        assert!(differences(&source(), here, &wanted("xbzrle")).is_empty());
    }

    #[test]
    fn each_difference_is_named() {
        type Change = fn(&mut Preflight, &mut Features, &mut MigrationSpec);
        let cases: &[(&str, Change)] = &[
            ("pc-q35-11.0", |s, _, _| s.machine = "pc-q35-11.0".into()),
            // An alias may mean another machine over there.
            ("machine type q35", |s, _, _| s.machine = "q35".into()),
            ("athlon", |s, _, _| s.cpu_model = "athlon".into()),
            ("KVM", |s, _, _| s.accelerator = Accelerator::Kvm),
            ("multifd is not known to QEMU of the source", |_, f, w| {
                f.capabilities.push("multifd".into());
                *w = wanted("multifd");
            }),
            ("zero-copy-send is not known to QEMU of the destination", |s, _, w| {
                s.capabilities.push("zero-copy-send".into());
                *w = wanted("zero-copy-send");
            }),
            ("postcopy-ram is not known to QEMU of the destination", |s, _, w| {
                s.capabilities.push("postcopy-ram".into());
                w.interventions.push((Moment::Pass(1), Intervention::Postcopy));
            }),
            ("late-block-activate", |_, f, _| f.capabilities.retain(|c| c != "late-block-activate")),
        ];
        for (says, change) in cases {
            let (mut source, mut features, mut spec) = (source(), features(), MigrationSpec::default());
            change(&mut source, &mut features, &mut spec);
            let here = Here { features: &features, accelerator: Accelerator::Tcg };
            let found = differences(&source, here, &spec);
            assert_eq!(found.len(), 1, "{says}: {found:?}");
            assert!(found[0].text().contains(says), "{says}: {found:?}");
            let report = report(&found, "host1", "host2").unwrap();
            let lacks = matches!(found[0], Difference::Lacks(_));
            assert_eq!(lacks, says.contains("not known to QEMU of") || says.contains("q35"), "{says}");
            assert_eq!(report.code, if lacks { ErrorCode::CannotRunHere } else { ErrorCode::Preflight });
        }
    }
}
