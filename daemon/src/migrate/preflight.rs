//! Whether source and destination fit each other: compared before anything is started, every difference named. Pure.

use vt_protocol::{
    error::{ErrorCode, Report},
    peer::Preflight,
    vm::{Accelerator, MigrationSpec},
};

use super::features::Features;

/// What the destination has, beside its QEMU.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// Its QEMU.
    pub features: &'a Features,
    /// The accelerator that works on it.
    pub accelerator: Accelerator,
}

/// What does not fit, in words; empty where all does. `source` is what the VM runs with.
pub fn differences(source: &Preflight, here: Here<'_>, spec: &MigrationSpec) -> Vec<String> {
    let mut all = Vec::new();
    let version = &here.features.version;
    match here.features.machine(&source.machine) {
        Some(name) if name == source.machine => {}
        _ => all.push(format!("machine type {} is not known to QEMU {version} of the destination", source.machine)),
    }
    if !here.features.cpus.is_empty() && !here.features.has_cpu(&source.cpu_model) {
        all.push(format!("CPU model {} is not known to QEMU {version} of the destination", source.cpu_model));
    }
    if source.accelerator == Accelerator::Kvm && here.accelerator != Accelerator::Kvm {
        all.push("the VM runs under KVM, which does not work on the destination".to_owned());
    }
    for (name, side, has) in spec.capabilities.iter().filter(|(_, on)| **on).flat_map(|(name, _)| {
        [("source", &source.capabilities), ("destination", &here.features.capabilities)]
            .map(|(side, has)| (name, side, has))
    }) {
        if !has.contains(name) {
            all.push(format!("migration capability {name} is not known to QEMU of the {side}"));
        }
    }
    if !here.features.capabilities.iter().any(|c| c == "late-block-activate") {
        all.push(format!(
            "QEMU {version} of the destination has no late-block-activate, so it would take the disk early"
        ));
    }
    all
}

/// The report of differences; `None` where there are none.
pub fn report(differences: &[String], from: &str, to: &str) -> Option<Report> {
    if differences.is_empty() {
        return None;
    }
    let title = format!("{from} and {to} do not fit each other; nothing was started");
    let report = Report::new(ErrorCode::Preflight, title);
    Some(differences.iter().fold(report, |report, text| report.with("difference", text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> Features {
        Features {
            version: "10.0.2".into(),
            machines: vec![("pc-q35-10.0".into(), Some("q35".into())), ("pc-q35-7.2".into(), None)],
            cpus: vec!["qemu64".into()],
            capabilities: vec!["events".into(), "late-block-activate".into(), "xbzrle".into()],
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
            ("late-block-activate", |_, f, _| f.capabilities.retain(|c| c != "late-block-activate")),
        ];
        for (says, change) in cases {
            let (mut source, mut features, mut spec) = (source(), features(), MigrationSpec::default());
            change(&mut source, &mut features, &mut spec);
            let here = Here { features: &features, accelerator: Accelerator::Tcg };
            let found = differences(&source, here, &spec);
            assert_eq!(found.len(), 1, "{says}: {found:?}");
            assert!(found[0].contains(says), "{says}: {found:?}");
            let report = report(&found, "host1", "host2").unwrap();
            assert_eq!(report.code, ErrorCode::Preflight);
        }
    }
}
