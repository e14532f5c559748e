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
    lines::LINE,
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

/// How far ahead of what it multiplies codes are fetched, in bytes: panels follow each other in memory.
const AHEAD: usize = 8192;

/// Groups whose sums grow side by side.
const CHAINS: usize = 4;

/// One row, padded to whole groups, against a panel of packed codes.
pub(super) fn panel(tier: Tier, x: &[u8], packed: &[u8], out: &mut Out<'_>) {
    assert!(tier.level() >= Level::Avx512 && packed.len() * GROUP >= x.len() * 32);
    // SAFETY: the tier proves AVX-512 VNNI, and there are 32 bytes for each group, asserted above.
    let sums = unsafe { sums(x, packed) };
    out.finish(0, &[[sums]]);
}

/// Inputs that a row may have here: codes are multiplied where they lie in a byte, as up to 2·64.
const MOST_INPUTS: usize = i32::MAX as usize / (2 * 64 * 127);

/// # Safety
/// Needs AVX-512 VNNI, and in `packed` 32 bytes for each eight values in `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn sums(x: &[u8], packed: &[u8]) -> [i32; COLUMNS] {
    // The same 32 bytes in both halves: the lower half gives outputs 0..8, the upper one 8..16. Codes stay
    // where they lie in their byte, times 1, 4, 16 or 64; sums of one place are divided by that, exactly.
    let places = [[0, 2], [4, 6]];
    let masks = places.map(|[lower, upper]| {
        let of = |place: i32| 0x0303_0303_0303_0303u64.wrapping_shl(place as u32).cast_signed();
        let (lower, upper) = (of(lower), of(upper));
        _mm512_set_epi64(upper, upper, upper, upper, lower, lower, lower, lower)
    });
    let mut total = _mm512_setzero_si512();
    for start in (0..x.len()).step_by(MOST_INPUTS / GROUP * GROUP) {
        let end = x.len().min(start + MOST_INPUTS / GROUP * GROUP);
        let mut acc = [[_mm512_setzero_si512(); 2]; CHAINS];
        let mut multiply = |g: usize, chain: usize| {
            // SAFETY: eight activations and 32 bytes of codes for every group.
            unsafe {
                let fours = x.as_ptr().add(GROUP * g).cast::<i32>();
                let bytes = _mm512_broadcast_i64x4(_mm256_loadu_si256(packed.as_ptr().add(32 * g).cast()));
                for half in 0..2 {
                    let codes = _mm512_and_si512(bytes, masks[half]);
                    let four = _mm512_set1_epi32(fours.add(half).read_unaligned());
                    acc[chain][half] = _mm512_dpbusd_epi32(acc[chain][half], codes, four);
                }
            }
        };
        let (groups, whole) = (end / GROUP, (start / GROUP..end / GROUP).len() / CHAINS * CHAINS);
        for g in (start / GROUP..start / GROUP + whole).step_by(CHAINS) {
            for line in 0..32 * CHAINS / LINE {
                let ahead = packed.as_ptr().wrapping_add(32 * g + LINE * line + AHEAD);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
            (0..CHAINS).for_each(|chain| multiply(g + chain, chain));
        }
        (start / GROUP + whole..groups).for_each(|g| multiply(g, 0));
        for (half, [lower, upper]) in places.into_iter().enumerate() {
            let counts = _mm512_inserti64x4::<1>(_mm512_set1_epi32(lower), _mm256_set1_epi32(upper));
            let sum = acc.iter().fold(_mm512_setzero_si512(), |sum, acc| _mm512_add_epi32(sum, acc[half]));
            total = _mm512_add_epi32(total, _mm512_srav_epi32(sum, counts));
        }
    }
    store::zmm(total)
}
