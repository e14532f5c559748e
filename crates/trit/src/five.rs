//! The five-level codebook {-1, -0.5, 0, 0.5, 1}·s: log2 5 = 2.32 bits of information per weight.
//!
//! Two more levels than [`ternary`](crate::ternary) for matrices that lose too much with three. The
//! code is an *index* from 0 to 4, not a signed number: the level is `(index - 2) / 2 · s`, and index
//! [`ZERO`] stands for 0. Three indices fit a byte ([`pack5`](crate::pack::pack5)).
//!
//! The scale is the same fp16-rounded mean of |w|, re-exported as [`absmean`]: one quantity, one
//! definition. The largest level is therefore the mean, as in the ternary codebook, and 55 % of
//! normally distributed weights land on an outer level (69 % there).

pub use crate::ternary::absmean;

/// The index that stands for a weight of 0.
pub const ZERO: i8 = 2;

/// The levels of the codebook by index, in units of the scale.
pub const LEVELS: [f32; 5] = [-1.0, -0.5, 0.0, 0.5, 1.0];

/// The index, 0 to 4, of the level nearest to `w`.
///
/// This equals `clamp(round_half_even(w / (scale/2)), -2, 2) + 2`: a weight halfway between two
/// levels goes to the one that is an even multiple of scale/2, so ±scale/4 goes to 0 and ±3·scale/4
/// to ±scale. A NaN and a scale of 0 give [`ZERO`].
///
/// The scale is meant to come from [`absmean`]: of an fp16 value, both thresholds are exact in f32
/// (3·scale/4 needs two bits more than the 11 of an fp16).
#[inline]
pub fn code(w: f32, scale: f32) -> i8 {
    // An infinite threshold turns every weight into 0. Infinite weights would pass the second
    // threshold, which is inclusive, so the zero scale leaves early here.
    if scale <= 0.0 {
        return ZERO;
    }
    let (inner, outer) = (scale * 0.25, scale * 0.75);
    // The tie at the inner threshold stays (strict), the one at the outer threshold moves on.
    let up = i8::from(w > inner) + i8::from(w >= outer);
    let down = i8::from(w < -inner) + i8::from(w <= -outer);
    ZERO + up - down
}

/// The indices of a slice of weights: [`code`] on each element.
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

/// The weights that indices stand for: `(index - 2) · 0.5 · scale`.
///
/// An index outside 0 to 4 is not checked here but where codes enter the program,
/// [`unpack5`](crate::pack::unpack5).
///
/// # Panics
///
/// When `out` and `codes` differ in length.
pub fn dequantize(codes: &[i8], scale: f32, out: &mut [f32]) {
    assert_eq!(codes.len(), out.len(), "one weight per code");
    // Exact: half of an fp16 scale and its products with -2..=2 all fit an f32.
    let half = scale * 0.5;
    for (w, &q) in out.iter_mut().zip(codes) {
        *w = (f32::from(q) - f32::from(ZERO)) * half;
    }
}
