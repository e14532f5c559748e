//! Philox, the streams and the permutation.
//!
//! The pinned values marked "Python" come from a second implementation in Python integers and floats,
//! written from the table in the module's documentation.

use std::collections::{HashMap, HashSet};
use tritrain_trit::rng::*;

const SEED: u64 = 0x0123_4567_89ab_cdef;
const DRAWS: u64 = 1_000_000;

/// Known answers of Random123 1.14, `tests/kat_vectors`, "philox4x32 10".
#[test]
fn philox_known_answers() {
    for (counter, key, expected) in [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ] {
        assert_eq!(philox(counter, key), expected);
    }
}

#[test]
fn stream_layout_is_pinned() {
    let s = Stream::new(SEED, 7, 3);
    let words = [0x776b_54be, 0x50c9_fe93, 0xd304_eaa1, 0xc412_2e8f]; // Python
    assert_eq!(s.block(0), words);
    assert_eq!(s.block(0), philox([0, 0, 7, 3], [0x89ab_cdef, 0x0123_4567]));
    assert_eq!([0, 1, 2, 3].map(|i| s.bits(i)), words);
    let far = (1 << 34) + 4 * 5 + 2;
    assert_eq!(s.bits(far), philox([5, 1, 7, 3], [0x89ab_cdef, 0x0123_4567])[2]);
    // A step beyond 2^32: the key comes from Philox.
    let late = Stream::new(SEED, 7, (5 << 32) + 3);
    assert_eq!(late.block((1 << 32) + 2), [0xccbe_9b78, 0x6cc6_1a42, 0x95c4_f489, 0xf8e2_b040]); // Python
}

/// Blocks of streams that differ in one argument, or in two that a careless layout would add or XOR
/// into each other. 128-bit blocks that are equal mean equal inputs.
#[test]
fn streams_are_distinct() {
    let ends = [0u64, 1, 2, 3, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 33, 5 << 32, 1 << 63, u64::MAX];
    let tensors = [0u32, 1, 2, 1 << 16, 1 << 31, u32::MAX];
    let blocks = [0u64, 1, 2, 1 << 32, (1 << 32) + 1, (1 << 62) - 1];
    let mut seen = HashMap::new();
    for seed in ends {
        for step in ends {
            for tensor in tensors {
                for block in blocks {
                    let bits = Stream::new(seed, tensor, step).block(block);
                    if let Some(other) = seen.insert(bits, (seed, step, tensor, block)) {
                        panic!("{other:?} and {:?} draw the same", (seed, step, tensor, block));
                    }
                }
            }
        }
    }
    assert_eq!(seen.len(), 11 * 11 * 6 * 6);
}

#[test]
fn views_agree_with_the_words() {
    let s = Stream::new(SEED, 1, 2);
    for i in 0..4096 {
        assert_eq!(s.bits(i), s.block(i / 4)[(i % 4) as usize]);
        assert_eq!(f64::from(s.uniform(i)), f64::from(s.bits(i) >> 8) / 16_777_216.0);
        let (u, v) = (f64::from(s.bits(i & !1)), f64::from(s.bits(i | 1)));
        let radius = (-2.0 * ((u + 1.0) / 4_294_967_296.0).ln()).sqrt();
        let (sin, cos) = (v / 4_294_967_296.0 * std::f64::consts::TAU).sin_cos();
        let expected = radius * if i % 2 == 0 { cos } else { sin };
        let got = f64::from(s.normal(i));
        assert!((got - expected).abs() <= 6.1e-8 * expected.abs() + 1e-15, "{i}: {got} against {expected}");
    }
}

#[test]
fn uniform_is_uniform() {
    let s = Stream::new(SEED, 2, 0);
    let (mut bins, mut sum, mut most) = ([0u32; 256], 0.0f64, 0.0f32);
    for i in 0..DRAWS {
        let u = s.uniform(i);
        assert!((0.0..1.0).contains(&u), "{i}: {u}");
        bins[(u * 256.0) as usize] += 1;
        sum += f64::from(u);
        most = most.max(u);
    }
    let expected = DRAWS as f64 / 256.0;
    let chi2: f64 = bins.iter().map(|&b| (f64::from(b) - expected).powi(2) / expected).sum();
    // 255 degrees of freedom: mean 255, deviation 22.6; four deviations.
    assert!((165.0..345.0).contains(&chi2), "chi-square {chi2}");
    // Deviation of the mean: sqrt(1/12 / 10^6) = 2.9e-4.
    let mean = sum / DRAWS as f64;
    assert!((mean - 0.5).abs() < 1.2e-3, "mean {mean}");
    assert!(most > 0.9999, "largest {most}");
}

