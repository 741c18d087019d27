//! What a step is to find: a comparison with a number or a text, written as `<= 1000` or `contains up`.

use std::cmp::Ordering;

use serde_json::Value;

/// A comparison.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    operator: Operator,
    than: Than,
}

#[derive(Debug, Clone, PartialEq)]
enum Than {
    Number(f64),
    Text(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
    Contains,
    Lacks,
}

/// Longer ones first: `<=` begins with `<`.
const OPERATORS: [(&str, Operator); 8] = [
    ("==", Operator::Equal),
    ("!=", Operator::Unequal),
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("<", Operator::Less),
    (">", Operator::More),
    ("contains ", Operator::Contains),
    ("lacks ", Operator::Lacks),
];

/// What a value may be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Number,
    Text,
    /// Whatever is written.
    Any,
}

impl Wanted {
    /// Reads a comparison; without an operator the same is meant.
    pub(super) fn read(text: &str, kind: Type) -> Result<Self, String> {
        let text = text.trim();
        let (operator, than) = OPERATORS
            .iter()
            .find_map(|(word, operator)| Some((*operator, text.strip_prefix(word)?)))
            .unwrap_or((Operator::Equal, text));
        Self::new(operator, than.trim(), kind)
    }

    /// That number.
    pub(super) fn is(number: u32) -> Self {
        Self { operator: Operator::Equal, than: Than::Number(f64::from(number)) }
    }

    fn new(operator: Operator, than: &str, kind: Type) -> Result<Self, String> {
        let number = than.parse().ok().filter(|number: &f64| number.is_finite());
        let of_text = matches!(operator, Operator::Contains | Operator::Lacks);
        let of_number = !of_text && !matches!(operator, Operator::Equal | Operator::Unequal);
        let than = match (kind, number) {
            (Type::Number, _) if of_text => return Err("a number, which is compared by ==, !=, <, <=, > or >=".into()),
            (Type::Number, None) => return Err("a comparison with a number, e.g. \"<= 1000\"".into()),
            (Type::Text, _) if of_number => {
                return Err("a text, which is compared by ==, !=, contains or lacks".into());
            }
            (Type::Any, None) if of_number => return Err("a comparison with a number, e.g. \"<= 1000\"".into()),
            (Type::Number | Type::Any, Some(number)) if !of_text => Than::Number(number),
            _ => Than::Text(than.to_owned()),
        };
        Ok(Self { operator, than })
    }

    /// Whether a value is as wanted.
    pub(super) fn holds(&self, value: &Value) -> bool {
        match &self.than {
            Than::Number(than) => {
                let number = match value {
                    Value::String(text) => text.trim().parse().ok(),
                    value => value.as_f64(),
                };
                number.is_some_and(|number: f64| self.operator.holds(number.partial_cmp(than)))
            }
            Than::Text(than) => {
                let text = shown(value);
                let text = text.trim();
                match self.operator {
                    Operator::Contains => text.contains(than),
                    Operator::Lacks => !text.contains(than),
                    operator => operator.holds(Some(text.cmp(than))),
                }
            }
        }
    }
}

impl Operator {
    fn holds(self, order: Option<Ordering>) -> bool {
        let Some(order) = order else { return false };
        match self {
            Self::Equal => order.is_eq(),
            Self::Unequal => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::More => order.is_gt(),
            Self::AtLeast => order.is_ge(),
            Self::Contains | Self::Lacks => false,
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = OPERATORS.iter().find(|(_, known)| *known == self.operator).map_or("", |(word, _)| word.trim());
        match &self.than {
            Than::Number(than) => write!(f, "{word} {than}"),
            Than::Text(than) => write!(f, "{word} {than:?}"),
        }
    }
}

/// A value as it is compared and shown.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Whether a condition, `A == B`, is true: numbers are compared as numbers.
pub(super) fn condition(text: &str) -> Result<bool, String> {
    let want = "a condition, e.g. \"${rounds} > 1\" or \"${mode} == postcopy\"";
    let spaced = |word: &str| format!(" {} ", word.trim());
    let found = OPERATORS.iter().find_map(|(word, operator)| Some((text.split_once(&spaced(word))?, *operator)));
    let ((left, right), operator) = found.ok_or(want)?;
    let left = Value::from(left.trim());
    let kind = if left.as_str().is_some_and(|left| left.parse::<f64>().is_ok()) { Type::Any } else { Type::Text };
    Ok(Wanted::new(operator, right.trim(), kind)?.holds(&left))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_as_what_they_are() {
        for (text, kind, value, holds) in [
            ("<= 1000", Type::Number, json!(1000), true),
            ("<1000", Type::Number, json!(1000.5), false),
            ("0", Type::Number, json!(0), true),
            ("!= 0", Type::Number, json!(0), false),
            ("== 9", Type::Number, json!("no number"), false),
            ("contains up", Type::Text, json!("it is up "), true),
            ("lacks up", Type::Text, json!("it is up"), false),
            ("== 07", Type::Text, json!("7"), false),
            ("running", Type::Any, json!("running"), true),
            ("true", Type::Any, json!(true), true),
            (">= 2", Type::Any, json!(3), true),
        ] {
            assert_eq!(Wanted::read(text, kind).unwrap().holds(&value), holds, "{text} of {value}");
        }
        for (text, kind) in
            [("soon", Type::Number), ("contains 3", Type::Number), ("< up", Type::Text), ("< up", Type::Any)]
        {
            Wanted::read(text, kind).unwrap_err();
        }
        assert_eq!(Wanted::read("<=10", Type::Number).unwrap().to_string(), "<= 10");
    }

    #[test]
    fn conditions_compare_numbers_as_numbers() {
        for (text, holds) in [
            ("10 > 9", true),
            ("a == a", true),
            ("a != a", false),
            ("1.0 == 1", true),
            ("yes == no", false),
            (" == ", true),
            ("tls contains t", true),
        ] {
            assert_eq!(condition(text), Ok(holds), "{text}");
        }
        for wrong in ["yes", "", "a=b", "a > b", "3 < x"] {
            condition(wrong).unwrap_err();
        }
    }
}
