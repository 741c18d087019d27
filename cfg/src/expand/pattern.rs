//! The regular expressions of `?=`, `?+=` and `?<=`.
//!
//! They are Python's; this module checks them by Python's rules and rewrites what the Rust engine spells differently. A `$` is glued
//! to the end and the match starts at the first character, so in a top-level alternation only the last branch is anchored.

use std::fmt::Write as _;

/// A compiled key pattern.
#[derive(Debug)]
pub(crate) enum Pattern {
    /// No special characters: plain comparison.
    Literal(String),
    /// Anything else.
    Regex(Box<fancy_regex::Regex>),
}

/// Steps a match may take before it is given up.
const BACKTRACKS: usize = 100_000;

impl Pattern {
    /// Compiles a key; the error is a sentence.
    pub(crate) fn compile(key: &str) -> Result<Self, String> {
        if key.chars().all(|c| {
            c.is_alphanumeric()
                || matches!(c, '_' | '-' | ' ' | '/' | ',' | ':' | '@' | '%' | '!' | '"' | '\'' | '<' | '>' | '~')
        }) {
            return Ok(Pattern::Literal(key.to_owned()));
        }
        let malformed = |e: String| format!("the regular expression {key:?} is malformed: {e}");
        let body = translate(&format!("{key}$")).map_err(malformed)?;
        fancy_regex::RegexBuilder::new(&format!("^(?:{body})"))
            .backtrack_limit(BACKTRACKS)
            .delegate_size_limit(4 << 20)
            .build()
            .map(|r| Pattern::Regex(Box::new(r)))
            .map_err(|e| malformed(e.to_string()))
    }

    /// Whether a key matches; the error is a sentence.
    pub(crate) fn matches(&self, key: &str) -> Result<bool, String> {
        match self {
            Pattern::Literal(l) => Ok(l == key),
            Pattern::Regex(r) => {
                r.is_match(key).map_err(|e| format!("the regular expression gives up on {key:?}: {e}"))
            }
        }
    }
}

/// What a quantifier would apply to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Item,
    /// A look-around that begins at this place of the output.
    Look(usize),
    Repeat,
}

struct Translator<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    out: String,
    last: Last,
    /// Open groups: where each begins in `out`, and whether it only looks.
    open: Vec<(usize, bool)>,
}

fn translate(pattern: &str) -> Result<String, String> {
    let mut t =
        Translator { rest: pattern.chars().peekable(), out: String::new(), last: Last::Nothing, open: Vec::new() };
    let mut first = true;
    while let Some(c) = t.rest.next() {
        t.one(c, first)?;
        first = false;
    }
    if !t.open.is_empty() { Err("missing )".to_owned()) } else { Ok(t.out) }
}

