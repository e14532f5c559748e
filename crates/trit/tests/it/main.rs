//! Integration tests of the number formats: exhaustive where the domain is small, independent
//! formulas in f64 elsewhere, and values that were computed outside of this crate.

mod archive;
mod blocks;
mod digits;
mod five;
mod pack;
mod rng;
mod rows;
mod ternary;

/// Random finite f32 numbers of all magnitudes: random bits, with the non-finite exponents replaced.
fn any_finite(bits: u32) -> f32 {
    let x = f32::from_bits(bits);
    if x.is_finite() { x } else { f32::from_bits(bits & !(1 << 30)) }
}

/// The float next to `x` (positive) in the direction of zero, and away from it.
fn neighbours(x: f32) -> (f32, f32) {
    (f32::from_bits(x.to_bits() - 1), f32::from_bits(x.to_bits() + 1))
}

/// Every scale the quantiser can return: the positive finite fp16 values.
fn all_scales() -> impl Iterator<Item = f32> {
    (1..half::f16::INFINITY.to_bits()).map(|b| half::f16::from_bits(b).to_f32())
}
