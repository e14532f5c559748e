//! Fits against plain loops in f64, known answers, and rows that cannot be clustered.

use tritrain_backend::{Backend, Cpu, Memory, Tier};
use tritrain_cluster::{
    Error, Fit, Method, MiniBatch, Options, Points, Start, Stop, fit, label, silhouette, suggest,
};
use tritrain_trit::rng::Stream;

fn cpu() -> Cpu {
    Cpu::new(2).unwrap()
}

fn points<'a>(cpu: &'a Cpu, x: &[f32], dim: usize, spherical: bool) -> Result<Points<'a, Cpu>, Error> {
    let mut floats = cpu.floats(x.len());
    cpu.upload(x, &mut floats);
    Points::new(cpu, floats, (x.len() / dim, dim), spherical)
}

fn fitted(x: &[f32], dim: usize, start: Start<'_>, options: &Options) -> Result<Fit, Error> {
    fit(&mut points(&cpu(), x, dim, false)?, start, options)
}

/// `rows` rows around `k` corners of a cube, `spread` wide, the corner of row r being r % k.
fn blobs(rows: usize, dim: usize, k: usize, spread: f32, seed: u64) -> Vec<f32> {
    let random = Stream::new(seed, 1, 0);
    let value = |row: usize, j: usize| {
        let side = if (row % k) >> (j % 8) & 1 == 1 { 1.0 } else { -1.0 };
        10.0 * side + spread * random.normal((row * dim + j) as u64)
    };
    (0..rows * dim).map(|i| value(i / dim, i % dim)).collect()
}

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let random = Stream::new(seed, 2, 0);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

fn to_the_end() -> Options {
    Options { tolerance: 0.0, ..Options::default() }
}

/// Lloyd iterations in plain f64 loops until no label changes.
fn reference(x: &[f32], dim: usize, start: &[f32]) -> (Vec<u32>, Vec<f64>, f64, usize) {
    let square = |x: &[f32], c: &[f64]| -> f64 {
        x.iter().zip(c).map(|(x, c)| (f64::from(*x) - c) * (f64::from(*x) - c)).sum()
    };
    let mut centroids: Vec<f64> = start.iter().copied().map(f64::from).collect();
    let mut labels = vec![u32::MAX; x.len() / dim];
    for iteration in 1.. {
        let mut inertia = 0.0;
        let old = labels.clone();
        for (x, label) in x.chunks(dim).zip(&mut labels) {
            let distances: Vec<f64> = centroids.chunks(dim).map(|c| square(x, c)).collect();
            let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
            *label = distances.iter().position(|d| *d == least).unwrap() as u32;
            inertia += least;
        }
        if labels == old {
            return (labels, centroids, inertia, iteration);
        }
        let mut counts = vec![0.0; centroids.len() / dim];
        centroids.fill(0.0);
        for (x, label) in x.chunks(dim).zip(&labels) {
            counts[*label as usize] += 1.0;
            for (c, x) in centroids[*label as usize * dim..].iter_mut().zip(x) {
                *c += f64::from(*x);
            }
        }
        for (i, c) in centroids.iter_mut().enumerate() {
            *c /= counts[i / dim];
        }
    }
    unreachable!()
}

