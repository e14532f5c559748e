//! Building blocks of kernels: reductions over a cube, rounding, packed integers, random numbers.

use cubecl::prelude::*;

/// Units of a cube, as kernels count them; see [`crate::launch::UNITS`].
pub(crate) const UNITS: usize = 256;

/// Room for a reduction over a cube of floats.
#[cube]
pub(crate) fn desk() -> Shared<[f32]> {
    Shared::<[f32]>::new_slice(UNITS)
}

/// Room for a reduction over a cube of words.
#[cube]
pub(crate) fn word_desk() -> Shared<[u32]> {
    Shared::<[u32]>::new_slice(UNITS)
}

/// Sum of a number of every unit, for all of them, in an order that depends on nothing.
#[cube]
pub(crate) fn cube_sum(value: f32, desk: &mut Shared<[f32]>) -> f32 {
    let unit = UNIT_POS as usize;
    desk[unit] = value;
    sync_cube();
    let mut half = comptime![UNITS / 2].runtime();
    while half > 0 {
        if unit < half {
            let other = desk[unit + half];
            desk[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    let total = desk[0];
    sync_cube();
    total
}

/// Largest word of every unit, for all of them.
#[cube]
pub(crate) fn cube_max(value: u32, desk: &mut Shared<[u32]>) -> u32 {
    let unit = UNIT_POS as usize;
    desk[unit] = value;
    sync_cube();
    let mut half = comptime![UNITS / 2].runtime();
    while half > 0 {
        if unit < half {
            let other = desk[unit + half];
            if other > desk[unit] {
                desk[unit] = other;
            }
        }
        sync_cube();
        half /= 2;
    }
    let largest = desk[0];
    sync_cube();
    largest
}

/// The bits of a magnitude, which order like the numbers; every NaN orders above infinity.
#[cube]
pub(crate) fn magnitude(x: f32) -> u32 {
    u32::reinterpret(x) & 0x7fff_ffffu32
}

/// Whether an operation does what it is for: see [`Backend::when`](tritrain_backend::Backend::when). One that makes a
/// direction multiplies the gradient by the same number.
#[cube]
pub(crate) fn is_open(gates: &[f32], gate: usize) -> bool {
    gates[gate] != 0.0f32
}

/// Nearest integer, ties to even, for |x| < 2^22, by the mantissa of a sum: rounding that no compiler may change.
#[cube]
pub(crate) fn nearest(x: f32) -> i32 {
    i32::reinterpret(x + 12_582_912.0f32) - 0x4b40_0000i32
}

/// The inverse of the scale of an int8 row whose largest magnitude has the bits `largest`; 0 where all codes are.
#[cube]
pub(crate) fn inverse_scale(largest: u32, bound: f32) -> f32 {
    let inverse = bound / f32::reinterpret(largest);
    // Not finite, or so small that its inverse is not.
    if largest >= 0x7f80_0000u32 || magnitude(inverse) >= 0x7f80_0000u32 { 0.0f32.runtime() } else { inverse }
}

/// The scale of an int8 row, NaN where the row is not finite, 0 where all codes are.
#[cube]
pub(crate) fn row_scale(largest: u32, bound: f32) -> f32 {
    let scale = f32::reinterpret(largest) / bound;
    if largest >= 0x7f80_0000u32 {
        f32::reinterpret(0x7fc0_0000u32.runtime())
    } else if inverse_scale(largest, bound) == 0.0f32 {
        0.0f32.runtime()
    } else {
        scale
    }
}

/// An integer as byte `at` of a word.
#[cube]
pub(crate) fn as_byte(code: i32, #[comptime] at: u32) -> u32 {
    (u32::reinterpret(code) & 0xffu32) << comptime![8 * at]
}

/// Byte `at` of a word, with its sign.
#[cube]
pub(crate) fn byte(word: u32, at: u32) -> i32 {
    (i32::reinterpret(word << (24u32 - 8u32 * at))) >> 24i32
}

/// The scale that maps the largest magnitude, by its bits, to the integer `bound`, as factors of products have it.
#[cube]
pub(crate) fn scale_of(largest: u32, bound: f32) -> f32 {
    if largest >= 0x7f80_0000u32 {
        f32::reinterpret(0x7fc0_0000u32.runtime())
    } else if largest > 0x0880_0000u32 {
        f32::reinterpret(largest) / bound
    } else {
        0.0f32.runtime()
    }
}

/// The inverse of [`scale_of`]; 0 where all integers are.
#[cube]
pub(crate) fn inverse_scale_of(largest: u32, bound: f32) -> f32 {
    // 2^-110: 65536 times the smallest normal number.
    if largest >= 0x7f80_0000u32 || largest <= 0x0880_0000u32 {
        0.0f32.runtime()
    } else {
        bound / f32::reinterpret(largest)
    }
}

/// Bits that order like the numbers; a NaN whose sign is not set orders above all.
#[cube]
pub(crate) fn ordered(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    if bits >> 31u32 == 1u32 { !bits } else { bits | 0x8000_0000u32 }
}

/// The number of such bits.
#[cube]
pub(crate) fn unordered(bits: u32) -> f32 {
    if bits >> 31u32 == 1u32 { f32::reinterpret(bits & 0x7fff_ffffu32) } else { f32::reinterpret(!bits) }
}
