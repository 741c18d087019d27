//! Assignments: where the operator is, what key and value are, and how `${…}` splits a value.

use crate::chars::{trim_end, trim_start};
use crate::model::{Model, OpKind, Piece, Span};

/// An assignment cut into its parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Assignment<'a> {
    pub(crate) key: &'a str,
    pub(crate) kind: OpKind,
    pub(crate) value: &'a str,
}

/// Cuts a line that is an assignment: the leftmost operator stands before the first colon and is not followed by it.
pub(crate) fn split(text: &str) -> Option<Assignment<'_>> {
    let (at, len, kind) = leftmost_operator(text)?;
    if text.as_bytes().get(at + len) == Some(&b':') {
        return None;
    }
    Some(Assignment { key: trim_end(&text[..at]), kind, value: unquote(trim_start(&text[at + len..])) })
}

/// Byte position, length and kind; `None` if a colon comes first.
fn leftmost_operator(text: &str) -> Option<(usize, usize, OpKind)> {
    let b = text.as_bytes();
    for i in 0..b.len() {
        let (len, kind) = match (b[i], b.get(i + 1), b.get(i + 2)) {
            (b':', _, _) => return None,
            (b'=', _, _) => (1, OpKind::Set),
            (b'+', Some(b'='), _) => (2, OpKind::Append),
            (b'<', Some(b'='), _) => (2, OpKind::Prepend),
            (b'~', Some(b'='), _) => (2, OpKind::Default),
            (b'?', Some(b'='), _) => (2, OpKind::EachSet),
            (b'?', Some(b'+'), Some(b'=')) => (3, OpKind::EachAppend),
            (b'?', Some(b'<'), Some(b'=')) => (3, OpKind::EachPrepend),
            _ => continue,
        };
        return Some((i, len, kind));
    }
    None
}

/// The operation an operator token stands for.
pub(crate) fn kind_of(operator: &str) -> OpKind {
    match operator {
        "+=" => OpKind::Append,
        "<=" => OpKind::Prepend,
        "~=" => OpKind::Default,
        "?=" => OpKind::EachSet,
        "?+=" => OpKind::EachAppend,
        "?<=" => OpKind::EachPrepend,
        _ => OpKind::Set,
    }
}

/// One matching outer pair of quotes is cut; a lone quote character vanishes.
pub(crate) fn unquote(value: &str) -> &str {
    let b = value.as_bytes();
    match (b.first(), b.last()) {
        (Some(q @ (b'"' | b'\'')), Some(l)) if q == l => {
            if b.len() == 1 {
                ""
            } else {
                &value[1..value.len() - 1]
            }
        }
        _ => value,
    }
}

/// Splits a value with `$` into pieces; the number of the template, or `None` if nothing would be replaced.
pub(crate) fn template(m: &mut Model, value: Span) -> Option<u32> {
    let text = m.text(value).to_owned();
    let start = m.pieces.len() as u32;
    let mut done = 0;
    let mut at = 0;
    while let Some(open) = text[at..].find("${").map(|i| at + i) {
        // At least one character stands between the braces, so that `${}` reaches for the next one.
        let first = text[open + 2..].chars().next().map_or(1, char::len_utf8);
        let Some(close) = text.get(open + 2 + first..).and_then(|t| t.find('}')).map(|i| open + 2 + first + i) else {
            break;
        };
        let part = |from: usize, to: usize| Span { start: value.start + from as u32, end: value.start + to as u32 };
        if open > done {
            m.pieces.push(Piece::Literal(part(done, open)));
        }
        let key = m.keys.add(&text[open + 2..close]);
        m.pieces.push(Piece::Key { key, rest: part(open, text.len()) });
        done = close + 1;
        at = done;
    }
    if m.pieces.len() as u32 == start {
        return None;
    }
    if done < text.len() {
        m.pieces.push(Piece::Literal(Span { start: value.start + done as u32, end: value.end }));
    }
    m.templates.push(Span { start, end: m.pieces.len() as u32 });
    Some(m.templates.len() as u32 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Option<(String, OpKind, String)> {
        split(text).map(|a| (a.key.to_owned(), a.kind, a.value.to_owned()))
    }

    #[test]
    fn the_leftmost_operator_decides() {
        for (text, key, kind, value) in [
            ("a = 1", "a", OpKind::Set, "1"),
            ("a == b", "a", OpKind::Set, "= b"),
            ("c != d", "c !", OpKind::Set, "d"),
            ("m ++= n", "m +", OpKind::Append, "n"),
            ("i ? = j", "i ?", OpKind::Set, "j"),
            ("a.b = c:d", "a.b", OpKind::Set, "c:d"),
            ("= 7", "", OpKind::Set, "7"),
            ("a = : b", "a", OpKind::Set, ": b"),
            ("a ?<= b", "a", OpKind::EachPrepend, "b"),
            ("a ?+= b", "a", OpKind::EachAppend, "b"),
            ("a ~=", "a", OpKind::Default, ""),
        ] {
            assert_eq!(parts(text), Some((key.to_owned(), kind, value.to_owned())), "{text}");
        }
        for text in ["a: b = c", "a =: b", "a=:", "word", ""] {
            assert_eq!(parts(text), None, "{text}");
        }
    }

    #[test]
    fn one_pair_of_quotes_is_cut() {
        for (from, to) in [("\"a\"", "a"), ("'a\"", "'a\""), ("\"", ""), ("\"a\" and \"b\"", "a\" and \"b"), ("''", "")]
        {
            assert_eq!(unquote(from), to);
        }
    }

    #[test]
    fn templates_take_at_least_one_character() {
        let mut m = Model::new();
        for (text, keys) in [
            ("a${x}b${y}", vec!["x", "y"]),
            ("${}a}", vec!["}a"]),
            ("${${a}}", vec!["${a"]),
            ("${", vec![]),
            ("$x ${}", vec![]),
            ("${é}", vec!["é"]),
        ] {
            let v = m.store(text);
            let got: Vec<String> = template(&mut m, v)
                .map(|t| m.templates[t as usize])
                .map(|s| {
                    m.pieces[s.range()]
                        .iter()
                        .filter_map(|p| match p {
                            Piece::Key { key, .. } => Some(m.keys.get(*key).to_owned()),
                            Piece::Literal(_) => None,
                        })
                        .collect()
                })
                .unwrap_or_default();
            assert_eq!(got, keys, "{text}");
        }
    }
}
