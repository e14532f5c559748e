//! int8 rows.

use proptest::prelude::*;
use tritrain_trit::Error;
use tritrain_trit::rows::*;

#[test]
fn round_even_is_round_half_even_on_its_whole_range() {
    // Every multiple of 1/8 in |x| < 2^22 in steps that hit all fractions, and the ends.
    let mut eighths = -(1i64 << 25) + 1;
    while eighths < 1 << 25 {
        let x = eighths as f32 / 8.0;
        assert_eq!(round_even(x), x.round_ties_even(), "x = {x}");
        eighths += 37;
    }
    for (x, expected) in [
        (0.5, 0.0),
        (-0.5, 0.0),
        (1.5, 2.0),
        (2.5, 2.0),
        (-2.5, -2.0),
        (126.5, 126.0),
        (0.500_000_06, 1.0),
        (0.499_999_97, 0.0),
        (4_194_303.5, 4_194_304.0),
        (-4_194_303.5, -4_194_304.0),
        (-4_194_302.5, -4_194_302.0),
    ] {
        assert_eq!(round_even(x), expected, "x = {x}");
    }
    assert_eq!(round_even(-0.0).to_bits(), 0, "zero comes out as +0");
}

#[test]
fn a_row_by_hand() {
    // max = 254, so a = 2 and x/a is exact: every tie is a tie.
    let x = [254.0, -254.0, 1.0, -1.0, 3.0, -3.0, 5.0, 0.0, -0.0, 253.0, 2.1];
    let mut codes = [99i8; 11];
    assert_eq!(quantize_row(&x, &mut codes), Ok(2.0));
    assert_eq!(codes, [127, -127, 0, 0, 2, -2, 2, 0, 0, 126, 1]);
}

#[test]
fn product_and_not_quotient() {
    // The definition multiplies by 127/max. Find rows where that and a division differ, and check
    // that the product is what counts; without any such row the test would prove nothing.
    let mut differ = 0;
    for k in 1..4000u32 {
        let max = 1.0 + k as f32 / 4096.0;
        for c in [0.5f32, 1.5, 20.5, 63.5, 126.5] {
            let x = [c * (max / 127.0), max];
            let mut codes = [0i8; 2];
            let a = quantize_row(&x, &mut codes).unwrap();
            assert_eq!(a, max / 127.0);
            assert_eq!(f32::from(codes[0]), (x[0] * (127.0 / max)).round_ties_even(), "max = {max}, c = {c}");
            differ += u32::from(f32::from(codes[0]) != (x[0] / a).round_ties_even());
        }
    }
    assert!(differ > 100, "only {differ} rows tell the two apart");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn error_is_at_most_half_a_step(
        x in prop::collection::vec(-1.0f32..1.0, 1..300),
        exponent in -121i32..127,
    ) {
        let x: Vec<f32> = x.iter().map(|v| v * (exponent as f32).exp2()).collect();
        let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let mut codes = vec![0i8; x.len()];
        let a = quantize_row(&x, &mut codes).unwrap();
        // Smaller rows have their own test.
        prop_assume!(127.0 / max < f32::INFINITY);
        prop_assert_eq!(a, max / 127.0);
        prop_assert!(codes.iter().any(|&q| q.unsigned_abs() == 127), "the largest element takes the end");
        for (&v, &q) in x.iter().zip(&codes) {
            let error = (f64::from(v) - f64::from(q) * f64::from(a)).abs();
            let bound = f64::from(a) * (0.5 + 2f64.powi(-14));
            prop_assert!(error <= bound, "{v:e} as {q} · {a:e}: error {error:e}, bound {bound:e}");
        }
    }
}

#[test]
fn zero_rows() {
    // 127 / 2^-121 is 127·2^121 = 0.99·2^128, the last power of two that is not a zero row.
    let smallest = 2f32.powi(-121);
    let tiny = 3.6e-37f32;
    assert!((127.0 / smallest).is_finite() && (127.0 / tiny).is_infinite());
    for x in [vec![], vec![0.0; 5], vec![0.0, -0.0], vec![f32::from_bits(1), 0.0], vec![-tiny, 0.0, tiny]] {
        let mut codes = vec![55i8; x.len()];
        assert_eq!(quantize_row(&x, &mut codes), Ok(0.0), "{x:?}");
        assert!(codes.iter().all(|&q| q == 0), "{x:?} gives {codes:?}");
    }
    let mut codes = [55i8; 3];
    let a = quantize_row(&[smallest, 0.0, -smallest / 2.0], &mut codes).unwrap();
    assert_eq!((a, codes), (smallest / 127.0, [127, 0, -64]));
    let a = quantize_row(&[f32::MAX, 0.0, -f32::MAX], &mut codes).unwrap();
    assert_eq!((a, codes), (f32::MAX / 127.0, [127, 0, -127]));
}

#[test]
fn faults_are_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for first in 0..5 {
            let mut x = [1.0f32; 5];
            x[4] = f32::NAN;
            x[first] = bad;
            match quantize_row(&x, &mut [0; 5]) {
                Err(Error::NonFinite { what: "row element", index, found }) => {
                    assert_eq!((index, found.to_bits()), (first, bad.to_bits()));
                }
                other => panic!("{bad} at {first}: {other:?}"),
            }
        }
    }
    assert_eq!(
        quantize_row(&[1.0; 3], &mut [0; 4]),
        Err(Error::Length { what: "row codes", n: 3, expected: 3, found: 4 })
    );
}
