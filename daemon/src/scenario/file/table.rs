//! TOML with the place of every key and value: tables, lists and words. Numbers and truth values are words here, as all
//! parameters are text.

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};
use vt_protocol::{
    params::Origin,
    scenario::{Mistake, SCENARIO_FILE_MAX},
};

/// A place in the file, as [`Mistake`] counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub(super) line: u32,
    column: u32,
    length: u32,
}

impl Spot {
    pub(super) fn mistake(self, message: impl Into<String>) -> Mistake {
        let Self { line, column, length } = self;
        Mistake { line, column, length, message: message.into(), hint: None }
    }

    pub(super) fn origin(self, file: &str) -> Origin {
        Origin { file: file.to_owned(), line: self.line }
    }
}

/// A text with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) spot: Spot,
}

impl Word {
    pub(super) fn mistake(&self, message: impl Into<String>) -> Mistake {
        self.spot.mistake(message)
    }
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) node: Node,
    pub(super) spot: Spot,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Word(String),
    List(Vec<Item>),
    Table(Table),
}

/// The keys of a table with their values, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table(pub(super) Vec<(Word, Item)>);

impl Table {
    /// Takes a value out.
    pub(super) fn take(&mut self, key: &str) -> Option<(Word, Item)> {
        let place = self.0.iter().position(|(known, _)| known.text == key)?;
        Some(self.0.remove(place))
    }
}

impl Item {
    /// As a word; `want` says what it is to be, with its article.
    pub(super) fn word(self, want: &str) -> Result<Word, Mistake> {
        match self.node {
            Node::Word(text) => Ok(Word { text, spot: self.spot }),
            other => Err(self.spot.mistake(format!("this is {}, not {want}", other.kind()))),
        }
    }

    pub(super) fn table(self, want: &str) -> Result<Table, Mistake> {
        match self.node {
            Node::Table(table) => Ok(table),
            other => Err(self.spot.mistake(format!("this is {}, not {want}", other.kind()))),
        }
    }

    /// As a list; one value is a list of one.
    pub(super) fn list(self) -> Vec<Self> {
        match self.node {
            Node::List(items) => items,
            node => vec![Self { node, spot: self.spot }],
        }
    }

    /// As a parameter's value is written: lists with blanks between, tables as `KEY=VALUE`.
    pub(super) fn flat(self) -> Result<Word, Mistake> {
        let spot = self.spot;
        let text = match self.node {
            Node::Word(text) => text,
            Node::List(items) => {
                let words = items.into_iter().map(|item| item.word("a text").map(|word| word.text));
                words.collect::<Result<Vec<_>, _>>()?.join(" ")
            }
            Node::Table(table) => {
                let pairs = table.0.into_iter().map(|(key, item)| {
                    item.word("a text or number").map(|value| format!("{}={}", key.text, value.text))
                });
                pairs.collect::<Result<Vec<_>, _>>()?.join(" ")
            }
        };
        Ok(Word { text, spot })
    }
}

impl Node {
    fn kind(&self) -> &'static str {
        match self {
            Self::Word(_) => "a text or number",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Reads a file.
pub(super) fn read(text: &str) -> Result<Table, Mistake> {
    if text.len() > SCENARIO_FILE_MAX {
        return Err(Spot::default().mistake(format!("the file has more than {} KiB", SCENARIO_FILE_MAX >> 10)));
    }
    let places = Places(text);
    match DeTable::parse(text) {
        Ok(table) => Ok(places.table(table.get_ref())),
        Err(error) => {
            let spot = error.span().map_or_else(Spot::default, |span| places.spot(span));
            Err(spot.mistake(error.message().replace('\n', ", ")))
        }
    }
}

struct Places<'t>(&'t str);

impl Places<'_> {
    /// Where a span of bytes is; of one over several lines the part on the first.
    fn spot(&self, span: std::ops::Range<usize>) -> Spot {
        let before = self.0.get(..span.start).unwrap_or(self.0);
        let (lines, start) = (before.matches('\n').count(), before.rfind('\n').map_or(0, |at| at + 1));
        let within = self.0.get(span).unwrap_or_default();
        let within = within.lines().next().unwrap_or_default();
        let count = |text: &str| u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        Spot {
            line: u32::try_from(lines).unwrap_or(u32::MAX).saturating_add(1),
            column: count(&before[start..]).saturating_add(1),
            length: count(within).max(1),
        }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<(&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let word = |key: &Spanned<DeString<'_>>| Word { text: key.get_ref().to_string(), spot: self.spot(key.span()) };
        Table(entries.into_iter().map(|(key, value)| (word(key), self.item(value))).collect())
    }

    fn item(&self, value: &Spanned<DeValue<'_>>) -> Item {
        let node = match value.get_ref() {
            DeValue::String(text) => Node::Word(text.to_string()),
            DeValue::Integer(number) => Node::Word(number.to_string()),
            DeValue::Float(number) => Node::Word(number.to_string()),
            DeValue::Boolean(yes) => Node::Word(if *yes { "yes" } else { "no" }.to_owned()),
            DeValue::Datetime(time) => Node::Word(time.to_string()),
            DeValue::Array(items) => Node::List(items.iter().map(|item| self.item(item)).collect()),
            DeValue::Table(table) => Node::Table(self.table(table)),
        };
        Item { node, spot: self.spot(value.span()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_place() {
        let table =
            read("name = 'é'\n\n[[step]]\n  guest = \"true\" # x\n  expect = { status = 0x10, ok = true }\n").unwrap();
        let (key, value) = &table.0[0];
        assert_eq!((key.spot, key.text.as_str()), (Spot { line: 1, column: 1, length: 4 }, "name"));
        assert_eq!(value.spot, Spot { line: 1, column: 8, length: 3 });
        let Node::List(steps) = &table.0[1].1.node else { panic!("{table:?}") };
        let Node::Table(step) = &steps[0].node else { panic!("{table:?}") };
        assert_eq!(steps[0].spot.line, 3);
        assert_eq!(step.0[0].1.spot, Spot { line: 4, column: 11, length: 6 });
        assert_eq!(step.0[1].1.clone().flat().unwrap().text, "status=0x10 ok=yes");
    }

    #[test]
    fn what_is_no_toml_is_said_with_its_place() {
        let mistake = read("a = 1\nb = = 2\n").unwrap_err();
        assert_eq!((mistake.line, mistake.column), (2, 5), "{mistake:?}");
        assert_eq!(read("a = 1\na = 2\n").unwrap_err().line, 2);
        assert_eq!(read(&" ".repeat(SCENARIO_FILE_MAX + 1)).unwrap_err().line, 0);
        assert!(read(&"[".repeat(50_000)).is_err() && read(&format!("a = {}", "[".repeat(50_000))).is_err());
    }
}
