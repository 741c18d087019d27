//! Answers to "why": where a value comes from, what removed a variant, what in a configuration is probably a mistake.
//!
//! Nothing here changes what an expansion yields.

mod adjacent;
mod empty;
mod explain;
mod find;
mod lint;
mod locate;
mod similar;

pub use explain::{Condition, Explanation, KeyHistory, Removal, Step};
pub use lint::LintOptions;
