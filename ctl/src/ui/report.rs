//! Errors as they are shown: what, aligned evidence, what to type next.

use serde_json::{Value, json};
use vt_protocol::error::{ErrorCode, Exit, Report};

use super::{style::Style, text::safe};
use crate::exit;

/// The text of an error; `causes` adds the chain of causes.
pub fn text(report: &Report, style: Style, causes: bool) -> String {
    let head = style.paint(&format!("error[{}]:", report.code), "1;31");
    let mut text = format!("{head} {}\n", safe(&report.title).replace('\n', " "));
    text.push_str(&body(report, "   ", causes));
    text
}

/// The lines under the title, each with `indent` in front.
pub fn body(report: &Report, indent: &str, causes: bool) -> String {
    let mut lines: Vec<(String, String)> = report.evidence.clone();
    if causes {
        lines.extend(report.causes.iter().map(|cause| ("caused by".to_owned(), cause.clone())));
    }
    let helps = report.help.iter().enumerate();
    lines.extend(helps.map(|(i, help)| (if i == 0 { "help".to_owned() } else { String::new() }, help.clone())));
    lines.push(("more".to_owned(), format!("vtctl explain {}", report.code)));
    let width = lines.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0).min(16);
    let mut text = String::new();
    for (key, value) in lines {
        let value = safe(&value);
        let mut parts = value.lines();
        let key = safe(&key).replace('\n', " ");
        text.push_str(format!("{indent}{key:<width$} {}", parts.next().unwrap_or_default()).trim_end());
        text.push('\n');
        for part in parts {
            text.push_str(format!("{indent}{:<width$} {part}", "").trim_end());
            text.push('\n');
        }
    }
    text
}

/// The JSON form of an error.
pub fn json(report: &Report) -> Value {
    let mut value = object(report);
    value["schema"] = json!("vtmesh/v1/error");
    value["exit"] = exit::json(report.code.exit());
    value
}

/// The JSON form of an error inside another document. Evidence keeps its order and may hold a key twice.
pub fn object(report: &Report) -> Value {
    let mut evidence = serde_json::Map::new();
    for (key, text) in &report.evidence {
        match evidence.get_mut(key) {
            None => _ = evidence.insert(key.clone(), json!(text)),
            Some(Value::Array(values)) => values.push(json!(text)),
            Some(value) => *value = json!([value.take(), text]),
        }
    }
    json!({
        "code": report.code.to_string(),
        "title": report.title,
        "evidence": evidence,
        "help": report.help,
        "causes": report.causes,
        "retryable": report.retryable,
    })
}

/// A mistake in how vtctl was called.
pub fn usage(title: impl Into<String>) -> Report {
    Report::new(ErrorCode::Usage, title)
}

/// Something that the daemon should never answer.
pub fn unexpected(asked: &str, answer: &impl std::fmt::Debug) -> Report {
    let answer: String = format!("{answer:?}").chars().take(200).collect();
    Report::new(ErrorCode::Internal, format!("the daemon's answer to {asked} was not understood"))
        .with("answer", answer)
        .help("vtctl version   # vtctl and vtd should be of one version")
}

/// A report that was passed on by value, with the exit code that goes with it.
pub fn exit_of(report: &Report) -> Exit {
    report.code.exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(ErrorCode::TokenExpired, "the join token has expired")
            .with("token", "tk_4f2a, for role voter")
            .with("expired", "14 min ago")
            .help("vtctl cluster token create --role voter")
            .help("vtctl cluster token list");
        report.causes = vec!["outer".into(), "inner".into()];
        report
    }

    #[test]
    fn evidence_is_aligned_and_help_and_more_follow() {
        assert_eq!(
            text(&report(), Style::default(), false),
            "error[E0213]: the join token has expired\n\
             \x20  token   tk_4f2a, for role voter\n\
             \x20  expired 14 min ago\n\
             \x20  help    vtctl cluster token create --role voter\n\
             \x20          vtctl cluster token list\n\
             \x20  more    vtctl explain E0213\n"
        );
    }

    #[test]
    fn causes_are_shown_when_asked_for_one_a_line() {
        let text = text(&report(), Style::default(), true);
        assert!(text.contains("\n   caused by outer\n   caused by inner\n"), "{text}");
    }

    #[test]
    fn many_lines_of_one_value_stay_under_their_key_and_control_characters_go() {
        let report = Report::new(ErrorCode::QemuDied, "qemu ended").with("qemu said", "one\x1b[2J\ntwo");
        let text = text(&report, Style::default(), false);
        assert!(text.contains("   qemu said one[2J\n             two\n"), "{text}");
    }

    #[test]
    fn the_json_form_has_every_field() {
        let value = json(&report().with("token", "again"));
        assert_eq!(
            value,
            serde_json::json!({
                "schema": "vtmesh/v1/error", "code": "E0213", "title": "the join token has expired",
                "evidence": {"token": ["tk_4f2a, for role voter", "again"], "expired": "14 min ago"},
                "help": ["vtctl cluster token create --role voter", "vtctl cluster token list"],
                "causes": ["outer", "inner"], "retryable": false, "exit": {"code": 22, "name": "denied"},
            })
        );
    }
}
