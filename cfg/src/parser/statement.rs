//! One statement: which kind a line is, and every kind but variant sets.

use std::borrow::Cow;

use crate::chars::{trim_end, trim_start};
use crate::lexer::{Fault, Line, Reader, Token, Tokens};
use crate::model::{Constraint, Guard, JoinWord, Loc, OpKind, Span};
use crate::parser::filter::{self, Written};
use crate::parser::value;
use crate::parser::{Cursor, Limits, Parser};

/// A fault with the text it points into.
pub(crate) type Located = (String, Fault);

/// The last `suffix` of a block.
pub(crate) type Suffix = Option<(u32, Loc)>;

fn keyword<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    text.strip_prefix(word)?.strip_prefix(' ')
}

impl Parser<'_> {
    /// Handles one line and the block below it.
    pub(crate) fn statement<'a>(
        &mut self,
        reader: &mut Reader<'a>,
        bound: i64,
        line: Line<'a>,
        cur: &mut Cursor,
        suffix: &mut Suffix,
    ) -> Result<(), Located> {
        let text: &str = &line.text;
        let loc = self.loc(line.number);
        let located = |f: Fault| (text.to_owned(), f);
        match text.as_bytes()[0] {
            b'v' if text.starts_with("variants:") || text.starts_with("variants ") => {
                self.close_local(cur);
                reader.strict = true;
                let before = self.mistakes.len();
                let done = self.variants(reader, bound, &line, cur);
                if done.is_err() || self.mistakes.len() > before {
                    // What follows a mistake is read as usual, or it would be reported as well.
                    reader.strict = false;
                }
                return done;
            }
            b'-' => {
                return Err(located(
                    Fault::new(0, 1, "a variant line outside a variant set")
                        .hint("variant lines stand directly below 'variants:', all at the same depth"),
                ));
            }
            b'o' => {
                if let Some(rest) = keyword(text, "only") {
                    return self.only_no(cur, true, rest, loc).map_err(|f| located(shift(f, 5)));
                }
            }
            b'n' => {
                if let Some(rest) = keyword(text, "no") {
                    return self.only_no(cur, false, rest, loc).map_err(|f| located(shift(f, 3)));
                }
            }
            b'j' => {
                if let Some(rest) = keyword(text, "join") {
                    return self.join(cur, rest, loc).map_err(|f| located(shift(f, 5)));
                }
            }
            b's' => {
                if let Some(rest) = keyword(text, "suffix") {
                    self.close_local(cur);
                    let word = single_word(rest, false).map_err(|f| located(shift(f, 7)))?;
                    *suffix = Some((self.m.names.add(&word), loc));
                    return Ok(());
                }
            }
            b'd' => {
                if let Some(rest) = keyword(text, "del") {
                    self.close_local(cur);
                    let word = single_word(rest, true).map_err(|f| located(shift(f, 4)))?;
                    let key = self.m.keys.add(&word);
                    self.emit(cur, OpKind::Delete, key, Span::default(), loc);
                    return Ok(());
                }
            }
            b'i' => {
                if let Some(rest) = keyword(text, "include") {
                    self.close_local(cur);
                    return self.include(&line, trim_start(rest), cur).map_err(located);
                }
            }
            _ => {}
        }
        if !reader.strict
            && let Some(a) = value::split(text)
        {
            return self.assign(cur, a.key, a.kind, a.value, loc).map_err(located);
        }
        self.condition(reader, line, cur)
    }

    fn only_no(&mut self, cur: &mut Cursor, only: bool, rest: &str, loc: Loc) -> Result<(), Fault> {
        self.close_local(cur);
        let written = read_filter(rest)?;
        let filter = filter::store(&mut self.m, &written, trim_start(rest), loc);
        let start = self.m.guards.len() as u32;
        self.m.guards.extend_from_slice(&cur.guards);
        let guards = Span { start, end: self.m.guards.len() as u32 };
        cur.constraints.push(Constraint { only, filter, guards });
        Ok(())
    }

    fn join(&mut self, cur: &mut Cursor, rest: &str, loc: Loc) -> Result<(), Fault> {
        self.close_local(cur);
        let written = read_filter(rest)?;
        if !cur.guards.is_empty() {
            self.emit(cur, OpKind::Join, 0, Span::default(), loc);
            return Ok(());
        }
        if self.m.nodes[cur.node as usize].joins.len() == 0 {
            let at = self.m.joins.len() as u32;
            self.m.nodes[cur.node as usize].joins = Span { start: at, end: at };
        }
        for word in written.words {
            let one = Written { words: vec![word] };
            let filter = filter::store(&mut self.m, &one, trim_start(rest), loc);
            self.m.joins.push(JoinWord { filter });
        }
        self.m.nodes[cur.node as usize].joins.end = self.m.joins.len() as u32;
        Ok(())
    }

    /// A conditional block, or what is left over: an assignment in strict mode, or nonsense.
    fn condition<'a>(&mut self, reader: &mut Reader<'a>, line: Line<'a>, cur: &mut Cursor) -> Result<(), Located> {
        let text: &str = &line.text;
        let loc = self.loc(line.number);
        let located = |f: Fault| (text.to_owned(), f);
        if reader.strict
            && let Some(done) = self.strict_assignment(cur, text, loc)
        {
            return done.map_err(located);
        }
        let mut tokens = Tokens::new(text);
        let lead = tokens.peek().map_err(|f| located(explain(text, f)))?;
        let negated = *lead == Token::Not;
        if !negated && !matches!(lead, Token::Word(_)) {
            let what = lead.describe();
            let _ = tokens.next();
            return Err(located(explain(text, tokens.fault(format!("a statement cannot begin with {what}")))));
        }
        if negated {
            let _ = tokens.next();
        }
        let mut tokens = tokens.without_spaces();
        let written = filter::to_colon(&mut tokens).map_err(|f| located(explain(text, f)))?;
        let colon = tokens.span().0;
        self.close_local(cur);
        let filter = filter::store(&mut self.m, &written, trim_end(&text[..colon]), loc);
        let kind = if negated { OpKind::Unless } else { OpKind::If };
        let at = self.emit(cur, kind, filter, Span::default(), loc);
        let inner_bound = i64::from(line.indent);
        if self.depth >= Limits::DEPTH {
            while reader.next_deeper(inner_bound).is_some() {}
            return Err(located(Fault::new(0, colon, format!("blocks are nested more than {} deep", Limits::DEPTH))));
        }
        if let Some(inline) = inline_statement(&line, colon + 1) {
            reader.push_front(inline);
        }
        cur.guards.push(Guard { filter, negated });
        self.depth += 1;
        drop(line);
        self.block(reader, inner_bound, cur);
        self.depth -= 1;
        cur.guards.pop();
        let count = (self.m.ops.len() - at - 1) as u32;
        self.m.ops[at].value = Span { start: count, end: count };
        Ok(())
    }

    /// `KEY OP""`, the only assignment that is read while the shortcut is off.
    fn strict_assignment(&mut self, cur: &Cursor, text: &str, loc: Loc) -> Option<Result<(), Fault>> {
        let mut tokens = Tokens::new(text);
        let mut key = String::new();
        loop {
            match tokens.next().ok()? {
                Token::Operator(op) => {
                    return match tokens.next().ok()? {
                        Token::Text(t) if tokens.rest().is_empty() => {
                            Some(self.assign(cur, trim_end(&key), value::kind_of(op), t, loc))
                        }
                        _ => Some(Err(tokens
                            .fault("an assignment is not understood directly behind an empty variant set")
                            .hint("give the empty set a variant, or remove its header"))),
                    };
                }
                Token::Colon | Token::End => return None,
                Token::Space => {}
                t => key.push_str(t.text()),
            }
        }
    }
}

