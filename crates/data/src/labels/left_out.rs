//! Near-duplicates that training leaves out: whole documents, of whose pieces others remain.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tritrain_files::tokens::Split;
use tritrain_files::{Storage, write_atomic};

use super::make::text_of;
use super::pieces_of;
use crate::clusters::{Clustering, Pair, RESEMBLANCE, Shingles, candidates, pairs};
use crate::corpus::TOKENS;
use crate::error::short;
use crate::{Corpus, Error, Result};

/// The report, beside the tokens.
const FILE: &str = "duplicates.json";
/// Pairs that it shows.
const EXAMPLES: usize = 10;

/// What training leaves out, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// Cosine of pieces from which on their words were compared.
    pub cosine: f32,
    /// Share of 5-word shingles that near-duplicates have in common.
    pub resemblance: f32,
    /// Training documents left out, and all of them.
    pub documents: (u64, u64),
    /// Their tokens, and all.
    pub tokens: (u64, u64),
    /// Some pairs.
    pub examples: Vec<Example>,
}

/// A document that is left out and the one for which, at a piece of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// Left out.
    pub dropped: String,
    /// Remains.
    pub kept: String,
    /// Of the vectors of the pieces.
    pub cosine: f32,
    /// Share of their shingles in common.
    pub resemblance: f32,
    /// How the dropped piece begins.
    pub opening: String,
}

impl LeftOut {
    /// Writes the report beside the tokens of a run directory.
    pub(super) fn save(&self, storage: &dyn Storage, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        Ok(write_atomic(storage, &dir.join(TOKENS).join(FILE), text.as_bytes())?)
    }

    /// Reads the report of a run directory.
    ///
    /// # Errors
    /// [`Error::Files`]; [`Error::Clusters`] for a file of something else.
    pub fn open(storage: &dyn Storage, dir: &Path) -> Result<LeftOut> {
        let path = dir.join(TOKENS).join(FILE);
        serde_json::from_slice(&storage.read(&path)?).map_err(|error| Error::Clusters {
            path,
            expected: "a report of near-duplicates".into(),
            found: short(&error.to_string()),
        })
    }
}

/// Training documents to leave out, in order, and the report. `clustering` is that of all pieces.
///
/// A document goes when every piece of it is a near-duplicate of one that remains in another document: so
/// nothing is left out for what is left out itself.
pub(super) fn find(
    corpus: &Corpus,
    clustering: &Clustering<'_>,
    threshold: f32,
) -> Result<(Vec<u32>, LeftOut)> {
    // Document, first token and tokens of every piece.
    let (mut pieces, mut documents) = (Vec::new(), Vec::new());
    for (number, document) in corpus.tokens().documents(Split::Train).enumerate() {
        let document = document?;
        pieces.extend(pieces_of(document.start, document.tokens).map(|(start, len)| (number, start, len)));
        documents.push((document.name, document.tokens, 0u64));
    }
    let text = |piece: u32| match pieces.get(piece as usize) {
        Some(&(_, start, len)) => text_of(corpus, Split::Train, start, len),
        None => Ok(String::new()),
    };
    let shingles = |piece: u32| Ok((piece, Shingles::of(&text(piece)?)));
    let near = candidates(clustering, threshold)?;
    let shingles = near.into_par_iter().map(shingles).collect::<Result<BTreeMap<_, _>>>()?;
    let found: Vec<Pair> =
        pairs(clustering, threshold, &shingles)?.into_iter().flat_map(|(_, pairs)| pairs).collect();
    let document_of = |piece: u32| pieces.get(piece as usize).map_or(0, |&(number, ..)| number);
    // Pieces that remain.
    pieces.iter().for_each(|&(number, ..)| documents[number].2 += 1);
    found.iter().for_each(|pair| documents[document_of(pair.dropped)].2 -= 1);
    let dropped = (0u32..).zip(&documents).filter(|(_, (_, _, left))| *left == 0);
    let dropped: Vec<u32> = dropped.map(|(number, _)| number).collect();
    let mut examples = Vec::new();
    let goes = |piece: u32| dropped.binary_search(&(document_of(piece) as u32)).is_ok();
    for pair in found.iter().filter(|pair| goes(pair.dropped)).take(EXAMPLES) {
        let name = |piece: u32| documents.get(document_of(piece)).map(|(name, ..)| name.clone());
        examples.push(Example {
            dropped: name(pair.dropped).unwrap_or_default(),
            kept: name(pair.kept).unwrap_or_default(),
            cosine: pair.cosine,
            resemblance: pair.resemblance,
            opening: short(text(pair.dropped)?.trim()),
        });
    }
    let tokens = dropped.iter().filter_map(|&number| documents.get(number as usize)).map(|d| d.1).sum();
    let report = LeftOut {
        cosine: threshold,
        resemblance: RESEMBLANCE,
        documents: (dropped.len() as u64, documents.len() as u64),
        tokens: (tokens, corpus.len(Split::Train)),
        examples,
    };
    Ok((dropped, report))
}
