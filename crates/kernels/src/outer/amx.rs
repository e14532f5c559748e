//! Tiles with AMX: int8 in one product of bytes, larger integers in one for each pair of their planes.

use super::{Factors, Kind};
use crate::{
    Tier,
    amx::{self, DEPTH, Tiles},
    tier::{Level, Registers},
    tile::{COLUMNS, Out},
};

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, registers: &Registers, kind: Kind, factors: Factors<'_>, out: &mut Out<'_>) {
    let (Level::Amx, Some(registers)) = (tier.level(), &registers.tiles) else {
        unreachable!("the tier has tile registers");
    };
    // SAFETY: the tier proves the features.
    unsafe {
        match kind {
            Kind::Int8 => int8(registers, factors, out),
            Kind::Int16 => int16(registers, factors, out),
            Kind::Twelve => twelve(registers, factors, out),
        }
    }
}

/// # Safety
/// Needs the features named.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn int8(registers: &Tiles, factors: Factors<'_>, out: &mut Out<'_>) {
    let steps = factors.inner.div_ceil(DEPTH);
    let panels = out.panels();
    let right = [factors.columns(0), factors.columns(panels - 1)];
    let mut sums = [[[0; COLUMNS]; 2]; 2 * amx::ROWS];
    for row in (0..out.rows()).step_by(2 * amx::ROWS) {
        let left = [row, row + amx::ROWS].map(|row| factors.rows(row, amx::ROWS));
        registers.int8(left, right, amx::Right::Signed, steps, &mut sums);
        out.finish(row, &sums);
    }
}

/// # Safety
/// Needs the features named.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn int16(registers: &Tiles, factors: Factors<'_>, out: &mut Out<'_>) {
    let steps = factors.inner.div_ceil(DEPTH);
    let panels = out.panels();
    let right = [factors.columns(0), factors.columns(panels - 1)];
    let (mut sums, mut lower) = ([[[0; COLUMNS]; 2]; amx::ROWS], [[[0; COLUMNS]; 2]; amx::ROWS]);
    for row in (0..out.rows()).step_by(amx::ROWS) {
        let left = factors.rows(row, amx::ROWS);
        registers.int16(left, right, steps, (&mut sums, &mut lower));
        for (sums, lower) in sums.iter_mut().flatten().zip(lower.iter().flatten()) {
            for c in 0..COLUMNS {
                // The whole fits an i32, whatever its parts do.
                sums[c] = (sums[c] << 8).wrapping_add(lower[c]);
            }
        }
        out.finish(row, &sums);
    }
}

/// # Safety
/// Needs the features named.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn twelve(registers: &Tiles, factors: Factors<'_>, out: &mut Out<'_>) {
    let steps = factors.inner.div_ceil(DEPTH);
    let right = factors.columns(0);
    let mut planes = [[[0; COLUMNS]; amx::ROWS]; 3];
    let mut sums = [[[0; COLUMNS]; 1]; amx::ROWS];
    for row in (0..out.rows()).step_by(amx::ROWS) {
        let left = factors.rows(row, amx::ROWS);
        registers.int16_both(left, right, steps, &mut planes);
        let [upper, middle, lower] = &planes;
        for (r, sums) in sums.iter_mut().enumerate() {
            for c in 0..COLUMNS {
                let upper = (upper[r][c] << 16).wrapping_add(middle[r][c] << 8);
                sums[0][c] = upper.wrapping_add(lower[r][c]);
            }
        }
        out.finish(row, &sums);
    }
}
