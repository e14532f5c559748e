//! Relations within queries, within keys and within values, as what one model learns from another (Wang et al. 2020,
//! MiniLMv2, arXiv:2012.15828).
//!
//! Of a head `A` `[time][head_dim]` of a sequence they are the rows of `softmax(A·Aᵀ / √head_dim)`, over all tokens of
//! the sequence, before any rotation. How far those of one `A` are from those `R` of another is the mean of
//! `KL(R ‖ S)` over tokens, heads, and the three kinds; its gradient is `(D + Dᵀ)·A / √head_dim` with `D = S − R`.
//!
//! As in attention, the work goes in blocks of rows, and each task owns the columns it writes.

use super::{
    BLOCK, Desk, Shape, add_products, head_of, mask, pack, score, score_stride,
    tile::{N, Rows, products},
};
use crate::{
    Context,
    lanes::{self, exp_sum, ln},
    strips::Strips,
};

/// Adds `weight` times the gradient of that mean to `d_qkv` and returns the mean: of `qkv` from `of`, both and `d_qkv`
/// `[batch·time, qkv_width]`.
///
/// # Panics
/// A slice does not fit `shape`.
pub fn relate(cx: &Context, qkv: &[f32], of: &[f32], shape: Shape, weight: f32, d_qkv: &mut [f32]) -> f64 {
    let (width, groups) = (shape.qkv_width(), shape.heads + 2 * shape.kv_heads);
    assert_eq!(qkv.len(), shape.rows() * width, "qkv of {shape:?}");
    assert!(of.len() == qkv.len() && d_qkv.len() == qkv.len(), "what is related, of {shape:?}");
    let d_qkv = Strips::new(d_qkv, width);
    let tasks = if shape.time == 0 { 0 } else { shape.batch * groups };
    // Of the mean over three kinds, heads of a kind and tokens, what a row of a head is.
    let share = |group: usize| {
        let heads = if group < shape.heads { shape.heads } else { shape.kv_heads };
        1.0 / (3 * heads * shape.rows()) as f32
    };
    cx.with_floats(tasks, |sums| {
        let places = Strips::new(sums, 1);
        cx.each(tasks, memory(shape), |task, desk| {
            let place = (task / groups, task % groups);
            let share = share(place.1);
            let sum = group(cx.tier(), cx.tier().wide(), qkv, of, shape, place, weight * share, desk, d_qkv);
            // SAFETY: no other task has this place.
            let to = unsafe { places.slice(task, 0, 1) };
            to[0] = share * sum;
        });
        sums.iter().copied().map(f64::from).sum()
    })
}

/// Floats that [`group`] works on.
fn memory(shape: Shape) -> usize {
    let (width, panels) = (shape.padded(), shape.time.next_multiple_of(N));
    let block = BLOCK.min(shape.time);
    width * (4 * shape.time + 2 * panels) + (2 * block + 1) * score_stride(shape.time)
}

tiered! {
    /// One head of queries, keys or values of a sequence: adds `weight` times the gradient of the sum of its
    /// divergences, and returns the sum.
    fn group(
        wide: bool,
        qkv: &[f32],
        of: &[f32],
        shape: Shape,
        place: (usize, usize),
        weight: f32,
        desk: &mut [f32],
        d_qkv: Strips<'_>,
    ) -> f32 {
        let (Shape { time, head_dim, .. }, (sequence, group)) = (shape, place);
        let (width, block, stride) = (shape.padded(), BLOCK.min(time), score_stride(time));
        let mut desk = Desk(desk);
        let [rows, their_rows, columns, d_rows] = [(); 4].map(|()| desk.take(time * width));
        let [panels, their_panels] = [(); 2].map(|()| desk.take(time.next_multiple_of(N) * width));
        let [scores, theirs] = [(); 2].map(|()| desk.take(block * stride));
        let gap = desk.0;
        let sides = [(qkv, &mut *rows, &mut *panels), (of, &mut *their_rows, &mut *their_panels)];
        for (data, rows, panels) in sides {
            let head = head_of(data, shape, sequence, shape.qkv_width(), group * head_dim);
            pack::rows(head, None, 1.0, width, rows);
            pack::by_tokens(rows, width, head_dim, panels);
            rows.iter_mut().for_each(|x| *x *= shape.scale());
        }
        pack::by_columns(rows, width, columns);
        d_rows.fill(0.0);
        let mut sum = 0.0;
        for first in (0..time).step_by(block) {
            let count = block.min(time - first);
            let of_block = (width, first, count, head_dim);
            score(wide, rows, of_block, panels, time, scores, stride);
            score(wide, their_rows, of_block, their_panels, time, theirs, stride);
            for i in 0..count {
                let row = i * stride..i * stride + time.next_multiple_of(N);
                sum += differ(&mut scores[row.clone()], &mut theirs[row], gap, time, weight);
            }
            products(
                wide,
                (count, width / N),
                |top| Rows::new(scores, stride, top, count - top, time),
                |panel| columns[panel * time * N..][..time * N].as_chunks().0,
                |row, panel, sums| {
                    let to = &mut d_rows[(first + row) * width + panel * N..][..N];
                    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
                },
            );
            add_products(wide, scores, stride, columns, (time, first, count), time, d_rows, width);
        }
        for (token, d_row) in d_rows.chunks_exact(width).enumerate() {
            // SAFETY: no other task writes the columns of this head in rows of this sequence.
            let to = unsafe { d_qkv.slice(sequence * time + token, group * head_dim, head_dim) };
            to.iter_mut().zip(d_row).for_each(|(to, d)| *to += d);
        }
        sum
    }
}

/// One row: from scaled scores `s` and `r` of `time` tokens, `s` goes to `weight·(S − R)`; returns `KL(R ‖ S)`.
#[inline(always)]
fn differ(s: &mut [f32], r: &mut [f32], gap: &mut [f32], time: usize, weight: f32) -> f32 {
    let gap = &mut gap[..time];
    for ((gap, s), r) in gap.iter_mut().zip(&*s).zip(&*r) {
        *gap = r - s;
    }
    let [(s, mine), (r, their)] = [s, r].map(|row| {
        let row = mask(row, time);
        let max = lanes::max(row);
        let sum = exp_sum(row, max);
        (row, (1.0 / sum, max + ln(sum)))
    });
    let mean_gap = lanes::dot(&r[..time], gap) * their.0;
    for (s, r) in s.iter_mut().zip(&*r) {
        *s = weight * (*s * mine.0 - *r * their.0);
    }
    mean_gap - their.1 + mine.1
}
