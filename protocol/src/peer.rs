//! What daemons ask each other (`vt-peer/1`). The caller is known by the key of its certificate.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    audit::{AuditEntry, AuditQuery},
    doctor::{Examine, Examined},
    error::Report,
    facts::HostFacts,
    ids::{AttemptId, Digest, Epoch, HostId, MigrationId, Name, VmId},
    job::AttemptEvent,
    vm::{Accelerator, MigrationSpec, Transport, VmSpec},
};

/// A request. Variants are only ever appended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Propose this encoded state machine request; only a leader does.
    Propose(Vec<u8>),
    /// Renew the caller's session.
    Renew(Renew),
    /// What are you?
    Facts,
    /// Give me this blob.
    BlobGet(Digest),
    /// Keep this blob.
    BlobPut {
        /// Its digest.
        digest: Digest,
        /// Its bytes, at most [`crate::job::PLAN_MAX`].
        bytes: Vec<u8>,
    },
    /// Events of an attempt on this host after `after`; waits up to `wait_ms` for one.
    Events {
        /// Which attempt.
        attempt: AttemptId,
        /// Events up to this sequence number are known.
        after: u64,
        /// How long to wait for the first one, ms, at most 5000.
        wait_ms: u32,
    },
    /// The files of evidence of an attempt on this host: paths and sizes.
    EvidenceList(AttemptId),
    /// A piece of such a file, at most 4 MiB.
    EvidenceRead {
        /// Which attempt.
        attempt: AttemptId,
        /// Relative path from the list.
        path: String,
        /// Where to begin, bytes.
        offset: u64,
        /// How much, bytes.
        length: u32,
    },
    /// Make ready to receive a VM.
    PrepareIncoming(Box<PrepareIncoming>),
    /// How is the destination's side of this migration? Answered when its QEMU has ended or resumed, or after `wait_ms`.
    IncomingState {
        /// Which migration.
        migration: MigrationId,
        /// How long to wait for a change, ms, at most 5000.
        wait_ms: u32,
    },
    /// Are you there? A round trip.
    Ping,
    /// Keep the key of the cluster's authority: you are to vote.
    KeepAuthority(AuthorityKey),
    /// Your part of the audit trail.
    Audit(AuditQuery),
    /// Hand leadership to this voter; only a leader does.
    HandOver(HostId),
    /// What time is it with you?
    Clock,
    /// The connection of this post-copy is broken: listen anew.
    RecoverIncoming {
        /// Which.
        migration: MigrationId,
        /// What carries it.
        transport: Transport,
    },
    /// Certify this key for one side of a migration of the caller's; only a voter does.
    CertifyMigration {
        /// Which migration.
        migration: MigrationId,
        /// A signing request in DER.
        request: Vec<u8>,
    },
    /// Have this image, from whoever has it. Begins what is not under way, and answers when it has ended or after
    /// `wait_ms`.
    PullImage {
        /// Which.
        image: Name,
        /// The version that counts, as the caller knows it.
        root: Digest,
        /// Most bytes a second; 0: no bound.
        rate: u64,
        /// How long to wait for its end, ms, at most 5000.
        wait_ms: u32,
    },
    /// Read your copy of this image and compare it with its digests.
    VerifyImage(Name),
    /// Remove your copy of this image.
    DropImage(Name),
    /// Remove what broken transfers left, and copies that are not on record.
    SweepImages,
    /// Try this pool.
    TryPool {
        /// Its name.
        pool: Name,
        /// A file that another host wrote there: its name and what must stand in it.
        written: Option<(String, String)>,
    },
    /// Have another authority follow the cluster's present one; only a leader does.
    RotateAuthority,
    /// Sign for the key of this signing request (DER) what the log has on record for it.
    Certify(Vec<u8>),
    /// Give the key of the authority with this certificate: the caller votes and lacks it.
    GiveAuthority(Digest),
    /// Examine yourself, and your ways to other hosts; `all` is not looked at.
    Examine(Examine),
    /// Listen for a moment where migrations come in, and send back what comes: your way in is to be tried.
    EchoOnce,
    /// Which QEMU would you run this VM with?
    QemuOf(VmId),
}

/// The private key of the cluster's authority, PKCS#8 in PEM. It is only ever sent from a voter to a voter or one that is to be.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityKey(pub String);

impl std::fmt::Debug for AuthorityKey {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthorityKey(…)")
    }
}

/// Renews a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Whose.
    pub host: HostId,
    /// Its epoch.
    pub epoch: Epoch,
    /// How long after its last renewal its guards kill its VMs, ms.
    pub kill_ms: u64,
}

/// What the source tells the destination before anything moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareIncoming {
    /// Which movement.
    pub migration: MigrationId,
    /// Epoch of the VM's owner record.
    pub epoch: Epoch,
    /// The VM, with machine type, CPU model and accelerator resolved as the source runs it.
    pub vm: VmSpec,
    /// The overlay disk, as the source has it.
    pub disk: String,
    /// Digest of the image that it lies upon.
    pub image: String,
    /// Where the pool is not shared, the disk is copied with the VM: digest of the image that it lies upon.
    pub copies_upon: Option<String>,
    /// How it is to be moved.
    pub spec: MigrationSpec,
    /// What the source runs with: compared by the destination.
    pub preflight: Preflight,
}

