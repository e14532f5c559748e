//! What a passage is counted as: words by their hashes, or tokens.

use crate::tokenizer::Table;
use crate::{Result, Tokenizer};

/// Words longer than this many bytes are cut into several, so that none is endless.
const WORD: usize = 64;
/// FNV-1a, 64 bits (Fowler, Noll, Vo).
const FNV: u64 = 0x0100_0000_01b3;

/// A feature and how often it occurs in a passage: 20 bits of id, 12 bits of count, which saturates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count(u32);

impl Count {
    /// The largest count.
    pub(crate) const MOST: u32 = (1 << 12) - 1;

    pub(crate) fn new(id: u32, count: u32) -> Self {
        Count(id << 12 | count.min(Self::MOST))
    }

    pub(crate) fn id(self) -> usize {
        (self.0 >> 12) as usize
    }

    pub(crate) fn count(self) -> u32 {
        self.0 & Self::MOST
    }
}

/// How text becomes features.
#[derive(Debug)]
pub(crate) enum Features<'a> {
    /// Lower-cased words, hashed into `2^bits` buckets.
    Words {
        /// Mixed into every hash.
        seed: u64,
        bits: u32,
    },
    /// Tokens.
    Tokens(&'a Tokenizer),
}

/// What counting needs besides the text. One per thread.
pub(crate) struct Counter {
    /// Count of each id; all zero between passages.
    counts: Vec<u16>,
    /// Ids seen, in the order in which they first occurred.
    seen: Vec<u32>,
    table: Option<Table>,
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counter").field("width", &self.counts.len()).finish_non_exhaustive()
    }
}

impl Features<'_> {
    /// Number of different features.
    pub(crate) fn width(&self) -> usize {
        match self {
            Features::Words { bits, .. } => 1 << bits,
            Features::Tokens(tokenizer) => tokenizer.vocab_size() as usize,
        }
    }

    pub(crate) fn counter(&self) -> Counter {
        let table = matches!(self, Features::Tokens(_)).then(Table::large);
        Counter { counts: vec![0; self.width()], seen: Vec::new(), table }
    }

    /// The features of a text, in the order in which they first occur.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer), of tokens.
    pub(crate) fn count(&self, counter: &mut Counter, text: &str) -> Result<Vec<Count>> {
        match self {
            Features::Words { seed, bits } => {
                let shift = 64 - bits;
                words(text, *seed, |_, hash| counter.add((hash >> shift) as u32));
            }
            Features::Tokens(tokenizer) => {
                let table = counter.table.get_or_insert_with(Table::large);
                for id in tokenizer.encode_with(table, text)? {
                    counter.add(id);
                }
            }
        }
        Ok(counter.take())
    }
}

impl Counter {
    fn add(&mut self, id: u32) {
        if let Some(count) = self.counts.get_mut(id as usize) {
            if *count == 0 {
                self.seen.push(id);
            }
            *count = count.saturating_add(1);
        }
    }

    fn take(&mut self) -> Vec<Count> {
        let Counter { counts, seen, .. } = self;
        let mut count = |id: u32| counts.get_mut(id as usize).map_or(0, std::mem::take);
        seen.drain(..).map(|id| Count::new(id, count(id).into())).collect()
    }
}

/// A byte of ASCII to its lower case; 0 for what separates words, 1 for the first byte of others.
const BYTES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            c if c.is_ascii_alphanumeric() => c.to_ascii_lowercase(),
            c if c >= 0x80 => 1,
            _ => 0,
        };
        byte += 1;
    }
    table
};

/// Calls `each` for every word, with its bytes as they are in the text and the hash of its lower case.
///
/// A word is a run of at least two letters or digits, of [`WORD`] bytes at most. One letter says
/// nothing; `TfidfVectorizer` of scikit-learn leaves them out, too.
pub(crate) fn words<'t>(text: &'t str, seed: u64, mut each: impl FnMut(&'t str, u64)) {
    let bytes = text.as_bytes();
    let (mut from, mut at, mut letters, mut hash) = (0, 0, 0, seed);
    loop {
        let lower = bytes.get(at).map_or(0, |&byte| BYTES[usize::from(byte)]);
        let wide = if lower == 1 { text.get(at..).and_then(|rest| rest.chars().next()) } else { None };
        let letter = lower > 1 || wide.is_some_and(char::is_alphanumeric);
        if letter && at - from < WORD {
            match wide {
                None => hash = fnv(hash, lower),
                Some(c) => {
                    for low in c.to_lowercase() {
                        hash = low.encode_utf8(&mut [0; 4]).bytes().fold(hash, fnv);
                    }
                }
            }
            (at, letters) = (at + wide.map_or(1, char::len_utf8), letters + 1);
            continue;
        }
        if letters > 1 {
            each(text.get(from..at).unwrap_or_default(), mix(hash));
        }
        if at >= bytes.len() {
            return;
        }
        // A word that was cut goes on here; anything else is behind us.
        if !letter {
            at += wide.map_or(1, char::len_utf8);
        }
        (from, letters, hash) = (at, 0, seed);
    }
}

fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(FNV)
}

/// The last steps of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every bit of the hash counts.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        words(text, 0, |word, _| found.push(word));
        found
    }

    #[test]
    fn words_of_known_texts() {
        assert_eq!(list(""), [""; 0]);
        assert_eq!(list("a b !! x1 I it's"), ["x1", "it"]);
        assert_eq!(list("Straße—ÉTÉ, 日本語 snake_case"), ["Straße", "ÉTÉ", "日本語", "snake", "case"]);
        assert_eq!(list(&"x".repeat(WORD + 2)), ["x".repeat(WORD).as_str(), "xx"]);
    }

    #[test]
    fn case_does_not_change_a_hash_and_the_seed_does() {
        let hash = |word: &str, seed| {
            let mut found = Vec::new();
            words(word, seed, |_, hash| found.push(hash));
            found
        };
        assert_eq!(hash("ÉTÉ Word", 1), hash("été wORD", 1));
        assert_ne!(hash("word", 1), hash("word", 2));
        assert_ne!(hash("word", 1), hash("wordy", 1));
    }

    proptest! {
        /// The same words as by the methods of the standard library.
        #[test]
        fn words_equal_the_definition(text in r"([a-z]{1,70}|[ _,.]|\PC|É|ß|1){0,40}") {
            let mut expected = Vec::new();
            for run in text.split(|c: char| !c.is_alphanumeric()) {
                let mut word = String::new();
                for c in run.chars() {
                    if word.len() >= WORD {
                        expected.push(std::mem::take(&mut word));
                    }
                    word.push(c);
                }
                expected.push(word);
            }
            expected.retain(|word| word.chars().count() > 1);
            prop_assert_eq!(list(&text), expected);
        }

        #[test]
        fn counts_pack(id in 0u32..1 << 20, count in 0u32..1 << 16) {
            let packed = Count::new(id, count);
            prop_assert_eq!((packed.id(), packed.count()), (id as usize, count.min(Count::MOST)));
        }
    }

    #[test]
    fn a_counter_starts_anew_for_each_text() {
        let features = Features::Words { seed: 7, bits: 16 };
        let mut counter = features.counter();
        let first = features.count(&mut counter, "to be or not to be").unwrap();
        let counts: Vec<_> = first.iter().map(|count| count.count()).collect();
        assert_eq!(counts, [2, 2, 1, 1]);
        assert_eq!(features.count(&mut counter, "").unwrap(), []);
        assert_eq!(features.count(&mut counter, "to be or not to be").unwrap(), first);
    }
}
