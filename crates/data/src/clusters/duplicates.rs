//! Near-duplicates within clusters, to be dropped.
//!
//! After SemDeDup (Abbas et al., arXiv 2303.09540): two passages can only be near-duplicates when they
//! are near, so looking within clusters is nearly enough, and k times cheaper than looking everywhere. But what
//! is near may merely speak of the same: words decide, by shingles (Broder, On the resemblance and containment
//! of documents, 1997).

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::{Clustering, Shingles};
use crate::{Error, Result};

/// Passages that are decided together, and kept ones they are compared with at a time.
const BLOCK: usize = 128;
/// Pairs that are reported per cluster.
const PAIRS: usize = 5;
/// Share of their shingles that near-duplicates have in common, at least.
pub const RESEMBLANCE: f32 = 0.8;

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
    /// Share of their shingles that both have.
    pub resemblance: f32,
}

/// Passages that may be near-duplicates: those with a cosine of `threshold` or more to another one of their
/// cluster. The words of these decide.
///
/// # Errors
/// [`Error::Shape`] for a threshold that is not above 0 and at most 1.
pub fn candidates(clustering: &Clustering<'_>, threshold: f32) -> Result<Vec<u32>> {
    check(threshold)?;
    let mut found = Vec::new();
    for members in clustering.members() {
        let vectors: Vec<f32> =
            members.iter().flat_map(|&passage| clustering.vector(passage as usize)).copied().collect();
        let near = |&at: &usize| {
            let rows = vectors.chunks_exact(clustering.dim).enumerate();
            let vector = clustering.vector(members[at] as usize);
            rows.filter(|(other, _)| *other != at).any(|(_, row)| crate::embed::dot(vector, row) >= threshold)
        };
        let near: Vec<usize> = (0..members.len()).into_par_iter().filter(near).collect();
        found.extend(near.into_iter().map(|at| members[at]));
    }
    found.sort_unstable();
    Ok(found)
}

fn check(threshold: f32) -> Result<()> {
    if threshold > 0.0 && threshold <= 1.0 {
        return Ok(());
    }
    let (expected, found) = ("a cosine above 0, at most 1".into(), threshold.to_string());
    Err(Error::Shape { what: "threshold of near-duplicates", expected, found })
}

/// Decides which passages to drop so that within each cluster no two of those that remain are near-duplicates,
/// and each that goes has one that remains. Two passages are near-duplicates with a cosine of `threshold` or
/// more and [`RESEMBLANCE`] of their `shingles` in common; those without shingles have none.
///
/// Passages are taken in order of their distance to the centroid, the farthest first, and equal ones in
/// their own order; each is kept unless it is a near-duplicate of one that was kept before. (SemDeDup, too,
/// keeps the farthest; unlike it, a passage is never dropped for one that is dropped itself.) Vectors must
/// have length 1. Work grows with the square of a cluster, memory with the largest: its vectors once more.
///
/// # Errors
/// [`Error::Shape`] for a threshold that is not above 0 and at most 1.
pub fn duplicates(
    clustering: &Clustering<'_>,
    threshold: f32,
    shingles: &BTreeMap<u32, Shingles>,
) -> Result<Duplicates> {
    let (mut dropped, mut clusters) = (Vec::new(), Vec::new());
    for (passages, mut pairs) in pairs(clustering, threshold, shingles)? {
        dropped.extend(pairs.iter().map(|pair| pair.dropped));
        let count = pairs.len() as u64;
        pairs.truncate(PAIRS);
        clusters.push(ClusterDuplicates { passages, dropped: count, pairs });
    }
    dropped.sort_unstable();
    Ok(Duplicates { dropped, clusters })
}

/// Passages of each cluster, and a pair for each of them to drop as [`duplicates`] says, the most similar first.
///
/// # Errors
/// As [`duplicates`].
pub(crate) fn pairs(
    clustering: &Clustering<'_>,
    threshold: f32,
    shingles: &BTreeMap<u32, Shingles>,
) -> Result<Vec<(u64, Vec<Pair>)>> {
    check(threshold)?;
    let of = |members: Vec<u32>| {
        let passages = members.len() as u64;
        let mut pairs = within(clustering, members, threshold, shingles);
        pairs.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.dropped.cmp(&b.dropped)));
        (passages, pairs)
    };
    Ok(clustering.members().into_iter().map(of).collect())
}