fn read_filter(rest: &str) -> Result<Written<'_>, Fault> {
    let body = trim_start(rest);
    filter::to_end(&mut Tokens::new(body)).map_err(|f| shift(f, rest.len() - body.len()))
}

/// The rest of a line must be one word.
fn single_word(rest: &str, comment: bool) -> Result<String, Fault> {
    let body = trim_start(rest);
    let offset = rest.len() - body.len();
    let mut tokens = Tokens::new(body);
    let one = |tokens: &mut Tokens<'_>| -> Result<String, Fault> {
        let word = match tokens.next()? {
            Token::Word(w) => w.into_owned(),
            other => return Err(tokens.fault(format!("{} where one word is expected", other.describe()))),
        };
        loop {
            match tokens.next()? {
                Token::End => return Ok(word),
                Token::Space if comment => {}
                other => {
                    let fault = tokens.fault(format!("{} after the one word that is allowed", other.describe()));
                    return Err(fault.hint("only letters, digits, _ and - make a word; patterns are not possible here"));
                }
            }
        }
    };
    one(&mut tokens).map_err(|f| shift(f, offset))
}

/// The statement behind a condition's colon, as a line one column deeper.
fn inline_statement<'a>(line: &Line<'a>, from: usize) -> Option<Line<'a>> {
    let text: Cow<'a, str> = match &line.text {
        Cow::Borrowed(t) => Cow::Borrowed(trim_start(&t[from..])),
        Cow::Owned(t) => Cow::Owned(trim_start(&t[from..]).to_owned()),
    };
    let before = line.text[..line.text.len() - text.len()].chars().count() as u32;
    let column = line.column + before;
    (!text.is_empty()).then_some(Line { indent: line.indent + 1, text, number: line.number, column })
}

pub(crate) fn shift(mut f: Fault, by: usize) -> Fault {
    f.start += by;
    f.end += by;
    f
}

/// A line that is no statement at all gets a hint that fits it.
fn explain(text: &str, f: Fault) -> Fault {
    if f.hint.is_some() {
        return f;
    }
    if text.contains("=:") {
        return f.hint("an operator directly followed by a colon is not an assignment; put a space between them");
    }
    if !text.contains([':', '=']) {
        return f.hint("a line is an assignment (KEY = VALUE), a condition (FILTER:) or begins with a keyword");
    }
    f
}
