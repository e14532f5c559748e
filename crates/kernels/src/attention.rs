//! Causal attention with grouped queries and rotary positions, without a time × time matrix.
//!
//! One row of `qkv` holds a token: its query heads, then its key heads, then its value heads, each
//! `head_dim` long. Query head `h` reads key and value head `h / (heads / kv_heads)`. Scores are
//! `q·k / sqrt(head_dim)`.
//!
//! The work goes in blocks of `BLOCK` queries against the keys up to the block's last query: one
//! f32 GEMM for the scores, a softmax of the rows, one GEMM with the values. About half of the square
//! is never computed. Backward recomputes the probabilities from the log-sum-exp that forward kept
//! (Dao, FlashAttention-2, algorithm 2), so the memory of a call is a few `BLOCK × time` blocks.
//!
//! Block borders are positions within a sequence, and each task owns the rows it writes. Neither the
//! number of threads nor the place of a sequence in the batch changes a bit.

use crate::lanes::{self, LANES};
use crate::lanes::{exp_bounded, exp_sum, ln};
use crate::matmul::{View, serial};
use crate::{Context, Tier};

/// Queries per block. Its scores against 256 keys (64 KiB) stay in the second-level cache.
const BLOCK: usize = 64;

/// Multiply-adds below which one generated token is not worth waking the threads.
const SMALL_STEP: usize = 1 << 17;

/// Sizes of an attention layer's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of sequences.
    pub batch: usize,
    /// Tokens per sequence.
    pub time: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Shape {
    /// Width of a row of q, k and v: `(heads + 2·kv_heads)·head_dim`.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Width of a row of the result: `heads·head_dim`.
    pub fn out_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Number of rows: `batch·time`.
    pub fn rows(&self) -> usize {
        self.batch * self.time
    }

    /// Query heads per key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of a token's keys (or values): `kv_heads·head_dim`.
    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Asserts that the heads group evenly and that `qkv` holds `batch·time` rows.
    fn check(&self, qkv: &[f32]) {
        assert!(self.kv_heads > 0 && self.heads > 0 && self.head_dim > 0, "empty heads: {self:?}");
        assert_eq!(self.heads % self.kv_heads, 0, "kv_heads must divide heads: {self:?}");
        assert_eq!(qkv.len(), self.rows() * self.qkv_width(), "qkv of {self:?}");
    }
}

/// Rotations for positions `0..context`: row `pos` holds the cosines, then the sines, of
/// `pos·theta^(-2i/head_dim)` for `i` in `0..head_dim/2`, computed in f64. `[context, head_dim]`.
///
/// # Panics
/// `head_dim` is odd.
pub fn rope_table(context: usize, head_dim: usize, theta: f32) -> Vec<f32> {
    assert_eq!(head_dim % 2, 0, "head_dim must be even");
    let half = head_dim / 2;
    let frequencies: Vec<f64> =
        (0..half).map(|i| f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64)).collect();
    let mut table = vec![0.0; context * head_dim];
    for (pos, row) in table.chunks_exact_mut(head_dim.max(1)).enumerate() {
        let (cos, sin) = row.split_at_mut(half);
        for (i, frequency) in frequencies.iter().enumerate() {
            let (s, c) = (pos as f64 * frequency).sin_cos();
            cos[i] = c as f32;
            sin[i] = s as f32;
        }
    }
    table
}

/// Rotates the q and k heads of `qkv` `[batch·time, qkv_width]` in place, by the position of each row:
/// `first + row % time`. Pairs are `(i, i + head_dim/2)` (NEOX). `table` is [`rope_table`]'s
/// `[context, head_dim]`.
///
/// `inverse` rotates back. A rotation's inverse is its transpose, so that is also the backward: it
/// turns the gradient of the rotated q and k into that of the plain ones.
///
/// # Panics
/// `qkv` does not fit `shape`, `head_dim` is odd, or the table ends before the last position.
pub fn rope(cx: &Context, qkv: &mut [f32], table: &[f32], shape: Shape, first: usize, inverse: bool) {
    shape.check(qkv);
    assert_eq!(shape.head_dim % 2, 0, "head_dim must be even");
    assert!((first + shape.time) * shape.head_dim <= table.len(), "positions beyond the table");
    let width = shape.qkv_width();
    // 16 KiB and more per task: the work is one pass over memory.
    let rows = (1_usize << 15).div_ceil(width);
    cx.chunks(qkv, rows * width, |chunk, part| {
        rotate_rows(cx.tier(), part, table, shape, first, chunk * rows, inverse);
    });
}

