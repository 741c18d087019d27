//! Did you mean: names that are close to what was typed. Verbs and flags are clap's; this is for hosts and scenarios.

/// The names within a third of the typed length (at least one, at most three edits), closest first, at most three.
pub fn close<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let typed: Vec<char> = typed.to_lowercase().chars().take(80).collect();
    let bound = (typed.len() / 3).clamp(1, 3);
    let mut found: Vec<(usize, &str)> =
        names.into_iter().map(|name| (distance(&typed, name), name)).filter(|(d, _)| *d <= bound).collect();
    found.sort();
    found.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`.
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().take(80).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_come_first_and_far_ones_not_at_all() {
        let hosts = ["host1", "host2", "lab-a1"];
        assert_eq!(close("hots1", hosts), ["host1"]);
        assert_eq!(close("host3", hosts), ["host1", "host2"]);
        assert_eq!(close("nosuch", hosts), Vec::<&str>::new());
        assert_eq!(close("multihost-migraton", ["multihost_migration", "uptime"]), ["multihost_migration"]);
        assert_eq!(close("", ["ab"]), Vec::<&str>::new());
    }
}
