//! The nearest centroid of every row.
//!
//! A label is that of the least distance as the processor defines it, rounded in a given order with fused
//! multiply-adds, which devices need not have. So the device says which rows it is sure of: those whose nearest
//! centroid is nearer than any other by more than all roundings together. The host compares the others by the
//! definition: few, unless centroids coincide.

use cubecl::prelude::*;
use tritrain_backend::{Assigned, Backend, Memory, Search};

use super::{Clusters, put_words, read_words};
use crate::{
    Floats, Gpu,
    blocks::{UNITS, magnitude},
    launch::{arg, cubes, cubes_for, launch, units},
};

/// Rows of a cube, and centroids that it looks at together: 16 × 16 units of 2 × 2.
const TILE: usize = 32;
/// Columns that a cube reads at once.
const DEPTH: usize = 16;
/// Rows, or centroids, of a unit.
const OWN: usize = 2;
/// Units along a side of a cube.
const SIDE: usize = 16;
/// Numbers between rows of a tile in shared memory.
const PITCH: usize = DEPTH + 1;
/// Set in the label of a row that the device is not sure of.
const UNSURE: u32 = 1 << 31;

/// Reads a tile of rows of a matrix, with zeros around it.
#[cube]
fn read_tile(from: &[f32], to: &mut Shared<[f32]>, first: usize, rows: usize, col: usize, dim: usize) {
    #[unroll]
    for part in 0..TILE * DEPTH / UNITS {
        let place = UNIT_POS as usize + part * UNITS;
        let (line, at) = (place / DEPTH, place % DEPTH);
        let mut value = 0.0f32;
        if first + line < rows && col + at < dim {
            value = from[(first + line) * dim + col + at];
        }
        to[line * PITCH + at] = value;
    }
}

/// One cube [`TILE`] rows. `slack` and `tiny` bound what roundings can do to two distances, relative and absolute.
#[cube(launch, create_dummy_kernel)]
fn nearest_kernel(x: &[f32], centroids: &[f32], labels: &mut [u32], dim: usize, slack: f32, tiny: f32) {
    let mut l = Shared::<[f32]>::new_slice(comptime![TILE * PITCH]);
    let mut r = Shared::<[f32]>::new_slice(comptime![TILE * PITCH]);
    let mut firsts = Shared::<[f32]>::new_slice(comptime![TILE * SIDE]);
    let mut seconds = Shared::<[f32]>::new_slice(comptime![TILE * SIDE]);
    let mut found = Shared::<[u32]>::new_slice(comptime![TILE * SIDE]);
    let unit = UNIT_POS as usize;
    let (across, down) = (unit % SIDE, unit / SIDE);
    let (rows, k) = (labels.len(), centroids.len() / dim);
    let first_row = CUBE_POS * TILE;
    let infinity = f32::reinterpret(0x7f80_0000u32.runtime());
    let mut first = Array::<f32>::new(OWN);
    let mut second = Array::<f32>::new(OWN);
    let mut label = Array::<u32>::new(OWN);
    #[unroll]
    for i in 0..OWN {
        first[i] = infinity;
        second[i] = infinity;
        label[i] = 0u32;
    }
    let mut sums = Array::<f32>::new(comptime![OWN * OWN]);
    let mut parts = Array::<f32>::new(comptime![OWN * OWN]);
    for tile in 0..k.div_ceil(TILE) {
        #[unroll]
        for at in 0..OWN * OWN {
            sums[at] = 0.0f32;
        }
        for step in 0..dim.div_ceil(DEPTH) {
            read_tile(x, &mut l, first_row, rows, step * DEPTH, dim);
            read_tile(centroids, &mut r, tile * TILE, k, step * DEPTH, dim);
            sync_cube();
            #[unroll]
            for at in 0..OWN * OWN {
                parts[at] = 0.0f32;
            }
            for at in 0..DEPTH {
                #[unroll]
                for i in 0..OWN {
                    let left = l[(down + SIDE * i) * PITCH + at];
                    #[unroll]
                    for j in 0..OWN {
                        let difference = left - r[(across + SIDE * j) * PITCH + at];
                        parts[comptime![i * OWN + j]] += difference * difference;
                    }
                }
            }
            #[unroll]
            for at in 0..OWN * OWN {
                sums[at] += parts[at];
            }
            sync_cube();
        }
        #[unroll]
        for i in 0..OWN {
            #[unroll]
            for j in 0..OWN {
                let centroid = tile * TILE + across + SIDE * j;
                let distance = sums[comptime![i * OWN + j]];
                if centroid < k {
                    if distance < first[i] {
                        second[i] = first[i];
                        first[i] = distance;
                        label[i] = centroid as u32;
                    } else if distance < second[i] {
                        second[i] = distance;
                    }
                }
            }
        }
    }
    #[unroll]
    for i in 0..OWN {
        let place = (down + SIDE * i) * SIDE + across;
        firsts[place] = first[i];
        seconds[place] = second[i];
        found[place] = label[i];
    }
    sync_cube();
    if unit < TILE && first_row + unit < rows {
        let mut best = infinity;
        let mut next = infinity;
        let mut nearest = 0u32;
        for at in 0..SIDE {
            let place = unit * SIDE + at;
            let distance = firsts[place];
            if distance < best {
                next = best;
                best = distance;
                nearest = found[place];
            } else if distance < next {
                next = distance;
            }
            if seconds[place] < next {
                next = seconds[place];
            }
        }
        // What is as near, or no number, is left open.
        let bound = best + best * slack + tiny;
        if magnitude(bound) >= 0x7f80_0000u32 || next <= bound {
            nearest |= UNSURE;
        }
        labels[first_row + unit] = nearest;
    }
}

