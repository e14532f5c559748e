//! Rows of the output head against one hidden state, four rows side by side: so much more of the head is
//! on its way at any time.

use crate::{Tier, lanes, tier::Level};

/// Rows that are read side by side.
pub(super) const STREAMS: usize = 4;

/// Dot product of `x`, of twelve bits, with each row of `codes` `[out.len(), x.len()]`, times both scales.
pub(super) fn dots(tier: Tier, (x, scale_x): (&[i16], f32), codes: &[i8], scales: &[f32], out: &mut [f32]) {
    let dim = x.len();
    let rows = codes.chunks(STREAMS * dim).zip(scales.chunks(STREAMS)).zip(out.chunks_mut(STREAMS));
    for ((codes, scales), out) in rows {
        let mut sums = [0.0; STREAMS];
        if out.len() == STREAMS {
            sums = four_dots(tier, x, codes);
        } else {
            for (sum, row) in sums.iter_mut().zip(codes.chunks_exact(dim)) {
                *sum = lanes::dot_integers(x, row);
            }
        }
        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
            *out = sum * (scale * scale_x);
        }
    }
}

/// Exact sums over blocks, added in f32, as [`lanes::dot_integers`].
fn four_dots(tier: Tier, x: &[i16], codes: &[i8]) -> [f32; STREAMS] {
    let mut totals = [0.0; STREAMS];
    let rows = [0, 1, 2, 3].map(|row| &codes[row * x.len()..][..x.len()]);
    for start in (0..x.len()).step_by(lanes::EXACT) {
        let part = start..x.len().min(start + lanes::EXACT);
        let (x, rows) = (&x[part.clone()], rows.map(|row| &row[part.clone()]));
        let sums = match tier.level() {
            Level::Scalar => rows.map(|row| plain(x, row)),
            #[cfg(any(test, target_arch = "aarch64"))]
            Level::Neon => rows.map(|row| plain(x, row)),
            // SAFETY: all other tiers of this processor have AVX2.
            #[cfg(target_arch = "x86_64")]
            _ => unsafe { avx2::four(x, rows) },
        };
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total += sum as f32;
        }
    }
    totals
}

fn plain(x: &[i16], row: &[i8]) -> i32 {
    x.iter().zip(row).map(|(x, code)| i32::from(*x) * i32::from(*code)).sum()
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_add_epi32, _mm256_cvtepi8_epi16,
        _mm256_loadu_si256, _mm256_madd_epi16, _mm256_setzero_si256, _mm256_storeu_si256,
    };

    use super::{STREAMS, plain};

    /// How far ahead of what it multiplies a row is fetched, in bytes.
    const AHEAD: usize = 2048;

    /// Sums of products that fit an i32.
    ///
    /// # Safety
    /// Needs AVX2, and rows as long as `x`.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn four(x: &[i16], rows: [&[i8]; STREAMS]) -> [i32; STREAMS] {
        const WIDTH: usize = 16;
        let whole = x.len() / WIDTH * WIDTH;
        let mut acc = [_mm256_setzero_si256(); STREAMS];
        for at in (0..whole).step_by(WIDTH) {
            // SAFETY: sixteen values from `at` on are in `x` and in every row; what is fetched ahead may
            // lie beyond, where fetching does nothing.
            unsafe {
                let x = _mm256_loadu_si256(x.as_ptr().add(at).cast());
                for r in 0..STREAMS {
                    let codes = rows[r].as_ptr().add(at);
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD));
                    let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.cast()));
                    acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(x, codes));
                }
            }
        }
        let mut sums = [0; STREAMS];
        for r in 0..STREAMS {
            let mut lanes = [0i32; 8];
            // SAFETY: the array is one register wide.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), acc[r]) };
            sums[r] = lanes.iter().sum::<i32>() + plain(&x[whole..], &rows[r][whole..]);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tier_equals_single_rows() {
        for tier in Tier::available() {
            for dim in (1..=70).chain([255, 256, 257, lanes::EXACT + 3]) {
                let x: Vec<i16> = (0..dim).map(|i| (i * 7919 % 4095) as i16 - 2047).collect();
                for rows in [1, 3, 4, 9] {
                    let codes: Vec<i8> = (0..rows * dim).map(|i| ((i * 104_729) % 255) as u8 as i8).collect();
                    let scales: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
                    let mut found = vec![f32::NAN; rows];
                    dots(tier, (&x, 0.25), &codes, &scales, &mut found);
                    for (row, found) in found.iter().enumerate() {
                        let sum = lanes::dot_integers(&x, &codes[row * dim..][..dim]);
                        assert_eq!(*found, sum * (scales[row] * 0.25), "{dim} {rows}");
                    }
                }
            }
        }
    }
}
