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

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, x: &[i8], inputs: usize, codes: &[u8], out: &mut Out<'_>) {
    let rows = out.rows();
    assert!(tier.level() == Level::AvxVnni && x.len() == rows * inputs);
    assert!(codes.len() >= inputs.div_ceil(STEP) * STEP * COLUMNS);
    // SAFETY: the tier proves AVX-VNNI; `x` holds `rows` rows and `codes` a panel, asserted above.
    unsafe { all_rows(x, rows, inputs, codes, out) }
}

/// # Safety
/// Needs AVX-VNNI, `rows · inputs` values in `x`, and in `codes` 64 bytes for each started step.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn all_rows(x: &[i8], rows: usize, inputs: usize, codes: &[u8], out: &mut Out<'_>) {
    let mut row = 0;
    // SAFETY: each call reads rows below `rows`, and the caller vouches for the rest.
    unsafe {
        while row + 6 <= rows {
            tile::<6>(x, row, inputs, codes, out);
            row += 6;
        }
        while row + 2 <= rows {
            tile::<2>(x, row, inputs, codes, out);
            row += 2;
        }
        if row < rows {
            tile::<1>(x, row, inputs, codes, out);
        }
    }
}

/// # Safety
/// As [`all_rows`], with `row + R` rows.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn tile<const R: usize>(x: &[i8], row: usize, inputs: usize, codes: &[u8], out: &mut Out<'_>) {
    let rows = &x[row * inputs..(row + R) * inputs];
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    for s in 0..inputs.div_ceil(STEP) {
        // SAFETY: `codes` has 64 bytes for every started step, and whole steps have four values a row.
        unsafe {
            let c0 = _mm256_loadu_si256(codes.as_ptr().add(64 * s).cast());
            let c1 = _mm256_loadu_si256(codes.as_ptr().add(64 * s + 32).cast());
            for r in 0..R {
                let four = if STEP * (s + 1) <= inputs {
                    rows.as_ptr().add(r * inputs + STEP * s).cast::<i32>().read_unaligned()
                } else {
                    super::last_step(&rows[r * inputs..(r + 1) * inputs])
                };
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
