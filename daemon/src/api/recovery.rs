//! A cluster that begins anew: from what one host has after most voters were lost, or from a saved snapshot.
//!
//! What may be lost is told before anything is done. The store is rewritten while no replica runs on it; whether that
//! happened is one transaction on disk.

use std::{fs, io::Read, net::SocketAddr, os::unix::fs::DirBuilderExt, sync::Arc, time::Duration};

use tokio::time::timeout;
use vt_protocol::{
    admin::{AdminReply, FileChunk},
    error::{ErrorCode, Report},
    hello::BUILD,
    identity::{ClusterCa, Identity, store},
    ids::{Digest, Name},
    membership::{Recover, Restore},
};
use vt_sync::{
    State,
    command::NewHost,
    raft::offline::{self, Anew},
    saved::{SAVED_BYTES, Saved},
};

use super::{blocking, views};
use crate::{
    cluster::Cluster,
    control::{self, tokens::unix_s},
    data::DataDir,
    host::Host,
    mesh::{
        ReplySink,
        join::claim::{Claim, Record},
    },
};

/// How long a host may take to lead alone.
const LEADS: Duration = Duration::from_secs(30);

impl Host {
    /// Sends the state of the cluster as a file, and tells what it is.
    pub(super) async fn save_snapshot(&self, replies: &ReplySink) -> Result<Vec<String>, Report> {
        let state = self.state();
        let Some(cluster) = state.cluster.clone() else {
            return Err(Report::new(ErrorCode::NoQuorum, "this host has not heard from its cluster yet").retryable());
        };
        let taken_on = self.record().name.clone();
        let told = vec![format!(
            "cluster {}, generation {}, up to entry {} as {taken_on} knows it: {} hosts, {} jobs",
            cluster.name,
            cluster.generation,
            state.index,
            state.hosts.len(),
            state.jobs.len()
        )];
        let saved = Saved { taken_unix_s: unix_s(), taken_on, build: BUILD.to_owned(), state: (*state).clone() };
        let bytes = blocking(move || saved.encode()).await.map_err(|error| {
            Report::new(ErrorCode::TooLarge, "the state of the cluster cannot be saved").caused_by(&error)
        })?;
        let pieces = bytes.len().div_ceil(FileChunk::MAX);
        for (at, piece) in bytes.chunks(FileChunk::MAX).enumerate() {
            let chunk = FileChunk { path: "snapshot".to_owned(), bytes: piece.to_vec(), last: at + 1 == pieces };
            if replies.send(AdminReply::Files(chunk)).await.is_err() {
                return Ok(told);
            }
        }
        // For the doctor alone, which then says that it was never saved.
        if let Err(error) = self.data().note_saved(unix_s()) {
            tracing::warn!(%error, "that the state was saved cannot be written down");
        }
        Ok(told)
    }
}

/// Refuses where the cluster can decide, or where it was not said that losses are known.
pub(crate) fn check(host: &Host, recover: Recover) -> Result<(), Report> {
    let (state, consensus) = (host.state(), host.consensus());
    if consensus.quorum {
        let report = Report::new(ErrorCode::QuorumHeld, "the cluster can decide: there is nothing to recover from");
        return Err(report.help("vtctl cluster status"));
    }
    if state.cluster.is_none() {
        return Err(Report::new(ErrorCode::NoQuorum, "this host has not heard from its cluster yet: it has nothing"));
    }
    if recover.yes {
        return Ok(());
    }
    let others = others(&state, Some(host.me()));
    let mut report = Report::new(ErrorCode::Usage, "to recover is to give up what only the other hosts have")
        .with(
            "this host",
            format!("{} knows the log up to entry {}", host.record().name, host.replica().status().last_log),
        )
        .with("lost", "whatever a majority acknowledged after that, without this host")
        .with("left behind", if others.is_empty() { "nobody".to_owned() } else { others.join(", ") })
        .with("they", "are refused when they come back, and join as new hosts");
    if consensus.voters.len() > 1 {
        report = report.with("first", "look for the voter with the highest entry: vtctl cluster status on each");
    }
    Err(report.help("vtctl cluster recover --yes   (where the other voters are gone for good)"))
}

fn others(state: &State, kept: Option<vt_protocol::ids::HostId>) -> Vec<String> {
    let mut names: Vec<String> =
        state.hosts.values().filter(|host| Some(host.id) != kept).map(|host| host.name.to_string()).collect();
    names.sort_by(|a, b| views::natural(a, b));
    names
}

/// Makes the store of a stopped host begin anew. A host that never voted makes an authority of its own.
pub(crate) async fn begin_anew(data: &DataDir, record: &Record) -> Result<Vec<String>, Report> {
    let (directory, record) = (data.cluster(), record.clone());
    let (host, address) = (record.host, record.advertise.to_string());
    let authority = blocking(move || authority(&directory, &record)).await.map_err(|error| {
        Report::new(ErrorCode::StoreDamaged, "the authority of the cluster cannot be used").caused_by(&error)
    })?;
    let anew = offline::recover(&data.raft(), host, &address, authority.ca).await;
    let mut steps = told(&anew.map_err(|error| Report::from(&error))?);
    if authority.new {
        steps.push("this host had no key of the cluster's authority and made a new one".to_owned());
        steps.push(
            "clients need new certificates, and hosts left behind are to be cleared before they start".to_owned(),
        );
    }
    Ok(steps)
}

