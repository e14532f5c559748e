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
            let sum = lanes::exp_sum(row, max);
            *loss = lanes::ln(sum) + gap;
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
