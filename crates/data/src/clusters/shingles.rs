//! What a text says word by word: its runs of five words.

use crate::embed::words;

/// Words of a shingle.
const WORDS: usize = 5;

/// The shingles of a text, by 32 bits of their hash, each once and in order. Words are those of the embedding:
/// runs of two letters or digits and more, in lower case. A text of fewer than five words is one shingle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shingles(Vec<u32>);

impl Shingles {
    /// The shingles of `text`; none where it has no word.
    pub fn of(text: &str) -> Shingles {
        let mut hashes = Vec::new();
        words(text, 0, |_, hash| hashes.push(hash));
        let shingle = |words: &[u64]| {
            // Words in order: each is turned into the hash of those before it.
            let mix =
                |hash: u64, word: &u64| (hash.rotate_left(25) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (words.iter().fold(0, mix) >> 32) as u32
        };
        let mut shingles: Vec<u32> = match hashes.len() {
            0 => Vec::new(),
            1..WORDS => vec![shingle(&hashes)],
            _ => hashes.windows(WORDS).map(shingle).collect(),
        };
        shingles.sort_unstable();
        shingles.dedup();
        Shingles(shingles)
    }

    /// Resemblance (Jaccard): shingles in both over shingles in either; 0 of nothing.
    pub fn resemblance(&self, other: &Shingles) -> f32 {
        let (mut a, mut b, mut both) = (0, 0, 0usize);
        while let (Some(x), Some(y)) = (self.0.get(a), other.0.get(b)) {
            both += usize::from(x == y);
            a += usize::from(x <= y);
            b += usize::from(y <= x);
        }
        both as f32 / (self.0.len() + other.0.len() - both).max(1) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn resemblance_by_hand() {
        let of = |a: &str, b: &str| Shingles::of(a).resemblance(&Shingles::of(b));
        // Shingles: abcde bcdef against abcde bcdeg.
        assert_eq!(of("aa bb cc dd ee ff", "AA bb, cc; dd ee gg"), 1.0 / 3.0);
        assert_eq!(of("aa bb cc dd ee", "ee dd cc bb aa"), 0.0);
        assert_eq!((of("aa bb", "aa, bb!"), of("aa bb", "aa bb cc")), (1.0, 0.0));
        assert_eq!((of("", ""), of("", "aa"), of("a b c", "a b c")), (0.0, 0.0, 0.0));
    }

    proptest! {
        /// Compared with sets of the words themselves.
        #[test]
        fn equals_the_sets_of_words(a in "([ab]{2} ){0,40}", b in "([ab]{2} ){0,40}") {
            let set = |text: &str| -> BTreeSet<Vec<String>> {
                let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
                match words.len() {
                    0 => BTreeSet::new(),
                    1..5 => BTreeSet::from([words]),
                    _ => words.windows(5).map(<[String]>::to_vec).collect(),
                }
            };
            let (x, y) = (set(&a), set(&b));
            let expected = x.intersection(&y).count() as f32 / x.union(&y).count().max(1) as f32;
            prop_assert_eq!(Shingles::of(&a).resemblance(&Shingles::of(&b)), expected);
        }
    }
}
