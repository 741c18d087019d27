//! Whether source and destination fit each other: compared before anything is started, every difference named. Pure.

use std::collections::{BTreeMap, BTreeSet};

use vt_protocol::{
    error::{ErrorCode, Report},
    peer::Preflight,
    vm::{Accelerator, MigrationSpec, Transport},
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
    /// What the guest would see of the command line of a QEMU started there for it.
    pub shows: &'a [String],
}

/// One thing that does not fit, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A side lacks a machine type, or what carries the VM: the case cannot be run on these hosts.
    Lacks(String),
    /// A side lacks a migration capability that was asked for: nor can it then.
    LacksCapability {
        /// What it lacks.
        text: String,
        /// Which side.
        side: &'static str,
        /// What it has, as its QEMU says.
        has: Vec<String>,
    },
    /// The VM cannot go on over there.
    Unfit(String),
}

impl Difference {
    fn text(&self) -> &str {
        let (Self::Lacks(text) | Self::LacksCapability { text, .. } | Self::Unfit(text)) = self;
        text
    }

    fn is_lack(&self) -> bool {
        matches!(self, Self::Lacks(_) | Self::LacksCapability { .. })
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
    for device in source.shows.iter().filter_map(|word| device(word)).collect::<BTreeSet<_>>() {
        if !here.features.devices.is_empty() && !here.features.devices.contains(device) {
            unfit(format!("device {device} is not known to QEMU {version} of the destination"));
        }
    }
    for word in source.shows.iter().filter(|word| !here.shows.contains(word)) {
        unfit(format!("the source runs with `{word}`, and the destination would not"));
    }
    for word in here.shows.iter().filter(|word| !source.shows.is_empty() && !source.shows.contains(word)) {
        unfit(format!("the destination would run with `{word}`, and the source does not"));
    }
    if spec.transport == Transport::File {
        let sides = [("source", &source.qemu_version), ("destination", version)];
        lacks.extend(sides.into_iter().filter(|(_, version)| !knows_files(version)).map(|(side, version)| {
            Difference::Lacks(format!(
                "QEMU {version} of the {side} cannot migrate by a file, as 8.2 is the first to do"
            ))
        }));
    }
    // What the order of a move needs has words of its own below.
    let asked = capabilities(spec).into_iter().filter(|(name, on)| *on && name != LATE_BLOCK_ACTIVATE);
    for (name, side, has) in asked.flat_map(|(name, _)| {
        [("source", &source.capabilities), ("destination", &here.features.capabilities)]
            .map(|(side, has)| (name.clone(), side, has))
    }) {
        if !has.contains(&name) {
            let text = format!("migration capability {name} is not known to QEMU of the {side}");
            lacks.push(Difference::LacksCapability { text, side, has: has.clone() });
        }
    }
    if !here.features.capabilities.iter().any(|c| c == LATE_BLOCK_ACTIVATE) {
        unfit(format!("QEMU {version} of the destination has no late-block-activate, so it would take the disk early"));
    }
    all.append(&mut lacks);
    all
}

/// Whether a QEMU of that version has `file:` migrations.
fn knows_files(version: &str) -> bool {
    let parts: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    parts[..] >= [8, 2][..]
}

/// The model of a device on a command line.
fn device(word: &str) -> Option<&str> {
    let model = word.strip_prefix("-device ")?.split(',').next()?;
    let model = model.strip_prefix("driver=").unwrap_or(model);
    // In JSON it may stand anywhere.
    (!model.starts_with('{')).then_some(model)
}

/// The report of differences; `None` where there are none.
pub fn report(differences: &[Difference], from: &str, to: &str) -> Option<Report> {
    if differences.is_empty() {
        return None;
    }
    let report = if differences.iter().all(Difference::is_lack) {
        let title = differences.iter().map(Difference::text).collect::<Vec<_>>().join("; ");
        Report::new(ErrorCode::CannotRunHere, title).with("source", from).with("destination", to)
    } else {
        Report::new(ErrorCode::Preflight, format!("{from} and {to} do not fit each other; nothing was started"))
    };
    let report = differences.iter().fold(report, |report, difference| report.with("difference", difference.text()));
    let said = differences.iter().filter_map(|difference| match difference {
        Difference::LacksCapability { side, has, .. } => Some((*side, has)),
        _ => None,
    });
    // Once a side, whatever it lacks.
    let said: BTreeMap<&str, &Vec<String>> = said.collect();
    Some(said.into_iter().fold(report, |report, (side, has)| {
        report.with(format!("query-migrate-capabilities of the {side}"), has.join(" "))
    }))
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
            devices: ["virtio-blk-pci", "virtio-net-pci"].map(Into::into).into(),
        }
    }

    fn source() -> Preflight {
        Preflight {
            qemu_version: "7.2.0".into(),
            machine: "pc-q35-7.2".into(),
            cpu_model: "qemu64,+avx".into(),
            accelerator: Accelerator::Tcg,
            capabilities: features().capabilities,
            shows: shows(),
        }
    }

    fn shows() -> Vec<String> {
        ["-m 256M", "-device virtio-blk-pci,drive=vda", "-device virtio-net-pci,netdev=net0"].map(Into::into).into()
    }

    fn wanted(name: &str) -> MigrationSpec {
        let mut spec = MigrationSpec::default();
        spec.capabilities.insert(name.into(), true);
        spec
    }

    #[test]
    fn another_version_that_knows_the_machine_fits() {
        let features = features();
        let here = Here { features: &features, accelerator: Accelerator::Tcg, shows: &shows() };
        assert!(differences(&source(), here, &wanted("xbzrle")).is_empty());
        // One that cannot say what it shows is not judged by it.
        assert!(differences(&Preflight { shows: vec![], ..source() }, here, &wanted("xbzrle")).is_empty());
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
            ("device virtio-net-pci is not known to QEMU", |_, f, _| {
                f.devices.retain(|model| model != "virtio-net-pci");
            }),
            ("the source runs with `-device pvpanic`", |s, f, _| {
                f.devices.insert("pvpanic".into());
                s.shows.push("-device pvpanic".into());
            }),
            ("the destination would run with `-m 256M`", |s, _, _| drop(s.shows.remove(0))),
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
            ("QEMU 7.2.0 of the source cannot migrate by a file", |_, _, w| w.transport = Transport::File),
            ("late-block-activate", |_, f, _| f.capabilities.retain(|c| c != "late-block-activate")),
        ];
        for (says, change) in cases {
            let (mut source, mut features, mut spec) = (source(), features(), MigrationSpec::default());
            change(&mut source, &mut features, &mut spec);
            let here = Here { features: &features, accelerator: Accelerator::Tcg, shows: &shows() };
            let found = differences(&source, here, &spec);
            assert_eq!(found.len(), 1, "{says}: {found:?}");
            assert!(found[0].text().contains(says), "{says}: {found:?}");
            let report = report(&found, "host1", "host2").unwrap();
            let lacks = found[0].is_lack();
            let lack = ["not known to QEMU of", "q35", "by a file"].iter().any(|words| says.contains(words));
            assert_eq!(lacks, lack, "{says}");
            assert_eq!(report.code, if lacks { ErrorCode::CannotRunHere } else { ErrorCode::Preflight });
            let quoted = report.evidence.iter().any(|(key, list)| {
                key.starts_with("query-migrate-capabilities of the ") && list.split(' ').any(|name| name == "events")
            });
            assert_eq!(
                quoted,
                says.contains("is not known to QEMU of the source") || says.contains("of the destination")
            );
        }
    }
}
