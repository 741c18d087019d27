//! What migrations need of the daemons on their way: connections that are carried, files that are moved, certificates.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use vt_protocol::{
    bulk::{BulkDialer, BulkError, Expected, Outgoing},
    error::{ErrorCode, Report},
    identity::{store, subject::migration_name},
    ids::{HostId, MigrationId},
    peer::{Certified, PeerReply, PeerRequest},
};

use crate::{
    cluster::{AskError, Cluster},
    host::Host,
    mesh::{AdminService, MembershipView},
};

/// How long an entry that the caller has seen may take to come here.
const COMES: Duration = Duration::from_secs(2);

/// The bulk service of another host.
pub(super) struct Far {
    pub(super) dialer: BulkDialer,
    pub(super) address: std::net::SocketAddr,
    pub(super) expected: Expected,
}

impl Host {
    pub(super) fn far(&self, host: HostId) -> Result<Far, AskError> {
        let unreachable = |why: String| AskError::Unreachable(why);
        let membership = self.membership();
        let member =
            membership.hosts.get(&host).ok_or_else(|| unreachable(format!("{host} is no host of the cluster")))?;
        let address = *member.addresses.first().ok_or_else(|| unreachable(format!("{host} has no address")))?;
        let dialer = BulkDialer::new(&self.identity(), self.hello()).map_err(|error| unreachable(error.to_string()))?;
        Ok(Far { dialer, address, expected: Expected { host, key: member.key.clone() } })
    }

    /// A connection to the QEMU that a migration goes to.
    pub(crate) async fn stream_to(
        &self,
        host: HostId,
        migration: &MigrationId,
        deadline: Duration,
    ) -> Result<Outgoing, AskError> {
        let Far { dialer, address, expected } = self.far(host)?;
        let stream = dialer.migration(address, Some(&expected), migration, Instant::now() + deadline).await;
        stream.map_err(not_done)
    }

    /// Gives a host the file that a VM was saved into; returns its length.
    pub(crate) async fn state_to(
        &self,
        host: HostId,
        migration: &MigrationId,
        file: &Path,
        by: Instant,
    ) -> Result<u64, AskError> {
        let unreadable = |error: std::io::Error| {
            AskError::Refused(Box::new(
                Report::new(ErrorCode::StorageFailed, "the file that the VM was saved into cannot be read")
                    .caused_by(&error),
            ))
        };
        let mut source = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let length = source.metadata().await.map_err(unreadable)?.len();
        let Far { dialer, address, expected } = self.far(host)?;
        let given = dialer.state(address, Some(&expected), (migration, length), &mut source, by).await;
        given.map(|()| length).map_err(not_done)
    }

    /// A certificate for a side of a migration of this host's: by itself where it holds the authority's key, else by a voter.
    pub(crate) async fn certificate_for(
        self: &Arc<Self>,
        migration: &MigrationId,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Certified, AskError> {
        let by = Instant::now() + deadline;
        let mut voters: Vec<HostId> = self.leadership().borrow().voters.iter().copied().collect();
        voters.sort_by_key(|voter| *voter != self.me());
        let mut last = AskError::Unreachable("the cluster has no voters".to_owned());
        for voter in voters {
            let ask = PeerRequest::CertifyMigration { migration: migration.clone(), request: request.clone() };
            let left = by.saturating_duration_since(Instant::now());
            match self.ask(voter, ask, left).await {
                Ok(PeerReply::Certified(certified)) => return Ok(certified),
                Ok(other) => last = AskError::Unreachable(format!("{voter} answered with {other:?}")),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Certifies the key of one side of a migration, for the host that is that side.
    ///
    /// # Errors
    /// The caller is no side of a migration that is under way, or this host holds no key of the authority.
    pub(super) async fn certify_migration(
        &self,
        from: HostId,
        migration: &MigrationId,
        request: &[u8],
    ) -> Result<Certified, Report> {
        let denied = || Report::new(ErrorCode::Denied, format!("{migration} is not under way with the caller"));
        // The caller has seen its entry applied; this host may be a moment behind.
        let mut watch = self.watch();
        let sides = watch.wait_for(|state| state.migration(migration).is_some());
        let state =
            timeout(COMES, sides).await.ok().and_then(Result::ok).map(|state| state.clone()).ok_or_else(denied)?;
        let record = state.migration(migration).filter(|record| record.is_under_way()).ok_or_else(denied)?;
        let other = match from {
            from if from == record.from => record.to,
            from if from == record.to => record.from,
            _ => return Err(denied()),
        };
        let authority = self.authority().await.map_err(|_| {
            Report::new(ErrorCode::Unreachable, "this host holds no key of the cluster's authority").retryable()
        })?;
        let cluster = self.record().cluster;
        let (name, other) = (migration_name(cluster, migration, from), migration_name(cluster, migration, other));
        let certificate = authority.issue_migration(request, &name).map_err(|error| {
            Report::new(ErrorCode::BadParameter, "the signing request is not acceptable").caused_by(&error)
        })?;
        let authority = store::to_pem(authority.certificate());
        Ok(Certified { certificate: store::to_pem(&certificate), name, other, authority })
    }
}

fn not_done(error: BulkError) -> AskError {
    AskError::Refused(Box::new(error.report()))
}
