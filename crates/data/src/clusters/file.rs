//! A fitted embedding and its clusters in one file, so that any text finds its cluster.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tritrain_files::tensors::{TensorFile, TensorView, encode};
use tritrain_files::{Storage, write_atomic};

use super::squared_distance;
use crate::embed::{Embedder, Parts, Scratch};
use crate::error::short;
use crate::{Error, Result, Tokenizer};

/// Key of the metadata.
const KEY: &str = "tritrain.clusters";
/// The newest format that is read, and the one that is written.
const FORMAT: u32 = 1;
/// No more bits of a hash than a feature's id has.
const MOST_BITS: u32 = 20;

/// Clusters of text: an embedding, centroids in its space, and their names.
#[derive(Debug)]
pub struct Clusters<'t> {
    embedder: Embedder<'t>,
    /// `[k][dim]`.
    centroids: Vec<f32>,
    names: Vec<String>,
}

/// What the tensors mean.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    format: u32,
    features: Kind,
    dim: usize,
    names: Vec<String>,
}

/// How text becomes features.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// Words, hashed into `2^bits` buckets. The seed is a string: JSON has no 64-bit integers.
    Words { seed: String, bits: u32 },
    /// Tokens of the tokenizer with this hash.
    Tokens { tokenizer: String },
}

impl<'t> Clusters<'t> {
    /// Centroids `[k][dim]` in the space of an embedding, with a name for each.
    ///
    /// # Errors
    /// [`Error::Shape`] when sizes do not fit, without any cluster, or for numbers that are not finite.
    pub fn new(embedder: Embedder<'t>, centroids: Vec<f32>, names: Vec<String>) -> Result<Self> {
        let expected = names.len() * embedder.dim();
        if names.is_empty() || centroids.len() != expected || centroids.iter().any(|x| !x.is_finite()) {
            let expected = format!("{expected} finite numbers, not 0");
            let found = format!("{} numbers", centroids.len());
            return Err(Error::Shape { what: "centroids", expected, found });
        }
        Ok(Clusters { embedder, centroids, names })
    }

    /// Writes the file, whole or not at all: safetensors with `vectors` `[features][dim]`, `mean` `[dim]`
    /// and `centroids` `[k][dim]`.
    ///
    /// # Errors
    /// [`Error::Files`].
    pub fn save(&self, storage: &dyn Storage, path: &Path) -> Result<()> {
        let dim = self.embedder.dim();
        let Parts { hash, vectors, mean } = self.embedder.parts();
        let features = match (hash, self.embedder.tokenizer()) {
            (_, Some(tokenizer)) => Kind::Tokens { tokenizer: tokenizer.hash().to_owned() },
            ((seed, bits), None) => Kind::Words { seed: seed.to_string(), bits },
        };
        let meta = Meta { format: FORMAT, features, dim, names: self.names.clone() };
        let meta = serde_json::to_string(&meta).unwrap_or_default();
        let tensors = [
            TensorView::f32("vectors", &[vectors.len() / dim, dim], vectors),
            TensorView::f32("mean", &[dim], mean),
            TensorView::f32("centroids", &[self.names.len(), dim], &self.centroids),
        ];
        let bytes = encode(path, tensors, &BTreeMap::from([(KEY.to_owned(), meta)]))?;
        Ok(write_atomic(storage, path, &bytes)?)
    }

    /// Reads a file that [`save`](Self::save) wrote. One whose features are tokens needs the tokenizer it
    /// was made with, the others none.
    ///
    /// # Errors
    /// [`Error::Files`]; [`Error::Clusters`] for a file of something else; [`Error::Identity`] when the
    /// tokenizer is another or missing.
    pub fn open(storage: &dyn Storage, path: &Path, tokenizer: Option<&'t Tokenizer>) -> Result<Self> {
        let wrong = |expected: &str, found: &str| {
            let (expected, found) = (expected.to_owned(), short(found));
            Err(Error::Clusters { path: path.to_path_buf(), expected, found })
        };
        let file = TensorFile::parse(path, storage.map(path)?)?;
        let Some(text) = file.metadata().get(KEY) else {
            return wrong(&format!("metadata {KEY}"), "none: this is another kind of file");
        };
        let meta: Meta = match serde_json::from_str(text) {
            Ok(meta) => meta,
            Err(error) => return wrong("metadata of this version", &error.to_string()),
        };
        if meta.format != FORMAT {
            return wrong(&format!("format {FORMAT}"), &meta.format.to_string());
        }
        let (dim, k) = (meta.dim, meta.names.len());
        if dim == 0 || k == 0 {
            return wrong("at least one cluster and dimension", &format!("{k} and {dim}"));
        }
        let (hash, width, tokenizer) = match meta.features {
            Kind::Words { seed, bits } => {
                let Ok(seed) = seed.parse() else { return wrong("a seed of 64 bits", &seed) };
                if bits > MOST_BITS || bits == 0 {
                    return wrong("1 to 20 bits of hash", &bits.to_string());
                }
                ((seed, bits), 1 << bits, None)
            }
            Kind::Tokens { tokenizer: expected } => {
                let Some(tokenizer) = tokenizer.filter(|tokenizer| tokenizer.hash() == expected) else {
                    let found = tokenizer.map_or("none".to_owned(), |other| other.hash().to_owned());
                    let path = path.to_path_buf();
                    return Err(Error::Identity { what: "the tokenizer", path, expected, found });
                };
                ((0, 0), tokenizer.vocab_size() as usize, Some(tokenizer))
            }
        };
        let vectors = file.f32("vectors", &[width, dim])?;
        let (mean, centroids) = (file.f32("mean", &[dim])?, file.f32("centroids", &[k, dim])?);
        if let Some(bad) = vectors.iter().chain(&mean).chain(&centroids).find(|x| !x.is_finite()) {
            return wrong("finite numbers", &bad.to_string());
        }
        Clusters::new(Embedder::from_parts(hash, tokenizer, dim, vectors, mean), centroids, meta.names)
    }

    /// Names of the clusters.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// `[k][dim]`.
    pub(crate) fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// The embedding.
    pub fn embedder(&self) -> &Embedder<'t> {
        &self.embedder
    }

    /// The cluster of a text, embedded as one passage: the nearest centroid, the first of equals.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where features are tokens.
    pub fn nearest(&self, scratch: &mut Scratch, text: &str) -> Result<usize> {
        let mut vector = vec![0.0; self.embedder.dim()];
        self.embedder.embed(scratch, text, &mut vector)?;
        Ok(self.nearest_to(&vector))
    }

    /// The cluster of a vector `[dim]`: the nearest centroid, the first of equals.
    pub fn nearest_to(&self, vector: &[f32]) -> usize {
        let mut best = (f64::INFINITY, 0);
        for (index, distance) in self.distances(vector).enumerate() {
            if distance < best.0 {
                best = (distance, index);
            }
        }
        best.1
    }

    /// Squared distances of a vector `[dim]` to the centroids, in order.
    pub fn distances<'s>(&'s self, vector: &'s [f32]) -> impl Iterator<Item = f64> + 's {
        self.centroids.chunks_exact(self.embedder.dim()).map(|centroid| squared_distance(vector, centroid))
    }
}
