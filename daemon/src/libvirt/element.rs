//! An element of XML as a value: read from a text, changed, and written again. Pure.
//!
//! What may not happen here: a text that makes reading it cost more than its length.

use roxmltree::{Document, Node, ParsingOptions};
use vt_protocol::libvirt::DOMAIN_MAX;

/// The namespace of the elements that libvirt hands on to QEMU as they are.
const OF_QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
/// Most elements and texts of a domain.
const NODES_MAX: u32 = 8000;
/// Deepest element; libvirt's own are at the seventh.
const DEPTH_MAX: usize = 16;

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {cause}")]
pub struct Objection {
    /// From 1.
    pub line: u32,
    /// Why it cannot be taken.
    pub cause: String,
}

/// An element. Remarks are left out, and of texts those between elements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Element {
    /// Its name; with `qemu:` before it where it is handed on to QEMU.
    pub(super) name: String,
    pub(super) attributes: Vec<(String, String)>,
    /// Its text, where it has no elements.
    pub(super) text: String,
    pub(super) children: Vec<Element>,
    /// Where it began in what was read.
    pub(super) line: u32,
}

impl Element {
    /// The one element of a text, with everything in it.
    pub(super) fn read(text: &str) -> Result<Self, Objection> {
        if text.len() > DOMAIN_MAX {
            return Err(Objection { line: 1, cause: format!("it is longer than {} KiB", DOMAIN_MAX >> 10) });
        }
        let options = ParsingOptions { nodes_limit: NODES_MAX, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options)
            .map_err(|error| Objection { line: error.pos().row, cause: error.to_string() })?;
        Reader { text, at: 0, line: 1 }.element(document.root_element(), 1)
    }

    /// As a text, without a line of its own for anything.
    pub(super) fn write(&self) -> String {
        let mut out = String::new();
        self.write_to(&mut out);
        out
    }

    fn write_to(&self, out: &mut String) {
        let Self { name, attributes, text, children, .. } = self;
        out.push_str(&format!("<{name}"));
        if name == "domain" {
            out.push_str(&format!(" xmlns:qemu='{OF_QEMU}'"));
        }
        for (key, value) in attributes {
            out.push_str(&format!(" {key}='{}'", escaped(value)));
        }
        out.push('>');
        out.push_str(&escaped(text));
        for child in children {
            child.write_to(out);
        }
        out.push_str(&format!("</{name}>"));
    }

    pub(super) fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn set(&mut self, key: &str, value: &str) {
        match self.attributes.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => value.clone_into(known),
            None => self.attributes.push((key.to_owned(), value.to_owned())),
        }
    }

    /// The first element of that name in it.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// An attribute of the first element of that name in it.
    pub(super) fn attribute_of(&self, child: &str, key: &str) -> Option<&str> {
        self.child(child)?.attribute(key)
    }

    /// It, and why it cannot be taken.
    pub(super) fn objection(&self, cause: impl std::fmt::Display) -> Objection {
        Objection { line: self.line, cause: format!("<{}>: {cause}", self.name) }
    }
}

/// Counts lines on the way: elements come in the order of the text.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl Reader<'_> {
    fn element(&mut self, node: Node<'_, '_>, depth: usize) -> Result<Element, Objection> {
        let begins = node.range().start;
        let lines = self.text.as_bytes()[self.at..begins].iter().filter(|byte| **byte == b'\n').count();
        self.at = begins;
        self.line += u32::try_from(lines).unwrap_or(u32::MAX);
        let name = match node.tag_name().namespace() {
            None => node.tag_name().name().to_owned(),
            Some(OF_QEMU) => format!("qemu:{}", node.tag_name().name()),
            Some(other) => node.tag_name().name().to_owned() + " of " + other,
        };
        let mut element = Element { name, line: self.line, ..Element::default() };
        if depth > DEPTH_MAX {
            return Err(element.objection("it lies too deep"));
        }
        for attribute in node.attributes() {
            if let Some(namespace) = attribute.namespace() {
                return Err(element.objection(format!("{} of {namespace} is not known", attribute.name())));
            }
            element.attributes.push((attribute.name().to_owned(), attribute.value().to_owned()));
        }
        for child in node.children().filter(Node::is_element) {
            element.children.push(self.element(child, depth + 1)?);
        }
        if element.children.is_empty() {
            element.text = node.children().filter_map(|child| child.text().filter(|_| child.is_text())).collect();
        }
        Ok(element)
    }
}

/// A text or the value of an attribute, as XML has it.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_again_with_lines_known() {
        let text = "<domain type='kvm'\n xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n<!-- mine -->\n\
                    <name>a&amp;b</name>\n  <devices>\n<disk a=\"x'&lt;y\"/></devices><qemu:commandline/></domain>";
        let domain = Element::read(text).unwrap();
        let written = domain.write();
        assert_eq!(
            written,
            "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' type='kvm'><name>a&amp;b</name><devices>\
             <disk a='x&apos;&lt;y'></disk></devices><qemu:commandline></qemu:commandline></domain>"
        );
        let disk = &domain.child("devices").unwrap().children[0];
        assert_eq!((disk.line, disk.attribute("a"), domain.child("name").unwrap().line), (6, Some("x'<y"), 4));
        assert_eq!(Element::read(&written).unwrap().write(), written);
    }

    #[test]
    fn what_is_no_domain_is_refused_at_its_place() {
        let deep = "<a>".repeat(40) + &"</a>".repeat(40);
        let many = format!("<a>{}</a>", "<b/>".repeat(8001));
        let long = format!("<a>{}</a>", "x".repeat(DOMAIN_MAX));
        for (text, line, cause) in [
            ("<domain>\n<name></domain>", 2, "expected"),
            ("", 1, "root"),
            ("<!DOCTYPE a [<!ENTITY b 'c'>]>\n<a>&b;</a>", 1, "DTD"),
            (deep.as_str(), 1, "too deep"),
            (many.as_str(), 1, "nodes limit"),
            (long.as_str(), 1, "longer than"),
            ("<a\nxml:lang='en'/>", 1, "lang"),
        ] {
            let objection = Element::read(text).unwrap_err();
            assert!(objection.line == line && objection.cause.contains(cause), "{objection}");
        }
    }
}