#[test]
fn normal_has_the_moments_of_a_normal() {
    let z: Vec<f64> = (0..DRAWS).map(|i| f64::from(Stream::new(SEED, 3, 1).normal(i))).collect();
    let n = DRAWS as f64;
    let mean = z.iter().sum::<f64>() / n;
    let moment = |k: i32| z.iter().map(|x| (x - mean).powi(k)).sum::<f64>() / n;
    let variance = moment(2);
    let (skew, kurtosis) = (moment(3) / variance.powf(1.5), moment(4) / variance.powi(2));
    // Four standard errors each: sqrt(1/n), sqrt(2/n), sqrt(6/n), sqrt(24/n).
    assert!(mean.abs() < 0.004, "mean {mean}");
    assert!((variance - 1.0).abs() < 0.0057, "variance {variance}");
    assert!(skew.abs() < 0.0098, "skewness {skew}");
    assert!((kurtosis - 3.0).abs() < 0.0196, "kurtosis {kurtosis}");
    // Neighbours share a radius, so their independence is a property of Box-Muller worth a check:
    // of the numbers and of their squares (variance of the product: 1 and 4).
    let pairs = n / 2.0;
    let cross = z.chunks(2).map(|p| p[0] * p[1]).sum::<f64>() / pairs;
    let squares = z.chunks(2).map(|p| (p[0] * p[0] - 1.0) * (p[1] * p[1] - 1.0)).sum::<f64>() / pairs;
    assert!(cross.abs() < 4.0 / pairs.sqrt(), "covariance in a pair {cross}");
    assert!(squares.abs() < 8.0 / pairs.sqrt(), "covariance of squares in a pair {squares}");
    // Tails: P(|z| > 1) = 0.317311, P(|z| > 3) = 0.0026998.
    for (at, p) in [(1.0, 0.317_310_5), (2.0, 0.045_500_3), (3.0, 0.002_699_8), (4.0, 6.334e-5)] {
        let share = z.iter().filter(|x| x.abs() > at).count() as f64 / n;
        let error = 4.0 * (p * (1.0 - p) / n).sqrt();
        assert!((share - p).abs() < error, "share beyond {at}: {share}, expected {p} ± {error}");
    }
}