#[test]
fn a_fit_is_that_of_plain_loops() {
    for (rows, dim, k) in [(500, 3, 4), (2000, 17, 9), (900, 70, 33), (5000, 64, 16), (3000, 128, 10)] {
        let x = noise(rows * dim, 5);
        let start = &x[..k * dim];
        let (labels, centroids, inertia, iterations) = reference(&x, dim, start);
        for method in [Method::Auto, Method::Lloyd, Method::Bounds] {
            let options = Options { method, ..to_the_end() };
            let found = fitted(&x, dim, Start::Given(start), &options).unwrap();
            assert_eq!(found.labels, labels, "{rows} × {dim}, {k}, {method:?}");
            assert_eq!((found.iterations, found.stop), (iterations, Stop::Labels));
            assert!((found.inertia - inertia).abs() < 1e-5 * inertia, "{} {inertia}", found.inertia);
            for (found, expected) in found.centroids.iter().zip(&centroids) {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }
}

#[test]
fn methods_tiers_and_threads_change_nothing_but_what_is_skipped() {
    for (dim, k) in [(40, 24), (37, 16), (128, 10), (9, 12), (600, 3)] {
        same_fits(dim, k);
    }
}

fn same_fits(dim: usize, k: usize) {
    let x = blobs(3000, dim, 30, 4.0, 3);
    let mut results = Vec::new();
    for tier in Tier::available() {
        for threads in [1, 2, 3] {
            for method in [Method::Auto, Method::Lloyd, Method::Bounds] {
                let cpu = Cpu::with_tier(tier, threads).unwrap();
                let mut points = points(&cpu, &x, dim, false).unwrap();
                let options = Options { method, seed: 4, ..to_the_end() };
                let fit = fit(&mut points, Start::Seeded(k), &options).unwrap();
                results.push(Fit { skipped: 0, ..fit });
            }
        }
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn seeding_finds_clusters_that_are_apart() {
    for (rows, k) in [(600, 6), (300_000, 16)] {
        let x = blobs(rows, 6, k, 0.5, 1);
        let cpu = cpu();
        let mut points = points(&cpu, &x, 6, false).unwrap();
        let mut perfect = 0;
        for seed in 0..5 {
            let found = fit(&mut points, Start::Seeded(k), &Options { seed, ..Options::default() }).unwrap();
            // Rows r and r + k belong together.
            perfect += u32::from(found.labels.chunks(k).all(|labels| labels == &found.labels[..k]));
        }
        assert!(perfect >= 4, "{perfect} of 5 for {rows} rows");
    }
}

#[test]
fn one_cluster_and_as_many_as_rows() {
    let x = noise(20 * 3, 8);
    let one = fitted(&x, 3, Start::Seeded(1), &to_the_end()).unwrap();
    for j in 0..3 {
        let mean = x.iter().skip(j).step_by(3).copied().map(f64::from).sum::<f64>() / 20.0;
        assert!((f64::from(one.centroids[j]) - mean).abs() < 1e-6);
    }
    let all = fitted(&x, 3, Start::Seeded(20), &to_the_end()).unwrap();
    let mut labels = all.labels.clone();
    labels.sort_unstable();
    assert_eq!((labels, all.inertia), ((0..20).collect(), 0.0));
}

#[test]
fn the_first_of_equal_centroids_wins_and_the_other_moves_to_the_farthest_row() {
    let x = [0.0, 0.0, 1.0, 10.0, 30.0];
    let found = fitted(&x, 1, Start::Given(&[0.0, 0.0, 10.0]), &Options { iterations: 1, ..to_the_end() });
    // Rows 0, 1, 2 go to 0, none to 1, and 3 and 4 to 2, of which 30 is the farthest.
    assert_eq!(found.unwrap().centroids, [1.0 / 3.0, 30.0, 10.0]);
}

#[test]
fn two_empty_clusters_take_different_rows() {
    let x = [0.0, 0.0, 0.0, 50.0, 50.0, 20.0];
    let found = fitted(&x, 1, Start::Given(&[0.0, -1e3, -1e3]), &to_the_end()).unwrap();
    assert_eq!((found.labels, found.centroids), (vec![0, 0, 0, 1, 1, 2], vec![0.0, 50.0, 20.0]));
}

#[test]
fn the_tolerance_is_a_share_of_the_variance() {
    let x = noise(4000 * 8, 3);
    let iterations = |tolerance: f64, scale: f32| {
        let x: Vec<f32> = x.iter().map(|x| x * scale).collect();
        let options = Options { tolerance, ..Options::default() };
        let found = fitted(&x, 8, Start::Given(&x[..12 * 8]), &options).unwrap();
        (found.iterations, found.stop)
    };
    let (few, stop) = iterations(1e-2, 1.0);
    assert_eq!(stop, Stop::Shift);
    assert!(few < iterations(1e-4, 1.0).0);
    assert_eq!((few, stop), iterations(1e-2, 1024.0));
}

#[test]
fn tiny_and_huge_rows_are_clustered_as_others_are() {
    let x = blobs(400, 5, 4, 1.0, 2);
    let plain = fitted(&x, 5, Start::Given(&x[..4 * 5]), &to_the_end()).unwrap();
    for scale in [2f32.powi(-100), 2f32.powi(100)] {
        let scaled: Vec<f32> = x.iter().map(|x| x * scale).collect();
        let found = fitted(&scaled, 5, Start::Given(&scaled[..4 * 5]), &to_the_end()).unwrap();
        assert_eq!(found.labels, plain.labels);
        let back: Vec<f32> = found.centroids.iter().map(|c| c / scale).collect();
        assert_eq!(back, plain.centroids);
        let ratio = found.inertia / f64::from(scale).powi(2) / plain.inertia;
        assert!((ratio - 1.0).abs() < 1e-9, "{ratio}");
    }
}

#[test]
fn directions_are_clustered_by_angle() {
    // Two directions at very different lengths.
    let x = [1.0, 0.1, 200.0, -10.0, 0.1, 1.0, -3.0, 90.0, 0.001, 0.0];
    let cpu = cpu();
    let mut points = points(&cpu, &x, 2, true).unwrap();
    let found = fit(&mut points, Start::Given(&[5.0, 0.0, 0.0, 7.0]), &to_the_end()).unwrap();
    assert_eq!(found.labels, [0, 0, 1, 1, 0]);
    for centroid in found.centroids.chunks(2) {
        assert!((centroid[0].hypot(centroid[1]) - 1.0).abs() < 1e-6);
    }
    let cos =
        |x: &[f32], c: &[f32]| f64::from((x[0] * c[0] + x[1] * c[1]) / x[0].hypot(x[1]) / c[0].hypot(c[1]));
    let rows = x.chunks(2).zip(&found.labels);
    let inertia: f64 = rows.map(|(x, l)| 2.0 - 2.0 * cos(x, &found.centroids[*l as usize * 2..][..2])).sum();
    assert!((found.inertia - inertia).abs() < 1e-5);
}

#[test]
fn what_cannot_be_clustered_is_refused_with_a_reason() {
    let options = Options::default();
    let x = noise(30, 1);
    let of = |x: &[f32], k: usize| fitted(x, 3, Start::Seeded(k), &options).unwrap_err();
    assert_eq!(of(&x, 0), Error::NoClusters { rows: 10 });
    assert_eq!(of(&x, 11), Error::TooManyClusters { k: 11, rows: 10 });
    let twice: Vec<f32> = (0..10).flat_map(|row| [0.0, -0.0, [1.0, 2.0, 3.0][row % 3]]).collect();
    assert_eq!(of(&twice, 4), Error::TooFewDistinct { k: 4, distinct: 3 });
    assert!(fitted(&twice, 3, Start::Seeded(3), &options).is_ok());
    let given = fitted(&twice, 3, Start::Given(&noise(12, 4)), &options).unwrap_err();
    assert_eq!(given, Error::TooFewDistinct { k: 4, distinct: 3 });
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = x.clone();
        x[7] = bad;
        let error = of(&x, 2);
        assert!(matches!(error, Error::NotFinite { row: 2, column: 1, .. }), "{error}");
        let given = fitted(&twice, 3, Start::Given(&x[..9]), &options).unwrap_err();
        assert!(matches!(given, Error::NotFinite { what: "the given centroids", .. }), "{given}");
    }
    let shape = fitted(&x, 3, Start::Given(&x[..4]), &options).unwrap_err();
    assert!(matches!(shape, Error::Shape { .. }), "{shape}");
    assert!(matches!(fitted(&x, 3, Start::Given(&[]), &options), Err(Error::NoClusters { .. })));
    let mut zero = x.clone();
    zero[6..9].fill(0.0);
    assert_eq!(points(&cpu(), &zero, 3, true).unwrap_err(), Error::ZeroRow { what: "the rows", row: 2 });
    assert!(matches!(points(&cpu(), &[], 3, false).unwrap_err(), Error::Shape { .. }));
    for tolerance in [-1.0, f64::NAN, f64::INFINITY] {
        let options = Options { tolerance, ..options };
        assert!(matches!(fitted(&x, 3, Start::Seeded(2), &options), Err(Error::Tolerance { .. })));
    }
}

#[test]
fn rows_that_are_all_equal_are_one_cluster() {
    let x = [2.5; 300];
    let one = fitted(&x, 3, Start::Seeded(1), &Options::default()).unwrap();
    assert_eq!((one.inertia, &one.centroids[..]), (0.0, &[2.5; 3][..]));
    let two = fitted(&x, 3, Start::Seeded(2), &Options::default()).unwrap_err();
    assert_eq!(two, Error::TooFewDistinct { k: 2, distinct: 1 });
}

#[test]
fn batches_lead_near_the_whole() {
    let (dim, k, rows) = (6, 8, 20_000);
    let x = blobs(rows, dim, k, 2.0, 7);
    let cpu = cpu();
    let batch = |at: usize| points(&cpu, &x[at * 1000 * dim..][..1000 * dim], dim, false).unwrap();
    let mut centroids = MiniBatch::start(&mut batch(0), k, &Options::default()).unwrap();
    for at in 1..rows / 1000 {
        centroids.step(&mut batch(at)).unwrap();
    }
    assert_eq!(centroids.counts().iter().sum::<u64>(), rows as u64);
    let mut all = points(&cpu, &x, dim, false).unwrap();
    let (labels, inertia) = label(&mut all, centroids.centroids()).unwrap();
    let whole = fit(&mut all, Start::Given(centroids.centroids()), &to_the_end()).unwrap();
    assert!(inertia < whole.inertia * 1.01, "{inertia} {}", whole.inertia);
    assert_eq!(labels.len(), rows);
    let other = points(&cpu, &x, 4, false);
    assert!(matches!(centroids.step(&mut other.unwrap()), Err(Error::Shape { .. })));
}

#[test]
fn batches_of_directions_are_those_of_their_sums() {
    let (dim, k, rows) = (8, 4, 4000);
    let random = Stream::new(11, 1, 0);
    // Around axis r % k, at very different lengths.
    let value = |row: usize, j: usize| {
        let length = 10f32.powi(random.bits((1 << 32) + row as u64) as i32 % 4);
        length * (f32::from(u8::from(row % k == j)) + 0.1 * random.normal((row * dim + j) as u64))
    };
    let x: Vec<f32> = (0..rows * dim).map(|i| value(i / dim, i % dim)).collect();
    let cpu = cpu();
    let batch = |at: usize| points(&cpu, &x[at * 500 * dim..][..500 * dim], dim, true).unwrap();
    let mut centroids = MiniBatch::start(&mut batch(0), k, &Options::default()).unwrap();
    for at in 1..rows / 500 {
        centroids.step(&mut batch(at)).unwrap();
    }
    assert_eq!(centroids.counts(), [1000; 4]);
    let mut sums = [[0.0f64; 8]; 4];
    for (row, x) in x.chunks(dim).enumerate() {
        let length = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        for (sum, x) in sums[row % k].iter_mut().zip(x) {
            *sum += f64::from(*x) / length;
        }
    }
    for centroid in centroids.centroids().chunks(dim) {
        let axis = (0..k).max_by(|a, b| centroid[*a].total_cmp(&centroid[*b])).unwrap();
        let length = sums[axis].iter().map(|s| s * s).sum::<f64>().sqrt();
        for (found, sum) in centroid.iter().zip(sums[axis]) {
            assert!((f64::from(*found) - sum / length).abs() < 1e-6, "{found} {}", sum / length);
        }
    }
    let mut rows = points(&cpu, &x[..500 * dim], dim, false).unwrap();
    assert!(matches!(centroids.step(&mut rows), Err(Error::Shape { .. })));
}

#[test]
fn the_suggested_number_is_that_of_clusters_that_are_apart() {
    let cpu = cpu();
    for k in [3, 8] {
        let x = blobs(2000, 6, k, 1.0, 9);
        let points = points(&cpu, &x, 6, false).unwrap();
        let found = suggest(&points, &Options::default()).unwrap();
        assert_eq!(found.k, k, "{:?}", found.curve);
        assert!(found.curve.windows(2).all(|pair| pair[0].k < pair[1].k));
    }
    let two = points(&cpu, &[1.0, 2.0, 1.0], 1, false).unwrap();
    assert_eq!(suggest(&two, &Options::default()), Err(Error::NothingToChoose { distinct: 2 }));
}

#[test]
fn silhouettes_are_those_of_the_definition() {
    // Of 0: a = 1, b = (4 + 6)/2; of 1: 1 and 4; of 4: 2 and 3.5; of 6: 2 and 5.5; of 20: alone.
    let expected = ((5.0 - 1.0) / 5.0 + 3.0 / 4.0 + 1.5 / 3.5 + 3.5 / 5.5) / 5.0;
    let found = silhouette(&[0.0, 1.0, 4.0, 6.0, 20.0], 1, &[0, 0, 1, 1, 2]);
    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
}
