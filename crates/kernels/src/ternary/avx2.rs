//! The tile with AVX2: `vpmaddubsw` multiplies 32 codes by 32 activations and adds pairs.
//!
//! Per step of four inputs: two loads of codes, one broadcast of four activations per row, and for each
//! row two multiplies and two 16-bit additions. Twelve accumulators, two code registers and a product
//! fill the sixteen registers. The instruction limit is 64 multiply-adds a cycle.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256,
};

use super::{COLUMNS, STEP, STEPS_16, Sums};
use crate::{Tier, tier::Level};

/// See [`super::tile`].
pub(super) fn tile(tier: Tier, x: &[i8], rows: usize, inputs: usize, codes: &[u8], sums: &mut Sums) {
    assert!(tier.level() == Level::Avx2 && x.len() == rows * inputs);
    assert!(codes.len() >= inputs.div_ceil(STEP) * STEP * COLUMNS);
    // SAFETY: the tier proves AVX2. `x` holds `rows` rows of `inputs` values and `codes` 64 bytes for
    // every step of four inputs, both asserted above; that is all the function reads.
    unsafe {
        match rows {
            1 => tile_rows::<1>(x, inputs, codes, sums),
            2 => tile_rows::<2>(x, inputs, codes, sums),
            3 => tile_rows::<3>(x, inputs, codes, sums),
            4 => tile_rows::<4>(x, inputs, codes, sums),
            5 => tile_rows::<5>(x, inputs, codes, sums),
            6 => tile_rows::<6>(x, inputs, codes, sums),
            _ => debug_assert_eq!(rows, 0, "a tile has at most six rows"),
        }
    }
}

/// # Safety
/// Needs AVX2, `R · inputs` values in `x`, and 64 bytes in `codes` for each started group of four inputs.
#[target_feature(enable = "avx2")]
unsafe fn tile_rows<const R: usize>(x: &[i8], inputs: usize, codes: &[u8], sums: &mut Sums) {
    let ones = _mm256_set1_epi16(1);
    let mut wide = [[_mm256_setzero_si256(); 2]; R];
    let whole = inputs / STEP;
    let mut step = 0;
    while step < whole {
        let end = whole.min(step + STEPS_16);
        let mut acc = [[_mm256_setzero_si256(); 2]; R];
        for s in step..end {
            // SAFETY: s < whole, so 64 bytes of codes and four values of each row are there.
            unsafe {
                let c0 = _mm256_loadu_si256(codes.as_ptr().add(64 * s).cast());
                let c1 = _mm256_loadu_si256(codes.as_ptr().add(64 * s + 32).cast());
                for r in 0..R {
                    let four = x.as_ptr().add(r * inputs + STEP * s).cast::<i32>().read_unaligned();
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
    if !inputs.is_multiple_of(STEP) {
        // The last one to three inputs, padded with zeros.
        // SAFETY: `codes` has a group for the started step.
        let (c0, c1) = unsafe {
            let codes = codes.as_ptr().add(64 * whole).cast::<__m256i>();
            (_mm256_loadu_si256(codes), _mm256_loadu_si256(codes.add(1)))
        };
        for r in 0..R {
            let mut four = [0u8; STEP];
            for (to, from) in four.iter_mut().zip(&x[r * inputs + STEP * whole..(r + 1) * inputs]) {
                *to = from.cast_unsigned();
            }
            let four = _mm256_set1_epi32(i32::from_le_bytes(four));
            for (half, codes) in [c0, c1].into_iter().enumerate() {
                let pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, four), ones);
                wide[r][half] = _mm256_add_epi32(wide[r][half], pairs);
            }
        }
    }
    for r in 0..R {
        // SAFETY: a row of sums is sixteen i32, two registers.
        unsafe {
            let out = sums[r].as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(out, wide[r][0]);
            _mm256_storeu_si256(out.add(1), wide[r][1]);
        }
    }
}
