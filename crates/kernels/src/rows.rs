//! Rows of f32 to int8 with one scale each.

use crate::{Context, lanes};

/// Rows of one task.
const ROWS: usize = 32;

/// Quantises every row: `scales[r] = max|x[r]| / 127`, codes to nearest, ties to even.
///
/// `x` `[rows][cols]`, `codes` likewise, `scales` `[rows]`. Equal to `trit::rows::quantize_row` row by row,
/// but a row that is not finite gets the scale NaN and codes 0: it reaches the loss or the gradient
/// norm, where the guard sees it.
///
/// # Panics
/// The lengths do not fit together.
pub fn quantize(cx: &Context, x: &[f32], codes: &mut [i8], scales: &mut [f32]) {
    assert_eq!(x.len(), codes.len());
    if codes.is_empty() {
        return;
    }
    let cols = x.len() / scales.len();
    assert_eq!(x.len(), cols * scales.len());
    cx.chunks2((codes, ROWS * cols), (scales, ROWS), |index, codes, scales| {
        let x = &x[index * ROWS * cols..][..codes.len()];
        for ((x, codes), scale) in x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)).zip(scales) {
            *scale = quantize_row(cx.tier(), x, codes);
        }
    });
}

tiered! {
    fn quantize_row(x: &[f32], codes: &mut [i8]) -> f32 {
        row(x, codes)
    }
}

/// One row; see [`quantize`].
#[inline(always)]
pub(crate) fn row(x: &[f32], codes: &mut [i8]) -> f32 {
    let bound = lanes::max_abs(x);
    if !bound.is_finite() {
        codes.fill(0);
        return f32::NAN;
    }
    let inverse = 127.0 / bound;
    if inverse.is_infinite() {
        codes.fill(0);
        return 0.0;
    }
    for (code, x) in codes.iter_mut().zip(x) {
        // |x·inverse| ≤ 127·(1 + 2^-22), which rounds to at most 127.
        *code = lanes::round(x * inverse) as i8;
    }
    bound / 127.0
}
