//! `doctor`, as vtctl and other hosts ask for it: this host, its ways to the others, and how all fit each other.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use vt_protocol::{
    bulk::{BulkError, BulkRequest},
    call::CallError,
    doctor::{Examine, Examined, Finding, Fit},
    error::{ErrorCode, Report},
    ids::{Digest, HostId, Name},
    peer::{PeerReply, PeerRequest},
    vm::NICS_MAX,
};
use vt_sync::{State, state::Role};

use super::{ASKS, blocking, migration::Far, views::natural};
use crate::{
    cluster::{AskError, Cluster},
    doctor::{
        self, links,
        seen::{Link, Loss, Member},
    },
    host::Host,
    party::{Places, giveback},
    qemu::{
        remains::{cgroup_name, guard_cgroup_name, run_dirs},
        tap::Tap,
    },
};

/// How long another host may be examined: QEMU may be slow to say what it can do.
const EXAMINES: Duration = Duration::from_secs(25);
/// How long a pool may take to be tried.
const POOL_ANSWERS: Duration = Duration::from_secs(15);
/// How many requests are sent to see whether packets get lost, and for how long at most.
const LOSS_ASKS: usize = 100;
const LOSES: Duration = Duration::from_secs(2);
/// What belongs to nobody and is gone after this was being cleared up.
const SETTLES: Duration = Duration::from_secs(2);
/// Most things that are listed of one kind.
const LISTED: usize = 20;

impl Host {
    /// Examines this host, and the others where `all` says so.
    pub(super) async fn doctor(self: &Arc<Self>, examine: Examine) -> Result<Vec<Finding>, Report> {
        let mine = self.examine_here(&examine);
        if !examine.all {
            return Ok(mine.await?.findings);
        }
        let state = self.state();
        let others = self.others(&state);
        let asked = others.iter().map(|host| {
            let request = PeerRequest::Examine(examine.clone());
            async move { (host.name.clone(), self.ask(host.id, request, EXAMINES).await) }
        });
        let (mine, theirs) = tokio::join!(mine, join_all(asked));
        let mine = mine?;
        let mut fits: Vec<(Name, Fit)> = vec![(self.record().name.clone(), mine.fit)];
        let mut findings = mine.findings;
        for (name, answer) in theirs {
            match answer {
                Ok(PeerReply::Examined(examined)) => {
                    findings.extend(examined.findings);
                    fits.push((name, examined.fit));
                }
                Ok(_) => findings.push(doctor::silent(&name, "it gave another kind of answer")),
                Err(error) => findings.push(doctor::silent(&name, &error.to_string())),
            }
        }
        fits.sort_by(|(a, _), (b, _)| natural(a.as_str(), b.as_str()));
        findings.extend(doctor::of_pairs(&fits, &examine.checks));
        findings.extend(doctor::of_all(&fits, &examine.checks));
        Ok(findings)
    }

    /// Examines this host and its ways to the others.
    pub(super) async fn examine_here(self: &Arc<Self>, examine: &Examine) -> Result<Examined, Report> {
        let state = self.state();
        let me = self.record().name.clone();
        let links = join_all(self.others(&state).into_iter().map(|host| self.link(host.id)));
        let here = async {
            let member = self.member(&state).await;
            doctor::examine(self.settings(), Some(member), examine).await
        };
        let (links, here) = tokio::join!(links, here);
        let mut here = here?;
        here.findings.extend(links.iter().flat_map(|link| doctor::of_a_link(&me, link, &examine.checks)));
        Ok(here)
    }

