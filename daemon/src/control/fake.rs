//! A cluster of one state behind a lock, for tests of loops: what is proposed is applied at once.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;
use vt_protocol::{
    ids::{ClusterId, Digest, HostId, RequestId, TokenId},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    Applied, Command, Request, State,
    command::{AdmitHost, CreateToken, InitCluster, NewHost, OpenSession},
    raft::{Leadership, ReplicaRole},
    state::{Role, SessionStatus},
};

use crate::cluster::{AskError, Cluster, ProposeError};

pub(crate) struct Fake {
    state: watch::Sender<Arc<State>>,
    /// Names of what was proposed, in order.
    pub(crate) proposed: Mutex<Vec<&'static str>>,
    /// Whether proposals are decided.
    pub(crate) decides: watch::Sender<bool>,
}

impl Fake {
    /// Hosts 1 to `hosts`, all live; this is host 1.
    pub(crate) fn new(hosts: u64) -> Arc<Self> {
        let fake = Self {
            state: watch::Sender::new(Arc::new(State::default())),
            proposed: Mutex::default(),
            decides: watch::Sender::new(true),
        };
        let host = |id: u64| NewHost {
            id: HostId(id),
            name: format!("host{id}").parse().unwrap(),
            addresses: vec![format!("10.0.0.{id}:7465").parse().unwrap()],
            labels: Default::default(),
            role: None,
            public_key: vec![id as u8],
            build: "test".into(),
            facts: None,
        };
        let (id, name, ca) = (ClusterId(1), "test".parse().unwrap(), Digest::of(b"ca"));
        fake.apply(InitCluster { id, name, ca, host: host(1) });
        for id in 2..=hosts {
            let (token, secret_hash) = (TokenId(id), Digest::of(b"secret"));
            let made_by = "host1".to_owned();
            fake.apply(CreateToken { token, secret_hash, role: Role::Voter, made_by, expires_unix_s: u64::MAX });
            fake.apply(AdmitHost { token, secret_hash, host: host(id) });
        }
        for id in 1..=hosts {
            fake.apply(OpenSession { host: HostId(id), incarnation: 1, resume: false });
        }
        Arc::new(fake)
    }

    pub(crate) fn apply(&self, command: impl Into<Command>) -> Applied {
        self.request(&Request::new(command)).unwrap()
    }

    fn request(&self, request: &Request) -> Result<Applied, vt_sync::Rejected> {
        let mut outcome = None;
        self.state.send_modify(|state| {
            let index = state.index + 1;
            outcome = Some(Arc::make_mut(state).apply(index, request));
        });
        outcome.unwrap()
    }

    pub(crate) fn status(&self, host: u64) -> SessionStatus {
        self.state().hosts[&HostId(host)].session.as_ref().unwrap().status
    }

    pub(crate) fn epoch(&self, host: u64) -> vt_protocol::ids::Epoch {
        self.state().hosts[&HostId(host)].session.as_ref().unwrap().epoch
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.proposed.lock().unwrap().iter().filter(|known| **known == name).count()
    }
}

/// This host leads or follows, in `term`.
pub(crate) fn leadership(leads: bool, term: u64) -> Leadership {
    Leadership {
        role: if leads { ReplicaRole::Leader } else { ReplicaRole::Follower },
        leader: Some(HostId(if leads { 1 } else { 2 })),
        term,
        voters: [HostId(1), HostId(2), HostId(3)].into(),
        learners: Default::default(),
        changing_to: None,
        settled: true,
    }
}

#[async_trait]
impl Cluster for Fake {
    fn me(&self) -> HostId {
        HostId(1)
    }

    fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    async fn propose(&self, id: RequestId, command: Command, deadline: Duration) -> Result<Applied, ProposeError> {
        let mut decides = self.decides.subscribe();
        if tokio::time::timeout(deadline, decides.wait_for(|decides| *decides)).await.is_err() {
            return Err(ProposeError::NoQuorum);
        }
        self.proposed.lock().unwrap().push(command.name());
        Ok(self.request(&Request::with_id(id, command))?)
    }

    async fn ask(&self, _: HostId, _: PeerRequest, deadline: Duration) -> Result<PeerReply, AskError> {
        Err(AskError::TimedOut(deadline))
    }
}
