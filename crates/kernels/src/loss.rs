//! The output head fused with its cross entropy, so that the logits of a batch never exist at once.
//!
//! Tokens go through in chunks, in order: logits of the chunk by one GEMM, a pass over its rows that
//! leaves the loss and turns logits into their gradients in place, two GEMMs back. The scratch is the
//! logits of one chunk. The gradient of the head is a sum over tokens: each chunk adds its part after
//! the one before, whatever the number of threads.

use crate::Context;
use crate::lanes;
use crate::matmul::{View, matmul};

/// Most tokens in a chunk.
const CHUNK: usize = 512;

/// Most logits in a chunk: 8 MiB.
const SCRATCH: usize = 1 << 21;

/// Rows above which logits are worth a GEMM. Below, its packing of the head costs more than it saves.
const FEW_ROWS: usize = 4;

/// Natural logarithm of a positive normal number, within 1 ulp; NaN and infinity come back as they are.
///
/// `x = m·2^e` with `m` in [√½, √2), then a polynomial in `m − 1` (coefficients of Cephes `logf`): the
/// system's logarithm differs between systems.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    const SQRT_HALF: i32 = 0x3f35_04f3; // bits of √½
    let bits = x.to_bits() as i32;
    let exponent = bits.wrapping_sub(SQRT_HALF) >> 23;
    let m = f32::from_bits(bits.wrapping_sub(exponent << 23) as u32) - 1.0;
    let e = exponent as f32;
    let square = m * m;
    let mut p = 7.037_683_6e-2f32;
    p = p.mul_add(m, -1.151_461e-1);
    p = p.mul_add(m, 1.167_699_9e-1);
    p = p.mul_add(m, -1.242_014_1e-1);
    p = p.mul_add(m, 1.424_932_3e-1);
    p = p.mul_add(m, -1.666_805_8e-1);
    p = p.mul_add(m, 2.000_071_5e-1);
    p = p.mul_add(m, -2.499_999_4e-1);
    p = p.mul_add(m, 3.333_333e-1);
    let low = e.mul_add(-2.121_944_4e-4, square * (m * p));
    let result = e.mul_add(0.693_359_4, m + square.mul_add(-0.5, low));
    if x < f32::INFINITY { result } else { x }
}

