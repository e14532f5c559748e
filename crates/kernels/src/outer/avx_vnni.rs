//! Tiles with AVX-VNNI: `vpdpbusd` multiplies 32 bytes by 32 and adds fours to 32-bit lanes.
//!
//! It takes unsigned bytes on one side: columns are offset by 128, which the sums of rows take back. The
//! instruction limit is 64 multiply-adds a cycle.

use std::arch::x86_64::{
    _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_setzero_si256,
};

use super::Factors;
use crate::{
    Tier,
    tier::Level,
    tile::{COLUMNS, Out, store},
};

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, factors: Factors<'_>, out: &mut Out<'_>) {
    assert!(tier.level() == Level::AvxVnni);
    let quads = factors.inner.div_ceil(4);
    let right = factors.columns(0);
    assert!(right.len() >= quads * 4 * COLUMNS);
    for row in (0..out.rows()).step_by(ROWS) {
        let left = factors.rows(row, ROWS);
        assert!(left.len() >= quads * 4 * ROWS);
        // SAFETY: the tier proves AVX-VNNI, and both panels hold the quads, asserted above.
        unsafe { tile(left, right, quads, row, out) }
    }
}

/// # Safety
/// Needs AVX-VNNI, and panels that hold `quads` quads.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn tile(left: &[u8], right: &[u8], quads: usize, row: usize, out: &mut Out<'_>) {
    const R: usize = ROWS;
    out.prefetch::<R>(row);
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    for quad in 0..quads {
        // SAFETY: quad < quads: the caller vouches for 64 bytes of columns and 24 of rows.
        unsafe {
            let x = right.as_ptr().add(quad * 4 * COLUMNS);
            let (x0, x1) = (_mm256_loadu_si256(x.cast()), _mm256_loadu_si256(x.add(32).cast()));
            for r in 0..R {
                let g = left.as_ptr().add(4 * (quad * ROWS + r)).cast::<i32>().read_unaligned();
                let g = _mm256_set1_epi32(g);
                acc[r][0] = _mm256_dpbusd_avx_epi32(acc[r][0], x0, g);
                acc[r][1] = _mm256_dpbusd_avx_epi32(acc[r][1], x1, g);
            }
        }
    }
    let mut sums = [[[0; COLUMNS]; 1]; R];
    for r in 0..R {
        sums[r][0] = store::ymm(acc[r]);
    }
    out.finish(row, &sums);
}
