//! The ternary codebook {-1, 0, 1}·s and its scale, the fp16-rounded mean of |w|.
//!
//! Source: BitNet b1.58 (Ma et al. 2024, arXiv:2402.17764, section 2), "absmean" quantisation,
//! `q = clamp(round(w / s), -1, 1)`. Two details are fixed here that the paper leaves open. The scale
//! is rounded to fp16 *in training*, because the files that models are exported to store fp16: so
//! the exported model is the trained one. And the order of the additions under the mean is part of
//! the definition, so that every kernel and every thread count computes the same scale.

use alloc::vec::Vec;

use half::f16;

use crate::{Error, first_non_finite};

/// Elements per block of the absolute sum.
///
/// Short enough that f32 lanes keep about 15 good bits in the worst case (512 additions per lane),
/// long enough that the f64 additions between blocks cost nothing.
pub const SUM_BLOCK: usize = 4096;

/// Lanes of the sum inside a block: one AVX2 register of f32, two NEON registers, half an AVX-512 one.
const LANES: usize = 8;

/// The scale of a ternary matrix: mean |w|, rounded to fp16, as f32.
///
/// Exactly: the elements are taken in blocks of [`SUM_BLOCK`], the last one shorter; each block is
/// summed by [`block_abs_sum`]; the block sums are widened to f64 and added in block order starting
/// from 0; [`scale_from_total`] does the rest. The weights may have any shape, `w` is their row-major
/// order.
///
/// The result is 0 for an empty slice, for all zeros, and for a mean of at most 2⁻²⁵, half the
/// smallest fp16 subnormal; then [`code`] gives 0 everywhere.
///
/// # Errors
///
/// [`Error::NonFinite`] with the index of the first NaN or infinity; [`Error::ScaleRange`] when the
/// mean is beyond 65504.
pub fn absmean(w: &[f32]) -> Result<f32, Error> {
    let total = abs_total(w);
    // No search on the good path. The terms are not negative, so nothing can cancel an infinity:
    // a non-finite weight always shows in the total. The converse fails (large finite weights can
    // overflow a lane), hence a search and not a verdict.
    if !total.is_finite()
        && let Some(index) = first_non_finite(w)
    {
        return Err(Error::NonFinite { what: "weight", index, found: w[index] });
    }
    scale_from_total(total, w.len())
}

/// Sum of |w|: the block sums, widened and added in block order. First step of [`absmean`].
///
/// A parallel twin may compute the block sums in any order, if it adds them in this one.
pub fn abs_total(w: &[f32]) -> f64 {
    w.chunks(SUM_BLOCK).fold(0.0, |total, block| total + f64::from(block_abs_sum(block)))
}

/// Sum of |w| over one block, in f32, in eight lanes.
///
/// Lane `l` adds |w_i| for i ≡ l (mod 8) in order of `i`, starting from 0. The lanes are then folded
/// in halves, `((l0+l4)+(l2+l6))+((l1+l5)+(l3+l7))`: that is what an extract, a shuffle and a
/// shuffle do to an AVX2 register.
///
/// The block may have any length; [`absmean`] passes at most [`SUM_BLOCK`].
pub fn block_abs_sum(block: &[f32]) -> f32 {
    let mut lane = [0.0f32; LANES];
    for group in block.chunks(LANES) {
        // A short last group leaves its upper lanes alone. A SIMD twin may instead load zeros
        // there: x + 0.0 is x for every x that occurs, since no lane is ever -0.0.
        for (l, w) in lane.iter_mut().zip(group) {
            *l += w.abs();
        }
    }
    let [l0, l1, l2, l3, l4, l5, l6, l7] = lane;
    ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))
}

/// The scale from the sum `total` of |w| over `n` weights: last two steps of [`absmean`].
///
/// The mean is rounded to f32, then to fp16, each to nearest even. That is a double rounding, and on
/// purpose: processors convert f32 to fp16 in one instruction, f64 mostly not at all. A total of 0 gives 0, also for `n` = 0.
///
/// # Errors
///
/// [`Error::ScaleRange`] when the mean is beyond 65504, the largest fp16, or not a number. Means up
/// to 65520 would still round down to 65504; they are refused as well, so that the bound in the
/// message is the bound.
pub fn scale_from_total(total: f64, n: usize) -> Result<f32, Error> {
    if total == 0.0 {
        return Ok(0.0);
    }
    let mean = (total / n as f64) as f32;
    // One test for too large, infinite, NaN, and a total that is not a sum of absolute values.
    if !(0.0..=f16::MAX.to_f32()).contains(&mean) {
        return Err(Error::ScaleRange { n, found: mean });
    }
    Ok(f16::from_f32(mean).to_f32())
}

/// The ternary code of one weight: the sign of `w` where |w| > scale/2, else 0.
///
/// This equals `clamp(round_half_even(w / scale), -1, 1)` without the division: at exactly scale/2
/// the quotient is 0.5, and the even neighbour is 0. A NaN compares false and gives 0; [`absmean`]
/// is what refuses it. Scale 0 gives 0 for every weight.
///
/// The scale is meant to come from [`absmean`]. For an fp16 value the half is exact in f32, so the
/// tie is where it should be, down to the smallest subnormal.
#[inline]
pub fn code(w: f32, scale: f32) -> i8 {
    // An infinite threshold turns every weight into 0, and keeps the comparisons free of branches.
    let half = if scale > 0.0 { scale * 0.5 } else { f32::INFINITY };
    i8::from(w > half) - i8::from(w < -half)
}

/// The codes of a slice of weights: [`code`] on each element.
///
/// # Panics
///
/// When `codes` and `w` differ in length.
pub fn quantize(w: &[f32], scale: f32, codes: &mut [i8]) {
    assert_eq!(w.len(), codes.len(), "one code per weight");
    for (q, &w) in codes.iter_mut().zip(w) {
        *q = code(w, scale);
    }
}

/// The weights that codes stand for: `code · scale`.
///
/// # Panics
///
/// When `out` and `codes` differ in length.
pub fn dequantize(codes: &[i8], scale: f32, out: &mut [f32]) {
    assert_eq!(codes.len(), out.len(), "one weight per code");
    for (w, &q) in out.iter_mut().zip(codes) {
        *w = f32::from(q) * scale;
    }
}

/// Latent weights that quantise to these codes and this scale: the mean magnitude is the scale, because those that
/// are not zero are as much larger as they are fewer. Rounding of the mean is far below that to fp16.
pub fn latent(codes: &[i8], scale: f32) -> Vec<f32> {
    let count = codes.iter().filter(|code| **code != 0).count();
    let magnitude = (f64::from(scale) * codes.len() as f64 / count.max(1) as f64) as f32;
    codes.iter().map(|&code| f32::from(code) * magnitude).collect()
}
