//! The output head fused with its cross entropy, so that the logits of a batch never exist at once.
//!
//! Tokens go through in chunks, in order: logits of the chunk by one product, a pass over its rows that
//! leaves the loss and turns logits into probabilities in place, two products back. The scratch is the
//! logits of one chunk. The gradient of the head is a sum over tokens: each chunk adds its part after
//! the one before, whatever the number of threads.
//!
//! With [`Products::Int16`] logits are sums of products of 12-bit integers, exact in i32, with one scale
//! per token and one per row of the head. Backward, probabilities are int16 with one scale per token (for
//! `d_hidden`) or per row of the head (for `d_head`), and hidden and head are int8. A probability smaller
//! than 1/65534 of the largest that shares its scale becomes zero. Targets are subtracted apart, exactly:
//! they are so much larger than most probabilities that a common scale would lose those.

use tritrain_trit::NO_TARGET;

use crate::{
    Context, Store, Tier, dots, lanes,
    matmul::{View, matmul},
    outer::{
        self, Kind, Left, Right, left_room, product_of, quantise_left_rows, quantise_right_rows, right_room,
        round_columns, weight_gradient_of,
    },
    rows,
    strips::Rect,
};

/// Most tokens in a chunk.
const CHUNK: usize = 512;

/// Most logits in a chunk: 32 MiB. Every chunk reads and writes the gradient of the head once.
const SCRATCH: usize = 1 << 23;

/// Rows of a task that subtracts targets.
const ROWS: usize = 64;

/// How the output head multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// By the f32 GEMM.
    F32,
    /// Rounded to integers of up to 16 bits, by scales per row.
    Int16,
}

/// Which gradients are wanted, and of what.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// They belong to the sum of losses times this.
    pub weight: f32,
    /// `[n, dim]`, written.
    pub d_hidden: &'a mut [f32],
    /// `[vocab, dim]`, *added* to; none for a head that is not trained.
    pub d_head: Option<&'a mut [f32]>,
}

/// Working memory of [`head_cross_entropy`], kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    logits: Vec<f32>,
    /// One row of hidden states.
    rounded: dots::Rounded,
    integers: Integers,
}

/// What [`Products::Int16`] multiplies.
#[derive(Debug, Default)]
struct Integers {
    /// Hidden states of a chunk in 12 bits.
    hidden: Left,
    /// The head in 12 bits, one column per token of the vocabulary.
    head: Right,
    /// Hidden states of a chunk as int8 rows.
    hidden_rows: Int8,
    /// The head as int8 rows, laid out as columns over the vocabulary, and their scales.
    head_columns: Right,
    head_scales: Vec<f32>,
    /// Some of those rows, on their way there.
    head_codes: Vec<i8>,
    /// Probabilities of a chunk by token, times the scales of `head_rows`.
    probabilities: Left,
    outer: outer::Scratch,
}

/// Int8 rows with a scale each.
#[derive(Debug, Default)]
struct Int8 {
    codes: Vec<i8>,
    scales: Vec<f32>,
}

impl Int8 {
    fn quantize(&mut self, cx: &Context, x: &[f32], cols: usize) {
        self.codes.resize(x.len(), 0);
        self.scales.resize(x.len() / cols, 0.0);
        rows::quantize(cx, x, &mut self.codes, &mut self.scales);
    }

    /// `from -= factor · row`, with one of the rows.
    fn subtract(&self, tier: Tier, row: usize, factor: f32, from: &mut [f32]) {
        subtract(tier, &self.codes[row * from.len()..][..from.len()], factor * self.scales[row], from);
    }
}

tiered! {
    fn subtract(codes: &[i8], factor: f32, from: &mut [f32]) {
        for (from, code) in from.iter_mut().zip(codes) {
            *from -= f32::from(*code) * factor;
        }
    }
}

tiered! {
    /// `from -= factor · x`, with `x` as int8 row and scale.
    fn subtract_rounded(x: &[f32], factor: f32, from: &mut [f32]) {
        let (scale, inverse) = rows::scale(lanes::max_abs(x));
        let factor = factor * scale;
        for (from, x) in from.iter_mut().zip(x) {
            *from -= lanes::round(x * inverse) as f32 * factor;
        }
    }
}

