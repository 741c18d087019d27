//! One binary for all integration tests: linked once, run by rung.

mod cluster;
mod guests;
mod model;
mod sim;
mod tidy;
