//! The QEMU of a VM on this host, and what the QEMUs of all hosts of its case have in common: the machine type that each
//! knows, and the accelerator that works with each.
//!
//! A host runs a VM with one QEMU from the beginning of a case to its end, however often the VM comes by. Which one is in
//! the parameters, and asked of each host, because only it knows what its settings call by that name.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    party::Failure,
    peer::{PeerReply, PeerRequest, QemuOffer},
    verdict::Consequence,
    vm::Accelerator,
};

use super::{
    attempt::{DECIDES, LocalAttempt},
    failure::caused,
};
use crate::{cluster::AskError, libvirt::given::Given, migrate::features::machine_in, qemu::binaries::Binary};

/// Which QEMU of host1 runs the VM, or of every host.
const HERE: &str = "qemu_binary";
/// The same of the hosts behind host1, where they have another one.
const ELSEWHERE: &str = "qemu_dst_binary";
/// What a VM is where nobody says what it is to be.
const MACHINE: &str = "q35";

/// What the QEMUs of all hosts of a case have in common.
#[derive(Debug)]
pub(super) struct Common {
    /// Versioned machine type.
    pub(super) machine: String,
    /// Why it is not the one that the first host would take by itself.
    pub(super) older: Option<String>,
    /// How instructions are run.
    pub(super) accelerator: Accelerator,
    /// Why that way.
    pub(super) reason: String,
    /// Versions of those that said so.
    pub(super) versions: BTreeMap<Name, String>,
}

impl LocalAttempt {
    /// The QEMU of this host that runs a VM of this name.
    ///
    /// # Errors
    /// The settings name none by the word that the parameters have.
    pub(crate) fn qemu(&self, vm: &Name) -> Result<Binary<'_>, Report> {
        let params = self.record().case.params.object(vm.as_str());
        let said = |key| params.text(key).map(str::trim).filter(|word| !word.is_empty()).map(|word| (key, word));
        let elsewhere = if self.place == 0 { None } else { said(ELSEWHERE) };
        let given = self.given_domain(vm)?.and_then(|domain| domain.emulator);
        let of_domain = given.as_deref().map(|word| ("the emulator of the domain", word));
        let Some((key, word)) = elsewhere.or_else(|| said(HERE)).or(of_domain) else {
            return Ok(self.places.qemus.usual());
        };
        self.places.qemus.find(word).ok_or_else(|| {
            let host = self.name_of(self.me());
            let report = Report::new(ErrorCode::CannotRunHere, format!("{key} = {word} is no QEMU of {host}"));
            let report = self.places.qemus.all().fold(report, |report, one| report.with("it has", one.to_string()));
            report.help(format!("[qemu.binaries] in the settings of {host}, or -p {HERE}=qemu for its default"))
        })
    }

    /// The domain that the user of a VM gave for it.
    ///
    /// # Errors
    /// It cannot be taken; it was refused before the case began.
    pub(crate) fn given_domain(&self, vm: &Name) -> Result<Option<Given>, Report> {
        let params = self.record().case.params.object(vm.as_str());
        Given::of(&params).map_err(|error| Report::new(ErrorCode::BadParameter, error.to_string()))
    }

    /// Answers [`PeerRequest::QemuOf`].
    ///
    /// # Errors
    /// There is no such QEMU, it does not say what it can do, or the VM's network cards cannot be had here.
    pub(super) async fn offer(&self, vm: &Name) -> Result<QemuOffer, Report> {
        let qemu = self.qemu(vm)?;
        self.check_cables(vm).await?;
        let features = self.features.of(qemu.path).await?;
        let (accelerator, accelerator_reason) = self.accelerator_of(qemu.name).await;
        Ok(QemuOffer {
            name: qemu.name.to_owned(),
            version: features.version.clone(),
            machines: features.machines.clone(),
            accelerator,
            accelerator_reason,
        })
    }

    /// The accelerator that works with a QEMU of this host, and why that one.
    pub(crate) async fn accelerator_of(&self, qemu: &str) -> (Accelerator, String) {
        match self.cluster.ask(self.me(), PeerRequest::Facts, DECIDES).await {
            Ok(PeerReply::Facts(facts)) => match facts.qemus.into_iter().find(|known| known.name == qemu) {
                Some(known) => (known.accelerator, known.accelerator_reason),
                None => (Accelerator::Tcg, "what works with its QEMU is not known yet".to_owned()),
            },
            _ => (Accelerator::Tcg, "it did not say what works with its QEMU".to_owned()),
        }
    }

    /// What the QEMUs of all hosts have in common for a VM that this host is to start.
    ///
    /// # Errors
    /// A host has no such QEMU, or there is no machine type that all know.
    pub(super) async fn common(
        &self,
        vm: &Name,
        machine: Option<&str>,
        accelerator: Option<Accelerator>,
    ) -> Result<Common, Failure> {
        let others = self.hosts.iter().filter(|(host, _)| *host != self.me()).map(|(host, name)| async move {
            let asked = self.cluster.ask(*host, PeerRequest::QemuOf(self.vm_id(vm)), DECIDES).await;
            match asked {
                Ok(PeerReply::Qemu(offer)) => Ok((name.clone(), Some(*offer))),
                Ok(PeerReply::Refused(report)) if report.code == ErrorCode::CannotRunHere => Err(report),
                Err(AskError::Refused(report)) if report.code == ErrorCode::CannotRunHere => Err(*report),
                // Whether it can take the VM is seen when that comes.
                Ok(_) | Err(_) => Ok((name.clone(), None)),
            }
        });
        let (mine, others) = tokio::join!(self.offer(vm), join_all(others));
        let others: Vec<_> = others.into_iter().collect::<Result<_, _>>().map_err(caused)?;
        let Some((_, me)) = self.hosts.get(self.place) else { return Err(Failure::Followed(Consequence::Closed)) };
        let mine = (me.clone(), mine.map_err(caused)?);
        let (machine, older) = machine_of_all(&mine, &others, machine.unwrap_or(MACHINE)).map_err(caused)?;
        let (accelerator, reason) = match accelerator {
            Some(wanted) => (wanted, "asked for".to_owned()),
            None => accelerator_of_all(&mine, &others),
        };
        let said = others.into_iter().filter_map(|(name, offer)| Some((name, offer?))).chain([mine]);
        let versions = said.map(|(name, offer)| (name, offer.version)).collect();
        Ok(Common { machine, older, accelerator, reason, versions })
    }
}

