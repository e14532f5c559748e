//! Labels of a corpus, from its tokens: pieces are turned back into text, and each finds its cluster.

use std::fmt::Write as _;
use std::path::Path;

use rayon::prelude::*;
use tritrain_files::Storage;
use tritrain_files::tokens::Split;

use super::{Labels, LeftOut, left_out, most, pieces_of};
use crate::clusters::{Clustering, Clusters, RESEMBLANCE};
use crate::embed::{Scratch, dot};
use crate::{Corpus, Result};

/// Tokens of the documents that are read together.
const CHUNK: u64 = 1 << 21;
/// Documents of a cluster among which neighbours are looked for: all that stand this close together in
/// the corpus.
const NEIGHBOURS: usize = 2048;

/// A document with its labels and, where an order is asked for, its vector.
struct Labelled {
    pieces: Vec<u32>,
    cluster: u32,
    vector: Vec<f32>,
    /// Of its pieces, `[pieces][dim]`, where near-duplicates are looked for.
    piece_vectors: Vec<f32>,
}

/// What to make besides labels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Labelling<'a> {
    /// Identity of the clusters.
    pub id: &'a str,
    /// Also an order of the documents in which neighbours are alike.
    pub ordered: bool,
    /// Leave near-duplicates out of training: the cosine from which on words decide; 0 leaves none out.
    pub duplicates: f32,
}

impl Corpus {
    /// This corpus, which lies in the run directory `dir`, with the clusters that `clusters`, of the
    /// identity `labelling.id`, gives its text; from the file there if it has them. `clusters` is called where
    /// they are made anew.
    ///
    /// # Errors
    /// [`Error::Files`](crate::Error::Files) and those of `clusters`.
    pub fn with_clusters<E: From<crate::Error>>(
        self,
        storage: &dyn Storage,
        dir: &Path,
        labelling: Labelling<'_>,
        clusters: impl for<'t> FnOnce(&'t Corpus) -> Result<Clusters<'t>, E>,
    ) -> Result<Corpus, E> {
        let Labelling { id, ordered, duplicates } = labelling;
        let mut id = format!("{id}{}", if ordered { ", ordered" } else { "" });
        if duplicates > 0.0 {
            let _ = write!(id, ", without duplicates from {duplicates} and {RESEMBLANCE} on");
        }
        if let Some(labels) = Labels::open(storage, dir, &self, Some(id.as_str()))? {
            return Ok(self.labelled(labels));
        }
        let clusters = clusters(&self)?;
        let labels =
            label(&self, &clusters, &id, (ordered, duplicates), |left_out| left_out.save(storage, dir))?;
        labels.save(storage, dir, &self)?;
        Ok(self.labelled(labels))
    }
}

impl Corpus {
    /// This corpus, which lies in the run directory `dir`, with the clusters that were saved there, if any.
    ///
    /// # Errors
    /// [`Error::Files`](crate::Error::Files) for a damaged file.
    pub fn with_saved_clusters(self, storage: &dyn Storage, dir: &Path) -> Result<Corpus> {
        Ok(match Labels::open(storage, dir, &self, None)? {
            Some(labels) => self.labelled(labels),
            None => self,
        })
    }
}

fn label(
    corpus: &Corpus,
    clusters: &Clusters<'_>,
    id: &str,
    (ordered, duplicates): (bool, f32),
    report: impl FnOnce(&LeftOut) -> Result<()>,
) -> Result<Labels> {
    let k = clusters.names().len();
    let train = split(corpus, clusters, Split::Train, (ordered, duplicates > 0.0))?;
    let validation = split(corpus, clusters, Split::Validation, (false, false))?;
    let order = if ordered { order(&train, k) } else { Vec::new() };
    let mut dropped = Vec::new();
    if duplicates > 0.0 {
        let vectors: Vec<f32> = train.iter().flat_map(|document| &document.piece_vectors).copied().collect();
        let labels: Vec<u32> = train.iter().flat_map(|document| &document.pieces).copied().collect();
        let dim = clusters.embedder().dim();
        let clustering = Clustering::new(&vectors, dim, &labels, clusters.centroids())?;
        let (numbers, left_out) = left_out::find(corpus, &clustering, duplicates)?;
        report(&left_out)?;
        dropped = numbers;
    }
    let labels = [train, validation]
        .map(|documents| documents.into_iter().flat_map(|document| document.pieces).collect());
    Labels::new(corpus, k, id, labels, order, dropped)
}

