//! Tokens back to text, one at a time.

use super::Tokenizer;

/// Decodes tokens as they come. A character whose bytes are spread over several tokens is held back
/// until it is whole; bytes that cannot be UTF-8 become U+FFFD.
#[derive(Debug)]
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    held: Vec<u8>,
}

impl<'t> DecodeStream<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer) -> Self {
        DecodeStream { tokenizer, held: Vec::new() }
    }

    /// The text that is certain after this token, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.held.extend_from_slice(self.tokenizer.bytes_of(id));
        let mut out = String::new();
        loop {
            let (good, bad) = match std::str::from_utf8(&self.held) {
                Ok(_) => (self.held.len(), 0),
                // No length: the bytes may yet become a character.
                Err(error) => (error.valid_up_to(), error.error_len().unwrap_or(0)),
            };
            out.extend(self.held.get(..good).and_then(|good| std::str::from_utf8(good).ok()));
            if bad > 0 {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            self.held.drain(..good + bad);
            if bad == 0 {
                return (!out.is_empty()).then_some(out);
            }
        }
    }

    /// What was held back: the start of a character that never ended, as U+FFFD.
    pub fn finish(self) -> Option<String> {
        (!self.held.is_empty()).then(|| String::from_utf8_lossy(&self.held).into_owned())
    }
}
