//! `variants`: the header, the variant lines, and the nodes they make.

use std::borrow::Cow;

use crate::lexer::{Fault, Line, Reader, Token, Tokens};
use crate::model::{Label, NONE, OpKind, Span};
use crate::parser::filter;
use crate::parser::statement::{Located, shift};
use crate::parser::{Cursor, Limits, Parser};

/// A header's content.
#[derive(Debug, Default)]
struct Header {
    name: Option<String>,
    /// Token texts of each `[default=…]`.
    defaults: Vec<Vec<String>>,
}

/// A variant line's content.
#[derive(Debug, Default)]
struct VariantLine<'a> {
    at: bool,
    /// Words and dots of the name.
    tokens: Vec<Cow<'a, str>>,
    words: Vec<Cow<'a, str>>,
    deps: filter::Written<'a>,
}

impl Parser<'_> {
    /// The set below a header line; the container becomes the cursor's node.
    pub(crate) fn variants(
        &mut self,
        reader: &mut Reader<'_>,
        bound: i64,
        line: &Line<'_>,
        cur: &mut Cursor,
    ) -> Result<(), Located> {
        let located = |f: Fault| (line.text.to_string(), f);
        let mut header = match read_header(&line.text) {
            Ok(h) => h,
            Err(f) => {
                self.fault(&line.text, (line.number, line.column), f);
                Header::default()
            }
        };
        if !cur.guards.is_empty() {
            let fault = Fault::new(0, 8, "a variant set inside a condition")
                .hint("a condition decides about finished combinations, so it cannot add variants; use only or no");
            while reader.next_deeper(i64::from(line.indent).max(bound)).is_some() {}
            return Err(located(fault));
        }
        if self.depth >= Limits::DEPTH {
            while reader.next_deeper(i64::from(line.indent).max(bound)).is_some() {}
            return Err(located(Fault::new(0, 8, format!("blocks are nested more than {} deep", Limits::DEPTH))));
        }
        self.seal(cur);
        let set = header.name.as_ref().map_or(NONE, |n| self.m.names.add(n));
        // A set without a name goes by the empty one.
        let name = header.name.as_deref().unwrap_or_default();
        let expanded = self.options.expand.iter().any(|e| e == name);
        let below = self.m.children.len() as u32;
        self.m.children.push(cur.node);
        let below = Span { start: below, end: below + 1 };
        let mut kids: Vec<u32> = Vec::new();
        let mut chosen: Option<usize> = None;
        let mut content_bound = None;
        let mut bound_now = bound;
        while let Some(l) = reader.next_deeper(bound_now) {
            if !l.text.starts_with('-') {
                let fault = Fault::new(0, l.text.len(), "a variant line is expected here")
                    .hint("lines of a set begin with '- NAME:'; statements for all variants stand outside the set");
                self.fault(&l.text, (l.number, l.column), fault);
                while reader.next_deeper(i64::from(l.indent)).is_some() {}
                bound_now = i64::from(line.indent).max(bound);
            } else {
                let content = *content_bound.get_or_insert_with(|| i64::from(l.indent));
                bound_now = i64::from(line.indent);
                if let Some((node, default)) = self.variant(reader, &l, content, below, set, &mut header) {
                    if default && chosen.is_none() && !expanded && self.options.defaults {
                        chosen = Some(kids.len());
                    }
                    kids.push(node);
                }
            }
            if self.given_up() {
                return Ok(());
            }
        }
        if kids.is_empty() {
            return Ok(());
        }
        if !header.defaults.is_empty() {
            let ended = reader.peek().unwrap_or(line).clone();
            let message = format!("the default {:?} is no variant of the set", header.defaults[0].concat());
            let fault =
                Fault::new(0, ended.text.len(), message).hint("the set whose header names it ends before this line");
            self.fault(&ended.text, (ended.number, ended.column), fault);
        }
        if let Some(i) = chosen {
            let node = kids.remove(i);
            self.m.nodes[node as usize].chosen = true;
            kids.insert(0, node);
        }
        let start = self.m.children.len() as u32;
        self.m.children.extend_from_slice(&kids);
        let children = Span { start, end: self.m.children.len() as u32 };
        let loc = self.loc(line.number);
        cur.node = self.new_node(children, loc);
        Ok(())
    }

    /// One variant with its content: the node and whether it is a default.
    fn variant(
        &mut self,
        reader: &mut Reader<'_>,
        line: &Line<'_>,
        bound: i64,
        below: Span,
        set: u32,
        header: &mut Header,
    ) -> Option<(u32, bool)> {
        let loc = self.loc(line.number);
        let read = match read_variant(&line.text) {
            Ok(v) => v,
            Err(f) => {
                self.fault(&line.text, (line.number, line.column), f);
                VariantLine::default()
            }
        };
        let default = take_default(&mut header.defaults, &read.tokens) || read.at;
        let labels = self.store_labels(set, &read.words);
        let deps = self.store_deps(&read.deps);
        let node = self.new_node(below, loc);
        let mut inner = Cursor { node, constraints: Vec::new(), guards: Vec::new() };
        if let Some(name) = &header.name {
            // An assignment of its own: later operations on the key are not folded into it.
            let key = self.m.keys.add(name);
            if !self.m.is_reserved(key) {
                let value = self.m.store(&read.words.join("."));
                self.emit(&inner, OpKind::Set, key, value, loc);
            }
        }
        self.depth += 1;
        self.block(reader, bound, &mut inner);
        self.depth -= 1;
        let file = self.base_name();
        self.attach_constraints(inner.node, &inner.constraints);
        let n = &mut self.m.nodes[inner.node as usize];
        n.labels = labels;
        n.deps = deps;
        n.map_file = file;
        n.set = set;
        n.quiet = default;
        n.loc = loc;
        Some((inner.node, default))
    }

    fn store_labels(&mut self, set: u32, words: &[Cow<'_, str>]) -> Span {
        let start = self.m.path_labels.len() as u32;
        for word in words {
            let name = self.m.names.add(word);
            let shown = self.m.show(set, name);
            let printed = self.m.store(&shown);
            self.m.labels.push(Label { set, name, printed, atoms: [NONE; 2] });
            self.m.path_labels.push(self.m.labels.len() as u32 - 1);
        }
        Span { start, end: self.m.path_labels.len() as u32 }
    }

    fn store_deps(&mut self, written: &filter::Written<'_>) -> Span {
        let start = self.m.deps.len() as u32;
        for group in written.words.iter().flatten() {
            let shown: Vec<String> = group
                .iter()
                .map(|(set, name)| match set {
                    Some(s) => format!("({s}={name})"),
                    None => name.to_string(),
                })
                .collect();
            let text = self.m.store(&shown.join("."));
            self.m.deps.push(text);
        }
        Span { start, end: self.m.deps.len() as u32 }
    }
}

