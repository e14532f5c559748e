//! The tile with AVX2: `vpmaddwd` multiplies sixteen pairs of int16 and adds them in pairs to i32.
//!
//! Per pair of tokens: two loads of inputs, and for each output one broadcast, two multiplies and two
//! additions. The instruction limit is 32 multiply-adds a cycle.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_storeu_si256,
};

use super::{COLUMNS, Sums};
use crate::{Tier, tier::Level};

/// See [`super::tile`].
pub(super) fn tile(
    tier: Tier,
    gradients: &[i16],
    stride: usize,
    start: usize,
    rows: usize,
    packed: &[i16],
    sums: &mut Sums,
) {
    let pairs = packed.len() / (2 * COLUMNS);
    assert!(tier.level() == Level::Avx2);
    assert!(rows == 0 || (rows - 1) * stride + start + 2 * pairs <= gradients.len());
    // SAFETY: the tier proves AVX2; every row holds the block's pairs, asserted above.
    unsafe {
        match rows {
            1 => tile_rows::<1>(gradients, stride, start, pairs, packed, sums),
            2 => tile_rows::<2>(gradients, stride, start, pairs, packed, sums),
            3 => tile_rows::<3>(gradients, stride, start, pairs, packed, sums),
            4 => tile_rows::<4>(gradients, stride, start, pairs, packed, sums),
            5 => tile_rows::<5>(gradients, stride, start, pairs, packed, sums),
            6 => tile_rows::<6>(gradients, stride, start, pairs, packed, sums),
            _ => debug_assert_eq!(rows, 0, "a tile has at most six rows"),
        }
    }
}

/// # Safety
/// Needs AVX2, `pairs` pairs from `start` on in each of the `R` rows of `gradients`, which are `stride`
/// apart, and 32 values in `packed` for every pair.
#[target_feature(enable = "avx2")]
unsafe fn tile_rows<const R: usize>(
    gradients: &[i16],
    stride: usize,
    start: usize,
    pairs: usize,
    packed: &[i16],
    sums: &mut Sums,
) {
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    for pair in 0..pairs {
        // SAFETY: pair < pairs, and the caller vouches for the operands.
        unsafe {
            let x = packed.as_ptr().add(pair * 2 * COLUMNS).cast::<__m256i>();
            let (x0, x1) = (_mm256_loadu_si256(x), _mm256_loadu_si256(x.add(1)));
            for r in 0..R {
                let g = gradients.as_ptr().add(r * stride + start + 2 * pair).cast::<i32>().read_unaligned();
                let g = _mm256_set1_epi32(g);
                acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(g, x0));
                acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(g, x1));
            }
        }
    }
    for r in 0..R {
        // SAFETY: a row of sums is sixteen i32, two registers.
        unsafe {
            let out = sums[r].as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(out, acc[r][0]);
            _mm256_storeu_si256(out.add(1), acc[r][1]);
        }
    }
}
