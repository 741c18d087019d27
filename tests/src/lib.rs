//! Everything that needs more than one crate: harness, integration tests, simulator, benches.
