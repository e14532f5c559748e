//! The byte-level BPE in the metadata of a GGUF file, as a `tokenizer.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{HINT, Tokenizer};
use crate::{Error, Result};

/// What a GGUF file says about its tokenizer.
#[derive(Clone, Copy, Debug)]
pub struct GgufTokenizer<'a> {
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: &'a [&'a str],
    /// `tokenizer.ggml.token_type`, by id: 1 ordinary, 3 special, 4 whole words that are not special.
    pub kinds: &'a [i64],
    /// `tokenizer.ggml.merges`: two tokens and a space between them, the first merged first.
    pub merges: &'a [&'a str],
    /// `tokenizer.ggml.pre`: how text is cut into words.
    pub pre: &'a str,
}

/// The expression of Llama 3.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The expression of Qwen 2.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Tokenizer {
    /// The tokenizer of a GGUF file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for parts that do not fit together, a cut that is not known here, and all that
    /// [`Tokenizer::from_bytes`] refuses.
    pub fn from_gguf(parts: &GgufTokenizer<'_>, path: &Path) -> Result<Self> {
        let fail = |expected: &str, found: String| Error::tokenizer(path, expected, found, HINT);
        let GgufTokenizer { tokens, kinds, merges, pre } = *parts;
        if tokens.len() != kinds.len() {
            return Err(fail("a kind for each token", format!("{} of {} tokens", kinds.len(), tokens.len())));
        }
        let gpt2 =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let plain =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let expression = |text: &str| json!({"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated", "invert": false});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let sequence =
            |first: Value, then: &Value| json!({"type": "Sequence", "pretokenizers": [first, then]});
        let cut = match pre {
            "gpt-2" | "gpt2" => gpt2,
            "smollm" => sequence(digits, &gpt2),
            "llama-bpe" | "llama3" | "llama-v3" => sequence(expression(LLAMA3), &plain),
            "qwen2" => sequence(expression(QWEN2), &plain),
            _ => return Err(fail("words cut as gpt-2, smollm, llama-bpe or qwen2 do", format!("{pre:?}"))),
        };
        let mut vocab = Map::new();
        let mut added = Vec::new();
        for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
            if vocab.insert((*token).to_owned(), json!(id)).is_some() {
                return Err(fail("tokens that differ", format!("{token:?} twice")));
            }
            if matches!(kind, 3 | 4) {
                added.push(json!({"id": id, "content": token, "special": *kind == 3, "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false}));
            }
        }
        let model = json!({"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": pre.starts_with("llama"),
            "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false});
        let level =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        let whole = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": cut, "post_processor": null, "decoder": level, "model": model});
        Self::from_bytes(whole.to_string().as_bytes(), path)
    }
}
