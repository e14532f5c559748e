//! Causal attention with grouped queries and rotary positions, without a time × time matrix.
//!
//! One row of `qkv` holds a token: its query heads, then its key heads, then its value heads, each
//! `head_dim` long. Query head `h` reads key and value head `h / (heads / kv_heads)`. Scores are
//! `q·k / sqrt(head_dim)`.
//!
//! A task is one key head of one sequence: it lays out the keys and values, and the queries of its
//! group, as the register tile reads them, and rotates them on the way. The work goes in blocks of
//! `BLOCK` queries against the keys up to the block's last query: products for the scores, a softmax of
//! the rows, products with the values. About half of the square is never computed. Backward recomputes
//! the probabilities from the log-sum-exp that forward kept (Dao, FlashAttention-2, algorithm 2), so the
//! memory of a task is a few heads and a few `BLOCK × time` blocks.
//!
//! Block borders are positions within a sequence, and each task owns the columns it writes. Neither the
//! number of threads nor the place of a sequence in the batch changes a bit.

mod cache;
mod decode;
mod pack;
mod relations;
mod tile;

pub use cache::Cache;
pub use decode::{decode, remember};
use pack::Head;
pub use relations::relate;
use tile::{Columns, N, R, Rows, products};

use crate::{
    Context, Tier,
    lanes::{self, LANES, exp_bounded, exp_sum, ln},
    strips::Strips,
};

/// Queries per block: a multiple of a tile. Its scores against 256 keys take 48 KiB.
const BLOCK: usize = 48;
const _: () = assert!(BLOCK.is_multiple_of(R));

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

    /// Width of a head's rows in working memory.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(N)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Asserts that the heads group evenly, that `qkv` holds `batch·time` rows, and that `table` holds
    /// positions up to `end`.
    fn check(&self, qkv: &[f32], table: &[f32], end: usize) {
        assert!(self.kv_heads > 0 && self.heads > 0 && self.head_dim > 0, "empty heads: {self:?}");
        assert_eq!(self.heads % self.kv_heads, 0, "kv_heads must divide heads: {self:?}");
        assert_eq!(self.head_dim % 2, 0, "head_dim must be even: {self:?}");
        assert!(end * self.head_dim <= table.len(), "positions beyond the table: {self:?}");
        assert_eq!(qkv.len(), self.rows() * self.qkv_width(), "qkv of {self:?}");
    }
}

/// Rotations for positions `0..context`: row `pos` holds the cosines, then the sines, of
/// `pos·theta^(-2i/head_dim)` for `i` in `0..head_dim/2`, computed in f64. `[context, head_dim]`. Pairs
/// are `(i, i + head_dim/2)` (NEOX).
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

/// The heads of sequence `sequence` in rows of `width` columns, from column `column` on.
fn head_of(data: &[f32], shape: Shape, sequence: usize, width: usize, column: usize) -> Head<'_> {
    let offset = sequence * shape.time * width + column;
    Head { data, offset, stride: width, head_dim: shape.head_dim }
}

/// The first query head of key head `kv_head`, the key head, and its value head, in a sequence of `qkv`.
fn heads_of(qkv: &[f32], shape: Shape, sequence: usize, kv_head: usize) -> [Head<'_>; 3] {
    [kv_head * shape.group(), shape.heads + kv_head, shape.heads + shape.kv_heads + kv_head]
        .map(|column| head_of(qkv, shape, sequence, shape.qkv_width(), column * shape.head_dim))
}

/// Cuts parts of given lengths off the front of working memory.
struct Desk<'a>(&'a mut [f32]);

impl<'a> Desk<'a> {
    #[inline(always)]
    fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (part, rest) = std::mem::take(&mut self.0).split_at_mut(len);
        self.0 = rest;
        part
    }
}

/// Keys that rows of scores have room for: whole panels, and what a tile of columns reads beyond.
fn score_stride(keys: usize) -> usize {
    keys.next_multiple_of(N) + 8
}

