//! Biases of linear layers: added to rows, their gradients sums of rows.

use crate::Context;

/// `x[r] += bias`: `bias` `[cols]`, `x` `[rows][cols]`.
///
/// # Panics
/// The rows are not as long as the bias.
pub fn add(cx: &Context, bias: &[f32], x: &mut [f32]) {
    const ROWS: usize = 64;
    assert!(!bias.is_empty() && x.len().is_multiple_of(bias.len()));
    cx.chunks(x, ROWS * bias.len(), |_, rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            for (x, bias) in row.iter_mut().zip(bias) {
                *x += bias;
            }
        }
    });
}

/// `d_bias = Σ dy[r]`, rows in order: `dy` `[rows][cols]`, `d_bias` `[cols]`.
///
/// # Panics
/// The rows are not as long as the bias.
pub fn gradient(cx: &Context, dy: &[f32], d_bias: &mut [f32]) {
    /// Columns of one task, which walks all rows.
    const COLUMNS: usize = 256;
    let cols = d_bias.len();
    assert!(cols > 0 && dy.len().is_multiple_of(cols));
    cx.chunks(d_bias, COLUMNS, |index, sums| {
        sums.fill(0.0);
        for row in dy.chunks_exact(cols) {
            for (sum, dy) in sums.iter_mut().zip(&row[index * COLUMNS..]) {
                *sum += dy;
            }
        }
    });
}
