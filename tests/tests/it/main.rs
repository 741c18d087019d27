//! One binary for all integration tests: linked once, run by rung.

mod cluster;
mod guests;
mod sim;
mod tidy;
