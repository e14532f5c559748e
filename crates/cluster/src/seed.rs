//! First centroids: rows that are far apart.

use tritrain_backend::{Backend, Search};
use tritrain_trit::rng::Stream;

use crate::{Points, Result};

/// Rows times clusters from which k-means|| chooses.
const LARGE: usize = 1 << 22;
/// Its rounds, and candidates of a round by cluster (Bahmani et al., section 5).
const ROUNDS: u64 = 5;
const CANDIDATES: f64 = 2.0;

/// Streams of random numbers: one for each purpose.
const SINGLE: u32 = 1;
const PARALLEL: u32 = 2;
const WEIGHTED: u32 = 3;

/// `k` rows as centroids. Their order is that of the choice.
///
/// # Errors
/// There are fewer different rows.
pub(crate) fn choose<B: Backend>(points: &mut Points<'_, B>, k: usize, seed: u64) -> Result<Vec<f32>> {
    let rows = if points.rows.saturating_mul(k) < LARGE {
        spread_out(points, k, &[], 2 + k.ilog2() as usize, seed)?
    } else {
        parallel(points, k, seed)?
    };
    let gathered = points.gather(&rows);
    let mut centroids = vec![0.0; k * points.dim];
    points.backend.download(&gathered, &mut centroids);
    Ok(centroids)
}

/// A number in [0, 1) with 53 bits.
fn fraction(stream: &Stream, index: u64) -> f64 {
    let bits = u64::from(stream.bits(2 * index)) << 32 | u64::from(stream.bits(2 * index + 1));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The first index at which the sum of weights exceeds a share of the whole.
fn drawn(weights: impl Iterator<Item = f64> + Clone, fraction: f64) -> Option<usize> {
    let total: f64 = weights.clone().sum();
    let (mut sum, mut last) = (0.0, None);
    for (at, weight) in weights.enumerate().filter(|(_, weight)| *weight > 0.0) {
        sum += weight;
        last = Some(at);
        if sum > fraction * total {
            break;
        }
    }
    last
}

/// k-means++ from the rows `chosen` on: each next row with a probability that is its squared distance to the
/// nearest chosen one; of `trials` such, the one that leaves the least sum.
fn spread_out<B: Backend>(
    points: &Points<'_, B>,
    k: usize,
    chosen: &[u32],
    trials: usize,
    seed: u64,
) -> Result<Vec<u32>> {
    let (backend, stream) = (points.backend, Stream::new(seed, SINGLE, 0));
    let mut chosen = chosen.to_vec();
    if chosen.is_empty() {
        chosen.push((fraction(&stream, 0) * points.rows as f64) as u32);
    }
    let far = vec![f32::MAX; points.rows];
    let (mut nearest, mut trial) = (points.upload(&far), backend.floats(points.rows));
    let mut on_host = far;
    for row in &chosen {
        backend.approach(&points.x, &points.gather(&[*row]), &mut nearest);
    }
    backend.download(&nearest, &mut on_host);
    while chosen.len() < k {
        let mut best: Option<(f64, u32, Vec<f32>)> = None;
        for number in 0..trials {
            let draw = fraction(&stream, (chosen.len() * trials + number) as u64);
            let Some(row) = drawn(on_host.iter().copied().map(f64::from), draw) else {
                return Err(points.too_few(k));
            };
            backend.copy(&nearest, &mut trial);
            backend.approach(&points.x, &points.gather(&[row as u32]), &mut trial);
            let mut distances = vec![0.0; points.rows];
            backend.download(&trial, &mut distances);
            let sum: f64 = distances.iter().copied().map(f64::from).sum();
            if best.as_ref().is_none_or(|(least, ..)| sum < *least) {
                best = Some((sum, row as u32, distances));
            }
        }
        let Some((_, row, distances)) = best else { return Err(points.too_few(k)) };
        chosen.push(row);
        backend.upload(&distances, &mut nearest);
        on_host = distances;
    }
    Ok(chosen)
}

/// k-means||: rounds that take about 2k rows each, by squared distance to those taken, and k-means++ among
/// the candidates, each as heavy as the rows that it is nearest to.
fn parallel<B: Backend>(points: &mut Points<'_, B>, k: usize, seed: u64) -> Result<Vec<u32>> {
    let backend = points.backend;
    let first = (fraction(&Stream::new(seed, PARALLEL, 0), 0) * points.rows as f64) as u32;
    let (mut candidates, mut fresh) = (vec![first], vec![first]);
    let mut distances = backend.floats(points.rows);
    let (mut nearest, mut on_host) = (vec![f32::INFINITY; points.rows], vec![0.0; points.rows]);
    for round in 1..=ROUNDS {
        let centroids = points.gather(&fresh);
        backend.assign(&points.x, &centroids, Search::Screen, &mut points.state);
        backend.cluster_distances(&points.x, &centroids, &points.state, &mut distances);
        backend.download(&distances, &mut on_host);
        for (nearest, distance) in nearest.iter_mut().zip(&on_host) {
            *nearest = nearest.min(*distance);
        }
        let total: f64 = nearest.iter().copied().map(f64::from).sum();
        let stream = Stream::new(seed, PARALLEL, round);
        let taken = |row: &usize| {
            let chance = CANDIDATES * k as f64 * f64::from(nearest[*row]) / total;
            f64::from(stream.uniform(*row as u64)) < chance
        };
        fresh = (0..points.rows).filter(taken).map(|row| row as u32).collect();
        if fresh.is_empty() {
            break;
        }
        candidates.extend(&fresh);
    }
    let centroids = points.gather(&candidates);
    backend.assign(&points.x, &centroids, Search::Screen, &mut points.state);
    let mut weights = vec![0.0; candidates.len()];
    for label in backend.labels(&points.state) {
        weights[label as usize] += 1.0;
    }
    let chosen = weighted(points, &centroids, &weights, k, seed);
    let chosen: Vec<u32> = chosen.into_iter().map(|at| candidates[at]).collect();
    // Few candidates where few rows differ.
    spread_out(points, k, &chosen, 1, seed)
}

/// k-means++ among weighted candidates, up to `k` or as many as differ.
fn weighted<B: Backend>(
    points: &Points<'_, B>,
    candidates: &B::Floats,
    weights: &[f64],
    k: usize,
    seed: u64,
) -> Vec<usize> {
    let (backend, stream) = (points.backend, Stream::new(seed, WEIGHTED, 0));
    let mut on_host = vec![1.0; weights.len()];
    let mut nearest = points.upload(&vec![f32::MAX; weights.len()]);
    let (mut id, mut row) = (backend.tokens(1), backend.floats(points.dim));
    let mut chosen = Vec::new();
    while chosen.len() < k {
        let draw = fraction(&stream, chosen.len() as u64);
        let by_weight = on_host.iter().zip(weights).map(|(d, w)| f64::from(*d) * w);
        let Some(at) = drawn(by_weight, draw) else { break };
        chosen.push(at);
        backend.upload_tokens(&[at as u32], &mut id);
        backend.embed(&id, candidates, points.dim, &mut row);
        backend.approach(candidates, &row, &mut nearest);
        backend.download(&nearest, &mut on_host);
    }
    chosen
}
