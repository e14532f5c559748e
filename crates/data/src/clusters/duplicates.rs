//! Near-duplicates within clusters, to be dropped.
//!
//! After SemDeDup (Abbas et al., arXiv 2303.09540): two passages can only be near-duplicates when they
//! are near, so looking within clusters is nearly enough, and k times cheaper than looking everywhere.

use rayon::prelude::*;
use serde::Serialize;

use super::Clustering;
use crate::{Error, Result};

/// Passages that are decided together, and kept ones they are compared with at a time.
const BLOCK: usize = 128;
/// Pairs that are reported per cluster.
const PAIRS: usize = 5;

/// What to drop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Duplicates {
    /// The passages to drop, in order.
    pub dropped: Vec<u32>,
    /// By cluster.
    pub clusters: Vec<ClusterDuplicates>,
}

/// What to drop of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClusterDuplicates {
    /// Passages in it.
    pub passages: u64,
    /// Those to drop.
    pub dropped: u64,
    /// The most similar pairs.
    pub pairs: Vec<Pair>,
}

/// A passage to drop and the one for which.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// To drop.
    pub dropped: u32,
    /// Kept; at least as similar as the threshold.
    pub kept: u32,
    /// Their cosine.
    pub cosine: f32,
}

/// Decides which passages to drop so that within each cluster no two of those that remain have a cosine of
/// `threshold` or more, and each that goes has one that remains.
///
/// Passages are taken in order of their distance to the centroid, the farthest first, and equal ones in
/// their own order; each is kept unless it is that similar to one that was kept before. (SemDeDup, too,
/// keeps the farthest; unlike it, a passage is never dropped for one that is dropped itself.) Vectors must
/// have length 1. With those made from words, near-copies begin at 0.998 or so; below, passages that speak of
/// the same come in. Work grows with the square of a cluster, memory with the largest: its vectors once more.
///
/// # Errors
/// [`Error::Shape`] for a threshold that is not above 0 and at most 1.
pub fn duplicates(clustering: &Clustering<'_>, threshold: f32) -> Result<Duplicates> {
    if !(threshold > 0.0 && threshold <= 1.0) {
        let (expected, found) = ("a cosine above 0, at most 1".into(), threshold.to_string());
        return Err(Error::Shape { what: "threshold of near-duplicates", expected, found });
    }
    let (mut dropped, mut clusters) = (Vec::new(), Vec::new());
    for members in clustering.members() {
        let mut pairs = within(clustering, members.clone(), threshold);
        dropped.extend(pairs.iter().map(|pair| pair.dropped));
        let count = pairs.len() as u64;
        pairs.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.dropped.cmp(&b.dropped)));
        pairs.truncate(PAIRS);
        clusters.push(ClusterDuplicates { passages: members.len() as u64, dropped: count, pairs });
    }
    dropped.sort_unstable();
    Ok(Duplicates { dropped, clusters })
}

/// The pairs of one cluster: each passage to drop, with the kept one it is most similar to.
fn within(clustering: &Clustering<'_>, mut members: Vec<u32>, threshold: f32) -> Vec<Pair> {
    members.sort_by_cached_key(|&passage| {
        // Distances are not negative, so their bits have their order.
        (std::cmp::Reverse(clustering.distance(passage as usize).to_bits()), passage)
    });
    let (mut kept, mut kept_vectors): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    let mut pairs = Vec::new();
    for block in members.chunks(BLOCK) {
        let before = |&passage: &u32| best(clustering.vector(passage as usize), &kept_vectors);
        let found: Vec<Option<(usize, f32)>> = block.par_iter().map(before).collect();
        let from = kept.len();
        for (&passage, before) in block.iter().zip(found) {
            let vector = clustering.vector(passage as usize);
            let new = kept_vectors.get(from * clustering.dim..).unwrap_or_default();
            let inside = best(vector, new).map(|(index, cosine)| (from + index, cosine));
            let nearest = match (before, inside) {
                (Some(a), Some(b)) => Some(if b.1 > a.1 { b } else { a }),
                (a, b) => a.or(b),
            };
            match nearest.filter(|(_, cosine)| *cosine >= threshold) {
                Some((index, cosine)) => pairs.push(Pair { dropped: passage, kept: kept[index], cosine }),
                None => {
                    kept.push(passage);
                    kept_vectors.extend_from_slice(vector);
                }
            }
        }
    }
    pairs
}