/// The pairs of one cluster: each passage to drop, with the kept near-duplicate that it has the largest cosine to.
fn within(
    clustering: &Clustering<'_>,
    mut members: Vec<u32>,
    threshold: f32,
    shingles: &BTreeMap<u32, Shingles>,
) -> Vec<Pair> {
    members.sort_by_cached_key(|&passage| {
        // Distances are not negative, so their bits have their order.
        (std::cmp::Reverse(clustering.distance(passage as usize).to_bits()), passage)
    });
    let (mut kept, mut kept_vectors): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    let mut pairs = Vec::new();
    let nearest = |dropped: u32, kept: &[u32], vectors: &[f32]| -> Option<Pair> {
        let own = shingles.get(&dropped)?;
        let vector = clustering.vector(dropped as usize);
        let cosines = vectors.chunks_exact(clustering.dim).map(|row| crate::embed::dot(vector, row));
        let near = kept.iter().zip(cosines).filter(|(_, cosine)| *cosine >= threshold);
        let mut near: Vec<(u32, f32)> = near.map(|(&kept, cosine)| (kept, cosine)).collect();
        // Stable: the one kept first of equals.
        near.sort_by(|a, b| b.1.total_cmp(&a.1));
        near.into_iter().find_map(|(kept, cosine)| {
            let resemblance = own.resemblance(shingles.get(&kept)?);
            (resemblance >= RESEMBLANCE).then_some(Pair { dropped, kept, cosine, resemblance })
        })
    };
    for block in members.chunks(BLOCK) {
        let before = |&passage: &u32| nearest(passage, &kept, &kept_vectors);
        let found: Vec<Option<Pair>> = block.par_iter().map(before).collect();
        let from = kept.len();
        for (&passage, before) in block.iter().zip(found) {
            let new = kept_vectors.get(from * clustering.dim..).unwrap_or_default();
            let inside = nearest(passage, kept.get(from..).unwrap_or_default(), new);
            let pair = match (before, inside) {
                (Some(a), Some(b)) => Some(if b.cosine > a.cosine { b } else { a }),
                (a, b) => a.or(b),
            };
            match pair {
                Some(pair) => pairs.push(pair),
                None => {
                    kept.push(passage);
                    kept_vectors.extend_from_slice(clustering.vector(passage as usize));
                }
            }
        }
    }
    pairs
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
        // All have the same words, whatever their vectors.
        let same = |passages: std::ops::Range<u32>| -> BTreeMap<u32, Shingles> {
            passages.map(|passage| (passage, Shingles::of("the same few words here"))).collect()
        };
        let shingles = same(0..4);
        assert_eq!(candidates(&clustering, 0.999).unwrap(), [0, 1]);
        let found = duplicates(&clustering, 0.999, &shingles).unwrap();
        assert_eq!(found.dropped, [0]);
        assert_eq!((found.clusters[0].passages, found.clusters[0].dropped), (3, 1));
        assert_eq!((found.clusters[0].pairs[0].dropped, found.clusters[0].pairs[0].kept), (0, 1));
        assert_eq!(found.clusters[1], ClusterDuplicates { passages: 1, dropped: 0, pairs: vec![] });
        assert_eq!(duplicates(&clustering, 1.0, &shingles).unwrap().dropped, [0u32; 0]);
        for bad in [0.0, -1.0, 1.1, f32::NAN] {
            assert!(
                duplicates(&clustering, bad, &shingles).is_err() && candidates(&clustering, bad).is_err()
            );
        }
        // Without the same words, and without any, they stay.
        let mut other = shingles;
        other.insert(0, Shingles::of("other words than these before"));
        assert_eq!(duplicates(&clustering, 0.999, &other).unwrap().dropped, [0u32; 0]);
        assert_eq!(duplicates(&clustering, 0.999, &same(1..4)).unwrap().dropped, [0u32; 0]);
    }

    /// The definition in plain loops in f64, on the words themselves.
    fn twin(clustering: &Clustering<'_>, threshold: f64, texts: &[String]) -> Vec<u32> {
        let shingles = |p: u32| -> std::collections::BTreeSet<Vec<&str>> {
            let words: Vec<&str> = texts[p as usize].split(' ').collect();
            words.windows(5).map(<[&str]>::to_vec).collect()
        };
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
                    let (a, b) = (shingles(p), shingles(q));
                    let both = a.intersection(&b).count() as f64;
                    dot >= threshold && both / a.union(&b).count() as f64 >= 0.8
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
            // Words of two kinds, and some with a word exchanged at the end or in the middle.
            let text = |i: u32| {
                let bits = stream.bits(u64::from(i) + (1 << 33));
                let mut words: Vec<String> = (0..30).map(|at| format!("w{}x{at}", bits & 1)).collect();
                match bits >> 8 & 3 {
                    0 => words[29] = "other".into(),
                    1 => words[15] = "other".into(),
                    _ => {}
                }
                words.join(" ")
            };
            let texts: Vec<String> = (0..n).map(text).collect();
            let shingles: BTreeMap<u32, Shingles> =
                candidates(&clustering, 0.999).unwrap().into_iter()
                    .map(|p| (p, Shingles::of(&texts[p as usize]))).collect();
            // The threshold lies between 44 and 45 thousandths of a radian: rounding decides nothing.
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| duplicates(&clustering, 0.999, &shingles).unwrap())
            };
            let found = run(1);
            prop_assert_eq!(&found, &run(3));
            prop_assert_eq!(found.dropped, twin(&clustering, f64::from(0.999f32), &texts));
        }
    }
}
