//! Number formats: ternary and five-level codebooks, packings, int8 rows, counter-based random numbers.
//!
//! This crate is the scalar truth. Each function here says, in plain loops and in a fixed order of
//! operations, what a format means; the SIMD kernels and the file readers are tested against it bit
//! for bit. So speed is never a reason to change an order of additions here: that order *is* the
//! definition.
//!
//! | module | what it defines |
//! |---|---|
//! | [`ternary`] | weights in {-1, 0, 1}·s and their scale, the fp16-rounded mean of \|w\| |
//! | [`five`] | weights in {-1, -0.5, 0, 0.5, 1}·s |
//! | [`pack`] | codes in bytes: 2 bits each, base 3 (five in a byte), base 5 (three in a byte) |
//! | [`archive`] | ternary codes at their entropy, 1.58 bits a weight and less |
//! | [`blocks`] | the block formats of GGUF files, ternary and others |
//! | [`digits`] | balanced ternary levels of 1 to 5 digits in rows, 1.6 bits a digit |
//! | [`format`](mod@format) | how latent weights and moments are stored |
//! | [`rows`] | int8 rows with one scale, for activations and their gradients |
//! | [`rng`] | Philox random numbers and permutations as functions of their arguments |
//!
//! Nothing here but [`archive`] allocates, and nothing reads a clock or keeps state. A function that returns
//! [`Result`] leaves its output slice in an unspecified (but initialised) state when it fails.
//!
//! [`Result`]: core::result::Result

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod archive;
pub mod blocks;
pub mod digits;
mod error;
pub mod five;
pub mod format;
pub mod pack;
pub mod rng;
pub mod rows;
pub mod ternary;

pub use error::Error;

/// In place of a token that is to be predicted: there is none at this position.
///
/// Wherever targets are taken, such a position has loss 0 and gradient 0, and the mean is over the others. What it
/// is as an input stays what it is.
pub const NO_TARGET: u32 = u32::MAX;

/// Index of the first NaN or infinity in `x`, if there is one.
///
/// The kernels learn from a sum or a maximum *that* a slice holds such a value; this says *where*.
pub fn first_non_finite(x: &[f32]) -> Option<usize> {
    x.iter().position(|v| !v.is_finite())
}
