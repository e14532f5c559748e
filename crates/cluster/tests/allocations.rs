//! What an iteration allocates, on all threads: a program of its own, without a test harness.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tritrain_backend::{Backend, Cpu, Memory, Search};
use tritrain_trit::rng::Stream;

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let (rows, dim, iterations) = (4000, 40, 12);
    let random = Stream::new(1, 0, 0);
    let values: Vec<f32> = (0..rows * dim).map(|i| random.normal(i as u64)).collect();
    // One for all: threads that end would be counted with the next.
    let cpu = Cpu::new(2).unwrap();
    let searches = [Search::Plain, Search::Screen, Search::Bounds { tighten: true }];
    for (search, k) in searches.into_iter().flat_map(|search| [(search, 30), (search, 10)]) {
        let (mut x, mut centroids) = (cpu.floats(values.len()), cpu.floats(k * dim));
        cpu.upload(&values, &mut x);
        cpu.upload(&values[..k * dim], &mut centroids);
        let mut clusters = cpu.clusters(&x, dim);
        let (mut sums, mut counts) = (vec![0.0; k * dim], vec![0; k]);
        let (mut means, mut distances) = (values[..k * dim].to_vec(), cpu.floats(rows));
        let mut found = Vec::with_capacity(iterations);
        cpu.run(|| {
            for _ in 0..iterations {
                let region = Region::new(COUNTED);
                cpu.assign(&x, &centroids, search, &mut clusters);
                cpu.sum_clusters(&x, &mut clusters, &mut sums, &mut counts);
                for (i, mean) in means.iter_mut().enumerate().filter(|(i, _)| counts[i / dim] > 0) {
                    *mean = (sums[i] / counts[i / dim] as f64) as f32;
                }
                cpu.upload(&means, &mut centroids);
                cpu.cluster_distances(&x, &centroids, &clusters, &mut distances);
                found.push(region.change());
            }
        });
        // The second is the first that has bounds to move.
        for (iteration, change) in found.iter().enumerate().skip(2) {
            let taken = change.allocations + change.reallocations;
            assert_eq!(taken, 0, "{search:?}, {k}, iteration {iteration}: {change:?}");
        }
    }
}
