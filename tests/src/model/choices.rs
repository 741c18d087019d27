//! Where a walk goes: drawn from a seed and remembered, or played again with parts left out.

use rand::{Rng, SeedableRng, rngs::StdRng};

/// The draws of each step of a walk.
pub type Steps = Vec<Vec<u32>>;

/// Decides for a walk.
#[derive(Debug)]
pub struct Choices {
    source: Source,
    steps: Steps,
}

#[derive(Debug)]
enum Source {
    Seed(Box<StdRng>),
    /// Steps to play, and the draws that are left of the one under way.
    Again(std::vec::IntoIter<Vec<u32>>, std::vec::IntoIter<u32>),
}

impl Choices {
    /// From a seed.
    pub fn of_seed(seed: u64) -> Self {
        Self { source: Source::Seed(Box::new(StdRng::seed_from_u64(seed))), steps: Vec::new() }
    }

    /// The same as before.
    pub fn again(steps: Steps) -> Self {
        Self { source: Source::Again(steps.into_iter(), Vec::new().into_iter()), steps: Vec::new() }
    }

    /// Begins a step; `false` where there is none left to play.
    pub fn step(&mut self) -> bool {
        if let Source::Again(steps, draws) = &mut self.source {
            let Some(next) = steps.next() else { return false };
            *draws = next.into_iter();
        }
        self.steps.push(Vec::new());
        true
    }

    /// What was drawn so far.
    pub fn taken(self) -> Steps {
        self.steps
    }

    /// A number below `bound`, which is not 0. Played in another place, a draw still means something.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u32::try_from(bound).unwrap_or(u32::MAX).max(1);
        let drawn = match &mut self.source {
            Source::Seed(rng) => rng.random_range(0..bound),
            Source::Again(_, draws) => draws.next().unwrap_or(0) % bound,
        };
        if let Some(step) = self.steps.last_mut() {
            step.push(drawn);
        }
        drawn as usize
    }

    /// Whether something that happens so often in a hundred happens now.
    pub fn percent(&mut self, often: u32) -> bool {
        // Left out in a walk that is played again, it does not happen.
        self.below(100) >= 100 - often as usize
    }

    /// One of several, each as often as its weight says.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let mut left = self.below(weights.iter().sum::<u32>() as usize) as u32;
        for (i, weight) in weights.iter().enumerate() {
            if left < *weight {
                return i;
            }
            left -= weight;
        }
        0
    }
}

/// Leaves out what is not needed for `fails` to fail, within so many tries.
pub fn shrink(mut steps: Steps, mut tries: usize, fails: impl Fn(&Steps) -> bool) -> Steps {
    let mut piece = steps.len() / 2;
    while piece > 0 && tries > 0 {
        let mut at = 0;
        let before = steps.len();
        while at < steps.len() && tries > 0 {
            let mut shorter = steps.clone();
            shorter.drain(at..steps.len().min(at + piece));
            tries -= 1;
            if fails(&shorter) {
                steps = shorter;
            } else {
                at += piece;
            }
        }
        if steps.len() == before || piece > 1 {
            piece /= 2;
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_played_again_and_shrinks_to_what_matters() {
        let walk = |choices: &mut Choices| -> Vec<usize> {
            let mut all = Vec::new();
            while choices.step() && all.len() < 40 {
                all.push(choices.below(10));
            }
            all
        };
        let mut first = Choices::of_seed(3);
        let drawn = walk(&mut first);
        let steps = first.taken();
        assert_eq!(walk(&mut Choices::again(steps.clone())), drawn);
        let two_sevens = |steps: &Steps| steps.iter().filter(|step| step.first() == Some(&7)).count() >= 2;
        assert!(two_sevens(&steps), "the seed was chosen so");
        assert_eq!(shrink(steps, 1000, two_sevens).len(), 2);
    }
}