tiered! {
    /// Rotates rows `row..` of the batch, held in `part`.
    fn rotate_rows(
        part: &mut [f32],
        table: &[f32],
        shape: Shape,
        first: usize,
        row: usize,
        inverse: bool,
    ) {
        let Shape { time, head_dim, .. } = shape;
        let sign = if inverse { -1.0 } else { 1.0 };
        for (i, line) in part.chunks_exact_mut(shape.qkv_width()).enumerate() {
            let turn = &table[(first + (row + i) % time) * head_dim..][..head_dim];
            for head in line[..(shape.heads + shape.kv_heads) * head_dim].chunks_exact_mut(head_dim) {
                rotate_head(head, turn, sign);
            }
        }
    }
}

/// `(x, y) → (x·cos − y·sin, y·cos + x·sin)` for the pairs of one head; `turn` is its table row.
#[inline(always)]
fn rotate_head(head: &mut [f32], turn: &[f32], sign: f32) {
    let half = turn.len() / 2;
    let (xs, ys) = head.split_at_mut(half);
    let (cos, sin) = turn.split_at(half);
    for (((x, y), c), s) in xs.iter_mut().zip(ys).zip(cos).zip(sin) {
        let s = sign * s;
        (*x, *y) = (x.mul_add(*c, -(*y * s)), y.mul_add(*c, *x * s));
    }
}

/// Where the keys or values of one head lie: element `(token, i)` at `offset + token·stride + i`.
#[derive(Clone, Copy)]
struct Head<'a> {
    data: &'a [f32],
    offset: usize,
    stride: usize,
    head_dim: usize,
}

impl<'a> Head<'a> {
    /// Tokens `first..first + rows` as a matrix `[rows, head_dim]`.
    fn view(self, first: usize, rows: usize) -> View<'a> {
        View::strided(self.data, self.offset + first * self.stride, rows, self.head_dim, self.stride)
    }

    fn row(self, token: usize) -> &'a [f32] {
        &self.data[self.offset + token * self.stride..][..self.head_dim]
    }
}

/// The heads of sequence `sequence` in rows of `width` columns, from column `column` on.
fn head_of(data: &[f32], shape: Shape, sequence: usize, width: usize, column: usize) -> Head<'_> {
    let offset = sequence * shape.time * width + column;
    Head { data, offset, stride: width, head_dim: shape.head_dim }
}

/// Query head `head`, and the key and value heads that it reads, of one sequence of `qkv`.
fn heads_of(qkv: &[f32], shape: Shape, sequence: usize, head: usize) -> [Head<'_>; 3] {
    let kv_head = head / shape.group();
    [head, shape.heads + kv_head, shape.heads + shape.kv_heads + kv_head]
        .map(|column| head_of(qkv, shape, sequence, shape.qkv_width(), column * shape.head_dim))
}

/// A block of queries of one sequence, and what is written for it.
struct Block<'a> {
    sequence: usize,
    /// Row of the first query within the sequence.
    first: usize,
    /// `[queries, heads·head_dim]`
    out: &'a mut [f32],
    /// `[queries, heads]`
    lse: &'a mut [f32],
}

/// Cuts `out` `[batch·time, heads·head_dim]` and `lse` `[batch·time, heads]` into blocks of queries.
fn blocks<'a>(out: &'a mut [f32], lse: &'a mut [f32], shape: Shape) -> Vec<Block<'a>> {
    let (wide, narrow) = (shape.out_width(), shape.heads);
    let mut blocks = Vec::with_capacity(shape.batch * shape.time.div_ceil(BLOCK));
    let sequences = out.chunks_mut(shape.time * wide).zip(lse.chunks_mut(shape.time * narrow));
    for (sequence, (out, lse)) in sequences.enumerate() {
        let parts = out.chunks_mut(BLOCK * wide).zip(lse.chunks_mut(BLOCK * narrow)).enumerate();
        blocks.extend(parts.map(|(i, (out, lse))| Block { sequence, first: i * BLOCK, out, lse }));
    }
    blocks
}

