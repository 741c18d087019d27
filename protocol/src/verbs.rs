//! Every verb of the admin service in one table: what it is called, who may use it, whether it changes something.
//!
//! There is no default: a request that is added gets its line here, or does not compile. Daemons check [`Verb::needs`]
//! before a request reaches its handler; what [`Verb::changes`] says is written into the audit trail.

use crate::{
    admin::{AccessRole, AdminRequest},
    catalogue::{ImageRequest, StorageRequest, SyncImage},
    membership::Change,
};

/// What is to be known of a request before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verb {
    /// As vtctl calls it.
    pub name: &'static str,
    /// The least role that may ask it.
    pub needs: AccessRole,
    /// Whether it changes something.
    pub changes: bool,
}

const fn look(name: &'static str) -> Verb {
    Verb { name, needs: AccessRole::Viewer, changes: false }
}

const fn run(name: &'static str) -> Verb {
    Verb { name, needs: AccessRole::Runner, changes: true }
}

const fn change(name: &'static str) -> Verb {
    Verb { name, needs: AccessRole::Admin, changes: true }
}

fn image_verb(request: &ImageRequest) -> Verb {
    match request {
        ImageRequest::List => look("image list"),
        ImageRequest::Writers => look("image writers"),
        ImageRequest::Packages(_) => look("image packages"),
        ImageRequest::Sync(_) => run("image sync"),
        ImageRequest::Verify(_) => run("image verify"),
        ImageRequest::Pin { pinned: true, .. } => run("image pin"),
        ImageRequest::Pin { pinned: false, .. } => run("image unpin"),
        // It reads, or writes, any file of the host.
        ImageRequest::Import(_) => change("image import"),
        ImageRequest::Export { .. } => change("image export"),
        ImageRequest::Delete(_) => change("image delete"),
        ImageRequest::Convert(_) => change("image convert"),
        // It has the host speak to any address.
        ImageRequest::Fetch(_) => change("image fetch"),
        ImageRequest::Gc => change("image gc"),
    }
}

fn image_object(request: &ImageRequest) -> String {
    match request {
        ImageRequest::List | ImageRequest::Gc | ImageRequest::Writers => String::new(),
        ImageRequest::Import(import) => format!("image {} from {}", import.name, import.path.display()),
        ImageRequest::Export { image, to } => format!("image {image} to {}", to.display()),
        ImageRequest::Convert(convert) => format!("image {} from image {}", convert.name, convert.image),
        ImageRequest::Fetch(fetch) => format!("image {} from {}", fetch.name, fetch.url),
        ImageRequest::Sync(SyncImage { image, .. })
        | ImageRequest::Packages(image)
        | ImageRequest::Verify(image)
        | ImageRequest::Delete(image)
        | ImageRequest::Pin { image, .. } => format!("image {image}"),
    }
}

