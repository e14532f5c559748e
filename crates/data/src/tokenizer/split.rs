//! The words of GPT-2's byte-level BPE, without a regular expression engine.
//!
//! `tokenizers` cuts text with
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
//! (Radford et al. 2019, `encoder.py`) on a backtracking engine, at about one MB/s. This is the same
//! expression by hand; the tests compare the two. One difference: a word of more than [`LONGEST`] bytes
//! (a genome on one line, a megabyte of spaces) is cut there, because the memory and time of its merges
//! would have no bound.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// The longest word in bytes, give or take a character.
pub(crate) const LONGEST: usize = 16 << 10;

/// What a character is to the expression.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Letter,
    Number,
    Space,
    Other,
}

/// The words of a text: every byte belongs to exactly one.
pub(crate) struct Words<'t> {
    text: &'t str,
    at: usize,
    /// Each digit stands alone and cuts the text, as `Digits { individual_digits: true }` in front of
    /// the expression does.
    digits: bool,
    /// End of the part that the expression sees at once.
    part: usize,
}

impl<'t> Words<'t> {
    pub(crate) fn new(text: &'t str, digits: bool) -> Self {
        Words { text, at: 0, digits, part: if digits { 0 } else { text.len() } }
    }

    fn peek(&self, at: usize) -> Option<(Sort, usize)> {
        let byte = *self.text.as_bytes().get(at).filter(|_| at < self.part)?;
        if byte < 0x80 {
            return Some((ascii(byte), 1));
        }
        let c = self.text.get(at..)?.chars().next()?;
        Some((sort(c), c.len_utf8()))
    }