/// Attends causally within each sequence.
///
/// `qkv` `[batch·time, qkv_width]`, not rotated; `table` is [`rope_table`]'s. Writes `out`
/// `[batch·time, heads·head_dim]` and `lse` `[batch·time, heads]`, the log-sum-exp of each query's scaled
/// scores, for [`backward`].
///
/// # Panics
/// A slice does not fit `shape`, `kv_heads` does not divide `heads`, `head_dim` is odd, or the table ends
/// before the last position.
pub fn forward(cx: &Context, qkv: &[f32], table: &[f32], shape: Shape, out: &mut [f32], lse: &mut [f32]) {
    shape.check(qkv, table, shape.time);
    assert_eq!(out.len(), shape.rows() * shape.out_width(), "out of {shape:?}");
    assert_eq!(lse.len(), shape.rows() * shape.heads, "lse of {shape:?}");
    let (out, lse) = (Strips::new(out, shape.out_width()), Strips::new(lse, shape.heads));
    let tasks = if shape.time == 0 { 0 } else { shape.batch * shape.kv_heads };
    cx.each(tasks, attend_memory(shape), |task, desk| {
        let place = (task / shape.kv_heads, task % shape.kv_heads);
        let heads = heads_of(qkv, shape, place.0, place.1);
        attend(cx.tier(), cx.tier().wide(), heads, table, shape, place, desk, out, lse);
    });
}

/// Floats that [`attend`] works on.
pub(crate) fn attend_memory(shape: Shape) -> usize {
    let (keys, width) = (shape.time, shape.padded());
    let block = BLOCK.min(shape.time);
    width * (2 * keys + keys.next_multiple_of(N)) + block * score_stride(keys)
}

tiered! {
    /// The queries of one key head of a sequence against its keys, which `turns` rotates; `place` is the
    /// sequence and the key head.
    fn attend(
        wide: bool,
        heads: [Head<'_>; 3],
        turns: &[f32],
        shape: Shape,
        place: (usize, usize),
        desk: &mut [f32],
        out: Strips<'_>,
        lse: Strips<'_>,
    ) {
        let Shape { time, head_dim, .. } = shape;
        let ([q, k, v], (sequence, kv_head)) = (heads, place);
        let (keys, width) = (time, shape.padded());
        let mut desk = Desk(desk);
        let rows = desk.take(keys * width);
        let values = desk.take(keys * width);
        let panels = desk.take(keys.next_multiple_of(N) * width);
        let (scores, stride) = (desk.0, score_stride(keys));
        pack::rows(v, None, 1.0, width, rows);
        pack::by_columns(rows, width, values);
        pack::rows(k, Some(turns), 1.0, width, rows);
        pack::by_tokens(rows, width, head_dim, panels);
        for member in 0..shape.group() {
            let head = kv_head * shape.group() + member;
            let q = Head { offset: q.offset + member * head_dim, ..q };
            pack::rows(q, Some(turns), shape.scale(), width, rows);
            for first in (0..time).step_by(BLOCK) {
                let count = BLOCK.min(time - first);
                let keys = first + count;
                score(wide, rows, (width, first, count, head_dim), panels, keys, scores, stride);
                let mut inverse = [0.0; BLOCK];
                for (i, inverse) in inverse[..count].iter_mut().enumerate() {
                    let row = &mut scores[i * stride..][..keys.next_multiple_of(N)];
                    let row = mask(row, first + i + 1);
                    let max = lanes::max(row);
                    let sum = exp_sum(row, max);
                    *inverse = 1.0 / sum;
                    // SAFETY: no other task writes this head's column in rows of this sequence.
                    let lse = unsafe { lse.slice(sequence * time + first + i, head, 1) };
                    lse[0] = max + ln(sum);
                }
                products(
                    wide,
                    (count, width / N),
                    |top| Rows::new(scores, stride, top, count - top, keys),
                    |panel| values[panel * time * N..][..keys * N].as_chunks().0,
                    |row, panel, sums| {
                        let columns = N.min(head_dim - panel * N);
                        let column = head * head_dim + panel * N;
                        // SAFETY: as above, of this head's columns.
                        let out = unsafe { out.slice(sequence * time + first + row, column, columns) };
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out = sum * inverse[row];
                        }
                    },
                );
            }
        }
    }
}

