//! Who is admitted: committed state; and, until the log has come to this host's own admission, also whom it was told of
//! when it joined. A joiner applies the log from its beginning, and whoever sends it may have been admitted late in it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::sync::watch;
use vt_protocol::{
    identity::PublicKey,
    ids::{ClusterId, HostId},
    join::Member,
};
use vt_sync::{State, state::Host};

use crate::mesh::{Membership, MembershipView};

/// Hosts, and the membership that was made of them.
type Cached = (BTreeMap<HostId, Arc<Host>>, Arc<Membership>);

/// The membership of this moment.
pub struct Members {
    cluster: ClusterId,
    me: HostId,
    told: Arc<Membership>,
    told_generation: u64,
    state: OnceLock<watch::Receiver<Arc<State>>>,
    /// The hosts the cached membership was made of, and it.
    cached: Mutex<Cached>,
}

impl Members {
    /// What the host was told when it joined; the state comes later.
    pub fn new(cluster: ClusterId, generation: u64, me: HostId, members: Vec<Member>) -> Arc<Self> {
        let hosts = members.into_iter().map(|member| (member.host, member)).collect();
        let told = Arc::new(Membership { cluster, hosts, clients: Arc::default() });
        let cached = Mutex::new((BTreeMap::new(), Arc::clone(&told)));
        Arc::new(Self { cluster, me, told, told_generation: generation, state: OnceLock::new(), cached })
    }

    /// From here on the state decides, as soon as it holds a cluster.
    pub fn follow(&self, state: watch::Receiver<Arc<State>>) {
        // A second state would be a second replica of one host, which there is not.
        let _ = self.state.set(state);
    }
}

impl MembershipView for Members {
    fn membership(&self) -> Arc<Membership> {
        let Some(state) = self.state.get().map(|state| state.borrow().clone()) else { return Arc::clone(&self.told) };
        if state.cluster.is_none() {
            return Arc::clone(&self.told);
        }
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let same = Arc::ptr_eq(&cached.1.clients, &state.clients)
            && cached.0.len() == state.hosts.len()
            && cached.0.iter().zip(&state.hosts).all(|((a, one), (b, other))| a == b && Arc::ptr_eq(one, other));
        if !same {
            let member = |host: &Arc<Host>| Member {
                host: host.id,
                name: host.name.clone(),
                key: PublicKey(host.public_key.clone()),
                addresses: host.addresses.clone(),
            };
            let mut hosts: BTreeMap<_, _> = state.hosts.values().map(|host| (host.id, member(host))).collect();
            let removed = |host: &HostId| state.removed.iter().any(|gone| gone.id == *host);
            if !hosts.contains_key(&self.me) && !removed(&self.me) {
                for (id, told) in self.told.hosts.iter().filter(|(id, _)| !removed(id)) {
                    hosts.entry(*id).or_insert_with(|| told.clone());
                }
            }
            let clients = Arc::clone(&state.clients);
            *cached = (state.hosts.clone(), Arc::new(Membership { cluster: self.cluster, hosts, clients }));
        }
        Arc::clone(&cached.1)
    }

    fn generation(&self) -> u64 {
        let state = self.state.get().map(|state| state.borrow().clone());
        state.and_then(|state| Some(state.cluster.as_ref()?.generation)).unwrap_or(self.told_generation)
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::ids::{Digest, RequestId};
    use vt_sync::{
        Request,
        command::{InitCluster, NewHost},
    };

    use super::*;

    fn told(id: u64) -> Member {
        Member {
            host: HostId(id),
            name: format!("host{id}").parse().unwrap(),
            key: PublicKey(vec![id as u8; 44]),
            addresses: vec!["127.0.0.1:7465".parse().unwrap()],
        }
    }

    fn state_with_first_host() -> State {
        let host = NewHost {
            id: HostId(1),
            name: "host1".parse().unwrap(),
            addresses: vec!["127.0.0.1:7465".parse().unwrap()],
            labels: BTreeMap::new(),
            role: None,
            public_key: vec![1; 44],
            build: "1".into(),
            facts: None,
        };
        let init = InitCluster { id: ClusterId(1), name: "test".parse().unwrap(), ca: Digest::of(b"ca"), host };
        let mut state = State::default();
        state.apply(1, &Request::with_id(RequestId(1), init)).unwrap();
        state
    }

    #[test]
    fn a_joiner_lets_in_whom_it_was_told_of_until_the_log_comes_to_its_own_admission() {
        let members = Members::new(ClusterId(1), 1, HostId(4), vec![told(1), told(3)]);
        let (_sender, state) = watch::channel(Arc::new(state_with_first_host()));
        members.follow(state);
        let hosts = members.membership().hosts.clone();
        assert!(hosts.contains_key(&HostId(3)), "the leader that sends the log may be admitted further on in it");

        // A host whose own admission is in its state has the whole truth there.
        let members = Members::new(ClusterId(1), 1, HostId(1), vec![told(1), told(3)]);
        let (_sender, state) = watch::channel(Arc::new(state_with_first_host()));
        members.follow(state);
        assert!(!members.membership().hosts.contains_key(&HostId(3)));
    }
}
