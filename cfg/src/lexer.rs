//! From text to lines, and from lines to tokens.
//!
//! A [`Reader`] hands out the lines of one file by indentation; [`Tokens`] splits everything that is not an assignment. Neither
//! knows what a statement means.

use std::borrow::Cow;

use crate::chars::{is_line_break, is_space, is_word, trim_end};

/// One line with something on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Leading white space in characters, tabs expanded.
    pub(crate) indent: u32,
    /// What follows it, trailing white space cut.
    pub(crate) text: Cow<'a, str>,
    /// Physical line from 1.
    pub(crate) number: u32,
    /// Characters before the text: the indent, or more for a statement behind a condition.
    pub(crate) column: u32,
}

/// CR LF and CR become LF.
pub(crate) fn normalize(text: &str) -> Cow<'_, str> {
    if text.contains('\r') { Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")) } else { Cow::Borrowed(text) }
}

/// Lines of one file, asked for block by block.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a str,
    number: u32,
    ahead: Option<Line<'a>>,
    /// The shortcut that recognises assignments before anything else is off (set by a `variants` header).
    pub(crate) strict: bool,
}

impl<'a> Reader<'a> {
    /// Over a normalised text.
    pub(crate) fn new(text: &'a str) -> Self {
        Reader { rest: text, number: 0, ahead: None, strict: false }
    }

    /// The next line, left in place.
    pub(crate) fn peek(&mut self) -> Option<&Line<'a>> {
        if self.ahead.is_none() {
            self.ahead = self.scan();
        }
        self.ahead.as_ref()
    }

    /// The next line if it is indented deeper than `bound`.
    pub(crate) fn next_deeper(&mut self, bound: i64) -> Option<Line<'a>> {
        match self.peek() {
            Some(l) if i64::from(l.indent) > bound => self.ahead.take(),
            _ => None,
        }
    }

    /// Puts a line in front of the others: the statement written behind a condition.
    pub(crate) fn push_front(&mut self, line: Line<'a>) {
        debug_assert!(self.ahead.is_none(), "one line of look-ahead");
        self.ahead = Some(line);
    }

    fn scan(&mut self) -> Option<Line<'a>> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            let (raw, plain) = self.cut_line();
            self.number += 1;
            let line = if plain { plain_line(raw) } else { odd_line(raw) };
            if let Some((indent, text)) = line {
                return Some(Line { indent, text, number: self.number, column: indent });
            }
        }
    }

    /// The next physical line without its end; `true` if it holds nothing but printable ASCII.
    fn cut_line(&mut self) -> (&'a str, bool) {
        let bytes = self.rest.as_bytes();
        let mut at = 0;
        let plain = |b: &u8| (0x20..0x80).contains(b);
        // Many bytes at once, without an early end inside a chunk.
        while bytes.get(at..at + 16).is_some_and(|c| c.iter().fold(true, |all, b| all & plain(b))) {
            at += 16;
        }
        while bytes.get(at).is_some_and(plain) {
            at += 1;
        }
        if at == bytes.len() {
            return (std::mem::take(&mut self.rest), true);
        }
        if bytes[at] == b'\n' {
            let raw = &self.rest[..at];
            self.rest = &self.rest[at + 1..];
            return (raw, true);
        }
        match self.rest[at..].char_indices().find(|(_, c)| is_line_break(*c)) {
            Some((off, c)) => {
                let raw = &self.rest[..at + off];
                self.rest = &self.rest[at + off + c.len_utf8()..];
                (raw, false)
            }
            None => (std::mem::take(&mut self.rest), false),
        }
    }
}

fn is_comment(text: &str) -> bool {
    text.starts_with('#') || text.starts_with("//")
}

fn plain_line(raw: &str) -> Option<(u32, Cow<'_, str>)> {
    let text = raw.trim_ascii_end();
    let body = text.trim_ascii_start();
    if body.is_empty() || is_comment(body) {
        return None;
    }
    Some(((text.len() - body.len()) as u32, Cow::Borrowed(body)))
}

fn odd_line(raw: &str) -> Option<(u32, Cow<'_, str>)> {
    let text = trim_end(raw);
    let text: Cow<'_, str> = if text.contains('\t') { Cow::Owned(expand_tabs(text)) } else { Cow::Borrowed(text) };
    let indent = text.chars().take_while(|c| is_space(*c)).count() as u32;
    let skip: usize = text.chars().take(indent as usize).map(char::len_utf8).sum();
    let body: Cow<'_, str> = match text {
        Cow::Borrowed(t) => Cow::Borrowed(&t[skip..]),
        Cow::Owned(t) => Cow::Owned(t[skip..].to_owned()),
    };
    if body.is_empty() || is_comment(&body) { None } else { Some((indent, body)) }
}

