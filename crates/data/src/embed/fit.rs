//! The first pass: how often features occur, and a sample of passages to learn directions from.

use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::embedder::{Embedder, damped, inverse_frequency};
use super::features::{Count, Counter, Features, mix};
use super::lsa::{SPARE, Sparse, right_singular};
use super::passage::Passages;
use crate::encode::Reader;
use crate::source::{Document, Documents};
use crate::{Error, Result, Tokenizer};

/// Components of a vector made from words.
const DIM: usize = 64;
/// Words are hashed into two to the power of this many buckets. On 127 MB in 15 domains with 300,000
/// different words, 16 bits, pairs of words, or no hashing at all give the same agreement of
/// clusters and domains as 15, within the scatter of seeds; raw counts in place of logarithms much less.
const BITS: u32 = 15;
/// Numbers that the sample takes in memory while directions are learned, about: 30,000 full passages.
const SAMPLE: usize = 1 << 24;

/// A first pass over the text, a chunk at a time: [`advance`](Self::advance) until it returns `false`,
/// then [`finish`](Self::finish).
pub struct Fit<'t> {
    features: Features<'t>,
    /// Vectors of the features `[width][dim]`, when they are given.
    given: Option<(Vec<f32>, usize)>,
    seed: u64,
    reader: Reader,
    next: Vec<Document>,
    counters: Counters,
    /// Passages with each feature.
    with: Vec<u32>,
    sample: Sample,
    passages: u64,
    bytes: u64,
}

/// What a first pass found.
#[derive(Debug)]
pub struct Fitted<'t> {
    /// The embedding.
    pub embedder: Embedder<'t>,
    /// Number of passages.
    pub passages: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Hash of the text.
    pub(super) content: String,
}

impl std::fmt::Debug for Fit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fit").field("passages", &self.passages).finish_non_exhaustive()
    }
}

impl<'t> Fit<'t> {
    /// An embedding by the words of the text itself: hashed TF-IDF on its 64 strongest directions
    /// (latent semantic analysis). The seed chooses the hash and where the search for them starts.
    ///
    /// # Errors
    /// Those of the stream of documents.
    pub fn words(documents: Documents, seed: u64) -> Result<Self> {
        Self::new(documents, Features::Words { seed, bits: BITS }, None, seed)
    }

    /// An embedding by tokens: the mean of `vectors` `[vocab][dim]`, such as a model's token embedding,
    /// weighted as words are, without the mean of all passages.
    ///
    /// # Errors
    /// Those of the stream of documents; [`Error::Shape`] when `vectors` are not those of the tokenizer,
    /// or not finite.
    pub fn tokens(
        documents: Documents,
        tokenizer: &'t Tokenizer,
        vectors: Vec<f32>,
        dim: usize,
    ) -> Result<Self> {
        let expected = tokenizer.vocab_size() as usize * dim;
        if dim == 0 || vectors.len() != expected || vectors.iter().any(|x| !x.is_finite()) {
            let expected = format!("{expected} finite numbers, {dim} for each token, not 0");
            let found = format!("{} numbers", vectors.len());
            return Err(Error::Shape { what: "vectors of tokens", expected, found });
        }
        Self::new(documents, Features::Tokens(tokenizer), Some((vectors, dim)), 0)
    }

    fn new(
        documents: Documents,
        features: Features<'t>,
        given: Option<(Vec<f32>, usize)>,
        seed: u64,
    ) -> Result<Self> {
        let mut reader = Reader::new(documents);
        let next = reader.chunk()?;
        let with = vec![0; features.width()];
        let (counters, sample) = (Counters::default(), Sample::new(SAMPLE));
        Ok(Fit { features, given, seed, reader, next, counters, with, sample, passages: 0, bytes: 0 })
    }

    /// The text that is read.
    pub fn documents(&self) -> &Documents {
        self.reader.documents()
    }

    /// Counts a chunk; whether there are more.
    ///
    /// # Errors
    /// Those of the stream of documents; [`Error::Tokenizer`].
    pub fn advance(&mut self) -> Result<bool> {
        let chunk = std::mem::take(&mut self.next);
        let Fit { features, counters, reader, .. } = self;
        let count = |counter: &mut Counter, text: &str| features.count(counter, text);
        let (rows, next) =
            rayon::join(|| over_passages(features, counters, &chunk, count), || reader.chunk());
        let mut rows = rows?.into_iter();
        for document in &chunk {
            let number = document.number();
            for (index, range) in Passages::new(&document.text).enumerate() {
                let Some(row) = rows.next() else { break };
                for count in &row {
                    self.with[count.id()] += 1;
                }
                self.sample.add(mix(number.wrapping_add(index as u64)), row);
                self.passages += 1;
                self.bytes += range.len() as u64;
            }
        }
        self.next = next?;
        Ok(!self.next.is_empty())
    }