/// Attends causally within each sequence.
///
/// `qkv` `[batch·time, qkv_width]`, q and k already rotated. Writes `out` `[batch·time, heads·head_dim]`
/// and `lse` `[batch·time, heads]`, the log-sum-exp of each query's scaled scores, for [`backward`].
///
/// # Panics
/// A slice does not fit `shape`, or `kv_heads` does not divide `heads`.
pub fn forward(cx: &Context, qkv: &[f32], shape: Shape, out: &mut [f32], lse: &mut [f32]) {
    shape.check(qkv);
    assert_eq!(out.len(), shape.rows() * shape.out_width(), "out of {shape:?}");
    assert_eq!(lse.len(), shape.rows() * shape.heads, "lse of {shape:?}");
    if shape.rows() == 0 {
        return;
    }
    cx.chunks(&mut blocks(out, lse, shape), 1, |_, block| {
        let block = &mut block[0];
        let sequence = block.sequence;
        attend(cx.tier(), block, shape, 0, |head| heads_of(qkv, shape, sequence, head));
    });
}

/// One block of queries, all heads. The block's row `i` sees keys `0..=start + block.first + i`;
/// `heads` gives the query head, and the keys and values that it reads.
fn attend<'a>(
    tier: Tier,
    block: &mut Block<'_>,
    shape: Shape,
    start: usize,
    heads: impl Fn(usize) -> [Head<'a>; 3],
) {
    let rows = block.lse.len() / shape.heads;
    let seen = start + block.first;
    let keys = seen + rows;
    let mut scores = vec![0.0; rows * keys];
    for head in 0..shape.heads {
        let [q, k, v] = heads(head);
        serial(q.view(block.first, rows), k.view(0, keys).t(), shape.scale(), 0.0, &mut scores, keys);
        softmax_rows(tier, &mut scores, keys, seen, &mut block.lse[head..], shape.heads);
        let out = &mut block.out[head * shape.head_dim..];
        serial(View::new(&scores, rows, keys), v.view(0, keys), 1.0, 0.0, out, shape.out_width());
    }
}

tiered! {
    /// `scores` `[rows, keys]` become probabilities: row `i` sees keys `0..=seen + i`, the others get
    /// zero. Row `i`'s log-sum-exp goes to `lse[i·stride]`.
    fn softmax_rows(scores: &mut [f32], keys: usize, seen: usize, lse: &mut [f32], stride: usize) {
        for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
            lse[i * stride] = softmax_row(mask(row, seen + i + 1));
        }
    }
}

/// Hides the entries of `row` from `visible` on: those that fill the last vector become −∞, whose
/// exponential is 0, the others 0. Returns the part that still needs its exponentials.
#[inline(always)]
fn mask(row: &mut [f32], visible: usize) -> &mut [f32] {
    let (row, hidden) = row.split_at_mut(visible.next_multiple_of(LANES).min(row.len()));
    row[visible..].fill(f32::NEG_INFINITY);
    hidden.fill(0.0);
    row
}

/// Softmax in place; returns the log-sum-exp.
#[inline(always)]
fn softmax_row(row: &mut [f32]) -> f32 {
    let max = lanes::max(row);
    let sum = exp_sum(row, max);
    let inverse = 1.0 / sum;
    for p in row.iter_mut() {
        *p *= inverse;
    }
    max + ln(sum)
}

/// One token's part of `d_qkv`, for one key head: where the task of that head writes.
struct GradientRow<'a> {
    /// `[group·head_dim]`
    q: &'a mut [f32],
    /// `[head_dim]`
    k: &'a mut [f32],
    /// `[head_dim]`
    v: &'a mut [f32],
}

/// Cuts `d_qkv` `[batch·time, qkv_width]` into the rows of each (sequence, key head), in that order.
fn gradient_rows(d_qkv: &mut [f32], shape: Shape) -> Vec<Vec<GradientRow<'_>>> {
    let empty = || Vec::with_capacity(shape.time);
    let mut tasks: Vec<Vec<_>> = std::iter::repeat_with(empty).take(shape.batch * shape.kv_heads).collect();
    for (row, line) in d_qkv.chunks_exact_mut(shape.qkv_width()).enumerate() {
        let (q, kv) = line.split_at_mut(shape.out_width());
        let (k, v) = kv.split_at_mut(shape.kv_width());
        let q = q.chunks_exact_mut(shape.group() * shape.head_dim);
        let kv = k.chunks_exact_mut(shape.head_dim).zip(v.chunks_exact_mut(shape.head_dim));
        let tasks = &mut tasks[row / shape.time * shape.kv_heads..][..shape.kv_heads];
        for (task, (q, (k, v))) in tasks.iter_mut().zip(q.zip(kv)) {
            task.push(GradientRow { q, k, v });
        }
    }
    tasks
}