fn expand_tabs(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut column = 0usize;
    for c in text.chars() {
        if c == '\t' {
            let n = 8 - column % 8;
            out.extend(std::iter::repeat_n(' ', n));
            column += n;
        } else {
            out.push(c);
            column += 1;
        }
    }
    out
}

/// One token of a line that is no assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// Letters, digits, `_`, `-`.
    Word(Cow<'a, str>),
    /// A run of white space.
    Space,
    /// `.`
    Dot,
    /// `,`
    Comma,
    /// `:`
    Colon,
    /// `@`
    At,
    /// `[`
    OpenBracket,
    /// `]`
    CloseBracket,
    /// `(`
    OpenParen,
    /// `)`
    CloseParen,
    /// `!`
    Not,
    /// An assignment operator.
    Operator(&'static str),
    /// `"…"`, the content.
    Text(&'a str),
    /// End of the line or a comment.
    End,
}

impl Token<'_> {
    /// The token as it reads in the file.
    pub(crate) fn text(&self) -> &str {
        match self {
            Token::Word(w) => w,
            Token::Space => " ",
            Token::Dot => ".",
            Token::Comma => ",",
            Token::Colon => ":",
            Token::At => "@",
            Token::OpenBracket => "[",
            Token::CloseBracket => "]",
            Token::OpenParen => "(",
            Token::CloseParen => ")",
            Token::Not => "!",
            Token::Operator(o) => o,
            Token::Text(t) => t,
            Token::End => "",
        }
    }

    /// For messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Token::Word(w) => format!("the word {w:?}"),
            Token::Space => "white space".to_owned(),
            Token::Text(t) => format!("the quoted text {t:?}"),
            Token::Operator(o) => format!("the operator {o}"),
            Token::End => "the end of the line".to_owned(),
            other => format!("'{}'", other.text()),
        }
    }
}

/// A mistake found while reading tokens: byte range in the line's text, message, hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) message: String,
    pub(crate) hint: Option<&'static str>,
}

impl Fault {
    pub(crate) fn new(start: usize, end: usize, message: impl Into<String>) -> Self {
        Fault { start, end, message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }
}

/// Splits a line's text lazily, so that the first offending token decides the error.
#[derive(Debug)]
pub(crate) struct Tokens<'a> {
    text: &'a str,
    at: usize,
    /// Content of the string before, which belongs to the next word as well.
    carried: Option<&'a str>,
    /// Characters that may begin an operator.
    prefix: String,
    /// Start of the token handed out last.
    start: usize,
    skip_spaces: bool,
    peeked: Option<(Result<Token<'a>, Fault>, usize, usize)>,
}

impl<'a> Tokens<'a> {
    /// Over a text, white space given as tokens.
    pub(crate) fn new(text: &'a str) -> Self {
        Tokens { text, at: 0, carried: None, prefix: String::new(), start: 0, skip_spaces: false, peeked: None }
    }

    /// The same without space tokens.
    pub(crate) fn without_spaces(mut self) -> Self {
        self.skip_spaces = true;
        self
    }

    /// Byte range of the last token in the text.
    pub(crate) fn span(&self) -> (usize, usize) {
        (self.start, self.at.max(self.start))
    }

    /// What follows the last token, unsplit.
    pub(crate) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// A fault at the last token.
    pub(crate) fn fault(&self, message: impl Into<String>) -> Fault {
        let (s, e) = self.span();
        Fault::new(s, e, message)
    }

    /// The next token, left in place.
    pub(crate) fn peek(&mut self) -> Result<&Token<'a>, Fault> {
        if self.peeked.is_none() {
            let (start, at) = (self.start, self.at);
            let token = self.scan_wanted();
            self.peeked = Some((token, self.start, self.at));
            (self.start, self.at) = (start, at);
        }
        match &self.peeked {
            Some((Ok(t), _, _)) => Ok(t),
            Some((Err(f), _, _)) => Err(f.clone()),
            None => Ok(&Token::End),
        }
    }

