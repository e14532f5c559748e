//! Tiles with AVX-512 VNNI: `vpdpwssd` multiplies 32 pairs of int16 and adds them in pairs to i32.
//!
//! Twelve outputs by two panels: 24 accumulators, two registers of inputs and a broadcast. The
//! instruction limit is 64 multiply-adds a cycle where both 512-bit ports multiply.

use std::arch::x86_64::{_mm512_dpwssd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512};

use super::Block;
use crate::{
    Tier,
    tier::Level,
    tile::{COLUMNS, Out, store},
};

/// Outputs of a tile.
pub(super) const ROWS: usize = 12;

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, block: Block<'_>, out: &mut Out<'_>) {
    assert!(
        tier.level() == Level::Avx512 && out.panels() <= 2 && block.holds(out.rows(), ROWS, out.panels())
    );
    for row in (0..out.rows()).step_by(ROWS) {
        // SAFETY: the tier proves AVX-512 VNNI, and the block holds whole panels of all rows and `P` of
        // columns, asserted above.
        unsafe {
            match out.panels() {
                1 => tile::<1>(block, row, out),
                2 => tile::<2>(block, row, out),
                _ => {}
            }
        }
    }
}

/// # Safety
/// Needs AVX-512 VNNI, and a block that holds the panel of rows from `row` on and `P` panels of columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<const P: usize>(block: Block<'_>, row: usize, out: &mut Out<'_>) {
    const R: usize = ROWS;
    out.prefetch::<R>(row);
    let mut acc = [[_mm512_setzero_si512(); P]; R];
    // SAFETY: the caller vouches for the block: `pairs` pairs from each place on.
    unsafe {
        let mut inputs = [block.inputs.as_ptr(); P];
        for p in 0..P {
            inputs[p] = inputs[p].add(block.inputs_from(p));
        }
        let gradients = block.gradients.as_ptr().add(block.gradients_from(row, ROWS));
        for pair in 0..block.pairs {
            let mut x = [_mm512_setzero_si512(); P];
            for p in 0..P {
                x[p] = _mm512_loadu_si512(inputs[p].add(pair * 2 * COLUMNS).cast());
            }
            for r in 0..R {
                let g = gradients.add(2 * (pair * ROWS + r)).cast::<i32>().read_unaligned();
                let g = _mm512_set1_epi32(g);
                for p in 0..P {
                    acc[r][p] = _mm512_dpwssd_epi32(acc[r][p], g, x[p]);
                }
            }
        }
    }
    let mut sums = [[[0; COLUMNS]; P]; R];
    for r in 0..R {
        for p in 0..P {
            sums[r][p] = store::zmm(acc[r][p]);
        }
    }
    out.finish(row, &sums);
}
