//! Tiles in plain Rust: the truth that other tiers equal bit for bit.

use super::Factors;
use crate::tile::{COLUMNS, Out};

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// See [`super::tiles`]: one row, one panel.
pub(super) fn tiles(factors: Factors<'_>, out: &mut Out<'_>) {
    let pair = |bytes: &[u8], lane: usize| {
        let value = |at: usize| i32::from(i16::from_le_bytes([bytes[at], bytes[at + 1]]));
        [value(4 * lane), value(4 * lane + 2)]
    };
    for r in 0..out.rows() {
        let mut sums = [0; COLUMNS];
        let left = factors.rows(r, ROWS).chunks_exact(4 * ROWS);
        let right = factors.columns(0).chunks_exact(4 * COLUMNS);
        for (l, r_) in left.zip(right).take(factors.inner.div_ceil(2)) {
            let l = pair(l, r % ROWS);
            for (c, sum) in sums.iter_mut().enumerate() {
                let r = pair(r_, c);
                *sum += l[0] * r[0] + l[1] * r[1];
            }
        }
        out.finish(r, &[[sums]]);
    }
}