impl Integers {
    /// Rounds the head, `[vocab, dim]`, unless only `words` of it are to be rounded at a time.
    fn set_head(&mut self, cx: &Context, (head, dim): (&[f32], usize), words: usize, gradients: bool) {
        let whole = words * dim >= head.len();
        if whole {
            quantise_right_rows(cx, Kind::Twelve, head, dim, &mut self.head);
        }
        if gradients {
            let (codes, scales) = (&mut self.head_codes, &mut self.head_scales);
            scales.resize(head.len() / dim, 0.0);
            if whole {
                round_columns(cx, Kind::Int16, head, dim, codes, scales, &mut self.head_columns);
            } else {
                rows::scales(cx, head, scales);
            }
        }
    }

    /// `logits = hidden·headᵀ`, `words` of the head at a time.
    fn logits(
        &mut self,
        cx: &Context,
        hidden: &[f32],
        (head, dim): (&[f32], usize),
        words: usize,
        logits: &mut [f32],
    ) {
        let (rows, vocab) = (hidden.len() / dim, head.len() / dim);
        quantise_left_rows(cx, Kind::Twelve, hidden, &[], dim, &mut self.hidden);
        let mut y = Rect::of(logits, vocab);
        for (at, head) in head.chunks(words * dim).enumerate() {
            if words < vocab {
                quantise_right_rows(cx, Kind::Twelve, head, dim, &mut self.head);
            }
            let part = at * words..at * words + head.len() / dim;
            let y = y.part(0..rows, part);
            product_of(cx, Kind::Twelve, (&self.hidden, 0), &self.head, Store::Replace, y);
        }
    }

    /// With `d_logits = p − scale·onehot`, from `p`: `d_hidden = d_logits·head` and
    /// `d_head += d_logitsᵀ·hidden`.
    fn backward(
        &mut self,
        cx: &Context,
        p: &[f32],
        (targets, scale): (&[u32], f32),
        (hidden, head, dim): (&[f32], &[f32], usize),
        words: usize,
        (d_hidden, d_head): (&mut [f32], Option<&mut [f32]>),
    ) {
        let (vocab, by_token) = (head.len() / dim, &mut self.probabilities);
        quantise_left_rows(cx, Kind::Int16, p, &self.head_scales, vocab, by_token);
        let scales = self.head_scales.chunks_mut(words);
        for (at, (head, scales)) in head.chunks(words * dim).zip(scales).enumerate() {
            if words < vocab {
                let codes = &mut self.head_codes;
                round_columns(cx, Kind::Int16, head, dim, codes, scales, &mut self.head_columns);
            }
            let left = (&*by_token, at * words / outer::BLOCK);
            let store = if at == 0 { Store::Replace } else { Store::Add };
            product_of(cx, Kind::Int16, left, &self.head_columns, store, Rect::of(d_hidden, dim));
        }
        cx.chunks(d_hidden, ROWS * dim, |index, d_hidden| {
            for (row, target) in d_hidden.chunks_exact_mut(dim).zip(&targets[index * ROWS..]) {
                if *target != NO_TARGET {
                    subtract_rounded(cx.tier(), &head[*target as usize * dim..][..dim], scale, row);
                }
            }
        });
        let Some(d_head) = d_head else { return };
        let rows = &mut self.hidden_rows;
        rows.quantize(cx, hidden, dim);
        let scratch = &mut self.outer;
        weight_gradient_of(cx, Kind::Int16, p, &rows.scales, &rows.codes, Store::Add, scratch, d_head);
        cx.chunks(d_head, ROWS * dim, |index, d_head| {
            let words = index * ROWS..index * ROWS + d_head.len() / dim;
            for (t, target) in targets.iter().enumerate() {
                let word = *target as usize;
                if words.contains(&word) {
                    let row = &mut d_head[(word - words.start) * dim..][..dim];
                    rows.subtract(cx.tier(), t, scale, row);
                }
            }
        });
    }
}

/// Rows above which logits are worth a GEMM. Below, its packing of the head costs more than it saves.
const FEW_ROWS: usize = 4;

