//! K-means: labels, sums and distances of rows (`kernels::kmeans`).

mod nearest;
mod sums;

use cubecl::prelude::*;

pub(crate) use nearest::assign;
pub(crate) use sums::sum_clusters;

use crate::{
    Floats, Gpu,
    blocks::{UNITS, cube_max, cube_sum, desk, magnitude, word_desk},
    launch::{Buffer, arg, cubes, cubes_for, launch, units},
};

/// The label of a row that no centroid was compared with.
const NONE: u32 = u32::MAX;

/// Rows whose columns one unit adds up.
const ROWS: usize = 256;

/// Rows that are being clustered.
#[derive(Debug)]
pub struct Clusters {
    dim: usize,
    /// On the host, which is told of every one that changes.
    labels: Vec<u32>,
    /// The power of two that entries of each column are rounded to multiples of, in sums; known from the first on.
    grid: Option<Vec<i32>>,
}

impl Clusters {
    fn rows(&self) -> usize {
        self.labels.len()
    }

    fn check(&self, x: &Floats, centroids: &Floats) {
        assert_eq!(x.len, self.rows() * self.dim, "x is not rows × dim");
        assert!(centroids.len.is_multiple_of(self.dim), "centroids are not k × dim");
    }
}

/// Squared distance of a row to a row of another buffer.
#[cube]
fn square_distance(x: &[f32], row: usize, y: &[f32], other: usize, dim: usize) -> f32 {
    let mut sum = 0.0f32;
    for at in 0..dim {
        let difference = x[row * dim + at] - y[other * dim + at];
        sum += difference * difference;
    }
    sum
}

/// One unit a row.
#[cube(launch, create_dummy_kernel)]
fn distances_kernel(x: &[f32], centroids: &[f32], labels: &[u32], out: &mut [f32], dim: usize) {
    if ABSOLUTE_POS < out.len() {
        let label = labels[ABSOLUTE_POS] as usize;
        out[ABSOLUTE_POS] = square_distance(x, ABSOLUTE_POS, centroids, label, dim);
    }
}

/// One unit a row.
#[cube(launch, create_dummy_kernel)]
fn approach_kernel(x: &[f32], centroid: &[f32], nearest: &mut [f32], dim: usize) {
    if ABSOLUTE_POS < nearest.len() {
        let distance = square_distance(x, ABSOLUTE_POS, centroid, 0, dim);
        if distance < nearest[ABSOLUTE_POS] {
            nearest[ABSOLUTE_POS] = distance;
        }
    }
}

/// One unit a column and block of rows: sums `[blocks][dim]` of entries.
#[cube(launch, create_dummy_kernel)]
fn column_sums(x: &[f32], sums: &mut [f32], dim: usize) {
    if ABSOLUTE_POS < sums.len() {
        let (block, col) = (ABSOLUTE_POS / dim, ABSOLUTE_POS % dim);
        let first = block * ROWS;
        let last = min(first + ROWS, x.len() / dim);
        let mut sum = 0.0f32;
        for row in first..last {
            sum += x[row * dim + col];
        }
        sums[ABSOLUTE_POS] = sum;
    }
}

/// One cube a row: divides it by its length; `largest` are bits of the largest magnitudes.
#[cube(launch, create_dummy_kernel)]
fn normalise_rows(x: &mut [f32], largest: &mut [u32], dim: usize) {
    let mut desk = desk();
    let mut words = word_desk();
    let row = CUBE_POS;
    if row < largest.len() {
        let unit = UNIT_POS as usize;
        let mut most = 0u32;
        let mut i = unit;
        while i < dim {
            most = max(most, magnitude(x[row * dim + i]));
            i += UNITS;
        }
        let most = cube_max(most, &mut words);
        if unit == 0 {
            largest[row] = most;
        }
        if most > 0u32 {
            // By the largest entry first, so that squares neither overflow nor vanish.
            let by = f32::reinterpret(most);
            let mut sum = 0.0f32;
            let mut i = unit;
            while i < dim {
                let value = x[row * dim + i] / by;
                sum += value * value;
                i += UNITS;
            }
            let length = cube_sum(sum, &mut desk).sqrt();
            let mut i = unit;
            while i < dim {
                x[row * dim + i] = x[row * dim + i] / by / length;
                i += UNITS;
            }
        }
    }
}

