//! Packed ternary codes of every tier against the definitions of `trit`, bit for bit.

use tritrain_kernels::{Context, Tier, quantize};
use tritrain_trit::{
    Error,
    pack::{pack2, packed2_len, unpack2},
    rng::Stream,
    ternary,
};

fn normal(seed: u64, len: usize) -> Vec<f32> {
    let random = Stream::new(seed, 0, 0);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

/// Contexts of every tier, alone and on three threads.
fn contexts() -> impl Iterator<Item = Context> {
    Tier::available().into_iter().flat_map(|tier| [1, 3].map(|threads| Context::new(tier, threads).unwrap()))
}

fn expected(x: &[f32]) -> (Vec<u8>, f32) {
    let scale = ternary::absmean(x).unwrap();
    let mut codes = vec![0; x.len()];
    ternary::quantize(x, scale, &mut codes);
    let mut bytes = vec![0; packed2_len(x.len())];
    pack2(&codes, &mut bytes).unwrap();
    (bytes, scale)
}

fn check(cx: &Context, x: &[f32]) {
    let (bytes, scale) = expected(x);
    let mut found = vec![0xff; bytes.len()];
    let found_scale = quantize::quantize(cx, x, &mut found).unwrap();
    let what = format!("{} numbers on {}", x.len(), cx.tier().name());
    assert_eq!((found_scale.to_bits(), &found), (scale.to_bits(), &bytes), "{what}");
    let mut codes = vec![0; x.len()];
    unpack2(&bytes, &mut codes).unwrap();
    let mut values = vec![f32::NAN; x.len()];
    ternary::dequantize(&codes, scale, &mut values);
    let mut back = vec![f32::NAN; x.len()];
    quantize::dequantize(cx, &bytes, scale, &mut back).unwrap();
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&back), bits(&values), "{what}");
}

#[test]
fn every_tier_packs_what_the_definition_packs() {
    let storage = normal(1, 200_000);
    for cx in contexts() {
        for len in (0..=515).chain([4095, 4096, 4097, 16_384, 16_387, 32_768, 65_537, 131_071, 199_900]) {
            check(&cx, &storage[len % 33..][..len]);
        }
    }
}

#[test]
fn ties_zeros_and_the_smallest_and_largest_numbers_are_as_defined() {
    let ties = [[1.0f32, -1.0, 0.5, -0.5, 1.5, -1.5, 0.0, -0.0]; 40].concat();
    let halves = [0.5f32, -0.5, 1.0, 1.0, 1.0, 1.0, 1.0, -2.0].repeat(9);
    let tiny = vec![f32::MIN_POSITIVE, -f32::from_bits(1), 0.0, 1e-30].repeat(70);
    let large = vec![65504.0f32, -65504.0, 65503.0].repeat(70);
    for cx in contexts() {
        for x in [&ties, &halves, &tiny, &large, &vec![0.0; 130]] {
            check(&cx, x);
        }
    }
}

#[test]
fn what_is_no_number_has_no_codes() {
    for cx in contexts() {
        for (at, wrong) in [(0, f32::NAN), (70_001, f32::INFINITY), (99_999, f32::NEG_INFINITY)] {
            let mut x = normal(2, 100_000);
            x[at] = wrong;
            let mut bytes = vec![0; packed2_len(x.len())];
            match quantize::quantize(&cx, &x, &mut bytes) {
                Err(Error::NonFinite { index, .. }) => assert_eq!(index, at),
                other => panic!("{other:?}"),
            }
        }
        let large = vec![f32::MAX; 5000];
        let mut bytes = vec![0; packed2_len(large.len())];
        assert!(matches!(quantize::quantize(&cx, &large, &mut bytes), Err(Error::ScaleRange { .. })));
        let short = quantize::quantize(&cx, &large, &mut bytes[1..]);
        assert!(matches!(short, Err(Error::Length { expected: 1250, found: 1249, .. })), "{short:?}");
    }
}

#[test]
fn bytes_that_are_no_codes_are_refused_where_they_are() {
    for cx in contexts() {
        for len in [1, 2, 7, 64, 67, 40_001] {
            let (bytes, scale) = expected(&normal(3, len));
            let mut out = vec![0.0; len];
            for (byte, position) in [(0, 0), (len / 8, 1), ((len - 1) / 4, (len - 1) % 4)] {
                let position = position.min(len - 1 - 4 * byte);
                let mut broken = bytes.clone();
                broken[byte] |= 3 << (2 * position);
                let found = quantize::dequantize(&cx, &broken, scale, &mut out);
                let mut codes = vec![0; len];
                assert_eq!(found, unpack2(&broken, &mut codes), "{len} numbers");
                assert_eq!(found, Err(Error::Pattern { byte, position, found: 3 }));
            }
            if len % 4 > 0 {
                let mut broken = bytes.clone();
                broken[len / 4] = broken[len / 4] & 0x3f | 0x80;
                let found = quantize::dequantize(&cx, &broken, scale, &mut out);
                assert!(matches!(found, Err(Error::Padding { byte, position: 3, .. }) if byte == len / 4));
            }
            let long = quantize::dequantize(&cx, &bytes, scale, &mut vec![0.0; 4 * bytes.len() + 1]);
            assert!(matches!(long, Err(Error::Length { .. })), "{long:?}");
        }
    }
}
