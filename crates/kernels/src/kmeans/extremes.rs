//! Passes over the values of a row: what `S` is at least and at most, and where it may be largest.
//!
//! The arithmetic on each value is rounded the same way on every tier; what follows are comparisons, whose
//! order changes nothing.

use super::screen::WIDTH;
#[cfg(target_arch = "x86_64")]
use crate::tier::Level;
use crate::{Tier, tile::COLUMNS};

/// Values that are looked at together: what `values` and its companions hold is a multiple of it.
pub(super) const GROUP: usize = COLUMNS;

/// What `S` is at least where it is largest, and the two largest values that it has at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Extremes {
    pub(super) least: f32,
    pub(super) top: [f32; 2],
}

impl Extremes {
    pub(super) const NONE: Extremes = Extremes { least: f32::NEG_INFINITY, top: [f32::NEG_INFINITY; 2] };

    /// Those of two sets of centroids together.
    #[inline(always)]
    pub(super) fn and(self, other: Extremes) -> Extremes {
        let ([a, b], [c, d]) = (self.top, other.top);
        Extremes {
            least: larger(self.least, other.least),
            top: [larger(a, c), larger(if a > c { c } else { a }, larger(b, d))],
        }
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// What is known of some centroids: `b`, `h` and `e`.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) scales: &'a [f32],
    pub(super) halves: &'a [f32],
    pub(super) errors: &'a [f32],
}

/// Replaces dot products by the largest values that `S = product · scale + half` may have when it is off by
/// `norm · error`, and finds their extremes.
///
/// # Panics
/// The lengths differ or are no multiples of [`GROUP`].
#[inline(always)]
pub(super) fn extremes(tier: Tier, values: &mut [f32], columns: Columns<'_>, norm: f32) -> Extremes {
    assert!(values.len().is_multiple_of(GROUP), "whole groups");
    let Columns { scales, halves, errors } = columns;
    assert!([scales, halves, errors].iter().all(|list| list.len() == values.len()), "lengths");
    match tier.level() {
        // SAFETY: tiers of these levels exist only where the features were detected; the lengths are checked.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => unsafe { avx512::extremes(values, columns, norm) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => unsafe { avx2::extremes(values, columns, norm) },
        _ => scalar(values, columns, norm),
    }
}

/// The truth.
fn scalar(values: &mut [f32], columns: Columns<'_>, norm: f32) -> Extremes {
    let Columns { scales, halves, errors } = columns;
    let mut all = Extremes::NONE;
    for (((value, scale), half), error) in values.iter_mut().zip(scales).zip(halves).zip(errors) {
        let (middle, error) = (value.mul_add(*scale, *half), norm * error);
        *value = middle + error;
        all = all.and(Extremes { least: middle - error, top: [*value, f32::NEG_INFINITY] });
    }
    all
}

/// A bit for each of up to [`WIDTH`] values.
pub(super) type Bits = [u64; WIDTH / 64];

/// Which values reach the threshold.
///
/// # Panics
/// There are more than [`WIDTH`], or no multiple of [`GROUP`].
#[inline(always)]
pub(super) fn reaching(tier: Tier, values: &[f32], threshold: f32) -> Bits {
    assert!(values.len().is_multiple_of(GROUP) && values.len() <= WIDTH, "whole groups");
    match tier.level() {
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => unsafe { avx512::reaching(values, threshold) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => unsafe { avx2::reaching(values, threshold) },
        _ => {
            let mut bits = Bits::default();
            for (at, value) in values.iter().enumerate() {
                bits[at / 64] |= u64::from(*value >= threshold) << (at % 64);
            }
            bits
        }
    }
}

/// Extremes of lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn of_lanes<const N: usize>(least: [f32; N], top: [[f32; N]; 2]) -> Extremes {
    let mut all = Extremes::NONE;
    for l in 0..N {
        all = all.and(Extremes { least: least[l], top: [top[0][l], top[1][l]] });
    }
    all
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, _CMP_GE_OQ, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps,
        _mm512_storeu_ps, _mm512_sub_ps,
    };

    use super::{Bits, Columns, Extremes, GROUP, of_lanes};

