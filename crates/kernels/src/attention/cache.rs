//! Keys and values of one sequence, by head, as int8 rows with a scale each.
//!
//! A quarter of the bytes of f32: of a long sequence, a new token would read more of these than of packed
//! weights. The rows of a head follow each other, so that memory comes as one stream.

use super::Shape;
use crate::{
    Tier,
    dots::Rounded,
    lines::{Lines, grow},
    rows,
    strips::Parts,
};

/// Positions that a cache has room for at first; the room doubles when it is full.
const ROOM: usize = 64;

/// Rotated keys, and values, of the positions of one sequence so far; empty at first.
#[derive(Debug, Default)]
pub struct Cache {
    heads: Vec<KeyHead>,
    head_dim: usize,
    /// Positions that there is room for.
    room: usize,
    /// Positions that are kept.
    len: usize,
}

impl Cache {
    /// Positions that are kept.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Counts `shape.time` positions more, to be put by whoever has a head; makes room for up to `most`.
    ///
    /// # Panics
    /// The cache holds positions of heads of another number or width.
    pub(super) fn extend(&mut self, shape: Shape, most: usize) -> Parts<'_, KeyHead> {
        let same = (self.heads.len(), self.head_dim) == (shape.kv_heads, shape.head_dim);
        assert!(self.is_empty() || same, "the cache holds other heads than those of {shape:?}");
        self.head_dim = shape.head_dim;
        let len = self.len + shape.time;
        if len > self.room {
            self.room = len.next_power_of_two().max(ROOM).min(most.max(len));
        }
        self.heads.resize_with(shape.kv_heads, KeyHead::default);
        self.heads.iter_mut().for_each(|head| head.reserve(shape, self.room));
        self.len = len;
        Parts::new(&mut self.heads, 1)
    }
}

/// One key head with its values.
#[derive(Debug, Default)]
pub(super) struct KeyHead {
    /// Int8 rows, `[room][head_dim]`.
    keys: Lines,
    values: Lines,
    /// Their scales, `[room]`.
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    /// Queries of its group.
    pub(super) queries: Vec<Rounded>,
}

impl KeyHead {
    fn reserve(&mut self, shape: Shape, room: usize) {
        for (rows, scales) in
            [(&mut self.keys, &mut self.key_scales), (&mut self.values, &mut self.value_scales)]
        {
            rows.sized(room * shape.head_dim);
            grow(scales, room);
        }
        self.queries.resize_with(shape.group(), Rounded::default);
    }

    /// Puts a rotated key and a value at a position.
    pub(super) fn put(&mut self, tier: Tier, position: usize, key: &[f32], value: &[f32]) {
        for (row, (rows, scales)) in [
            (key, (&mut self.keys, &mut self.key_scales)),
            (value, (&mut self.values, &mut self.value_scales)),
        ] {
            let end = (position + 1) * row.len();
            let codes = &mut rows.sized(end)[position * row.len()..end];
            scales[position] = rows::quantize_row(tier, row, bytemuck::cast_slice_mut(codes));
        }
    }

    /// Codes and scales of the first `count` keys.
    pub(super) fn keys(&self, count: usize, head_dim: usize) -> (&[i8], &[f32]) {
        (bytemuck::cast_slice(&self.keys.bytes()[..count * head_dim]), &self.key_scales[..count])
    }

    /// Codes and scales of the first `count` values.
    pub(super) fn values(&self, count: usize, head_dim: usize) -> (&[i8], &[f32]) {
        (bytemuck::cast_slice(&self.values.bytes()[..count * head_dim]), &self.value_scales[..count])
    }
}
