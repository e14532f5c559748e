//! Tiles with AMX: `tdpbsud` multiplies 16 rows of 64 activations by 64 codes of 16 outputs.
//!
//! Two panels of rows by two of outputs. The instruction limit is 1024 multiply-adds a cycle; the loads of
//! tiles, from the first cache and the second, stay just below it.

use crate::{
    Tier,
    amx::{self, ROWS, TILE, Tiles},
    tier::{Level, Registers},
    tile::{COLUMNS, Out},
};

/// See [`super::tiles`].
pub(super) fn tiles(
    tier: Tier,
    registers: &Registers,
    x: &[u8],
    steps: usize,
    codes: &[u8],
    out: &mut Out<'_>,
) {
    let (Level::Amx, Some(registers)) = (tier.level(), &registers.tiles) else {
        unreachable!("the tier has tile registers");
    };
    // SAFETY: the tier proves the features.
    unsafe { all(registers, x, steps, codes, out) }
}

/// # Safety
/// Needs the features named.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn all(registers: &Tiles, x: &[u8], steps: usize, codes: &[u8], out: &mut Out<'_>) {
    let panels = out.panels();
    let panel = codes.len() / panels;
    let codes = [&codes[..panel], &codes[(panels - 1) * panel..]];
    let mut sums = [[[0; COLUMNS]; 2]; 2 * ROWS];
    for (row, x) in (0..out.rows()).step_by(2 * ROWS).zip(x.chunks_exact(2 * steps * TILE)) {
        registers.int8(x.split_at(steps * TILE).into(), codes, amx::Right::Unsigned, steps, &mut sums);
        out.finish(row, &sums);
    }
}
