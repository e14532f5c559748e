//! What this processor can do at most: loops without memory, and reads without arithmetic.
//!
//! Kernels read no clock. These functions do a known amount of work on every thread of the pool and say
//! how much it was; whoever measures them divides by the time.
//!
//! A loop of multiply-adds is assembly, because the compiler would move a product of constants out of
//! it. It has twelve sums on x86-64: two multiplies a cycle with a latency of five need ten. It has 24 on
//! aarch64: four a cycle with a latency of four need sixteen.

use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::{Context, Tier, tier::Level};

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Unsigned by signed bytes.
    Int8,
    /// Int16 by int16, into i32.
    Int16,
    /// f32, fused.
    F32,
}

/// Sums that a loop has.
const SUMS: u64 = if cfg!(target_arch = "aarch64") { 24 } else { 12 };

/// Runs `rounds` rounds of the multiply-adds of the context's tier on each of its threads, in registers,
/// and gives their number on all threads together. None where the tier has no instruction for it.
pub fn multiply_adds(cx: &Context, kind: Kind, rounds: u64) -> Option<u64> {
    lanes(cx.tier(), kind)?;
    Some(cx.everywhere(|_| one_thread(cx.tier(), kind, rounds.max(1))).into_iter().sum())
}

/// Multiply-adds of one instruction of a tier, or of the two that stand for one.
fn lanes(tier: Tier, kind: Kind) -> Option<u64> {
    let bytes = match tier.level() {
        #[cfg(target_arch = "aarch64")]
        Level::Neon => 16,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => 32,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => 64,
        // Int16 takes two products of bytes by int8. Twelve bits by twelve take four: the shares of logits
        // end at half.
        #[cfg(target_arch = "x86_64")]
        Level::Amx if kind != Kind::F32 => amx::MULTIPLY_ADDS,
        #[cfg(target_arch = "x86_64")]
        Level::Amx => 64,
        _ => 0,
    };
    let width = match kind {
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::F32 => 4,
    };
    (bytes > 0).then_some(bytes / width)
}

