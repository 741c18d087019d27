//! What the cluster agrees on: a pure state machine, its openraft adapter, stored formats.

pub mod answer;
pub mod bounds;
pub mod command;
pub mod state;

pub use self::{
    answer::{Answer, Applied, Effect, Rejected},
    command::{Command, Request},
    state::State,
};
