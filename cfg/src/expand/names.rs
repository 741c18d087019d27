//! Names of joined combinations and texts of lists and maps.

/// Combines the names of two joined parts; the error is a sentence.
pub(crate) fn join(a: &str, b: &str) -> Result<String, String> {
    let mut prefix = 0;
    let mut other = b.chars();
    let mut differs = false;
    for c in a.chars() {
        match other.next() {
            Some(d) if d == c => prefix += c.len_utf8(),
            Some(_) => {
                differs = true;
                break;
            }
            None => break,
        }
    }
    if !differs {
        return Err(format!(
            "the joined variants {a:?} and {b:?} have the same name, or one is the beginning of the other"
        ));
    }
    let common = a[..prefix].rfind('.').map_or("", |i| &a[..i]);
    Ok(if common.is_empty() {
        format!("{a}.{b}")
    } else if common.contains('(') {
        format!("{common}{a}{b}")
    } else {
        format!("{a}{}", &b[common.len()..])
    })
}

/// The name of a dependency: the labels on the way to the variant that has it, each with a dot, and its own.
pub(crate) fn dependency(above: &str, labels: &str) -> String {
    if labels.is_empty() { without_dot(above).to_owned() } else { format!("{above}{labels}") }
}

/// Labels as a name.
pub(crate) fn without_dot(labels: &str) -> &str {
    labels.strip_suffix('.').unwrap_or(labels)
}

/// A string as Python's `repr` shows it.
pub(crate) fn quoted(s: &str, out: &mut String) {
    let q = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    out.push(q);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == q => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push(q);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_parents_are_written_once() {
        assert_eq!(join("p.a", "p.b").unwrap(), "p.a.b");
        assert_eq!(join("p.a", "q.b").unwrap(), "p.a.q.b");
        assert_eq!(join("ab", "ac").unwrap(), "ab.ac");
        assert_eq!(join("(w=p).(v=a)", "(w=p).(v=b)").unwrap(), "(w=p)(w=p).(v=a)(w=p).(v=b)");
        assert!(join("a", "a").is_err() && join("a", "a.b").is_err() && join("", "").is_err());
    }

    #[test]
    fn quotes_follow_python() {
        let q = |s| {
            let mut o = String::new();
            quoted(s, &mut o);
            o
        };
        assert_eq!(q("a"), "'a'");
        assert_eq!(q("a'b"), "\"a'b\"");
        assert_eq!(q("a'\"b"), "'a\\'\"b'");
    }
}