/// [`multiply_adds`] on this thread; none of them on the scalar tier.
fn one_thread(tier: Tier, kind: Kind, rounds: u64) -> u64 {
    match tier.level() {
        // SAFETY: a tier of one of these levels exists only where its instructions were detected, and
        // there is at least one round.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => unsafe { arm::neon(kind, rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::avx2(kind, rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::AvxVnni => unsafe { x86::avx_vnni(kind, rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::avx512(kind, rounds) },
        #[cfg(target_arch = "x86_64")]
        Level::Amx if kind != Kind::F32 => amx::Tiles::new().multiply(SUMS * rounds),
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Amx => unsafe { x86::avx512(kind, rounds) },
        _ => {}
    }
    lanes(tier, kind).unwrap_or(0) * SUMS * rounds
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! One loop of multiply-adds per tier and kind (registers 0 to 11 are the sums, 14 and 15 the factors,
    //! 13 a product), and one that reads per width. The latter are intrinsics, not plain loops: of those
    //! the compiler makes gathers for AVX-512.
    use std::arch::{
        asm,
        x86_64::{
            _mm256_add_epi64, _mm256_loadu_si256, _mm256_setzero_si256, _mm256_storeu_si256,
            _mm512_add_epi64, _mm512_loadu_si512, _mm512_setzero_si512, _mm512_storeu_si512,
        },
    };

    use super::{Kind, WORDS};

    /// `rounds` rounds of some instructions, once per sum; `\a` in them is the number of the sum.
    ///
    /// Everything starts at zero: no product is ever a denormal or NaN, which could take longer.
    macro_rules! rounds {
        ($rounds:expr, $($instruction:literal),+) => {
            asm!(
                ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,13,14,15",
                "vpxor xmm\\a, xmm\\a, xmm\\a",
                ".endr",
                ".p2align 5",
                "2:",
                ".irp a,0,1,2,3,4,5,6,7,8,9,10,11",
                $($instruction,)+
                ".endr",
                "dec rcx",
                "jnz 2b",
                inout("rcx") $rounds => _,
                clobber_abi("sysv64"),
                options(nomem, nostack),
            )
        };
    }

    /// # Safety
    /// Needs AVX2 and FMA, and at least one round: the loop counts down to zero.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(kind: Kind, rounds: u64) {
        // SAFETY: the instructions are those of the features, and touch nothing but vector registers and
        // the counter, all declared.
        unsafe {
            match kind {
                Kind::Int8 => {
                    rounds!(rounds, "vpmaddubsw ymm13, ymm14, ymm15", "vpaddw ymm\\a, ymm\\a, ymm13")
                }
                Kind::Int16 => {
                    rounds!(rounds, "vpmaddwd ymm13, ymm14, ymm15", "vpaddd ymm\\a, ymm\\a, ymm13")
                }
                Kind::F32 => rounds!(rounds, "vfmadd231ps ymm\\a, ymm14, ymm15"),
            }
        }
    }

    /// # Safety
    /// Needs AVX2, FMA and AVX-VNNI, and at least one round: the loop counts down to zero.
    #[target_feature(enable = "avx2,fma,avxvnni")]
    pub(super) unsafe fn avx_vnni(kind: Kind, rounds: u64) {
        // SAFETY: the instructions are those of the features, and touch nothing but vector registers and
        // the counter, all declared.
        unsafe {
            match kind {
                Kind::Int8 => rounds!(rounds, "{{vex}} vpdpbusd ymm\\a, ymm14, ymm15"),
                Kind::Int16 => rounds!(rounds, "{{vex}} vpdpwssd ymm\\a, ymm14, ymm15"),
                Kind::F32 => rounds!(rounds, "vfmadd231ps ymm\\a, ymm14, ymm15"),
            }
        }
    }

    /// # Safety
    /// Needs AVX-512 with VNNI, and at least one round: the loop counts down to zero.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn avx512(kind: Kind, rounds: u64) {
        // SAFETY: the instructions are those of the features, and touch nothing but vector registers and
        // the counter, all declared.
        unsafe {
            match kind {
                Kind::Int8 => rounds!(rounds, "vpdpbusd zmm\\a, zmm14, zmm15"),
                Kind::Int16 => rounds!(rounds, "vpdpwssd zmm\\a, zmm14, zmm15"),
                Kind::F32 => rounds!(rounds, "vfmadd231ps zmm\\a, zmm14, zmm15"),
            }
        }
    }

    /// Sums over the steps.
    ///
    /// # Safety
    /// Needs AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn sums_by_32(steps: &[[u64; WORDS]]) -> [u64; WORDS] {
        let mut acc = [_mm256_setzero_si256(); WORDS / 4];
        let mut sums = [0; WORDS];
        for step in steps {
            for (acc, four) in acc.iter_mut().zip(step.as_chunks::<4>().0) {
                // SAFETY: four numbers are 32 bytes.
                *acc = _mm256_add_epi64(*acc, unsafe { _mm256_loadu_si256(four.as_ptr().cast()) });
            }
        }
        for (acc, four) in acc.into_iter().zip(sums.as_chunks_mut::<4>().0) {
            // SAFETY: four numbers are 32 bytes.
            unsafe { _mm256_storeu_si256(four.as_mut_ptr().cast(), acc) }
        }
        sums
    }

    /// Sums over the steps.
    ///
    /// # Safety
    /// Needs AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn sums_by_64(steps: &[[u64; WORDS]]) -> [u64; WORDS] {
        let mut acc = [_mm512_setzero_si512(); WORDS / 8];
        let mut sums = [0; WORDS];
        for step in steps {
            for (acc, eight) in acc.iter_mut().zip(step.as_chunks::<8>().0) {
                // SAFETY: eight numbers are 64 bytes.
                *acc = _mm512_add_epi64(*acc, unsafe { _mm512_loadu_si512(eight.as_ptr().cast()) });
            }
        }
        for (acc, eight) in acc.into_iter().zip(sums.as_chunks_mut::<8>().0) {
            // SAFETY: eight numbers are 64 bytes.
            unsafe { _mm512_storeu_si512(eight.as_mut_ptr().cast(), acc) }
        }
        sums
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    //! One loop of multiply-adds per kind (registers 0 to 23 are the sums, 30 and 31 the factors).
    use std::arch::asm;

    use super::Kind;

    /// `rounds` rounds of each instruction, once per sum; `\a\()` in it is the number of the sum.
    macro_rules! rounds {
        ($rounds:expr, $($instruction:literal),+) => {
            asm!(
                ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,30,31",
                "movi v\\a\\().16b, #0",
                ".endr",
                ".p2align 5",
                "2:",
                $(".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                $instruction,
                ".endr",)+
                "subs x0, x0, #1",
                "b.ne 2b",
                inout("x0") $rounds => _,
                clobber_abi("C"),
                options(nomem, nostack),
            )
        };
    }

    /// # Safety
    /// Needs NEON with dot products, and at least one round: the loop counts down to zero.
    #[target_feature(enable = "neon,dotprod")]
    pub(super) unsafe fn neon(kind: Kind, rounds: u64) {
        // SAFETY: the instructions are those of the features, and touch nothing but vector registers and
        // the counter, all declared.
        unsafe {
            match kind {
                Kind::Int8 => rounds!(rounds, "sdot v\\a\\().4s, v30.16b, v31.16b"),
                Kind::Int16 => {
                    rounds!(rounds, "smlal v\\a\\().4s, v30.4h, v31.4h", "smlal2 v\\a\\().4s, v30.8h, v31.8h")
                }
                Kind::F32 => rounds!(rounds, "fmla v\\a\\().4s, v30.4s, v31.4s"),
            }
        }
    }
}

