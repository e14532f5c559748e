//! The clusters of a run's text: those of a file, or found in the text itself.

use std::path::Path;

use tritrain_backend::Backend;
use tritrain_cluster::{Options, Points, Start, fit};
use tritrain_data::{
    Corpus, DataConfig, Labelling, PlanKind, Source,
    clusters::{Clustering, Clusters, describe},
    embed::{Fit, Vectors},
};
use tritrain_files::Storage;

use crate::{Error, Result};

/// The clusters of a run, in its directory.
pub const CLUSTERS: &str = "clusters.safetensors";

/// Clusters that are looked for where the configuration does not say.
const K: usize = 16;

/// Passages that a cluster has on average, at least: small texts have fewer clusters.
const PASSAGES: usize = 4;

/// The corpus in the run directory `dir` with the clusters that the configuration asks for, or as it is.
///
/// Clusters that are found belong to the text and its options, not to the run's seed. The file
/// [`CLUSTERS`] in the run directory finds those of other text. `reading` hears of each pass over the text:
/// its name, bytes behind it and bytes in all.
///
/// # Errors
/// The text or the file of clusters cannot be read, or the disk.
pub fn with_topics<B: Backend>(
    backend: &B,
    storage: &dyn Storage,
    source: &Source,
    config: &DataConfig,
    dir: &Path,
    corpus: Corpus,
    mut reading: impl FnMut(&'static str, u64, u64),
) -> Result<Corpus> {
    let ordered = config.plan == PlanKind::Ordered;
    if !config.clusters.is_empty() {
        let path = Path::new(&config.clusters);
        let bytes = storage.read(path)?;
        let id = blake3::hash(&bytes).to_hex();
        tritrain_files::write_atomic(storage, &dir.join(CLUSTERS), &bytes)?;
        let labelling = Labelling { id: &id, ordered, duplicates: config.duplicates };
        return corpus.with_clusters(storage, dir, labelling, |corpus| {
            Clusters::open(storage, path, Some(corpus.tokenizer())).map_err(Error::Data)
        });
    }
    let k = match config.clusters_k as usize {
        0 if config.plan == PlanKind::Shuffle && config.duplicates == 0.0 => return Ok(corpus),
        0 => K,
        k => k,
    };
    let id = format!("{k} by words");
    let labelling = Labelling { id: &id, ordered, duplicates: config.duplicates };
    corpus.with_clusters(storage, dir, labelling, |_| {
        let clusters = find(backend, source, k, &mut reading)?;
        clusters.save(storage, &dir.join(CLUSTERS))?;
        Ok(clusters)
    })
}

/// Finds at most `k` clusters of the passages of a text by their words.
fn find<B: Backend>(
    backend: &B,
    source: &Source,
    k: usize,
    reading: &mut impl FnMut(&'static str, u64, u64),
) -> Result<Clusters<'static>> {
    const SEED: u64 = 0;
    let mut counting = Fit::words(source.open()?, SEED)?;
    while counting.advance()? {
        reading("counting words", counting.documents().bytes_read(), counting.documents().bytes_total());
    }
    let fitted = counting.finish()?;
    let dim = fitted.embedder.dim();
    let (mut vectors, mut pass) = (Vec::new(), Vectors::new(&fitted, source.open()?)?);
    let mut out = |values: &[f32]| {
        vectors.extend_from_slice(values);
        Ok(())
    };
    while pass.advance(&mut out)? {
        reading("embedding", pass.documents().bytes_read(), pass.documents().bytes_total());
    }
    let (passages, domains) = pass.finish()?;
    let clustered = |error| Error::Clusters { found: source.describe(), source: error };
    let mut x = backend.floats(vectors.len());
    backend.upload(&vectors, &mut x);
    let mut points = Points::new(backend, x, (passages.len(), dim), false).map_err(clustered)?;
    let options = Options { seed: SEED, ..Options::default() };
    let most = (passages.len() / PASSAGES).clamp(1, k);
    // Copies of passages may leave fewer than asked for.
    let found = match fit(&mut points, Start::Seeded(most), &options) {
        Err(tritrain_cluster::Error::TooFewDistinct { distinct, .. }) => {
            fit(&mut points, Start::Seeded(distinct), &options)
        }
        found => found,
    };
    let found = found.map_err(clustered)?;
    let clustering = Clustering::new(&vectors, dim, &found.labels, &found.centroids)?;
    let description = describe(&clustering, source.open()?, &passages, &domains, SEED, |_| Ok(()))?;
    let names = description.clusters.into_iter().map(|cluster| cluster.name).collect();
    Ok(Clusters::new(fitted.embedder, found.centroids, names)?)
}
