//! Who is admitted: committed state, or, before the log has reached this host, what it was told when it joined.

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
    told: Arc<Membership>,
    state: OnceLock<watch::Receiver<Arc<State>>>,
    /// The hosts the cached membership was made of, and it.
    cached: Mutex<Cached>,
}

impl Members {
    /// What the host was told when it joined; the state comes later.
    pub fn new(cluster: ClusterId, members: Vec<Member>) -> Arc<Self> {
        let hosts = members.into_iter().map(|member| (member.host, member)).collect();
        let told = Arc::new(Membership { cluster, hosts });
        let cached = Mutex::new((BTreeMap::new(), Arc::clone(&told)));
        Arc::new(Self { cluster, told, state: OnceLock::new(), cached })
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
        let same = cached.0.len() == state.hosts.len()
            && cached.0.iter().zip(&state.hosts).all(|((a, one), (b, other))| a == b && Arc::ptr_eq(one, other));
        if !same {
            let member = |host: &Arc<Host>| Member {
                host: host.id,
                name: host.name.clone(),
                key: PublicKey(host.public_key.clone()),
                addresses: host.addresses.clone(),
            };
            let hosts = state.hosts.values().map(|host| (host.id, member(host))).collect();
            *cached = (state.hosts.clone(), Arc::new(Membership { cluster: self.cluster, hosts }));
        }
        Arc::clone(&cached.1)
    }
}
