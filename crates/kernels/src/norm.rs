//! RMSNorm (Zhang and Sennrich, 1910.07467), forward and backward, alone or fused with int8 rows.

use crate::{
    Context,
    lanes::{self, LANES},
    rows,
};

/// Rows of one task, and of one partial sum of the gain's gradient.
const ROWS: usize = 32;

/// `h[r] = gain · x[r] / rms(x[r])`, and the reciprocal root mean squares for the backward pass.
///
/// `x`, `h` `[rows][cols]`, `gain` `[cols]`, `rstd` `[rows]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn forward(cx: &Context, x: &[f32], gain: &[f32], eps: f32, h: &mut [f32], rstd: &mut [f32]) {
    let cols = gain.len();
    assert!(x.len() == h.len() && x.len() == rstd.len() * cols);
    cx.chunks2((h, ROWS * cols), (rstd, ROWS), |index, h, rstd| {
        let x = &x[index * ROWS * cols..][..h.len()];
        for ((x, h), rstd) in x.chunks_exact(cols).zip(h.chunks_exact_mut(cols)).zip(rstd) {
            *rstd = reciprocal_rms(cx.tier(), x, eps);
            normalise_row(cx.tier(), x, gain, *rstd, h);
        }
    });
}

tiered! {
    /// A function of its own: inside a larger one the compiler leaves the dot product scalar.
    fn reciprocal_rms(x: &[f32], eps: f32) -> f32 {
        1.0 / (lanes::dot(x, x) / x.len() as f32 + eps).sqrt()
    }
}

tiered! {
    fn normalise_row(x: &[f32], gain: &[f32], rstd: f32, h: &mut [f32]) {
        normalise(x, gain, rstd, h);
    }
}

/// [`forward`] and [`rows::quantize`] in one pass: `codes` `[rows][cols]`, `scales` `[rows]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn forward_quantize(
    cx: &Context,
    x: &[f32],
    gain: &[f32],
    eps: f32,
    codes: &mut [i8],
    scales: &mut [f32],
    rstd: &mut [f32],
) {
    let cols = gain.len();
    assert!(x.len() == codes.len() && x.len() == rstd.len() * cols && rstd.len() == scales.len());
    cx.chunks3((codes, ROWS * cols), (scales, ROWS), (rstd, ROWS), |index, codes, scales, rstd| {
        let x = &x[index * ROWS * cols..][..codes.len()];
        for (((x, codes), scale), rstd) in
            x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)).zip(scales).zip(rstd)
        {
            *rstd = reciprocal_rms(cx.tier(), x, eps);
            *scale = normalise_quantize_row(cx.tier(), x, gain, *rstd, codes);
        }
    });
}

tiered! {
    /// Codes and scale of a row. The normalised row exists in parts, twice.
    fn normalise_quantize_row(x: &[f32], gain: &[f32], rstd: f32, codes: &mut [i8]) -> f32 {
        const PART: usize = 256;
        let mut h = [0.0; PART];
        let mut largest = 0.0f32;
        for (x, gain) in x.chunks(PART).zip(gain.chunks(PART)) {
            let h = normalise(x, gain, rstd, &mut h);
            largest = f32::from_bits(largest.to_bits().max(lanes::max_abs(h).to_bits()));
        }
        let (scale, inverse) = rows::scale(largest);
        for ((x, gain), codes) in x.chunks(PART).zip(gain.chunks(PART)).zip(codes.chunks_mut(PART)) {
            rows::codes(normalise(x, gain, rstd, &mut h), inverse, codes);
        }
        scale
    }
}

#[inline(always)]
fn normalise<'a>(x: &[f32], gain: &[f32], rstd: f32, h: &'a mut [f32]) -> &'a [f32] {
    let h = &mut h[..x.len()];
    for ((h, x), gain) in h.iter_mut().zip(x).zip(gain) {
        *h = x * rstd * gain;
    }
    h
}

/// Gradients of [`forward`]: added to `dx`, written to `d_gain`.
///
/// `dh`, `x`, `dx` `[rows][cols]`, `rstd` `[rows]`, `gain`, `d_gain` `[cols]`. With `add` false `dx` is
/// replaced.
///
/// # Panics
/// The lengths do not fit together.
pub fn backward(
    cx: &Context,
    dh: &[f32],
    x: &[f32],
    gain: &[f32],
    rstd: &[f32],
    add: bool,
    dx: &mut [f32],
    d_gain: &mut [f32],
) {
    let cols = gain.len();
    assert!(
        x.len() == dh.len() && x.len() == dx.len() && x.len() == rstd.len() * cols && d_gain.len() == cols
    );
    cx.with_floats(rstd.len().div_ceil(ROWS) * cols, |partial| {
        cx.chunks2((dx, ROWS * cols), (partial, cols), |index, dx, partial| {
            partial.fill(0.0);
            let start = index * ROWS * cols;
            let (x, dh) = (&x[start..][..dx.len()], &dh[start..][..dx.len()]);
            let rows = x.chunks_exact(cols).zip(dh.chunks_exact(cols)).zip(&rstd[index * ROWS..]);
            for (((x, dh), rstd), dx) in rows.zip(dx.chunks_exact_mut(cols)) {
                let mean = weighted_dot(cx.tier(), dh, gain, x) * rstd * rstd / cols as f32;
                backward_row(cx.tier(), dh, x, gain, (*rstd, mean), add, dx, partial);
            }
        });
        d_gain.fill(0.0);
        for partial in partial.chunks_exact(cols) {
            for (total, part) in d_gain.iter_mut().zip(partial) {
                *total += part;
            }
        }
    });
}

tiered! {
    /// `Σ dh·gain·x`
    fn weighted_dot(dh: &[f32], gain: &[f32], x: &[f32]) -> f32 {
        let mut acc = [0.0; LANES];
        let ((x, x_tail), (dh, dh_tail)) = (x.as_chunks::<LANES>(), dh.as_chunks::<LANES>());
        let (gain, gain_tail) = gain.as_chunks::<LANES>();
        for ((x, dh), gain) in x.iter().zip(dh).zip(gain) {
            for l in 0..LANES {
                acc[l] = (dh[l] * gain[l]).mul_add(x[l], acc[l]);
            }
        }
        for (acc, ((x, dh), gain)) in acc.iter_mut().zip(x_tail.iter().zip(dh_tail).zip(gain_tail)) {
            *acc = (dh * gain).mul_add(*x, *acc);
        }
        lanes::total(acc)
    }
}

tiered! {
    fn backward_row(
        dh: &[f32],
        x: &[f32],
        gain: &[f32],
        means: (f32, f32),
        add: bool,
        dx: &mut [f32],
        d_gain: &mut [f32],
    ) {
        let (n, (rstd, mean)) = (x.len(), means);
        let (dh, gain, dx, d_gain) = (&dh[..n], &gain[..n], &mut dx[..n], &mut d_gain[..n]);
        // One loop for each case: a choice inside would be made for every element.
        if add {
            for i in 0..n {
                dx[i] += rstd * (dh[i] * gain[i] - x[i] * mean);
                d_gain[i] = (dh[i] * rstd).mul_add(x[i], d_gain[i]);
            }
        } else {
            for i in 0..n {
                dx[i] = rstd * (dh[i] * gain[i] - x[i] * mean);
                d_gain[i] = (dh[i] * rstd).mul_add(x[i], d_gain[i]);
            }
        }
    }
}
