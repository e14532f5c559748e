//! Training a byte-level BPE.

use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::Trainer;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::bytes::{alphabet, push_chars};
use super::split::Words;
use super::{EOS, Tokenizer, WHERE_TRAINED};
use crate::{Error, Result};

/// Trains on pieces of text. The trainer of `tokenizers` takes pairs by (count, ids), which is a total
/// order, so its hash maps and threads leave no trace in the result.
pub(super) fn train<S: AsRef<str> + Sync>(pieces: &[S], vocab: u32) -> Result<Tokenizer> {
    let fail = |error: tokenizers::Error| {
        let hint = "train on other text, or name a tokenizer in data.tokenizer";
        Error::tokenizer(Path::new(WHERE_TRAINED), "a byte-level BPE", error, hint)
    };
    let end = AddedToken::from(EOS, true);
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab as usize)
        // A pair seen once is no pattern.
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(alphabet().collect())
        .special_tokens(vec![end.clone()])
        .build();
    let words = |piece: &str| {
        let word = |word: &str| {
            let mut chars = String::with_capacity(word.len());
            push_chars(word.as_bytes(), &mut chars);
            chars
        };
        Ok(Words::new(piece, false).map(word).collect())
    };
    trainer.feed(pieces.iter(), words).map_err(fail)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(fail)?;
    let mut inner = Inner::new(model);
    let level = ByteLevel::new(false, true, true);
    inner.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
    inner.add_special_tokens([end]).map_err(fail)?;
    let json = inner.to_string(false).map_err(fail)?;
    Tokenizer::from_bytes(json.as_bytes(), Path::new(WHERE_TRAINED))
}
