//! How factors become int16 panels: quantised by columns or by rows, or widened from int8.

use super::{GRADIENT, Left, ROWS, tile_rows};
use crate::{Context, lanes, tile::COLUMNS};

/// Folds the token scales `a` into `dy` `[tokens][outputs]` and quantises every output column, which
/// becomes a row of the result.
pub(crate) fn quantise_columns(cx: &Context, dy: &[f32], a: &[f32], outputs: usize, left: &mut Left) {
    let (pairs, width) = (a.len().div_ceil(2), tile_rows(cx.tier()));
    left.values.resize(outputs.next_multiple_of(width) * pairs * 2, 0);
    left.scales.resize(outputs, 0.0);
    let values = (&mut left.values[..], ROWS * pairs * 2);
    cx.chunks2(values, (&mut left.scales, ROWS), |index, q, scales| {
        quantise_group(cx.tier(), dy, a, outputs, index * ROWS, width, q, scales);
    });
}

tiered! {
    /// [`ROWS`] output columns of [`quantise_columns`], or what is left of them.
    fn quantise_group(
        dy: &[f32],
        a: &[f32],
        outputs: usize,
        first: usize,
        width: usize,
        q: &mut [i16],
        scales: &mut [f32],
    ) {
        let count = scales.len();
        let mut largest = [0u32; ROWS];
        for (t, a) in a.iter().enumerate() {
            let row = fold(&dy[t * outputs + first..][..count], *a);
            for c in 0..ROWS {
                largest[c] = largest[c].max(row[c].to_bits() & 0x7fff_ffff);
            }
        }
        let mut inverse = [0.0; ROWS];
        for c in 0..count {
            (scales[c], inverse[c]) = scale(f32::from_bits(largest[c]), GRADIENT);
        }
        let pairs = a.len().div_ceil(2);
        for pair in 0..pairs {
            let mut quantised = [[0i16; ROWS]; 2];
            for (half, quantised) in quantised.iter_mut().enumerate() {
                let t = 2 * pair + half;
                if t < a.len() {
                    let row = fold(&dy[t * outputs + first..][..count], a[t]);
                    for c in 0..ROWS {
                        // |dy·a·inverse| ≤ 32767·(1 + 2^-22), which rounds to at most 32767.
                        quantised[c] = lanes::round(row[c] * inverse[c]) as i16;
                    }
                }
            }
            let mut both = [0; 2 * ROWS];
            for c in 0..ROWS {
                both[2 * c] = quantised[0][c];
                both[2 * c + 1] = quantised[1][c];
            }
            for (panel, both) in q.chunks_exact_mut(2 * pairs * width).zip(both.chunks_exact(2 * width)) {
                panel[2 * pair * width..][..2 * width].copy_from_slice(both);
            }
        }
    }
}

/// The scale that maps `largest` to the integer `bound`, and its inverse.
#[inline(always)]
pub(crate) fn scale(largest: f32, bound: i16) -> (f32, f32) {
    let bound = f32::from(bound);
    if !largest.is_finite() {
        // The scale carries it on, and the guard of the optimizer sees it.
        (f32::NAN, 0.0)
    } else if largest > f32::MIN_POSITIVE * 65536.0 {
        (largest / bound, bound / largest)
    } else {
        (0.0, 0.0)
    }
}

/// A row times `a`, the missing columns zero: full lanes wherever the row lies.
#[inline(always)]
fn fold(row: &[f32], a: f32) -> [f32; ROWS] {
    let mut folded = [0.0; ROWS];
    if let Ok(row) = <&[f32; ROWS]>::try_from(row) {
        for c in 0..ROWS {
            folded[c] = row[c] * a;
        }
    } else {
        for (folded, value) in folded.iter_mut().zip(row) {
            *folded = value * a;
        }
    }
    folded
}

/// Panels that one task of [`pack_columns`] writes: some lines of every row, which are fetched together.
const PANELS: usize = 16;

/// Widens int8 `x` `[inner][inputs]` to i16 and lays it out as columns of the result.
pub(crate) fn pack_columns(cx: &Context, x: &[i8], inputs: usize, packed: &mut Vec<i16>) {
    let panel = (x.len() / inputs).div_ceil(2) * 2 * COLUMNS;
    packed.resize(inputs.div_ceil(COLUMNS) * panel, 0);
    cx.chunks(packed, PANELS * panel, |index, packed| {
        pack_panels(cx.tier(), x, inputs, index * PANELS * COLUMNS, packed);
    });
}

