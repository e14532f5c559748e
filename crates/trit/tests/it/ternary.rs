//! The ternary codebook and its scale.

use crate::{all_scales, any_finite, neighbours};
use half::f16;
use proptest::prelude::*;
use tritrain_trit::Error;
use tritrain_trit::ternary::*;

/// The definition with a division, in f64. The quotient of an f32 and an fp16 value is never closer
/// to 0.5 than 2^-25 without being 0.5, so f64 does not move anything onto the tie.
fn code_by_division(w: f32, scale: f32) -> i8 {
    (f64::from(w) / f64::from(scale)).round_ties_even().clamp(-1.0, 1.0) as i8
}

/// The sum with an explicit index, written from the definition and not from the code.
fn block_sum_by_index(w: &[f32]) -> f32 {
    let lane = |l: usize| (0..w.len()).filter(|i| i % 8 == l).fold(0.0f32, |s, i| s + w[i].abs());
    ((lane(0) + lane(4)) + (lane(2) + lane(6))) + ((lane(1) + lane(5)) + (lane(3) + lane(7)))
}

#[test]
fn code_at_and_around_the_tie_for_every_scale() {
    for s in all_scales() {
        let (below, above) = neighbours(s / 2.0);
        for (w, expected) in [(below, 0), (s / 2.0, 0), (above, 1), (s, 1), (f32::MAX, 1)] {
            assert_eq!(code(w, s), expected, "w = {w:e}, scale = {s:e}");
            assert_eq!(code(-w, s), -expected, "w = -{w:e}, scale = {s:e}");
            assert_eq!(code_by_division(w, s), expected, "the other definition, w = {w:e}, scale = {s:e}");
        }
    }
}

