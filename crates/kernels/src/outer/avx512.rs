//! Tiles with AVX-512 VNNI: `vpdpbusd` multiplies 64 bytes by 64 and adds fours, `vpdpwssd` multiplies 32
//! pairs of int16 and adds pairs, both to i32.
//!
//! Twelve rows by two panels: 24 accumulators, two registers of columns and a broadcast. The instruction
//! limits are 128 and 64 multiply-adds a cycle where both 512-bit ports multiply.

use std::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_si512,
};

use super::Factors;
use crate::{
    Tier,
    tier::Level,
    tile::{COLUMNS, Out, store},
};

/// Rows of a tile.
pub(super) const ROWS: usize = 12;

/// See [`super::tiles`]: pairs of int16.
pub(super) fn pairs(tier: Tier, factors: Factors<'_>, out: &mut Out<'_>) {
    tiles::<false>(tier, factors, factors.inner.div_ceil(2), out);
}

/// See [`super::tiles`]: bytes, those of columns offset by 128, which the sums of rows take back.
pub(super) fn quads(tier: Tier, factors: Factors<'_>, out: &mut Out<'_>) {
    tiles::<true>(tier, factors, factors.inner.div_ceil(4), out);
}

/// `steps` of four bytes a lane.
fn tiles<const BYTES: bool>(tier: Tier, factors: Factors<'_>, steps: usize, out: &mut Out<'_>) {
    assert!(tier.level() == Level::Avx512);
    let panels = out.panels();
    assert!((1..=2).contains(&panels), "tiles have one panel or two");
    let right = [factors.columns(0), factors.columns(panels - 1)];
    assert!(right.iter().all(|right| right.len() >= steps * 4 * COLUMNS));
    for row in (0..out.rows()).step_by(ROWS) {
        let left = factors.rows(row, ROWS);
        assert!(left.len() >= steps * 4 * ROWS);
        // SAFETY: the tier proves AVX-512 VNNI, and all panels hold the steps, asserted above.
        unsafe {
            match panels {
                1 => tile::<1, BYTES>(left, [right[0]], steps, row, out),
                _ => tile::<2, BYTES>(left, right, steps, row, out),
            }
        }
    }
}

/// # Safety
/// Needs AVX-512 VNNI, and panels that hold `steps` steps.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<const P: usize, const BYTES: bool>(
    left: &[u8],
    right: [&[u8]; P],
    steps: usize,
    row: usize,
    out: &mut Out<'_>,
) {
    const R: usize = ROWS;
    out.prefetch::<R>(row);
    let mut acc = [[_mm512_setzero_si512(); P]; R];
    for step in 0..steps {
        let mut x = [_mm512_setzero_si512(); P];
        // SAFETY: step < steps: the caller vouches for 64 bytes of each panel of columns and 48 of rows.
        unsafe {
            for p in 0..P {
                x[p] = _mm512_loadu_si512(right[p].as_ptr().add(step * 4 * COLUMNS).cast());
            }
            for r in 0..R {
                let g = left.as_ptr().add(4 * (step * ROWS + r)).cast::<i32>().read_unaligned();
                let g = _mm512_set1_epi32(g);
                for p in 0..P {
                    acc[r][p] = multiply::<BYTES>(acc[r][p], x[p], g);
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

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<const BYTES: bool>(acc: __m512i, x: __m512i, g: __m512i) -> __m512i {
    if BYTES { _mm512_dpbusd_epi32(acc, x, g) } else { _mm512_dpwssd_epi32(acc, x, g) }
}
