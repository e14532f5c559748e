//! The instructions of NEON that tiles are made of, in registers of 16 bytes.
//!
//! What multiplies is assembly, which the compiler may move or leave out like any other instruction. The
//! intrinsics of `sdot` are not stable (Rust 1.95, `stdarch_neon_dotprod`), and sums of the intrinsics of
//! `smlal` are added in another order, for which there are too few registers.

use std::arch::{
    aarch64::{
        int8x16_t, int32x4_t, vaddq_s32, vandq_u8, vdupq_n_s32, vdupq_n_u8, vld1q_s8, vld2q_s16,
        vreinterpretq_s8_s16, vreinterpretq_s8_u8, vreinterpretq_u8_s8, vshrq_n_u8, vst1q_s32,
    },
    asm,
};

/// Sixteen bytes, or eight int16.
pub(crate) type Register = int8x16_t;
/// Four sums.
pub(crate) type Words = int32x4_t;

/// Four zeros.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn zero() -> Words {
    vdupq_n_s32(0)
}

/// Sixteen bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load(bytes: &[u8; 16]) -> Register {
    // SAFETY: sixteen bytes are one register.
    unsafe { vld1q_s8(bytes.as_ptr().cast()) }
}

/// Twice sixteen bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load_two(bytes: &[u8; 32]) -> [Register; 2] {
    // SAFETY: 32 bytes are two registers.
    unsafe { [vld1q_s8(bytes.as_ptr().cast()), vld1q_s8(bytes.as_ptr().add(16).cast())] }
}

/// Eight pairs of int16: the first of each, and the second (`ld2`).
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load_apart(bytes: &[u8; 32]) -> [Register; 2] {
    // SAFETY: 32 bytes are eight pairs, and `ld2` asks for no alignment.
    let pairs = unsafe { vld2q_s16(bytes.as_ptr().cast()) };
    [vreinterpretq_s8_s16(pairs.0), vreinterpretq_s8_s16(pairs.1)]
}

/// Four sums as an array.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn store(words: Words) -> [i32; 4] {
    let mut sums = [0; 4];
    // SAFETY: the array is one register wide.
    unsafe { vst1q_s32(sums.as_mut_ptr(), words) };
    sums
}

/// `a + b`
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn add(a: Words, b: Words) -> Words {
    vaddq_s32(a, b)
}

/// An instruction that adds products of `columns` and one element of `rows` to `acc`.
macro_rules! multiply_add {
    ($instruction:literal, $rows:ident, $lane:expr, $acc:expr, $columns:expr, $by:expr) => {{
        let sums;
        // SAFETY: the function that this stands in has the feature, and the instruction touches nothing but
        // these registers.
        unsafe {
            asm!($instruction,
                 acc = inlateout(vreg) $acc => sums, columns = in(vreg) $columns, rows = in($rows) $by,
                 lane = const $lane, options(pure, nomem, nostack, preserves_flags));
        }
        sums
    }};
}

/// `acc[c] += Σ_k columns[4c + k] · rows[4 LANE + k]`, bytes (`sdot`, by element).
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn dot<const LANE: i32>(acc: Words, columns: Register, rows: Register) -> Words {
    multiply_add!("sdot {acc:v}.4s, {columns:v}.16b, {rows:v}.4b[{lane}]", vreg, LANE, acc, columns, rows)
}

/// `acc[c] += columns[c] · rows[LANE]`, int16 (`smlal`, by element, which only the lower registers have).
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn low<const LANE: i32>(acc: Words, columns: Register, rows: Register) -> Words {
    multiply_add!(
        "smlal {acc:v}.4s, {columns:v}.4h, {rows:v}.h[{lane}]",
        vreg_low16,
        LANE,
        acc,
        columns,
        rows
    )
}

/// `acc[c] += columns[4 + c] · rows[LANE]`, int16 (`smlal2`, likewise).
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn high<const LANE: i32>(acc: Words, columns: Register, rows: Register) -> Words {
    multiply_add!(
        "smlal2 {acc:v}.4s, {columns:v}.8h, {rows:v}.h[{lane}]",
        vreg_low16,
        LANE,
        acc,
        columns,
        rows
    )
}

/// The lowest two bits of every byte.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn codes(register: Register) -> Register {
    vreinterpretq_s8_u8(vandq_u8(vreinterpretq_u8_s8(register), vdupq_n_u8(3)))
}

/// Every byte without its lowest `BITS` bits.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn shifted<const BITS: i32>(register: Register) -> Register {
    vreinterpretq_s8_u8(vshrq_n_u8::<BITS>(vreinterpretq_u8_s8(register)))
}