/// Backward of [`forward`]: from the gradient of `out`, that of the rotated q, of the rotated k and of v.
///
/// `qkv` `[batch·time, qkv_width]`, `out` and `d_out` `[batch·time, heads·head_dim]`, `lse`
/// `[batch·time, heads]`, as `forward` read and wrote them. Writes `d_qkv` `[batch·time, qkv_width]`.
///
/// One task per (sequence, key head): the gradients of a key sum over all later queries and over the
/// query heads of its group, in that fixed order.
///
/// # Panics
/// A slice does not fit `shape`, or `kv_heads` does not divide `heads`.
pub fn backward(
    cx: &Context,
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    d_out: &[f32],
    shape: Shape,
    d_qkv: &mut [f32],
) {
    shape.check(qkv);
    assert_eq!(out.len(), shape.rows() * shape.out_width(), "out of {shape:?}");
    assert_eq!(lse.len(), shape.rows() * shape.heads, "lse of {shape:?}");
    assert_eq!(d_out.len(), out.len(), "d_out of {shape:?}");
    assert_eq!(d_qkv.len(), qkv.len(), "d_qkv of {shape:?}");
    if shape.rows() == 0 {
        return;
    }
    cx.chunks(&mut gradient_rows(d_qkv, shape), 1, |task, rows| {
        let (sequence, kv_head) = (task / shape.kv_heads, task % shape.kv_heads);
        head_backward(cx.tier(), qkv, out, lse, d_out, shape, sequence, kv_head, &mut rows[0]);
    });
}

/// Gradients of one key head, its value head and the query heads that read them, in one sequence.
fn head_backward(
    tier: Tier,
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    d_out: &[f32],
    shape: Shape,
    sequence: usize,
    kv_head: usize,
    gradient: &mut [GradientRow<'_>],
) {
    let Shape { time, head_dim, heads, .. } = shape;
    let block = BLOCK.min(time);
    let (mut p, mut ds) = (vec![0.0; block * time], vec![0.0; block * time]);
    let mut dq = vec![0.0; block * head_dim];
    let (mut dk, mut dv) = (vec![0.0; time * head_dim], vec![0.0; time * head_dim]);
    for member in 0..shape.group() {
        let head = kv_head * shape.group() + member;
        let [q, k, v] = heads_of(qkv, shape, sequence, head);
        let [out, d_out] =
            [out, d_out].map(|rows| head_of(rows, shape, sequence, shape.out_width(), head * head_dim));
        for first in (0..time).step_by(block) {
            let rows = block.min(time - first);
            let keys = first + rows;
            let (p, ds) = (&mut p[..rows * keys], &mut ds[..rows * keys]);
            let (q, d_out_rows, k) = (q.view(first, rows), d_out.view(first, rows), k.view(0, keys));
            serial(q, k.t(), shape.scale(), 0.0, p, keys);
            serial(d_out_rows, v.view(0, keys).t(), 1.0, 0.0, ds, keys);
            let lse = &lse[(sequence * time + first) * heads + head..];
            softmax_backward_rows(tier, p, ds, keys, first, lse, heads, out, d_out, shape.scale());
            let (p, ds) = (View::new(p, rows, keys), View::new(ds, rows, keys));
            serial(p.t(), d_out_rows, 1.0, 1.0, &mut dv, head_dim);
            serial(ds.t(), q, 1.0, 1.0, &mut dk, head_dim);
            serial(ds, k, 1.0, 0.0, &mut dq, head_dim);
            for (row, dq) in gradient[first..].iter_mut().zip(dq.chunks_exact(head_dim).take(rows)) {
                row.q[member * head_dim..][..head_dim].copy_from_slice(dq);
            }
        }
    }
    for (row, (dk, dv)) in gradient.iter_mut().zip(dk.chunks_exact(head_dim).zip(dv.chunks_exact(head_dim))) {
        row.k.copy_from_slice(dk);
        row.v.copy_from_slice(dv);
    }
}

tiered! {
    /// `p` `[rows, keys]` goes from scaled scores to probabilities, and `ds` from the gradients of the
    /// probabilities to those of the products `q·k`:
    /// `ds = scale·p·(dp − delta)` with `delta = d_out·out`, which is `Σ p·dp` over the keys.
    ///
    /// Row `i` is the query at position `seen + i`, its log-sum-exp is `lse[i·stride]`, and it sees no
    /// later key: those entries become zero.
    fn softmax_backward_rows(
        p: &mut [f32],
        ds: &mut [f32],
        keys: usize,
        seen: usize,
        lse: &[f32],
        stride: usize,
        out: Head<'_>,
        d_out: Head<'_>,
        scale: f32,
    ) {
        for (i, (p, ds)) in p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
            let delta = lanes::dot(d_out.row(seen + i), out.row(seen + i));
            let lse = lse[i * stride];
            let p = mask(p, seen + i + 1);
            let (ds, hidden) = ds.split_at_mut(p.len());
            hidden.fill(0.0);
            for (p, ds) in p.iter_mut().zip(ds) {
                *p = exp_bounded(*p - lse);
                *ds = scale * *p * (*ds - delta);
            }
        }
    }
}

