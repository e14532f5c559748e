//! RMSNorm (Zhang and Sennrich, 1910.07467), forward and backward, alone or fused with int8 rows.

use crate::{
    Context, Tier,
    lanes::{self, LANES},
    rows,
    strips::Parts,
};

/// Rows of one task, and of one partial sum of the gain's gradient.
pub(crate) const ROWS: usize = 32;

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
    pub(crate) fn reciprocal_rms(x: &[f32], eps: f32) -> f32 {
        1.0 / (lanes::dot(x, x) / x.len() as f32 + eps).sqrt()
    }
}

tiered! {
    pub(crate) fn normalise_in_place(x: &mut [f32], gain: &[f32], rstd: f32) {
        for (x, gain) in x.iter_mut().zip(gain) {
            *x = *x * rstd * gain;
        }
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

/// Gradients of [`forward`]: written to `dx` or, with `add`, added to it; written to `d_gain`.
///
/// `dh`, `x`, `dx` `[rows][cols]`, `rstd` `[rows]`, `gain`, `d_gain` `[cols]`. With `rows`, `dx` as it is
/// then is quantised as by [`rows::quantize`]: codes `[rows][cols]`, scales `[rows]`.
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
    rows: Option<(&mut [i8], &mut [f32])>,
) {
    let cols = gain.len();
    assert!(
        x.len() == dh.len() && x.len() == dx.len() && x.len() == rstd.len() * cols && d_gain.len() == cols
    );
    let quantise = rows.is_some();
    let (codes, scales) = rows.unwrap_or_default();
    assert!(!quantise || codes.len() == dx.len() && scales.len() == rstd.len());
    with_partial_gains(cx, rstd.len(), d_gain, |partial| {
        let (dx, partial) = (Parts::new(dx, ROWS * cols), Parts::new(partial, cols));
        let (codes, scales) = (Parts::new(codes, ROWS * cols), Parts::new(scales, ROWS));
        cx.tasks(dx.count(), |index| {
            // SAFETY: every part goes to one task.
            let (dx, partial) = unsafe { (dx.get(index), partial.get(index)) };
            // SAFETY: as above; both are empty where nobody asks for rows.
            let (codes, scales) = unsafe { (codes.get(index), scales.get(index)) };
            partial.fill(0.0);
            for (r, dx) in dx.chunks_exact_mut(cols).enumerate() {
                let row = index * ROWS + r;
                let [x, dh] = [x, dh].map(|matrix| &matrix[row * cols..][..cols]);
                backward_row(cx.tier(), dh, x, gain, rstd[row], add, dx, partial);
                if quantise {
                    scales[r] = rows::quantize_row(cx.tier(), dx, &mut codes[r * cols..][..cols]);
                }
            }
        });
    });
}

/// Columns of a gain's gradient that one task sums.
const COLS: usize = 128;

/// Lends `work` a partial sum of `d_gain` for each [`ROWS`] of `rows`, and adds them up in order.
pub(crate) fn with_partial_gains(
    cx: &Context,
    rows: usize,
    d_gain: &mut [f32],
    work: impl FnOnce(&mut [f32]),
) {
    let cols = d_gain.len();
    cx.with_floats(rows.div_ceil(ROWS) * cols, |partial| {
        work(partial);
        let partial = &*partial;
        cx.chunks(d_gain, COLS, |index, d_gain| {
            d_gain.fill(0.0);
            for partial in partial.chunks_exact(cols) {
                for (total, part) in d_gain.iter_mut().zip(&partial[index * COLS..]) {
                    *total += part;
                }
            }
        });
    });
}

/// One row of [`backward`].
pub(crate) fn backward_row(
    tier: Tier,
    dh: &[f32],
    x: &[f32],
    gain: &[f32],
    rstd: f32,
    add: bool,
    dx: &mut [f32],
    d_gain: &mut [f32],
) {
    let mean = weighted_dot(tier, dh, gain, x) * rstd * rstd / gain.len() as f32;
    differentiate_row(tier, dh, x, gain, (rstd, mean), add, dx, d_gain);
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
    fn differentiate_row(
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
