//! The five-level codebook.

use crate::{all_scales, any_finite, neighbours};
use half::f16;
use proptest::prelude::*;
use tritrain_trit::five::*;

/// The definition with a division, in f64; exact at the ties as in the ternary test.
fn code_by_division(w: f32, scale: f32) -> i8 {
    (2.0 * f64::from(w) / f64::from(scale)).round_ties_even().clamp(-2.0, 2.0) as i8 + 2
}

#[test]
fn code_at_and_around_the_ties_for_every_scale() {
    for s in all_scales() {
        let (inner, outer) = (0.25 * s, 0.75 * s);
        for (w, expected) in [
            (0.0, 2),
            (neighbours(inner).0, 2),
            (inner, 2), // 0.5 halves: even is 0
            (neighbours(inner).1, 3),
            (0.5 * s, 3),
            (neighbours(outer).0, 3),
            (outer, 4), // 1.5 halves: even is 2
            (neighbours(outer).1, 4),
            (f32::MAX, 4),
        ] {
            assert_eq!(code(w, s), expected, "w = {w:e}, scale = {s:e}");
            assert_eq!(code(-w, s), 4 - expected, "w = -{w:e}, scale = {s:e}");
            assert_eq!(code_by_division(w, s), expected, "the other definition, w = {w:e}, scale = {s:e}");
        }
    }
}

#[test]
fn code_of_special_values() {
    for w in [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        assert_eq!(code(w, 0.0), ZERO, "scale 0, w = {w}");
    }
    assert_eq!(code(f32::NAN, 1.0), ZERO);
    assert_eq!(code(f32::INFINITY, 1.0), 4);
    assert_eq!(code(f32::NEG_INFINITY, 1.0), 0);
    assert_eq!(code(f32::from_bits(1), 2f32.powi(-24)), ZERO);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn code_is_the_rounded_quotient(bits: u32, near in -2.0f32..2.0, scale in 1u16..0x7c00) {
        let s = f16::from_bits(scale).to_f32();
        for w in [any_finite(bits), near * s] {
            prop_assert_eq!(code(w, s), code_by_division(w, s), "w = {:e}, scale = {:e}", w, s);
        }
    }

    #[test]
    fn the_chosen_level_is_a_nearest_one(w in -2.0f32..2.0, scale in 0x3000u16..0x4000) {
        let s = f16::from_bits(scale).to_f32();
        let distance = |i: i8| (f64::from(w) - f64::from(LEVELS[i as usize]) * f64::from(s)).abs();
        let chosen = code(w, s);
        for other in 0..5 {
            prop_assert!(distance(chosen) <= distance(other), "{w} with scale {s}: {chosen} against {other}");
        }
    }
}

#[test]
fn levels_survive_the_round_trip_for_every_scale() {
    for s in all_scales() {
        let codes = [0i8, 1, 2, 3, 4];
        let (mut w, mut back) = ([9.0f32; 5], [9i8; 5]);
        dequantize(&codes, s, &mut w);
        assert_eq!(w, LEVELS.map(|l| l * s), "scale = {s:e}");
        quantize(&w, s, &mut back);
        assert_eq!(back, codes, "scale = {s:e}");
    }
}

#[test]
fn the_scale_is_that_of_the_ternary_codebook() {
    assert_eq!(absmean(&[1.0, -2.0, 0.0, 3.0]), Ok(1.5));
}

#[test]
#[should_panic(expected = "one code per weight")]
fn quantize_refuses_another_length() {
    quantize(&[1.0, 2.0], 1.0, &mut [0]);
}

#[test]
#[should_panic(expected = "one weight per code")]
fn dequantize_refuses_another_length() {
    dequantize(&[1], 1.0, &mut [0.0, 0.0]);
}
