//! One binary for all integration tests: linked once, run by rung.

#![allow(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod attacks;
mod clients;
mod cluster;
mod disk;
mod doctor;
mod guests;
mod model;
mod packages;
mod sim;
mod tidy;
mod writers;