/// The machine type that `wanted` stands for: as it is where it names a version, else the newest of its kind that every host
/// knows, with the reason where that is not the first host's newest.
fn machine_of_all(
    (host, mine): &(Name, QemuOffer),
    others: &[(Name, Option<QemuOffer>)],
    wanted: &str,
) -> Result<(String, Option<String>), Report> {
    let Some(newest) = machine_in(&mine.machines, wanted) else {
        let title = format!("QEMU {} of {host} has no machine type {wanted}", mine.version);
        let known: Vec<&str> = mine.machines.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Report::new(ErrorCode::CannotRunHere, title).with("it has", known.join(" ")));
    };
    let lacks = |machine: &str| {
        let mut offers = others.iter().filter_map(|(name, offer)| Some((name, offer.as_ref()?)));
        offers.find(|(_, offer)| !offer.machines.iter().any(|(known, _)| known == machine))
    };
    let Some((name, offer)) = lacks(newest).filter(|_| newest != wanted) else {
        return Ok((newest.to_owned(), None));
    };
    let kind = &newest[..newest.rfind('-').map_or(newest.len(), |dash| dash + 1)];
    let same_kind = mine.machines.iter().map(|(known, _)| known.as_str()).filter(|known| known.starts_with(kind));
    let common = same_kind.filter(|known| lacks(known).is_none()).max_by_key(|known| version(&known[kind.len()..]));
    let there = format!("QEMU {} of {name}", offer.version);
    match common {
        Some(machine) => Ok((machine.to_owned(), Some(format!("{there} does not know {newest}")))),
        None => {
            let title =
                format!("there is no machine type {wanted} that QEMU {} of {host} and {there} know", mine.version);
            Err(Report::new(ErrorCode::CannotRunHere, title))
        }
    }
}

/// `10.0` is behind `9.2`.
fn version(text: &str) -> Vec<u32> {
    text.split('.').map_while(|part| part.parse().ok()).collect()
}

