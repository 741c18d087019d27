//! The first commands of a cluster, for the model and the simulator: its hosts, their sessions, and one job.

use std::collections::BTreeMap;

use vt_protocol::ids::{CaseId, ClusterId, Digest, HostId, JobId, TokenId};
use vt_sync::{
    Command,
    command::{AdmitHost, CreateToken, InitCluster, NewCase, NewHost, OpenSession, SubmitJob},
    state::Role,
};

/// The one job.
pub const JOB: JobId = JobId(1);

/// A case of it, counted from 1.
pub fn case(index: u32) -> CaseId {
    CaseId { job: JOB, index }
}

/// The name of a host.
pub fn name(host: HostId) -> String {
    format!("host{}", host.0)
}

fn new_host(id: HostId) -> NewHost {
    NewHost {
        id,
        name: name(id).parse().expect("it is a name"),
        addresses: vec![([10, 0, 0, 1], 7465).into()],
        labels: BTreeMap::new(),
        role: None,
        public_key: id.0.to_le_bytes().to_vec(),
        build: "sim".to_owned(),
        facts: None,
    }
}

/// The cluster is made by the first host and admits the others.
pub fn cluster(hosts: &[HostId]) -> Vec<Command> {
    let name = "sim".parse().expect("it is a name");
    let init = InitCluster { id: ClusterId(1), name, ca: Digest::of(b"ca"), host: new_host(hosts[0]) };
    let mut commands: Vec<Command> = vec![init.into()];
    let secret_hash = Digest::of(b"secret");
    for host in &hosts[1..] {
        let token = TokenId(host.0);
        let made_by = "sim".to_owned();
        commands.push(CreateToken { token, secret_hash, role: Role::Voter, made_by, expires_unix_s: 0 }.into());
        commands.push(AdmitHost { token, secret_hash, host: new_host(*host) }.into());
    }
    commands
}

/// Every host opens its session.
pub fn sessions(hosts: &[HostId]) -> impl Iterator<Item = Command> {
    hosts.iter().map(|host| OpenSession { host: *host, incarnation: 1, resume: false }.into())
}

/// A user submits the job, with the hosts of each case.
pub fn job(cases: &[&[HostId]]) -> Command {
    SubmitJob {
        job: JOB,
        scenario: "sim".to_owned(),
        plan: Digest::of(b"plan"),
        holders: Vec::new(),
        strict: false,
        submitted_by: "sim".to_owned(),
        submitted_unix_s: 0,
        cases: cases.iter().map(|hosts| NewCase::on(hosts.to_vec())).collect(),
        refusals: vec![],
    }
    .into()
}
