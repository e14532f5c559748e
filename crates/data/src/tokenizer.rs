//! Byte-level BPE: text to tokens and back, without loss.
//!
//! The format is Hugging Face's `tokenizer.json`, and the crate `tokenizers` is the definition of what
//! it means. A tokenizer is accepted when decoding undoes encoding for every text: a byte-level model
//! without a normalizer that changes text. Where it lacks bytes, as SmolLM2's lacks some control characters, text
//! with such a byte is refused.

mod bytes;
mod encode;
mod gguf;
mod split;
mod stream;
mod train;
mod vocabulary;

use std::fmt;
use std::path::{Path, PathBuf};

use tokenizers::pre_tokenizers::PreTokenizerWrapper as Pre;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{DecoderWrapper, Model, ModelWrapper, Tokenizer as Inner};
use tritrain_files::{Storage, write_atomic};

pub(crate) use encode::Table;
pub use gguf::GgufTokenizer;
pub use stream::DecodeStream;
pub use vocabulary::{TokenKind, Vocabulary};

use crate::{Error, Result};

/// The end of text of trained tokenizers, id 0.
pub(crate) const EOS: &str = "<|endoftext|>";
/// What the end of text is called in other people's tokenizers, the first that is there counts.
const EOS_NAMES: &[&str] = &[
    EOS,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<|end▁of▁sentence|>",
    "<|eot_id|>",
    "<|im_end|>",
];
/// Ids above this are no vocabulary but a damaged file.
const MOST: u32 = 1 << 20;
const WHERE_TRAINED: &str = "(trained here)";
const HINT: &str =
    "use a byte-level BPE such as GPT-2's or SmolLM2's, or leave data.tokenizer empty to train one";

/// Encoded and decoded when a tokenizer is opened: composed and decomposed accents, ligatures, capitals,
/// white space of all kinds, digits, a special token as text.
const PROBE: &str = "  Hello WORLD,\tit's 2024\u{a0}\u{3000}x \r\n\r\n é e\u{301} ﬁ Å ① 日本語 🙂\u{200d} \u{feff}<|endoftext|></s> ▁ Ġ\n ";

/// How the tokenizer cuts text into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// GPT-2's expression.
    Gpt2,
    /// Digits first, then GPT-2's expression (SmolLM2).
    Gpt2Digits,
    /// Something else: `tokenizers` does it, slowly.
    Other,
}

