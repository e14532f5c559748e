//! Tiles in plain Rust: the truth that other tiers equal bit for bit.

use super::Block;
use crate::tile::{COLUMNS, Out};

/// Outputs of a tile.
pub(super) const ROWS: usize = 6;

/// See [`super::tiles`]: one output, one panel.
pub(super) fn tiles(block: Block<'_>, out: &mut Out<'_>) {
    for r in 0..out.rows() {
        let mut sums = [0; COLUMNS];
        let gradients = block.gradients[block.gradients_from(r, ROWS)..].chunks(2 * ROWS);
        let inputs = block.inputs[block.inputs_from(0)..].as_chunks::<{ 2 * COLUMNS }>().0;
        for (g, x) in gradients.zip(inputs).take(block.pairs) {
            for (sum, x) in sums.iter_mut().zip(x.as_chunks::<2>().0) {
                *sum += i32::from(g[0]) * i32::from(x[0]) + i32::from(g[1]) * i32::from(x[1]);
            }
        }
        out.finish(r, &[[sums]]);
    }
}
