//! Random numbers for ids and timers, which a simulation can make those of a seed, so that one seed is one run.
//!
//! Not for keys and secrets: those come from the system wherever they are made.

use std::cell::Cell;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// A number: the system's, or the next of this thread's seed.
pub fn number() -> u64 {
    let Some(seed) = SEED.get() else { return rand::random() };
    let next = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    SEED.set(Some(next));
    // SplitMix64: every seed has a full period, and neighbours have nothing in common.
    let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// From now on this thread draws from a seed; `None`: from the system again. For simulations.
pub fn seed(seed: Option<u64>) {
    SEED.set(seed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again_and_only_on_its_thread() {
        let three = || [number(), number(), number()];
        seed(Some(7));
        let first = three();
        let elsewhere = std::thread::scope(|scope| scope.spawn(three).join().unwrap());
        seed(Some(7));
        assert_eq!(three(), first);
        assert_ne!(elsewhere, first);
        seed(None);
        assert_ne!(three(), first);
    }
}