/// A tokenizer. Threads may share it.
pub struct Tokenizer {
    inner: Inner,
    cut: Cut,
    json: String,
    hash: String,
    eos: u32,
    /// Bytes of token `i` are `bytes[starts[i]..starts[i + 1]]`; special tokens have none.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    /// Bytes that no token stands for: control characters, and what begins no character in use.
    missing: Vec<u8>,
    path: PathBuf,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Tokenizer");
        out.field("hash", &self.hash).field("vocab", &self.vocab_size()).field("cut", &self.cut);
        out.finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Trains a byte-level BPE with at most `vocab` tokens on pieces of text; on little text it ends up
    /// with fewer, never less than 257. The same pieces give the same tokenizer, in any order and on any
    /// number of threads.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn train<S: AsRef<str> + Sync>(pieces: &[S], vocab: u32) -> Result<Self> {
        train::train(pieces, vocab)
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Read`]; [`Error::Tokenizer`] when it is no tokenizer, has no end of
    /// text, or does not give text back as it was.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
        Self::from_bytes(&bytes, path)
    }

    /// The same from the bytes of a `tokenizer.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let fail = |expected: &str, found: &dyn fmt::Display| Error::tokenizer(path, expected, found, HINT);
        let mut inner = Inner::from_bytes(bytes)
            .map_err(|error| fail("a tokenizer.json of the crate tokenizers", &error))?;
        // Lengths are the training's business, and nothing is ever padded here.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| fail("a tokenizer without truncation", &error))?;
        inner.set_encode_special_tokens(true);
        let ModelWrapper::BPE(model) = inner.get_model() else {
            return Err(fail("a BPE model", &"another model"));
        };
        if model.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(fail("encoding without chance", &"BPE dropout"));
        }
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(fail("a byte-level decoder", &"another decoder or none"));
        }
        let has = |c: char| model.token_to_id(c.encode_utf8(&mut [0; 4])).is_some();
        let missing: Vec<u8> =
            (0..=u8::MAX).zip(bytes::alphabet()).filter(|(_, c)| !has(*c)).map(|(byte, _)| byte).collect();
        // Those of ordinary text must be there: what is written, and what goes on a character in UTF-8.
        if let Some(byte) =
            missing.iter().find(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~' | 0x80..=0xbf))
        {
            return Err(fail("a token for each byte of ordinary text", &format!("none for 0x{byte:02x}")));
        }
        let eos = end_of_text(&inner).ok_or_else(|| {
            fail("a special token for the end of text", &format!("none of {}", EOS_NAMES.join(", ")))
        })?;
        let (starts, bytes) = byte_table(&inner).map_err(|most| fail("ids below 1048576", &most))?;
        let json = inner.to_string(false).map_err(|error| fail("a tokenizer that can be written", &error))?;
        let hash = blake3::hash(json.as_bytes()).to_hex().to_string();
        let cut = cut_of(&inner);
        let path = path.to_path_buf();
        let tokenizer = Tokenizer { inner, cut, json, hash, eos, bytes, starts, missing, path };
        tokenizer.probe()?;
        Ok(tokenizer)
    }

    /// Whether text survives, and special tokens do not come out of text.
    fn probe(&self) -> Result<()> {
        for part in std::iter::once(PROBE).chain(PROBE.split_inclusive(' ')) {
            let tokens = self.encode(part)?;
            let back = self.decode(&tokens);
            if back != part {
                let expected = format!("decoding to undo encoding of {part:?}");
                return Err(Error::tokenizer(&self.path, expected, format!("{back:?}"), HINT));
            }
            if tokens.contains(&self.eos) || tokens != self.encode_slowly(part)? {
                let (expected, found) = ("text to stay text", format!("special tokens in {part:?}"));
                return Err(Error::tokenizer(&self.path, expected, found, HINT));
            }
        }
        Ok(())
    }

    /// Writes `tokenizer.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Files`].
    pub fn save(&self, storage: &dyn Storage, path: &Path) -> Result<()> {
        let text = self.inner.to_string(true).map_err(|error| self.refused(error.as_ref()))?;
        Ok(write_atomic(storage, path, text.as_bytes())?)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> u32 {
        self.starts.len() as u32 - 1
    }

    /// The token behind each document. No text encodes to it.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Names and ids of the special tokens, in order of id.
    pub fn special_tokens(&self) -> Vec<(String, u32)> {
        let added = self.inner.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special && !token.content.is_empty());
        let mut special: Vec<(String, u32)> = special.map(|(id, token)| (token.content, id)).collect();
        special.sort_unstable_by_key(|(_, id)| *id);
        special
    }

    /// What a token is called, in the characters of the byte alphabet.
    pub fn name_of(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    /// BLAKE3 of the canonical JSON, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The canonical JSON: what the crate `tokenizers` writes, on one line.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The tokens of one text, without any special one: text that looks like a special token is text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses the text, or has no token for a byte of it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(&mut Table::small(), text)
    }

    /// By the crate `tokenizers` alone: the definition, about one MB/s.
    fn encode_slowly(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| self.refused(error.as_ref()))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn refused(&self, error: &(dyn std::error::Error + Send + Sync)) -> Error {
        Error::tokenizer(&self.path, "to encode text", error, HINT)
    }

    /// The bytes a token stands for; none for special and unknown ids.
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        let at = |index: usize| self.starts.get(index).map(|&at| at as usize);
        let range = at(id as usize).zip(at(id as usize + 1));
        range.and_then(|(from, to)| self.bytes.get(from..to)).unwrap_or_default()
    }

    /// The text of tokens. Special tokens have none; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&id| self.bytes_of(id)).copied().collect();
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// Decodes token by token.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }
}

fn end_of_text(inner: &Inner) -> Option<u32> {
    let added = inner.get_added_tokens_decoder();
    let special = |id: &u32| added.get(id).is_some_and(|token| token.special);
    EOS_NAMES.iter().find_map(|name| inner.token_to_id(name).filter(special))
}

/// Where the bytes of each token begin, and the bytes. The error is the largest id.
fn byte_table(inner: &Inner) -> Result<(Vec<u32>, Vec<u8>), u32> {
    let added = inner.get_added_tokens_decoder();
    let mut tokens: Vec<(u32, String)> =
        inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort_unstable();
    tokens.dedup_by_key(|(id, _)| *id);
    let most = tokens.last().map_or(0, |(id, _)| *id);
    if most >= MOST {
        return Err(most);
    }
    let (mut starts, mut bytes) = (vec![0], Vec::new());
    for (id, token) in tokens {
        // Ids that are left out stand for nothing.
        starts.resize(id as usize + 1, bytes.len() as u32);
        match added.get(&id) {
            Some(added) if added.special => {}
            Some(_) => bytes.extend_from_slice(token.as_bytes()),
            None => bytes.extend(bytes::to_bytes(&token).unwrap_or_else(|| token.into_bytes())),
        }
        starts.push(bytes.len() as u32);
    }
    Ok((starts, bytes))
}

/// Whether text is cut in one of the ways that [`split`] knows.
fn cut_of(inner: &Inner) -> Cut {
    let added = inner.get_added_tokens_decoder();
    if inner.get_normalizer().is_some() || added.values().any(|token| !token.special) {
        return Cut::Other;
    }
    let gpt2 = |level: &ByteLevel| level.use_regex && !level.add_prefix_space;
    match inner.get_pre_tokenizer() {
        Some(Pre::ByteLevel(level)) if gpt2(level) => Cut::Gpt2,
        Some(Pre::Sequence(sequence)) => match sequence.as_ref() {
            [Pre::Digits(digits), Pre::ByteLevel(level)] if digits.individual_digits && gpt2(level) => {
                Cut::Gpt2Digits
            }
            _ => Cut::Other,
        },
        _ => Cut::Other,
    }
}
