//! Attention of new tokens of one sequence, whose earlier keys and values lie in caches.

use super::{Head, Shape, attend, attend_memory, heads_of, pack};
use crate::{
    Context, Tier,
    lanes::{self, LANES, exp_sum},
    lines::{LINE, prefetch},
    strips::Strips,
};

/// Multiply-adds below which one generated token is not worth waking the threads.
const SMALL_STEP: usize = 1 << 14;

/// Attends from `time` new tokens of one sequence (`shape.batch` is 1) at positions `start..`.
///
/// `qkv` `[time, qkv_width]`, not rotated; `table` is that of [`super::rope_table`]. `k_cache` and `v_cache`
/// `[capacity, kv_heads·head_dim]` hold rotated keys, and values, of the positions before `start`; the
/// new ones are put in first. Writes `out` `[time, heads·head_dim]`.
///
/// # Panics
/// As [`super::forward`], or `shape.batch` is not 1, or the caches end before the last position.
pub fn decode(
    cx: &Context,
    qkv: &[f32],
    table: &[f32],
    shape: Shape,
    start: usize,
    k_cache: &mut [f32],
    v_cache: &mut [f32],
    out: &mut [f32],
) {
    let end = start + shape.time;
    shape.check(qkv, table, end);
    let (head_dim, kv_width) = (shape.head_dim, shape.kv_width());
    assert_eq!(shape.batch, 1, "decode takes one sequence");
    assert_eq!(out.len(), shape.rows() * shape.out_width(), "out of {shape:?}");
    assert_eq!(k_cache.len(), v_cache.len(), "caches of different sizes");
    assert!(end * kv_width <= k_cache.len(), "positions beyond the caches");
    if shape.time == 0 {
        return;
    }
    let turns = &table[start * head_dim..end * head_dim];
    let new = start * kv_width..end * kv_width;
    let caches = k_cache[new.clone()].chunks_exact_mut(kv_width).zip(v_cache[new].chunks_exact_mut(kv_width));
    for ((row, turn), (k, v)) in
        qkv.chunks_exact(shape.qkv_width()).zip(turns.chunks_exact(head_dim)).zip(caches)
    {
        let (new_k, new_v) = row[shape.out_width()..].split_at(kv_width);
        k.copy_from_slice(new_k);
        rotate_heads(cx.tier(), k, turn);
        v.copy_from_slice(new_v);
    }
    let (k_cache, v_cache) = (&*k_cache, &*v_cache);
    let cached = |data, kv_head: usize| Head { data, offset: kv_head * head_dim, stride: kv_width, head_dim };
    if shape.time == 1 {
        // One query is two matrix-vector products, for which nothing is worth laying out.
        return cx.with_floats(shape.out_width(), |q| {
            q.copy_from_slice(&qkv[..shape.out_width()]);
            rotate_heads(cx.tier(), q, turns);
            let q = &*q;
            let out = Strips::new(out, head_dim);
            // Heads of a task: a token may not be worth waking the threads.
            let heads = if end * shape.out_width() < SMALL_STEP { shape.heads } else { 1 };
            cx.each(shape.heads / heads, end, |task, p| {
                for head in task * heads..(task + 1) * heads {
                    let kv_head = head / shape.group();
                    let (k, v) = (cached(k_cache, kv_head), cached(v_cache, kv_head));
                    let q = &q[head * head_dim..][..head_dim];
                    // SAFETY: each head is in one task.
                    let out = unsafe { out.slice(head, 0, head_dim) };
                    attend_one(cx.tier(), q, k, v, shape.scale(), p, out);
                }
            });
        });
    }
    let out = Strips::new(out, shape.out_width());
    cx.with_floats(shape.time * shape.heads, |lse| {
        let lse = Strips::new(lse, shape.heads);
        cx.each(shape.kv_heads, attend_memory(shape, start), |kv_head, desk| {
            let [q, ..] = heads_of(qkv, shape, 0, kv_head);
            let heads = [q, cached(k_cache, kv_head), cached(v_cache, kv_head)];
            attend(
                cx.tier(),
                cx.tier().wide(),
                heads,
                (turns, None),
                shape,
                start,
                (0, kv_head),
                desk,
                out,
                lse,
            );
        });
    });
}