/// One unit a number of the rows that are listed.
#[cube(launch, create_dummy_kernel)]
fn gather_kernel(x: &[f32], list: &[u32], to: &mut [f32], dim: usize) {
    if ABSOLUTE_POS < to.len() {
        to[ABSOLUTE_POS] = x[list[ABSOLUTE_POS / dim] as usize * dim + ABSOLUTE_POS % dim];
    }
}

/// The definition, on the host, of some rows.
fn by_definition(gpu: &Gpu, x: &Floats, list: &[u32], centroids: &Floats, dim: usize) -> Vec<u32> {
    let gathered = gpu.floats(list.len() * dim);
    let (count, rows) = (cubes_for(gathered.len), put_words(gpu, list));
    launch!(gpu, gather_kernel, count, units(), x.arg(), rows, gathered.arg(), dim);
    let host = &gpu.host;
    let on_host = |of: &Floats| {
        let mut floats = host.floats(of.len);
        gpu.download(of, &mut floats);
        floats
    };
    let (rows, centroids) = (on_host(&gathered), on_host(centroids));
    let mut clusters = host.clusters(&rows, dim);
    host.assign(&rows, &centroids, Search::Plain, &mut clusters);
    host.labels(&clusters)
}

/// Waits. Every search gives the same labels; there is one.
pub(crate) fn assign(
    gpu: &Gpu,
    x: &Floats,
    centroids: &Floats,
    _search: Search,
    clusters: &mut Clusters,
) -> Assigned {
    clusters.check(x, centroids);
    let (rows, dim) = (clusters.rows(), clusters.dim);
    let k = centroids.len / dim;
    assert!(k > 0 && k < UNSURE as usize, "number of centroids");
    if rows == 0 {
        return Assigned::default();
    }
    // Roundings of a distance here: two of a difference, one of a square, 16 within a part, then one for each part. By
    // the definition as many in 16 + dim / 32. Twice all of them, for two distances, with as much to spare.
    let slack = (dim / 16 + 40) as f32 * 2.0 * f32::EPSILON;
    // What vanishes below the normal numbers.
    let tiny = dim as f32 * 8.0 * f32::MIN_POSITIVE;
    let found = gpu.room(rows);
    let to = arg(&found, rows);
    let tiles = rows.div_ceil(TILE);
    launch!(gpu, nearest_kernel, cubes(tiles), units(), x.arg(), centroids.arg(), to, dim, slack, tiny);
    let mut found = read_words(gpu, &found, rows);
    let open: Vec<u32> = (0..rows as u32).filter(|row| found[*row as usize] & UNSURE != 0).collect();
    if !open.is_empty() {
        let labels = by_definition(gpu, x, &open, centroids, dim);
        for (row, label) in open.iter().zip(labels) {
            found[*row as usize] = label;
        }
    }
    let moved = found.iter().zip(&clusters.labels).filter(|(new, old)| new != old).count();
    clusters.labels = found;
    Assigned { moved, skipped: 0, narrowed: 0, compared: rows * k }
}
