//! "Did you mean": the known word that is nearest to one that is not known.

/// The word of `known` that is nearest to `word`, where it is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(64).collect();
    let (distance, found) =
        known.into_iter().map(|other| (distance(&word, other), other)).min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + word.len() / 4).then_some(found)
}

/// How many letters have to be changed, added, removed or swapped with their neighbour.
fn distance(from: &[char], to: &str) -> usize {
    let to: Vec<char> = to.chars().take(64).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let mut least = (above[j] + usize::from(a != b)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == to[j - 1] && from[i - 1] == *b {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_of_the_fingers_is_recognised_and_another_word_is_not() {
        let known = ["host1", "host2", "listen", "advertise"];
        for (typed, meant) in [("hots1", Some("host1")), ("lisen", Some("listen")), ("advertize", Some("advertise"))] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
        for typed in ["", "completely", "x"] {
            assert_eq!(nearest(typed, known), None, "{typed}");
        }
        assert_eq!(nearest("host1", []), None);
    }
}