tiered! {
    /// Rotates all heads of one token.
    fn rotate_heads(heads: &mut [f32], turn: &[f32]) {
        for head in heads.chunks_exact_mut(turn.len()) {
            pack::rotate(head, turn, 1.0);
        }
    }
}

/// One query `[head_dim]` against the first `p.len()` keys; `p` is scratch.
fn attend_one(tier: Tier, q: &[f32], k: Head<'_>, v: Head<'_>, scale: f32, p: &mut [f32], out: &mut [f32]) {
    scores(tier, q, k, v, scale, p);
    let sum = exponentials(tier, p);
    weigh(tier, v, p, 1.0 / sum, out);
}

/// Asks for rows of a head.
#[inline(always)]
fn fetch(head: Head<'_>, keys: std::ops::Range<usize>) {
    for key in keys {
        head.row(key).chunks(LINE / size_of::<f32>()).for_each(|line| prefetch(line.as_ptr().addr()));
    }
}

/// Keys whose products run side by side.
const KEYS: usize = 4;
/// How many blocks of keys ahead rows are fetched: they lie apart in memory, where nothing else foresees them.
const AHEAD: usize = 4;

tiered! {
    /// `p[key] = scale · q·k[key]`; values are fetched on the way.
    fn scores(q: &[f32], k: Head<'_>, v: Head<'_>, scale: f32, p: &mut [f32]) {
        let (lanes_q, tail_q) = q.as_chunks::<LANES>();
        let count = p.len();
        fetch(k, 0..count.min(AHEAD * KEYS));
        for (block, p) in p.chunks_mut(KEYS).enumerate() {
            let ahead = (block + AHEAD) * KEYS;
            fetch(k, ahead..count.min(ahead + KEYS));
            fetch(v, block * KEYS..block * KEYS + p.len());
            let keys = [0, 1, 2, 3].map(|key| k.row(block * KEYS + key.min(p.len() - 1)));
            let mut acc = [[0.0; LANES]; KEYS];
            for (i, q) in lanes_q.iter().enumerate() {
                for key in 0..KEYS {
                    if let Some(k) = keys[key][i * LANES..].first_chunk::<LANES>() {
                        for l in 0..LANES {
                            acc[key][l] = q[l].mul_add(k[l], acc[key][l]);
                        }
                    }
                }
            }
            for ((p, mut acc), key) in p.iter_mut().zip(acc).zip(keys) {
                for ((acc, q), k) in acc.iter_mut().zip(tail_q).zip(&key[q.len() - tail_q.len()..]) {
                    *acc = q.mul_add(*k, *acc);
                }
                *p = scale * lanes::total(acc);
            }
        }
    }
}

tiered! {
    /// Replaces scores by `e^(score − largest)`; returns their sum.
    fn exponentials(p: &mut [f32]) -> f32 {
        let max = lanes::max(p);
        exp_sum(p, max)
    }
}

/// Columns whose sums stay in registers.
const SUMS: usize = 64;

tiered! {
    /// Rows of `v` summed with weights `p`, times `factor`.
    fn weigh(v: Head<'_>, p: &[f32], factor: f32, out: &mut [f32]) {
        for (block, out) in out.chunks_mut(SUMS).enumerate() {
            let from = block * SUMS;
            if let Ok(out) = <&mut [f32; SUMS]>::try_from(&mut *out) {
                let mut sums = [0.0; SUMS];
                for (key, p) in p.iter().enumerate() {
                    if let Some(v) = v.row(key)[from..].first_chunk::<SUMS>() {
                        for l in 0..SUMS {
                            sums[l] = p.mul_add(v[l], sums[l]);
                        }
                    }
                }
                for l in 0..SUMS {
                    out[l] = sums[l] * factor;
                }
            } else {
                out.fill(0.0);
                for (key, p) in p.iter().enumerate() {
                    for (out, v) in out.iter_mut().zip(&v.row(key)[from..]) {
                        *out = p.mul_add(*v, *out);
                    }
                }
                for out in out {
                    *out *= factor;
                }
            }
        }
    }
}
