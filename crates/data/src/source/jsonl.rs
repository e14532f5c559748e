//! A file with one JSON object a line.

use std::io::{BufRead, Read};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::Document;
use crate::chat::{Message, check_turns};
use crate::error::short;
use crate::{Error, Result};

/// The longest line: what is read into memory at once.
const LINE: u64 = 256 << 20;
const HINT_CHAT: &str = "in a conversation each message is an object with strings \"role\" and \"content\"; repair or remove the line";
const HINT: &str = "each line is one object with its text in the field \"text\"; repair or remove the line";

/// The fields that are read. Others are ignored.
#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    messages: Option<Value>,
    domain: Option<Value>,
    title: Option<Value>,
    name: Option<Value>,
    id: Option<Value>,
    source: Option<Value>,
}

/// Reads one file, a line at a time.
pub(crate) struct JsonlReader<R> {
    input: R,
    path: PathBuf,
    domain: String,
    name: String,
    line: Vec<u8>,
    /// Lines and bytes read.
    lines: u64,
    offset: u64,
    /// Lines that are no documents, and what is wrong with the first.
    bad: u64,
    first_bad: Option<Error>,
}

/// A file is refused when more than one line in this many is no document: it is then something else
/// than it says. Fewer are the scars of concatenation and cut downloads; they are left out, counted and
/// reported.
const ONE_IN: u64 = 20;

impl<R: BufRead> JsonlReader<R> {
    pub(crate) fn new(input: R, path: PathBuf, domain: String, name: String) -> Self {
        JsonlReader {
            input,
            path,
            domain,
            name,
            line: Vec::new(),
            lines: 0,
            offset: 0,
            bad: 0,
            first_bad: None,
        }
    }

    /// The next document that is not empty; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Document>> {
        loop {
            self.line.clear();
            let read = self.input.by_ref().take(LINE).read_until(b'\n', &mut self.line);
            let read = read.map_err(|e| Error::read(&self.path, e))? as u64;
            if read == 0 {
                return match self.first_bad.take_if(|_| self.bad * ONE_IN > self.lines) {
                    Some(error) => Err(error),
                    None => Ok(None),
                };
            }
            self.lines += 1;
            if read == LINE && !self.line.ends_with(b"\n") {
                return Err(self.wrong("a line of less than 256 MiB", "a longer one"));
            }
            let parsed = self.parse();
            self.offset += read;
            let document = match parsed {
                Err(error @ Error::Line { .. }) => {
                    self.bad += 1;
                    self.first_bad.get_or_insert(error);
                    continue;
                }
                other => other?,
            };
            if document.is_some() {
                return Ok(document);
            }
        }
    }

    /// What was left out, at the end of the file.
    pub(crate) fn damage(&self) -> Option<String> {
        let first = self.first_bad.as_ref()?;
        Some(format!("left out {} of {} lines, the first: {first}", self.bad, self.lines))
    }

    /// `None` for a blank line and for an empty text.
    fn parse(&self) -> Result<Option<Document>> {
        let text = std::str::from_utf8(&self.line).map_err(|error| {
            let good = error.valid_up_to();
            let byte = self.line.get(good).copied().unwrap_or_default();
            let offset = self.offset + good as u64;
            Error::Utf8 { path: self.path.clone(), line: self.lines, offset, byte }
        })?;
        let text = if self.lines == 1 { text.trim_start_matches('\u{feff}') } else { text };
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let line: Line = serde_json::from_str(text).map_err(|error| {
            // serde_json counts lines in the one line it was given.
            let found = error.to_string().replace(" at line 1 column ", " at column ");
            self.wrong("a JSON object with a string \"text\"", &found)
        })?;
        let messages = match line.messages {
            Some(messages) if messages.is_array() || line.text.is_none() => self.conversation(messages)?,
            _ => Vec::new(),
        };
        let said = |messages: &[Message]| {
            messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n")
        };
        let Some(body) = (if messages.is_empty() { line.text } else { Some(said(&messages)) }) else {
            let fields = match serde_json::from_str(text) {
                Ok(Value::Object(fields)) => fields.keys().cloned().collect::<Vec<_>>().join(", "),
                _ => String::new(),
            };
            return Err(self.wrong("a field \"text\" or \"messages\"", &format!("the fields [{fields}]")));
        };
        if body.is_empty() {
            return Ok(None);
        }
        let name = [line.title, line.name, line.id, line.source].into_iter().find_map(plain);
        let name = name.unwrap_or_else(|| format!("{}:{}", self.name, self.lines));
        let domain = plain(line.domain).unwrap_or_else(|| self.domain.clone());
        Ok(Some(Document { domain, name, text: body, messages }))
    }

    /// The turns of a conversation, which end with an answer.
    fn conversation(&self, messages: Value) -> Result<Vec<Message>> {
        let wrong = |expected: &str, found: &str| match self.wrong(expected, found) {
            Error::Line { path, line, expected, found, .. } => {
                Error::Line { path, line, expected, found, hint: HINT_CHAT }
            }
            other => other,
        };
        let messages: Vec<Message> = serde_json::from_value(messages).map_err(|error| {
            wrong("messages with a string \"role\" and a string \"content\"", &error.to_string())
        })?;
        check_turns(&messages).map_err(|(expected, found)| wrong(expected, &found))?;
        Ok(messages)
    }

    fn wrong(&self, expected: &str, found: &str) -> Error {
        let (path, expected) = (self.path.clone(), expected.to_owned());
        Error::Line { path, line: self.lines, expected, found: short(found), hint: HINT }
    }
}

/// A string that is not empty, or a number as a string.
fn plain(value: Option<Value>) -> Option<String> {
    match value? {
        Value::String(text) if !text.is_empty() => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
