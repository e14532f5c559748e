//! int8 rows: activations and their gradients, one scale per row (per token).
//!
//! Source: BitNet b1.58 (arXiv:2402.17764), "absmax" quantisation of activations per token. The range
//! is -127 to 127 and not -128: it is symmetric, and the overflow bounds of the integer kernels count
//! on |code| ≤ 127.

use crate::{Error, first_non_finite};

/// Quantises a row of activations to int8 and returns its scale `a` = max|x| / 127.
///
/// `codes[i]` is `x[i] · (127 / max|x|)`, rounded half to even; `x` is about `codes · a`. One division
/// per row and a product per element, in f32, each rounded once: a twin that divides each element by
/// `a` instead gives other codes near ties. The error is at most a/2, plus 2⁻¹⁴·a for the roundings of
/// `127 / max`, the product and `a` (the last is coarse where `a` is subnormal).
///
/// A row is a *zero row*, with scale 0 and codes 0, when `127 / max|x|` is infinite in f32. That is a
/// row of zeros, an empty row, and a row with max|x| below about 3.7e-37, which is nothing next to
/// any other row of a model. (Without that rule such a row would hold 0 · inf.)
///
/// # Errors
///
/// [`Error::NonFinite`] with the index of the first NaN or infinity; [`Error::Length`] when `codes`
/// and `x` differ in length.
pub fn quantize_row(x: &[f32], codes: &mut [i8]) -> Result<f32, Error> {
    if codes.len() != x.len() {
        return Err(Error::Length { what: "row codes", n: x.len(), expected: x.len(), found: codes.len() });
    }
    if let Some(index) = first_non_finite(x) {
        return Err(Error::NonFinite { what: "row element", index, found: x[index] });
    }
    // The maximum of finite numbers does not depend on the order, so lanes are free here.
    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let inverse = 127.0 / max;
    if inverse.is_infinite() {
        codes.fill(0);
        return Ok(0.0);
    }
    for (q, &v) in codes.iter_mut().zip(x) {
        // Two roundings keep the product under 127·(1 + 2⁻²²), so the clamp never binds. It stays
        // because the bound that the kernels rely on should be readable here.
        *q = round_even(v * inverse).clamp(-127.0, 127.0) as i8;
    }
    Ok(max / 127.0)
}

/// Rounds half to even, for |x| < 2²². Zero comes out as +0.0.
///
/// `f32::round_ties_even` compiles to a library call without SSE4.1; this is two additions anywhere.
/// Adding 1.5·2²³ moves `x` into [2²³, 2²⁴), where the spacing of f32 is 1, and the addition itself
/// rounds to nearest even. The half in 1.5 keeps negative `x` in that range too. Outside of it the
/// result is wrong.
#[inline]
pub fn round_even(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23
    (x + SHIFT) - SHIFT
}