/// Tokens per chunk for a vocabulary: a function of sizes alone, since it orders the sums of `d_head`.
fn chunk_rows(vocab: usize) -> usize {
    (SCRATCH / vocab).clamp(1, CHUNK)
}

/// Words of the head that are rounded at once: all, where many tokens share the work; few, where a large head in
/// twelve bits and in eight would be more than everything else of it. Results are the same.
fn words_at_once(tokens: usize, vocab: usize) -> usize {
    /// Whole blocks of the inner index of the product with the head.
    const FEW: usize = 16 * outer::BLOCK;
    if tokens > 2 * chunk_rows(vocab) || vocab <= FEW { vocab } else { FEW }
}

/// Bytes of [`Scratch`] for the gradients of `tokens` tokens.
pub(crate) fn room(tier: Tier, products: Products, tokens: usize, vocab: usize, dim: usize) -> usize {
    let rows = chunk_rows(vocab).min(tokens);
    let logits = rows * vocab * size_of::<f32>();
    if products == Products::F32 {
        return logits;
    }
    let words = words_at_once(tokens, vocab);
    let twelve = left_room(tier, Kind::Twelve, rows, dim) + right_room(tier, Kind::Twelve, dim, words, true);
    let columns = right_room(tier, Kind::Int16, words, dim, false) + vocab * size_of::<f32>();
    let rounded = outer::BLOCK.min(vocab) * dim + rows * (dim + size_of::<f32>());
    let gradient = outer::room(tier, Kind::Int16, rows, &[[vocab, dim]]);
    logits + twelve + columns + rounded + left_room(tier, Kind::Int16, rows, vocab) + gradient
}

/// Cross entropy of the output head, in nats, and its gradients.
///
/// `products` says how the head multiplies.
///
/// `hidden` `[n, dim]`, already normalised; `head` `[vocab, dim]`; `targets` `[n]`, of which some may be
/// [`NO_TARGET`]. Writes `losses` `[n]`, `ln Σ exp(hidden·head) − hidden·head[target]` of each token, 0 without target.
///
/// With `gradients`, `d logits = weight · (softmax − onehot)`, 0 without target.
///
/// # Panics
/// A slice does not fit the others, `dim` is zero, or a target is neither below `vocab` nor [`NO_TARGET`].
pub fn head_cross_entropy(
    cx: &Context,
    hidden: &[f32],
    head: &[f32],
    targets: &[u32],
    (dim, products): (usize, Products),
    losses: &mut [f32],
    mut gradients: Option<Gradients<'_>>,
    scratch: &mut Scratch,
) {
    let (n, vocab) = (targets.len(), head.len() / dim);
    assert_eq!(head.len(), vocab * dim, "head is no whole number of rows");
    assert_eq!(hidden.len(), n * dim, "hidden and targets");
    assert_eq!(losses.len(), n, "losses and targets");
    if let Some(Gradients { d_hidden, d_head, .. }) = &gradients {
        assert_eq!(d_hidden.len(), hidden.len(), "d_hidden and hidden");
        assert!(d_head.as_ref().is_none_or(|d_head| d_head.len() == head.len()), "d_head and head");
    }
    for target in targets {
        let known = (*target as usize) < vocab || *target == NO_TARGET;
        assert!(known, "target {target} in a vocabulary of {vocab}");
    }
    if n == 0 {
        return;
    }
    let Scratch { logits, integers, .. } = scratch;
    let scale = gradients.as_ref().map(|gradients| gradients.weight);
    let words = words_at_once(n, vocab);
    if products == Products::Int16 {
        integers.set_head(cx, (head, dim), words, gradients.is_some());
    }
    let (head_rows, head) = (head, View::new(head, vocab, dim));
    let rows = chunk_rows(vocab).min(n);
    logits.resize(logits.len().max(rows * vocab), 0.0);
    for (first, (targets, losses)) in
        (0..n).step_by(rows).zip(targets.chunks(rows).zip(losses.chunks_mut(rows)))
    {
        let rows = targets.len();
        let logits = &mut logits[..rows * vocab];
        let span = first * dim..(first + rows) * dim;
        let hidden = &hidden[span.clone()];
        let x = View::new(hidden, rows, dim);
        match products {
            Products::F32 => matmul(cx, x, head.t(), 0.0, logits),
            Products::Int16 => integers.logits(cx, hidden, (head_rows, dim), words, logits),
        }
        entropy(cx, logits, targets, losses, vocab, scale);
        let Some(Gradients { weight, d_hidden, d_head }) = &mut gradients else {
            continue;
        };
        let d_hidden = &mut d_hidden[span];
        match products {
            Products::F32 => {
                for (row, target) in logits.chunks_exact_mut(vocab).zip(targets) {
                    if *target != NO_TARGET {
                        row[*target as usize] -= *weight;
                    }
                }
                let d_logits = View::new(logits, rows, vocab);
                matmul(cx, d_logits, head, 0.0, d_hidden);
                if let Some(d_head) = d_head {
                    matmul(cx, d_logits.t(), x, 1.0, d_head);
                }
            }
            Products::Int16 => {
                let targets = (targets, *weight);
                let factors = (hidden, head_rows, dim);
                integers.backward(cx, logits, targets, factors, words, (d_hidden, d_head.as_deref_mut()));
            }
        }
    }
}

