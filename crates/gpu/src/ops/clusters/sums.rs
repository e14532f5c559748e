//! Sums of rows by label, exact: entries are multiples of a power of two of their column, added as 64-bit integers.

use cubecl::prelude::*;

use super::{Clusters, NONE, ROWS, put_words, read_words};
use crate::{
    Floats, Gpu,
    blocks::magnitude,
    launch::{arg, cubes_for, launch, units},
};

/// Rows of one label that one unit adds up.
const SEGMENT: usize = 256;

/// One unit a column and block of rows: bits of the largest magnitude.
#[cube(launch, create_dummy_kernel)]
fn column_largest(x: &[f32], largest: &mut [u32], dim: usize) {
    if ABSOLUTE_POS < largest.len() {
        let (block, col) = (ABSOLUTE_POS / dim, ABSOLUTE_POS % dim);
        let first = block * ROWS;
        let last = min(first + ROWS, x.len() / dim);
        let mut most = 0u32;
        for row in first..last {
            most = max(most, magnitude(x[row * dim + col]));
        }
        largest[ABSOLUTE_POS] = most;
    }
}

/// The multiple of `2^grid` nearest to a number, ties to even, as low and high word.
#[cube]
fn fixed(x: f32, grid: i32) -> (u32, u32) {
    let bits = u32::reinterpret(x);
    let field = (bits >> 23u32) & 0xffu32;
    let mut digits = bits & 0x7f_ffffu32;
    let mut exponent = (-149i32).runtime();
    if field > 0u32 {
        digits |= 0x80_0000u32;
        exponent = i32::cast_from(field) - 150i32;
    }
    let shift = exponent - grid;
    let mut low = 0u32;
    let mut high = 0u32;
    if shift > 0i32 {
        // At most 27 for entries that are as large as the largest of their column.
        let by = u32::cast_from(shift) & 31u32;
        low = digits << by;
        high = (digits >> 1u32) >> (31u32 - by);
    } else if shift > -26i32 {
        let by = u32::cast_from(-shift);
        low = digits >> by;
        let rest = digits & ((1u32 << by) - 1u32);
        let half = (1u32 << by) >> 1u32;
        if rest > half || (rest == half && by > 0u32 && low & 1u32 == 1u32) {
            low += 1u32;
        }
    }
    if bits >> 31u32 == 1u32 {
        low = !low + 1u32;
        high = !high;
        if low == 0u32 {
            high += 1u32;
        }
    }
    (low, high)
}

/// One unit a column of a segment: rows from `starts[s]` to `starts[s + 1]` of `order`. `sums` `[segments][dim][2]`.
#[cube(launch, create_dummy_kernel)]
fn segment_sums(x: &[f32], order: &[u32], starts: &[u32], grid: &[i32], sums: &mut [u32]) {
    if ABSOLUTE_POS < sums.len() / 2 {
        let dim = grid.len();
        let (segment, col) = (ABSOLUTE_POS / dim, ABSOLUTE_POS % dim);
        let own = grid[col];
        let mut low = 0u32;
        let mut high = 0u32;
        for at in starts[segment]..starts[segment + 1] {
            let (l, h) = fixed(x[order[at as usize] as usize * dim + col], own);
            low += l;
            high += h;
            if low < l {
                high += 1u32;
            }
        }
        sums[2 * ABSOLUTE_POS] = low;
        sums[2 * ABSOLUTE_POS + 1] = high;
    }
}

/// The power of two that entries of each column are rounded to, as on a processor: below the largest by 53 bits less
/// those of the number of rows.
fn grid_of(gpu: &Gpu, x: &Floats, rows: usize, dim: usize) -> Vec<i32> {
    let len = rows.div_ceil(ROWS) * dim;
    let largest = gpu.room(len);
    launch!(gpu, column_largest, cubes_for(len), units(), x.arg(), arg(&largest, len), dim);
    let mut most = vec![0u32; dim];
    for block in read_words(gpu, &largest, len).chunks_exact(dim) {
        most.iter_mut().zip(block).for_each(|(most, found)| *most = (*most).max(*found));
    }
    let log_rows = ((usize::BITS - rows.leading_zeros()) as i32).max(2);
    let above = |bits: u32| (f64::from(f32::from_bits(bits)).to_bits() >> 52) as i32 - 1022;
    most.into_iter().map(|bits| above(bits) + log_rows - 53).collect()
}

/// Waits. The sums are made anew: exact, they are those that moving rows would give.
pub(crate) fn sum_clusters(
    gpu: &Gpu,
    x: &Floats,
    clusters: &mut Clusters,
    sums: &mut [f64],
    counts: &mut [u64],
) {
    let (rows, dim, k) = (clusters.rows(), clusters.dim, counts.len());
    assert_eq!(x.len, rows * dim, "x is not rows × dim");
    assert_eq!(sums.len(), k * dim, "sums are not k × dim");
    sums.fill(0.0);
    counts.fill(0);
    for label in clusters.labels.iter().filter(|label| **label != NONE) {
        counts[*label as usize] += 1;
    }
    // Rows by label, and where segments of one label begin.
    let (mut places, mut starts, mut owners) = (Vec::with_capacity(k), vec![0], Vec::new());
    let mut first = 0;
    for (label, count) in counts.iter().enumerate() {
        places.push(first);
        let end = first + *count as usize;
        while first < end {
            first = end.min(first + SEGMENT);
            starts.push(first as u32);
            owners.push(label);
        }
    }
    if owners.is_empty() {
        return;
    }
    let mut order = vec![0u32; first];
    for (row, label) in clusters.labels.iter().enumerate().filter(|(_, label)| **label != NONE) {
        let place = &mut places[*label as usize];
        order[*place] = row as u32;
        *place += 1;
    }
    let grid = clusters.grid.get_or_insert_with(|| grid_of(gpu, x, rows, dim));
    let len = 2 * owners.len() * dim;
    let parts = gpu.room(len);
    let (order, starts) = (put_words(gpu, &order), put_words(gpu, &starts));
    let of_columns = arg(&gpu.put(bytemuck::cast_slice(grid)), dim);
    let (count, to) = (cubes_for(len / 2), arg(&parts, len));
    launch!(gpu, segment_sums, count, units(), x.arg(), order, starts, of_columns, to);
    let parts = read_words(gpu, &parts, len);
    let mut totals = vec![0i64; k * dim];
    for (owner, part) in owners.into_iter().zip(parts.chunks_exact(2 * dim)) {
        for (total, words) in totals[owner * dim..].iter_mut().zip(part.as_chunks::<2>().0) {
            *total += (u64::from(words[0]) | u64::from(words[1]) << 32).cast_signed();
        }
    }
    for (at, (sum, total)) in sums.iter_mut().zip(totals).enumerate() {
        *sum = total as f64 * 2f64.powi(grid[at % dim]);
    }
}