/// The row of `rows` with the largest product with `vector`, the first of equals.
fn best(vector: &[f32], rows: &[f32]) -> Option<(usize, f32)> {
    let mut best = None;
    for (index, row) in rows.chunks_exact(vector.len().max(1)).enumerate() {
        let cosine = crate::embed::dot(vector, row);
        if best.is_none_or(|(_, most)| cosine > most) {
            best = Some((index, cosine));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tritrain_trit::rng::Stream;

    fn unit(angle: f64) -> [f32; 2] {
        [angle.cos() as f32, angle.sin() as f32]
    }

    #[test]
    fn the_farthest_is_kept() {
        // Cluster 0 around angle 0: passages at 0.0, 0.01 and 0.3; cluster 1: a copy of the first.
        let vectors = [unit(0.0), unit(0.01), unit(0.3), unit(0.0)].concat();
        let labels = [0, 0, 0, 1];
        let centroids = [unit(0.0), unit(2.0)].concat();
        let clustering = Clustering::new(&vectors, 2, &labels, &centroids).unwrap();
        let found = duplicates(&clustering, 0.999).unwrap();
        assert_eq!(found.dropped, [0]);
        assert_eq!((found.clusters[0].passages, found.clusters[0].dropped), (3, 1));
        assert_eq!((found.clusters[0].pairs[0].dropped, found.clusters[0].pairs[0].kept), (0, 1));
        assert_eq!(found.clusters[1], ClusterDuplicates { passages: 1, dropped: 0, pairs: vec![] });
        assert_eq!(duplicates(&clustering, 1.0).unwrap().dropped, [0u32; 0]);
        for bad in [0.0, -1.0, 1.1, f32::NAN] {
            assert!(duplicates(&clustering, bad).is_err());
        }
    }

    /// The definition in plain loops in f64.
    fn twin(clustering: &Clustering<'_>, threshold: f64) -> Vec<u32> {
        let vector = |p: u32| clustering.vector(p as usize);
        let mut dropped = Vec::new();
        for cluster in 0..clustering.k() as u32 {
            let mut members: Vec<u32> = (0..clustering.labels.len() as u32)
                .filter(|&p| clustering.labels[p as usize] == cluster)
                .collect();
            members.sort_by(|&a, &b| {
                clustering.distance(b as usize).total_cmp(&clustering.distance(a as usize)).then(a.cmp(&b))
            });
            let mut kept: Vec<u32> = Vec::new();
            for p in members {
                let near = |&q: &u32| {
                    let dot: f64 =
                        vector(p).iter().zip(vector(q)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    dot >= threshold
                };
                if kept.iter().any(near) { dropped.push(p) } else { kept.push(p) }
            }
        }
        dropped.sort_unstable();
        dropped
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        /// With copies, several blocks, one thread and three.
        #[test]
        fn equals_the_definition(n in 1u32..700, k in 1u32..4, seed: u64) {
            let stream = Stream::new(seed, 0, 0);
            let angle = |i: u32| {
                let i = if stream.bits(u64::from(i)).is_multiple_of(4) { i / 2 } else { i };
                f64::from(stream.bits(u64::from(i) + (1 << 32)) % 6283) / 1000.0
            };
            let vectors: Vec<f32> = (0..n).flat_map(|i| unit(angle(i))).collect();
            let labels: Vec<u32> = (0..n).map(|i| i % k).collect();
            let centroids: Vec<f32> = (0..k).flat_map(|i| unit(f64::from(i))).collect();
            let clustering = Clustering::new(&vectors, 2, &labels, &centroids).unwrap();
            // The threshold lies between 44 and 45 thousandths of a radian: rounding decides nothing.
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| duplicates(&clustering, 0.999).unwrap())
            };
            let found = run(1);
            prop_assert_eq!(&found, &run(3));
            prop_assert_eq!(found.dropped, twin(&clustering, f64::from(0.999f32)));
        }
    }
}