    /// The other hosts, in natural order of names.
    fn others<'s>(&self, state: &'s State) -> Vec<&'s Arc<vt_sync::state::Host>> {
        let mut others: Vec<_> = state.hosts.values().filter(|host| host.id != self.me()).collect();
        others.sort_by(|a, b| natural(a.name.as_str(), b.name.as_str()));
        others
    }

    /// Listens for one connection where migrations come in.
    pub(super) async fn echo_once(&self) -> PeerReply {
        match links::echo_once(self.places().migration).await {
            Ok(address) => PeerReply::Echoes(address),
            Err(error) => PeerReply::Refused(
                Report::new(ErrorCode::NetworkSetup, "the way in of migrations cannot be tried").caused_by(&error),
            ),
        }
    }

    /// Tries all ways to another host.
    async fn link(&self, host: HostId) -> Link {
        let control = async {
            // The first round trip may have to connect.
            let _ = self.ask(host, PeerRequest::Ping, ASKS).await;
            let begun = Instant::now();
            self.ask(host, PeerRequest::Ping, ASKS).await.map(|_| begun.elapsed()).map_err(|error| error.to_string())
        };
        let migration = async {
            match self.ask(host, PeerRequest::EchoOnce, ASKS).await {
                Ok(PeerReply::Echoes(address)) => Some(links::try_echo(address).await),
                Err(AskError::Refused(report)) => Some(Err(report.causes.last().cloned().unwrap_or(report.title))),
                // It could not be asked, which is another finding.
                Ok(_) | Err(_) => None,
            }
        };
        let (control, bulk, migration) = tokio::join!(control, self.bulk_answers(host), migration);
        // Alone: what the others load the way with is none of its losses.
        let loss = if control.is_ok() { self.loss(host).await } else { None };
        Link { to: self.name_of(host), control, loss, bulk, migration }
    }

    /// Sends packets to a host for a moment, and counts those that got lost.
    async fn loss(&self, host: HostId) -> Option<Loss> {
        let before = self.peers().packets(host)?;
        let until = Instant::now() + LOSES;
        for _ in 0..LOSS_ASKS {
            if Instant::now() > until {
                break;
            }
            let _ = self.ask(host, PeerRequest::Ping, ASKS).await;
        }
        let after = self.peers().packets(host)?;
        // Another connection than before counts from the beginning.
        Some(Loss { sent: after.sent.checked_sub(before.sent)?, lost: after.lost.checked_sub(before.lost)? })
    }

    /// Whether the bulk channel of a host answers: that it lacks a blob is an answer.
    async fn bulk_answers(&self, host: HostId) -> Result<Duration, String> {
        let Far { dialer, address, expected } = self.far(host).map_err(|error| error.to_string())?;
        let begun = Instant::now();
        let nothing = BulkRequest::Blob(Digest::of(b"a blob that no host has"));
        let mut sink = tokio::io::sink();
        match dialer.fetch(address, Some(&expected), &nothing, 0, &mut sink, begun + ASKS).await {
            Ok(_) | Err(BulkError::TooLong { .. } | BulkError::Call(CallError::Failed(_))) => Ok(begun.elapsed()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn member(&self, state: &State) -> Member {
        let consensus = self.consensus();
        let places = self.places().clone();
        let me = state.hosts.get(&self.me());
        let witness = me.is_some_and(|host| host.role == Role::Witness);
        let mut hosts: Vec<_> =
            state.hosts.values().map(|host| (host.name.clone(), host.is_live(), host.build.clone())).collect();
        hosts.sort_by(|(a, ..), (b, ..)| natural(a.as_str(), b.as_str()));
        Member {
            me: Some(self.record().name.clone()),
            witness,
            quorum: consensus.quorum,
            voters: consensus.voters.len(),
            willing: state.hosts.values().filter(|host| host.role != Role::Learner && host.is_live()).count(),
            hosts,
            lag: consensus.lag.iter().map(|(host, lag)| (self.name_of(*host), *lag)).collect(),
            two_authorities: state.authority.as_ref().is_some_and(|authority| authority.previous.is_some()),
            // A witness has no disks.
            pools: if witness { Vec::new() } else { self.tried_pools(state).await },
            left_behind: self.left_behind(places).await.into_iter().collect(),
        }
    }

    /// The cluster's pools, each tried from here at the same time.
    async fn tried_pools(&self, state: &State) -> Vec<(Name, Result<Vec<String>, String>)> {
        let trials = state.pools.keys().map(|pool| async move {
            let tried = timeout(POOL_ANSWERS, self.try_pool(pool, None)).await;
            let late = |_| Err(format!("no answer within {} s", POOL_ANSWERS.as_secs()));
            (pool.clone(), tried.map_or_else(late, |tried| tried.map_err(|report| doctor::said(&report))))
        });
        join_all(trials).await
    }

    /// What is on this host and belongs to no VM or attempt. Looked for twice: what is being made or cleared up at this
    /// moment is none of it.
    async fn left_behind(&self, places: Places) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for look in 0..2 {
            let (places, state) = (places.clone(), self.state());
            let now = blocking(move || unowned(&places, &state)).await;
            found = if look == 0 { now } else { found.intersection(&now).cloned().collect() };
            if found.is_empty() {
                break;
            }
            if look == 0 {
                sleep(SETTLES).await;
            }
        }
        found
    }
}

/// Run folders, control groups, taps and disks of this host that no VM or attempt of the state owns.
fn unowned(places: &Places, state: &State) -> BTreeSet<String> {
    let folders: BTreeSet<PathBuf> = state.vms.keys().map(|vm| places.vm(vm)).collect();
    let mut groups: BTreeSet<String> =
        folders.iter().flat_map(|folder| [cgroup_name(folder), guard_cgroup_name(folder)]).collect();
    groups.extend(state.attempts.keys().map(|attempt| giveback::cgroup_name(places, *attempt)));
    let taps: BTreeSet<String> =
        folders.iter().flat_map(|folder| (0..NICS_MAX).map(|card| Tap::name_for(folder, card))).collect();
    let owners: Vec<String> = state.vms.keys().map(ToString::to_string).collect();
    let owned =
        |file: &str| owners.iter().any(|vm| file.strip_prefix(vm).is_some_and(|rest| rest.starts_with(['.', '+'])));

    let mut found = BTreeSet::new();
    let lost = run_dirs(&places.vms()).into_iter().filter(|folder| !folders.contains(folder));
    found.extend(lost.take(LISTED).map(|folder| format!("run folder {}", folder.display())));
    let names = places.cgroups.as_ref().map(|groups| groups.names()).unwrap_or_default();
    let ours = |name: &String| ["vm-", "guard-", "party-"].iter().any(|kind| name.starts_with(kind));
    let lost = names.into_iter().filter(|name| ours(name) && !groups.contains(name));
    found.extend(lost.take(LISTED).map(|name| format!("cgroup {name}")));
    let lost = Tap::all().into_iter().flatten().filter(|tap| !taps.contains(tap));
    found.extend(lost.take(LISTED).map(|tap| format!("tap {tap}")));
    let files = std::fs::read_dir(&places.disks).into_iter().flatten().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    let lost = names.filter(|name| !name.starts_with('.') && !owned(name));
    found.extend(lost.take(LISTED).map(|name| format!("disk {}", places.disks.join(name).display())));
    found
}
