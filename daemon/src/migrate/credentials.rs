//! TLS between two QEMUs: each side makes a key for this migration alone, and the cluster's authority certifies it.
//!
//! Key and certificates are files of the VM's run folder and go with it. Each side checks that the other is just the other
//! host of this very migration: the source by the name in the server's certificate, the destination by the subject of the
//! client's.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use serde_json::json;
use vt_protocol::{
    error::{ErrorCode, Report},
    identity::PrivateKey,
    ids::MigrationId,
    peer::Certified,
    vm::MigrationSpec,
};

use crate::{
    libvirt::certificates::Held,
    party::{attempt::LocalAttempt, local_vm::LocalVm},
    qemu::qmp::Qmp,
};

/// How long the authority may take.
const CERTIFIES: Duration = Duration::from_secs(20);

/// A side of a migration, as TLS knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The source: TLS's client.
    Source,
    /// The destination: TLS's server.
    Destination,
}

impl Side {
    fn endpoint(self) -> &'static str {
        match self {
            Self::Source => "client",
            Self::Destination => "server",
        }
    }
}

impl LocalAttempt {
    /// Gives a QEMU what it needs for TLS in this migration. Returns the spec with the parameters that name it.
    pub(super) async fn with_tls(
        &self,
        vm: &LocalVm,
        id: &MigrationId,
        side: Side,
        spec: &MigrationSpec,
    ) -> Result<MigrationSpec, Report> {
        let (key, certified) = self.certified(id).await?;
        let folder = vm.qemu.run_dir().join(format!("tls-{}", id.number));
        write(&folder, &files(side, &key.to_pem(), &certified)).map_err(|error| unwritten(&error))?;
        let names = offer(vm.qemu.qmp(), &folder, id.number, side, &certified).await?;
        let mut spec = spec.clone();
        spec.words.extend(names.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Ok(spec)
    }

    /// Gives the next QEMU of this host's libvirt what it needs. Returns the name in the other side's certificate.
    pub(super) async fn libvirt_with_tls(&self, id: &MigrationId, side: Side) -> Result<(String, Held), Report> {
        let libvirt = self.libvirt()?;
        let Some(folder) = &libvirt.certificates else { return Err(no_folder(&self.name_of(self.me()))) };
        let (key, certified) = self.certified(id).await?;
        let key = key.to_pem();
        let held = folder.take(side == Side::Destination, &files(side, &key, &certified)).await;
        Ok((certified.other, held.map_err(|error| unwritten(&error))?))
    }

    /// A key for this side of a migration, and what the authority says of it.
    async fn certified(&self, id: &MigrationId) -> Result<(PrivateKey, Certified), Report> {
        let unmade = |error: &dyn std::error::Error| {
            Report::new(ErrorCode::Internal, "no key for the migration could be made").caused_by(error)
        };
        let key = PrivateKey::generate().map_err(|error| unmade(&error))?;
        let request = key.signing_request().map_err(|error| unmade(&error))?;
        let certified = self.cluster.certify(id, request, CERTIFIES).await.map_err(|error| {
            Report::new(ErrorCode::Preflight, "the cluster's authority gave no certificate for the migration")
                .caused_by(&error)
        })?;
        Ok((key, certified))
    }
}

/// Why libvirt of a host moves no VM with TLS.
pub(super) fn no_folder(host: &str) -> Report {
    let title = format!("the settings of {host} do not say where libvirt's QEMUs find certificates");
    Report::new(ErrorCode::CannotRunHere, title)
        .help("[libvirt] certificates, as migrate_tls_x509_cert_dir in qemu.conf")
}

fn unwritten(error: &io::Error) -> Report {
    Report::new(ErrorCode::Internal, "the credentials of the migration could not be written").caused_by(error)
}

/// The files of a side, as QEMU looks for them.
fn files<'a>(side: Side, key: &'a str, certified: &'a Certified) -> [(String, &'a str); 3] {
    let endpoint = side.endpoint();
    [
        ("ca-cert.pem".to_owned(), &certified.authority),
        (format!("{endpoint}-cert.pem"), &certified.certificate),
        (format!("{endpoint}-key.pem"), key),
    ]
}

fn write(folder: &Path, files: &[(String, &str)]) -> io::Result<()> {
    // Left by a daemon that ended in the middle: what is in it is of no use to anybody.
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(folder)?;
    for (name, text) in files {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name))?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Makes the objects in QEMU; returns the migration parameters that name them.
async fn offer(
    qmp: &Qmp,
    folder: &Path,
    number: u32,
    side: Side,
    certified: &Certified,
) -> Result<Vec<(&'static str, String)>, Report> {
    let (creds, authz) = (format!("tls{number}"), format!("authz{number}"));
    // One that was made for a preparation that did not come to its end.
    for id in [&creds, &authz] {
        let _ = qmp.object_del(id).await;
    }
    let object = json!({
        "qom-type": "tls-creds-x509",
        "id": creds,
        "dir": folder,
        "endpoint": side.endpoint(),
        "verify-peer": true,
    });
    qmp.object_add(object).await.map_err(|error| error.report())?;
    let mut names = vec![("tls-creds", creds)];
    match side {
        Side::Source => names.push(("tls-hostname", certified.other.clone())),
        Side::Destination => {
            let identity = format!("CN={}", certified.other);
            let object = json!({ "qom-type": "authz-simple", "id": authz, "identity": identity });
            qmp.object_add(object).await.map_err(|error| error.report())?;
            names.push(("tls-authz", authz));
        }
    }
    Ok(names)
}
