//! Questions and texts that a model is measured on: a file with a JSON object a line.
//!
//! `{"question": "..", "choices": ["..", ".."], "answer": 1}` is a question, whose answer is the number of a choice,
//! from 0, or its text. `{"text": ".."}` is a text. Other fields are left alone.

use std::path::Path;

use serde_json::Value;
use tritrain_files::Storage;

use crate::{Error, Result, error::short};

/// One line of a file of tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Which of several continuations is the most probable?
    Choice {
        /// What stands before each.
        question: String,
        /// Two at least, none of them empty.
        choices: Vec<String>,
        /// Index of the right one.
        answer: usize,
    },
    /// How probable is it?
    Text(String),
}

const HINT: &str = "a line is {\"question\": .., \"choices\": [..], \"answer\": 0} or {\"text\": ..}";

/// Reads a file of tasks; empty lines are left out.
///
/// # Errors
/// [`Error::Line`] with the line that is no task; [`Error::Empty`]; [`Error::Missing`], [`Error::Files`].
pub fn tasks(storage: &dyn Storage, path: &Path) -> Result<Vec<Task>> {
    if !storage.exists(path)? {
        return Err(Error::Missing { path: path.to_path_buf() });
    }
    let bytes = storage.read(path)?;
    let mut tasks = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |expected: &str, found: String| Error::Line {
            path: path.to_path_buf(),
            line: number,
            expected: expected.to_owned(),
            found: short(&found),
            hint: HINT,
        };
        let value: Value =
            serde_json::from_slice(line).map_err(|error| wrong("a JSON object", error.to_string()))?;
        tasks.push(task(&value).map_err(|(expected, found)| wrong(expected, found))?);
    }
    if tasks.is_empty() {
        return Err(Error::Empty { found: path.display().to_string(), hint: HINT });
    }
    Ok(tasks)
}

/// A task, or what was expected and what is there.
fn task(value: &Value) -> Result<Task, (&'static str, String)> {
    let choices = match (&value["text"], &value["choices"]) {
        (Value::String(text), Value::Null) if !text.is_empty() => return Ok(Task::Text(text.clone())),
        (Value::Null, Value::Array(choices)) => choices,
        _ => return Err(("one of the fields text and choices", value.to_string())),
    };
    let question =
        value["question"].as_str().ok_or_else(|| ("a text in question", value["question"].to_string()))?;
    let text = |choice: &Value| match choice.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(("texts in choices, none of them empty", choice.to_string())),
    };
    let choices = choices.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    if choices.len() < 2 {
        return Err(("two choices at least", choices.len().to_string()));
    }
    let answer = match &value["answer"] {
        Value::String(text) => choices.iter().position(|choice| choice == text),
        number => number.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n < choices.len()),
    };
    let answer = answer.ok_or_else(|| {
        ("in answer, the number of a choice from 0, or its text", value["answer"].to_string())
    })?;
    Ok(Task::Choice { question: question.to_owned(), choices, answer })
}
