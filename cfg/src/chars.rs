//! Character classes of the language.
//!
//! They are those of Python's `str`, because the files were written for a parser that used them. Nothing here knows about
//! statements or tokens.

/// White space: Unicode `White_Space` and the four separators 1C–1F, which Rust leaves out.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Characters that separate lines besides LF (CR is normalised before this is asked).
pub(crate) fn is_line_break(c: char) -> bool {
    matches!(c, '\n' | '\u{0b}' | '\u{0c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Characters a bare word consists of.
pub(crate) fn is_word(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphanumeric() || c == '_' || c == '-' } else { c.is_alphanumeric() && !is_mark(c) }
}

/// `char::is_alphanumeric` accepts combining vowel signs and circled letters, which are no letters for the language.
fn is_mark(c: char) -> bool {
    matches!(c,
        '\u{345}' | '\u{5b0}'..='\u{5c7}' | '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{65f}' | '\u{670}' | '\u{6d6}'..='\u{6dc}'
        | '\u{6e1}'..='\u{6e4}' | '\u{6e7}'..='\u{6e8}' | '\u{6ed}' | '\u{900}'..='\u{903}' | '\u{93a}'..='\u{93b}'
        | '\u{93e}'..='\u{94f}' | '\u{955}'..='\u{957}' | '\u{962}'..='\u{963}' | '\u{981}'..='\u{983}' | '\u{9be}'..='\u{9cc}'
        | '\u{24b6}'..='\u{24e9}' | '\u{1f130}'..='\u{1f149}' | '\u{1f150}'..='\u{1f169}' | '\u{1f170}'..='\u{1f189}')
}

/// Leading white space cut.
pub(crate) fn trim_start(s: &str) -> &str {
    match s.as_bytes().first() {
        Some(b) if b.is_ascii() && !is_space(*b as char) => s,
        _ => s.trim_start_matches(is_space),
    }
}

/// Trailing white space cut.
pub(crate) fn trim_end(s: &str) -> &str {
    match s.as_bytes().last() {
        Some(b) if b.is_ascii() && !is_space(*b as char) => s,
        _ => s.trim_end_matches(is_space),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_white_space_too() {
        assert!(is_space('\u{1f}') && is_space('\u{a0}') && is_space('\u{3000}'));
        assert!(!is_space('\u{feff}') && !is_space('\u{200b}'));
    }

    #[test]
    fn words_are_unicode_letters_and_numbers() {
        for c in ['a', 'é', '漢', '５', '²', 'ⅷ', '_', '-'] {
            assert!(is_word(c), "{c}");
        }
        for c in ['.', '$', '\u{93e}', 'ⓐ', '\u{301}'] {
            assert!(!is_word(c), "{c}");
        }
    }

    #[test]
    fn trimming_keeps_the_inside() {
        assert_eq!(trim_start(" \u{a0}a b "), "a b ");
        assert_eq!(trim_end("a b \u{1f}"), "a b");
        assert_eq!(trim_end(""), "");
    }
}