/// Products of `count` rows of `a`, `width` wide, from `first` on, with `keys` tokens in panels.
#[inline(always)]
fn score(
    wide: bool,
    a: &[f32],
    (width, first, count, head_dim): (usize, usize, usize, usize),
    panels: &[f32],
    keys: usize,
    to: &mut [f32],
    stride: usize,
) {
    products(
        wide,
        (count, keys.div_ceil(N)),
        |top| Rows::new(a, width, first + top, count - top, head_dim),
        |panel| panels[panel * N * head_dim..][..N * head_dim].as_chunks().0,
        |row, panel, sums| to[row * stride + panel * N..][..N].copy_from_slice(sums),
    );
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

/// Backward of [`forward`]: from the gradient of `out`, that of `qkv`.
///
/// `qkv` `[batch·time, qkv_width]`, `out` and `d_out` `[batch·time, heads·head_dim]`, `lse`
/// `[batch·time, heads]`, as `forward` read and wrote them. Writes `d_qkv` `[batch·time, qkv_width]`.
///
/// The gradients of a key sum over all later queries and over the query heads of its group, in that
/// fixed order.
///
/// # Panics
/// As [`forward`].
pub fn backward(
    cx: &Context,
    qkv: &[f32],
    (out, lse): (&[f32], &[f32]),
    d_out: &[f32],
    table: &[f32],
    shape: Shape,
    d_qkv: &mut [f32],
) {
    shape.check(qkv, table, shape.time);
    assert_eq!(out.len(), shape.rows() * shape.out_width(), "out of {shape:?}");
    assert_eq!(lse.len(), shape.rows() * shape.heads, "lse of {shape:?}");
    assert_eq!(d_out.len(), out.len(), "d_out of {shape:?}");
    assert_eq!(d_qkv.len(), qkv.len(), "d_qkv of {shape:?}");
    let d_qkv = Strips::new(d_qkv, shape.qkv_width());
    let tasks = if shape.time == 0 { 0 } else { shape.batch * shape.kv_heads };
    cx.each(tasks, backward_memory(shape), |task, desk| {
        let place = (task / shape.kv_heads, task % shape.kv_heads);
        let heads = heads_of(qkv, shape, place.0, place.1);
        head_backward(cx.tier(), cx.tier(), heads, (out, lse), d_out, table, shape, place, desk, d_qkv);
    });
}

/// Floats that [`head_backward`] works on.
pub(crate) fn backward_memory(shape: Shape) -> usize {
    let (width, panels) = (shape.padded(), shape.time.next_multiple_of(N));
    let block = BLOCK.min(shape.time);
    width * (5 * shape.time + 2 * panels + 2 * shape.time + block)
        + shape.time
        + 2 * block * score_stride(shape.time)
}

tiered! {
    /// Gradients of one key head, its value head and the query heads that read them, in one sequence.
    fn head_backward(
        on: Tier,
        heads: [Head<'_>; 3],
        results: (&[f32], &[f32]),
        d_out: &[f32],
        table: &[f32],
        shape: Shape,
        place: (usize, usize),
        desk: &mut [f32],
        d_qkv: Strips<'_>,
    ) {
        let Shape { time, head_dim, .. } = shape;
        let ([q, k, v], (sequence, kv_head)) = (heads, place);
        let (wide, width, block) = (on.wide(), shape.padded(), BLOCK.min(time));
        let mut desk = Desk(desk);
        let rows = desk.take(time * width);
        let d_out_rows = desk.take(time * width);
        let [key_columns, query_columns, d_out_columns] = [(); 3].map(|()| desk.take(time * width));
        let [key_panels, value_panels] = [(); 2].map(|()| desk.take(time.next_multiple_of(N) * width));
        let [dk, dv] = [(); 2].map(|()| desk.take(time * width));
        let dq = desk.take(block * width);
        let deltas = desk.take(time);
        let stride = score_stride(time);
        let [p, ds] = [(); 2].map(|()| desk.take(block * stride));
        pack::rows(v, None, 1.0, width, rows);
        pack::by_tokens(rows, width, head_dim, value_panels);
        pack::rows(k, Some(table), 1.0, width, rows);
        pack::by_tokens(rows, width, head_dim, key_panels);
        pack::by_columns(rows, width, key_columns);
        dk.fill(0.0);
        dv.fill(0.0);
        for member in 0..shape.group() {
            let head = kv_head * shape.group() + member;
            let q = Head { offset: q.offset + member * head_dim, ..q };
            let [out, d_out] = [results.0, d_out]
                .map(|rows| head_of(rows, shape, sequence, shape.out_width(), head * head_dim));
            pack::rows(q, Some(table), shape.scale(), width, rows);
            pack::by_columns(rows, width, query_columns);
            pack::rows(d_out, None, 1.0, width, d_out_rows);
            pack::by_columns(d_out_rows, width, d_out_columns);
            dot_rows(on, d_out_rows, width, out, deltas);
            for first in (0..time).step_by(block) {
                let count = block.min(time - first);
                let keys = first + count;
                score(wide, rows, (width, first, count, head_dim), key_panels, keys, p, stride);
                score(wide, d_out_rows, (width, first, count, head_dim), value_panels, keys, ds, stride);
                for i in 0..count {
                    let row = i * stride..i * stride + keys.next_multiple_of(N) + 8;
                    let lse = results.1[(sequence * time + first + i) * shape.heads + head];
                    softmax_backward(&mut p[row.clone()], &mut ds[row], first + i + 1, lse, deltas[first + i]);
                }
                products(
                    wide,
                    (count, width / N),
                    |top| Rows::new(ds, stride, top, count - top, keys),
                    |panel| key_columns[panel * time * N..][..keys * N].as_chunks().0,
                    |row, panel, sums| dq[row * width + panel * N..][..N].copy_from_slice(sums),
                );
                for (i, dq) in dq.chunks_exact(width).take(count).enumerate() {
                    // SAFETY: no other task writes the columns of these heads in rows of this sequence.
                    let to = unsafe { d_qkv.slice(sequence * time + first + i, head * head_dim, head_dim) };
                    for (to, dq) in to.iter_mut().zip(dq) {
                        *to = shape.scale() * dq;
                    }
                    pack::rotate(to, &table[(first + i) * head_dim..][..head_dim], -1.0);
                }
                add_products(wide, p, stride, d_out_columns, (time, first, count), keys, dv, width);
                add_products(wide, ds, stride, query_columns, (time, first, count), keys, dk, width);
            }
        }
        let kv = shape.out_width() + kv_head * head_dim;
        for (t, (dk, dv)) in dk.chunks_exact(width).zip(dv.chunks_exact(width)).enumerate() {
            // SAFETY: as above, of the key head and the value head.
            let (to_k, to_v) = unsafe {
                let row = sequence * time + t;
                (d_qkv.slice(row, kv, head_dim), d_qkv.slice(row, kv + shape.kv_width(), head_dim))
            };
            to_k.copy_from_slice(&dk[..head_dim]);
            pack::rotate(to_k, &table[t * head_dim..][..head_dim], -1.0);
            to_v.copy_from_slice(&dv[..head_dim]);
        }
    }
}

/// Dot product of each row of `a`, `width` apart, with that of a head. Functions of their own: inside the
/// larger one the compiler leaves them scalar.
#[inline(never)]
fn dot_rows(tier: Tier, a: &[f32], width: usize, b: Head<'_>, to: &mut [f32]) {
    for (token, (a, to)) in a.chunks_exact(width).zip(to).enumerate() {
        *to = dot(tier, &a[..b.head_dim], b.row(token));
    }
}

tiered! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        lanes::dot(a, b)
    }
}

