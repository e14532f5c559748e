//! What is wrong with a configuration: every problem at once.

use std::fmt;

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `file:line`, `--set`, or `configuration` for values that came from neither.
    pub place: String,
    /// The option, what was found and what was expected.
    pub what: String,
    /// What to do about it, where there is a good guess.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// A configuration that cannot be used. Displays one problem a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// At least one, in the order of the file, then of the `--set` arguments.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// What the program exits with: usage or configuration.
    pub fn exit_code(&self) -> u8 {
        2
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        ConfigError { problems: vec![problem] }
    }
}