#[test]
fn code_of_special_values() {
    let tiny = f32::from_bits(1);
    for s in [0.0, -0.0, 5.960_464_5e-8, 1.0, 65504.0] {
        for w in [0.0, -0.0, tiny, -tiny, f32::NAN] {
            assert_eq!(code(w, s), 0, "w = {w}, scale = {s}");
        }
    }
    for w in [tiny, 1.0, -3.5, f32::MAX, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(code(w, 0.0), 0, "scale 0 gives code 0, w = {w}");
        assert_eq!(code(w, -0.0), 0, "scale -0 gives code 0, w = {w}");
    }
    assert_eq!(code(f32::INFINITY, 1.0), 1);
    assert_eq!(code(f32::NEG_INFINITY, 1.0), -1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn code_is_the_rounded_quotient(bits: u32, near in 0.0f32..4.0, negative: bool, scale in 1u16..0x7c00) {
        let s = f16::from_bits(scale).to_f32();
        let near = if negative { -near * s } else { near * s };
        for w in [any_finite(bits), near] {
            prop_assert_eq!(code(w, s), code_by_division(w, s), "w = {:e}, scale = {:e}", w, s);
        }
    }
}

#[test]
fn sum_keeps_the_order_of_the_definition() {
    const BIG: f32 = 16_777_216.0; // 2^24: the first integer whose successor is no f32
    let at = |values: &[(usize, f32)]| {
        let mut w = vec![0.0f32; 64];
        for &(i, v) in values {
            w[i] = v;
        }
        block_abs_sum(&w)
    };
    // One lane, in order: each 1 is lost on the tie. From the back, 2 + 2^24 would survive.
    assert_eq!(at(&[(0, BIG), (8, 1.0), (16, -1.0)]), BIG);
    assert_eq!(at(&[(0, 1.0), (8, -1.0), (16, BIG)]), BIG + 2.0);
    // l0 + l4 first, and l2 + l6 on its own.
    assert_eq!(at(&[(0, BIG), (4, 1.0), (2, 1.0)]), BIG);
    assert_eq!(at(&[(0, BIG), (2, 1.0), (6, 1.0)]), BIG + 2.0);
    // The odd lanes are folded before they meet the even ones.
    assert_eq!(at(&[(0, BIG), (1, 1.0), (3, 1.0)]), BIG + 2.0);
    assert_eq!(at(&[(1, BIG), (5, 1.0), (7, 1.0)]), BIG);
    assert_eq!(at(&[(1, BIG), (3, 1.0), (7, 1.0)]), BIG + 2.0);
    assert_eq!(at(&[(3, BIG), (5, 1.0), (1, 1.0)]), BIG + 2.0);
}

#[test]
fn blocks_are_widened_before_they_are_added() {
    let mut w = vec![0.0f32; SUM_BLOCK + 1];
    w[0] = 16_777_216.0;
    w[SUM_BLOCK] = 1.0;
    assert_eq!(abs_total(&w), 16_777_217.0, "the last element is a block of its own, in f64");
    w[SUM_BLOCK] = 0.0;
    w[8] = 1.0;
    assert_eq!(abs_total(&w), 16_777_216.0, "the same 1 in the first block is lost in f32");
}

proptest! {
    #[test]
    fn absmean_is_the_rounded_mean(w in prop::collection::vec(-8.0f32..8.0, 1..600), scale_bits in -20i32..12) {
        let w: Vec<f32> = w.iter().map(|x| x * (scale_bits as f32).exp2()).collect();
        prop_assert_eq!(block_abs_sum(&w).to_bits(), block_sum_by_index(&w).to_bits());
        let exact = w.iter().map(|x| f64::from(x.abs())).sum::<f64>() / w.len() as f64;
        // Half a unit of fp16 (11 bits, or the subnormal spacing), plus the f32 sum.
        let bound = (exact * 2f64.powi(-11)).max(2f64.powi(-25)) + exact * 1e-5;
        let got = absmean(&w).unwrap();
        prop_assert!((f64::from(got) - exact).abs() <= bound, "{} against {}", got, exact);
        prop_assert_eq!(f16::from_f32(got).to_f32(), got, "the scale is an fp16 value");
    }

    #[test]
    fn absmean_of_many_blocks(n in 4000usize..13_000, seed: u64) {
        let stream = tritrain_trit::rng::Stream::new(seed, 0, 0);
        let w: Vec<f32> = (0..n as u64).map(|i| stream.normal(i)).collect();
        let total = w.chunks(4096).map(|b| f64::from(block_sum_by_index(b))).fold(0.0, |s, b| s + b);
        prop_assert_eq!(abs_total(&w).to_bits(), total.to_bits());
        let expected = f16::from_f32((total / n as f64) as f32).to_f32();
        prop_assert_eq!(absmean(&w).unwrap(), expected);
    }
}

#[test]
fn scale_rounds_twice_and_to_even() {
    let ulp = 2f64.powi(-10); // of fp16 in [1, 2)
    for (mean, expected) in [
        (1.0 + 0.5 * ulp, 1.0),
        (1.0 + 1.5 * ulp, 1.0 + 2.0 * ulp),
        (1.0 + 0.5 * ulp + 2f64.powi(-20), 1.0 + ulp),
        // Above the tie by less than f32 can show: the first rounding makes it a tie.
        (1.0 + 0.5 * ulp + 2f64.powi(-40), 1.0),
    ] {
        assert_eq!(f64::from(scale_from_total(mean * 3.0, 3).unwrap()), expected, "mean {mean}");
    }
}

#[test]
fn scale_at_both_ends_of_fp16() {
    let smallest = 2f32.powi(-24);
    let (below, above) = neighbours(smallest / 2.0);
    for (w, expected) in [
        (vec![], 0.0),
        (vec![0.0, -0.0, 0.0], 0.0),
        (vec![f32::from_bits(1); 9], 0.0),
        (vec![below], 0.0),
        (vec![smallest / 2.0], 0.0), // a tie: 0 is even
        (vec![-above], smallest),
        (vec![smallest, -smallest], smallest),
        (vec![65504.0; 3], 65504.0),
        (vec![-65504.0, 65503.0], 65504.0),
    ] {
        let s = absmean(&w).unwrap();
        assert_eq!(s.to_bits(), f32::to_bits(expected), "{w:?} gives {s:e}");
    }
    assert_eq!(scale_from_total(0.0, 0), Ok(0.0));

    let beyond = neighbours(65504.0).1;
    assert_eq!(absmean(&[beyond]), Err(Error::ScaleRange { n: 1, found: beyond }));
    // Finite weights whose sum overflows f32: too large, and no weight to blame.
    assert_eq!(absmean(&[f32::MAX; 20]), Err(Error::ScaleRange { n: 20, found: f32::INFINITY }));
    assert!(matches!(scale_from_total(f64::NAN, 4), Err(Error::ScaleRange { n: 4, .. })));
    assert!(matches!(scale_from_total(-1.0, 4), Err(Error::ScaleRange { n: 4, .. })));
    assert!(matches!(scale_from_total(1.0, 0), Err(Error::ScaleRange { n: 0, .. })));
}

#[test]
fn absmean_names_the_first_non_finite_weight() {
    for n in [1usize, 7, 8, 9, 4096, 4097, 9000] {
        for first in [0, n / 2, n - 1] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut w = vec![0.25f32; n];
                w[first] = bad;
                w[n - 1] = if first == n - 1 { bad } else { f32::INFINITY };
                match absmean(&w) {
                    Err(Error::NonFinite { what: "weight", index, found }) => {
                        assert_eq!((index, found.to_bits()), (first, bad.to_bits()), "n = {n}");
                    }
                    other => panic!("n = {n}, {bad} at {first}: {other:?}"),
                }
            }
        }
    }
    let message = absmean(&[1.0, f32::INFINITY]).unwrap_err().to_string();
    assert!(message.starts_with("weight 1 is inf, expected a finite number; "), "{message}");
}

#[test]
fn slices_are_quantised_and_restored_by_element() {
    let w = [0.0, -0.0, 0.75, -0.75, 0.76, -0.76, 2.0, -9.0, f32::NAN];
    let mut codes = [7i8; 9];
    quantize(&w, 1.5, &mut codes);
    assert_eq!(codes, [0, 0, 0, 0, 1, -1, 1, -1, 0]);
    let mut back = [7.0f32; 9];
    dequantize(&codes, 1.5, &mut back);
    assert_eq!(back, [0.0, 0.0, 0.0, 0.0, 1.5, -1.5, 1.5, -1.5, 0.0]);
    quantize(&w, 0.0, &mut codes);
    assert_eq!(codes, [0; 9]);
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
