//! One vector in twelve bits against int8 rows: a hidden state against the output head, a query against keys.

use crate::{
    Tier, lanes,
    outer::{Kind, scale},
    tier::Level,
};

/// Rows that are read side by side.
pub(crate) const STREAMS: usize = 4;

/// A vector in twelve bits.
#[derive(Debug, Default)]
pub(crate) struct Rounded {
    values: Vec<i16>,
    scale: f32,
    /// The same as `64 · high + low`, with low six bits, for instructions that multiply bytes.
    high: Vec<i8>,
    low: Vec<i8>,
    /// Sums over blocks of [`lanes::EXACT`].
    sums: Vec<i32>,
}

impl Rounded {
    /// Rounds `x`.
    pub(crate) fn set(&mut self, tier: Tier, x: &[f32]) {
        self.values.resize(x.len(), 0);
        self.high.resize(x.len(), 0);
        self.low.resize(x.len(), 0);
        self.sums.clear();
        self.scale = round_row(tier, x, &mut self.values, &mut self.high, &mut self.low);
        let blocks = self.values.chunks(lanes::EXACT);
        self.sums.extend(blocks.map(|block| block.iter().map(|x| i32::from(*x)).sum::<i32>()));
    }
}

tiered! {
    /// Rounds `x` to twelve bits; returns the scale.
    fn round_row(x: &[f32], to: &mut [i16], high: &mut [i8], low: &mut [i8]) -> f32 {
        let (scale, inverse) = scale(lanes::max_abs(x), Kind::Twelve.left_bound());
        let n = x.len();
        let (to, high, low) = (&mut to[..n], &mut high[..n], &mut low[..n]);
        for i in 0..n {
            let value = lanes::round(x[i] * inverse);
            to[i] = value as i16;
            high[i] = (value >> 6) as i8;
            low[i] = (value & 63) as i8;
        }
        scale
    }
}

/// Dot product of `x` with each row of `codes` `[out.len(), dim]`, times both scales.
pub(crate) fn dots(tier: Tier, x: &Rounded, codes: &[i8], scales: &[f32], out: &mut [f32]) {
    let dim = x.values.len();
    let rows = codes.chunks(STREAMS * dim).zip(scales.chunks(STREAMS)).zip(out.chunks_mut(STREAMS));
    for ((codes, scales), out) in rows {
        let mut sums = [0.0; STREAMS];
        if out.len() == STREAMS {
            sums = four_dots(tier, x, codes);
        } else {
            for (sum, row) in sums.iter_mut().zip(codes.chunks_exact(dim)) {
                *sum = lanes::dot_integers(&x.values, row);
            }
        }
        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
            *out = sum * (scale * x.scale);
        }
    }
}

/// Exact sums over blocks, added in f32, as [`lanes::dot_integers`].
fn four_dots(tier: Tier, x: &Rounded, codes: &[i8]) -> [f32; STREAMS] {
    let mut totals = [0.0; STREAMS];
    let dim = x.values.len();
    let rows = [0, 1, 2, 3].map(|row| &codes[row * dim..][..dim]);
    for start in (0..dim).step_by(lanes::EXACT) {
        let part = start..dim.min(start + lanes::EXACT);
        let (values, rows) = (&x.values[part.clone()], rows.map(|row| &row[part.clone()]));
        let sums = match tier.level() {
            Level::Scalar => rows.map(|row| plain(values, row)),
            #[cfg(any(test, target_arch = "aarch64"))]
            Level::Neon => rows.map(|row| plain(values, row)),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Amx => {
                let halves = (&x.high[part.clone()], &x.low[part]);
                // SAFETY: both tiers have AVX-512 VNNI; halves and rows have one length.
                unsafe { avx512::four(values, halves, x.sums[start / lanes::EXACT], rows) }
            }
            // SAFETY: all other tiers of this processor have AVX2.
            #[cfg(target_arch = "x86_64")]
            _ => unsafe { avx2::four(values, rows) },
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

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512,
        _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_xor_si512,
    };

    use super::{STREAMS, plain};

    /// How far ahead of what it multiplies a row is fetched, in bytes.
    const AHEAD: usize = 8192;

    /// Sums of products that fit an i32, from codes that are offset by 128; `sum` is that of `x`.
    ///
    /// # Safety
    /// Needs AVX-512 VNNI, and halves and rows as long as `x`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn four(
        x: &[i16],
        (high, low): (&[i8], &[i8]),
        sum: i32,
        rows: [&[i8]; STREAMS],
    ) -> [i32; STREAMS] {
        const WIDTH: usize = 64;
        let whole = x.len() / WIDTH * WIDTH;
        let offset = _mm512_set1_epi8(i8::MIN);
        let mut acc = [[_mm512_setzero_si512(); 2]; STREAMS];
        // Row by row: what follows is what is read next, and memory comes as one stream.
        for r in 0..STREAMS {
            for at in (0..whole).step_by(WIDTH) {
                // SAFETY: 64 values from `at` on are in both halves and in every row; what is fetched
                // ahead may lie beyond, where fetching does nothing.
                unsafe {
                    let codes = rows[r].as_ptr().add(at);
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD));
                    let codes = _mm512_xor_si512(_mm512_loadu_si512(codes.cast()), offset);
                    for (h, half) in [high, low].into_iter().enumerate() {
                        let half = _mm512_loadu_si512(half.as_ptr().add(at).cast());
                        acc[r][h] = _mm512_dpbusd_epi32(acc[r][h], codes, half);
                    }
                }
            }
        }
        // Sums beyond an i32 wrap on the way; what is returned does not.
        let rest = &x[whole..];
        let offsets = (sum - rest.iter().map(|x| i32::from(*x)).sum::<i32>()).wrapping_mul(128);
        let mut sums = [0; STREAMS];
        for r in 0..STREAMS {
            let lanes = _mm512_add_epi32(_mm512_slli_epi32::<6>(acc[r][0]), acc[r][1]);
            let sum = _mm512_reduce_add_epi32(lanes).wrapping_sub(offsets);
            sums[r] = sum + plain(rest, &rows[r][whole..]);
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
                let x: Vec<f32> = (0..dim).map(|i| (i * 7919 % 4095) as f32 - 2047.0).collect();
                let mut rounded = Rounded::default();
                rounded.set(tier, &x);
                for rows in [1, 3, 4, 9] {
                    let codes: Vec<i8> = (0..rows * dim).map(|i| ((i * 104_729) % 255) as u8 as i8).collect();
                    let scales: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
                    let mut found = vec![f32::NAN; rows];
                    dots(tier, &rounded, &codes, &scales, &mut found);
                    for (row, found) in found.iter().enumerate() {
                        let sum = lanes::dot_integers(&rounded.values, &codes[row * dim..][..dim]);
                        assert_eq!(*found, sum * (scales[row] * rounded.scale), "{dim} {rows}");
                    }
                }
            }
        }
    }
}
