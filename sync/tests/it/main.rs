//! Replicas in one process over a transport that can be cut, and the rules of the replicated state.

mod cluster;
mod damage;
mod harness;
mod invariants;
mod rules_barriers;
mod rules_hosts;
mod rules_jobs;
mod rules_vms;
mod world;