/// One query: `p` goes from scaled scores to probabilities, and `ds` from the gradients of the
/// probabilities to those of the scaled scores, `ds = p·(dp − delta)` with `delta = d_out·out`, which is
/// `Σ p·dp` over the keys. Keys from `visible` on get zero.
#[inline(always)]
fn softmax_backward(p: &mut [f32], ds: &mut [f32], visible: usize, lse: f32, delta: f32) {
    let p = mask(p, visible);
    let (ds, hidden) = ds.split_at_mut(p.len());
    hidden.fill(0.0);
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = exp_bounded(*p - lse);
        *ds = *p * (*ds - delta);
    }
}

/// Adds to rows of `to` the products of columns of `a` with `count` tokens of `b`, from `first` of
/// `time` on, in panels by columns.
#[inline(always)]
fn add_products(
    wide: bool,
    a: &[f32],
    stride: usize,
    b: &[f32],
    (time, first, count): (usize, usize, usize),
    keys: usize,
    to: &mut [f32],
    width: usize,
) {
    products(
        wide,
        (keys, width / N),
        |key| Columns { data: &a[key..], stride },
        |panel| b[(panel * time + first) * N..][..count * N].as_chunks().0,
        |key, panel, sums| {
            let to = &mut to[key * width + panel * N..][..N];
            for (to, sum) in to.iter_mut().zip(sums) {
                *to += sum;
            }
        },
    );
}
