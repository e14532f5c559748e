//! Tiles with NEON: signed bytes by signed bytes with `sdot`, int16 by int16 with `smlal`.
//!
//! The tiles are those of [`crate::neon`].

use super::{Factors, form::Layout};
use crate::{
    Tier,
    neon::{self, ROWS},
    tile::{COLUMNS, Out},
};

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, layout: Layout, factors: Factors<'_>, out: &mut Out<'_>) {
    let bytes = layout == Layout::Quads;
    let steps = factors.inner.div_ceil(if bytes { 4 } else { 2 });
    let columns = &factors.columns(0)[..steps * 4 * COLUMNS];
    for row in (0..out.rows()).step_by(ROWS) {
        let rows = &factors.rows(row, ROWS)[..steps * 4 * ROWS];
        let sums = if bytes { neon::bytes(tier, rows, columns) } else { neon::pairs(tier, rows, columns) };
        out.finish(row, &sums);
    }
}
