//! Which cluster every token of a corpus belongs to, and which documents are neighbours.

mod left_out;
mod make;

use std::collections::BTreeMap;
use std::path::Path;

use tritrain_files::tensors::{TensorFile, TensorView, encode};
use tritrain_files::tokens::Split;
use tritrain_files::{Storage, write_atomic};

pub use left_out::LeftOut;
pub use make::Labelling;

use crate::corpus::TOKENS;
use crate::{Corpus, Error, Result};

/// The file below `tokens/` of a run directory.
const FILE: &str = "clusters.safetensors";
/// Keys of its metadata.
const CORPUS: &str = "tritrain.corpus";
const CLUSTERS: &str = "tritrain.clusters";

/// The most tokens of a piece: documents are labelled piece by piece, so that a novel is not all one topic.
pub(crate) const PIECE: u64 = 2048;

/// Labels of all pieces of a corpus, and an order of its training documents in which neighbours are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    k: usize,
    /// What the labels were made with.
    clusters: String,
    pieces: [Pieces; 2],
    /// Training documents, by number; empty where nobody asked for an order.
    order: Vec<u32>,
    /// Training documents that are left out, by number, in order.
    dropped: Vec<u32>,
    hash: String,
}

/// The pieces of a split, which join to all of its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pieces {
    /// Where each begins.
    starts: Vec<u64>,
    /// Tokens of the split.
    len: u64,
    labels: Vec<u32>,
}

/// Pieces of a document of `tokens` tokens: of equal length but for one token, each at most [`PIECE`].
pub(crate) fn pieces_of(start: u64, tokens: u64) -> impl Iterator<Item = (u64, u64)> {
    let count = tokens.div_ceil(PIECE).max(1);
    let at = move |piece: u64| start + (u128::from(tokens) * u128::from(piece) / u128::from(count)) as u64;
    (0..count).map(move |piece| (at(piece), at(piece + 1) - at(piece)))
}

impl Pieces {
    fn new(corpus: &Corpus, split: Split, labels: Vec<u32>) -> Result<Pieces> {
        let mut starts = Vec::new();
        for document in corpus.tokens().documents(split) {
            let document = document?;
            starts.extend(pieces_of(document.start, document.tokens).map(|(start, _)| start));
        }
        if starts.len() != labels.len() {
            let (expected, found) = (format!("{} labels", starts.len()), labels.len().to_string());
            return Err(Error::Shape { what: "labels of pieces", expected, found });
        }
        Ok(Pieces { starts, len: corpus.len(split), labels })
    }

    /// Label and tokens of the pieces in a stretch of the split.
    fn within(&self, start: u64, len: u64) -> impl Iterator<Item = (u32, u64)> {
        let end = start.saturating_add(len).min(self.len);
        let first = self.starts.partition_point(|&at| at <= start).saturating_sub(1);
        let ends = self.starts.iter().skip(first + 1).copied().chain([self.len]);
        let pieces = self.starts.iter().skip(first).zip(ends).zip(self.labels.iter().skip(first));
        pieces
            .take_while(move |((from, _), _)| **from < end)
            .map(move |((from, to), label)| (*label, to.min(end).saturating_sub(start.max(*from))))
            .filter(|(_, tokens)| *tokens > 0)
    }
}

fn index(split: Split) -> usize {
    match split {
        Split::Train => 0,
        Split::Validation => 1,
    }
}

impl Labels {
    /// Labels below `k` of the pieces of both splits, in order, made with clusters of some identity, the order
    /// of the training documents or nothing, and those of them that are left out.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit the corpus; [`Error::Files`] for a damaged index.
    pub(crate) fn new(
        corpus: &Corpus,
        k: usize,
        clusters: &str,
        [train, validation]: [Vec<u32>; 2],
        order: Vec<u32>,
        dropped: Vec<u32>,
    ) -> Result<Labels> {
        let wrong = |what, expected: String, found: String| Err(Error::Shape { what, expected, found });
        if let Some(label) = train.iter().chain(&validation).find(|label| **label as usize >= k) {
            return wrong("label of a piece", format!("less than {k}"), label.to_string());
        }
        let documents = corpus.tokens().manifest().train.documents;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !order.is_empty() && !sorted.iter().map(|&at| u64::from(at)).eq(0..documents) {
            let found = format!("{} numbers", order.len());
            return wrong("order of documents", format!("each of {documents} documents once"), found);
        }
        let rising = dropped.is_sorted_by(|a, b| a < b);
        if !rising || dropped.last().is_some_and(|&last| u64::from(last) >= documents) {
            let found = format!("{} numbers", dropped.len());
            return wrong("documents left out", format!("numbers below {documents} that rise"), found);
        }
        let mut hasher = blake3::Hasher::new();
        for part in [corpus.tokens().content_hash().as_bytes(), clusters.as_bytes()] {
            hasher.update(part);
        }
        // Nothing left out is the same as before there was that.
        let left_out = (!dropped.is_empty()).then_some(&dropped);
        for numbers in [&train, &validation, &order].into_iter().chain(left_out) {
            hasher.update(&(numbers.len() as u64).to_le_bytes());
            hasher.update(bytemuck::cast_slice(numbers));
        }
        let pieces =
            [Pieces::new(corpus, Split::Train, train)?, Pieces::new(corpus, Split::Validation, validation)?];
        let hash = hasher.finalize().to_hex().to_string();
        Ok(Labels { k, clusters: clusters.to_owned(), pieces, order, dropped, hash })
    }

