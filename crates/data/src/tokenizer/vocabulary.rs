//! A tokenizer as lists, for formats that have no `tokenizer.json`.

use serde_json::Value;

use super::{Cut, Tokenizer};
use crate::{Error, Result};

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// A mark such as the end of text; no text encodes to it.
    Special,
    /// Text that is found before everything else is cut.
    Added,
    /// An id that stands for nothing.
    Unused,
}

/// Tokens by id, and merges in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Tokens in the characters of the byte alphabet, special and added ones as they are.
    pub tokens: Vec<(String, TokenKind)>,
    /// Two tokens with a space between them.
    pub merges: Vec<String>,
    /// llama.cpp's name (`tokenizer.ggml.pre`) of how text is cut into words; `None` where it has none that
    /// cuts alike.
    pub cut: Option<&'static str>,
}

impl Tokenizer {
    /// Its tokens and merges.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where lists cannot say all of it: prefixes or suffixes of words, tokens for single
    /// bytes beside the alphabet, words that are looked up before they are merged.
    pub fn vocabulary(&self) -> Result<Vocabulary> {
        let fail = |expected: &str, found: String| {
            Error::tokenizer(&self.path, expected, found, "keep this tokenizer in a tokenizer.json")
        };
        let json: Value = serde_json::from_str(&self.json)
            .map_err(|error| fail("a tokenizer that can be written as JSON", error.to_string()))?;
        let model = &json["model"];
        for option in ["continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"] {
            let off = match &model[option] {
                Value::Null | Value::Bool(false) => true,
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            if !off {
                return Err(fail("a plain byte-level BPE", format!("{option} = {}", model[option])));
            }
        }
        let merges = model["merges"].as_array().into_iter().flatten().map(|merge| match merge {
            Value::String(pair) => Some(pair.clone()),
            Value::Array(pair) => match &pair[..] {
                [Value::String(a), Value::String(b)] => Some(format!("{a} {b}")),
                _ => None,
            },
            _ => None,
        });
        let merges: Option<Vec<String>> = merges.collect();
        let merges = merges.ok_or_else(|| fail("merges of two tokens", "others".into()))?;
        if let Some(merge) = merges.iter().find(|merge| merge.split(' ').count() != 2) {
            return Err(fail("merges of two tokens without spaces", merge.clone()));
        }
        let mut tokens = vec![(String::new(), TokenKind::Unused); self.vocab_size() as usize];
        let added = self.inner.get_added_tokens_decoder();
        for (token, id) in self.inner.get_vocab(true) {
            let kind = match added.get(&id) {
                Some(added) if added.special => TokenKind::Special,
                Some(_) => TokenKind::Added,
                None => TokenKind::Normal,
            };
            if let Some(slot) = tokens.get_mut(id as usize) {
                *slot = (token, kind);
            }
        }
        let cut = match self.cut {
            Cut::Gpt2 => Some("gpt-2"),
            Cut::Gpt2Digits => Some("smollm"),
            Cut::Other => None,
        };
        Ok(Vocabulary { tokens, merges, cut })
    }
}
