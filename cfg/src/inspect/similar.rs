//! Names that a misspelt one may have meant.

/// The closest of the candidates, if any is close.
pub(crate) fn closest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Of one or two letters every change makes another word.
    let limit = (wanted.chars().count() / 3).min(3);
    let lower = wanted.to_lowercase();
    candidates
        .filter(|c| *c != wanted)
        .filter_map(|c| {
            let d = if c.to_lowercase() == lower { 0 } else { distance(wanted, c, limit) };
            let d = if d > limit && one_word_apart(wanted, c) { limit } else { d };
            (d <= limit).then_some((d, c))
        })
        .min()
        .map(|(_, c)| c)
}

/// One is the other without one of its words: `max_downtime`, `max_mig_downtime`.
fn one_word_apart(a: &str, b: &str) -> bool {
    let words = |s: &str| s.matches('_').count() + 1;
    let (short, long) = if words(a) < words(b) { (a, b) } else { (b, a) };
    if words(short) < 2 || words(short) + 1 != words(long) {
        return false;
    }
    let mut rest = short.split('_');
    let mut next = rest.next();
    let mut passed = 0;
    for word in long.split('_') {
        if next == Some(word) {
            next = rest.next();
        } else {
            passed += 1;
        }
    }
    next.is_none() && passed == 1
}

/// Edits (insert, delete, replace, swap neighbours) from one to the other; more than `limit` is reported as `limit + 1`.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > limit || a.len().max(b.len()) > 200 {
        return limit + 1;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        if row.iter().min().is_some_and(|m| *m > limit) {
            return limit + 1;
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()].min(limit + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_more_or_less_is_found() {
        assert_eq!(closest("max_downtime", ["max_mig_downtime", "mem"].into_iter()), Some("max_mig_downtime"));
        assert_eq!(closest("max_mig_downtime", ["max_downtime"].into_iter()), Some("max_downtime"));
        assert_eq!(closest("downtime", ["max_downtime"].into_iter()), None);
        assert_eq!(closest("max_downtime", ["max_mig_speed", "min_mig_downtime"].into_iter()), None);
    }

    #[test]
    fn one_letter_off_is_found() {
        let names = ["Fedora", "RHEL", "Windows", "virtio_blk"];
        for (wrong, right) in
            [("Fedroa", "Fedora"), ("fedora", "Fedora"), ("virtio-blk", "virtio_blk"), ("Window", "Windows")]
        {
            assert_eq!(closest(wrong, names.into_iter()), Some(right));
        }
        assert_eq!(closest("JeOS", names.into_iter()), None);
        assert_eq!(closest("RHEL", names.into_iter()), None);
    }
}