/// `logits` `[rows, vocab]` become `scale·softmax`, 0 in rows without a target; without a scale they are scratch.
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
            if *target == NO_TARGET {
                row.fill(0.0);
                *loss = 0.0;
                continue;
            }
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
    assert_eq!(head.len(), vocab * dim, "head is no whole number of rows");
    check_logits(hidden, (rows, dim, vocab), logits);
    if rows > FEW_ROWS && vocab > 0 {
        matmul(cx, View::new(hidden, rows, dim), View::new(head, vocab, dim).t(), 0.0, logits);
        return;
    }
    for (x, logits) in hidden.chunks_exact(dim).zip(logits.chunks_exact_mut(vocab.max(1))) {
        logits_by_words(cx, dim, logits, |first, part| {
            dots(cx.tier(), x, &head[first * dim..][..part.len() * dim], part);
        });
    }
}

/// [`head_logits`] with int8 rows for the head: `codes` `[vocab, dim]`, `scales` `[vocab]`. Hidden states
/// are rounded to twelve bits.
///
/// # Panics
/// A slice does not fit the others, or `dim` is zero.
pub fn head_logits_int8(
    cx: &Context,
    hidden: &[f32],
    (codes, scales): (&[i8], &[f32]),
    scratch: &mut Scratch,
    logits: &mut [f32],
) {
    let (rows, vocab) = (logits.len() / scales.len(), scales.len());
    let dim = codes.len() / vocab;
    assert_eq!(codes.len(), vocab * dim, "codes and scales of the head");
    check_logits(hidden, (rows, dim, vocab), logits);
    for (x, logits) in hidden.chunks_exact(dim).zip(logits.chunks_exact_mut(vocab)) {
        scratch.rounded.set(cx.tier(), x);
        let rounded = &scratch.rounded;
        logits_by_words(cx, dim, logits, |first, part| {
            let codes = &codes[first * dim..][..part.len() * dim];
            dots::dots(cx.tier(), rounded, codes, &scales[first..], part);
        });
    }
}

fn check_logits(hidden: &[f32], (rows, dim, vocab): (usize, usize, usize), logits: &[f32]) {
    assert_eq!(hidden.len(), rows * dim, "hidden is no whole number of rows");
    assert_eq!(logits.len(), rows * vocab, "logits");
}

/// Calls `work` on parts of the logits of one row, with the first word of the part.
fn logits_by_words(
    cx: &Context,
    dim: usize,
    logits: &mut [f32],
    work: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    // 64 Ki entries of the head per task; whole streams.
    let words = (1_usize << 16).div_ceil(dim).next_multiple_of(dots::STREAMS);
    cx.chunks(logits, words, |index, part| work(index * words, part));
}

tiered! {
    /// Dot product of `x` with each row of `matrix` `[out.len(), x.len()]`.
    fn dots(x: &[f32], matrix: &[f32], out: &mut [f32]) {
        for (row, out) in matrix.chunks_exact(x.len()).zip(out) {
            *out = lanes::dot(x, row);
        }
    }
}