impl AdminRequest {
    /// The line of this request.
    pub fn verb(&self) -> Verb {
        match self {
            Self::Hello => look("hello"),
            Self::Init(_) => change("cluster init"),
            Self::Join(_) => change("cluster join"),
            Self::Status => look("cluster status"),
            Self::TokenCreate(_) => change("cluster token create"),
            Self::TokenList => look("cluster token list"),
            Self::TokenRevoke(_) => change("cluster token revoke"),
            Self::HostShow(_) => look("host show"),
            Self::ScenarioList => look("scenario list"),
            Self::RunSubmit(_) => run("run"),
            Self::JobList => look("job list"),
            Self::JobShow(_) => look("job show"),
            Self::JobWatch(_) => look("job watch"),
            Self::JobCancel(_) => run("job cancel"),
            Self::JobFetch(_) => look("job fetch"),
            Self::VmList => look("vm list"),
            Self::Inventory => look("host inventory"),
            Self::JobLogs(_) => look("job logs"),
            Self::ClientToken(_) => change("cluster token create"),
            Self::AccessList => look("cluster access list"),
            Self::AccessRevoke(_) => change("cluster access revoke"),
            // It tells who did what from where.
            Self::Audit(_) => Verb { needs: AccessRole::Admin, ..look("cluster audit") },
            Self::HostChange(host) => match host.what {
                // Who may run jobs may ask the others to wait.
                Change::Reserve { .. } | Change::Release => run(host.what.verb()),
                _ => change(host.what.verb()),
            },
            Self::TransferLeader(_) => change("cluster transfer"),
            Self::Leave(_) => change("cluster leave"),
            // It tells all there is, of everybody.
            Self::SnapshotSave => Verb { needs: AccessRole::Admin, ..look("cluster snapshot save") },
            Self::Restore(_) => change("cluster snapshot restore"),
            Self::Recover(_) => change("cluster recover"),
            Self::JobRelease(_) => run("job release"),
            Self::JobPlan(_) => look("job plan"),
            Self::Image(image) => image_verb(image),
            Self::Storage(storage) => match storage {
                StorageRequest::List => look("storage list"),
                StorageRequest::Check(_) => run("storage check"),
                StorageRequest::Add(_) => change("storage add"),
                StorageRequest::Remove(_) => change("storage remove"),
            },
            Self::AuthorityShow => look("cluster ca show"),
            Self::AuthorityRotate(_) => change("cluster ca rotate"),
            // A client renews itself; what it may do stays.
            Self::Renew(_) => Verb { changes: true, ..look("config renew") },
            Self::ScenarioCheck(_) => look("scenario check"),
            Self::PlanCheck(_) => look("scenario parity"),
            Self::KeyList => look("scenario params"),
            Self::Doctor(examine) if examine.repair => change("doctor --fix"),
            // It has hosts write trial files and open ports for a moment.
            Self::Doctor(_) => run("doctor"),
        }
    }

    /// The least role that may ask this.
    pub fn needs(&self) -> AccessRole {
        self.verb().needs
    }

    /// What the request is about, for the audit trail: what it names itself, not what becomes of it. Never a secret.
    pub fn object(&self) -> String {
        match self {
            Self::Init(init) => format!("cluster {}", init.cluster),
            Self::TokenCreate(create) => format!("token for a host, ttl {} s", create.ttl_s),
            Self::ClientToken(create) => {
                let name = create.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
                format!("token for client{name}, role {}", crate::identity::subject::role_name(create.role))
            }
            Self::TokenRevoke(token) => format!("token {token}"),
            Self::HostShow(name) => format!("host {name}"),
            Self::RunSubmit(submit) => format!("{} of {} cases", submit.plan.scenario, submit.plan.cases.len()),
            Self::JobShow(job)
            | Self::JobWatch(job)
            | Self::JobCancel(job)
            | Self::JobFetch(job)
            | Self::JobPlan(job)
            | Self::JobRelease(job) => job.to_string(),
            Self::JobLogs(logs) => logs.job.to_string(),
            Self::PlanCheck(plan) => format!("{} cases", plan.cases.len()),
            Self::ScenarioCheck(check) => check.scenario.file.chars().take(64).collect(),
            Self::AccessRevoke(name) => format!("client {name}"),
            Self::HostChange(change) => format!("host {}{}", change.host, change.what.object()),
            Self::TransferLeader(name) => format!("host {name}"),
            Self::AuthorityRotate(rotate) if rotate.finish => "the end of the one before".to_owned(),
            Self::Leave(leave) if leave.forget => "without asking the cluster".to_owned(),
            Self::Restore(restore) => restore.file.display().to_string(),
            Self::Image(image) => image_object(image),
            Self::Storage(StorageRequest::Add(pool)) => format!("pool {} at {}", pool.name, pool.place),
            Self::Storage(StorageRequest::Check(pool) | StorageRequest::Remove(pool)) => format!("pool {pool}"),
            Self::Hello
            | Self::Join(_)
            | Self::Status
            | Self::TokenList
            | Self::ScenarioList
            | Self::JobList
            | Self::VmList
            | Self::Inventory
            | Self::AccessList
            | Self::Leave(_)
            | Self::SnapshotSave
            | Self::Recover(_)
            | Self::Storage(StorageRequest::List)
            | Self::AuthorityShow
            | Self::KeyList
            | Self::Doctor(_)
            | Self::AuthorityRotate(_)
            | Self::Renew(_)
            | Self::Audit(_) => String::new(),
        }
    }
}