/// `e^x` within 1 ulp for `x ≤ 88`, 0 from −88 down, NaN for NaN: [`lanes::exp`] without what keeps
/// larger numbers right, in 0.6 of its time. The difference to a maximum needs no more.
#[inline(always)]
pub(crate) fn exp_bounded(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to an integer, held in the low bits
    let clamped = if x < -88.0 { -88.0 } else { x };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // 2^n from its exponent. At −88, n + 127 is 0, and those bits are the number 0.
    y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// Replaces each `x` by `e^(x − max)` and returns the sum.
#[inline(always)]
pub(crate) fn exp_sum(row: &mut [f32], max: f32) -> f32 {
    // Two loops: as one, the compiler vectorises the lanes of a single step, three times as slow.
    for x in row.iter_mut() {
        *x = exp_bounded(*x - max);
    }
    lanes::sum_of(row, |x| x)
}

/// Tokens per chunk for a vocabulary: a function of sizes alone, since it orders the sums of `d_head`.
fn chunk_rows(vocab: usize) -> usize {
    (SCRATCH / vocab).clamp(1, CHUNK)
}

/// Cross entropy of the output head, in nats, and its gradients.
///
/// `hidden` `[n, dim]`, already normalised; `head` `[vocab, dim]`; `targets` `[n]`. Writes `losses`
/// `[n]`, `ln Σ exp(hidden·head) − hidden·head[target]` of each token.
///
/// With `gradients = (d_hidden, d_head)`, `d_hidden` `[n, dim]` is written and `d_head` `[vocab, dim]`
/// is *added* to. Both belong to the mean loss: `d logits = (softmax − onehot) / n`.
///
/// # Panics
/// A slice does not fit the others, `dim` is zero, or a target is not below `vocab`.
pub fn head_cross_entropy(
    cx: &Context,
    hidden: &[f32],
    head: &[f32],
    targets: &[u32],
    dim: usize,
    losses: &mut [f32],
    mut gradients: Option<(&mut [f32], &mut [f32])>,
) {
    let (n, vocab) = (targets.len(), head.len() / dim);
    assert_eq!(head.len(), vocab * dim, "head is no whole number of rows");
    assert_eq!(hidden.len(), n * dim, "hidden and targets");
    assert_eq!(losses.len(), n, "losses and targets");
    if let Some((d_hidden, d_head)) = &gradients {
        assert_eq!(d_hidden.len(), hidden.len(), "d_hidden and hidden");
        assert_eq!(d_head.len(), head.len(), "d_head and head");
    }
    for target in targets {
        assert!((*target as usize) < vocab, "target {target} in a vocabulary of {vocab}");
    }
    if n == 0 {
        return;
    }
    let head = View::new(head, vocab, dim);
    let scale = gradients.is_some().then_some(1.0 / n as f32);
    let rows = chunk_rows(vocab).min(n);
    let mut scratch = vec![0.0; rows * vocab];
    for (first, (targets, losses)) in
        (0..n).step_by(rows).zip(targets.chunks(rows).zip(losses.chunks_mut(rows)))
    {
        let rows = targets.len();
        let logits = &mut scratch[..rows * vocab];
        let span = first * dim..(first + rows) * dim;
        let x = View::new(&hidden[span.clone()], rows, dim);
        matmul(cx, x, head.t(), 0.0, logits);
        entropy(cx, logits, targets, losses, vocab, scale);
        if let Some((d_hidden, d_head)) = &mut gradients {
            let d_logits = View::new(logits, rows, vocab);
            matmul(cx, d_logits, head, 0.0, &mut d_hidden[span]);
            matmul(cx, d_logits.t(), x, 1.0, d_head);
        }
    }
}

/// `logits` `[rows, vocab]` become `scale·(softmax − onehot)`; without a scale they are scratch.
fn entropy(
    cx: &Context,
    logits: &mut [f32],
    targets: &[u32],
    losses: &mut [f32],
    vocab: usize,
    scale: Option<f32>,
) {
    // 64 KiB and more per task.
    let rows = (1_usize << 14).div_ceil(vocab);
    cx.chunks2((logits, rows * vocab), (losses, rows), |index, logits, losses| {
        entropy_rows(cx.tier(), logits, &targets[index * rows..][..losses.len()], losses, vocab, scale);
    });
}

tiered! {
    /// [`entropy`] of some rows.
    fn entropy_rows(
        logits: &mut [f32],
        targets: &[u32],
        losses: &mut [f32],
        vocab: usize,
        scale: Option<f32>,
    ) {
        for ((row, target), loss) in logits.chunks_exact_mut(vocab).zip(targets).zip(losses) {
            let target = *target as usize;
            let max = lanes::max(row);
            // Both terms are ≥ 0 and the second is exact for near maxima: no cancellation of large logits.
            let gap = max - row[target];
            let sum = exp_sum(row, max);
            *loss = ln(sum) + gap;
            if let Some(scale) = scale {
                let factor = scale / sum;
                for p in row.iter_mut() {
                    *p *= factor;
                }
                row[target] -= scale;
            }
        }
    }
}

/// Logits of a few tokens, for generation: `hidden` `[rows, dim]`, `head` `[vocab, dim]`, writes
/// `logits` `[rows, vocab]`.
///
/// # Panics
/// A slice does not fit the others, or `dim` is zero.
pub fn head_logits(cx: &Context, hidden: &[f32], head: &[f32], dim: usize, logits: &mut [f32]) {
    let (rows, vocab) = (hidden.len() / dim, head.len() / dim);
    assert_eq!(hidden.len(), rows * dim, "hidden is no whole number of rows");
    assert_eq!(head.len(), vocab * dim, "head is no whole number of rows");
    assert_eq!(logits.len(), rows * vocab, "logits");
    if logits.is_empty() {
        return;
    }
    if rows > FEW_ROWS {
        matmul(cx, View::new(hidden, rows, dim), View::new(head, vocab, dim).t(), 0.0, logits);
        return;
    }
    // 256 KiB of the head per task.
    let words = (1_usize << 16).div_ceil(dim);
    for (x, logits) in hidden.chunks_exact(dim).zip(logits.chunks_exact_mut(vocab)) {
        cx.chunks(logits, words, |index, part| {
            dots(cx.tier(), x, &head[index * words * dim..][..part.len() * dim], part);
        });
    }
}

tiered! {
    /// Dot product of `x` with each row of `matrix` `[out.len(), x.len()]`.
    fn dots(x: &[f32], matrix: &[f32], out: &mut [f32]) {
        for (row, out) in matrix.chunks_exact(x.len()).zip(out) {
            *out = lanes::dot(x, row);
        }
    }
}
