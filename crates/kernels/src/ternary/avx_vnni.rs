//! Tiles with AVX-VNNI: `vpdpbusd` multiplies 32 codes by 32 activations and adds fours to 32-bit lanes.
//!
//! The same tile as with AVX2, half the instructions: the limit is again 64 multiply-adds a cycle, but
//! loads and additions no longer stand in its way.

use std::arch::x86_64::{
    _mm256_and_si256, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_srli_epi16,
};

use super::{GROUP, STEP};
use crate::{
    Tier,
    tier::Level,
    tile::{COLUMNS, Out, store},
};

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, x: &[u8], steps: usize, codes: &[u8], out: &mut Out<'_>) {
    let rows = out.rows();
    assert!(tier.level() == Level::AvxVnni && x.len() >= rows.next_multiple_of(ROWS) * steps * STEP);
    assert!(codes.len() >= steps * STEP * COLUMNS);
    for (row, x) in (0..rows).step_by(ROWS).zip(x.chunks_exact(ROWS * steps * STEP)) {
        // SAFETY: the tier proves AVX-VNNI; `x` holds a panel of rows and `codes` one of codes, as asserted.
        unsafe { tile(x, row, steps, codes, out) }
    }
}

/// # Safety
/// Needs AVX-VNNI, 24 values in `x` and 64 bytes in `codes` for each step.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn tile(x: &[u8], row: usize, steps: usize, codes: &[u8], out: &mut Out<'_>) {
    const R: usize = ROWS;
    out.prefetch::<R>(row);
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    for s in 0..steps {
        // SAFETY: s < steps, so 64 bytes of codes and four values of each row are there.
        unsafe {
            let c0 = _mm256_loadu_si256(codes.as_ptr().add(64 * s).cast());
            let c1 = _mm256_loadu_si256(codes.as_ptr().add(64 * s + 32).cast());
            for r in 0..R {
                let four = x.as_ptr().add(STEP * (R * s + r)).cast::<i32>().read_unaligned();
                let four = _mm256_set1_epi32(four);
                acc[r][0] = _mm256_dpbusd_avx_epi32(acc[r][0], c0, four);
                acc[r][1] = _mm256_dpbusd_avx_epi32(acc[r][1], c1, four);
            }
        }
    }
    let mut sums = [[[0; COLUMNS]; 1]; R];
    for r in 0..R {
        sums[r][0] = store::ymm(acc[r]);
    }
    out.finish(row, &sums);
}

/// One row, padded to whole groups, against one panel of packed codes.
pub(super) fn panel(tier: Tier, x: &[u8], packed: &[u8], out: &mut Out<'_>) {
    assert!(tier.level() == Level::AvxVnni && packed.len() * GROUP >= x.len() * 32);
    // SAFETY: the tier proves AVX-VNNI, and there are 32 bytes for each group, asserted above.
    unsafe { panel_sums(x, packed, out) }
}

/// # Safety
/// Needs AVX-VNNI, and 32 bytes in `packed` for each eight values in `x`.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn panel_sums(x: &[u8], packed: &[u8], out: &mut Out<'_>) {
    let low = _mm256_set1_epi8(3);
    let mut acc = [_mm256_setzero_si256(); 4];
    for g in 0..x.len() / GROUP {
        // SAFETY: 32 bytes of codes and eight of activations for every group.
        unsafe {
            let bytes = _mm256_loadu_si256(packed.as_ptr().add(32 * g).cast());
            let fours = x.as_ptr().add(GROUP * g).cast::<i32>();
            let near = _mm256_set1_epi32(fours.read_unaligned());
            let far = _mm256_set1_epi32(fours.add(1).read_unaligned());
            acc[0] = _mm256_dpbusd_avx_epi32(acc[0], _mm256_and_si256(bytes, low), near);
            let codes = _mm256_and_si256(_mm256_srli_epi16(bytes, 2), low);
            acc[1] = _mm256_dpbusd_avx_epi32(acc[1], codes, near);
            let codes = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
            acc[2] = _mm256_dpbusd_avx_epi32(acc[2], codes, far);
            let codes = _mm256_and_si256(_mm256_srli_epi16(bytes, 6), low);
            acc[3] = _mm256_dpbusd_avx_epi32(acc[3], codes, far);
        }
    }
    let (near, far) = (store::ymm([acc[0], acc[1]]), store::ymm([acc[2], acc[3]]));
    out.finish(0, &[[std::array::from_fn(|c| near[c] + far[c])]]);
}
