//! Replicas in one process over a transport that can be cut, and the rules of the replicated state.
#![allow(clippy::unwrap_used, reason = "tests")]

mod begin_anew;
mod cluster;
mod damage;
mod harness;
mod invariants;
mod leader_dies;
mod rules_authority;
mod rules_barriers;
mod rules_hosts;
mod rules_images;
mod rules_jobs;
mod rules_membership;
mod rules_vms;
mod world;
