//! How the numbers of a matrix are stored: latent weights, moments and gradients.

use crate::digits;

/// A number format for rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The upper half of an f32.
    Bf16,
    /// Levels from -127 to 127, a step for each row.
    Int8,
    /// Balanced ternary levels of 1 to 5 digits ([`digits`]).
    Trits(u8),
}

impl Format {
    /// Bytes of a row of `cols` numbers, without its step.
    pub const fn row_len(self, cols: usize) -> usize {
        match self {
            Format::Bf16 => 2 * cols,
            Format::Int8 => cols,
            Format::Trits(digits) => digits::row_len(digits as usize, cols),
        }
    }

    /// The largest level, of formats with a step.
    pub const fn largest(self) -> Option<i8> {
        match self {
            Format::Bf16 => None,
            Format::Int8 => Some(127),
            Format::Trits(digits) => Some(digits::largest(digits as usize)),
        }
    }
}

/// A step between levels as it is used: rounded to bf16, so that every level is exact in f32.
pub fn step(x: f32) -> f32 {
    round_bf16(x)
}

/// The nearest bf16, ties to even; for finite numbers.
pub fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}
