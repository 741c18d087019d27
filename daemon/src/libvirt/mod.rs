//! VMs whose QEMU the host's libvirt starts and moves.
//!
//! | file | noun |
//! |---|---|
//! | [`process`] | vt-libvirt, the process that libvirt is linked into |
//! | [`domain`] | a VM as libvirt describes one, pure |
//! | [`given`] | a domain that a user gives for a VM, checked, pure |
//! | [`laid`] | the first laid over the second, pure |
//! | `element` | an element of XML as a value |
//! | [`modes`] | a way of moving, in libvirt's words, pure |
//! | [`options`] | a way of moving in the words of `virsh migrate`, pure |
//! | [`certificates`] | where its QEMUs find theirs |
//!
//! What runs is a QEMU as ever, and it has our two monitors beside libvirt's own: the daemon reads its events and lets it
//! run over one, the guard stops it over the other, and nobody asks libvirt for what QEMU says itself. libvirt notices all
//! of it. So only three things are libvirt's: to start the process, to move it, and to give a move up.
//!
//! The promise is narrower than over QMP. libvirt ends the source as soon as the destination has everything, before the
//! decision is in the log: a destination that dies between the two loses the guest, and the verdict says so. It also lets
//! the source run on by itself when a move fails; that is before our vote, and so before anybody else may own the VM.
//!
//! A post-copy libvirt lets run at the destination by itself, and completes one that converges before. So it is decided as
//! soon as QEMU transfers, with the guest paused and the transfer held too slow to converge meanwhile; then libvirt is told
//! to go over. A transfer that fails between the two loses the guest: over QMP it would have had all but the last pages there.

pub mod certificates;
pub mod domain;
mod element;
pub mod given;
pub mod laid;
pub mod modes;
pub mod options;
pub mod process;

use std::{path::Path, time::Duration};

use vt_protocol::{
    error::{ErrorCode, Report},
    libvirt::{DomainState, Hello, Migrate, PROGRAM, Reply, Request},
};

use self::{
    certificates::Certificates,
    process::{Helper, HelperError},
};
use crate::settings::LibvirtSettings;

/// How long libvirt may take for what is not a move.
const ANSWERS: Duration = Duration::from_secs(60);

/// libvirt of this host.
#[derive(Debug)]
pub struct Libvirt {
    /// How other hosts' libvirts reach it.
    pub peer: String,
    /// Where its QEMUs find their certificates.
    pub certificates: Option<Certificates>,
    uri: String,
    helper: Helper,
}

impl Libvirt {
    /// As the settings have it. The helper is beside `vtd`; it is started when it is needed.
    pub fn new(settings: &LibvirtSettings, vtd: &Path) -> Self {
        let program = vtd.with_file_name(PROGRAM);
        Self {
            peer: settings.peer.clone(),
            certificates: settings.certificates.clone().map(Certificates::new),
            uri: settings.uri.clone(),
            helper: Helper::new(program, settings.uri.clone()),
        }
    }

    /// To what the helper is connected.
    ///
    /// # Errors
    /// libvirt cannot be reached.
    pub async fn hello(&self) -> Result<Hello, Report> {
        match self.ask(Request::Hello).await? {
            Reply::Hello(hello) => Ok(hello),
            other => Err(self.odd(&other)),
        }
    }

    /// Starts a domain with its CPUs stopped.
    ///
    /// # Errors
    /// libvirt refuses, in its words.
    pub async fn start(&self, xml: String) -> Result<(), Report> {
        self.ask(Request::Start { xml }).await.map(drop)
    }

    /// How a domain is; `None`: it is not there.
    ///
    /// # Errors
    /// libvirt cannot be reached.
    pub async fn state(&self, domain: &str) -> Result<Option<DomainState>, Report> {
        match self.ask(Request::State { domain: domain.to_owned() }).await? {
            Reply::State(state) => Ok(state),
            other => Err(self.odd(&other)),
        }
    }

    /// Moves a domain; returns when libvirt has an answer, within `within`.
    ///
    /// # Errors
    /// The domain did not move, or it is not known whether it did: [`HelperError::is_verdict`] tells which.
    pub async fn migrate(&self, migrate: Migrate, within: Duration) -> Result<(), HelperError> {
        self.helper.ask(Request::Migrate(Box::new(migrate)), within).await.map(drop)
    }

    /// Gives up the move of a domain that is under way.
    ///
    /// # Errors
    /// There is none, or libvirt cannot be reached.
    pub async fn abort(&self, domain: &str) -> Result<(), Report> {
        self.ask(Request::Abort { domain: domain.to_owned() }).await.map(drop)
    }

    /// Has the move of a domain that is under way go over to post-copy.
    ///
    /// # Errors
    /// There is none, or libvirt cannot be reached.
    pub async fn start_postcopy(&self, domain: &str) -> Result<(), Report> {
        self.ask(Request::StartPostcopy { domain: domain.to_owned() }).await.map(drop)
    }

    async fn ask(&self, request: Request) -> Result<Reply, Report> {
        self.helper.ask(request, ANSWERS).await.map_err(|error| self.report(&error))
    }

    /// An error as a user meets it.
    pub fn report(&self, error: &HelperError) -> Report {
        let report = Report::new(ErrorCode::LibvirtFailed, error.to_string()).with("libvirt", self.uri.clone());
        let report = match error {
            HelperError::Refused(refusal) => report.with("libvirt said", refusal.message.clone()),
            HelperError::NotStarted { .. } => report.help(format!("put {PROGRAM} beside vtd")),
            HelperError::Gone | HelperError::Silent(_) | HelperError::Garbled(_) => report.retryable(),
        };
        report.caused_by(error)
    }

    fn odd(&self, reply: &Reply) -> Report {
        self.report(&HelperError::Garbled(format!("{reply:?}")))
    }
}

/// What a user is told who wants libvirt on a host that has none.
pub fn not_there(host: &str) -> Report {
    Report::new(ErrorCode::CannotRunHere, format!("the settings of {host} name no libvirt"))
        .help("[libvirt] uri = \"qemu:///system\" and peer = \"qemu+tls://HOST/system\" in the daemon's settings")
        .help("vtctl lab up --libvirt   (for a lab)")
}
