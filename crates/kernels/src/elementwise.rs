//! Moves of whole buffers, and reductions over them.

use std::ops::Range;

use crate::{Context, lanes};

/// Elements of one task that moves them.
const MOVED: usize = 1 << 16;

/// `to = from`.
///
/// # Panics
/// The lengths differ.
pub fn copy(cx: &Context, from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    cx.chunks(to, MOVED, |index, to| to.copy_from_slice(&from[index * MOVED..][..to.len()]));
}

/// `to = 0`.
pub fn clear(cx: &Context, to: &mut [f32]) {
    cx.chunks(to, MOVED, |_, to| to.fill(0.0));
}

/// Elements of one partial sum.
const BLOCK: usize = 4096;
/// Partial sums of magnitudes that are made side by side: each waits for its own last addition alone.
const SIDE: usize = 4;

/// `Σ x²`, in blocks of 4096: eight lanes of f32 inside, f64 between, in order.
pub fn sum_squares(cx: &Context, x: &[f32]) -> f64 {
    block_sums(cx, x.len(), |block| square_sum(cx.tier(), &x[block]))
}

/// `out[r] = Σ x[r]²` in eight lanes; `x` `[rows][cols]`, `out` `[rows]`.
///
/// # Panics
/// The rows are not all of one length.
pub fn square_sums(cx: &Context, x: &[f32], out: &mut [f32]) {
    let cols = x.len() / out.len().max(1);
    assert_eq!(x.len(), out.len() * cols);
    let rows = (BLOCK / cols.max(1)).max(1);
    cx.chunks(out, rows, |first, out| {
        for (at, out) in out.iter_mut().enumerate() {
            *out = square_sum(cx.tier(), &x[(first * rows + at) * cols..][..cols]);
        }
    });
}

/// `Σ x`, in the same blocks.
pub fn sum(cx: &Context, x: &[f32]) -> f64 {
    block_sums(cx, x.len(), |block| plain_sum(cx.tier(), &x[block]))
}

/// `Σ x·y`, in the same blocks.
///
/// # Panics
/// The lengths differ.
pub fn dot(cx: &Context, x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len());
    block_sums(cx, x.len(), |block| product_sum(cx.tier(), &x[block.clone()], &y[block]))
}

/// `Σ |x|`, in the blocks and lanes that `trit::ternary::absmean` defines.
pub fn sum_abs(cx: &Context, x: &[f32]) -> f64 {
    cx.with_floats(x.len().div_ceil(BLOCK), |sums| {
        cx.chunks(sums, SIDE, |first, sums| {
            let x = &x[first * SIDE * BLOCK..];
            match x.first_chunk() {
                Some(blocks) => sums.copy_from_slice(&abs_sums(cx.tier(), blocks)),
                None => {
                    for (sum, block) in sums.iter_mut().zip(x.chunks(BLOCK)) {
                        *sum = abs_sum(cx.tier(), block);
                    }
                }
            }
        });
        sums.iter().copied().map(f64::from).sum()
    })
}

/// [`sum_abs`] and [`sum_squares`] in one pass.
pub(crate) fn sums_abs_squares(cx: &Context, x: &[f32]) -> [f64; 2] {
    let count = x.len().div_ceil(BLOCK);
    cx.with_floats(2 * count, |sums| {
        cx.chunks(sums, 8, |first, sums| {
            for (at, sums) in sums.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let start = (4 * first + at) * BLOCK;
                let block = &x[start..x.len().min(start + BLOCK)];
                *sums = [abs_sum(cx.tier(), block), square_sum(cx.tier(), block)];
            }
        });
        let sum = |which: usize| sums.as_chunks::<2>().0.iter().map(|sums| f64::from(sums[which])).sum();
        [sum(0), sum(1)]
    })
}

fn block_sums(cx: &Context, len: usize, sum: impl Fn(Range<usize>) -> f32 + Sync + Send) -> f64 {
    let count = len.div_ceil(BLOCK);
    let one = |block: usize| sum(block * BLOCK..len.min((block + 1) * BLOCK));
    cx.with_floats(count, |sums| {
        cx.chunks(sums, 4, |first, sums| {
            for (at, sum) in sums.iter_mut().enumerate() {
                *sum = one(4 * first + at);
            }
        });
        sums.iter().copied().map(f64::from).sum()
    })
}

tiered! {
    fn square_sum(x: &[f32]) -> f32 {
        lanes::dot(x, x)
    }
}

tiered! {
    fn product_sum(x: &[f32], y: &[f32]) -> f32 {
        lanes::dot(x, y)
    }
}

tiered! {
    fn plain_sum(x: &[f32]) -> f32 {
        lanes::sum_of(x, |v| v)
    }
}

tiered! {
    fn abs_sum(x: &[f32]) -> f32 {
        lanes::sum_of(x, f32::abs)
    }
}

tiered! {
    /// [`abs_sum`] of [`SIDE`] whole blocks.
    fn abs_sums(x: &[f32; SIDE * BLOCK]) -> [f32; SIDE] {
        let mut acc = [[0.0; lanes::LANES]; SIDE];
        let blocks = x.as_chunks::<BLOCK>().0;
        for at in (0..BLOCK).step_by(lanes::LANES) {
            for (acc, block) in acc.iter_mut().zip(blocks) {
                for l in 0..lanes::LANES {
                    acc[l] += block[at + l].abs();
                }
            }
        }
        acc.map(lanes::total)
    }
}
