//! The loops that keep a host and, on the leader, the cluster going: each acts on committed state, woken by a change
//! of it or by a time it asked for. Decisions are pure and live beside their loops.

pub mod schedule;
pub mod silence;
