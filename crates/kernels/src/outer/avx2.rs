//! Tiles with AVX2: `vpmaddwd` multiplies sixteen pairs of int16 and adds them in pairs to i32.
//!
//! Per pair of inner indices: two loads of columns, and for each row one broadcast, two multiplies and two
//! additions. The instruction limit is 32 multiply-adds a cycle.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
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
    assert!(matches!(tier.level(), Level::Avx2 | Level::AvxVnni));
    let pairs = factors.inner.div_ceil(2);
    let right = factors.columns(0);
    assert!(right.len() >= pairs * 4 * COLUMNS);
    for row in (0..out.rows()).step_by(ROWS) {
        let left = factors.rows(row, ROWS);
        assert!(left.len() >= pairs * 4 * ROWS);
        // SAFETY: both tiers prove AVX2, and both panels hold the pairs, asserted above.
        unsafe { tile(left, right, pairs, row, out) }
    }
}

/// # Safety
/// Needs AVX2, and panels that hold `pairs` pairs.
#[target_feature(enable = "avx2")]
unsafe fn tile(left: &[u8], right: &[u8], pairs: usize, row: usize, out: &mut Out<'_>) {
    const R: usize = ROWS;
    out.prefetch::<R>(row);
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    for pair in 0..pairs {
        // SAFETY: pair < pairs: the caller vouches for 64 bytes of columns and 24 of rows.
        unsafe {
            let x = right.as_ptr().add(pair * 4 * COLUMNS).cast::<__m256i>();
            let (x0, x1) = (_mm256_loadu_si256(x), _mm256_loadu_si256(x.add(1)));
            for r in 0..R {
                let g = left.as_ptr().add(4 * (pair * ROWS + r)).cast::<i32>().read_unaligned();
                let g = _mm256_set1_epi32(g);
                acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(g, x0));
                acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(g, x1));
            }
        }
    }
    let mut sums = [[[0; COLUMNS]; 1]; R];
    for r in 0..R {
        sums[r][0] = store::ymm(acc[r]);
    }
    out.finish(row, &sums);
}
