//! Which connection may use which service: one pure decision.
//!
//! TLS has verified the chain by then, or the client showed no certificate at all. A host is its admitted key; what its
//! certificate says besides must agree. A client is its admitted key, within the dates of its certificate. Asked for every connection and again for every request, because a key may be
//! removed while its connection lives.

use vt_protocol::admin::AccessRole;
use vt_protocol::hello::Refusal;
use vt_protocol::identity::Subject;
use vt_protocol::identity::subject::{Facts, role_name};
use vt_protocol::ids::{HostId, Name};
use vt_protocol::service::Service;

use super::services::Membership;

/// Who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pass {
    /// An admitted host.
    Host(HostId),
    /// A client with a role.
    Client {
        /// Whose certificate.
        name: Name,
        /// What it allows.
        role: AccessRole,
    },
    /// Anyone, to `join` alone.
    Anyone,
}

/// Decides at `now` (unix seconds) for the certificate that was shown, if one was.
pub fn admit(service: Service, shown: Option<&Facts>, membership: &Membership, now: u64) -> Result<Pass, Refusal> {
    if service == Service::Join {
        return Ok(Pass::Anyone);
    }
    let facts = shown.ok_or(Refusal::NoCertificate(service))?;
    if facts.subject.cluster() != membership.cluster {
        return Err(Refusal::OtherCluster { theirs: membership.cluster, yours: facts.subject.cluster() });
    }
    match (&facts.subject, service) {
        (Subject::Host { host, .. }, Service::Raft | Service::Peer | Service::Blob) => {
            match membership.host_of(&facts.key) {
                Some(admitted) if admitted == *host => Ok(Pass::Host(admitted)),
                _ => Err(Refusal::NotAdmitted),
            }
        }
        (Subject::Client { .. }, _) if facts.out_of_date(now) => Err(Refusal::Expired),
        (Subject::Client { .. }, Service::Admin | Service::Blob) => match membership.clients.get(&facts.key.digest()) {
            // The record counts, not what the certificate says besides.
            Some(client) => Ok(Pass::Client { name: client.name.clone(), role: client.role }),
            None => Err(Refusal::Revoked),
        },
        _ => Err(Refusal::WrongKind(service)),
    }
}

/// Whom a certificate names, for the audit trail. Whether it is admitted is another question.
pub(super) fn holder(facts: &Facts) -> String {
    match &facts.subject {
        Subject::Host { host, .. } => format!("host {host}"),
        Subject::Client { name, role, .. } => format!("client {name} ({})", role_name(*role)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vt_protocol::identity::PublicKey;
    use vt_protocol::ids::{ClusterId, Epoch, TokenId};
    use vt_protocol::join::Member;
    use vt_sync::state::Client;

    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    fn host(id: u64, key: u8) -> Facts {
        let subject = Subject::Host { cluster: CLUSTER, host: HostId(id) };
        Facts { subject, key: PublicKey(vec![key]), not_before: 0, not_after: 1 }
    }

    fn client(role: AccessRole, key: u8) -> Facts {
        let subject = Subject::Client { cluster: CLUSTER, role, name: "alice".parse().unwrap() };
        Facts { subject, key: PublicKey(vec![key]), not_before: 100, not_after: 200 }
    }

    fn membership() -> Membership {
        let member = |id: u64, key: u8| Member {
            host: HostId(id),
            name: format!("host{id}").parse().unwrap(),
            key: PublicKey(vec![key]),
            addresses: Vec::new(),
        };
        let hosts = [member(1, 11), member(2, 12)].into_iter().map(|member| (member.host, member)).collect();
        let alice = Client {
            name: "alice".parse().unwrap(),
            role: AccessRole::Viewer,
            until_unix_s: 200,
            admitted_with: TokenId(1),
            admitted_at: Epoch(1),
        };
        Membership { cluster: CLUSTER, hosts, clients: Arc::new([(PublicKey(vec![99]).digest(), alice)].into()) }
    }

    #[test]
    fn without_a_certificate_only_join_is_open() {
        assert_eq!(admit(Service::Join, None, &membership(), 0), Ok(Pass::Anyone));
        for service in [Service::Raft, Service::Admin, Service::Peer, Service::Blob] {
            assert_eq!(admit(service, None, &membership(), 0), Err(Refusal::NoCertificate(service)));
        }
    }

    #[test]
    fn a_host_is_its_admitted_key_and_its_dates_do_not_matter() {
        for service in [Service::Raft, Service::Peer, Service::Blob] {
            assert_eq!(admit(service, Some(&host(1, 11)), &membership(), 5_000), Ok(Pass::Host(HostId(1))));
            // A key that was removed or never admitted; the key of one host in the certificate of another.
            assert_eq!(admit(service, Some(&host(1, 77)), &membership(), 0), Err(Refusal::NotAdmitted));
            assert_eq!(admit(service, Some(&host(2, 11)), &membership(), 0), Err(Refusal::NotAdmitted));
        }
        let admin = admit(Service::Admin, Some(&host(1, 11)), &membership(), 0);
        assert_eq!(admin, Err(Refusal::WrongKind(Service::Admin)));
    }

    #[test]
    fn a_client_reaches_admin_and_blobs_within_its_dates() {
        let viewer = client(AccessRole::Viewer, 99);
        for service in [Service::Admin, Service::Blob] {
            assert!(matches!(admit(service, Some(&viewer), &membership(), 150), Ok(Pass::Client { .. })));
            assert_eq!(admit(service, Some(&viewer), &membership(), 201), Err(Refusal::Expired));
            assert_eq!(admit(service, Some(&viewer), &membership(), 99), Err(Refusal::Expired));
            let revoked = client(AccessRole::Viewer, 98);
            assert_eq!(admit(service, Some(&revoked), &membership(), 150), Err(Refusal::Revoked));
            // A certificate that says more than the record gives no more than the record.
            let boasting = admit(service, Some(&client(AccessRole::Admin, 99)), &membership(), 150);
            assert!(matches!(boasting, Ok(Pass::Client { role: AccessRole::Viewer, .. })), "{boasting:?}");
        }
        for service in [Service::Raft, Service::Peer] {
            let refused = admit(service, Some(&client(AccessRole::Admin, 99)), &membership(), 150);
            assert_eq!(refused, Err(Refusal::WrongKind(service)));
        }
    }

    #[test]
    fn a_certificate_of_another_cluster_opens_nothing() {
        let other = Membership { cluster: ClusterId(8), ..membership() };
        for service in [Service::Raft, Service::Admin, Service::Peer, Service::Blob] {
            let refused = admit(service, Some(&host(1, 11)), &other, 0);
            assert!(matches!(refused, Err(Refusal::OtherCluster { .. })), "{refused:?}");
        }
    }
}
