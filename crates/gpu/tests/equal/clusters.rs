//! Operations of k-means.

use tritrain_backend::{Backend, Search};

use crate::{Case, Found, Random, compare, get, put};

/// Rows, and centroids that are some of them: `k` of which `twins` are the same as others.
#[derive(Debug)]
struct Means {
    rows: usize,
    dim: usize,
    k: usize,
    twins: usize,
    /// Added to every entry.
    offset: f32,
    /// Whether entries are small whole numbers, so that distances tie.
    whole: bool,
    seed: u64,
}

/// Numbers of 64 bits as what f32 holds exactly.
fn quarters(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().flat_map(|x| [0, 16, 32, 48].map(|at| f32::from((x.to_bits() >> at) as u16))).collect()
}

impl Case for Means {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Means { rows, dim, k, twins, offset, whole, seed } = *self;
        let mut random = Random::new(seed);
        let shape = |x: f32| if whole { (2.0 * x).round() } else { x } + offset;
        let host: Vec<f32> = random.normal(rows * dim).into_iter().map(shape).collect();
        let mut centroids: Vec<f32> = random.normal(k * dim).into_iter().map(shape).collect();
        for twin in 0..twins.min(k - 1) {
            centroids.copy_within(twin * dim..(twin + 1) * dim, (k - 1 - twin) * dim);
        }
        let x = put(b, &host);
        let mut clusters = b.clusters(&x, dim);
        let (mut sums, mut counts) = (vec![0.0; k * dim], vec![0; k]);
        let mut found = vec![Found::Close("spread", vec![b.spread(&x, &mut clusters) as f32])];
        for round in 0..3 {
            let on_device = put(b, &centroids);
            let done = b.assign(&x, &on_device, Search::Plain, &mut clusters);
            found.push(Found::Exact("moved", vec![done.moved as f32, done.compared as f32]));
            let labels = b.labels(&clusters);
            found.push(Found::Exact("labels", labels.iter().map(|label| *label as f32).collect()));
            let mut distances = b.floats(rows);
            b.cluster_distances(&x, &on_device, &clusters, &mut distances);
            found.push(Found::Close("distances", get(b, &distances)));
            if round == 1 {
                b.relabel(&mut clusters, rows / 2, (k - 1) as u32);
            }
            b.sum_clusters(&x, &mut clusters, &mut sums, &mut counts);
            found.push(Found::Exact("sums", quarters(&sums)));
            found.push(Found::Exact("counts", counts.iter().map(|count| *count as f32).collect()));
            for ((centroid, sums), count) in
                centroids.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).zip(&counts)
            {
                if *count > 0 {
                    centroid.iter_mut().zip(sums).for_each(|(c, sum)| *c = (sum / *count as f64) as f32);
                }
            }
        }
        b.reset_clusters(&mut clusters);
        sums.fill(0.0);
        counts.fill(0);
        b.sum_clusters(&x, &mut clusters, &mut sums, &mut counts);
        found.push(Found::Exact("sums of nothing", quarters(&sums)));
        let mut nearest = put(b, &vec![dim as f32; rows]);
        b.approach(&x, &put(b, &host[..dim]), &mut nearest);
        found.push(Found::Close("approach", get(b, &nearest)));
        found
    }
}

#[test]
fn clusters_are_the_same() {
    let plain = Means { rows: 1, dim: 1, k: 1, twins: 0, offset: 0.0, whole: false, seed: 1 };
    compare(&plain);
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let (rows, dim, k) = (random.size(300), random.size(70), random.size(50));
        compare(&Means { rows, dim, k, seed, ..plain });
        compare(&Means { rows, dim, k, seed, offset: 100.0, twins: 3, ..plain });
        compare(&Means { rows, dim: 1 + dim % 4, k, seed, whole: true, twins: 1, ..plain });
    }
    // More than one segment of a label, and more than one tile.
    compare(&Means { rows: 2100, dim: 20, k: 2, seed: 50, ..plain });
}

/// Rows of lengths far apart.
#[derive(Debug)]
struct Lengths {
    rows: usize,
    dim: usize,
    zero: bool,
}

impl Case for Lengths {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Lengths { rows, dim, zero } = *self;
        let mut host = Random::new(dim as u64).normal(rows * dim);
        for (row, x) in host.chunks_exact_mut(dim).enumerate() {
            let by = [1.0, 1e-30, 1e30, 3.0][row % 4];
            x.iter_mut().for_each(|x| *x *= by);
        }
        if zero {
            host[..dim].fill(0.0);
        }
        let mut x = put(b, &host);
        let any = b.normalize_rows(&mut x, dim);
        vec![Found::Exact("any zero", vec![f32::from(u8::from(any))]), Found::Close("rows", get(b, &x))]
    }
}

#[test]
fn rows_are_normalised_the_same() {
    compare(&Lengths { rows: 1, dim: 1, zero: false });
    for (rows, dim) in [(9, 3), (5, 256), (7, 700)] {
        compare(&Lengths { rows, dim, zero: false });
        compare(&Lengths { rows, dim, zero: true });
    }
}
