//! The evidence of a job on the user's disk: fetched whole or not at all, and the reports made from it.

pub mod bundle;
pub mod coverage;
pub mod document;
pub mod junit;
pub mod logs;
pub mod markdown;
pub mod moved;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    error::{ErrorCode, Report},
    facts::HostFacts,
    ids::{JobId, Name},
    job::JobView,
};

use self::{bundle::Bundle, logs::Logs, moved::Moved};
use crate::{
    args::ReportFile,
    client::{Mesh, Need},
};

/// Most hosts that are asked what they are.
const HOSTS_MAX: usize = 64;

/// Everything reports are made from.
#[derive(Debug)]
pub struct Material<'a> {
    /// The job with its cases.
    pub job: &'a JobView,
    /// Where the evidence is; none where it was not fetched.
    pub evidence: Option<&'a Path>,
    /// Paths of the evidence, relative.
    pub files: &'a [String],
    /// What happened, by case.
    pub logs: &'a Logs,
    /// What the hosts say of themselves, as far as they answer.
    pub hosts: &'a BTreeMap<Name, HostFacts>,
    /// How cases moved their VMs, by index, as far as the evidence says.
    pub moved: &'a BTreeMap<u32, Moved>,
}

#[cfg(test)]
impl<'a> Material<'a> {
    /// With the evidence at `/r`, and nothing known of hosts and moves.
    fn at_r(job: &'a JobView, files: &'a [String], logs: &'a Logs) -> Self {
        static HOSTS: BTreeMap<Name, HostFacts> = BTreeMap::new();
        static MOVED: BTreeMap<u32, Moved> = BTreeMap::new();
        Self { job, evidence: Some(Path::new("/r")), files, logs, hosts: &HOSTS, moved: &MOVED }
    }
}

/// Where the evidence of a job goes when the user names no directory.
pub fn default_folder(job: JobId) -> PathBuf {
    PathBuf::from("vtmesh-results").join(job.to_string())
}

/// Fetches the evidence and writes the reports. The directory appears when all is in it; a failure leaves nothing there.
/// The reports of `also` are written in either case, because the verdicts are known.
///
/// # Errors
/// The directory is taken, the disk is full, or the evidence does not come.
pub async fn collect(mesh: &mut Mesh, job: &JobView, goal: &Path, also: &[ReportFile]) -> Result<usize, Report> {
    let logs = Logs::fetch(mesh, job).await.unwrap_or_default();
    let hosts = hosts(mesh, job).await;
    let bundle = Bundle::fetch(mesh, job.id, goal).await;
    let page = bundle.as_ref().ok().and_then(|bundle| bundle.json("job.json"));
    let moved = page.as_ref().map(Moved::of_job).unwrap_or_default();
    let material = |evidence, files| Material { job, evidence, files, logs: &logs, hosts: &hosts, moved: &moved };
    match bundle {
        Ok(bundle) => {
            let files = bundle.files().to_vec();
            let material = material(Some(goal), &files);
            bundle.add("results.json", &format!("{:#}\n", document::results(&material)))?;
            bundle.add("results.xml", &junit::xml(&material))?;
            bundle.add("summary.md", &markdown::text(&material))?;
            let count = bundle.keep()?;
            write_also(&material, also)?;
            Ok(count)
        }
        Err(report) => {
            write_also(&material(None, &[]), also)?;
            Err(report)
        }
    }
}

fn write_also(material: &Material<'_>, also: &[ReportFile]) -> Result<(), Report> {
    for report in also {
        let (path, text) = match report {
            ReportFile::Junit(path) => (path, junit::xml(material)),
            ReportFile::Json(path) => (path, format!("{:#}\n", document::results(material))),
            ReportFile::Markdown(path) => (path, markdown::text(material)),
        };
        write(path, &text)?;
    }
    Ok(())
}

/// Writes a report beside its goal and renames it, so that a reader never sees half of one.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Report> {
    let failed = |error: std::io::Error| trouble("write", path, &error);
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".part-{}", std::process::id()));
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(failed)
}

async fn hosts(mesh: &mut Mesh, job: &JobView) -> BTreeMap<Name, HostFacts> {
    let names: std::collections::BTreeSet<&Name> = job.cases.iter().flat_map(|case| &case.hosts).collect();
    let mut found = BTreeMap::new();
    for name in names.into_iter().take(HOSTS_MAX) {
        // A host that is gone by now is no reason to have no report.
        if let Ok(AdminReply::Host(detail)) = mesh.call(&AdminRequest::HostShow(name.clone()), Need::Read).await
            && let Some(facts) = detail.facts
        {
            found.insert(name.clone(), facts);
        }
    }
    found
}

/// A file or directory of the user's could not be used.
pub(crate) fn trouble(what: &str, path: &Path, error: &std::io::Error) -> Report {
    let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    let code = if full { ErrorCode::DiskFull } else { ErrorCode::ResultsWrite };
    Report::new(code, format!("cannot {what} {}", path.display())).with("system said", error.to_string())
}
