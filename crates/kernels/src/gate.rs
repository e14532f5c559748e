//! Gated activations, alone or fused with the RMSNorm and the int8 rows behind them.
//!
//! Fused, the activation of a token exists while its row is made, and not in memory: backward makes it again.

use crate::{Context, Tier, lanes, norm, rows, strips::Parts};

/// The gate's non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `g · sigmoid(g)`.
    Silu,
    /// `max(g, 0)²`.
    Relu2,
}

/// `a[r] = act(gate[r]) · up[r]`, with `gate_up` `[rows][2 · width]` (gate, then up), `a` `[rows][width]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn forward(cx: &Context, gate: Gate, gate_up: &[f32], width: usize, a: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * a.len());
    cx.chunks(a, norm::ROWS * width, |index, a| {
        let gate_up = &gate_up[index * norm::ROWS * 2 * width..];
        for (a, row) in a.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            activate(cx.tier(), gate, row, a);
        }
    });
}

/// [`forward`], RMSNorm with the gain and epsilon `norm` where there is one, and int8 rows: `codes`
/// `[rows][width]`, `scales` `[rows]`; `rstd` `[rows]` as [`norm::forward`] leaves it, untouched without one.
///
/// # Panics
/// The lengths do not fit together.
pub fn forward_quantize(
    cx: &Context,
    gate: Gate,
    gate_up: &[f32],
    norm: Option<(&[f32], f32)>,
    codes: &mut [i8],
    scales: &mut [f32],
    rstd: &mut [f32],
) {
    let rows = scales.len();
    let width = codes.len() / rows.max(1);
    assert!(codes.len() == rows * width && gate_up.len() == 2 * codes.len() && rstd.len() == rows);
    assert!(norm.is_none_or(|(gain, _)| gain.len() == width), "gain and width");
    let codes = Parts::new(codes, norm::ROWS * width);
    let (scales, rstd) = (Parts::new(scales, norm::ROWS), Parts::new(rstd, norm::ROWS));
    cx.each(codes.count(), width, |index, a| {
        // SAFETY: every part goes to one task.
        let (codes, scales, rstd) = unsafe { (codes.get(index), scales.get(index), rstd.get(index)) };
        let gate_up = &gate_up[index * norm::ROWS * 2 * width..];
        let rows = gate_up.chunks_exact(2 * width).zip(codes.chunks_exact_mut(width));
        for ((row, codes), (scale, rstd)) in rows.zip(scales.iter_mut().zip(rstd)) {
            activate(cx.tier(), gate, row, a);
            *scale = match norm {
                Some((gain, eps)) => {
                    *rstd = norm::reciprocal_rms(cx.tier(), a, eps);
                    norm::normalise_in_place(cx.tier(), a, gain, *rstd);
                    rows::quantize_row(cx.tier(), a, codes)
                }
                None => rows::quantize_row(cx.tier(), a, codes),
            };
        }
    });
}

/// Gradient of [`forward`]: `d_gate_up` `[rows][gate then up]` is written from `da` `[rows][width]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn backward(cx: &Context, gate: Gate, gate_up: &[f32], da: &[f32], width: usize, d_gate_up: &mut [f32]) {
    assert!(gate_up.len() == 2 * da.len() && d_gate_up.len() == gate_up.len());
    let parts = Parts::new(d_gate_up, norm::ROWS * 2 * width);
    cx.each(parts.count(), 2 * width, |index, desk| {
        let (slopes, a) = desk.split_at_mut(width);
        // SAFETY: every part goes to one task.
        let d_gate_up = unsafe { parts.get(index) };
        let start = index * norm::ROWS * width;
        let rows = gate_up[2 * start..].chunks_exact(2 * width).zip(da[start..].chunks_exact(width));
        for (d_row, (row, da)) in d_gate_up.chunks_exact_mut(2 * width).zip(rows) {
            activate_keeping(cx.tier(), gate, row, slopes, a);
            backward_row(cx.tier(), gate, row, slopes, da, d_row);
        }
    });
}

/// RMSNorm between the activation and what follows, for its gradient.
pub struct NormBackward<'a> {
    /// `[width]`.
    pub gain: &'a [f32],
    /// `[rows]`, of the forward pass.
    pub rstd: &'a [f32],
    /// `[width]`, written.
    pub d_gain: &'a mut [f32],
}