/// What must fit on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// Version of QEMU.
    pub qemu_version: String,
    /// Machine type, versioned.
    pub machine: String,
    /// CPU model as on the command line.
    pub cpu_model: String,
    /// Accelerator.
    pub accelerator: Accelerator,
    /// Capabilities this QEMU has, by its own names.
    pub capabilities: Vec<String>,
    /// What the guest can see of QEMU's command line, as `-option value`; empty where that is not known.
    pub shows: Vec<String>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerReply {
    /// It did not happen, and why.
    Refused(Report),
    /// It happened.
    Done,
    /// The caller is not the leader's; ask this host, where it is known.
    NotLeader(Option<HostId>),
    /// Answer to `Propose`: the encoded result.
    Proposed(Vec<u8>),
    /// Answer to `Facts`.
    Facts(Box<HostFacts>),
    /// Answer to `BlobGet`; `None`: not here.
    Blob(Option<Vec<u8>>),
    /// Answer to `Events`.
    Events(Vec<AttemptEvent>),
    /// Answer to `EvidenceList`: relative path and size in bytes.
    EvidenceList(Vec<(String, u64)>),
    /// Answer to `EvidenceRead`.
    Bytes(Vec<u8>),
    /// Answer to `PrepareIncoming`: where the destination listens.
    Prepared(Prepared),
    /// Answer to `IncomingState`.
    Incoming(IncomingState),
    /// Answer to `Audit`, oldest first.
    Audit(Vec<AuditEntry>),
    /// Answer to `RecoverIncoming`: QEMU's URI that the source goes on with.
    Recovering(String),
    /// Answer to `Clock`: seconds since 1970.
    Clock(u64),
    /// Answer to `CertifyMigration`.
    Certified(Certified),
    /// Answer to `PullImage`.
    Pulling(Pulling),
    /// Answer to `VerifyImage`, `DropImage`, `SweepImages` and `TryPool`: what was done or found, for people.
    Told(Vec<String>),
    /// Answer to `Certify`: a certificate of the present authority, in DER.
    Certificate(Vec<u8>),
    /// Answer to `GiveAuthority`.
    Authority(AuthorityKey),
    /// Answer to `Examine`.
    Examined(Box<Examined>),
    /// Answer to `EchoOnce`: where it listens.
    Echoes(SocketAddr),
    /// Answer to `QemuOf`.
    Qemu(Box<QemuOffer>),
}

/// One side's certificate for one migration, and what the other side's is checked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// The caller's certificate, in PEM.
    pub certificate: String,
    /// The name in it.
    pub name: String,
    /// The name in the certificate of the other side.
    pub other: String,
    /// The authority's certificate, in PEM.
    pub authority: String,
}

/// How far a copy of an image is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulling {
    /// Bytes of the image that are here.
    pub done: u64,
    /// Bytes of the image; 0 while it is not known.
    pub total: u64,
    /// Bytes that came over the network.
    pub moved: u64,
    /// Bytes of those that came from hosts that were taking it as well.
    pub shared: u64,
    /// How it ended; `None` while it is under way.
    pub ended: Option<Result<(), Report>>,
}

/// The QEMU that a host would run a VM with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuOffer {
    /// What the host's settings call it.
    pub name: String,
    /// Its version, `10.0.2`.
    pub version: String,
    /// Its machine types: name, and the other name where there is one.
    pub machines: Vec<(String, Option<String>)>,
    /// What a functional probe found to work with it.
    pub accelerator: Accelerator,
    /// Why it is that one, for people.
    pub accelerator_reason: String,
}

/// The destination is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// QEMU's URI that the source connects to, e.g. `tcp:10.0.0.2:49152`; what the daemons carry is `mesh:` and a word.
    pub uri: String,
    /// What the destination runs with.
    pub preflight: Preflight,
    /// Process id of the destination QEMU.
    pub pid: u32,
    /// Where it takes the VM's disk over NBD, where that is copied.
    pub disk: Option<String>,
    /// What libvirt of the source has to know, where libvirt moves it; `uri` is then the destination's libvirt.
    pub domain: Option<IncomingDomain>,
}

/// How libvirt brings a VM to a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingDomain {
    /// The VM as libvirt of the destination is to have it.
    pub xml: String,
    /// Where the QEMU of the destination is to listen, as libvirt writes it: `tcp://ADDRESS`.
    pub listens: String,
}

/// How the destination's side is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IncomingState {
    /// Waits for the stream, or receives it.
    Receiving,
    /// All is loaded, the vote is in the log.
    Loaded,
    /// It runs; `elapsed_us` after the decision was seen there.
    Resumed {
        /// From seeing the decision to QEMU's RESUME event, microseconds.
        elapsed_us: u64,
        /// Process id of its QEMU.
        pid: u32,
        /// Version of its QEMU, `10.0.2`.
        qemu_version: String,
    },
    /// It ended, and why.
    Failed(Report),
    /// Nothing is known of this migration here.
    Unknown,
}
