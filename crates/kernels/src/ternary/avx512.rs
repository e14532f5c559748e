//! Tiles with AVX-512 VNNI: `vpdpbusd` multiplies 64 codes by 64 activations and adds fours.
//!
//! Twelve rows by two panels: 24 accumulators, two code registers and a broadcast. Per step of four
//! inputs two loads, twelve broadcasts and 24 multiply-adds. The instruction limit is 128 multiply-adds a
//! cycle where both 512-bit ports multiply.

use std::arch::x86_64::{
    _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm256_set1_epi32, _mm512_add_epi32, _mm512_and_si512,
    _mm512_broadcast_i64x4, _mm512_dpbusd_epi32, _mm512_inserti64x4, _mm512_loadu_si512, _mm512_set_epi64,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_srav_epi32,
};

use super::{GROUP, STEP};
use crate::{
    Tier,
    tier::Level,
    tile::{COLUMNS, Out, store},
};

/// Rows of a tile.
pub(super) const ROWS: usize = 12;

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, x: &[u8], steps: usize, codes: &[u8], out: &mut Out<'_>) {
    let (rows, panels) = (out.rows(), out.panels());
    assert!(tier.level() == Level::Avx512 && x.len() >= rows.next_multiple_of(ROWS) * steps * STEP);
    let panel = codes.len() / panels.max(1);
    assert!(panel >= steps * STEP * COLUMNS);
    for (row, x) in (0..rows).step_by(ROWS).zip(x.chunks_exact(ROWS * steps * STEP)) {
        // SAFETY: the tier proves AVX-512 VNNI; `x` holds a panel of rows and `codes` the panels, as
        // asserted.
        unsafe {
            match panels {
                1 => tile::<1>(x, row, steps, codes, panel, out),
                2 => tile::<2>(x, row, steps, codes, panel, out),
                _ => unreachable!("tiles have one panel or two"),
            }
        }
    }
}

/// # Safety
/// Needs AVX-512 VNNI, 48 values in `x` for each step, and in `codes` `P` panels, `panel` bytes apart, of
/// 64 bytes for each step.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<const P: usize>(
    x: &[u8],
    row: usize,
    steps: usize,
    codes: &[u8],
    panel: usize,
    out: &mut Out<'_>,
) {
    const R: usize = ROWS;
    out.prefetch::<R>(row);
    let mut acc = [[_mm512_setzero_si512(); P]; R];
    for s in 0..steps {
        // SAFETY: s < steps, so every panel has 64 bytes and every row four values.
        unsafe {
            let mut c = [_mm512_setzero_si512(); P];
            for p in 0..P {
                c[p] = _mm512_loadu_si512(codes.as_ptr().add(p * panel + 64 * s).cast());
            }
            for r in 0..R {
                let four = x.as_ptr().add(STEP * (R * s + r)).cast::<i32>().read_unaligned();
                let four = _mm512_set1_epi32(four);
                for p in 0..P {
                    acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], c[p], four);
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

/// Panels of codes that [`panels`] reads side by side.
pub(super) const STREAMS: usize = 1;

/// How far ahead of what it multiplies a stream of codes is fetched, in bytes.
const AHEAD: usize = 8192;

/// One row, padded to whole groups, against up to [`STREAMS`] panels of packed codes.
pub(super) fn panels(tier: Tier, x: &[u8], packed: &[u8], out: &mut Out<'_>) {
    let panels = out.panels();
    let panel = packed.len() / panels;
    assert!(tier.level() >= Level::Avx512 && panel * GROUP >= x.len() * 32);
    // SAFETY: the tier proves AVX-512 VNNI, and each panel has 32 bytes for each group, asserted above.
    unsafe {
        if panels == STREAMS {
            sums::<STREAMS, 4>(x, packed, panel, 0, out);
        } else {
            (0..panels).for_each(|first| sums::<1, 4>(x, &packed[first * panel..], panel, first, out));
        }
    }
}

/// Inputs that a row may have here: codes are multiplied where they lie in a byte, as up to 2·64.
const MOST_INPUTS: usize = i32::MAX as usize / (2 * 64 * 127);

/// # Safety
/// Needs AVX-512 VNNI, and `P` panels, `panel` bytes apart, of 32 bytes for each eight values in `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn sums<const P: usize, const U: usize>(
    x: &[u8],
    packed: &[u8],
    panel: usize,
    first: usize,
    out: &mut Out<'_>,
) {
    // The same 32 bytes in both halves: the lower half gives outputs 0..8, the upper one 8..16. Codes stay
    // where they lie in their byte, times 1, 4, 16 or 64; sums of one place are divided by that, exactly.
    let places = [[0, 2], [4, 6]];
    let masks = places.map(|[lower, upper]| {
        let of = |place: i32| 0x0303_0303_0303_0303u64.wrapping_shl(place as u32).cast_signed();
        let (lower, upper) = (of(lower), of(upper));
        _mm512_set_epi64(upper, upper, upper, upper, lower, lower, lower, lower)
    });
    let mut totals = [_mm512_setzero_si512(); P];
    for start in (0..x.len()).step_by(MOST_INPUTS / GROUP * GROUP) {
        let end = x.len().min(start + MOST_INPUTS / GROUP * GROUP);
        let mut acc = [[[_mm512_setzero_si512(); 2]; U]; P];
        let (first, last) = (start / GROUP, end / GROUP);
        let mut step = |g: usize, u: usize| {
            // SAFETY: eight activations and 32 bytes of codes of each panel for every group; what is
            // fetched ahead may lie beyond, where fetching does nothing.
            unsafe {
                let fours = x.as_ptr().add(GROUP * g).cast::<i32>();
                let four = [0, 1].map(|half| _mm512_set1_epi32(fours.add(half).read_unaligned()));
                for p in 0..P {
                    let at = packed.as_ptr().add(p * panel + 32 * g);
                    if u % 2 == 0 {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                    }
                    let bytes = _mm512_broadcast_i64x4(_mm256_loadu_si256(at.cast()));
                    for half in 0..2 {
                        let codes = _mm512_and_si512(bytes, masks[half]);
                        acc[p][u][half] = _mm512_dpbusd_epi32(acc[p][u][half], codes, four[half]);
                    }
                }
            }
        };
        let whole = first + (last - first) / U * U;
        for g in (first..whole).step_by(U) {
            for u in 0..U {
                step(g + u, u);
            }
        }
        for g in whole..last {
            step(g, 0);
        }
        for p in 0..P {
            for (half, [lower, upper]) in places.into_iter().enumerate() {
                let counts = _mm512_inserti64x4::<1>(_mm512_set1_epi32(lower), _mm256_set1_epi32(upper));
                let mut sum = acc[p][0][half];
                for u in 1..U {
                    sum = _mm512_add_epi32(sum, acc[p][u][half]);
                }
                totals[p] = _mm512_add_epi32(totals[p], _mm512_srav_epi32(sum, counts));
            }
        }
    }
    for p in 0..P {
        out.finish_panel(first + p, &store::zmm(totals[p]));
    }
}
