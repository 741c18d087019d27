//! Text to [`Model`], in one pass, all mistakes collected.
//!
//! The graph is built while reading: a block appends to its current node, a variant set makes a container node the current one.
//! Nothing is evaluated here except runs of simple assignments, which the language folds at parse time.

pub(crate) mod filter;
mod local;
mod statement;
pub(crate) mod value;
mod variants;

use crate::diag::Diagnostic;
use crate::lexer::{Fault, Line, Reader, normalize};
use crate::model::{Constraint, Guard, Loc, Model, NONE, Node, Op, OpKind, Span};
use crate::source::{Source, SourceError, base_name};
use local::Local;

/// Defaults mode and its exceptions.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// Only the default variant of each set, where it yields anything.
    pub defaults: bool,
    /// Names of sets that are expanded completely in defaults mode.
    pub expand: Vec<String>,
}

/// Bounds that keep a hostile text from exhausting memory or the stack.
pub(crate) struct Limits;

impl Limits {
    /// Blocks and includes inside each other.
    pub(crate) const DEPTH: u32 = 200;
    /// Include statements followed in one configuration.
    const INCLUDES: u32 = 20_000;
    /// Bytes of text read, repeated includes counted each time.
    const TEXT: usize = 64 << 20;
    /// Different regular expressions as keys.
    pub(crate) const PATTERNS: usize = 4096;
    /// Mistakes reported.
    const MISTAKES: usize = 100;
}

/// What a parse leaves behind.
pub(crate) type Outcome = Result<Model, Vec<Diagnostic>>;

/// Name under which extra statements appear in messages.
pub(crate) const EXTRA: &str = "<string>";

/// A place statements are appended to.
pub(crate) struct Cursor {
    pub(crate) node: u32,
    /// `only` and `no` of the whole block, inner conditions included.
    pub(crate) constraints: Vec<Constraint>,
    /// Conditions around the place.
    pub(crate) guards: Vec<Guard>,
}

/// Reads files and builds the model.
pub(crate) struct Parser<'s> {
    pub(crate) source: &'s dyn Source,
    pub(crate) options: &'s Options,
    pub(crate) m: Model,
    pub(crate) local: Local,
    pub(crate) mistakes: Vec<Diagnostic>,
    /// Files being read, outermost first.
    open: Vec<String>,
    /// Index of the file at hand in `Model::files`.
    pub(crate) file: u32,
    pub(crate) depth: u32,
    includes: u32,
    bytes: usize,
}

/// Parses a file and then each extra statement text.
pub(crate) fn parse(source: &dyn Source, path: &str, extra: &[String], options: &Options) -> Outcome {
    let text = match source.read(path) {
        Ok(t) => t,
        Err(e) => return Err(vec![Diagnostic::error(path, 0, e.to_string())]),
    };
    let mut p = Parser {
        source,
        options,
        m: Model::new(),
        local: Local::default(),
        mistakes: Vec::new(),
        open: Vec::new(),
        file: 0,
        depth: 0,
        includes: 0,
        bytes: 0,
    };
    let mut cur = p.root_cursor();
    p.text(path, &text, &mut cur);
    for statement in extra {
        p.text(EXTRA, statement, &mut cur);
    }
    p.finish(cur)
}

