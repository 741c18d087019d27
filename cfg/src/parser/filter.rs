//! Filters: `,` or white space means or, `..` means and, `.` means immediately followed by.

use crate::lexer::{Fault, Token, Tokens};
use crate::model::{Filter, Loc, Model, NONE, Span};

/// A filter's labels as written, before they are stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Words of groups of labels; a label is an optional set and a name.
    pub(crate) words: Vec<Vec<Vec<(Option<String>, String)>>>,
}

impl Written {
    /// Some word has an empty group.
    fn broken(&self) -> bool {
        self.words.iter().flatten().any(Vec::is_empty)
    }
}

/// Reads a filter up to the end of the line.
pub(crate) fn to_end(tokens: &mut Tokens<'_>) -> Result<Written, Fault> {
    read(tokens, false)
}

/// Reads a condition up to its colon; the tokens come without white space.
pub(crate) fn to_colon(tokens: &mut Tokens<'_>) -> Result<Written, Fault> {
    read(tokens, true)
}

/// What stood before the token at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing, or a separator of words.
    Start,
    Comma,
    Label,
    Dot,
    TwoDots,
}

fn read(tokens: &mut Tokens<'_>, condition: bool) -> Result<Written, Fault> {
    let mut out = Written::default();
    let mut word: Vec<Vec<(Option<String>, String)>> = Vec::new();
    let mut group: Vec<(Option<String>, String)> = Vec::new();
    let mut before = Before::Start;
    let mut begun = false;
    loop {
        let token = tokens.next()?;
        match token {
            Token::End if !condition => break,
            Token::Colon if condition => break,
            Token::Word(name) => {
                expect_label_place(tokens, before)?;
                group.push((None, name.into_owned()));
                (before, begun) = (Before::Label, true);
            }
            Token::OpenParen => {
                expect_label_place(tokens, before)?;
                group.push(parenthesised(tokens)?);
                (before, begun) = (Before::Label, true);
            }
            Token::Dot => {
                before = match before {
                    Before::Label => Before::Dot,
                    Before::Dot => {
                        word.push(std::mem::take(&mut group));
                        Before::TwoDots
                    }
                    Before::TwoDots => {
                        return Err(tokens.fault("three dots in a row").hint("'.' joins neighbours, '..' means and"));
                    }
                    Before::Start | Before::Comma if !begun => {
                        return Err(tokens.fault("a filter cannot begin with a dot"));
                    }
                    Before::Start | Before::Comma => {
                        word.push(Vec::new());
                        Before::Dot
                    }
                };
            }
            Token::Comma => {
                if before != Before::Label {
                    let fault = tokens.fault("a comma without a name before it");
                    return Err(if before == Before::Start && begun {
                        fault.hint("white space already separates names; write 'a, b' or 'a b'")
                    } else {
                        fault
                    });
                }
                finish(&mut out, &mut word, &mut group);
                before = Before::Comma;
            }
            Token::Space => match before {
                Before::Label => {
                    finish(&mut out, &mut word, &mut group);
                    before = Before::Start;
                }
                Before::Start => {}
                Before::Comma => before = Before::Start,
                Before::Dot | Before::TwoDots => {
                    if *tokens.peek()? != Token::End {
                        return Err(tokens.fault("white space after a dot").hint("write the dots without white space"));
                    }
                }
            },
            other => {
                let message = format!("{} has no place in a filter", other.describe());
                let fault = tokens.fault(message);
                return Err(match other {
                    Token::OpenBracket => fault.hint("named variants are written (set=name)"),
                    Token::End => fault.hint("a condition ends with a colon"),
                    Token::Operator(_) => {
                        fault.hint("a filter line cannot assign; named variants are written (set=name)")
                    }
                    _ => fault,
                });
            }
        }
    }
    if before == Before::Label || !group.is_empty() || !word.is_empty() {
        finish(&mut out, &mut word, &mut group);
    }
    Ok(out)
}

fn finish(out: &mut Written, word: &mut Vec<Vec<(Option<String>, String)>>, group: &mut Vec<(Option<String>, String)>) {
    if !group.is_empty() || word.is_empty() {
        word.push(std::mem::take(group));
    }
    out.words.push(std::mem::take(word));
}

fn expect_label_place(tokens: &Tokens<'_>, before: Before) -> Result<(), Fault> {
    if before == Before::Label {
        return Err(tokens.fault("two names without a separator").hint("join them with '.', '..' or ','"));
    }
    Ok(())
}

/// After `(`: `NAME)` or `SET=NAME)`.
fn parenthesised(tokens: &mut Tokens<'_>) -> Result<(Option<String>, String), Fault> {
    let mut next = |wanted: &str| -> Result<(Option<String>, Token<'static>), Fault> {
        let token = loop {
            match tokens.next()? {
                Token::Space => {}
                t => break t,
            }
        };
        match token {
            Token::Word(w) => Ok((Some(w.into_owned()), Token::End)),
            Token::Text("") => Ok((Some(String::new()), Token::Space)),
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
pub(crate) fn store(m: &mut Model, written: &Written, text: &str, loc: Loc) -> u32 {
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
                let label = |(s, n): &(Option<String>, String)| match s {
                    Some(s) => format!("({s}={n})"),
                    None => n.clone(),
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
