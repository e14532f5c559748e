//! Entropy-coded ternary codes: lossless, near their entropy, and nothing else decodes.

use proptest::prelude::*;
use tritrain_trit::{
    Error,
    archive::{decode, encode},
    rng::Stream,
};

/// Codes of which 0 has this share, the others half of the rest each.
fn random(seed: u64, n: usize, zeros: f32) -> Vec<i8> {
    let stream = Stream::new(seed, 1, 0);
    let code = |index: usize| match stream.uniform(index as u64) {
        x if x < zeros => 0,
        x if x < (1.0 + zeros) / 2.0 => 1,
        _ => -1,
    };
    (0..n).map(code).collect()
}

fn round_trip(codes: &[i8]) -> usize {
    let bytes = encode(codes).unwrap();
    let mut back = vec![7; codes.len()];
    decode(&bytes, &mut back).unwrap();
    assert!(back == codes, "{} codes came back otherwise", codes.len());
    bytes.len()
}

/// Bits of the codes at the shares they have.
fn entropy(codes: &[i8]) -> f64 {
    let share = |code: i8| codes.iter().filter(|c| **c == code).count() as f64 / codes.len() as f64;
    [-1, 0, 1].map(share).iter().filter(|p| **p > 0.0).map(|p| -p * p.log2()).sum()
}

#[test]
fn every_length_comes_back() {
    for n in 0..600 {
        round_trip(&random(n as u64, n, 0.33));
        round_trip(&random(n as u64, n, 0.9));
        for code in [-1, 0, 1] {
            round_trip(&vec![code; n]);
        }
    }
}

#[test]
fn whole_matrices_take_their_entropy() {
    for (n, zeros) in [(256 * 256, 1.0 / 3.0), (768 * 2048, 1.0 / 3.0), (576 * 1536, 0.31), (256 * 512, 0.5)]
    {
        let codes = random(n as u64, n, zeros);
        // With the two bytes of a scale.
        let bits = 8.0 * (round_trip(&codes) + 2) as f64 / n as f64;
        assert!(bits < 1.59 && bits < entropy(&codes) + 0.004, "{bits} of {} for {n} codes", entropy(&codes));
    }
    for zeros in [0.0, 0.01, 0.9, 0.999, 0.99999] {
        let codes = random(5, 1 << 20, zeros);
        let bits = 8.0 * round_trip(&codes) as f64 / codes.len() as f64;
        assert!(bits < 1.02 * entropy(&codes) + 0.005, "{bits} of {} with {zeros} zeros", entropy(&codes));
    }
    // A code that occurs once among many.
    let mut codes = vec![1; 1 << 20];
    codes[77_777] = -1;
    codes[1_000_001] = 0;
    // Each symbol of ones alone has 2^14 slots less 242: 0.0215 bits for five codes.
    assert!(round_trip(&codes) < 800);
}

/// The bytes of a small case, put together by the definition with numbers without bounds.
#[test]
fn bytes_are_those_of_one_large_number() {
    // Equal shares: every group has a frequency of 67 or 68 of 16384; with states of 2^16 nothing is carried over for
    // one symbol a state, so each state is `(L / f) · 2^14 + L mod f + start` for L = 2^16.
    let codes: Vec<i8> = [[-1; 5], [0; 5], [1; 5]].concat();
    let bytes = encode(&codes).unwrap();
    assert_eq!((bytes[0..2].to_vec(), bytes[2..4].to_vec()), (vec![0x55, 0x55], vec![0x55, 0x55]));
    let starts: Vec<u64> = (0..=243).map(|symbol| symbol * 16_384 / 243).collect();
    let state = |symbol: usize| {
        let (start, frequency) = (starts[symbol], starts[symbol + 1] - starts[symbol]);
        65_536 / frequency * 16_384 + 65_536 % frequency + start
    };
    let stored: Vec<u64> =
        bytes[4..20].chunks(4).map(|four| u64::from(u32::from_le_bytes(four.try_into().unwrap()))).collect();
    assert_eq!(stored, [state(0), state(121), state(242), 65_536]);
    assert_eq!(bytes.len(), 20);
}

#[test]
fn what_is_damaged_is_an_error() {
    let codes = random(3, 1000, 0.4);
    let bytes = encode(&codes).unwrap();
    let mut out = vec![0; 1000];
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len], &mut out).is_err(), "cut to {len}");
    }
    let mut long = bytes.clone();
    long.push(0);
    assert!(matches!(decode(&long, &mut out), Err(Error::Length { .. })));
    long.push(0);
    assert!(matches!(decode(&long, &mut out), Err(Error::Length { .. })));
    let mut shares = bytes.clone();
    shares[1] = 0xff;
    shares[3] = 0xff;
    assert_eq!(decode(&shares, &mut out), Err(Error::Stream { what: "shares of codes" }));
    // Changed bytes never stand for the same codes, but for shares, which may change no frequency; almost always they
    // end in other states than encoding began with, or at another place.
    let mut unseen = 0;
    for bit in 0..8 * bytes.len() {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        if decode(&changed, &mut out).is_ok() {
            assert!(bit < 32 || out != codes, "bit {bit}");
            unseen += usize::from(bit >= 32);
        }
    }
    assert!(unseen < 8, "{unseen} of {} bits", 8 * bytes.len());
    for other in [0, 995, 1005] {
        assert!(decode(&bytes, &mut vec![0; other]).is_err(), "{other} codes");
    }
    assert!(matches!(encode(&[0, 1, 2]), Err(Error::Code { index: 2, found: 2, .. })));
}

proptest! {
    #[test]
    fn all_codes_come_back(codes in prop::collection::vec(-1i8..=1, 0..400)) {
        round_trip(&codes);
    }

    #[test]
    fn any_bytes_end(bytes: Vec<u8>, n in 0usize..300) {
        let _ = decode(&bytes, &mut vec![0; n]);
    }
}
