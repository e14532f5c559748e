//! Encoding at speed: words cut by hand, and a table of the words seen last.
//!
//! Text repeats its words: about 97 of 100 are in the table, and a look costs one cache line. The rest
//! goes through the model of `tokenizers`, which is the definition.

use tokenizers::Model;

use super::bytes::push_chars;
use super::split::Words;
use super::{Cut, Tokenizer};
use crate::{Error, Result};

/// The longest word that is kept, in bytes.
const KEY: usize = 22;
/// The most tokens of a word that is kept.
const TOKENS: usize = 10;

/// One cache line. A word always goes to the slot of its hash, replacing what is there. A length of zero marks an empty slot: no word is empty.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Slot {
    key: [u8; KEY],
    len: u8,
    count: u8,
    tokens: [u32; TOKENS],
}

const _: () = assert!(size_of::<Slot>() == 64);

/// The words seen last and their tokens. Belongs to one tokenizer; one per thread.
pub(crate) struct Table {
    slots: Vec<Slot>,
    chars: String,
}

impl Table {
    /// For a stream of texts.
    pub(crate) fn large() -> Self {
        Self::with_slots(1 << 16)
    }

    /// For one short text.
    pub(crate) fn small() -> Self {
        Self::with_slots(1 << 8)
    }

    fn with_slots(slots: usize) -> Self {
        let empty = Slot { key: [0; KEY], len: 0, count: 0, tokens: [0; TOKENS] };
        Table { slots: vec![empty; slots], chars: String::new() }
    }
}

impl Tokenizer {
    /// The tokens of a text, without any special one.
    pub(crate) fn encode_with(&self, table: &mut Table, text: &str) -> Result<Vec<u32>> {
        if !self.missing.is_empty()
            && let Some(at) = text.bytes().position(|byte| self.missing.contains(&byte))
        {
            let byte = text.as_bytes().get(at).copied().unwrap_or_default();
            let found = format!("byte 0x{byte:02x} at byte {at} of a text");
            let expected = "text of bytes that it has tokens for";
            return Err(Error::tokenizer(
                &self.path,
                expected,
                found,
                "take such characters out of the text",
            ));
        }
        let digits = match self.cut {
            Cut::Other => return self.encode_slowly(text),
            Cut::Gpt2 => false,
            Cut::Gpt2Digits => true,
        };
        let mut tokens = Vec::with_capacity(text.len() / 3);
        for word in Words::new(text, digits) {
            self.word(table, word.as_bytes(), &mut tokens)?;
        }
        Ok(tokens)
    }

    fn word(&self, table: &mut Table, word: &[u8], out: &mut Vec<u32>) -> Result<()> {
        if word.len() > KEY {
            return self.model(table, word, out);
        }
        let mut key = [0; KEY];
        key.iter_mut().zip(word).for_each(|(to, from)| *to = *from);
        let (index, len) = (slot_of(&key, word.len(), table.slots.len()), word.len() as u8);
        if let Some(slot) = table.slots.get(index)
            && slot.len == len
            && slot.key == key
        {
            out.extend_from_slice(slot.tokens.get(..usize::from(slot.count)).unwrap_or_default());
            return Ok(());
        }
        let from = out.len();
        self.model(table, word, out)?;
        let new = out.get(from..).unwrap_or_default();
        if let (Some(slot), true) = (table.slots.get_mut(index), new.len() <= TOKENS) {
            let mut tokens = [0; TOKENS];
            tokens.iter_mut().zip(new).for_each(|(to, from)| *to = *from);
            *slot = Slot { key, len, count: new.len() as u8, tokens };
        }
        Ok(())
    }

    fn model(&self, table: &mut Table, word: &[u8], out: &mut Vec<u32>) -> Result<()> {
        table.chars.clear();
        push_chars(word, &mut table.chars);
        let tokens = self.inner.get_model().tokenize(&table.chars);
        let tokens = tokens.map_err(|error| self.refused(error.as_ref()))?;
        out.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }
}

fn slot_of(key: &[u8; KEY], len: usize, slots: usize) -> usize {
    let part = |range: std::ops::Range<usize>| {
        key.get(range).unwrap_or_default().iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))
    };
    let mut hash = len as u64;
    for word in [part(0..8), part(8..16), part(16..KEY)] {
        hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    (hash >> 40) as usize % slots
}