impl Translator<'_> {
    fn literal(&mut self, c: char) {
        push_escaped(&mut self.out, c);
        self.last = Last::Item;
    }

    fn one(&mut self, c: char, first: bool) -> Result<(), String> {
        match c {
            '\\' => self.escape()?,
            '[' => self.class()?,
            '(' => self.group(first)?,
            ')' => {
                let (start, looks) = self.open.pop().ok_or_else(|| "unbalanced parenthesis".to_owned())?;
                self.out.push(')');
                self.last = if looks { Last::Look(start) } else { Last::Item };
            }
            '|' => {
                self.out.push('|');
                self.last = Last::Nothing;
            }
            '^' | '$' => {
                self.out.push(c);
                self.last = Last::Nothing;
            }
            '.' => {
                self.out.push('.');
                self.last = Last::Item;
            }
            '*' | '+' | '?' => self.repeat(&c.to_string())?,
            '{' => match self.counts()? {
                Some(q) => self.repeat(&q)?,
                None => self.literal('{'),
            },
            c => self.literal(c),
        }
        Ok(())
    }

    fn repeat(&mut self, quantifier: &str) -> Result<(), String> {
        match self.last {
            Last::Nothing => return Err("nothing to repeat".to_owned()),
            Last::Repeat => return Err("multiple repeat".to_owned()),
            Last::Look(start) => {
                // Looking twice sees the same; looking any number of times, also none, demands nothing.
                if !quantifier.starts_with('+') && !quantifier.starts_with("{1") {
                    self.out.truncate(start);
                    self.out.push_str("(?:)");
                }
                if let Some('?' | '+') = self.rest.peek() {
                    self.rest.next();
                }
                self.last = Last::Repeat;
                return Ok(());
            }
            Last::Item => {}
        }
        self.out.push_str(quantifier);
        if let Some(c @ ('?' | '+')) = self.rest.peek().copied() {
            self.out.push(c);
            self.rest.next();
        }
        self.last = Last::Repeat;
        Ok(())
    }

    /// After `{`: a quantifier, or nothing if the brace is an ordinary character.
    fn counts(&mut self) -> Result<Option<String>, String> {
        let mut ahead = self.rest.clone();
        let digits = |it: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut s = String::new();
            while let Some(d) = it.peek().copied().filter(char::is_ascii_digit) {
                s.push(d);
                it.next();
            }
            s
        };
        if ahead.peek() == Some(&'}') {
            return Ok(None);
        }
        let low = digits(&mut ahead);
        let high = if ahead.peek() == Some(&',') {
            ahead.next();
            digits(&mut ahead)
        } else {
            low.clone()
        };
        let comma = low != high || low.is_empty();
        if ahead.next() != Some('}') {
            return Ok(None);
        }
        let number = |s: &str, default: u64| {
            if s.is_empty() { Ok(default) } else { s.parse::<u64>().map_err(|_| "repeat count too large".to_owned()) }
        };
        let (l, h) = (number(&low, 0)?, number(&high, u64::MAX)?);
        if h < l {
            return Err("min repeat greater than max repeat".to_owned());
        }
        self.rest = ahead;
        Ok(Some(match (comma, high.is_empty()) {
            (true, true) => format!("{{{l},}}"),
            (true, false) => format!("{{{l},{h}}}"),
            (false, _) => format!("{{{l}}}"),
        }))
    }

    fn hex(&mut self, n: usize) -> Result<char, String> {
        let s: String = self.rest.by_ref().take(n).collect();
        u32::from_str_radix(&s, 16)
            .ok()
            .filter(|_| s.len() == n)
            .and_then(char::from_u32)
            .ok_or_else(|| "incomplete escape".to_owned())
    }

    /// An escape that is one character both inside and outside a class.
    fn simple_escape(&mut self, c: char) -> Result<Option<char>, String> {
        Ok(Some(match c {
            'a' => '\u{7}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            'x' => self.hex(2)?,
            'u' => self.hex(4)?,
            'U' => self.hex(8)?,
            c if !c.is_ascii_alphanumeric() => c,
            _ => return Ok(None),
        }))
    }

    fn octal(&mut self, first: char, most: usize) -> char {
        let mut n = first as u32 - '0' as u32;
        for _ in 1..most {
            match self.rest.peek().and_then(|c| c.to_digit(8)) {
                Some(d) => {
                    n = n * 8 + d;
                    self.rest.next();
                }
                None => break,
            }
        }
        char::from_u32(n & 0xff).unwrap_or('\0')
    }

    fn escape(&mut self) -> Result<(), String> {
        let c = self.rest.next().ok_or_else(|| "bad escape at the end".to_owned())?;
        match c {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => {
                self.out.push('\\');
                self.out.push(c);
                self.last = Last::Item;
            }
            'A' | 'b' | 'B' => {
                self.out.push('\\');
                self.out.push(c);
                self.last = Last::Nothing;
            }
            'Z' => {
                self.out.push_str("\\z");
                self.last = Last::Nothing;
            }
            '0' => {
                let c = self.octal('0', 3);
                self.literal(c);
            }
            '1'..='9' => {
                let mut n = c.to_string();
                if let Some(d) = self.rest.peek().copied().filter(char::is_ascii_digit) {
                    n.push(d);
                    self.rest.next();
                }
                let _ = write!(self.out, "(?:\\{n})");
                self.last = Last::Item;
            }
            c => match self.simple_escape(c)? {
                Some(l) => self.literal(l),
                None => return Err(format!("bad escape \\{c}")),
            },
        }
        Ok(())
    }

    fn class(&mut self) -> Result<(), String> {
        let unterminated = || "unterminated character set".to_owned();
        self.out.push('[');
        if self.rest.peek() == Some(&'^') {
            self.rest.next();
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let c = self.rest.next().ok_or_else(unterminated)?;
            if c == ']' && !first {
                break;
            }
            first = false;
            let low = self.class_item(c)?;
            if self.rest.peek() != Some(&'-') {
                self.push_item(&low);
                continue;
            }
            self.rest.next();
            match self.rest.next().ok_or_else(unterminated)? {
                ']' => {
                    self.push_item(&low);
                    self.out.push_str("\\-");
                    break;
                }
                c => {
                    let high = self.class_item(c)?;
                    match (low, high) {
                        (Ok(l), Ok(h)) if l <= h => {
                            push_escaped(&mut self.out, l);
                            self.out.push('-');
                            push_escaped(&mut self.out, h);
                        }
                        _ => return Err("bad character range".to_owned()),
                    }
                }
            }
        }
        self.out.push(']');
        self.last = Last::Item;
        Ok(())
    }

    /// A character, or a class escape such as `\d`.
    fn class_item(&mut self, c: char) -> Result<Result<char, String>, String> {
        if c != '\\' {
            return Ok(Ok(c));
        }
        let c = self.rest.next().ok_or_else(|| "unterminated character set".to_owned())?;
        match c {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => Ok(Err(format!("\\{c}"))),
            'b' => Ok(Ok('\u{8}')),
            '0'..='7' => Ok(Ok(self.octal(c, 3))),
            c => match self.simple_escape(c)? {
                Some(l) => Ok(Ok(l)),
                None => Err(format!("bad escape \\{c}")),
            },
        }
    }

    fn push_item(&mut self, item: &Result<char, String>) {
        match item {
            Ok(c) => push_escaped(&mut self.out, *c),
            Err(e) => self.out.push_str(e),
        }
    }

    fn group(&mut self, first: bool) -> Result<(), String> {
        self.last = Last::Nothing;
        if self.rest.peek() != Some(&'?') {
            self.open.push((self.out.len(), false));
            self.out.push('(');
            return Ok(());
        }
        self.rest.next();
        let mut head = String::new();
        loop {
            let c = self.rest.next().ok_or_else(|| "unexpected end of pattern".to_owned())?;
            head.push(c);
            match (head.as_str(), c) {
                ("#", _) => {
                    while self.rest.next().ok_or_else(|| "missing ), unterminated comment".to_owned())? != ')' {}
                    return Ok(());
                }
                (":" | "=" | "!" | ">" | "<=" | "<!" | "P=", _) => {
                    if head == "P=" {
                        let name: String = self.rest.by_ref().take_while(|c| *c != ')').collect();
                        let _ = write!(self.out, "(?P={name})");
                        self.last = Last::Item;
                        return Ok(());
                    }
                    break;
                }
                (h, '>') if h.starts_with("P<") => break,
                ("(", _) => return Err("conditional groups are not supported".to_owned()),
                ("<" | "P", _) => {}
                (h, _) if h.starts_with("P<") => {}
                (h, ')') if first && h[..h.len() - 1].chars().all(|c| "aiLmsux".contains(c)) && h.len() > 1 => {
                    let flags: String = h.chars().filter(|c| "imsx".contains(*c)).collect();
                    if !flags.is_empty() {
                        let _ = write!(self.out, "(?{flags})");
                    }
                    return Ok(());
                }
                (h, ')') if h[..h.len() - 1].chars().all(|c| "aiLmsux".contains(c)) && h.len() > 1 => {
                    return Err("global flags not at the start of the expression".to_owned());
                }
                (h, ':') if h[..h.len() - 1].chars().all(|c| "aimsux-".contains(c)) => {
                    head.retain(|c| !"au".contains(c));
                    break;
                }
                (h, c) if "aiLmsux-".contains(c) && !h.starts_with(['<', 'P']) => {}
                _ => return Err(format!("unknown extension ?{head}")),
            }
        }
        self.open.push((self.out.len(), matches!(head.as_str(), "=" | "!" | "<=" | "<!")));
        let _ = write!(self.out, "(?{head}");
        Ok(())
    }
}

