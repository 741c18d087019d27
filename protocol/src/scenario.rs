//! A scenario in a file, as it travels, and what a daemon says of it.
//!
//! The file is text here; what it means is known to the daemon alone, which reads it by the same code before anything starts
//! and when it runs.

use serde::{Deserialize, Serialize};

use crate::{job::ScenarioInfo, params::Params};

/// Most bytes of a scenario's file.
pub const SCENARIO_FILE_MAX: usize = 64 << 10;

/// A scenario in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioText {
    /// The file, as its user calls it: for messages.
    pub file: String,
    /// What it says, at most [`SCENARIO_FILE_MAX`] bytes.
    pub text: String,
}

/// Asks what is wrong with a scenario in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioCheck {
    /// The file.
    pub scenario: ScenarioText,
    /// Parameters it is to be checked with.
    pub params: Params,
    /// On how many hosts; 0: on as few as it takes.
    pub hosts: u32,
}

/// What a daemon says of a scenario in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioChecked {
    /// As it would be listed, where the file can be read that far.
    pub info: Option<ScenarioInfo>,
    /// How long one case may take, ms, where the file says so.
    pub timeout_ms: Option<u64>,
    /// What is done, in order, its loops unrolled; empty where something is wrong.
    pub steps: Vec<ScenarioStep>,
    /// What is wrong, in the order of lines.
    pub mistakes: Vec<Mistake>,
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioStep {
    /// The line that says so, from 1.
    pub line: u32,
    /// What is done, in words.
    pub text: String,
}

/// A mistake in a scenario's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mistake {
    /// Line, from 1; 0: no line, what was given beside the file is wrong.
    pub line: u32,
    /// Column of the place, in characters from 1; 0: the whole line.
    pub column: u32,
    /// Length of the place, in characters.
    pub length: u32,
    /// What is wrong.
    pub message: String,
    /// What may have been meant, or what is possible.
    pub hint: Option<String>,
}
