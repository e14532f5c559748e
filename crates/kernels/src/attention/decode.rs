//! Attention of the newest token of one sequence, whose earlier keys and values lie in a cache.

use super::{Cache, Shape, cache::KeyHead, heads_of, pack};
use crate::{
    Context, Tier, dots,
    lanes::{self, exp_sum},
    strips::Strips,
};

/// Multiply-adds below which a new token is not worth waking the threads.
const SMALL_STEP: usize = 1 << 14;

/// Puts keys and values of `shape.time` new tokens of one sequence into its cache, behind those in it.
///
/// `qkv` `[time, qkv_width]`, not rotated; `table` is that of [`super::rope_table`].
///
/// # Panics
/// As [`super::forward`], or `shape.batch` is not 1, or the cache holds heads of another number or width.
pub fn remember(cx: &Context, qkv: &[f32], table: &[f32], shape: Shape, cache: &mut Cache) {
    let start = cache.len();
    shape.check(qkv, table, start + shape.time);
    assert_eq!(shape.batch, 1, "a cache holds one sequence");
    let heads = cache.extend(shape, table.len() / shape.head_dim);
    cx.each(shape.kv_heads, shape.head_dim, |kv_head, key| {
        // SAFETY: each head is in one task.
        let [head] = (unsafe { heads.get(kv_head) }) else { unreachable!("parts of one head") };
        let turns = &table[start * shape.head_dim..];
        put(cx.tier(), (qkv, turns), shape, kv_head, start, key, head);
    });
}

/// Attends from one new token of a sequence (`shape.batch` and `shape.time` are 1), which goes into the
/// cache first, as by [`remember`]. Writes `out` `[heads·head_dim]`.
///
/// Products with keys are exact sums of integers: int8 by the query in twelve bits. Those with values are
/// sums in f32.
///
/// # Panics
/// As [`remember`], or `shape.time` is not 1.
pub fn decode(cx: &Context, qkv: &[f32], table: &[f32], shape: Shape, cache: &mut Cache, out: &mut [f32]) {
    let start = cache.len();
    shape.check(qkv, table, start + 1);
    assert_eq!((shape.batch, shape.time), (1, 1), "decode takes one token of one sequence");
    assert_eq!(out.len(), shape.out_width(), "out of {shape:?}");
    let (head_dim, group) = (shape.head_dim, shape.group());
    let heads = cache.extend(shape, table.len() / head_dim);
    let (turn, out) = (&table[start * head_dim..][..head_dim], Strips::new(out, group * head_dim));
    // Key heads of a task: a token may not be worth waking the threads.
    let task = if (start + 1) * shape.out_width() < SMALL_STEP { shape.kv_heads } else { 1 };
    cx.each(shape.kv_heads / task, head_dim + start + 1, |index, desk| {
        let (row, p) = desk.split_at_mut(head_dim);
        for kv_head in index * task..(index + 1) * task {
            // SAFETY: each head is in one task.
            let [head] = (unsafe { heads.get(kv_head) }) else { unreachable!("parts of one head") };
            // SAFETY: as above.
            let out = unsafe { out.slice(kv_head, 0, group * head_dim) };
            put(cx.tier(), (qkv, turn), shape, kv_head, start, row, head);
            let queries = qkv[kv_head * group * head_dim..].chunks_exact(head_dim);
            for (member, (query, out)) in queries.zip(out.chunks_exact_mut(head_dim)).enumerate() {
                rotate(cx.tier(), query, turn, shape.scale(), row);
                head.queries[member].set(cx.tier(), row);
                attend(cx.tier(), head, member, p, out);
            }
        }
    });
}

/// Puts keys and values of one head at positions from `start`; `key` is scratch.
fn put(
    tier: Tier,
    (qkv, turns): (&[f32], &[f32]),
    shape: Shape,
    kv_head: usize,
    start: usize,
    key: &mut [f32],
    head: &mut KeyHead,
) {
    let [_, keys, values] = heads_of(qkv, shape, 0, kv_head);
    for (token, turn) in (0..shape.time).zip(turns.chunks_exact(shape.head_dim)) {
        rotate(tier, keys.row(token), turn, 1.0, key);
        head.put(tier, start + token, key, values.row(token));
    }
}

tiered! {
    /// One head of one token, rotated and scaled.
    fn rotate(head: &[f32], turn: &[f32], scale: f32, to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(head) {
            *to = scale * from;
        }
        pack::rotate(to, turn, 1.0);
    }
}

/// A query of a head against its first `p.len()` keys; `p` is scratch.
fn attend(tier: Tier, head: &KeyHead, member: usize, p: &mut [f32], out: &mut [f32]) {
    let (codes, scales) = head.keys(p.len(), out.len());
    dots::dots(tier, &head.queries[member], codes, scales, p);
    let (codes, scales) = head.values(p.len(), out.len());
    let sum = weights(tier, p, scales);
    weigh(tier, codes, p, 1.0 / sum, out);
}

tiered! {
    /// Replaces scores by `e^(score − largest)`, times the scales of values; returns their sum without those.
    fn weights(p: &mut [f32], scales: &[f32]) -> f32 {
        let max = lanes::max(p);
        let sum = exp_sum(p, max);
        for (p, scale) in p.iter_mut().zip(scales) {
            *p *= scale;
        }
        sum
    }
}

/// Columns whose sums stay in registers.
const SUMS: usize = 64;

tiered! {
    /// Rows of `values` `[p.len()][out.len()]` summed with weights `p`, times `factor`.
    fn weigh(values: &[i8], p: &[f32], factor: f32, out: &mut [f32]) {
        let width = out.len();
        for (block, out) in out.chunks_mut(SUMS).enumerate() {
            let rows = values.chunks_exact(width).map(|row| &row[block * SUMS..]);
            if let Ok(out) = <&mut [f32; SUMS]>::try_from(&mut *out) {
                let mut sums = [0.0; SUMS];
                for (row, p) in rows.zip(p) {
                    if let Some(row) = row.first_chunk::<SUMS>() {
                        for l in 0..SUMS {
                            sums[l] = p.mul_add(f32::from(row[l]), sums[l]);
                        }
                    }
                }
                for l in 0..SUMS {
                    out[l] = sums[l] * factor;
                }
            } else {
                out.fill(0.0);
                for (row, p) in rows.zip(p) {
                    for (out, value) in out.iter_mut().zip(row) {
                        *out = p.mul_add(f32::from(*value), *out);
                    }
                }
                for out in out {
                    *out *= factor;
                }
            }
        }
    }
}
