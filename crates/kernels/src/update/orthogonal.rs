//! The direction of Muon: a matrix with its singular values drawn towards one (Jordan et al., 2024,
//! kellerjordan.github.io/posts/muon).

use super::CHUNK;
use crate::{
    Context, elementwise,
    matmul::{View, matmul},
};

/// Newton–Schulz steps: singular values between 1/500 and 1 of the norm end between 0.7 and 1.2, about.
const STEPS: usize = 5;
// The last of an odd number of products lies where the matrix was.
const _: () = assert!(STEPS % 2 == 1);
/// Coefficients of the quintic `a·x + b·x³ + c·x⁵` of a step.
const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];
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
    cx.with_floats(x.len() + 2 * side * side, |lent| {
        let (mut from, small) = lent.split_at_mut(x.len());
        let (gram, square) = small.split_at_mut(side * side);
        divide_to(cx, x, norm, from);
        let mut to = x;
        for at in 1..=STEPS {
            let factor = if at == STEPS { rms * (rows.max(cols) as f32).sqrt() } else { 1.0 };
            let view = View::new(from, rows, cols);
            if rows <= cols {
                matmul(cx, view, view.t(), 0.0, gram);
            } else {
                matmul(cx, view.t(), view, 0.0, gram);
            }
            let symmetric = View::new(gram, side, side);
            matmul(cx, symmetric, symmetric, 0.0, square);
            quintic(cx, gram, square, side, factor);
            let polynomial = View::new(gram, side, side);
            if rows <= cols {
                matmul(cx, polynomial, view, 0.0, to);
            } else {
                matmul(cx, view, polynomial, 0.0, to);
            }
            std::mem::swap(&mut from, &mut to);
        }
    });
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

/// `gram = factor · (a·I + b·gram + c·square)`, `[side][side]`.
fn quintic(cx: &Context, gram: &mut [f32], square: &[f32], side: usize, factor: f32) {
    let [a, b, c] = QUINTIC.map(|coefficient| coefficient * factor);
    cx.chunks(gram, side, |row, gram| {
        sum(cx.tier(), gram, b, &square[row * side..][..side], c);
        gram[row] += a;
    });
}

tiered! {
    fn sum(gram: &mut [f32], b: f32, square: &[f32], c: f32) {
        for (gram, square) in gram.iter_mut().zip(square) {
            *gram = b * *gram + c * square;
        }
    }
}
