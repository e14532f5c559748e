//! A number of clusters, by silhouettes.

use tritrain_backend::Backend;
use tritrain_trit::rng::Permutation;

use crate::{Error, Options, Points, Result, Start, fit, points::distinct};

/// Rows that are clustered to compare numbers of clusters, and those whose silhouettes are averaged.
const FITTED: usize = 20_000;
const JUDGED: usize = 2_000;
/// The largest number of clusters that is tried.
const LARGEST: usize = 64;

/// What one number of clusters is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Clusters.
    pub k: usize,
    /// Mean silhouette, -1 to 1: high where clusters are far apart for their size.
    pub silhouette: f64,
    /// Inertia on the rows that were clustered.
    pub inertia: f64,
}

/// A number of clusters and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Suggestion {
    /// The number with the largest mean silhouette, the least of several.
    pub k: usize,
    /// All that were tried, in ascending order.
    pub curve: Vec<Candidate>,
    /// Rows that were clustered, and those that were judged.
    pub rows: (usize, usize),
}

/// Tries 2, 3, 4, 6, 8, 11, 16 and so on to 64 clusters on up to 20,000 of the rows, and takes the number with the
/// largest mean silhouette (Rousseeuw, "Silhouettes", 1987) of 2,000 of these. The silhouette favours few,
/// well-separated clusters: the curve tells how clear the choice is.
///
/// # Errors
/// As [`fit`], and [`Error::NothingToChoose`].
pub fn suggest<B: Backend>(points: &Points<'_, B>, options: &Options) -> Result<Suggestion> {
    let (backend, dim) = (points.backend, points.dim);
    let order = Permutation::new(options.seed, 0, points.rows as u64);
    let rows = points.rows.min(FITTED);
    let sample: Vec<u32> = (0..rows as u64).map(|at| order.at(at) as u32).collect();
    let sampled = points.gather(&sample);
    let mut on_host = vec![0.0; rows * dim];
    backend.download(&sampled, &mut on_host);
    let distinct = distinct(&on_host, dim);
    if distinct < 3 {
        return Err(Error::NothingToChoose { distinct });
    }
    let mut sample = Points::new(backend, sampled, (rows, dim), points.spherical)?;
    let judged = rows.min(JUDGED);
    let mut curve = Vec::new();
    for k in (2..=LARGEST).filter(|k| tried(*k) && *k < distinct) {
        let fitted = fit(&mut sample, Start::Seeded(k), options)?;
        let silhouette = silhouette(&on_host[..judged * dim], dim, &fitted.labels[..judged]);
        // What `sample` is scaled by comes on top of what `points` are.
        let inertia = fitted.inertia / points.scale / points.scale;
        curve.push(Candidate { k, silhouette, inertia });
    }
    let mut best = curve[0];
    for candidate in &curve {
        if candidate.silhouette > best.silhouette {
            best = *candidate;
        }
    }
    Ok(Suggestion { k: best.k, curve, rows: (rows, judged) })
}

/// Powers of √2, rounded: 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64.
fn tried(k: usize) -> bool {
    let nearest = (2.0 * (k as f64).log2()).round();
    (nearest / 2.0).exp2().round() as usize == k
}

/// Mean silhouette of the rows of `x` `[rows][dim]` among each other: of each row `(b - a) / max(a, b)`, with `a`
/// the mean distance to the others of its cluster and `b` the least mean distance to another cluster. A row
/// that is alone in its cluster counts 0.
pub fn silhouette(x: &[f32], dim: usize, labels: &[u32]) -> f64 {
    let clusters = labels.iter().max().map_or(0, |label| *label as usize + 1);
    let mut counts = vec![0.0f64; clusters];
    for label in labels {
        counts[*label as usize] += 1.0;
    }
    let mut total = 0.0;
    let mut sums = vec![0.0f64; clusters];
    for (row, own) in x.chunks_exact(dim).zip(labels) {
        sums.fill(0.0);
        for (other, label) in x.chunks_exact(dim).zip(labels) {
            sums[*label as usize] += distance(row, other);
        }
        let own = *own as usize;
        let others = (0..clusters).filter(|label| *label != own && counts[*label] > 0.0);
        let between = others.map(|label| sums[label] / counts[label]).fold(f64::INFINITY, f64::min);
        if counts[own] > 1.0 && between.is_finite() {
            let within = sums[own] / (counts[own] - 1.0);
            let larger = within.max(between);
            total += if larger > 0.0 { (between - within) / larger } else { 0.0 };
        }
    }
    total / labels.len().max(1) as f64
}

/// Distance, in eight sums side by side.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f32; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..8 {
            sums[l] += (a[l] - b[l]) * (a[l] - b[l]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| (a - b) * (a - b)).sum();
    f64::from(sums.iter().sum::<f32>() + rest).sqrt()
}
