//! A cluster that begins anew with what one host has: after most voters were lost, or from a saved snapshot.
//!
//! Every other host is left behind: what it held is given up, its key and id stay refused, and it joins afresh. The
//! generation tells the cluster from the one that those hosts may still believe in.

use std::sync::Arc;

use vt_protocol::{
    error::ErrorCode,
    ids::{Digest, HostId, Name},
};

use super::{Entry, Role, State, reject};
use crate::{answer::Rejected, command::NewHost};

/// The one host of a cluster that begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Survivor {
    /// It was in the cluster.
    Known(HostId),
    /// It was not: the state comes from a file.
    New(NewHost),
}

impl State {
    /// Begins the next generation as of log index `index`, under the authority with the certificate of digest `ca`.
    /// Gives the names of the hosts that are left behind.
    ///
    /// # Errors
    /// There is no cluster, or the survivor is not in it or cannot come into it. The state is not to be used then.
    pub fn begin_anew(&mut self, index: u64, survivor: &Survivor, ca: Digest) -> Result<Vec<Name>, Rejected> {
        let Some(cluster) = &mut self.cluster else { return reject(ErrorCode::Unclaimed, "there is no cluster yet") };
        cluster.generation += 1;
        if cluster.ca != ca {
            // Their certificates are of an authority that is trusted no more, and nobody else's names are to be taken.
            self.clients = Arc::default();
            self.authority = None;
        }
        cluster.ca = ca;
        self.index = index;
        let mut entry = Entry { index, effects: Vec::new() };
        let kept = match survivor {
            Survivor::Known(id) => Some(self.known_host(*id)?.id),
            Survivor::New(_) => None,
        };
        let others: Vec<HostId> = self.hosts.keys().copied().filter(|id| Some(*id) != kept).collect();
        let mut left = Vec::new();
        for id in others {
            let name = self.known_host(id)?.name.clone();
            self.drop_host(&mut entry, id, &format!("{name} was left behind when the cluster was recovered"))?;
            left.push(name);
        }
        match survivor {
            Survivor::Known(id) => {
                let host = self.host_mut(*id)?;
                if host.role == Role::Learner {
                    host.role = Role::Voter;
                }
            }
            Survivor::New(host) => {
                self.check_new_host(host)?;
                self.add_host(&mut entry, host, Role::Voter, None);
            }
        }
        // Whoever holds one may have been told of another cluster by now.
        self.revoke_open_tokens(&mut entry);
        Ok(left)
    }
}
