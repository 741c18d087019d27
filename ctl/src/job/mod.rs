//! A job from the client's side: its plan, watching it, its progress and its summary.

pub mod interrupt;
pub mod matrix;
pub mod plan;
pub mod progress;
pub mod summary;
pub mod tracker;
pub mod views;
pub mod watch;