struct Authority {
    ca: Digest,
    new: bool,
}

fn authority(directory: &std::path::Path, record: &Record) -> Result<Authority, vt_protocol::identity::IdentityError> {
    let identity = store::load(directory)?;
    let held = store::load_ca(directory, record.cluster)?;
    let new = held.is_none();
    let ca = match held {
        Some(ca) => ca,
        None => ClusterCa::generate(record.cluster)?,
    };
    if new {
        store::save_ca(directory, &ca)?;
    }
    // A certificate of an authority whose key is not here is of no use any more.
    if identity.ca() != ca.certificate() {
        let certificate = ca.issue_host(&identity.key().signing_request()?, record.host, &record.name)?;
        store::save(directory, &Identity::again(&identity, certificate, ca.certificate().clone(), None)?)?;
    }
    Ok(Authority { ca: Digest::of(ca.certificate()), new })
}

fn told(anew: &Anew) -> Vec<String> {
    let mut steps = vec![format!("generation {} begins behind entry {}", anew.generation, anew.last)];
    if anew.unheard > 0 {
        steps.push(format!("{} entries were kept whose commit this host had not heard of", anew.unheard));
    }
    if !anew.left.is_empty() {
        let mut names: Vec<String> = anew.left.iter().map(ToString::to_string).collect();
        names.sort_by(|a, b| views::natural(a, b));
        steps
            .push(format!("left behind: {}. On each: vtctl cluster leave --forget --yes, then join", names.join(", ")));
    }
    steps.push("open join tokens are revoked".to_owned());
    steps
}

/// Waits until a host that is alone leads.
pub(crate) async fn leads(host: &Arc<Host>) -> Result<(), Report> {
    let mut leadership = host.leadership();
    match timeout(LEADS, leadership.wait_for(control::leads)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Report::new(ErrorCode::DeadlinePassed, "this host does not lead yet")
            .help("vtctl cluster status")
            .retryable()),
    }
}

/// Reads and checks the snapshot of a restore.
pub(crate) async fn read(restore: &Restore) -> Result<Saved, Report> {
    let file = restore.file.clone();
    let shown = file.display().to_string();
    if !file.is_absolute() {
        return Err(Report::new(ErrorCode::Usage, format!("{shown} is not an absolute path")));
    }
    let bytes = blocking(move || {
        let mut bytes = Vec::new();
        fs::File::open(file)?.take(SAVED_BYTES as u64 + 1).read_to_end(&mut bytes).map(|_| bytes)
    });
    let bytes = bytes.await.map_err(|error| {
        Report::new(ErrorCode::StorageFailed, format!("the snapshot {shown} cannot be read")).caused_by(&error)
    })?;
    let saved = blocking(move || Saved::decode(&bytes)).await;
    let saved = saved.map_err(|error| Report::from(&error).with("file", shown))?;
    let Some(cluster) = &saved.state.cluster else {
        return Err(Report::new(ErrorCode::SnapshotUnusable, "the snapshot holds no cluster"));
    };
    if restore.yes {
        return Ok(saved);
    }
    Err(Report::new(ErrorCode::Usage, "to restore is to give up what happened after the snapshot was taken")
        .with("cluster", format!("{}, generation {}", cluster.name, cluster.generation))
        .with("taken", format!("on {}, up to entry {}", saved.taken_on, saved.state.index))
        .with("left behind", others(&saved.state, None).join(", "))
        .with("they", "join the restored cluster as new hosts, under a new authority")
        .help("vtctl cluster snapshot restore FILE --yes"))
}

/// Puts a saved state into the store of this unclaimed host, and claims it. The store comes first: a claim without it
/// would make an empty cluster.
pub(crate) async fn restore(
    data: &DataDir,
    saved: Saved,
    name: Name,
    advertise: SocketAddr,
) -> Result<(Claim, Vec<String>), Report> {
    let Some(cluster) = saved.state.cluster.clone() else {
        return Err(Report::new(ErrorCode::SnapshotUnusable, "the snapshot holds no cluster"));
    };
    let place = data.cluster();
    let (id, cluster_name, host_name) = (cluster.id, cluster.name.clone(), name.clone());
    let staged = blocking(move || Claim::staged(&place, id, cluster_name, host_name, advertise)).await;
    let (staging, mut claim) = staged.map_err(|error| error.report())?;
    let host = NewHost {
        id: claim.record.host,
        name,
        addresses: vec![advertise],
        labels: Default::default(),
        role: None,
        public_key: claim.identity.key().public().0,
        build: BUILD.to_owned(),
        facts: None,
    };
    let raft = data.raft();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&raft).map_err(|error| {
        Report::new(ErrorCode::StorageFailed, "the directory of the log cannot be used").caused_by(&error)
    })?;
    let anew = offline::restore(&raft, saved.state, host, Digest::of(claim.identity.ca())).await;
    let anew = anew.map_err(|error| Report::from(&error))?;
    claim.record.generation = anew.generation;
    let claim = blocking(move || staging.keep(claim)).await.map_err(|error| error.report())?;
    Ok((claim, told(&anew)))
}