fn push_escaped(out: &mut String, c: char) {
    if matches!(
        c,
        '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' | '#' | '&' | '-' | '~'
    ) {
        out.push('\\');
    }
    out.push(c);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(pattern: &str, key: &str) -> bool {
        Pattern::compile(pattern).unwrap().matches(key).unwrap()
    }

    #[test]
    fn the_glued_dollar_belongs_to_the_last_branch() {
        assert!(hits("a|b", "abc") && hits("a|b", "b"));
        assert!(!hits("a|b", "bc") && !hits("a|b", "xa"));
    }

    #[test]
    fn python_spelling_is_understood() {
        assert!(hits("a{b", "a{b") && hits("a{,2}", "aa") && !hits("a{,2}", "aaa"));
        assert!(hits("[[a]b", "[b") && hits("[]x]", "]") && hits("[a&&b]", "&"));
        assert!(hits(r"x\Z", "x") && hits(r"\x41+", "AAA") && hits("(?!ab).*", "ba") && !hits("(?!ab).*", "abc"));
        assert!(hits(r"(a|b)\1", "aa") && !hits(r"(a|b)\1", "ab"));
        assert!(hits("(?!x)*x", "x") && !hits("(?!x)+x", "x"));
        assert!(hits("(?i)ab.", "ABC") && hits("(?#x)a", "a"));
        assert!(hits(r"a\", "a$"), "the backslash escapes the glued dollar");
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for p in ["*a", "a**", "(a", "a)", "[a", r"\q", "a{2,1}", "[b-a]", "a(?i)b", "^*", "(?z)", "a|*", "(*)", "[a"] {
            assert!(Pattern::compile(p).is_err(), "{p}");
        }
    }

    #[test]
    fn explosive_patterns_end() {
        let p = Pattern::compile(r"(?!x)(a*)*\1b").unwrap();
        let _ = p.matches(&"a".repeat(60));
        assert!(Pattern::compile("((a{1000}){1000}){1000}").is_err());
    }
}