impl Parser<'_> {
    fn root_cursor(&mut self) -> Cursor {
        self.m.files.push(String::new());
        let leaf = self.new_node(Span::default(), Loc { file: 0, line: 0 });
        self.m.files.clear();
        self.m.leaf = leaf;
        Cursor { node: leaf, constraints: Vec::new(), guards: Vec::new() }
    }

    fn finish(mut self, cur: Cursor) -> Outcome {
        self.m.root = cur.node;
        self.attach_constraints(cur.node, &cur.constraints);
        if self.mistakes.is_empty() { Ok(self.m) } else { Err(self.mistakes) }
    }

    /// One text as a block of its own at the cursor.
    fn text(&mut self, name: &str, text: &str, cur: &mut Cursor) {
        self.bytes += text.len();
        if self.bytes > Limits::TEXT {
            self.mistake(Diagnostic::error(name, 0, format!("more than {} bytes of configuration", Limits::TEXT)));
            return;
        }
        let outer = self.file;
        self.file = match self.m.files.iter().position(|f| f == name) {
            Some(i) => i as u32,
            None => {
                self.m.files.push(name.to_owned());
                self.m.files.len() as u32 - 1
            }
        };
        self.open.push(name.to_owned());
        // Most of a file ends up as text of the model.
        self.m.text.reserve(text.len());
        let text = normalize(text);
        let mut reader = Reader::new(&text);
        self.block(&mut reader, -1, cur);
        self.open.pop();
        self.file = outer;
    }

    /// Follows an include statement.
    pub(crate) fn include(&mut self, line: &Line<'_>, path: &str, cur: &mut Cursor) -> Result<(), Fault> {
        let whole = || Fault::new(0, line.text.len(), String::new());
        let refuse = |message: String| Fault { message, ..whole() };
        let includer = self.open.last().cloned().unwrap_or_default();
        let full = crate::source::include_path(self.source, &includer, path);
        if self.open.contains(&full) {
            return Err(
                refuse(format!("{full} includes itself")).hint("an include cycle never ends; drop one of the includes")
            );
        }
        if self.depth >= Limits::DEPTH {
            return Err(refuse(format!("includes are nested more than {} deep", Limits::DEPTH)));
        }
        self.includes += 1;
        if self.includes > Limits::INCLUDES {
            return Err(refuse(format!("more than {} includes", Limits::INCLUDES)));
        }
        let text = match self.source.read(&full) {
            Ok(t) => t,
            Err(e @ SourceError::Missing(_)) => {
                return Err(refuse(e.to_string()).hint("the path starts at the folder of the including file"));
            }
            Err(e) => return Err(refuse(e.to_string())),
        };
        self.depth += 1;
        self.text(&full, &text, cur);
        self.depth -= 1;
        Ok(())
    }

    /// Statements indented deeper than `bound`.
    pub(crate) fn block(&mut self, reader: &mut Reader<'_>, bound: i64, cur: &mut Cursor) {
        reader.strict = false;
        let mut suffix = None;
        while let Some(line) = reader.next_deeper(bound) {
            let place = (line.number, line.column);
            if let Err((text, fault)) = self.statement(reader, bound, line, cur, &mut suffix) {
                self.fault(&text, place, fault);
            }
            if self.given_up() {
                break;
            }
        }
        self.close_local(cur);
        if let Some((key, loc)) = suffix {
            self.emit(cur, OpKind::Suffix, key, Span::default(), loc);
        }
        self.seal(cur);
    }

    pub(crate) fn loc(&self, line: u32) -> Loc {
        Loc { file: self.file, line }
    }

    /// Records a mistake in a text that stands at a line and behind so many characters.
    pub(crate) fn fault(&mut self, text: &str, (number, column): (u32, u32), fault: Fault) {
        let chars = |bytes: usize| text.get(..bytes).map_or(0, |t| t.chars().count()) as u32;
        let (from, to) = (chars(fault.start), chars(fault.end));
        let shown = format!("{}{text}", " ".repeat(column.min(400) as usize));
        let mut d = Diagnostic::error(self.m.files[self.file as usize].clone(), number, fault.message).at(
            &shown,
            column + from + 1,
            to.saturating_sub(from).max(1),
        );
        d.hint = fault.hint.map(str::to_owned);
        self.mistake(d);
    }

    pub(crate) fn mistake(&mut self, d: Diagnostic) {
        if self.mistakes.len() < Limits::MISTAKES {
            self.mistakes.push(d);
        }
    }

    /// Enough mistakes found: the rest would only be noise.
    pub(crate) fn given_up(&self) -> bool {
        self.mistakes.len() >= Limits::MISTAKES || self.bytes > Limits::TEXT || self.includes > Limits::INCLUDES
    }

    pub(crate) fn new_node(&mut self, children: Span, loc: Loc) -> u32 {
        let empty = |n: usize| Span { start: n as u32, end: n as u32 };
        self.m.nodes.push(Node {
            labels: Span::default(),
            deps: Span::default(),
            children,
            ops: empty(self.m.ops.len()),
            constraints: Span::default(),
            joins: empty(self.m.joins.len()),
            map_file: NONE,
            set: NONE,
            quiet: false,
            chosen: false,
            loc,
        });
        self.m.nodes.len() as u32 - 1
    }

    /// Appends an operation to the cursor's node.
    pub(crate) fn emit(&mut self, _cur: &Cursor, kind: OpKind, key: u32, value: Span, loc: Loc) -> usize {
        let clean = crate::expand::json::is_clean(self.m.text(value));
        self.m.ops.push(Op { kind, template: false, clean, key, value, loc, history: NONE });
        self.m.ops.len() - 1
    }

    /// Fixes the end of the node's operations; they are contiguous because only the current node of a block grows.
    pub(crate) fn seal(&mut self, cur: &Cursor) {
        let end = self.m.ops.len() as u32;
        self.m.nodes[cur.node as usize].ops.end = end;
    }

    pub(crate) fn attach_constraints(&mut self, node: u32, constraints: &[Constraint]) {
        let start = self.m.constraints.len() as u32;
        self.m.constraints.extend_from_slice(constraints);
        self.m.nodes[node as usize].constraints = Span { start, end: self.m.constraints.len() as u32 };
    }

    pub(crate) fn base_name(&mut self) -> u32 {
        let name = base_name(&self.m.files[self.file as usize]);
        self.m.base_names.add(name)
    }
}