/// KVM where a functional probe passed on every host.
fn accelerator_of_all((host, mine): &(Name, QemuOffer), others: &[(Name, Option<QemuOffer>)]) -> (Accelerator, String) {
    for (name, offer) in std::iter::once((host, Some(mine))).chain(others.iter().map(|(name, o)| (name, o.as_ref()))) {
        match offer {
            None => return (Accelerator::Tcg, format!("{name} did not say what works on it")),
            Some(offer) if offer.accelerator == Accelerator::Tcg => {
                return (Accelerator::Tcg, format!("{name}: {}", offer.accelerator_reason));
            }
            Some(_) => {}
        }
    }
    (Accelerator::Kvm, "a probe passed on every host of the case".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(version: &str, machines: &[&str], accelerator: Accelerator) -> QemuOffer {
        // The first of each kind has the kind's name too.
        let named = |name: &&str| {
            let alias = if machines[0] == *name { Some("q35".to_owned()) } else { None };
            ((*name).to_owned(), alias)
        };
        QemuOffer {
            name: "default".into(),
            version: version.into(),
            machines: machines.iter().map(named).collect(),
            accelerator,
            accelerator_reason: "no KVM".into(),
        }
    }

    fn host(number: u32) -> Name {
        format!("host{number}").parse().unwrap()
    }

    fn old() -> QemuOffer {
        offer("7.2.22", &["pc-q35-7.2", "pc-q35-7.1", "pc-i440fx-7.2"], Accelerator::Kvm)
    }

    fn new() -> QemuOffer {
        let machines = ["pc-q35-10.0", "pc-q35-9.2", "pc-q35-7.2", "pc-q35-7.1", "pc-i440fx-7.2"];
        offer("10.0.2", &machines, Accelerator::Kvm)
    }

    fn chosen(
        mine: QemuOffer,
        others: Vec<Option<QemuOffer>>,
        wanted: &str,
    ) -> Result<(String, Option<String>), Report> {
        let others: Vec<_> = (2..).map(host).zip(others).collect();
        machine_of_all(&(host(1), mine), &others, wanted)
    }

    #[test]
    fn the_newest_machine_that_all_know_is_chosen_and_one_with_its_version_is_demanded() {
        let (machine, older) = chosen(new(), vec![Some(new()), Some(old())], "q35").unwrap();
        assert_eq!(machine, "pc-q35-7.2");
        assert_eq!(older.unwrap(), "QEMU 7.2.22 of host3 does not know pc-q35-10.0");
        for (mine, others, wanted, machine) in [
            (new(), vec![Some(new())], "q35", "pc-q35-10.0"),
            (old(), vec![Some(new())], "q35", "pc-q35-7.2"),
            // Whoever demands it finds out when the VM is to move.
            (new(), vec![Some(old())], "pc-q35-10.0", "pc-q35-10.0"),
            (new(), vec![Some(old())], "pc-q35-7.1", "pc-q35-7.1"),
            (new(), vec![None], "q35", "pc-q35-10.0"),
        ] {
            assert_eq!(chosen(mine, others, wanted).unwrap(), (machine.to_owned(), None), "{wanted}");
        }
        let strange = offer("11.0.0", &["pc-q35-11.0"], Accelerator::Kvm);
        for (others, wanted, says) in [
            (vec![Some(strange)], "q35", "no machine type q35 that QEMU 10.0.2 of host1 and QEMU 11.0.0 of host2 know"),
            (vec![], "virt", "QEMU 10.0.2 of host1 has no machine type virt"),
        ] {
            let report = chosen(new(), others, wanted).unwrap_err();
            assert!(report.code == ErrorCode::CannotRunHere && report.title.contains(says), "{}", report.title);
        }
    }

    #[test]
    fn kvm_is_for_a_case_all_of_whose_hosts_have_it() {
        let all = |offer: Option<QemuOffer>| accelerator_of_all(&(host(1), new()), &[(host(2), offer)]);
        assert_eq!(all(Some(old())).0, Accelerator::Kvm);
        let (accelerator, reason) = all(Some(offer("7.2.22", &["x-1"], Accelerator::Tcg)));
        assert_eq!((accelerator, reason.as_str()), (Accelerator::Tcg, "host2: no KVM"));
        assert_eq!(all(None).0, Accelerator::Tcg);
    }
}
