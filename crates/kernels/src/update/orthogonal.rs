//! The direction of Muon: a matrix with its singular values drawn towards one (Jordan et al., 2024,
//! kellerjordan.github.io/posts/muon).
//!
//! The Newton–Schulz step `X ← p(X·Xᵀ)·X` multiplies by polynomials of one symmetric matrix, which commute. So
//! steps are done on `A = X·Xᵀ` of the smaller side, `A ← A·p(A)²`, their polynomials are multiplied together,
//! and `X` is multiplied once, at the end. The square doubles the digits that small singular values need: the result
//! is right to a thousandth.

use crate::{
    Context, Tier, lanes,
    matmul::{View, multiply},
    strips::Parts,
};

/// Coefficients of the quintic `a·x + b·x³ + c·x⁵` of each Newton–Schulz step: in every step the best one for all
/// singular values that the steps before can have left (Amsel et al., 2505.16932, algorithm 1), for those between
/// 1/100 and 1 of the norm at the start. They end between 0.73 and 1.27; smaller ones are multiplied by 78.
///
/// Five steps of 3.4445, -4.7750, 2.0315 multiply by 485 instead: models then learn worse (docs/low-bits.md), as what is that
/// small is mostly noise.
const QUINTICS: [[f32; 3]; 3] = [
    [8.093_368, -23.620_43, 17.446_152],
    [3.636_585_5, -2.721_927, 0.536_546_3],
    [2.661_3, -1.977_154_5, 0.452_616_4],
];
/// What norms are taken to be at least.
const LEAST: f32 = 1e-30;

/// Rows of a block, each of which is a matrix of its own (block-wise Muon; Khaled et al., 2510.16981, with no steps for
/// whole matrices between). Products of 768 × 256 take a third of the multiplications of a whole matrix, and models learn
/// better than with that, or with blocks of 32 or 16 rows (docs/low-bits.md).
const BLOCK_ROWS: usize = 64;

/// Draws the singular values of blocks of 64 rows of `x` `[rows][cols]` towards one, by products on the
/// smaller side of each, then multiplies it by `rms · √max(rows, cols)` of the block: that is about the root mean square
/// of its entries, where it has full rank (Liu et al., 2502.16982, section 2.2). The bits belong to a machine
/// type, as of all products in f32.
///
/// # Panics
/// `x` does not consist of `rows` rows.
pub fn orthogonalize(cx: &Context, x: &mut [f32], rows: usize, rms: f32) {
    let cols = x.len() / rows.max(1);
    assert_eq!(x.len(), rows * cols);
    if x.is_empty() {
        return;
    }
    let blocks = Parts::new(x, rows.min(BLOCK_ROWS) * cols);
    cx.each(blocks.count(), orthogonal_room(rows, cols), |at, room| {
        // SAFETY: each block belongs to one task.
        let x = unsafe { blocks.get(at) };
        orthogonalize_block(cx.tier(), x, cols, rms, room);
    });
}

/// One block, `[rows][cols]`.
fn orthogonalize_block(tier: Tier, x: &mut [f32], cols: usize, rms: f32, room: &mut [f32]) {
    let rows = x.len() / cols;
    let side = rows.min(cols);
    let (unit, small) = room.split_at_mut(x.len());
    let (gram, small) = small.split_at_mut(side * side);
    let (polynomial, small) = small.split_at_mut(side * side);
    let (mut product, small) = small.split_at_mut(side * side);
    let mut spare = &mut small[..side * side];
    divide(tier, x, squares(tier, x).sqrt().max(LEAST), unit);
    let unit = View::new(unit, rows, cols);
    if rows <= cols {
        multiply(unit, unit.t(), gram);
    } else {
        multiply(unit.t(), unit, gram);
    }
    for (at, coefficients) in QUINTICS.into_iter().enumerate() {
        multiply(square(gram, side), square(gram, side), polynomial);
        quintic(tier, coefficients, gram, side, polynomial);
        if at == 0 {
            product.copy_from_slice(polynomial);
        } else {
            multiply(square(product, side), square(polynomial, side), spare);
            std::mem::swap(&mut product, &mut spare);
        }
        if at + 1 < QUINTICS.len() {
            multiply(square(gram, side), square(polynomial, side), spare);
            multiply(square(spare, side), square(polynomial, side), gram);
        }
    }
    scale(tier, product, rms * (rows.max(cols) as f32).sqrt());
    if rows <= cols {
        multiply(square(product, side), unit, x);
    } else {
        multiply(unit, square(product, side), x);
    }
}

/// Floats that each task of [`orthogonalize`] works with.
pub(crate) fn orthogonal_room(rows: usize, cols: usize) -> usize {
    let rows = rows.min(BLOCK_ROWS);
    rows * cols + 4 * rows.min(cols).pow(2)
}

fn square(x: &[f32], side: usize) -> View<'_> {
    View::new(x, side, side)
}

tiered! {
    fn squares(x: &[f32]) -> f32 {
        lanes::dot(x, x)
    }
}

tiered! {
    fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}

tiered! {
    fn divide(x: &[f32], by: f32, to: &mut [f32]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = x / by;
        }
    }
}

/// `square = a·I + b·gram + c·square`, `[side][side]`.
fn quintic(tier: Tier, [a, b, c]: [f32; 3], gram: &[f32], side: usize, square: &mut [f32]) {
    sum(tier, square, c, gram, b);
    square.iter_mut().step_by(side + 1).for_each(|diagonal| *diagonal += a);
}

tiered! {
    fn sum(square: &mut [f32], c: f32, gram: &[f32], b: f32) {
        for (square, gram) in square.iter_mut().zip(gram) {
            *square = c * *square + b * gram;
        }
    }
}
