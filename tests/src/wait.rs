//! Waiting for a condition.

use std::time::{Duration, Instant};

/// Asks `condition` again and again until it gives something.
///
/// # Panics
/// The deadline passes; the message says what was awaited and what the last answer was.
pub fn until<T, E: std::fmt::Debug>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(last) if begun.elapsed() > deadline => {
                panic!("waited {:.1} s for {what}; last answer: {last:?}", begun.elapsed().as_secs_f64())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
