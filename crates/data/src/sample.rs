//! A bounded sample of a stream of documents.

use std::collections::BinaryHeap;

use crate::source::Document;

/// Documents are sampled in pieces of at most this many bytes, so that a novel is not all or nothing.
const PIECE: usize = 64 << 10;

/// The pieces with the smallest numbers, as many as fit. A piece's number is a hash of its document and
/// its place in it, so every byte of text has the same chance, whatever its domain, and the sample
/// depends on the text alone. Documents held out for validation take part.
pub(crate) struct Sample {
    limit: u64,
    bytes: u64,
    /// Pieces numbered from here on do not fit.
    full_from: u64,
    pieces: BinaryHeap<(u64, Box<str>)>,
}

impl Sample {
    pub(crate) fn new(limit: u64) -> Self {
        Sample { limit, bytes: 0, full_from: u64::MAX, pieces: BinaryHeap::new() }
    }

    pub(crate) fn add(&mut self, document: &Document, number: u64) {
        let mut rest = document.text.as_str();
        let mut index = 0u64;
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(piece_len(rest));
            let number = mix(number.wrapping_add(index));
            if number < self.full_from {
                self.bytes += piece.len() as u64;
                self.pieces.push((number, piece.into()));
            }
            while self.bytes > self.limit
                && let Some((number, piece)) = self.pieces.pop()
            {
                self.bytes -= piece.len() as u64;
                self.full_from = self.full_from.min(number);
            }
            rest = later;
            index += 1;
        }
    }

    /// Bytes of text in the sample.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn pieces(self) -> Vec<Box<str>> {
        self.pieces.into_iter().map(|(_, piece)| piece).collect()
    }
}

/// Up to a line break in the second half of a full piece, else to a character.
fn piece_len(text: &str) -> usize {
    let Some(full) = text.as_bytes().get(..PIECE) else { return text.len() };
    let line = full.iter().rposition(|&byte| byte == b'\n').filter(|&at| at >= PIECE / 2);
    line.map_or_else(|| (0..=PIECE).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(PIECE), |at| at + 1)
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection, so pieces of one document never tie.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_text_and_the_limit_holds() {
        for text in ["a\n".repeat(100_000), "é".repeat(100_001), "x".repeat(PIECE), String::from("short")] {
            let document = Document { domain: "d".into(), name: "n".into(), text, ..Document::default() };
            let (mut rest, mut count) = (document.text.as_str(), 0);
            while !rest.is_empty() {
                let len = piece_len(rest);
                assert!((1..=PIECE).contains(&len));
                rest = rest.split_at(len).1;
                count += 1;
            }
            let mut all = Sample::new(u64::MAX);
            all.add(&document, 7);
            assert_eq!((all.bytes(), all.pieces().len()), (document.text.len() as u64, count));
            let mut some = Sample::new(100_000);
            some.add(&document, 7);
            assert!(some.bytes() <= 100_000);
            assert!(some.bytes() > 0);
        }
    }

    /// What is kept does not depend on the order of the documents, and domains keep their shares.
    #[test]
    fn the_sample_depends_on_the_text_alone() {
        let document = |i: u64| {
            let domain = if i.is_multiple_of(4) { "few" } else { "many" };
            Document {
                domain: domain.into(),
                name: i.to_string(),
                text: format!("{domain} {i} ").repeat(100),
                ..Document::default()
            }
        };
        let take = |order: &mut dyn Iterator<Item = u64>| {
            let mut sample = Sample::new(1 << 20);
            order.map(document).for_each(|d| sample.add(&d, d.number()));
            let mut pieces = sample.pieces();
            pieces.sort();
            pieces
        };
        let (forward, backward) = (take(&mut (0..4000)), take(&mut (0..4000).rev()));
        assert_eq!(forward, backward);
        let few = forward.iter().filter(|piece| piece.starts_with("few")).count() as f64;
        let share = few / forward.len() as f64;
        assert!((0.22..0.28).contains(&share), "{share}");
    }
}