/// Words that the host reads.
fn read_words(gpu: &Gpu, handle: &cubecl::server::Handle, len: usize) -> Vec<u32> {
    gpu.read(handle, 4 * len).as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect()
}

fn read_floats(gpu: &Gpu, handle: &cubecl::server::Handle, len: usize) -> Vec<f32> {
    read_words(gpu, handle, len).into_iter().map(f32::from_bits).collect()
}

/// Host words as an argument.
fn put_words(gpu: &Gpu, words: &[u32]) -> Buffer {
    arg(&gpu.put(bytemuck::cast_slice(words)), words.len())
}

pub(crate) fn normalize_rows(gpu: &Gpu, x: &mut Floats, dim: usize) -> bool {
    let rows = x.len / dim;
    if rows == 0 {
        return false;
    }
    let largest = gpu.room(rows);
    launch!(gpu, normalise_rows, cubes(rows), units(), x.arg(), arg(&largest, rows), dim);
    read_words(gpu, &largest, rows).contains(&0)
}

pub(crate) fn clusters(_gpu: &Gpu, x: &Floats, dim: usize) -> Clusters {
    assert!(dim > 0 && x.len.is_multiple_of(dim), "x is not rows × dim");
    Clusters { dim, labels: vec![NONE; x.len / dim], grid: None }
}

pub(crate) fn cluster_distances(
    gpu: &Gpu,
    x: &Floats,
    centroids: &Floats,
    clusters: &Clusters,
    out: &mut Floats,
) {
    clusters.check(x, centroids);
    assert_eq!(out.len, clusters.rows(), "one distance for each row");
    let k = centroids.len / clusters.dim;
    assert!(clusters.labels.iter().all(|label| (*label as usize) < k), "a label for each row");
    if out.len == 0 {
        return;
    }
    let labels = put_words(gpu, &clusters.labels);
    let (count, x, centroids, out) = (cubes_for(out.len), x.arg(), centroids.arg(), out.arg());
    launch!(gpu, distances_kernel, count, units(), x, centroids, labels, out, clusters.dim);
}

pub(crate) fn approach(gpu: &Gpu, x: &Floats, centroid: &Floats, nearest: &mut Floats) {
    let dim = centroid.len;
    assert_eq!(x.len, nearest.len * dim, "x is not rows × dim");
    let (count, x, centroid, nearest) = (cubes_for(nearest.len), x.arg(), centroid.arg(), nearest.arg());
    launch!(gpu, approach_kernel, count, units(), x, centroid, nearest, dim);
}

pub(crate) fn spread(gpu: &Gpu, x: &Floats, clusters: &mut Clusters) -> f64 {
    let (rows, dim) = (clusters.rows(), clusters.dim);
    assert_eq!(x.len, rows * dim, "x is not rows × dim");
    if rows == 0 {
        return 0.0;
    }
    let len = rows.div_ceil(ROWS) * dim;
    let sums = gpu.room(len);
    launch!(gpu, column_sums, cubes_for(len), units(), x.arg(), arg(&sums, len), dim);
    let mut means = vec![0.0f64; dim];
    for sums in read_floats(gpu, &sums, len).chunks_exact(dim) {
        means.iter_mut().zip(sums).for_each(|(mean, sum)| *mean += f64::from(*sum));
    }
    let mean = means.into_iter().map(|sum| ((sum / rows as f64) as f32).to_bits()).collect::<Vec<u32>>();
    let mean = put_words(gpu, &mean);
    let infinite = vec![f32::INFINITY.to_bits(); rows];
    let squares = gpu.put(bytemuck::cast_slice(&infinite));
    launch!(gpu, approach_kernel, cubes_for(rows), units(), x.arg(), mean, arg(&squares, rows), dim);
    read_floats(gpu, &squares, rows).into_iter().map(f64::from).sum()
}

pub(crate) fn labels(_gpu: &Gpu, clusters: &Clusters) -> Vec<u32> {
    clusters.labels.clone()
}

pub(crate) fn relabel(_gpu: &Gpu, clusters: &mut Clusters, row: usize, label: u32) {
    clusters.labels[row] = label;
}

pub(crate) fn reset_clusters(_gpu: &Gpu, clusters: &mut Clusters) {
    clusters.labels.fill(NONE);
}