    /// The next token.
    pub(crate) fn next(&mut self) -> Result<Token<'a>, Fault> {
        if let Some((token, start, at)) = self.peeked.take() {
            (self.start, self.at) = (start, at);
            return token;
        }
        self.scan_wanted()
    }

    fn scan_wanted(&mut self) -> Result<Token<'a>, Fault> {
        loop {
            let t = self.scan()?;
            if !(self.skip_spaces && t == Token::Space) {
                return Ok(t);
            }
        }
    }

    fn scan(&mut self) -> Result<Token<'a>, Fault> {
        loop {
            let start = self.at;
            let rest = &self.text[start..];
            let len = rest.char_indices().find(|(_, c)| !is_word(*c)).map_or(rest.len(), |(i, _)| i);
            if len > 0 || self.carried.is_some_and(|c| !c.is_empty()) {
                self.start = start;
                self.at = start + len;
                if rest[len..].starts_with(['+', '<', '?', '~']) {
                    self.prefix.clear();
                }
                let word = &rest[..len];
                return Ok(Token::Word(match self.carried.take() {
                    Some(c) if !c.is_empty() => Cow::Owned(format!("{c}{word}")),
                    _ => Cow::Borrowed(word),
                }));
            }
            self.carried = None;
            let Some(c) = rest.chars().next() else {
                self.start = start;
                return Ok(Token::End);
            };
            self.start = start;
            self.at = start + c.len_utf8();
            return Ok(match c {
                '.' => Token::Dot,
                ',' => Token::Comma,
                ':' => Token::Colon,
                '@' => Token::At,
                '[' => Token::OpenBracket,
                ']' => Token::CloseBracket,
                '(' => Token::OpenParen,
                ')' => Token::CloseParen,
                '!' => Token::Not,
                '#' => {
                    self.at = self.text.len();
                    Token::End
                }
                '+' | '<' | '?' | '~' => {
                    self.prefix.push(c);
                    continue;
                }
                '=' => {
                    let op = match self.prefix.as_str() {
                        "" => "=",
                        "+" => "+=",
                        "<" => "<=",
                        "~" => "~=",
                        "?" => "?=",
                        "?+" => "?+=",
                        "?<" => "?<=",
                        other => {
                            let message = format!("{other}= is no operator");
                            return Err(self.fault(message).hint("operators are = += <= ~= ?= ?+= ?<="));
                        }
                    };
                    self.prefix.clear();
                    Token::Operator(op)
                }
                '"' => {
                    let body = &self.text[self.at..];
                    let Some(end) = body.find('"') else {
                        self.at = self.text.len();
                        return Err(self.fault("the quoted text has no end").hint("add the missing \""));
                    };
                    self.at += end + 1;
                    self.carried = Some(&body[..end]);
                    Token::Text(&body[..end])
                }
                c if is_space(c) => {
                    let run = rest.char_indices().find(|(_, c)| !is_space(*c)).map_or(rest.len(), |(i, _)| i);
                    self.at = start + run;
                    Token::Space
                }
                c => {
                    let message = format!("the character {c:?} means nothing here");
                    return Err(self.fault(message).hint("names are made of letters, digits, _ and -"));
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(u32, u32, String)> {
        let text = normalize(text);
        let mut r = Reader::new(&text);
        std::iter::from_fn(|| r.next_deeper(-1)).map(|l| (l.number, l.indent, l.text.into_owned())).collect()
    }

    #[test]
    fn lines_are_cut_where_python_cuts_them() {
        let got = lines("a\r\n\u{85}  b\u{2028}\tc\u{0b}# x\n// y\n \u{a0}d \u{1f}\n");
        let want = [(1, 0, "a"), (3, 2, "b"), (4, 8, "c"), (7, 2, "d")];
        assert_eq!(got, want.map(|(n, i, t)| (n, i, t.to_owned())));
    }

    #[test]
    fn tabs_count_columns_from_the_start_of_the_line() {
        assert_eq!(lines("ab\tc =\td")[0].2, "ab      c =     d");
    }

    #[test]
    fn blocks_end_by_indentation() {
        let mut r = Reader::new("a\n  b\n c\n");
        assert_eq!(r.next_deeper(-1).unwrap().text, "a");
        assert_eq!(r.next_deeper(0).unwrap().text, "b");
        assert!(r.next_deeper(1).is_none());
        assert_eq!(r.next_deeper(0).unwrap().text, "c");
        assert!(r.next_deeper(-1).is_none());
    }

    fn tokens(text: &str) -> Vec<String> {
        let mut t = Tokens::new(text);
        let mut out = Vec::new();
        loop {
            match t.next() {
                Ok(Token::End) => return out,
                Ok(x) => out.push(x.describe()),
                Err(f) => {
                    out.push(f.message);
                    return out;
                }
            }
        }
    }

    #[test]
    fn strings_run_into_the_next_word() {
        assert_eq!(tokens("\"ab\"c"), ["the quoted text \"ab\"", "the word \"abc\""]);
        assert_eq!(tokens("\"ab\" "), ["the quoted text \"ab\"", "the word \"ab\"", "white space"]);
        assert_eq!(tokens("\"\""), ["the quoted text \"\""]);
    }

    #[test]
    fn operator_prefixes_are_remembered() {
        assert_eq!(tokens("a+b+="), ["the word \"a\"", "the word \"b\"", "the operator +="]);
        assert_eq!(tokens("?<="), ["the operator ?<="]);
        assert_eq!(tokens("<?="), ["<?= is no operator"]);
        assert_eq!(tokens("a $"), ["the word \"a\"", "white space", "the character '$' means nothing here"]);
    }
}