/// Attends from `time` new tokens of one sequence (`shape.batch` is 1) at positions `start..`.
///
/// `qkv` `[time, qkv_width]`, q and k already rotated. `k_cache` and `v_cache`
/// `[capacity, kv_heads·head_dim]` hold the positions before `start`; the new keys and values are
/// copied in first. Writes `out` `[time, heads·head_dim]`.
///
/// # Panics
/// A slice does not fit `shape`, `shape.batch` is not 1, or the caches end before the last position.
pub fn decode(
    cx: &Context,
    qkv: &[f32],
    shape: Shape,
    start: usize,
    k_cache: &mut [f32],
    v_cache: &mut [f32],
    out: &mut [f32],
) {
    shape.check(qkv);
    let kv_width = shape.kv_width();
    assert_eq!(shape.batch, 1, "decode takes one sequence");
    assert_eq!(out.len(), shape.rows() * shape.out_width(), "out of {shape:?}");
    assert_eq!(k_cache.len(), v_cache.len(), "caches of different sizes");
    assert!((start + shape.time) * kv_width <= k_cache.len(), "positions beyond the caches");
    if shape.time == 0 {
        return;
    }
    let new = start * kv_width..(start + shape.time) * kv_width;
    let caches = k_cache[new.clone()].chunks_exact_mut(kv_width).zip(v_cache[new].chunks_exact_mut(kv_width));
    for (row, (k, v)) in qkv.chunks_exact(shape.qkv_width()).zip(caches) {
        let (new_k, new_v) = row[shape.out_width()..].split_at(kv_width);
        k.copy_from_slice(new_k);
        v.copy_from_slice(new_v);
    }
    let (k_cache, v_cache) = (&*k_cache, &*v_cache);
    let heads = |head: usize| {
        let q = head_of(qkv, shape, 0, shape.qkv_width(), head * shape.head_dim);
        let offset = head / shape.group() * shape.head_dim;
        [
            q,
            Head { data: k_cache, offset, stride: kv_width, ..q },
            Head { data: v_cache, offset, stride: kv_width, ..q },
        ]
    };
    if shape.time == 1 {
        // One query is two matrix-vector products, which a GEMM would spend its time packing for.
        let small = (start + 1) * shape.out_width() < SMALL_STEP;
        let chunk = if small { out.len() } else { shape.head_dim };
        cx.chunks(out, chunk, |index, part| {
            let mut p = vec![0.0; start + 1];
            for (i, out) in part.chunks_exact_mut(shape.head_dim).enumerate() {
                let [q, k, v] = heads(index * chunk / shape.head_dim + i);
                attend_one(cx.tier(), q.row(0), k, v, shape.scale(), &mut p, out);
            }
        });
        return;
    }
    let mut lse = vec![0.0; shape.time * shape.heads];
    cx.chunks(&mut blocks(out, &mut lse, shape), 1, |_, block| {
        attend(cx.tier(), &mut block[0], shape, start, heads);
    });
}

tiered! {
    /// One query `[head_dim]` against the first `p.len()` keys; `p` is scratch.
    fn attend_one(q: &[f32], k: Head<'_>, v: Head<'_>, scale: f32, p: &mut [f32], out: &mut [f32]) {
        for (key, p) in p.iter_mut().enumerate() {
            *p = scale * lanes::dot(q, k.row(key));
        }
        softmax_row(p);
        out.fill(0.0);
        for (key, p) in p.iter().enumerate() {
            for (out, v) in out.iter_mut().zip(v.row(key)) {
                *out = p.mul_add(*v, *out);
            }
        }
    }
}
