//! Filters: `,` or white space means or, `..` means and, `.` means immediately followed by.

use std::borrow::Cow;

use crate::lexer::{Fault, Token, Tokens};
use crate::model::{Filter, Loc, Model, NONE, Span};

/// A label: its set, if one is given, and its name.
pub(crate) type Name<'a> = (Option<Cow<'a, str>>, Cow<'a, str>);

/// A filter's labels as written, before they are stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Written<'a> {
    /// Words of groups of labels; a label is an optional set and a name.
    pub(crate) words: Vec<Vec<Vec<Name<'a>>>>,
}

impl Written<'_> {
    /// Some word has an empty group.
    fn broken(&self) -> bool {
        self.words.iter().flatten().any(Vec::is_empty)
    }
}

/// Reads a filter up to the end of the line.
pub(crate) fn to_end<'a>(tokens: &mut Tokens<'a>) -> Result<Written<'a>, Fault> {
    read(tokens, false)
}

/// Reads a condition up to its colon; the tokens come without white space.
pub(crate) fn to_colon<'a>(tokens: &mut Tokens<'a>) -> Result<Written<'a>, Fault> {
    read(tokens, true)
}

fn read<'a>(tokens: &mut Tokens<'a>, condition: bool) -> Result<Written<'a>, Fault> {
    let mut out = Written::default();
    let mut word: Vec<Vec<Name<'a>>> = Vec::new();
    let mut group: Vec<Name<'a>> = Vec::new();
    // Dots since the last label; a separator counts as one, so that the next label joins an empty group.
    let mut dots = 1;
    let mut begun = false;
    loop {
        match tokens.next()? {
            Token::End if !condition => break,
            Token::Colon if condition => break,
            token @ (Token::Word(_) | Token::OpenParen) => {
                match dots {
                    0 => {
                        let fault = tokens.fault("two names without a separator");
                        return Err(fault.hint("join them with '.', '..' or ','"));
                    }
                    1 => {}
                    2 => word.push(std::mem::take(&mut group)),
                    _ => {
                        let fault = tokens.fault("too many dots before this name");
                        return Err(fault.hint("'.' joins neighbours, '..' means and"));
                    }
                }
                group.push(match token {
                    Token::Word(name) => (None, name),
                    _ => parenthesised(tokens)?,
                });
                (dots, begun) = (0, true);
            }
            Token::Dot if begun => dots += 1,
            Token::Dot => return Err(tokens.fault("a filter cannot begin with a dot")),
            token @ (Token::Comma | Token::Space) => {
                if dots > 0 {
                    let what = token.describe();
                    let fault = tokens.fault(format!("{what} where a name is expected"));
                    return Err(fault.hint("white space separates names as a comma does; none may stand around dots"));
                }
                finish(&mut out, &mut word, &mut group);
                dots = 1;
                while *tokens.peek()? == Token::Space {
                    tokens.next()?;
                }
            }
            Token::End => return Err(tokens.fault("neither an assignment nor a condition")),
            other => {
                let message = format!("{} has no place in a filter", other.describe());
                let fault = tokens.fault(message);
                return Err(match other {
                    Token::OpenBracket => fault.hint("named variants are written (set=name)"),
                    Token::Operator(_) => {
                        fault.hint("a filter line cannot assign; named variants are written (set=name)")
                    }
                    _ => fault,
                });
            }
        }
    }
    if !group.is_empty() || !word.is_empty() {
        finish(&mut out, &mut word, &mut group);
    }
    Ok(out)
}

/// Ends a word.
fn finish<'a>(out: &mut Written<'a>, word: &mut Vec<Vec<Name<'a>>>, group: &mut Vec<Name<'a>>) {
    if !group.is_empty() {
        word.push(std::mem::take(group));
    }
    out.words.push(std::mem::take(word));
}

