//! Tiles with AVX2: `vpmaddubsw` multiplies 32 codes by 32 activations and adds pairs.
//!
//! Per step of four inputs: two loads of codes, one broadcast of four activations per row, and for each
//! row two multiplies and two 16-bit additions. Twelve accumulators, two code registers and a product
//! fill the sixteen registers. The instruction limit is 64 multiply-adds a cycle.

use std::arch::x86_64::{
    _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_srli_epi16,
};

use super::{GROUP, STEP};
use crate::{
    Tier,
    tier::Level,
    tile::{COLUMNS, Out, store},
};

/// Steps that 16-bit lanes can sum before they must be widened: each step adds one pair of products
/// of a code in {0, 1, 2} and an activation in [-127, 127] to a lane.
const STEPS_16: usize = 64;
const _: () = assert!(STEPS_16 * 2 * (2 * 127) <= i16::MAX as usize);

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, x: &[u8], steps: usize, codes: &[u8], out: &mut Out<'_>) {
    let rows = out.rows();
    assert!(tier.level() == Level::Avx2 && x.len() >= rows.next_multiple_of(ROWS) * steps * STEP);
    assert!(codes.len() >= steps * STEP * COLUMNS);
    for (row, x) in (0..rows).step_by(ROWS).zip(x.chunks_exact(ROWS * steps * STEP)) {
        // SAFETY: the tier proves AVX2; `x` holds a panel of rows and `codes` one of codes, as asserted.
        unsafe { tile(x, row, steps, codes, out) }
    }
}

/// # Safety
/// Needs AVX2, 24 values in `x` and 64 bytes in `codes` for each step.
#[target_feature(enable = "avx2")]
unsafe fn tile(x: &[u8], row: usize, steps: usize, codes: &[u8], out: &mut Out<'_>) {
    const R: usize = ROWS;
    out.prefetch::<R>(row);
    let ones = _mm256_set1_epi16(1);
    let mut wide = [[_mm256_setzero_si256(); 2]; R];
    let mut step = 0;
    while step < steps {
        let end = steps.min(step + STEPS_16);
        let mut acc = [[_mm256_setzero_si256(); 2]; R];
        for s in step..end {
            // SAFETY: s < steps, so 64 bytes of codes and four values of each row are there.
            unsafe {
                let c0 = _mm256_loadu_si256(codes.as_ptr().add(64 * s).cast());
                let c1 = _mm256_loadu_si256(codes.as_ptr().add(64 * s + 32).cast());
                for r in 0..R {
                    let four = x.as_ptr().add(STEP * (R * s + r)).cast::<i32>().read_unaligned();
                    let four = _mm256_set1_epi32(four);
                    acc[r][0] = _mm256_add_epi16(acc[r][0], _mm256_maddubs_epi16(c0, four));
                    acc[r][1] = _mm256_add_epi16(acc[r][1], _mm256_maddubs_epi16(c1, four));
                }
            }
        }
        for r in 0..R {
            for half in 0..2 {
                wide[r][half] = _mm256_add_epi32(wide[r][half], _mm256_madd_epi16(acc[r][half], ones));
            }
        }
        step = end;
    }
    let mut sums = [[[0; COLUMNS]; 1]; R];
    for r in 0..R {
        sums[r][0] = store::ymm(wide[r]);
    }
    out.finish(row, &sums);
}

/// One row, padded to whole groups, against one panel of packed codes.
pub(super) fn panel(tier: Tier, x: &[u8], packed: &[u8], out: &mut Out<'_>) {
    assert!(tier.level() == Level::Avx2 && packed.len() * GROUP >= x.len() * 32);
    // SAFETY: the tier proves AVX2, and there are 32 bytes for each group of eight, asserted above.
    unsafe { panel_sums(x, packed, out) }
}

/// # Safety
/// Needs AVX2, and 32 bytes in `packed` for each eight values in `x`.
#[target_feature(enable = "avx2")]
unsafe fn panel_sums(x: &[u8], packed: &[u8], out: &mut Out<'_>) {
    let (ones, low) = (_mm256_set1_epi16(1), _mm256_set1_epi8(3));
    let mut wide = [_mm256_setzero_si256(); 2];
    let groups = x.len() / GROUP;
    let mut group = 0;
    while group < groups {
        let end = groups.min(group + STEPS_16 / 2);
        let mut acc = [_mm256_setzero_si256(); 4];
        for g in group..end {
            // SAFETY: g < groups: 32 bytes of codes and eight of activations are there.
            unsafe {
                let bytes = _mm256_loadu_si256(packed.as_ptr().add(32 * g).cast());
                let fours = x.as_ptr().add(GROUP * g).cast::<i32>();
                let near = _mm256_set1_epi32(fours.read_unaligned());
                let far = _mm256_set1_epi32(fours.add(1).read_unaligned());
                let codes = [
                    (_mm256_and_si256(bytes, low), near),
                    (_mm256_and_si256(_mm256_srli_epi16(bytes, 2), low), near),
                    (_mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), far),
                    (_mm256_and_si256(_mm256_srli_epi16(bytes, 6), low), far),
                ];
                for (acc, (codes, four)) in acc.iter_mut().zip(codes) {
                    *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(codes, four));
                }
            }
        }
        for half in 0..2 {
            for acc in [acc[half], acc[half + 2]] {
                wide[half] = _mm256_add_epi32(wide[half], _mm256_madd_epi16(acc, ones));
            }
        }
        group = end;
    }
    out.finish(0, &[[store::ymm(wide)]]);
}
