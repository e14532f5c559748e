//! Tiles with AVX2: `vpmaddwd` multiplies sixteen pairs of int16 and adds them in pairs to i32.
//!
//! Per pair of tokens: two loads of inputs, and for each output one broadcast, two multiplies and two
//! additions. The instruction limit is 32 multiply-adds a cycle.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
};

use super::Block;
use crate::{
    Tier,
    tier::Level,
    tile::{COLUMNS, Out, store},
};

/// Outputs of a tile.
pub(super) const ROWS: usize = 6;

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, block: Block<'_>, out: &mut Out<'_>) {
    assert!(matches!(tier.level(), Level::Avx2 | Level::AvxVnni) && block.holds(out.rows(), ROWS, 1));
    for row in (0..out.rows()).step_by(ROWS) {
        // SAFETY: both tiers prove AVX2, and the block holds whole panels of all rows, asserted above.
        unsafe { tile(block, row, out) }
    }
}

/// # Safety
/// Needs AVX2, and a block that holds the panel of rows from `row` on and one panel of columns.
#[target_feature(enable = "avx2")]
unsafe fn tile(block: Block<'_>, row: usize, out: &mut Out<'_>) {
    const R: usize = ROWS;
    out.prefetch::<R>(row);
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    // SAFETY: the caller vouches for the block: `pairs` pairs from both places on.
    unsafe {
        let inputs = block.inputs.as_ptr().add(block.inputs_from(0));
        let gradients = block.gradients.as_ptr().add(block.gradients_from(row, ROWS));
        for pair in 0..block.pairs {
            let x = inputs.add(pair * 2 * COLUMNS).cast::<__m256i>();
            let (x0, x1) = (_mm256_loadu_si256(x), _mm256_loadu_si256(x.add(1)));
            for r in 0..R {
                let g = gradients.add(2 * (pair * ROWS + r)).cast::<i32>().read_unaligned();
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
