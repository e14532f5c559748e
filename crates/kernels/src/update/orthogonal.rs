//! The direction of Muon: a matrix with its singular values drawn towards one (Jordan et al., 2024,
//! kellerjordan.github.io/posts/muon).
//!
//! The Newton–Schulz step `X ← p(X·Xᵀ)·X` multiplies by polynomials of one symmetric matrix, which commute. So
//! steps are done on `A = X·Xᵀ` of the smaller side, `A ← A·p(A)²`, their polynomials are multiplied together,
//! and `X` is multiplied once, at the end. All products but the last are symmetric: half of each is mirrored. The
//! square doubles the digits that small singular values need: the result is right to a thousandth.

use super::CHUNK;
use crate::{
    Context, elementwise,
    kmeans::scale,
    matmul::{View, matmul, symmetric},
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

/// Draws the singular values of `x` `[rows][cols]` towards one, by products on its smaller side, then
/// multiplies it by `rms · √max(rows, cols)`: that is about the root mean square of its entries, where `x` has
/// full rank (Liu et al., 2502.16982, section 2.2). Its bits belong to a machine type, as of all products in f32.
///
/// # Panics
/// `x` does not consist of `rows` rows.
pub fn orthogonalize(cx: &Context, x: &mut [f32], rows: usize, rms: f32) {
    let cols = x.len() / rows.max(1);
    assert_eq!(x.len(), rows * cols);
    if x.is_empty() {
        return;
    }
    let side = rows.min(cols);
    let norm = (elementwise::sum_squares(cx, x).sqrt() as f32).max(LEAST);
    let factor = rms * (rows.max(cols) as f32).sqrt();
    cx.with_floats(orthogonal_room(rows, cols), |lent| {
        let (unit, small) = lent.split_at_mut(x.len());
        let (gram, small) = small.split_at_mut(side * side);
        let (polynomial, small) = small.split_at_mut(side * side);
        let (mut product, mut spare) = small.split_at_mut(side * side);
        divide_to(cx, x, norm, unit);
        let unit = View::new(unit, rows, cols);
        if rows <= cols {
            symmetric(cx, unit, unit.t(), gram);
        } else {
            symmetric(cx, unit.t(), unit, gram);
        }
        for (at, coefficients) in QUINTICS.into_iter().enumerate() {
            symmetric(cx, square(gram, side), square(gram, side), polynomial);
            quintic(cx, coefficients, gram, side, polynomial);
            if at == 0 {
                elementwise::copy(cx, polynomial, product);
            } else {
                symmetric(cx, square(product, side), square(polynomial, side), spare);
                std::mem::swap(&mut product, &mut spare);
            }
            if at + 1 < QUINTICS.len() {
                symmetric(cx, square(gram, side), square(polynomial, side), spare);
                symmetric(cx, square(spare, side), square(polynomial, side), gram);
            }
        }
        scale(cx, product, factor);
        if rows <= cols {
            matmul(cx, square(product, side), unit, 0.0, x);
        } else {
            matmul(cx, unit, square(product, side), 0.0, x);
        }
    });
}

/// Floats that [`orthogonalize`] works with.
pub(crate) fn orthogonal_room(rows: usize, cols: usize) -> usize {
    rows * cols + 4 * rows.min(cols).pow(2)
}

fn square(x: &[f32], side: usize) -> View<'_> {
    View::new(x, side, side)
}

/// `to = x / by`.
fn divide_to(cx: &Context, x: &[f32], by: f32, to: &mut [f32]) {
    cx.chunks(to, CHUNK, |index, to| divide(cx.tier(), &x[index * CHUNK..][..to.len()], by, to));
}

tiered! {
    fn divide(x: &[f32], by: f32, to: &mut [f32]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = x / by;
        }
    }
}

/// `square = a·I + b·gram + c·square`, `[side][side]`.
fn quintic(cx: &Context, [a, b, c]: [f32; 3], gram: &[f32], side: usize, square: &mut [f32]) {
    cx.chunks(square, side, |row, square| {
        sum(cx.tier(), square, c, &gram[row * side..][..side], b);
        square[row] += a;
    });
}

tiered! {
    fn sum(square: &mut [f32], c: f32, gram: &[f32], b: f32) {
        for (square, gram) in square.iter_mut().zip(gram) {
            *square = c * *square + b * gram;
        }
    }
}
