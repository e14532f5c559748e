//! Nearest centroids: every search on every tier and number of threads against plain loops.

use tritrain_kernels::{
    Context, Tier,
    kmeans::{self, Clusters, NONE, Search},
};
use tritrain_trit::rng::Stream;

/// The squared distance as documented: eight lanes, four chains of them, multiply-adds; chains and then lanes
/// are added in pairs.
fn square_distance(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [[0.0f32; 8]; 4];
    let whole = a.len() / 8;
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        let (group, lane) = (i / 8, i % 8);
        // Groups of eight go to the chains in turn, as far as they are whole; the rest to the first.
        let fours = whole / 4 * 4;
        let chain = if group < fours {
            group % 4
        } else if group < whole {
            group - fours
        } else {
            0
        };
        let difference = x - y;
        sums[chain][lane] = difference.mul_add(difference, sums[chain][lane]);
    }
    let lanes: Vec<f32> = (0..8).map(|l| (sums[0][l] + sums[1][l]) + (sums[2][l] + sums[3][l])).collect();
    let l = &lanes;
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

fn nearest(x: &[f32], centroids: &[f32], dim: usize) -> u32 {
    let distances: Vec<f32> = centroids.chunks(dim).map(|c| square_distance(x, c)).collect();
    let least = distances.iter().copied().fold(f32::INFINITY, f32::min);
    distances.iter().position(|d| *d == least).unwrap() as u32
}

/// Rows and centroids of a case: sizes, scale, offset, duplicates and ties come from its number.
struct Case {
    dim: usize,
    x: Vec<f32>,
    centroids: Vec<f32>,
}

fn case(seed: u64) -> Case {
    let random = Stream::new(seed, 7, 0);
    let below = |at: u64, limit: usize| random.bits(at) as usize % limit;
    let dim = 1 + below(0, [3, 20, 70, 150][below(1, 4)]);
    let k = 1 + below(2, [3, 20, 70, 600][below(3, 4)]);
    let rows = 1 + below(4, [10, 200, 900][below(5, 3)]);
    let kind = below(6, 8);
    let values = Stream::new(seed, 8, 0);
    let value = |i: usize| {
        let z = values.normal(i as u64);
        let column = i % dim;
        match kind {
            // Integers: exact ties and duplicates.
            0 => (z * 1.5).round(),
            1 => (z.abs() * 1.2).floor() * 0.5,
            // Far from zero.
            2 => z + 1000.0,
            // Columns of very different scales.
            3 => z * 10f32.powi(column as i32 % 7 - 3),
            // Rows of very different scales.
            4 => z * 10f32.powi((i / dim) as i32 % 9 - 4),
            5 => z * 1e-9,
            6 => z * 1e9,
            _ => z,
        }
    };
    let x: Vec<f32> = (0..rows * dim).map(value).collect();
    let mut centroids = Vec::new();
    for c in 0..k {
        let row = below(100 + c as u64, rows);
        let near = &x[row * dim..][..dim];
        match below(10_000 + c as u64, 3) {
            0 => centroids.extend_from_slice(near),
            1 => centroids
                .extend(near.iter().enumerate().map(|(j, v)| v * (1.0 + 0.1 * value(c * dim + j).signum()))),
            _ => centroids.extend((0..dim).map(|j| value(rows * dim + c * dim + j))),
        }
    }
    Case { dim, x, centroids }
}

/// Means of the rows of each label in f64, or the old centroid.
fn means(x: &[f32], labels: &[u32], centroids: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; centroids.len()];
    let mut counts = vec![0u64; centroids.len() / dim];
    for (x, label) in x.chunks(dim).zip(labels) {
        counts[*label as usize] += 1;
        for (sum, x) in sums[*label as usize * dim..].iter_mut().zip(x) {
            *sum += f64::from(*x);
        }
    }
    let mean = |i: usize| match counts[i / dim] {
        0 => centroids[i],
        count => (sums[i] / count as f64) as f32,
    };
    (0..sums.len()).map(mean).collect()
}

#[test]
fn all_searches_give_the_labels_of_the_definition() {
    let searches =
        [Search::Plain, Search::Screen, Search::Bounds { tighten: false }, Search::Bounds { tighten: true }];
    let contexts: Vec<Context> = Tier::available()
        .into_iter()
        .enumerate()
        .map(|(at, tier)| Context::new(tier, 1 + at % 3).unwrap())
        .collect();
    let mut skipped = 0;
    for seed in 0..1000 {
        let Case { dim, x, centroids: start } = case(seed);
        // Lloyd iterations by plain loops.
        let mut path = vec![start];
        let mut expected = Vec::new();
        for _ in 0..4 {
            let centroids = path.last().unwrap();
            let labels: Vec<u32> = x.chunks(dim).map(|x| nearest(x, centroids, dim)).collect();
            path.push(means(&x, &labels, centroids, dim));
            expected.push(labels);
        }
        for (at, cx) in contexts.iter().enumerate() {
            for search in searches {
                // The slow tier does less.
                if at == 0 && seed % 4 != 0 {
                    continue;
                }
                let mut clusters = Clusters::new(cx, &x, dim);
                let mut before = vec![NONE; x.len() / dim];
                for (centroids, expected) in path.iter().zip(&expected) {
                    let done = kmeans::assign(cx, &x, centroids, search, &mut clusters);
                    let what = format!("case {seed}, {}, {search:?}, dim {dim}", cx.tier().name());
                    assert_eq!(clusters.labels(), expected, "{what}");
                    let moved = before.iter().zip(expected).filter(|(a, b)| a != b).count();
                    assert_eq!(done.moved, moved, "{what}");
                    skipped += done.skipped;
                    before.clone_from(expected);
                }
            }
        }
    }
    assert!(skipped > 100_000, "bounds settle labels: {skipped}");
}

