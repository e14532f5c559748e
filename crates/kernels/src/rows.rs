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

/// `x = scale · code` by rows: `codes` and `x` `[rows][cols]`, `scales` `[rows]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn dequantize(cx: &Context, codes: &[i8], scales: &[f32], x: &mut [f32]) {
    assert_eq!(x.len(), codes.len());
    let cols = x.len() / scales.len().max(1);
    assert_eq!(x.len(), cols * scales.len());
    cx.chunks(x, (ROWS * cols).max(1), |index, x| {
        let rows = x.chunks_exact_mut(cols).zip(codes[index * ROWS * cols..].chunks_exact(cols));
        for ((x, codes), scale) in rows.zip(&scales[index * ROWS..]) {
            dequantize_row(cx.tier(), codes, *scale, x);
        }
    });
}

tiered! {
    fn dequantize_row(codes: &[i8], scale: f32, x: &mut [f32]) {
        for (x, code) in x.iter_mut().zip(codes) {
            *x = f32::from(*code) * scale;
        }
    }
}

/// The scales that [`quantize`] gives the rows of `x`.
pub(crate) fn scales(cx: &Context, x: &[f32], scales: &mut [f32]) {
    let cols = x.len() / scales.len().max(1);
    cx.chunks(scales, ROWS, |index, scales| {
        for (x, scale) in x[index * ROWS * cols..].chunks_exact(cols).zip(scales) {
            *scale = row_scale(cx.tier(), x);
        }
    });
}

tiered! {
    fn row_scale(x: &[f32]) -> f32 {
        scale(lanes::max_abs(x)).0
    }
}

tiered! {
    /// One row; see [`quantize`].
    pub(crate) fn quantize_row(x: &[f32], to: &mut [i8]) -> f32 {
        let (scale, inverse) = scale(lanes::max_abs(x));
        codes(x, inverse, to);
        scale
    }
}

/// The scale of a row whose largest magnitude is `largest`, and its inverse, 0 where all codes are.
#[inline(always)]
pub(crate) fn scale(largest: f32) -> (f32, f32) {
    let inverse = 127.0 / largest;
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if inverse.is_infinite() {
        (0.0, 0.0)
    } else {
        (largest / 127.0, inverse)
    }
}

/// Rounds values, the inverse of whose scale is `inverse`.
#[inline(always)]
pub(crate) fn codes(x: &[f32], inverse: f32, to: &mut [i8]) {
    if inverse == 0.0 {
        to.fill(0);
        return;
    }
    for (code, x) in to.iter_mut().zip(x) {
        // |x·inverse| ≤ 127·(1 + 2^-22), which rounds to at most 127.
        *code = lanes::round(x * inverse) as i8;
    }
}
