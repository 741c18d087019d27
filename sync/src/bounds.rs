//! How much the replicated state may hold. Nothing in the log is unbounded; what is over a bound is refused, or pushes
//! out the oldest thing that has ended.

/// Hosts of a cluster.
pub const HOSTS: usize = 64;
/// Join tokens on record, ended ones included.
pub const TOKENS: usize = 256;
/// Clients that are admitted at the same time.
pub const CLIENTS: usize = 256;
/// Hosts that were removed and whose ids and keys stay refused.
pub const REMOVED_HOSTS: usize = 256;
/// Settings of the cluster.
pub const SETTINGS: usize = 128;
/// Jobs on record; the oldest finished one makes room.
pub const JOBS: usize = 200;
/// Cases of one job.
pub const CASES_PER_JOB: usize = 10_000;
/// Dependencies between the cases of one job, all together.
pub const AFTER_PER_JOB: usize = 50_000;
/// Different reasons why cases of one job are skipped at once.
pub const REFUSALS_PER_JOB: usize = 64;
/// Cases of all jobs on record.
pub const CASES: usize = 50_000;
/// Barriers of one attempt that are on record at the same time, and distinct tags of one attempt.
pub const BARRIERS_PER_ATTEMPT: usize = 256;
/// Bytes of one party's payload at a barrier.
pub const PAYLOAD_BYTES: usize = 64 << 10;
/// Bytes of all payloads of one attempt that are on record at the same time.
pub const PAYLOAD_BYTES_PER_ATTEMPT: usize = 8 << 20;
/// VMs of one attempt.
pub const VMS_PER_ATTEMPT: usize = 16;
/// VMs of one attempt that were ever migrated: their numbers go on when a VM of the same name is started anew.
pub const MOVING_VMS_PER_ATTEMPT: usize = 64;
/// Decided migrations of one attempt that stay on record; the oldest makes room.
pub const MIGRATIONS_PER_ATTEMPT: usize = 128;
/// Ended attempts that stay on record, without payloads; the oldest makes room.
pub const ENDED_ATTEMPTS: usize = 256;
/// Causes of one attempt that no party reported (cancelled, host suspect, deadline of a barrier).
pub const ATTEMPT_CAUSES: usize = 16;
/// Requests whose outcome is remembered.
pub const REQUESTS: usize = REQUESTS_PER_SEGMENT * 16;
/// Requests that are remembered in one shared piece.
pub const REQUESTS_PER_SEGMENT: usize = 256;
/// Addresses of one host.
pub const ADDRESSES: usize = 8;
/// Labels of one host.
pub const LABELS: usize = 32;
/// Bytes of a short text: a label, a setting, a tag, a build, the name of a scenario or user.
pub const TEXT_BYTES: usize = 256;
/// Bytes of a public key (SubjectPublicKeyInfo).
pub const KEY_BYTES: usize = 1024;
/// Bytes of a certificate of an authority.
pub const CERTIFICATE_BYTES: usize = 4096;
/// Bytes of what a destination says of itself when it is prepared.
pub const PREPARED_BYTES: usize = 4096;
/// Hosts that hold the plan of a job.
pub const HOLDERS: usize = 8;
/// Bytes of all texts of one report that is kept.
pub const REPORT_BYTES: usize = 4096;
/// Bytes of one encoded request.
pub const REQUEST_BYTES: usize = 1 << 20;
/// Figures of one attempt.
pub const METRICS: usize = 16;
/// VMs of all attempts: each has a slot of its own, from which its address and MAC are made.
pub const VMS: usize = 1024;
/// Images of the catalogue.
pub const IMAGES: usize = 512;
/// Images that the disks of one VM lie upon, beside the first.
pub const IMAGES_PER_VM: usize = 16;
/// Jobs that are remembered of one image.
pub const JOBS_PER_IMAGE: usize = 16;
/// Images of one backing chain.
pub const BACKING: usize = 16;
/// Pools.
pub const POOLS: usize = 32;