#[test]
fn threads_change_nothing() {
    for tier in Tier::available() {
        for seed in 2000..2020 {
            let Case { dim, x, centroids } = case(seed);
            let results: Vec<_> = [1, 2, 3]
                .map(|threads| {
                    let cx = Context::new(tier, threads).unwrap();
                    let mut clusters = Clusters::new(&cx, &x, dim);
                    let done = kmeans::assign(&cx, &x, &centroids, Search::Screen, &mut clusters);
                    let mut sums = vec![0.0; centroids.len()];
                    let mut counts = vec![0; centroids.len() / dim];
                    kmeans::sum(&cx, &x, &mut clusters, &mut sums, &mut counts);
                    let mut distances = vec![0.0; x.len() / dim];
                    kmeans::distances(&cx, &x, &centroids, &clusters, &mut distances);
                    (done, clusters.labels().to_vec(), sums, counts, distances)
                })
                .into();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "case {seed}");
        }
    }
}

#[test]
fn the_screen_leaves_few_candidates() {
    let cx = Context::new(Tier::available().pop().unwrap(), 2).unwrap();
    let random = Stream::new(1, 0, 0);
    let x: Vec<f32> = (0..20_000 * 64).map(|i| random.normal(i)).collect();
    let centroids = &x[..256 * 64];
    let mut clusters = Clusters::new(&cx, &x, 64);
    let done = kmeans::assign(&cx, &x, centroids, Search::Screen, &mut clusters);
    assert!(done.compared < 3 * 20_000, "{done:?}");
    // In twelve bits: less than one for ten rows.
    for k in [2, 10, 16] {
        let done = kmeans::assign(&cx, &x, &x[..k * 64], Search::Screen, &mut clusters);
        assert!(done.compared < 20_000 / 10, "{k}: {done:?}");
    }
}

#[test]
fn any_number_of_centroids_may_follow_any_other() {
    for tier in Tier::available() {
        let cx = Context::new(tier, 2).unwrap();
        let random = Stream::new(2, 0, 0);
        let x: Vec<f32> = (0..1000 * 30).map(|i| random.normal(i)).collect();
        let mut clusters = Clusters::new(&cx, &x, 30);
        for (round, k) in [40, 10, 17, 16, 16, 40, 1, 10].into_iter().enumerate() {
            let centroids = &x[round * 30..][..k * 30];
            kmeans::assign(&cx, &x, centroids, Search::Bounds { tighten: true }, &mut clusters);
            let expected: Vec<u32> = x.chunks(30).map(|x| nearest(x, centroids, 30)).collect();
            assert_eq!(clusters.labels(), expected, "{}, {k} in round {round}", tier.name());
        }
    }
}

#[test]
fn sums_are_exact_however_rows_moved() {
    let cx = Context::new(Tier::available().pop().unwrap(), 2).unwrap();
    for seed in 0..50 {
        let Case { dim, x, centroids } = case(3000 + seed);
        let (k, rows) = (centroids.len() / dim, x.len() / dim);
        let random = Stream::new(seed, 9, 0);
        let mut clusters = Clusters::new(&cx, &x, dim);
        let (mut sums, mut counts) = (vec![0.0; k * dim], vec![0; k]);
        for round in 0..4 {
            for row in (0..rows).filter(|row| round == 0 || row % 3 == round % 3) {
                let label = random.bits((round * rows + row) as u64) % k as u32;
                clusters.relabel(row, label);
            }
            kmeans::sum(&cx, &x, &mut clusters, &mut sums, &mut counts);
        }
        let mut again = Clusters::new(&cx, &x, dim);
        for (row, label) in clusters.labels().iter().enumerate() {
            again.relabel(row, *label);
        }
        let (mut fresh, mut fresh_counts) = (vec![0.0; k * dim], vec![0; k]);
        kmeans::sum(&cx, &x, &mut again, &mut fresh, &mut fresh_counts);
        assert_eq!((&sums, &counts), (&fresh, &fresh_counts), "case {seed}");
        // And they are the sums.
        let mut plain = vec![0.0f64; k * dim];
        let mut largest = vec![0.0f64; dim];
        for (x, label) in x.chunks(dim).zip(clusters.labels()) {
            for (j, x) in x.iter().enumerate() {
                plain[*label as usize * dim + j] += f64::from(*x);
                largest[j] = largest[j].max(f64::from(x.abs()));
            }
        }
        for (i, (sum, plain)) in sums.iter().zip(&plain).enumerate() {
            assert!(
                (sum - plain).abs() <= largest[i % dim] * rows as f64 * 2f64.powi(-28),
                "case {seed}, {i}"
            );
        }
    }
}