/// Gradients of [`forward_quantize`], whose rounding they pass straight through: from `dh` `[rows][width]`
/// to `d_gate_up` `[rows][gate then up]` and the same as int8 rows, `codes` and `scales`.
///
/// # Panics
/// The lengths do not fit together.
pub fn backward_quantize(
    cx: &Context,
    gate: Gate,
    gate_up: &[f32],
    dh: &[f32],
    norm: Option<NormBackward<'_>>,
    d_gate_up: &mut [f32],
    codes: &mut [i8],
    scales: &mut [f32],
) {
    let rows = scales.len();
    let width = dh.len() / rows.max(1);
    assert!(dh.len() == rows * width && gate_up.len() == 2 * dh.len());
    assert!(d_gate_up.len() == gate_up.len() && codes.len() == gate_up.len());
    let (norm, d_gain) = match norm {
        Some(NormBackward { gain, rstd, d_gain }) => {
            assert!(gain.len() == width && d_gain.len() == width && rstd.len() == rows);
            (Some((gain, rstd)), d_gain)
        }
        None => (None, &mut [][..]),
    };
    norm::with_partial_gains(cx, rows, d_gain, |partial| {
        let wide = norm::ROWS * 2 * width;
        let (d_gate_up, codes) = (Parts::new(d_gate_up, wide), Parts::new(codes, wide));
        let (scales, partial) = (Parts::new(scales, norm::ROWS), Parts::new(partial, width));
        cx.each(codes.count(), 3 * width, |index, desk| {
            // SAFETY: every part goes to one task.
            let (d_gate_up, codes) = unsafe { (d_gate_up.get(index), codes.get(index)) };
            // SAFETY: as above.
            let (scales, partial) = unsafe { (scales.get(index), partial.get(index)) };
            let (slopes, rest) = desk.split_at_mut(width);
            let (a, da) = rest.split_at_mut(width);
            partial.fill(0.0);
            let first = index * norm::ROWS;
            for (r, scale) in scales.iter_mut().enumerate() {
                let (row, dh) = (&gate_up[(first + r) * 2 * width..], &dh[(first + r) * width..][..width]);
                let row = &row[..2 * width];
                activate_keeping(cx.tier(), gate, row, slopes, a);
                let da = match norm {
                    Some((gain, rstd)) => {
                        norm::backward_row(cx.tier(), dh, a, gain, rstd[first + r], false, da, partial);
                        &*da
                    }
                    None => dh,
                };
                let d_row = &mut d_gate_up[r * 2 * width..][..2 * width];
                backward_row(cx.tier(), gate, row, slopes, da, d_row);
                *scale = rows::quantize_row(cx.tier(), d_row, &mut codes[r * 2 * width..][..2 * width]);
            }
        });
    });
}

/// `a = act(gate) · up` for a row of both.
fn activate(tier: Tier, gate: Gate, row: &[f32], a: &mut [f32]) {
    let (g, u) = row.split_at(a.len());
    match gate {
        Gate::Silu => silu(tier, g, u, a),
        Gate::Relu2 => relu2(tier, g, u, a),
    }
}

/// [`activate`], and what the gradient needs of the gate: its logistic function, or its positive part.
fn activate_keeping(tier: Tier, gate: Gate, row: &[f32], slopes: &mut [f32], a: &mut [f32]) {
    let (g, u) = row.split_at(a.len());
    match gate {
        Gate::Silu => silu_keeping(tier, g, u, slopes, a),
        Gate::Relu2 => relu2_keeping(tier, g, u, slopes, a),
    }
}

/// The gradient of a row from that of its activation.
fn backward_row(tier: Tier, gate: Gate, row: &[f32], slopes: &[f32], da: &[f32], d_row: &mut [f32]) {
    let ((g, u), (dg, du)) = (row.split_at(da.len()), d_row.split_at_mut(da.len()));
    match gate {
        Gate::Silu => silu_backward(tier, g, u, slopes, da, dg, du),
        Gate::Relu2 => relu2_backward(tier, u, slopes, da, dg, du),
    }
}

tiered! {
    fn silu(g: &[f32], u: &[f32], a: &mut [f32]) {
        for ((a, g), u) in a.iter_mut().zip(g).zip(u) {
            *a = g * lanes::sigmoid(*g) * u;
        }
    }
}

tiered! {
    fn silu_keeping(g: &[f32], u: &[f32], s: &mut [f32], a: &mut [f32]) {
        for (((s, a), g), u) in s.iter_mut().zip(a).zip(g).zip(u) {
            *s = lanes::sigmoid(*g);
            *a = g * *s * u;
        }
    }
}

tiered! {
    fn relu2(g: &[f32], u: &[f32], a: &mut [f32]) {
        for ((a, g), u) in a.iter_mut().zip(g).zip(u) {
            let positive = if *g < 0.0 { 0.0 } else { *g };
            *a = positive * positive * u;
        }
    }
}

tiered! {
    fn relu2_keeping(g: &[f32], u: &[f32], s: &mut [f32], a: &mut [f32]) {
        for (((s, a), g), u) in s.iter_mut().zip(a).zip(g).zip(u) {
            *s = if *g < 0.0 { 0.0 } else { *g };
            *a = *s * *s * u;
        }
    }
}

tiered! {
    fn silu_backward(g: &[f32], u: &[f32], s: &[f32], da: &[f32], dg: &mut [f32], du: &mut [f32]) {
        let n = da.len();
        let (g, u, s, dg, du) = (&g[..n], &u[..n], &s[..n], &mut dg[..n], &mut du[..n]);
        for i in 0..n {
            du[i] = da[i] * g[i] * s[i];
            dg[i] = da[i] * u[i] * s[i] * (g[i] * (1.0 - s[i]) + 1.0);
        }
    }
}

tiered! {
    fn relu2_backward(u: &[f32], s: &[f32], da: &[f32], dg: &mut [f32], du: &mut [f32]) {
        let n = da.len();
        let (u, s, dg, du) = (&u[..n], &s[..n], &mut dg[..n], &mut du[..n]);
        for i in 0..n {
            du[i] = da[i] * s[i] * s[i];
            dg[i] = da[i] * u[i] * 2.0 * s[i];
        }
    }
}