/// Uses up the entries that select this name. An entry right behind a used one is passed over.
fn take_default(defaults: &mut Vec<Vec<String>>, name: &[Cow<'_, str>]) -> bool {
    let mut selected = false;
    let mut i = 0;
    while i < defaults.len() {
        if defaults[i].iter().zip(name).all(|(a, b)| a == b) {
            defaults.remove(i);
            selected = true;
        }
        i += 1;
    }
    selected
}

fn read_header(text: &str) -> Result<Header, Fault> {
    let offset = "variants".len();
    let mut tokens = Tokens::new(&text[offset..]).without_spaces();
    header_tokens(&mut tokens).map_err(|f| shift(f, offset))
}

fn header_tokens(tokens: &mut Tokens<'_>) -> Result<Header, Fault> {
    let mut header = Header::default();
    let mut meta = false;
    loop {
        match tokens.next()? {
            Token::Colon => break,
            Token::Word(w) if header.name.is_none() && !meta => header.name = Some(w.into_owned()),
            Token::Word(_) => {
                return Err(tokens.fault("a second name for the set").hint("the name comes once, before all [...]"));
            }
            Token::OpenBracket => {
                meta = true;
                read_meta(tokens, &mut header)?;
            }
            Token::End => return Err(tokens.fault("the header has no colon").hint("write 'variants NAME:'")),
            other => return Err(tokens.fault(format!("{} has no place in a header", other.describe()))),
        }
    }
    match tokens.next()? {
        Token::End => Ok(header),
        other => Err(tokens.fault(format!("{} after the header's colon", other.describe()))),
    }
}

/// After `[`: `ident]` or `ident=anything]`.
fn read_meta(tokens: &mut Tokens<'_>, header: &mut Header) -> Result<(), Fault> {
    let name = match tokens.next()? {
        Token::Word(w) => w.into_owned(),
        other => return Err(tokens.fault(format!("{} where a word is expected", other.describe()))),
    };
    match tokens.next()? {
        Token::CloseBracket if name == "default" => Err(tokens
            .fault("[default] without a value")
            .hint("write [default=NAME], or put @ before a variant's name")),
        Token::CloseBracket => Ok(()),
        Token::Operator("=") => {
            let mut value = Vec::new();
            loop {
                match tokens.next()? {
                    Token::CloseBracket => break,
                    Token::End => return Err(tokens.fault("the bracket has no end").hint("add the missing ]")),
                    t => value.push(t.text().to_owned()),
                }
            }
            if name == "default" {
                header.defaults.push(value);
            }
            Ok(())
        }
        other => Err(tokens.fault(format!("{} where '=' or ']' is expected", other.describe()))),
    }
}

fn read_variant(text: &str) -> Result<VariantLine<'_>, Fault> {
    let mut tokens = Tokens::new(&text[1..]);
    fn read<'a>(tokens: &mut Tokens<'a>) -> Result<VariantLine<'a>, Fault> {
        let mut out = variant_tokens(tokens)?;
        while *tokens.peek()? == Token::Space {
            tokens.next()?;
        }
        out.deps = filter::to_end(tokens)?;
        Ok(out)
    }
    read(&mut tokens).map_err(|f| shift(f, 1))
}

fn variant_tokens<'a>(tokens: &mut Tokens<'a>) -> Result<VariantLine<'a>, Fault> {
    let mut out = VariantLine::default();
    let mut token = tokens.next()?;
    while token == Token::Space {
        token = tokens.next()?;
    }
    if token == Token::At {
        out.at = true;
        token = tokens.next()?;
    } else if !matches!(token, Token::Word(_)) {
        let fault = tokens.fault(format!("{} where the variant's name is expected", token.describe()));
        return Err(fault.hint("write '- NAME:' or '- @NAME:'"));
    }
    loop {
        match token {
            Token::Colon => return Ok(out),
            Token::Word(w) => {
                out.tokens.push(w.clone());
                out.words.push(w);
            }
            Token::Dot => out.tokens.push(Cow::Borrowed(".")),
            Token::End => return Err(tokens.fault("the variant line has no colon").hint("write '- NAME:'")),
            other => {
                let fault = tokens.fault(format!("{} in a variant's name", other.describe()));
                return Err(fault.hint("a name is words joined by dots, directly followed by a colon"));
            }
        }
        token = tokens.next()?;
    }
}
