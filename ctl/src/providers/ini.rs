//! The ini files of provider definitions, by the rules of Python's configparser as far as definitions use them.

/// Longest ini file, bytes.
pub(crate) const INI_MAX: u64 = 64 << 10;

/// A section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) name: String,
    /// Line of its header, from 1.
    pub(crate) line: u32,
    pub(crate) entries: Vec<Entry>,
}

/// An option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// In lower case: configparser does not tell cases apart.
    pub(crate) key: String,
    pub(crate) value: String,
    /// Line from 1.
    pub(crate) line: u32,
}

/// What is wrong, and in which line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) line: u32,
    pub(crate) what: String,
}

impl Section {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

/// Reads all sections.
///
/// # Errors
/// The first line that is neither section, option, comment nor continuation, or that repeats one.
pub(crate) fn parse(text: &str) -> Result<Vec<Section>, Mistake> {
    let mut sections: Vec<Section> = Vec::new();
    for (line, written) in (1..).zip(text.lines()) {
        let trimmed = written.trim();
        let mistake = |what: String| Err(Mistake { line, what });
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        let indented = written.starts_with(char::is_whitespace);
        if let Some(name) = trimmed.strip_prefix('[').filter(|_| !indented) {
            let Some((name, _)) = name.rsplit_once(']') else {
                return mistake(format!("the section {trimmed:?} has no closing bracket"));
            };
            if let Some(first) = sections.iter().find(|section| section.name == name) {
                return mistake(format!("section [{name}] is there twice; the first one is in line {}", first.line));
            }
            sections.push(Section { name: name.to_owned(), line, entries: Vec::new() });
            continue;
        }
        let Some(section) = sections.last_mut() else {
            return mistake(format!("{trimmed:?} stands in no section"));
        };
        if indented {
            let Some(entry) = section.entries.last_mut() else {
                return mistake(format!("{trimmed:?} is indented, but continues nothing"));
            };
            entry.value.push('\n');
            entry.value.push_str(trimmed);
            continue;
        }
        let Some((key, value)) = trimmed.split_once(['=', ':']).filter(|(key, _)| !key.trim().is_empty()) else {
            return mistake(format!("{trimmed:?} is neither a [section] nor KEY: VALUE"));
        };
        let key = key.trim().to_lowercase();
        if let Some(first) = section.get(&key) {
            return mistake(format!(
                "{key} is given twice in [{}]; the first one is in line {}",
                section.name, first.line
            ));
        }
        section.entries.push(Entry { key, value: value.trim().to_owned(), line });
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_options_comments_and_continuations_are_read() {
        let text =
            "# x\n[provider]\nURI: https://a.b/c.git\n; y\n\n[qemu]\nsubdir = qemu/\nconfigs: a.cfg,\n   b.cfg\n";
        let sections = parse(text).unwrap();
        assert_eq!(sections.len(), 2);
        assert_eq!(sections[0].get("uri").unwrap().value, "https://a.b/c.git");
        let configs = sections[1].get("configs").unwrap();
        assert_eq!((configs.value.as_str(), configs.line, sections[1].line), ("a.cfg,\nb.cfg", 8, 6));
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn each_mistake_names_its_line() {
        for (text, line, says) in [
            ("uri: x\n", 1, "in no section"),
            ("[provider\n", 1, "closing bracket"),
            ("[provider]\nuri\n", 2, "neither"),
            ("[provider]\n: x\n", 2, "neither"),
            ("[provider]\n  uri: x\n", 2, "continues nothing"),
            ("[a]\n[b]\n[a]\n", 3, "line 1"),
            ("[a]\nx: 1\nX = 2\n", 3, "line 2"),
        ] {
            let mistake = parse(text).unwrap_err();
            assert!(mistake.line == line && mistake.what.contains(says), "{text:?}: {mistake:?}");
        }
    }
}