/// Numbers that a step of [`read`] takes: four cache lines.
const WORDS: usize = 32;

/// Reads all of `data` `times` times, every thread its own part, the same each time, and gives the
/// wrapping sum of everything read.
pub fn read(cx: &Context, data: &[u64], times: u64) -> u64 {
    let part = data.len().div_ceil(cx.threads()).next_multiple_of(WORDS).max(WORDS);
    let sums = cx.everywhere(|thread| {
        let mine = data.chunks(part).nth(thread).unwrap_or_default();
        (0..times).fold(0u64, |sum, _| sum.wrapping_add(wrapping_sum(cx.tier(), black_box(mine))))
    });
    sums.into_iter().fold(0, u64::wrapping_add)
}

fn wrapping_sum(tier: Tier, data: &[u64]) -> u64 {
    let (steps, rest) = data.as_chunks::<WORDS>();
    let sums = match tier.level() {
        // SAFETY: a tier of one of these levels exists only where AVX2 was detected.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => unsafe { x86::sums_by_32(steps) },
        // SAFETY: tiers of these levels exist only where AVX-512 was detected.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => unsafe { x86::sums_by_64(steps) },
        // Which the compiler makes loads of whole registers of NEON, too.
        _ => scalar_sums(steps),
    };
    sums.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}

/// Sums over the steps.
fn scalar_sums(steps: &[[u64; WORDS]]) -> [u64; WORDS] {
    let mut sums = [0u64; WORDS];
    for step in steps {
        for (sum, word) in sums.iter_mut().zip(step) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 3] = [Kind::Int8, Kind::Int16, Kind::F32];

    #[test]
    fn multiply_adds_are_counted_on_every_thread() {
        for tier in Tier::available() {
            for threads in 1..=3 {
                let cx = Context::new(tier, threads).unwrap();
                for (kind, bytes) in KINDS.into_iter().zip([1, 2, 4]) {
                    let counted = multiply_adds(&cx, kind, 1000);
                    let width = match tier.name() {
                        "scalar" => None,
                        "neon-dotprod" => Some(16),
                        "avx2" | "avx-vnni" => Some(32),
                        _ => Some(64),
                    };
                    let width = match (tier.name(), kind) {
                        ("amx-int8", Kind::Int8 | Kind::Int16) => Some(16 * 16 * 64),
                        _ => width,
                    };
                    let sums = if tier.name() == "neon-dotprod" { 24 } else { 12 };
                    let expected = width.map(|width| 1000 * sums * width / bytes * threads as u64);
                    assert_eq!(counted, expected, "{} {kind:?}, {threads} threads", tier.name());
                }
            }
        }
    }

    #[test]
    fn no_round_is_one_round() {
        for tier in Tier::available() {
            let cx = Context::new(tier, 1).unwrap();
            for kind in KINDS {
                assert_eq!(multiply_adds(&cx, kind, 0), multiply_adds(&cx, kind, 1));
            }
        }
    }

    #[test]
    fn every_number_is_read_as_often_as_asked() {
        let data: Vec<u64> = (0..1000u64).map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        for tier in Tier::available() {
            for threads in 1..=3 {
                let cx = Context::new(tier, threads).unwrap();
                for len in [0, 1, 31, 32, 33, 64, 65, 515, 1000] {
                    let sum = data[..len].iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
                    for times in 0..3 {
                        assert_eq!(read(&cx, &data[..len], times), sum.wrapping_mul(times), "{len} words");
                    }
                }
            }
        }
    }
}