#[test]
fn normal_is_pinned() {
    let s = Stream::new(SEED, 7, 3);
    let first = [0xbefd_3bae, 0x3f90_d742, 0x3d7d_ff93, 0xbf1e_59ab].map(f32::from_bits); // Python
    assert_eq!([0, 1, 2, 3].map(|i| s.normal(i)), first);
    // FNV-1a over the little-endian bytes of 4096 values; from Python with the C library's log, cos
    // and sin.
    let hash = (0..4096)
        .flat_map(|i| s.normal(i).to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    assert_eq!(hash, 0x3c72_2662_ca78_1180, "{hash:#x}");
}

#[test]
fn permutation_is_a_bijection() {
    for n in 1..2000u64 {
        let p = Permutation::new(SEED ^ n, n % 3, n);
        let mut seen = vec![false; n as usize];
        for i in 0..n {
            let x = p.at(i);
            assert!(x < n, "n = {n}: {x} at {i}");
            assert!(!std::mem::replace(&mut seen[x as usize], true), "n = {n}: {x} twice");
        }
    }
}

#[test]
fn permutation_of_many_elements() {
    for n in [(1u64 << 33) - 1, 1 << 33, (1 << 33) + 1, (1 << 34) + 1] {
        let p = Permutation::new(SEED, 4, n);
        // A function that is random but no bijection would repeat itself about 15 times here on 2^33.
        const HALF: u64 = 250_000;
        let seen: HashSet<u64> = (0..HALF).chain(n - HALF..n).map(|i| p.at(i)).collect();
        assert_eq!(seen.len() as u64, 2 * HALF, "n = {n}: repeats");
        assert!(seen.iter().all(|&x| x < n), "n = {n}: out of range");
        // Spread: each sixteenth of the range gets its share, ± 5 standard errors.
        let mut bins = [0i64; 16];
        seen.iter().for_each(|x| bins[(x / n.div_ceil(16)) as usize] += 1);
        assert!(bins.iter().all(|b| (b - 31_250).abs() < 5 * 172), "n = {n}: {bins:?}");
    }
}

#[test]
fn permutation_is_pinned() {
    let all = |epoch| (0..10).map(|i| Permutation::new(42, epoch, 10).at(i)).collect::<Vec<_>>();
    // Python, all of them.
    assert_eq!(all(1), [4, 3, 9, 2, 0, 1, 7, 5, 6, 8]);
    assert_eq!(all((1 << 32) + 1), [0, 3, 4, 9, 5, 8, 2, 6, 7, 1]);
    let n = (1u64 << 33) + 1;
    let p = Permutation::new(42, 1, n);
    assert_eq!([0, 1, n - 1].map(|i| p.at(i)), [1_180_214_929, 4_676_878_510, 7_863_462_795]);
    let n = u64::MAX;
    let p = Permutation::new(42, 1, n);
    let expected = [8_236_080_804_964_028_872, 2_612_446_676_726_920_583, 5_638_232_710_418_053_578];
    assert_eq!([0, 1, n - 1].map(|i| p.at(i)), expected);
}

/// Over many epochs, each order of a few elements is as frequent as it should be.
///
/// For a network that is a random *even* permutation of R numbers, that is (1 ± e)/n!, plus for one
/// parity and minus for the other. Each element taken out of a permutation of k by the walk was
/// either a fixed point (parity kept) or behind one of k - 1 others (parity changed). So the signed
/// count of extensions is the product of 2 - k over k = n+1..=R, against a total of k each, which
/// gives e = (-1)^(R-n) n(n-1)/(R(R-1)). With R = 4 the network has odd permutations too and e = 0.
#[test]
fn permutation_visits_every_order_as_often_as_it_should() {
    for (n, orders, excess) in
        [(3u64, 6usize, 0.0), (4, 24, 0.0), (5, 120, -20.0 / 240.0), (6, 720, 30.0 / 240.0)]
    {
        let mut counts: HashMap<Vec<u64>, u32> = HashMap::new();
        let each = 400.0;
        for epoch in 0..400 * orders as u64 {
            let p = Permutation::new(SEED, epoch, n);
            *counts.entry((0..n).map(|i| p.at(i)).collect()).or_default() += 1;
        }
        assert_eq!(counts.len(), orders, "n = {n}");
        let term = |(order, &count): (&Vec<u64>, &u32)| {
            let inversions = (0..order.len()).flat_map(|j| order[..j].iter().filter(move |&&x| x > order[j]));
            let sign = if inversions.count() % 2 == 0 { 1.0 } else { -1.0 };
            let expected = each * (1.0 + sign * excess);
            (f64::from(count) - expected).powi(2) / expected
        };
        let chi2: f64 = counts.iter().map(term).sum();
        let freedom = orders as f64 - 1.0;
        let deviations = (chi2 - freedom) / (2.0 * freedom).sqrt();
        assert!(deviations < 4.0, "n = {n}: chi-square {chi2}, {deviations} deviations above {freedom}");
    }
}

#[test]
fn permutations_of_epochs_and_seeds_differ() {
    let n = 1000;
    let order = |seed, epoch| (0..n).map(|i| Permutation::new(seed, epoch, n).at(i)).collect::<Vec<_>>();
    let orders = [order(1, 0), order(1, 1), order(1, 1 << 32), order(2, 0), order(1 << 32, 0)];
    for (i, a) in orders.iter().enumerate() {
        // Matches of two random orders are Poisson with mean 1; so are fixed points.
        let fixed = a.iter().enumerate().filter(|&(i, &x)| i as u64 == x).count();
        assert!(fixed < 8, "order {i} keeps {fixed} of {n} in place");
        for b in &orders[..i] {
            let same = a.iter().zip(b).filter(|(x, y)| x == y).count();
            assert!(same < 8, "order {i} has {same} of {n} elements in common with another");
        }
    }
}

#[test]
#[should_panic(expected = "position 3 of a permutation of 3 elements")]
fn permutation_refuses_a_position_beyond_the_end() {
    Permutation::new(1, 1, 3).at(3);
}