/// Labels of a split, its documents in order.
fn split(
    corpus: &Corpus,
    clusters: &Clusters<'_>,
    split: Split,
    vectors: (bool, bool),
) -> Result<Vec<Labelled>> {
    let mut labelled = Vec::new();
    let mut chunk: Vec<(u64, u64)> = Vec::new();
    let mut tokens = 0;
    let mut flush = |chunk: &mut Vec<(u64, u64)>| -> Result<()> {
        let parts = chunk.par_iter().map_init(
            || clusters.embedder().scratch(),
            |scratch, &(start, tokens)| document(corpus, clusters, (split, start, tokens), vectors, scratch),
        );
        labelled.extend(parts.collect::<Result<Vec<_>>>()?);
        chunk.clear();
        Ok(())
    };
    for document in corpus.tokens().documents(split) {
        let document = document?;
        chunk.push((document.start, document.tokens));
        tokens += document.tokens;
        if tokens > CHUNK {
            flush(&mut chunk)?;
            tokens = 0;
        }
    }
    flush(&mut chunk)?;
    Ok(labelled)
}

fn document(
    corpus: &Corpus,
    clusters: &Clusters<'_>,
    (split, start, tokens): (Split, u64, u64),
    (of_document, of_pieces): (bool, bool),
    scratch: &mut Scratch,
) -> Result<Labelled> {
    let dim = clusters.embedder().dim();
    let (mut pieces, mut counts) = (Vec::new(), vec![0; clusters.names().len()]);
    let (mut one, mut sum, mut piece_vectors) = (vec![0.0; dim], vec![0.0; dim], Vec::new());
    for (start, tokens) in pieces_of(start, tokens) {
        let text = text_of(corpus, split, start, tokens)?;
        clusters.embedder().embed(scratch, &text, &mut one)?;
        let label = clusters.nearest_to(&one);
        pieces.push(label as u32);
        if let Some(count) = counts.get_mut(label) {
            *count += tokens;
        }
        sum.iter_mut().zip(&one).for_each(|(sum, x)| *sum += x * tokens as f32);
        if of_pieces {
            piece_vectors.extend_from_slice(&one);
        }
    }
    let length = dot(&sum, &sum).sqrt();
    if length > 0.0 {
        sum.iter_mut().for_each(|x| *x /= length);
    }
    let vector = if of_document { sum } else { Vec::new() };
    Ok(Labelled { pieces, cluster: most(&counts), vector, piece_vectors })
}

/// The text of some tokens, without the end of text behind a document.
pub(super) fn text_of(corpus: &Corpus, split: Split, start: u64, tokens: u64) -> Result<String> {
    let mut ids = vec![0; tokens as usize];
    corpus.tokens().read(split, start, &mut ids)?;
    let end = ids.len() - usize::from(ids.last() == Some(&corpus.tokenizer().eos()));
    Ok(corpus.tokenizer().decode(ids.get(..end).unwrap_or_default()))
}

/// Documents by cluster, and in each as a chain: behind a document comes the one most like it, by cosine,
/// among those near it in the corpus that are not in the chain yet.
fn order(documents: &[Labelled], k: usize) -> Vec<u32> {
    let mut members = vec![Vec::new(); k];
    for (index, document) in documents.iter().enumerate() {
        if let Some(members) = members.get_mut(document.cluster as usize) {
            members.push(index as u32);
        }
    }
    let groups: Vec<&[u32]> = members.iter().flat_map(|members| members.chunks(NEIGHBOURS)).collect();
    let vector = |index: u32| documents.get(index as usize).map_or(&[][..], |document| &document.vector);
    let chain = |group: &&[u32]| {
        let mut left = group.to_vec();
        let mut chain = Vec::with_capacity(left.len());
        let mut at = 0;
        while at < left.len() {
            let last = left.remove(at);
            chain.push(last);
            let mut best = (f32::NEG_INFINITY, 0);
            for (place, &other) in left.iter().enumerate() {
                let likeness = dot(vector(last), vector(other));
                if likeness > best.0 {
                    best = (likeness, place);
                }
            }
            at = best.1;
        }
        chain
    };
    groups.par_iter().map(chain).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_goes_to_the_most_alike() {
        let at = |cluster, degrees: f32| {
            let (sin, cos) = degrees.to_radians().sin_cos();
            Labelled { pieces: vec![cluster], cluster, vector: vec![cos, sin], piece_vectors: Vec::new() }
        };
        let documents = [at(1, 0.0), at(0, 90.0), at(1, 40.0), at(1, 10.0), at(0, 80.0), at(1, 30.0)];
        assert_eq!(order(&documents, 3), [1, 4, 0, 3, 5, 2]);
        assert_eq!(order(&[], 3), [] as [u32; 0]);
    }
}