tiered! {
    /// Up to [`PANELS`] panels, from column `first` on.
    fn pack_panels(x: &[i8], inputs: usize, first: usize, packed: &mut [i16]) {
        let tokens = x.len() / inputs;
        let pairs = tokens.div_ceil(2);
        for pair in 0..pairs {
            for (panel, packed) in packed.chunks_exact_mut(pairs * 2 * COLUMNS).enumerate() {
                let column = first + panel * COLUMNS;
                let even = sixteen(&x[2 * pair * inputs..], column, inputs);
                let odd = if 2 * pair + 1 < tokens {
                    sixteen(&x[(2 * pair + 1) * inputs..], column, inputs)
                } else {
                    [0; COLUMNS]
                };
                let mut both = [0; 2 * COLUMNS];
                for c in 0..COLUMNS {
                    both[2 * c] = i16::from(even[c]);
                    both[2 * c + 1] = i16::from(odd[c]);
                }
                packed[2 * pair * COLUMNS..][..2 * COLUMNS].copy_from_slice(&both);
            }
        }
    }
}

/// Sixteen columns of a row of `inputs`, those beyond its end zero.
#[inline(always)]
fn sixteen(row: &[i8], column: usize, inputs: usize) -> [i8; COLUMNS] {
    let row = &row[column..inputs.min(column + COLUMNS)];
    <[i8; COLUMNS]>::try_from(row).unwrap_or_else(|_| {
        let mut padded = [0; COLUMNS];
        padded[..row.len()].copy_from_slice(row);
        padded
    })
}

/// Quantises every row of `x` `[rows][inner]`, times `fold` `[inner]` where that is not empty, to
/// integers of magnitude at most `bound`, in panels of `width` rows. The rows of `x` become rows of the
/// result, with `width` [`tile_rows`], or columns, with [`COLUMNS`].
pub(crate) fn pack_rows(
    cx: &Context,
    x: &[f32],
    fold: &[f32],
    (inner, bound, width): (usize, i16, usize),
    values: &mut Vec<i16>,
    scales: &mut Vec<f32>,
) {
    let (rows, pairs) = (x.len() / inner, inner.div_ceil(2));
    values.resize(rows.next_multiple_of(width) * pairs * 2, 0);
    scales.resize(rows, 0.0);
    // Panels of a task: a whole number, so that tasks meet at their borders.
    let group = ROWS.next_multiple_of(width);
    cx.chunks2((values, group * pairs * 2), (scales, group), |index, values, scales| {
        let x = &x[index * group * inner..][..scales.len() * inner];
        pack_row_panels(cx.tier(), x, fold, inner, bound, width, values, scales);
    });
}

/// Values that [`pack_row_panels`] quantises at a time.
const RUN: usize = 128;

tiered! {
    /// [`pack_rows`] of some panels.
    fn pack_row_panels(
        x: &[f32],
        fold: &[f32],
        inner: usize,
        bound: i16,
        width: usize,
        values: &mut [i16],
        scales: &mut [f32],
    ) {
        let panel = inner.div_ceil(2) * 2 * width;
        for (row, (x, to)) in x.chunks_exact(inner).zip(scales).enumerate() {
            let mut largest = 0.0f32;
            let mut folded = [0.0; RUN];
            for (run, x) in x.chunks(RUN).enumerate() {
                let x = fold_run(x, fold, run, &mut folded);
                largest = f32::from_bits(largest.to_bits().max(lanes::max_abs(x).to_bits()));
            }
            let (scale, inverse) = scale(largest, bound);
            *to = scale;
            let values = &mut values[row / width * panel..][..panel];
            for (run, x) in x.chunks(RUN).enumerate() {
                let x = fold_run(x, fold, run, &mut folded);
                let mut quantised = [0i16; RUN];
                for (q, x) in quantised.iter_mut().zip(x) {
                    *q = lanes::round(x * inverse) as i16;
                }
                let pairs = quantised.as_chunks::<2>().0[..x.len().div_ceil(2)].iter();
                let from = (run * RUN / 2 * width + row % width) * 2;
                for (to, pair) in values[from..].chunks_mut(2 * width).zip(pairs) {
                    to[..2].copy_from_slice(pair);
                }
            }
        }
        // Rows that the last panel lacks.
        let rows = x.len() / inner;
        for row in rows..rows.next_multiple_of(width) {
            for pair in values[row / width * panel..][..panel].chunks_exact_mut(2 * width) {
                pair[2 * (row % width)..][..2].fill(0);
            }
        }
    }
}

/// Run number `run` of a row, times that of `fold`.
#[inline(always)]
fn fold_run<'a>(x: &'a [f32], fold: &[f32], run: usize, folded: &'a mut [f32; RUN]) -> &'a [f32] {
    if fold.is_empty() {
        return x;
    }
    for ((to, x), f) in folded.iter_mut().zip(x).zip(&fold[run * RUN..]) {
        *to = x * f;
    }
    &folded[..x.len()]
}
