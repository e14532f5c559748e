//! How heads are laid out for products: rotated rows, and panels of sixteen columns or sixteen tokens.

use super::tile::N;

/// Where one head lies: element `(token, i)` at `offset + token·stride + i`.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) data: &'a [f32],
    pub(super) offset: usize,
    pub(super) stride: usize,
    pub(super) head_dim: usize,
}

impl<'a> Head<'a> {
    #[inline(always)]
    pub(super) fn row(self, token: usize) -> &'a [f32] {
        &self.data[self.offset + token * self.stride..][..self.head_dim]
    }
}

/// `(x, y) → (x·cos − y·sin, y·cos + x·sin)` for the pairs `(i, i + head_dim/2)` of one head; `turn` is
/// its row of the table. With `sign` −1 it turns back, which is also the backward: the inverse of a
/// rotation is its transpose.
#[inline(always)]
pub(super) fn rotate(head: &mut [f32], turn: &[f32], sign: f32) {
    let half = turn.len() / 2;
    let (xs, ys) = head.split_at_mut(half);
    let (cos, sin) = turn.split_at(half);
    for (((x, y), c), s) in xs.iter_mut().zip(ys).zip(cos).zip(sin) {
        let s = sign * s;
        (*x, *y) = (x.mul_add(*c, -(*y * s)), y.mul_add(*c, *x * s));
    }
}

/// Tokens of a head as rows of `width`, a multiple of sixteen, times `scale`; rotated by the rows of
/// `turn`, one per token, unless there are none. `to` decides how many tokens.
#[inline(always)]
pub(super) fn rows(from: Head<'_>, turn: Option<&[f32]>, scale: f32, width: usize, to: &mut [f32]) {
    for (token, to) in to.chunks_exact_mut(width).enumerate() {
        let (row, rest) = to.split_at_mut(from.head_dim);
        for (to, from) in row.iter_mut().zip(from.row(token)) {
            *to = from * scale;
        }
        rest.fill(0.0);
        if let Some(turn) = turn {
            rotate(row, &turn[token * from.head_dim..][..from.head_dim], 1.0);
        }
    }
}

/// Rows of `width` as panels `[width / 16][tokens][16]`: the inner index is tokens.
#[inline(always)]
pub(super) fn by_columns(rows: &[f32], width: usize, to: &mut [f32]) {
    let tokens = rows.len() / width;
    for (panel, to) in to.chunks_exact_mut(tokens * N).enumerate() {
        for (row, to) in rows.chunks_exact(width).zip(to.as_chunks_mut::<N>().0) {
            to.copy_from_slice(&row[panel * N..][..N]);
        }
    }
}

/// Rows of `width` as panels `[tokens / 16][head_dim][16]`, missing tokens zero: the inner index is that
/// of the head.
#[inline(always)]
pub(super) fn by_tokens(rows: &[f32], width: usize, head_dim: usize, to: &mut [f32]) {
    for (rows, to) in rows.chunks(N * width).zip(to.chunks_exact_mut(N * head_dim)) {
        let (to, _) = to.as_chunks_mut::<N>();
        if rows.len() < N * width {
            to.fill([0.0; N]);
        }
        for (c, row) in rows.chunks_exact(width).enumerate() {
            for (to, value) in to.iter_mut().zip(row) {
                to[c] = *value;
            }
        }
    }
}