    /// Writes the file beside the tokens of a run directory, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Files`].
    pub(crate) fn save(&self, storage: &dyn Storage, dir: &Path, corpus: &Corpus) -> Result<()> {
        let path = dir.join(TOKENS).join(FILE);
        let [train, validation] = &self.pieces;
        let k = [self.k as u32];
        let tensors = [
            TensorView::u32("train", &[train.labels.len()], &train.labels),
            TensorView::u32("validation", &[validation.labels.len()], &validation.labels),
            TensorView::u32("order", &[self.order.len()], &self.order),
            TensorView::u32("dropped", &[self.dropped.len()], &self.dropped),
            TensorView::u32("k", &[1], &k),
        ];
        let metadata = BTreeMap::from([
            (CORPUS.to_owned(), corpus.tokens().content_hash().to_owned()),
            (CLUSTERS.to_owned(), self.clusters.clone()),
        ]);
        Ok(write_atomic(storage, &path, &encode(&path, tensors, &metadata)?)?)
    }

    /// Reads the labels of the corpus in a run directory, if they are there and were made with these
    /// clusters, or with any where none are given.
    ///
    /// # Errors
    /// [`Error::Files`] for a damaged file.
    pub(crate) fn open(
        storage: &dyn Storage,
        dir: &Path,
        corpus: &Corpus,
        clusters: Option<&str>,
    ) -> Result<Option<Labels>> {
        let path = dir.join(TOKENS).join(FILE);
        if !storage.exists(&path)? {
            return Ok(None);
        }
        let file = TensorFile::parse(&path, storage.map(&path)?)?;
        let entry = |key: &str| file.metadata().get(key).map_or("", String::as_str);
        let of_corpus = entry(CORPUS) == corpus.tokens().content_hash();
        if !of_corpus || clusters.is_some_and(|clusters| entry(CLUSTERS) != clusters) {
            return Ok(None);
        }
        let numbers = |name: &str| {
            let len = file.get(name)?.shape.iter().product();
            Ok::<_, Error>(file.u32(name, &[len])?)
        };
        let k = numbers("k")?.first().copied().unwrap_or_default() as usize;
        let labels = [numbers("train")?, numbers("validation")?];
        // Files from before there were documents to leave out have none.
        let dropped =
            if file.names().any(|name| name == "dropped") { numbers("dropped")? } else { Vec::new() };
        Labels::new(corpus, k, entry(CLUSTERS), labels, numbers("order")?, dropped).map(Some)
    }

    /// Number of clusters.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Identity of labels and order, and of the corpus they belong to.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Training documents by number, neighbours alike.
    pub(crate) fn order(&self) -> &[u32] {
        &self.order
    }

    /// Training documents that are left out of training, by number, in order.
    pub fn dropped(&self) -> &[u32] {
        &self.dropped
    }

    /// Adds to `tokens` `[k]` how many of a stretch of a split belong to each cluster.
    pub fn count(&self, split: Split, start: u64, len: u64, tokens: &mut [u64]) {
        let Some(pieces) = self.pieces.get(index(split)) else { return };
        for (label, count) in pieces.within(start, len) {
            if let Some(tokens) = tokens.get_mut(label as usize) {
                *tokens += count;
            }
        }
    }

    /// The cluster of most tokens of a stretch of a split, the first of equals.
    pub fn majority(&self, split: Split, start: u64, len: u64) -> u32 {
        let mut counts = vec![0; self.k];
        self.count(split, start, len, &mut counts);
        most(&counts)
    }

    /// Tokens of each cluster in a split.
    pub fn totals(&self, split: Split) -> Vec<u64> {
        let mut totals = vec![0; self.k];
        self.count(split, 0, u64::MAX, &mut totals);
        totals
    }
}

/// Index of the largest, the first of equals.
pub(crate) fn most(counts: &[u64]) -> u32 {
    let mut best = (0, 0);
    for (label, &count) in counts.iter().enumerate() {
        if count > best.0 {
            best = (count, label);
        }
    }
    best.1 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_and_none_is_long() {
        for tokens in [1, 2, PIECE, PIECE + 1, 3 * PIECE - 1, 1_000_003] {
            let mut at = 17;
            for (start, len) in pieces_of(17, tokens) {
                assert_eq!(start, at);
                assert!((1..=PIECE).contains(&len) && (tokens < PIECE || len >= PIECE / 2), "{tokens} {len}");
                at += len;
            }
            assert_eq!(at, 17 + tokens);
        }
    }

    #[test]
    fn a_stretch_counts_the_tokens_of_its_pieces() {
        let pieces = Pieces { starts: vec![0, 10, 15, 40], len: 50, labels: vec![2, 0, 1, 2] };
        let within = |start, len| pieces.within(start, len).collect::<Vec<_>>();
        assert_eq!(within(0, 50), [(2, 10), (0, 5), (1, 25), (2, 10)]);
        assert_eq!(within(9, 2), [(2, 1), (0, 1)]);
        assert_eq!(within(10, 5), [(0, 5)]);
        assert_eq!(within(39, 100), [(1, 1), (2, 10)]);
        assert_eq!(within(50, 3), []);
        assert_eq!((most(&[0, 3, 3]), most(&[0, 0])), (1, 0));
    }
}
