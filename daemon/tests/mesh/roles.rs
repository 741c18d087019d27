//! Every verb and every role: who may ask what, where it is enforced, and that a denial is written down.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::time::Instant;
use vt_daemon::audit::Audit;
use vt_daemon::mesh::{AdminService, Caller, ReplySink, serve};
use vt_protocol::admin::{
    AccessRole, AdminReply, AdminRequest, ClientToken, HostRole, Init, JobLogs, Join, Rotate, RunSubmit, TokenCreate,
};
use vt_protocol::audit::AuditQuery;
use vt_protocol::call::{self, CallError};
use vt_protocol::catalogue::{ImageRequest, StorageRequest};
use vt_protocol::codec;
use vt_protocol::doctor::Examine;
use vt_protocol::error::ErrorCode;
use vt_protocol::hello::Hello;
use vt_protocol::ids::{JobId, RequestId, TokenId};
use vt_protocol::job::Plan;
use vt_protocol::membership::{Change, HostChange, Leave, Recover, Restore};
use vt_protocol::params::Params;
use vt_protocol::scenario::{ScenarioCheck, ScenarioText};
use vt_protocol::service::Service;

use crate::support::{by, name};

const ROLES: [AccessRole; 3] = [AccessRole::Viewer, AccessRole::Runner, AccessRole::Admin];

/// One of each, with the least role that may ask it.
fn every() -> Vec<(AdminRequest, AccessRole)> {
    use AccessRole::{Admin, Runner, Viewer};
    let (request, labels) = (RequestId(1), Default::default());
    let plan = Plan {
        scenario: "uptime".into(),
        cases: vec![],
        case_timeout_ms: 1,
        strict_hosts: false,
        user: "x".into(),
        note: None,
        keep: false,
        matrix: None,
        file: None,
    };
    let init = Init { cluster: name("c"), host: None, advertise: None, role: HostRole::Voter, labels };
    let join =
        Join { token: "vtj1_x".into(), host: None, advertise: None, role: HostRole::Voter, labels: Default::default() };
    vec![
        (AdminRequest::Hello, Viewer),
        (AdminRequest::Init(init), Admin),
        (AdminRequest::Join(join), Admin),
        (AdminRequest::Status, Viewer),
        (AdminRequest::TokenCreate(TokenCreate { request, role: HostRole::Voter, ttl_s: 1 }), Admin),
        (AdminRequest::TokenList, Viewer),
        (AdminRequest::TokenRevoke(TokenId(1)), Admin),
        (AdminRequest::HostShow(name("h")), Viewer),
        (AdminRequest::ScenarioList, Viewer),
        (AdminRequest::RunSubmit(RunSubmit { request, plan }), Runner),
        (AdminRequest::JobList, Viewer),
        (AdminRequest::JobShow(JobId(1)), Viewer),
        (AdminRequest::JobWatch(JobId(1)), Viewer),
        (AdminRequest::JobCancel(JobId(1)), Runner),
        (AdminRequest::JobFetch(JobId(1)), Viewer),
        (AdminRequest::VmList, Viewer),
        (AdminRequest::Inventory, Viewer),
        (AdminRequest::JobLogs(JobLogs { job: JobId(1), follow: false }), Viewer),
        (AdminRequest::ClientToken(ClientToken { request, role: Admin, name: None, ttl_s: 1, valid_s: 1 }), Admin),
        (AdminRequest::AccessList, Viewer),
        (AdminRequest::AccessRevoke(name("a")), Admin),
        (AdminRequest::Audit(AuditQuery { since_unix_ms: 0, limit: 1, denied: false }), Admin),
        (AdminRequest::HostChange(HostChange { request, host: name("h"), what: Change::Cordon }), Admin),
        (AdminRequest::TransferLeader(name("h")), Admin),
        (AdminRequest::Leave(Leave { request, forget: false }), Admin),
        (AdminRequest::JobRelease(JobId(1)), Runner),
        (AdminRequest::JobPlan(JobId(1)), Viewer),
        (AdminRequest::SnapshotSave, Admin),
        (AdminRequest::Restore(Restore { file: "/x".into(), host: None, advertise: None, yes: false }), Admin),
        (AdminRequest::Recover(Recover { yes: false }), Admin),
        (AdminRequest::Image(ImageRequest::List), Viewer),
        (AdminRequest::Image(ImageRequest::Verify(name("i"))), Runner),
        (AdminRequest::Image(ImageRequest::Pin { image: name("i"), pinned: true }), Runner),
        (AdminRequest::Image(ImageRequest::Export { image: name("i"), to: "/x".into() }), Admin),
        (AdminRequest::Image(ImageRequest::Delete(name("i"))), Admin),
        (AdminRequest::Image(ImageRequest::Gc), Admin),
        (AdminRequest::Storage(StorageRequest::List), Viewer),
        (AdminRequest::Storage(StorageRequest::Check(name("p"))), Runner),
        (AdminRequest::Storage(StorageRequest::Remove(name("p"))), Admin),
        (AdminRequest::AuthorityShow, Viewer),
        (AdminRequest::AuthorityRotate(Rotate { finish: false, anyway: false }), Admin),
        (AdminRequest::Renew(vec![1]), Viewer),
        (
            AdminRequest::ScenarioCheck(ScenarioCheck {
                scenario: ScenarioText::default(),
                params: Params::new(),
                hosts: 2,
            }),
            Viewer,
        ),
        (AdminRequest::PlanCheck(Box::default()), Viewer),
        (AdminRequest::KeyList, Viewer),
        (AdminRequest::Doctor(Examine::default()), Runner),
        (AdminRequest::Doctor(Examine { repair: true, ..Examine::default() }), Admin),
    ]
}