    /// # Safety
    /// Needs AVX-512, and lists of one length, in whole groups.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn extremes(values: &mut [f32], columns: Columns<'_>, norm: f32) -> Extremes {
        let Columns { scales, halves, errors } = columns;
        let norm = _mm512_set1_ps(norm);
        let none = _mm512_set1_ps(f32::NEG_INFINITY);
        let (mut least, mut first, mut second) = (none, none, none);
        for at in (0..values.len()).step_by(GROUP) {
            // SAFETY: a group is sixteen floats, and there are whole ones in all of them.
            unsafe {
                let to = values.as_mut_ptr().add(at);
                let (scale, half) = (scales.as_ptr().add(at), halves.as_ptr().add(at));
                let (scale, half) = (_mm512_loadu_ps(scale), _mm512_loadu_ps(half));
                let middle = _mm512_fmadd_ps(_mm512_loadu_ps(to), scale, half);
                let error = _mm512_mul_ps(norm, _mm512_loadu_ps(errors.as_ptr().add(at)));
                let high = _mm512_add_ps(middle, error);
                _mm512_storeu_ps(to, high);
                least = _mm512_max_ps(least, _mm512_sub_ps(middle, error));
                second = _mm512_max_ps(second, _mm512_min_ps(first, high));
                first = _mm512_max_ps(first, high);
            }
        }
        // Lanes of one 128-bit part against those of others, then within it.
        macro_rules! fold {
            ($shuffle:ident::<$order:literal>) => {
                let swap = |x: __m512| $shuffle::<$order>(x, x);
                let (other_first, other_second) = (swap(first), swap(second));
                least = _mm512_max_ps(least, swap(least));
                second =
                    _mm512_max_ps(_mm512_max_ps(second, other_second), _mm512_min_ps(first, other_first));
                first = _mm512_max_ps(first, other_first);
            };
        }
        fold!(_mm512_shuffle_f32x4::<0b01_00_11_10>);
        fold!(_mm512_shuffle_f32x4::<0b10_11_00_01>);
        fold!(_mm512_shuffle_ps::<0b01_00_11_10>);
        fold!(_mm512_shuffle_ps::<0b10_11_00_01>);
        let lowest = |x: __m512| [std::arch::x86_64::_mm512_cvtss_f32(x)];
        of_lanes(lowest(least), [lowest(first), lowest(second)])
    }

    /// # Safety
    /// Needs AVX-512, and at most a bit for each value, in whole groups.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn reaching(values: &[f32], threshold: f32) -> Bits {
        let threshold = _mm512_set1_ps(threshold);
        let mut bits = Bits::default();
        for at in (0..values.len()).step_by(GROUP) {
            // SAFETY: a group is sixteen floats, and there are whole ones.
            let group = unsafe { _mm512_loadu_ps(values.as_ptr().add(at)) };
            let mask = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(group, threshold);
            bits[at / 64] |= u64::from(mask) << (at % 64);
        }
        bits
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _CMP_GE_OQ, _mm256_add_ps, _mm256_cmp_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps,
        _mm256_min_ps, _mm256_movemask_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm256_sub_ps,
    };

    use super::{Bits, Columns, Extremes, GROUP, of_lanes};

    /// Lanes of a register.
    const WIDE: usize = 8;

    /// # Safety
    /// Needs AVX2 and FMA, and lists of one length, in whole groups.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn extremes(values: &mut [f32], columns: Columns<'_>, norm: f32) -> Extremes {
        let Columns { scales, halves, errors } = columns;
        let norm = _mm256_set1_ps(norm);
        let none = _mm256_set1_ps(f32::NEG_INFINITY);
        let (mut least, mut first, mut second) = ([none; 2], [none; 2], [none; 2]);
        for at in (0..values.len()).step_by(GROUP) {
            for part in 0..2 {
                // SAFETY: a group is two registers, and there are whole ones in all of them.
                unsafe {
                    let at = at + part * WIDE;
                    let to = values.as_mut_ptr().add(at);
                    let (scale, half) = (scales.as_ptr().add(at), halves.as_ptr().add(at));
                    let (scale, half) = (_mm256_loadu_ps(scale), _mm256_loadu_ps(half));
                    let middle = _mm256_fmadd_ps(_mm256_loadu_ps(to), scale, half);
                    let error = _mm256_mul_ps(norm, _mm256_loadu_ps(errors.as_ptr().add(at)));
                    let high = _mm256_add_ps(middle, error);
                    _mm256_storeu_ps(to, high);
                    least[part] = _mm256_max_ps(least[part], _mm256_sub_ps(middle, error));
                    second[part] = _mm256_max_ps(second[part], _mm256_min_ps(first[part], high));
                    first[part] = _mm256_max_ps(first[part], high);
                }
            }
        }
        let between = _mm256_min_ps(first[0], first[1]);
        let second = _mm256_max_ps(_mm256_max_ps(second[0], second[1]), between);
        let first = _mm256_max_ps(first[0], first[1]);
        let lanes = |x: __m256| {
            let mut lanes = [0.0; WIDE];
            // SAFETY: the array is one register wide.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), x) };
            lanes
        };
        of_lanes(lanes(_mm256_max_ps(least[0], least[1])), [lanes(first), lanes(second)])
    }

    /// # Safety
    /// Needs AVX2 and FMA, and at most a bit for each value, in whole groups.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn reaching(values: &[f32], threshold: f32) -> Bits {
        let threshold = _mm256_set1_ps(threshold);
        let mut bits = Bits::default();
        for at in (0..values.len()).step_by(WIDE) {
            // SAFETY: a group is two registers, and there are whole ones.
            let part = unsafe { _mm256_loadu_ps(values.as_ptr().add(at)) };
            let mask = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(part, threshold));
            bits[at / 64] |= u64::from(mask.cast_unsigned()) << (at % 64);
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tritrain_trit::rng::Stream;

    #[test]
    fn every_tier_equals_the_scalar_one() {
        for tier in Tier::available() {
            for groups in 0..=WIDTH / GROUP {
                let random = Stream::new(groups as u64, 0, 0);
                let list = |block: u64| -> Vec<f32> {
                    // Few distinct values: ties.
                    (0..groups * GROUP)
                        .map(|i| (random.normal(block << 20 | i as u64) * 4.0).round())
                        .collect()
                };
                let (values, mut halves, errors, scales) = (list(1), list(2), list(3), list(4));
                halves.iter_mut().step_by(7).for_each(|half| *half = f32::NEG_INFINITY);
                let (mut found, mut expected) = (values.clone(), values);
                let columns = Columns { scales: &scales, halves: &halves, errors: &errors };
                let ours = extremes(tier, &mut found, columns, 0.3);
                assert_eq!(ours, scalar(&mut expected, columns, 0.3), "{} {groups}", tier.name());
                assert_eq!(found, expected);
                for threshold in [ours.least, ours.top[0], ours.top[1], f32::NEG_INFINITY] {
                    let bits = reaching(tier, &found, threshold);
                    for (at, value) in found.iter().enumerate() {
                        assert_eq!(bits[at / 64] >> (at % 64) & 1 == 1, *value >= threshold);
                    }
                }
                let mut sorted = found.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                sorted.extend([f32::NEG_INFINITY; 2]);
                assert_eq!(ours.top, sorted[..2]);
            }
        }
    }
}