    /// Learns from what was counted.
    ///
    /// # Errors
    /// [`Error::Empty`] without any text.
    pub fn finish(self) -> Result<Fitted<'t>> {
        let Fit { features, given, seed, reader, with, sample, passages, bytes, .. } = self;
        if passages == 0 {
            let hint = "name files or folders of text, for example .txt, .md or .jsonl files";
            return Err(Error::Empty { found: "what was to be embedded".into(), hint });
        }
        for damage in reader.documents().damaged() {
            tracing::warn!("{damage}");
        }
        let idf: Vec<f32> = with.iter().map(|&with| inverse_frequency(passages, with)).collect();
        let rows = sample.rows();
        let is_given = given.is_some();
        let (dim, mut table) = match given {
            Some((vectors, dim)) => (dim, vectors),
            None => (DIM, right_singular(&weighted(&rows, &idf), features.width(), DIM, seed)),
        };
        table.chunks_mut(dim).zip(&idf).for_each(|(row, idf)| row.iter_mut().for_each(|x| *x *= idf));
        let mut embedder = Embedder { features, dim, table, mean: vec![0.0; dim] };
        if is_given {
            embedder.mean = mean(&embedder, &rows);
        }
        Ok(Fitted { embedder, passages, bytes, content: reader.content() })
    }
}

/// Weights of the sample, each row of length 1.
fn weighted(rows: &[Box<[Count]>], idf: &[f32]) -> Sparse {
    let (mut starts, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
    for row in rows {
        let from = values.len();
        for count in row {
            columns.push(count.id() as u32);
            values.push(damped(*count) * idf[count.id()]);
        }
        let square: f64 = values[from..].iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
        values[from..].iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
        starts.push(values.len());
    }
    Sparse { starts, columns, values }
}

/// The mean of the sample's vectors.
fn mean(embedder: &Embedder<'_>, rows: &[Box<[Count]>]) -> Vec<f32> {
    let (mut sum, mut one) = (vec![0.0f64; embedder.dim], vec![0.0; embedder.dim]);
    for row in rows {
        embedder.project(row, &mut one);
        sum.iter_mut().zip(&one).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sum.iter().map(|sum| (sum / rows.len().max(1) as f64) as f32).collect()
}

/// The passages with the smallest numbers, as many as fit. The number of a passage is a hash of its
/// document and its place in it, so that the sample depends on the text alone.
struct Sample {
    limit: usize,
    held: usize,
    /// Passages numbered from here on do not fit.
    full_from: u64,
    /// With a running number, so that copies of a document come in the order in which they were read.
    rows: BinaryHeap<(u64, u64, Row)>,
    added: u64,
}

/// Features of a passage; not a part of the order.
#[derive(Default)]
struct Row(Box<[Count]>);

impl PartialEq for Row {
    fn eq(&self, _: &Row) -> bool {
        true
    }
}

impl Eq for Row {}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Row) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, _: &Row) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Row {
    /// Its share of the memory in which directions are learned.
    fn size(&self) -> usize {
        self.0.len() + DIM + SPARE
    }
}

impl Sample {
    fn new(limit: usize) -> Self {
        Sample { limit, held: 0, full_from: u64::MAX, rows: BinaryHeap::new(), added: 0 }
    }

    fn add(&mut self, number: u64, row: Vec<Count>) {
        if number < self.full_from && !row.is_empty() {
            let row = Row(row.into());
            self.held += row.size();
            self.rows.push((number, self.added, row));
            self.added += 1;
        }
        while self.held > self.limit
            && let Some((number, _, row)) = self.rows.pop()
        {
            self.held -= row.size();
            self.full_from = self.full_from.min(number);
        }
    }

    /// In the order of their numbers.
    fn rows(self) -> Vec<Box<[Count]>> {
        self.rows.into_sorted_vec().into_iter().map(|(_, _, row)| row.0).collect()
    }
}

/// Counters that no thread is using.
#[derive(Default)]
pub(super) struct Counters(Mutex<Vec<Counter>>);

/// What `of` makes of each passage of some documents, in their order, in parallel.
pub(super) fn over_passages<T: Send>(
    features: &Features<'_>,
    counters: &Counters,
    documents: &[Document],
    of: impl Fn(&mut Counter, &str) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let counters = || counters.0.lock().unwrap_or_else(PoisonError::into_inner);
    let passages: Vec<&str> = documents
        .iter()
        .flat_map(|document| {
            Passages::new(&document.text).map(|range| document.text.get(range).unwrap_or_default())
        })
        .collect();
    let parts = passages.par_chunks(16).map(|part| {
        let free = counters().pop();
        let mut counter = free.unwrap_or_else(|| features.counter());
        let made: Result<Vec<T>> = part.iter().map(|text| of(&mut counter, text)).collect();
        counters().push(counter);
        made
    });
    let parts: Vec<Vec<T>> = parts.collect::<Result<_>>()?;
    Ok(parts.into_iter().flatten().collect())
}