#[test]
fn the_list_is_whole() {
    let cap = Service::Admin.cap();
    let mut numbers: Vec<u8> =
        every().iter().map(|(request, _)| codec::encode_wire(request, cap).unwrap()[1]).collect();
    numbers.sort_unstable();
    // Of images and pools there are several.
    numbers.dedup();
    let next = numbers.len() as u8;
    assert_eq!(numbers, (0..next).collect::<Vec<_>>());
    // A variant behind the last would be known, and only miss its body.
    let error = codec::decode_wire::<AdminRequest>(&[codec::WIRE, next], cap).unwrap_err();
    let missing = codec::decode_wire::<AdminRequest>(&[codec::WIRE, 1], cap).unwrap_err();
    assert_ne!(error, missing, "a request was added: it needs a line above");
}

/// Does everything it is asked, and notes what.
struct Willing {
    audit: Arc<Audit>,
    asked: Mutex<Vec<AdminRequest>>,
}

#[async_trait]
impl AdminService for Willing {
    fn hello(&self) -> Hello {
        Hello::of(None, None, 1)
    }

    fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    async fn admin(&self, _caller: Caller, request: AdminRequest, replies: ReplySink, _by: Instant) {
        self.asked.lock().unwrap().push(request);
        let _ = replies.send(AdminReply::Done).await;
    }
}

#[tokio::test]
async fn every_verb_is_open_to_its_role_and_those_above_and_to_no_other() {
    let dir = tempfile::tempdir().unwrap();
    for (request, least) in every() {
        for role in ROLES {
            let service = Arc::new(Willing { audit: Audit::new(dir.path()), asked: Mutex::default() });
            let caller = Caller::Remote { name: name("alice"), role, address: "10.0.0.9:1".parse().unwrap() };
            let (near, mut far) = tokio::io::duplex(1 << 16);
            let (mut reader, mut writer) = tokio::io::split(near);
            let serving = Arc::clone(&service);
            let serving = tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(&mut far);
                serve::admin(&mut reader, &mut writer, caller, serving, None).await
            });
            let payload = call::encode(&request, Service::Admin.cap()).unwrap();
            let answer = call::ask(&mut writer, &mut reader, &payload, Service::Admin.cap(), by()).await;
            serving.await.unwrap().unwrap();
            let asked = service.asked.lock().unwrap().clone();
            if role >= least {
                answer.unwrap();
                assert_eq!(asked, std::slice::from_ref(&request), "{role:?}");
            } else {
                let Err(CallError::Failed(report)) = answer else { panic!("{role:?} did {request:?}") };
                assert_eq!(report.code, ErrorCode::Denied);
                assert!(asked.is_empty(), "{role:?} came through with {request:?}");
            }
        }
    }
}
