//! Names that a misspelt one may have meant.

/// The closest of the candidates, if any is close.
pub(crate) fn closest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Of one or two letters every change makes another word.
    let limit = (wanted.chars().count() / 3).min(3);
    let lower = wanted.to_lowercase();
    candidates
        .filter(|c| *c != wanted && c.len().abs_diff(wanted.len()) <= limit + 3)
        .filter_map(|c| {
            let d = if c.to_lowercase() == lower { 0 } else { distance(wanted, c, limit) };
            (d <= limit).then_some((d, c))
        })
        .min()
        .map(|(_, c)| c)
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