    /// End of the run of characters of one sort that begins at `from`.
    fn run(&self, from: usize, of: Sort) -> usize {
        let mut at = from;
        while let Some((sort, len)) = self.peek(at)
            && sort == of
            && at - from < LONGEST
        {
            at += len;
        }
        at
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d`
    fn contraction(&self, at: usize) -> Option<usize> {
        let rest = self.text.as_bytes().get(at..self.part)?;
        let len = match rest {
            [b'\'', b's' | b't' | b'm' | b'd', ..] => 2,
            [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => 3,
            _ => return None,
        };
        Some(at + len)
    }

    /// `\s+(?!\S)|\s+`: a run of white space leaves its last character to the word behind it, unless
    /// that is all there is.
    fn spaces(&self, from: usize) -> usize {
        let (mut at, mut last) = (from, from);
        while let Some((Sort::Space, len)) = self.peek(at) {
            last = at;
            at += len;
            if at - from >= LONGEST {
                return at;
            }
        }
        if at == self.part || last == from { at } else { last }
    }

    fn word_end(&self, from: usize) -> usize {
        if let Some(end) = self.contraction(from) {
            return end;
        }
        match self.peek(from) {
            None => self.part,
            Some((Sort::Space, len)) => match self.peek(from + len) {
                Some((sort, _)) if sort != Sort::Space && self.text.as_bytes().get(from) == Some(&b' ') => {
                    self.run(from + len, sort)
                }
                _ => self.spaces(from),
            },
            Some((sort, len)) => self.run(from + len, sort),
        }
    }
}

impl<'t> Iterator for Words<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        let from = self.at;
        if from >= self.text.len() {
            return None;
        }
        if self.digits && from == self.part {
            let mut chars = self.text.get(from..)?.char_indices();
            let (_, first) = chars.next()?;
            if first.is_numeric() {
                self.at += first.len_utf8();
                self.part = self.at;
                return self.text.get(from..self.at);
            }
            let end = chars.find(|(_, c)| c.is_numeric()).map(|(offset, _)| from + offset);
            self.part = end.unwrap_or(self.text.len());
        }
        self.at = self.word_end(from);
        self.text.get(from..self.at)
    }
}

fn ascii(byte: u8) -> Sort {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' => Sort::Letter,
        b'0'..=b'9' => Sort::Number,
        b' ' | 0x09..=0x0d => Sort::Space,
        _ => Sort::Other,
    }
}

/// `\p{L}` and `\p{N}` as bit sets over all code points.
static LETTERS: LazyLock<Vec<u64>> = LazyLock::new(|| bits(r"\p{L}"));
static NUMBERS: LazyLock<Vec<u64>> = LazyLock::new(|| bits(r"\p{N}"));

fn sort(c: char) -> Sort {
    let holds = |set: &[u64]| set.get(c as usize / 64).is_some_and(|word| word >> (c as u32 % 64) & 1 == 1);
    if holds(&LETTERS) {
        Sort::Letter
    } else if c.is_whitespace() {
        Sort::Space
    } else if holds(&NUMBERS) {
        Sort::Number
    } else {
        Sort::Other
    }
}

fn bits(expression: &str) -> Vec<u64> {
    let mut set = vec![0u64; (char::MAX as usize + 1).div_ceil(64)];
    let parsed = regex_syntax::parse(expression);
    if let Ok(HirKind::Class(Class::Unicode(class))) = parsed.as_ref().map(|hir| hir.kind()) {
        for range in class.ranges() {
            for point in range.start() as usize..=range.end() as usize {
                if let Some(word) = set.get_mut(point / 64) {
                    *word |= 1 << (point % 64);
                }
            }
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::pre_tokenizers::digits::Digits;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn reference(text: &str, digits: bool) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        if digits {
            Digits::new(true).pre_tokenize(&mut cut).unwrap();
        }
        ByteLevel::new(false, true, true).pre_tokenize(&mut cut).unwrap();
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.iter().map(|(_, (from, to), _)| text[*from..*to].to_owned()).collect()
    }

    fn check_with(text: &str, digits: bool) {
        let words: Vec<_> = Words::new(text, digits).collect();
        assert_eq!(words.concat(), text);
        assert_eq!(words, reference(text, digits), "digits = {digits}, text = {text:?}");
    }

    fn check(text: &str) {
        check_with(text, false);
        check_with(text, true);
    }

    /// Each character between letters, spaces and itself: the Unicode classes are those of `tokenizers`.
    /// Planes 4 to 13 have no characters.
    #[test]
    fn every_character() {
        let points = (0..0x40000u32).chain(0xe0000..=char::MAX as u32);
        for block in points.filter_map(char::from_u32).collect::<Vec<_>>().chunks(4096) {
            let text: String = block.iter().flat_map(|&c| [c, 'a', c, ' ', c, '1', c, '!']).collect();
            check_with(&text, false);
        }
        let numbers: String = (0..0x40000u32).filter_map(char::from_u32).filter(|c| c.is_numeric()).collect();
        check(&numbers);
    }

    #[test]
    fn known_cases() {
        for text in [
            "",
            " ",
            "  ",
            "a",
            " a",
            "  a",
            "\n",
            "\n\n",
            "a\n\nb",
            "a \n b",
            "it's we'll I'd x'sy 'S 'l '",
            "!'s '",
            "1 2  3",
            "a1b",
            "\u{a0}a",
            "\u{a0}\u{a0}a \u{3000}",
            "\r\n\r\nx",
            "x\t\ty",
            "é日本語 ½ Ⅷ ①",
            "🙂 🙂🙂  🙂",
        ] {
            check(text);
        }
    }

    #[test]
    fn long_words_are_cut() {
        for unit in ["a", "é", "1", "!", " ", "\n", "\u{3000}"] {
            let text = unit.repeat((1 << 20) / unit.len());
            let words: Vec<_> = Words::new(&text, false).collect();
            assert_eq!(words.concat(), text);
            assert!(words.len() >= 64 && words.iter().all(|word| word.len() <= LONGEST + 4), "{unit:?}");
        }
    }

    proptest! {
        #[test]
        fn equals_the_expression(text in r"([ \n\t\r]|'|s|ll|re|[a-z]{1,3}|[0-9]{1,2}|[!.,]|\PC|\s){0,40}") {
            check(&text);
        }

        #[test]
        fn equals_the_expression_on_anything(text: String) {
            check(&text);
        }
    }
}
