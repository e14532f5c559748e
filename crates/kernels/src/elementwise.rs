//! Gated activations, and reductions over whole buffers.

use crate::{Context, lanes};

/// The gate's non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `g · sigmoid(g)`.
    Silu,
    /// `max(g, 0)²`.
    Relu2,
}

/// Rows of one task.
const ROWS: usize = 16;

/// `a[r] = act(gate[r]) · up[r]`, with `gate_up` `[rows][2 · width]` (gate, then up), `a` `[rows][width]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn glu(cx: &Context, gate: Gate, gate_up: &[f32], width: usize, a: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * a.len());
    cx.chunks(a, ROWS * width, |index, a| {
        let gate_up = &gate_up[index * ROWS * 2 * width..];
        for (a, row) in a.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (g, u) = row.split_at(width);
            match gate {
                Gate::Silu => silu_row(cx.tier(), g, u, a),
                Gate::Relu2 => relu2_row(cx.tier(), g, u, a),
            }
        }
    });
}

tiered! {
    fn silu_row(g: &[f32], u: &[f32], a: &mut [f32]) {
        for ((a, g), u) in a.iter_mut().zip(g).zip(u) {
            *a = g * lanes::sigmoid(*g) * u;
        }
    }
}

tiered! {
    fn relu2_row(g: &[f32], u: &[f32], a: &mut [f32]) {
        for ((a, g), u) in a.iter_mut().zip(g).zip(u) {
            let positive = if *g < 0.0 { 0.0 } else { *g };
            *a = positive * positive * u;
        }
    }
}

/// Gradient of [`glu`]: `d_gate_up` `[rows][gate then up]` is written from `da` `[rows][width]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn glu_backward(
    cx: &Context,
    gate: Gate,
    gate_up: &[f32],
    da: &[f32],
    width: usize,
    d_gate_up: &mut [f32],
) {
    assert!(gate_up.len() == 2 * da.len() && d_gate_up.len() == gate_up.len());
    cx.chunks(d_gate_up, ROWS * 2 * width, |index, d_gate_up| {
        let (gate_up, da) = (&gate_up[index * ROWS * 2 * width..], &da[index * ROWS * width..]);
        let rows = gate_up.chunks_exact(2 * width).zip(da.chunks_exact(width));
        for (d_row, (row, da)) in d_gate_up.chunks_exact_mut(2 * width).zip(rows) {
            let ((g, u), (dg, du)) = (row.split_at(width), d_row.split_at_mut(width));
            match gate {
                Gate::Silu => silu_backward_row(cx.tier(), g, u, da, dg, du),
                Gate::Relu2 => relu2_backward_row(cx.tier(), g, u, da, dg, du),
            }
        }
    });
}

tiered! {
    fn silu_backward_row(g: &[f32], u: &[f32], da: &[f32], dg: &mut [f32], du: &mut [f32]) {
        let n = da.len();
        let (g, u, dg, du) = (&g[..n], &u[..n], &mut dg[..n], &mut du[..n]);
        for i in 0..n {
            let s = lanes::sigmoid(g[i]);
            du[i] = da[i] * g[i] * s;
            dg[i] = da[i] * u[i] * s * (g[i] * (1.0 - s) + 1.0);
        }
    }
}

tiered! {
    fn relu2_backward_row(g: &[f32], u: &[f32], da: &[f32], dg: &mut [f32], du: &mut [f32]) {
        let n = da.len();
        let (g, u, dg, du) = (&g[..n], &u[..n], &mut dg[..n], &mut du[..n]);
        for i in 0..n {
            let positive = if g[i] < 0.0 { 0.0 } else { g[i] };
            du[i] = da[i] * positive * positive;
            dg[i] = da[i] * u[i] * 2.0 * positive;
        }
    }
}

/// Elements of one partial sum.
const BLOCK: usize = 4096;

/// `Σ x²`, in blocks of 4096: eight lanes of f32 inside, f64 between, in order.
pub fn sum_squares(cx: &Context, x: &[f32]) -> f64 {
    block_sums(cx, x, square_sum)
}

/// `Σ x`, in the same blocks.
pub fn sum(cx: &Context, x: &[f32]) -> f64 {
    block_sums(cx, x, plain_sum)
}

/// `Σ |x|`, in the blocks and lanes that `trit::ternary::absmean` defines.
pub fn sum_abs(cx: &Context, x: &[f32]) -> f64 {
    block_sums(cx, x, abs_sum)
}

fn block_sums(cx: &Context, x: &[f32], sum: impl Fn(crate::Tier, &[f32]) -> f32 + Sync + Send) -> f64 {
    let count = x.len().div_ceil(BLOCK);
    let one = |block: usize| sum(cx.tier(), &x[block * BLOCK..x.len().min((block + 1) * BLOCK)]);
    cx.with_floats(count, |sums| {
        cx.chunks(sums, 4, |first, sums| {
            for (at, sum) in sums.iter_mut().enumerate() {
                *sum = one(4 * first + at);
            }
        });
        sums.iter().copied().map(f64::from).sum()
    })
}

tiered! {
    fn square_sum(x: &[f32]) -> f32 {
        lanes::dot(x, x)
    }
}

tiered! {
    fn plain_sum(x: &[f32]) -> f32 {
        lanes::sum_of(x, |v| v)
    }
}

tiered! {
    fn abs_sum(x: &[f32]) -> f32 {
        lanes::sum_of(x, f32::abs)
    }
}

/// Codes of a ternary matrix from its latent weights: sign where |w| > scale/2, else 0.
///
/// # Panics
/// The lengths differ.
pub fn ternarize(cx: &Context, w: &[f32], scale: f32, codes: &mut [i8]) {
    assert_eq!(w.len(), codes.len());
    cx.chunks(codes, 4 * BLOCK, |index, codes| {
        ternarize_block(cx.tier(), &w[index * 4 * BLOCK..][..codes.len()], scale * 0.5, codes);
    });
}

tiered! {
    fn ternarize_block(w: &[f32], threshold: f32, codes: &mut [i8]) {
        for (code, w) in codes.iter_mut().zip(w) {
            *code = i8::from(*w > threshold) - i8::from(*w < -threshold);
        }
    }
}
