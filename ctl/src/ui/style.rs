//! Colours and symbols. Colour never carries meaning alone: the words are always there.

use vt_protocol::verdict::Verdict;

use crate::args::ColorChoice;

/// How text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Use colours.
    pub color: bool,
    /// Use ASCII symbols only.
    pub ascii: bool,
}

/// A symbol in front of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symbol {
    /// Went well.
    Done,
    /// Went wrong.
    Bad,
    /// Look here.
    Warn,
    /// Nothing special.
    Dot,
}

impl Style {
    /// The symbol as text.
    pub fn symbol(self, symbol: Symbol) -> String {
        let (plain, ascii, code) = match symbol {
            Symbol::Done => ("✓", "+", "32"),
            Symbol::Bad => ("✗", "x", "31"),
            Symbol::Warn => ("!", "!", "33"),
            Symbol::Dot => ("·", "-", "2"),
        };
        self.paint(if self.ascii { ascii } else { plain }, code)
    }

    /// An arrow from source to destination.
    pub fn arrow(self) -> &'static str {
        if self.ascii { "->" } else { "→" }
    }

    /// What stands for "not known" in a table.
    pub fn unknown(self) -> &'static str {
        if self.ascii { "-" } else { "—" }
    }

    /// What separates the parts of a line.
    pub fn dot(self) -> &'static str {
        if self.ascii { "," } else { " ·" }
    }

    /// A verdict, padded to `width` before it is coloured.
    pub fn verdict(self, verdict: Verdict, width: usize) -> String {
        let code = match verdict {
            Verdict::Pass => "32",
            Verdict::Warn | Verdict::Skip => "33",
            Verdict::Cancelled => "35",
            Verdict::Timeout | Verdict::Error | Verdict::Fail => "31",
        };
        self.paint(&format!("{verdict:<width$}"), code)
    }

    /// Text in an SGR colour, where colours are used.
    pub fn paint(self, text: &str, code: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Bold text.
    pub fn bold(self, text: &str) -> String {
        self.paint(text, "1")
    }
}

/// Whether to use colours: the flag, then NO_COLOR, then CLICOLOR_FORCE or FORCE_COLOR, then the terminal.
pub fn color(choice: ColorChoice, terminal: bool, env: &dyn Fn(&str) -> Option<String>) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            let forced = |name| env(name).is_some_and(|value| value != "0");
            let dumb = env("TERM").as_deref() == Some("dumb");
            env("NO_COLOR").is_none() && (forced("CLICOLOR_FORCE") || forced("FORCE_COLOR") || (terminal && !dumb))
        }
    }
}

/// Whether only ASCII may be written: VTCTL_ASCII, or a locale that is not UTF-8.
pub fn ascii(env: &dyn Fn(&str) -> Option<String>) -> bool {
    if env("VTCTL_ASCII").is_some_and(|value| value != "0") {
        return true;
    }
    // Without any locale, as in services and containers, terminals and logs of today take UTF-8.
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(env);
    locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        !(locale.contains("utf-8") || locale.contains("utf8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn the_flag_beats_the_environment_and_the_environment_the_terminal() {
        assert!(color(ColorChoice::Always, false, &env(&[("NO_COLOR", "1")])));
        assert!(!color(ColorChoice::Never, true, &env(&[("FORCE_COLOR", "1")])));
        assert!(!color(ColorChoice::Auto, true, &env(&[("NO_COLOR", "1"), ("FORCE_COLOR", "1")])));
        assert!(color(ColorChoice::Auto, false, &env(&[("CLICOLOR_FORCE", "1")])));
        assert!(!color(ColorChoice::Auto, false, &env(&[("FORCE_COLOR", "0")])));
        assert!(!color(ColorChoice::Auto, true, &env(&[("TERM", "dumb")])));
        assert!(color(ColorChoice::Auto, true, &env(&[])));
    }

    #[test]
    fn ascii_follows_the_locale_and_words_stay_without_colour() {
        assert!(ascii(&env(&[("LC_ALL", "C"), ("LANG", "en_GB.UTF-8")])));
        assert!(!ascii(&env(&[("LANG", "C.UTF-8")])));
        assert!(ascii(&env(&[("LANG", "C.UTF-8"), ("VTCTL_ASCII", "1")])));
        assert_eq!(Style::default().verdict(Verdict::Pass, 6), "PASS  ");
        assert_eq!(Style { color: true, ascii: false }.verdict(Verdict::Fail, 4), "\x1b[31mFAIL\x1b[0m");
        assert_eq!(Style { color: false, ascii: true }.symbol(Symbol::Done), "+");
    }
}