/// After `(`: `NAME)` or `SET=NAME)`.
fn parenthesised<'a>(tokens: &mut Tokens<'a>) -> Result<Name<'a>, Fault> {
    let mut next = |wanted: &str| -> Result<(Option<Cow<'a, str>>, Token<'static>), Fault> {
        let token = loop {
            match tokens.next()? {
                Token::Space => {}
                t => break t,
            }
        };
        match token {
            Token::Word(w) => Ok((Some(w), Token::End)),
            Token::Text("") => Ok((Some(Cow::Borrowed("")), Token::Space)),
            Token::Operator("=") => Ok((None, Token::Operator("="))),
            Token::CloseParen => Ok((None, Token::CloseParen)),
            other => Err(tokens.fault(format!("{} where {wanted} is expected", other.describe()))),
        }
    };
    let bad = |tokens: &Tokens<'_>, wanted: &str| {
        tokens.fault(format!("{wanted} is expected here")).hint("write (name) or (set=name)")
    };
    let (Some(first), Token::End) = next("a name")? else { return Err(bad(tokens, "a name")) };
    match next("'=' or ')'")? {
        (None, Token::CloseParen) => Ok((None, first)),
        (None, Token::Operator(_)) => {
            let (Some(name), _) = next("a name")? else { return Err(bad(tokens, "a name")) };
            let (None, Token::CloseParen) = next("')'")? else { return Err(bad(tokens, "')'")) };
            Ok((Some(first), name))
        }
        _ => Err(bad(tokens, "'=' or ')'")),
    }
}

/// Stores a filter; its number.
pub(crate) fn store(m: &mut Model, written: &Written<'_>, text: &str, loc: Loc) -> u32 {
    let words_start = m.words.len() as u32;
    let mut ranges = Vec::with_capacity(written.words.len());
    for word in &written.words {
        let groups_start = m.groups.len() as u32;
        for group in word {
            let start = m.group_atoms.len() as u32;
            for (set, name) in group {
                let set = set.as_ref().map_or(NONE, |s| m.names.add(s));
                let name = m.names.add(name);
                let atom = m.atom(set, name);
                m.group_atoms.push(atom);
            }
            m.groups.push(Span { start, end: m.group_atoms.len() as u32 });
        }
        ranges.push(Span { start: groups_start, end: m.groups.len() as u32 });
    }
    m.words.extend(ranges);
    let text = m.store(text);
    m.filters.push(Filter {
        words: Span { start: words_start, end: m.words.len() as u32 },
        loc,
        broken: written.broken(),
        written: text,
    });
    m.filters.len() as u32 - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> String {
        match to_end(&mut Tokens::new(text)) {
            Ok(w) => {
                let label = |(s, n): &Name<'_>| match s {
                    Some(s) => format!("({s}={n})"),
                    None => n.to_string(),
                };
                let group = |g: &Vec<_>| g.iter().map(label).collect::<Vec<_>>().join(".");
                let word = |w: &Vec<Vec<_>>| w.iter().map(group).collect::<Vec<_>>().join("..");
                w.words.iter().map(word).collect::<Vec<_>>().join(" | ")
            }
            Err(f) => format!("error at {}: {}", f.start, f.message),
        }
    }

    #[test]
    fn separators_bind_as_documented() {
        for (text, want) in [
            ("a", "a"),
            ("a.b..c, d", "a.b..c | d"),
            ("a b,c", "a | b | c"),
            ("a,", "a"),
            ("a.", "a"),
            ("a..", "a"),
            ("a...", "a"),
            ("( a ).(v = b)", "a.(v=b)"),
            ("(v=\"\")", "(v=)"),
            ("", ""),
            ("# nothing", ""),
            ("a # b", "a"),
        ] {
            assert_eq!(shape(text), want, "{text}");
        }
    }

    #[test]
    fn mistakes_are_refused() {
        for text in [
            "a , b", "a,,b", ", a", ".a", "a...b", "a(b)", "a. b", "()", "(v=)", "(v=a.b)", "(v?=a)", "[v=a]", "a:",
            "a.,b", "(a", "\"a\"", "x = 1",
        ] {
            assert!(shape(text).starts_with("error"), "{text}: {}", shape(text));
        }
    }

    #[test]
    fn an_empty_group_is_kept_for_evaluation() {
        assert!(to_end(&mut Tokens::new("a .b")).unwrap().broken());
        assert!(!to_end(&mut Tokens::new("a.b")).unwrap().broken());
    }
}
